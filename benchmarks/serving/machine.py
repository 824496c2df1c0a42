"""The machine, the versions and the state that figures were measured in."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]

from benchmarks.serving.subject import PROJECT

_FREEZE = (
    "import importlib.metadata as m, json;"
    "print(json.dumps({d.metadata['Name'].lower(): d.version for d in m.distributions()}))"
)
_PACKAGES = (
    "torch", "torchvision", "torchserve", "openvino", "onnxruntime", "numpy", "pillow", "aiohttp",
    "mlcommons-loadgen", "litserve", "fastapi", "uvicorn", "bentoml", "ray", "mlserver", "captum",
)  # fmt: skip


def describe() -> dict[str, Any]:
    """Processor, cores, memory, system, and the commit that is measured."""
    info = Path("/proc/cpuinfo")
    models = [line for line in info.read_text().splitlines() if line.startswith("model name")]
    return {
        "processor": models[0].partition(":")[2].strip() if models else platform.processor(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "python": platform.python_version(),
        "load_average": os.getloadavg(),
        "commit": commit(),
        "wrk": _words("wrk", "-v").partition("[")[0].strip(),
    }


@cache
def commit() -> str:
    """The commit that is measured, with ``-dirty`` behind it where files differ from it.

    It is that of the first call, for who writes a page meanwhile changes a file.
    """
    return _words("git", "-C", str(PROJECT), "describe", "--always", "--dirty").strip()


def versions(environments: list[str]) -> dict[str, dict[str, str]]:
    """The packages that matter, of this environment and of the named ``.venv-bench-NAME``."""
    pythons = {"marsmith": Path(sys.executable)}
    for name in environments:
        pythons[name] = PROJECT / f".venv-bench-{name}/bin/python"
    found = {}
    for name, python in pythons.items():
        if python.exists():
            listed = json.loads(_words(str(python), "-c", _FREEZE))
            found[name] = {package: listed[package] for package in _PACKAGES if package in listed}
    return found


def _words(*command: str) -> str:
    """What a command prints; it may end with any status. Empty where there is no such command."""
    if shutil.which(command[0]) is None:
        return ""
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    return (done.stdout.strip() or done.stderr.strip()).strip()
