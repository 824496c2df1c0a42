"""Golden requests: does this host compute what the build host did?

They are lossless pictures chosen at build for their clear decision, with the artifact's own
answers. Answering them at load is the warm-up, too.
"""

from __future__ import annotations

import io
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from handlers.errors import GoldenError

if TYPE_CHECKING:
    from handlers.task import TaskHandler

FILE = "golden/requests.json"


@dataclass(frozen=True)
class Golden:
    """One golden request: a PNG's path in the archive, its answer, and how far scores may move."""

    picture: str
    answer: Any
    tolerance: float


def read(folder: Path) -> list[Golden]:
    """The golden requests of an unpacked archive, at least one; raises GoldenError."""
    try:
        return parse((folder / FILE).read_bytes())
    except OSError as error:
        raise GoldenError(f"{FILE} cannot be read ({error}): build the archive again") from error


def parse(text: bytes) -> list[Golden]:
    """The golden requests of ``golden/requests.json``, at least one; raises GoldenError."""
    try:
        requests = [Golden(**fields) for fields in json.loads(text)]
    except (ValueError, TypeError) as error:
        raise GoldenError(f"{FILE} cannot be read ({error}): build the archive again") from error
    if not requests:
        raise GoldenError(f"{FILE} holds no request: build the archive again")
    return requests


def to_json(requests: list[Golden]) -> str:
    """The text of ``golden/requests.json``."""
    return (
        json.dumps([asdict(request) for request in requests], indent=1, ensure_ascii=False) + "\n"
    )


def check(handler: TaskHandler, folder: Path) -> None:
    """Answer every golden request alone and in a full batch; raises GoldenError at a difference."""
    requests = read(folder)
    pictures = [_picture(folder / request.picture) for request in requests]
    for request, picture in zip(requests, pictures, strict=True):
        _compare(handler, request, handler.answer([picture])[0])
    count = max(handler.bundle.limits.batch_size, len(requests))
    order = [index % len(requests) for index in range(count)]
    answers = handler.answer([pictures[index] for index in order])
    for index, answer in zip(order, answers, strict=True):
        _compare(handler, requests[index], answer)


def difference(handler: TaskHandler, expected: Any, answer: Any, tolerance: float) -> str | None:
    """What the task calls a difference of two answers, as JSON values: another decision, or scores
    moved by more than ``tolerance``; None where there is none."""
    found = handler.compare(expected, answer)
    if found.same and found.score <= tolerance:
        return None
    return f"{found.detail}, scores moved by {found.score:.3g} (allowed {tolerance:g})"


def _compare(handler: TaskHandler, request: Golden, answer: Any) -> None:
    as_json = json.loads(json.dumps(answer))
    if found := difference(handler, request.answer, as_json, request.tolerance):
        raise GoldenError(
            f"golden request {request.picture} is not answered as at build: {found}; rebuild the "
            "archive on this kind of host, or look for a damaged library"
        )


def _picture(path: Path) -> Image.Image:
    try:
        return Image.open(io.BytesIO(path.read_bytes()), formats=["PNG"]).convert("RGB")
    except OSError as error:
        raise GoldenError(
            f"{path.name} cannot be read ({error}): build the archive again"
        ) from error
