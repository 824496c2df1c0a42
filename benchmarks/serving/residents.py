"""What a server's processes hold over a long time: memory, descriptors and threads."""

from __future__ import annotations

import statistics
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

import psutil  # type: ignore[import-untyped]

from benchmarks.serving.processes import Role, marked

# Growth is the median of the last fifth of the samples against that of the first fifth.
_FIFTH = 5


@dataclass(frozen=True)
class Sample:
    """One process at a time: seconds since the start, resident memory in bytes, counts."""

    seconds: float
    role: str
    pid: int
    rss: int
    descriptors: int
    threads: int


@dataclass(frozen=True)
class Growth:
    """A process over the samples after the warm-up: first and last of each, in medians."""

    role: str
    pid: int
    samples: int
    rss: tuple[float, float]
    descriptors: tuple[float, float]
    threads: tuple[float, float]

    @property
    def share(self) -> float:
        """Growth of resident memory, 0.02 for 2 %."""
        return self.rss[1] / self.rss[0] - 1


class Residents:
    """Samples the marked processes every ``seconds``, in a thread, until it is closed."""

    def __init__(self, mark: str, role: Role, seconds: float) -> None:
        self.samples: list[Sample] = []
        self._mark, self._role, self._every = mark, role, seconds
        self._start, self._ended = time.monotonic(), threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def close(self) -> list[Sample]:
        """End it; all samples."""
        self._ended.set()
        self._thread.join()
        return self.samples

    def _run(self) -> None:
        while not self._ended.wait(self._every):
            passed = time.monotonic() - self._start
            for process in marked(self._mark):
                # A worker may be killed between two questions.
                with suppress(psutil.Error, OSError), process.oneshot():
                    self.samples.append(
                        Sample(
                            passed,
                            self._role(process),
                            process.pid,
                            process.memory_info().rss,
                            process.num_fds(),
                            process.num_threads(),
                        )
                    )


def growth(samples: Sequence[Sample], warm_up: float, late: float) -> list[Growth]:
    """Growth of every process after ``warm_up`` seconds; those with too few samples are left out.

    A process that starts later is warm ``late`` seconds after its first sample: it loads first.
    """
    found = []
    for pid in sorted({sample.pid for sample in samples}):
        own = [sample for sample in samples if sample.pid == pid]
        began = own[0].seconds
        start = began + late if began > warm_up else warm_up
        warm = [sample for sample in own if sample.seconds >= start]
        count = len(warm) // _FIFTH
        if count == 0:
            continue
        ends = warm[:count], warm[-count:]

        def medians(name: str, ends: tuple[list[Sample], ...] = ends) -> tuple[float, float]:
            first, last = (statistics.median(getattr(one, name) for one in end) for end in ends)
            return first, last

        values = {name: medians(name) for name in ("rss", "descriptors", "threads")}
        found.append(Growth(own[0].role, pid, len(warm), **values))
    return found
