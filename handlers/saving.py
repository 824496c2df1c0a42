"""Writing what torch saves, so that a full disk is an error and not the end of the process."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any


def write(save: Callable[[io.BytesIO], Any], path: Path) -> None:
    """Let ``save`` fill a buffer and write it to ``path``; raises OSError.

    torch's own writer of files aborts the process where the disk takes no more.
    """
    buffer = io.BytesIO()
    save(buffer)
    path.write_bytes(buffer.getbuffer())


def records(contents: Mapping[str, bytes], path: Path) -> None:
    """Write torch's kind of zip with these records, in their order; raises OSError."""
    import torch

    # In a buffer the name inside the file is a fixed one: of a file it is the file's own.
    def save(file: io.BytesIO) -> None:
        writer = torch._C.PyTorchFileWriter(file)
        for name, content in contents.items():
            writer.write_record(name, content, len(content))
        writer.write_end_of_file()

    write(save, path)
