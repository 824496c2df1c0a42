"""Write and read .mar files: a zip whose bytes depend on nothing but what is in it.

torch-model-archiver's own Python API makes the manifest; its zip writer is not used, because its
output differs from run to run and it deletes a folder of the model's name in the temp folder.
"""

from __future__ import annotations

import errno
import json
import lzma
import os
import re
import shutil
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from model_archiver.model_archiver_config import ModelArchiverConfig
from model_archiver.model_archiver_error import ModelArchiverError
from model_archiver.model_packaging_utils import ModelExportUtils

import handlers
from handlers import plugins, torch_on_demand
from handlers.errors import ArchiveError, PluginError
from handlers.integrity import RECORD, sha256

if TYPE_CHECKING:
    from handlers.bundle import Bundle

HANDLER = "handlers.entry"
STAND_IN = "torch.py"
MANIFEST = "MAR-INF/MANIFEST.json"
# How no model may be named: TorchServe takes each path with "/token" in it for its token API.
TOKEN = "token"
# A version of ours is of digits and dots, the archiver takes any text. Whatever it is becomes part
# of a file's name in the store, of a URL's path and of lines in logs.
_VERSION = re.compile(r"[A-Za-z0-9._+:!~-]{1,100}")
# What a file system takes for the name of a file.
_MOST_NAME = 255
# A full disk, a used up quota, a file too large, a read-only place, or no right to write.
NO_PLACE = (
    *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG),
    *(errno.EROFS, errno.EACCES, errno.EPERM),
)
# What reading a damaged zip may raise,
# of what another packer has compressed or marked, too.
_ODD = (
    *(OSError, zipfile.BadZipFile, KeyError, ValueError),
    *(zlib.error, lzma.LZMAError, EOFError, RuntimeError),
)
# The first and last moment that a zip can hold; SOURCE_DATE_EPOCH moves the first.
_EPOCH, _LATEST = 315532800, 4354819199


@dataclass(frozen=True)
class Header:
    """What an archive's manifest says."""

    name: str
    version: str


def file_name(name: str, version: str) -> str:
    """The archive's file name in a model store."""
    return f"{name}-{version}.mar"


def model_name(name: str) -> str:
    """``name``, if the archiver lets a model be called so; raises ValueError."""
    try:
        # The archiver's pattern lets a newline at the end pass.
        ModelExportUtils.check_model_name_regex_or_exit(name.replace("\n", " "))
    except ModelArchiverError as error:
        raise ValueError(str(error).replace("\n", " ")) from error
    return name


def read_header(path: Path) -> Header:
    """Name and version in an archive's manifest, which is what TorchServe goes by.

    Raises ArchiveError for what cannot name a file of a store: anybody may have packed it.
    """
    manifest = read_json(path, MANIFEST)
    try:
        name, version = manifest["model"]["modelName"], manifest["model"]["modelVersion"]
    except (KeyError, TypeError) as error:
        raise ArchiveError(
            f"{path.name}: {MANIFEST} lacks {error}: it is no model archive"
        ) from error
    try:
        return _header(name, version)
    except ValueError as error:
        raise ArchiveError(f"{path.name}: {MANIFEST} has {error}") from error


def _header(name: Any, version: Any) -> Header:
    """What a manifest says, checked; raises ValueError."""
    if not isinstance(name, str):
        raise ValueError(f"modelName {name!r:.60}, which is no text")
    try:
        model_name(name)
    except ValueError as error:
        raise ValueError(f"modelName {name!r:.60}: {error}") from error
    if not (isinstance(version, str) and _VERSION.fullmatch(version)):
        raise ValueError(
            f'modelVersion {version!r:.60}: accepted is a text like "1.0" of at most 100 letters, '
            "digits and any of . _ + : ! ~ -"
        )
    if len(file_name(name, version)) > _MOST_NAME:
        raise ValueError(
            f"modelName {name!r:.60} and modelVersion {version!r:.60}, which are too long for the "
            f"name of a file: {_MOST_NAME} characters are accepted, with .mar"
        )
    return Header(name, version)


def read_json(path: Path, member: str) -> Any:
    """A JSON file of an archive; raises ArchiveError."""
    with _opened(path) as content:
        return json.loads(content.read(member))


