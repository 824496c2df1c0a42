"""The start of a process that loads torch."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def for_good() -> Iterator[None]:
    """Import within this what stays to the end of the process.

    torch makes some 300,000 objects: looking for garbage among them while they come takes 0.3 s,
    and doing it again throughout an export a second.
    """
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
        gc.freeze()
    finally:
        if collecting:
            gc.enable()
