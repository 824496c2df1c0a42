"""Every file of an archive against the sha256 recorded when it was built.

Checked before anything is deserialised or imported beyond this package. It tells damage and
mix-ups, not malice: who can change a file can change the record. A signature of the record tells
malice, and is checked by who starts TorchServe, for a hostile archive would not check itself.
"""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path

from handlers.errors import IntegrityError

RECORD = "MAR-INF/RECORD.json"
SIGNATURE = "MAR-INF/RECORD.json.sig"
# What Python writes before ``handlers.entry``, or what stands for torch, tells it to write no
# bytecode. Python runs any other in the place of its source, whatever that says.
_CACHED = re.compile(
    r"(handlers/__pycache__/(__init__|entry)|__pycache__/torch)\.cpython-\d+(\.opt-\d)?\.pyc"
)


def sha256(path: Path) -> str:
    """Hex digest of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def verify(folder: Path) -> None:
    """Compare all files in ``folder`` with the record; raises IntegrityError naming the first."""
    try:
        expected = json.loads((folder / RECORD).read_text(encoding="utf-8"))["sha256"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise IntegrityError(
            f"{RECORD} is missing or unreadable: this is no whole marsmith archive, build it again"
        ) from error
    found = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    found = {name for name in found if not _CACHED.fullmatch(name)} - {RECORD, SIGNATURE}
    for name in sorted(expected.keys() - found):
        raise IntegrityError(f"{name} is missing from the archive: build or copy it again")
    for name in sorted(found - expected.keys()):
        raise IntegrityError(f"{name} was added to the archive after the build: build it again")
    for name, digest in sorted(expected.items()):
        actual = sha256(folder / name)
        if actual != digest:
            raise IntegrityError(
                f"{name} was changed after the build (sha256 {actual[:12]}..., built as "
                f"{digest[:12]}...): build or copy the archive again"
            )
