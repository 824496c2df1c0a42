"""Ed25519 signatures of archives, and the policy that only signed ones are served.

What is signed are the bytes of the record, which has the sha256 of every other file; the signature
lies beside it. All checks are here, outside the archive: the code in an archive could not be
trusted to check itself. Nothing of an archive is imported or deserialised.
"""

from __future__ import annotations

import filecmp
import tempfile
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from handlers import integrity
from handlers.errors import IntegrityError, SignatureError
from handlers.integrity import RECORD, SIGNATURE
from marsmith import archive
from marsmith import keys as key_files
from marsmith.environment import SIGNATURE_SETTING
from marsmith.store import exclusive, publish, workspace


def sign(path: Path, key: Path) -> None:
    """Sign an archive by a private key, in its place; an older signature is replaced.

    Signing the same archive by the same key gives the same bytes. Raises SignatureError, also where
    somebody else has replaced the archive meanwhile, IntegrityError where a file is not as built,
    or ArchiveError where its folder has no room.
    """
    private = key_files.private(key)
    # In the archive's folder, so that the rename at the end is atomic.
    with workspace(path.parent) as temporary:
        folder, signed = temporary / "archive", temporary / path.name
        read = _state(path)
        with _named(path):
            moment = _unpack(path, folder)
            integrity.verify(folder)
        with archive.taken(path.parent, f"{path.name} with its signature"):
            (folder / SIGNATURE).write_bytes(private.sign((folder / RECORD).read_bytes()))
            archive.zip_folder(folder, signed, moment)
            with exclusive(path.parent):
                if _state(path) != read:
                    raise SignatureError(
                        f"{path.name} was replaced or removed while it was signed: look which one "
                        "is wanted, and sign that"
                    )
                publish(signed, path)


def check(path: Path, keys: Sequence[Path]) -> Path:
    """The one of the public ``keys`` that signed an archive; every byte of it is covered.

    Raises SignatureError, IntegrityError with the name of the file that is not as signed, or
    ArchiveError where the temporary folder has no room to look.
    """
    publics = [(key, key_files.public(key)) for key in keys]
    signature = _member(path, SIGNATURE)
    if signature is None:
        raise SignatureError(f"{path.name} is not signed: `marsmith sign` does that")
    record = _member(path, RECORD) or b""
    signers = [key for key, public in publics if key_files.fits(public, signature, record)]
    if not signers:
        names = ", ".join(key.name for key in keys)
        raise SignatureError(
            f"{path.name}: {SIGNATURE} is no signature of {RECORD} by {names}: the record was "
            "changed, or another key has signed it"
        )
    with _named(path):
        _check_bytes(path)
    return signers[0]


def required(properties: Mapping[str, str], home: Path) -> list[Path] | None:
    """The public keys, one of which must have signed an archive; None where none is demanded.

    ``require_signature`` holds paths relative to ``home``, with commas between. Raises
    SignatureError where it names no readable key: a policy is never off by mistake.
    """
    if SIGNATURE_SETTING not in properties:
        return None
    names = properties[SIGNATURE_SETTING].split(",")
    keys = [home / name.strip() for name in names if name.strip()]
    if not keys:
        raise SignatureError(
            f"{SIGNATURE_SETTING} names no public key: {key_files.MAKE}, or leave the line out"
        )
    for key in keys:
        key_files.public(key)
    return keys


def admit(path: Path, properties: Mapping[str, str], home: Path) -> None:
    """Raise SignatureError or IntegrityError for an archive that is not signed as demanded."""
    if keys := required(properties, home):
        check(path, keys)


def admitted(
    store: Path, names: Sequence[str], properties: Mapping[str, str], home: Path
) -> tuple[list[str], dict[str, str]]:
    """Those archives of a store that the configuration wants, and why the others are refused."""
    keys = required(properties, home)
    if keys is None:
        return list(names), {}
    refused = {}
    for name in names:
        try:
            check(store / name, keys)
        except (SignatureError, IntegrityError) as error:
            refused[name] = str(error)
    return [name for name in names if name not in refused], refused


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Errors of integrity begin with the archive's name, for there may be several."""
    try:
        yield
    except IntegrityError as error:
        raise IntegrityError(f"{path.name}: {error}") from error


def _state(path: Path) -> tuple[int, ...] | None:
    """What changes when a file is written or another gets its name; None where there is none."""
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


def _check_bytes(path: Path) -> None:
    """The files are those of the record, and the zip is the one that we write of them.

    TorchServe reads a zip from its beginning, Python from its end: a made-up one can show each of
    them other files. There is one way only in which we write given files.
    """
    with tempfile.TemporaryDirectory(prefix="marsmith-signature-") as temporary:
        folder, again = Path(temporary) / "archive", Path(temporary) / "again.mar"
        moment = _unpack(path, folder)
        integrity.verify(folder)
        with archive.taken(folder.parent, f"what {path.name} holds"):
            archive.zip_folder(folder, again, moment)
        if not filecmp.cmp(path, again, shallow=False):
            raise IntegrityError(
                "its files are as signed, but the zip around them was changed: sign it again"
            )


def _unpack(path: Path, folder: Path) -> datetime:
    """Unpack an archive; the time that its entries have."""
    try:
        with zipfile.ZipFile(path) as content:
            _check_stored(content, path)
            with archive.taken(folder.parent, f"what {path.name} holds"):
                content.extractall(folder)
            return datetime(*content.infolist()[0].date_time, tzinfo=UTC)
    # A changed byte in a header may show as any of these.
    except (OSError, ValueError, IndexError, zipfile.BadZipFile) as error:
        raise IntegrityError(f"it cannot be unpacked: {error}") from error


def _check_stored(content: zipfile.ZipFile, path: Path) -> None:
    """Nothing is compressed, so that unpacking takes no more than the archive's own size."""
    entries = content.infolist()
    plain = all(e.compress_type == zipfile.ZIP_STORED and not e.flag_bits & 1 for e in entries)
    if not plain or sum(entry.file_size for entry in entries) > path.stat().st_size:
        raise ValueError("it was not zipped by marsmith")


def _member(path: Path, name: str) -> bytes | None:
    try:
        with zipfile.ZipFile(path) as content:
            _check_stored(content, path)
            return content.read(name) if name in content.namelist() else None
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise SignatureError(f"{path.name}: {name} cannot be read: {error}") from error
