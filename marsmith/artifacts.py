"""What the archives of a model weigh, by runtime, and how long a worker takes to load each."""

from __future__ import annotations

import zipfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from handlers import onnx_data
from handlers.bundle import DECODE_FILE, FILE, told_precision
from handlers.errors import SmokeError
from marsmith import smoke
from marsmith.archive import read_header, read_json
from marsmith.store import readable, version_key


@dataclass(frozen=True)
class ArchiveCost:
    """An archive: bytes of the artifact (with all its files) and of the whole archive. ``import_s``
    is what any worker of TorchServe imports, ``load_s`` checks, loading and golden requests,
    ``resident_bytes`` the most memory that took, ``device`` where; None where not measured, and
    ``refused`` says why the archive does not load."""

    file: str
    version: str
    runtime: str
    precision: str
    artifact_bytes: int
    archive_bytes: int
    import_s: float | None = None
    load_s: float | None = None
    resident_bytes: int | None = None
    device: str | None = None
    refused: str | None = None

    def to_json(self) -> dict[str, Any]:
        """The fields as JSON values."""
        return asdict(self)


def of_model(name: str, store: Path) -> tuple[list[Path], list[str]]:
    """The archives of model ``name`` in a store by version, and why others cannot be read."""
    headers, reasons = readable(store)
    found = [file for file, header in headers.items() if header.name == name]
    found.sort(key=lambda file: version_key(headers[file].version))
    return [store / file for file in found], list(reasons.values())


def describe(path: Path, load: bool) -> ArchiveCost:
    """Sizes of an archive and, with ``load``, its worker's load time in a clean process."""
    bundle, header = read_json(path, FILE), read_header(path)
    stem = bundle["artifact"].partition(".")[0]
    with zipfile.ZipFile(path) as archive:
        files = {info.filename: info.file_size for info in archive.infolist()}
    size = sum(length for file, length in files.items() if _of_artifact(file, stem))
    measured: dict[str, Any] = {}
    if load:
        try:
            measured = smoke.measured(path)
        except SmokeError as error:
            measured = {"refused": str(error)}
    return ArchiveCost(
        file=path.name,
        version=header.version,
        runtime=bundle["runtime"],
        precision=told_precision(bundle["precision"], bundle.get("foreign")),
        artifact_bytes=size,
        archive_bytes=path.stat().st_size,
        **measured,
    )


def _of_artifact(file: str, stem: str) -> bool:
    """Whether a file of an archive is of the artifact, whose own files are named ``stem``.

    Weights of others beside it have names of their own, and none as an archive's other files have.
    """
    if file.partition(".")[0] == stem or file == DECODE_FILE:
        return True
    return "/" not in file and not file.endswith(onnx_data.TAKEN)