@contextmanager
def _opened(path: Path) -> Iterator[zipfile.ZipFile]:
    """An archive to read; what goes wrong in the block, too, becomes ArchiveError."""
    try:
        with zipfile.ZipFile(path) as content:
            yield content
    except ArchiveError:
        # One of those below by its kind, and said already.
        raise
    except _ODD as error:
        raise ArchiveError(f"{path.name} is not a readable model archive: {error}") from error


def stage_handlers(folder: Path, needs_torch: bool = True) -> None:
    """Copy the handler package into a staged archive, and what stands for torch in workers that
    compute nothing with it."""
    if not needs_torch:
        stage_stand_in(folder)
    source = Path(handlers.__file__).parent
    for name in _names(source):
        if "__pycache__" not in Path(name).parts:
            target = folder / "handlers" / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source / name, target)


def stage_stand_in(folder: Path) -> None:
    """Write what a worker whose path begins with ``folder`` imports in torch's place."""
    shutil.copyfile(str(torch_on_demand.__file__), folder / STAND_IN)


def check_torch(path: Path) -> None:
    """Raise ArchiveError where the archive's worker needs PyTorch and this environment has none."""
    if find_spec("torch") is not None:
        return
    with _opened(path) as content:
        if STAND_IN in content.namelist():
            return
    raise ArchiveError(
        f"{path.name}: its worker needs PyTorch, which is not installed here: install "
        f"requirements.txt, or build it with --runtime {' or '.join(_torchless())} (a detector in "
        "fp32, whole)"
    )


def _torchless() -> Iterator[str]:
    """The runtimes that do without PyTorch."""
    for name in plugins.names("runtimes"):
        # Without PyTorch the files of others cannot be imported.
        with suppress(PluginError):
            if not plugins.load_runtime(name).needs_torch:
                yield name


def pack(folder: Path, bundle: Bundle, path: Path) -> None:
    """Zip a staged archive: manifest and record are added, names sorted, times and modes fixed.

    Files are stored, not compressed: weights hardly shrink and TorchServe unpacks faster.
    """
    config = ModelArchiverConfig(
        model_name=bundle.name,
        version=bundle.version,
        handler=HANDLER,
        serialized_file=bundle.artifact,
        config_file="model-config.yaml",
        export_path=str(path.parent),
    )
    when = moment()
    manifest = json.loads(ModelExportUtils.generate_manifest_json(config))
    manifest["createdOn"] = when.strftime("%d/%m/%Y %H:%M:%S")
    (folder / "MAR-INF").mkdir()
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
    names = _names(folder)
    record = {"sha256": {name: sha256(folder / name) for name in names}}
    (folder / RECORD).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    zip_folder(folder, path, when)


def zip_folder(folder: Path, path: Path, when: datetime) -> None:
    """Zip all files of a folder, each with the same time."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name in _names(folder):
            info = zipfile.ZipInfo(name, when.timetuple()[:6])
            info.create_system, info.external_attr = 3, 0o644 << 16
            # Beforehand, for one of 2 GiB or more needs another kind of header.
            info.file_size = (folder / name).stat().st_size
            with (folder / name).open("rb") as source, archive.open(info, "w") as target:
                shutil.copyfileobj(source, target, 1 << 20)


def _names(folder: Path) -> list[str]:
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())


def unpack(path: Path, folder: Path) -> None:
    """Unpack an archive as TorchServe does; raises ArchiveError."""
    with _opened(path) as content:
        for member in content.infolist():
            with taken(folder, f"what {path.name} holds"):
                content.extract(member, folder)


@contextmanager
def taken(folder: Path, what: str) -> Iterator[None]:
    """Where ``folder`` gives no room or no right in the block, raise ArchiveError that says so.

    ``what`` is what it was to take, for an archive may be right which finds no place there.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in NO_PLACE:
            raise
        raise ArchiveError(
            f"{folder} does not take {what} ({error.strerror}): make room or give rights there, or"
            " let TMPDIR name another folder"
        ) from error


def moment() -> datetime:
    """The time that a build writes: ``SOURCE_DATE_EPOCH``, or the first that a zip can hold."""
    given = os.environ.get("SOURCE_DATE_EPOCH", str(_EPOCH))
    if not given.isdecimal() or not _EPOCH <= int(given) <= _LATEST:
        raise ArchiveError(
            f"SOURCE_DATE_EPOCH={given!r}: a zip takes whole seconds from {_EPOCH} to {_LATEST}"
        )
    return datetime.fromtimestamp(int(given), UTC)
