"""Memory that PyTorch takes for every operator and gives back after it.

Left alone, glibc returns blocks beyond some megabytes to the system at once and gets them anew,
page by page, for the next operator: half of what a batch costs an eager network with large
activations (MobileNetV2). Runtimes that plan their memory ahead do not have that.
"""

from __future__ import annotations

import ctypes
import os

# From malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
# Blocks from here on are still returned at once, and what is free in all beyond ``KEPT``.
LARGEST, KEPT = 256 << 20, 1 << 30
# Who sets one of these has chosen.
_CHOSEN = ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES")


def keep_freed() -> bool:
    """Let this process keep up to a gigabyte that it has freed; whether that was set.

    Its peak stays as it was but for fragments (20 MB with MobileNetV2); what falls away is the way
    down from there. Other C libraries than glibc are left as they are, and so are settings of the
    environment.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None or any(name in os.environ for name in _CHOSEN):
        return False
    return bool(mallopt(_M_MMAP_THRESHOLD, LARGEST) and mallopt(_M_TRIM_THRESHOLD, KEPT))
