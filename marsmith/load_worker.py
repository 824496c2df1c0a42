"""Runs in a clean process with an unpacked archive as its folder: how long does a worker load?

It prints one line of JSON: seconds to import what the worker needs, seconds to check the archive,
load the model and answer the golden requests, and the most memory that was resident (bytes).
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from types import SimpleNamespace


def main(folder: Path) -> None:
    started = time.perf_counter()
    # What TorchServe's worker imports before it loads any model.
    import ts.model_service_worker  # noqa: F401

    imported = time.perf_counter()
    from handlers.entry import Service

    manifest = json.loads((folder / "MAR-INF/MANIFEST.json").read_text("utf-8"))
    context = SimpleNamespace(
        system_properties={"model_dir": str(folder), "gpu_id": None}, manifest=manifest
    )
    Service().initialize(context)
    loaded = time.perf_counter()
    found = {
        "import_s": imported - started,
        "load_s": loaded - imported,
        "resident_bytes": _resident(),
    }
    print(json.dumps(found))


def _resident() -> int:
    """The most that was resident since the process began; ``getrusage`` would count the parent's
    as well, whose memory a new process has until it is replaced."""
    status = Path("/proc/self/status").read_text("ascii")
    line = next(line for line in status.splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024


if __name__ == "__main__":
    main(Path(sys.argv[1]))
