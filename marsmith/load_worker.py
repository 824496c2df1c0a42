"""Runs in a clean process with an unpacked archive as its folder: how long does a worker load?

A line on its standard input says that the archive is there. It prints one line of JSON: seconds to
import what the worker needs, seconds to check the archive, load the model and answer the golden
requests, the most memory that was resident (bytes), and the device, which is the first GPU where
there is one and the archive takes one. With a batch size as second argument it
times the model as well: seconds of one picture alone and of a full batch (medians; without decoding
and answering).
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

SECONDS = 2.0
ROUNDS = 5


def main(folder: Path, batch: int | None) -> None:
    started = time.perf_counter()
    # What TorchServe's worker imports before it loads any model.
    import ts.model_service_worker  # noqa: F401

    imported = time.perf_counter()
    from handlers import device
    from handlers.entry import Service

    manifest = json.loads((folder / "MAR-INF/MANIFEST.json").read_text("utf-8"))
    context = SimpleNamespace(
        metrics=None,
        system_properties={
            "model_dir": str(folder),
            "gpu_id": device.FIRST,
        },
        manifest=manifest,
    )
    service = Service()
    service.initialize(context)
    loaded = time.perf_counter()
    found = {
        "import_s": imported - started,
        "load_s": loaded - imported,
        "resident_bytes": _resident(),
        "device": service._handler.place,
    }
    if batch is not None:
        found |= _speed(service._handler, folder, batch)
    print(json.dumps(found))


def _speed(task: Any, folder: Path, batch: int) -> dict[str, float]:
    from PIL import Image

    from handlers import golden

    picture = Image.open(folder / golden.read(folder)[0].picture).convert("RGB")
    array = task.preprocess(picture)
    return {"alone_s": _seconds(task, [array]), "batch_s": _seconds(task, [array] * batch)}


def _seconds(task: Any, arrays: list[Any]) -> float:
    task.inference(arrays)
    taken: list[float] = []
    end = time.perf_counter() + SECONDS
    while len(taken) < ROUNDS or time.perf_counter() < end:
        start = time.perf_counter()
        task.inference(arrays)
        taken.append(time.perf_counter() - start)
    return statistics.median(taken)


def _resident() -> int:
    """The most that was resident since the process began; ``getrusage`` would count the parent's
    as well, whose memory a new process has until it is replaced."""
    status = Path("/proc/self/status").read_text("ascii")
    line = next(line for line in status.splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024


if __name__ == "__main__" and sys.stdin.readline():
    main(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else None)
