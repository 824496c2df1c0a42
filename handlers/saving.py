"""Writing what torch saves, so that a full disk is an error and not the end of the process."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any


def write(save: Callable[[io.BytesIO], Any], path: Path) -> None:
    """Let ``save`` fill a buffer and write it to ``path``; raises OSError.

    torch's own writer of files aborts the process where the disk takes no more.
    """
    buffer = io.BytesIO()
    save(buffer)
    path.write_bytes(buffer.getbuffer())
