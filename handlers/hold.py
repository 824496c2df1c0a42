"""A worker that waits for its operator, so that TorchServe ends it between two requests.

TorchServe ends a worker without regard to the request in it. A describe call is a batch of its own:
while a worker answers one it holds no client's request. So the operator, who is the same user on
the same host, leaves a file for a process; the worker that finds its own when it is described says
so by renaming the file, and waits until the file is gone.
"""

from __future__ import annotations

import os
import tempfile
import time
from pathlib import Path

# However the operator fares, a worker waits no longer.
SECONDS = 10.0


def asked(folder: Path, pid: int) -> Path:
    """The file by which the operator asks a process to wait; ``folder`` is the server's TMPDIR."""
    return folder / f"hold-{pid}"


def held(folder: Path, pid: int) -> Path:
    """The file that says that a process waits."""
    return folder / f"held-{pid}"


def wait_if_asked() -> None:
    """Wait while this process is asked to, for ``SECONDS`` at most; called on a describe call that
    is a batch of its own."""
    folder, pid = Path(tempfile.gettempdir()), os.getpid()
    waiting = held(folder, pid)
    try:
        # Where the folder is a public one, others' files count for nothing
        if asked(folder, pid).lstat().st_uid != os.getuid():
            return
        asked(folder, pid).rename(waiting)
    except FileNotFoundError:
        return
    deadline = time.monotonic() + SECONDS
    while waiting.exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    waiting.unlink(missing_ok=True)
