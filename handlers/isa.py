"""Which instructions compiled code needs, and whether this processor has them.

Code for a processor that this one is not ends the process with SIGILL and says nothing.
"""

from __future__ import annotations

import platform
from functools import cache
from pathlib import Path

from handlers.errors import RuntimeUnavailable

# Of the x86-64 psABI's levels those with vectors, by the kernel's names of their instructions.
_V3 = frozenset(["avx", "avx2", "bmi1", "bmi2", "f16c", "fma", "abm", "movbe", "xsave"])
LEVELS = {
    "x86-64-v3": _V3,
    "x86-64-v4": _V3 | frozenset(["avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"]),
}
# Bits of the vectors of each level.
WIDTHS = {"x86-64-v3": 256, "x86-64-v4": 512}


@cache
def here() -> frozenset[str]:
    """Instruction sets of this processor, as Linux names them in /proc/cpuinfo."""
    for line in Path("/proc/cpuinfo").read_text("utf-8").splitlines():
        name, _, value = line.partition(":")
        if name.strip() in ("flags", "Features"):
            return frozenset(value.split())
    return frozenset()


def best() -> str | None:
    """The highest of LEVELS that this processor has; None where it has none of them."""
    return next((level for level in reversed(LEVELS) if LEVELS[level] <= here()), None)


def check(machine: str, needed: frozenset[str], what: str) -> None:
    """Raise RuntimeUnavailable where ``what`` is for another machine or needs other instructions.

    ``machine`` is the kind as ``platform.machine()`` says it, ``needed`` the kernel's names.
    """
    if machine != platform.machine():
        raise RuntimeUnavailable(
            f"{what} is compiled for {machine}, this host is {platform.machine()}: build the "
            "archive on a host of this kind"
        )
    if missing := sorted(needed - here()):
        raise RuntimeUnavailable(
            f"{what} is compiled for a processor with {', '.join(missing)}, which this one lacks: "
            f"build it for this kind of host (runtime_options isa: {best()})"
        )
