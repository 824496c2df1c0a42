"""How many cores this process may use."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path

_CGROUPS, _OWN = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")


def usable() -> int:
    """The cores that this process may run on, or fewer: as its cgroup's quota of time is worth.

    A container's limit is such a quota (CFS). Neither the affinity nor Python's own counts tell
    of it, and more threads than it pays for wait for each other until the next period.
    """
    quotas = [quota for folder in _folders() if (quota := _quota(folder)) is not None]
    return min([len(os.sched_getaffinity(0)), *map(math.ceil, quotas)])


def _folders() -> Iterator[Path]:
    """Folders of the cgroups that this process is in, whose limits all hold.

    A container sees its own at the root; outside of one its path is in /proc.
    """
    try:
        lines = _OWN.read_text("utf-8").splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if not controllers or "cpu" in controllers.split(","):
            # With version 1 each controller has a tree of its own.
            root = _CGROUPS / "cpu" if controllers else _CGROUPS
            own = root / path.lstrip("/")
            yield from (each for each in (own, *own.parents) if each.is_relative_to(root))


def _quota(folder: Path) -> float | None:
    """Cores' worth of time in each period; None where it is not limited."""
    try:
        if (folder / "cpu.max").exists():
            quota, period = (folder / "cpu.max").read_text("utf-8").split()
        else:
            quota = (folder / "cpu.cfs_quota_us").read_text("utf-8")
            period = (folder / "cpu.cfs_period_us").read_text("utf-8")
    except OSError:
        return None
    # No limit is "max" in version 2, and -1 in version 1.
    return int(quota) / int(period) if quota != "max" and int(quota) > 0 else None
