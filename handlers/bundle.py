"""What an archive says of its model: ``marsmith.json``, written at build, read by the worker."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from handlers.closeness import DEFAULTS, Closeness
from handlers.errors import LoadError
from handlers.foreign import Contract
from handlers.inputs import ImageInput

FILE = "marsmith.json"
# The half of a model that runs in the handler, where it was exported in two; see ``split``.
DECODE_FILE = "decode.pth"
# In the place of a precision.
AS_EXPORTED = "as exported"


def told_precision(precision: str, foreign: object) -> str:
    """What people and programs are told of a bundle's ``precision``.

    What an artifact that others exported (``foreign`` is something) computes in, nobody has said:
    of such the bundle has what the runtime takes where the artifact leaves that open.
    """
    return AS_EXPORTED if foreign else precision


@dataclass(frozen=True)
class Limits:
    """What one request and one worker may take.

    ``batch_size`` is the most pictures per call of the model, ``max_pixels`` the most pixels of one
    picture (width x height) and of what is decoded for one request, ``max_pictures`` the most
    pictures of one request. ``threads`` are the native threads of one worker; 0 shares the host's
    cores among ``workers``. ``log_requests`` writes a line for each request that was answered.
    """

    batch_size: int = 8
    max_pixels: int = 50_000_000
    max_pictures: int = 32
    workers: int = 1
    threads: int = 0
    device: Literal["auto", "cpu", "gpu"] = "auto"
    log_requests: bool = False


@dataclass(frozen=True)
class Bundle:
    """One servable model: everything that is not in the artifact itself.

    ``decode`` holds the task's settings that are fixed in the exported module, ``defaults`` the
    values of request options that a client leaves out, ``runtime_options`` what the runtime needs
    to load ``artifact`` (a path relative to the archive), which takes at most ``artifact_batch``
    pictures per call. ``closeness`` says when two answers are the same. ``foreign`` is None, or
    says what an artifact that others exported takes and gives.
    """

    name: str
    version: str
    task: str
    runtime: str
    artifact: str
    labels: list[str]
    input: ImageInput
    precision: str = "fp32"
    decode: dict[str, Any] = field(default_factory=dict)
    defaults: dict[str, Any] = field(default_factory=dict)
    runtime_options: dict[str, Any] = field(default_factory=dict)
    limits: Limits = field(default_factory=Limits)
    artifact_batch: int = 1
    closeness: Closeness = field(default_factory=Closeness)
    foreign: Contract | None = None
    provenance: dict[str, Any] = field(default_factory=dict)

    @property
    def told_precision(self) -> str:
        """The precision for people and programs, as the function of this name has it."""
        return told_precision(self.precision, self.foreign)

    @classmethod
    def read(cls, folder: Path) -> Bundle:
        """Read the bundle of an unpacked archive; raises LoadError."""
        try:
            return cls.parse((folder / FILE).read_text(encoding="utf-8"))
        except OSError as error:
            raise LoadError(f"{FILE} cannot be read ({error}): build the archive again") from error

    @classmethod
    def parse(cls, text: str) -> Bundle:
        """The bundle of the text of ``marsmith.json``; raises LoadError."""
        try:
            fields = json.loads(text)
            fields["input"] = ImageInput(**fields["input"])
            fields["limits"] = Limits(**fields["limits"])
            # An archive of before a limit came has none of its own.
            fields["closeness"] = replace(DEFAULTS[fields["precision"]], **fields["closeness"])
            if fields.get("foreign") is not None:
                fields["foreign"] = Contract(**fields["foreign"])
            return cls(**fields)
        except (ValueError, TypeError, KeyError) as error:
            raise LoadError(f"{FILE} is not as built ({error}): build the archive again") from error

    def write(self, folder: Path) -> None:
        """Write ``marsmith.json``; the same bundle gives the same bytes."""
        text = json.dumps(asdict(self), indent=1, sort_keys=True, ensure_ascii=False)
        (folder / FILE).write_text(text + "\n", encoding="utf-8")
