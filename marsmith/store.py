"""The model store's archives, in the order that TorchServe has to load them."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path

from handlers import integrity
from handlers.errors import ArchiveError
from marsmith.archive import file_name, read_header, unpack


def version_key(version: str) -> tuple[tuple[int, str], ...]:
    """Sorts versions by their numbers: 10.0 after 2.0, and 2.0 after 2.0-rc1."""
    parts = re.findall(r"\d+|[A-Za-z]+", version)
    keys = [(int(part), "") if part.isdecimal() else (-2, part) for part in parts]
    return (*keys, (-1, ""))


def archives_newest_first(store: Path, first: Mapping[str, str] | None = None) -> list[str]:
    """The store's archives as bare file names by model, each model's newest version first.

    TorchServe makes the first version that it loads the default one; ``first`` names the version of
    a model that is to be that one instead of the newest.
    """
    found = [(read_header(path), path.name) for path in sorted(store.glob("*.mar"))]
    found.sort(key=lambda item: version_key(item[0].version), reverse=True)
    chosen = first or {}
    found.sort(key=lambda item: (item[0].name, item[0].version != chosen.get(item[0].name)))
    return [file for _, file in found]


def verify(archive: Path) -> None:
    """Check every file of an archive against its record; raises ArchiveError or IntegrityError."""
    with tempfile.TemporaryDirectory() as folder:
        unpack(archive, Path(folder))
        integrity.verify(Path(folder))


def name_in(store: Path, archive: Path) -> str:
    """The file name that ``admit`` gives an archive: its own if it lies in the store."""
    if archive.resolve().parent == store.resolve():
        return archive.name
    header = read_header(archive)
    return file_name(header.name, header.version)


def admit(archive: Path, store: Path) -> bool:
    """Bring a verified archive into the store by one rename; whether it was not there before.

    Raises ArchiveError where the store has other bytes under its name, IntegrityError for a damaged
    one.
    """
    target = store / name_in(store, archive)
    if archive.resolve() == target.resolve():
        verify(archive)
        return False
    with tempfile.TemporaryDirectory(dir=store, prefix=".") as folder:
        # What is checked is the copy: the original may change meanwhile
        copy = Path(folder) / archive.name
        try:
            shutil.copyfile(archive, copy)
        except OSError as error:
            raise ArchiveError(f"cannot copy {archive} into the store: {error}") from error
        verify(copy)
        if target.exists():
            if integrity.sha256(target) == integrity.sha256(copy):
                return False
            raise ArchiveError(
                f"the store has another {target.name} already: build this one with a --version of"
                " its own"
            )
        with copy.open("rb") as file:
            os.fsync(file.fileno())
        copy.rename(target)
    return True
