"""The model store's archives, in the order that TorchServe has to load them."""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path

from handlers import integrity
from handlers.errors import ArchiveError
from handlers.nearest import hint
from marsmith.archive import Header, check_torch, file_name, read_header, unpack
from marsmith.locks import alone
from marsmith.model_options import STORE

# Hidden, so that TorchServe does not take them for models.
_LOCK, _WORK = ".lock", ".build-"


def version_key(version: str) -> tuple[tuple[int, str], ...]:
    """Sorts versions by their numbers: 10.0 after 2.0, and 2.0 after 2.0-rc1."""
    parts = re.findall(r"\d+|[A-Za-z]+", version)
    keys = [(int(part), "") if part.isdecimal() else (-2, part) for part in parts]
    return (*keys, (-1, ""))


def readable(store: Path, named: Sequence[str] = ()) -> tuple[dict[str, Header], dict[str, str]]:
    """What archives of a store say they are, and why others cannot be read, by bare file name.

    ``named`` are those to read, by default all. Raises ArchiveError for a named one that is not
    there, which is a mistake of whoever named it and no damage.
    """
    headers, reasons = {}, {}
    for name in named or sorted(path.name for path in store.glob("*.mar")):
        if named and not (store / name).exists():
            raise ArchiveError(f"no {name} in {store}: {_near(name, store)}")
        try:
            headers[name] = read_header(store / name)
        except ArchiveError as error:
            reasons[name] = f"{error}: build it again, or remove it"
    return headers, reasons


def locate(archive: Path, here: Path = Path(), store: Path = STORE) -> Path:
    """The archive at a path from ``here``, or else of this name in the store.

    Raises ArchiveError with the nearest names where there is neither.
    """
    for path in (here / archive, store / archive):
        if path.exists():
            return path
    raise ArchiveError(
        f"no archive at {here / archive}, nor in {store}: {_near(archive.name, store)}"
    )


def _near(name: str, store: Path) -> str:
    return hint(name, [path.name for path in store.glob("*.mar")])


def newest_first(
    headers: Mapping[str, Header], first: Mapping[str, str] | None = None
) -> list[str]:
    """Archives as bare file names by model, each model's newest version first.

    TorchServe makes the first version that it loads the default one; ``first`` names the version of
    a model that is to be that one instead of the newest.
    """
    found = sorted(headers, key=lambda file: version_key(headers[file].version), reverse=True)
    chosen = first or {}

    def place(file: str) -> tuple[str, bool]:
        header = headers[file]
        return header.name, header.version != chosen.get(header.name)

    return sorted(found, key=place)


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


def exclusive(store: Path) -> AbstractContextManager[None]:
    """Hold the store against others who look what is there and then change it; waits for them."""
    return alone(store / _LOCK)


@contextmanager
def workspace(store: Path) -> Iterator[Path]:
    """A hidden folder in the store for one archive's making, so that its last step is a rename.

    Builds, copies and signatures are made in one. What those that were killed have left is removed.
    """
    with exclusive(store):
        _remove_abandoned(store)
        made = tempfile.TemporaryDirectory(prefix=_WORK, dir=store)
        lock = (Path(made.name) / _LOCK).open("a")
        fcntl.flock(lock, fcntl.LOCK_EX)
    try:
        yield Path(made.name)
    finally:
        with exclusive(store), lock:
            made.cleanup()


def _remove_abandoned(store: Path) -> None:
    """Remove the folders of processes that have ended without doing so."""
    for folder in store.glob(_WORK + "*"):
        # Somebody works in it.
        with suppress(BlockingIOError), (folder / _LOCK).open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder)


def publish(path: Path, target: Path) -> None:
    """Give an archive its name, after its bytes are on the disk: no crash leaves half of it."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
    path.replace(target)


def admit(archive: Path, store: Path) -> bool:
    """Bring a verified archive into the store by one rename; whether it was not there before.

    Raises ArchiveError where the store has other bytes under its name or no worker of it can start
    here, IntegrityError for a damaged one.
    """
    check_torch(archive)
    target = store / name_in(store, archive)
    if archive.resolve() == target.resolve():
        verify(archive)
        return False
    with workspace(store) as folder:
        # What is checked is the copy: the original may change meanwhile
        copy = folder / archive.name
        try:
            shutil.copyfile(archive, copy)
        except OSError as error:
            raise ArchiveError(f"cannot copy {archive} into the store: {error}") from error
        verify(copy)
        with exclusive(store):
            if target.exists():
                if integrity.sha256(target) == integrity.sha256(copy):
                    return False
                raise ArchiveError(
                    f"the store has another {target.name} already: build this one with a --version"
                    " of its own"
                )
            publish(copy, target)
    return True
