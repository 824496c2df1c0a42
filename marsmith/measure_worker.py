"""Runs in a clean process with an unpacked archive as its folder: how fast and large is its worker?

Prints JSON: seconds to load (imports, artifact and golden requests), resident megabytes after that,
seconds of one picture alone and of a full batch (medians; preprocess and postprocess excluded), and
pictures per second in full batches.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from pathlib import Path

STARTED = time.perf_counter()
SECONDS = 2.0
ROUNDS = 5


def main(folder: Path, batch: int) -> None:
    import psutil  # type: ignore[import-untyped]
    from PIL import Image

    from handlers import golden, plugins
    from handlers.bundle import Bundle

    bundle = Bundle.read(folder)
    task = plugins.load_task(bundle.task)()
    task.bind(bundle, folder)
    golden.check(task, folder)
    loaded = time.perf_counter() - STARTED
    megabytes = psutil.Process().memory_info().rss / 1e6
    picture = Image.open(folder / golden.read(folder)[0].picture).convert("RGB")
    array = task.preprocess(picture)

    def seconds(count: int) -> float:
        task.inference([array] * count)
        taken: list[float] = []
        end = time.perf_counter() + SECONDS
        while len(taken) < ROUNDS or time.perf_counter() < end:
            start = time.perf_counter()
            task.inference([array] * count)
            taken.append(time.perf_counter() - start)
        return statistics.median(taken)

    alone, full = seconds(1), seconds(batch)
    figures = {
        "load_seconds": round(loaded, 3),
        "megabytes": round(megabytes, 1),
        "latency_seconds": alone,
        "batch_seconds": full,
        "throughput": batch / full,
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
