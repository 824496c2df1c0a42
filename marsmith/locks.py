"""Files that one process at a time holds; the system frees them however a process ends."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def alone(file: Path) -> Iterator[None]:
    """Hold ``file``, waiting until nobody else does; it is made, and goes again if it is empty."""
    while True:
        with file.open("ab") as held:
            fcntl.flock(held, fcntl.LOCK_EX)
            if not _is_at(held.fileno(), file):
                # Whoever was waited for has removed or renamed it.
                continue
            try:
                yield
            finally:
                if _is_at(held.fileno(), file) and file.stat().st_size == 0:
                    file.unlink()
            return


@contextmanager
def kept(folder: Path) -> Iterator[int]:
    """A descriptor of a folder, locked as long as it is open in any process that it was given to.

    systemd-tmpfiles, which removes what is old in ``/tmp``, leaves out folders that are locked.
    """
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH)
        yield descriptor
    finally:
        os.close(descriptor)


def _is_at(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False
