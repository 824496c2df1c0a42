"""Processes of a contender: found by a mark in their environment, ended, and what they use.

A mark is inherited by everything that a server starts, also by what it turns into a daemon.
"""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

import psutil  # type: ignore[import-untyped]

from marsmith.processes import end_all

MARK = "MARSMITH_BENCHMARK"
_END_SECONDS = 15.0
_SAMPLE_SECONDS = 1.0

Role = Callable[[psutil.Process], str]
"""What a process is for: "front end", "worker", ..."""


def marked(mark: str) -> list[psutil.Process]:
    """All living processes that carry the mark."""
    found = []
    for process in psutil.process_iter():
        # Gone meanwhile, or somebody else's.
        with suppress(psutil.Error, OSError):
            if process.environ().get(MARK) == mark:
                found.append(process)
    return found


def end_marked(mark: str) -> None:
    """End everything that carries the mark and wait until it is gone."""
    while left := marked(mark):
        end_all(left, _END_SECONDS)


@dataclass
class Usage:
    """What a contender's processes used while a load ran.

    ``cpu`` in seconds, ``pss`` (its largest sum), ``each_pss`` and ``rss`` (of the largest process)
    in bytes, all by role; ``peak_pss`` is the largest sum over all roles, ``others`` the share of
    the machine's cores that was busy with neither the contender nor the load generator.
    """

    cpu: dict[str, float] = field(default_factory=dict)
    pss: dict[str, int] = field(default_factory=dict)
    each_pss: dict[str, int] = field(default_factory=dict)
    rss: dict[str, int] = field(default_factory=dict)
    peak_pss: int = 0
    others: float = 0.0


class Watch:
    """Samples the marked processes once a second, in a thread, until it is closed."""

    def __init__(self, mark: str, role: Role) -> None:
        self.usage = Usage()
        self._mark, self._role = mark, role
        self._first: dict[int, float] = {}
        self._last: dict[int, tuple[str, float]] = {}
        self._ended = threading.Event()
        self._sample(starting=True)
        self._busy, self._start = _busy(), time.monotonic()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def close(self, client_cpu: float) -> Usage:
        """The usage; ``client_cpu`` are the load generator's seconds."""
        self._ended.set()
        self._thread.join()
        self._sample()
        busy, elapsed = _busy() - self._busy, time.monotonic() - self._start
        totals: dict[str, float] = defaultdict(float)
        for pid, (role, seconds) in self._last.items():
            totals[role] += seconds - self._first.get(pid, 0.0)
        self.usage.cpu = dict(totals)
        own = sum(totals.values()) + client_cpu
        self.usage.others = max(0.0, busy - own) / (elapsed * (psutil.cpu_count() or 1))
        return self.usage

    def _run(self) -> None:
        while not self._ended.wait(_SAMPLE_SECONDS):
            self._sample()

    def _sample(self, starting: bool = False) -> None:
        pss: dict[str, int] = defaultdict(int)
        for process in marked(self._mark):
            with suppress(psutil.Error, OSError):
                role, times = self._role(process), process.cpu_times()
                seconds = times.user + times.system
                if starting:
                    self._first[process.pid] = seconds
                self._last[process.pid] = (role, seconds)
                memory = process.memory_full_info()
                pss[role] += memory.pss
                _keep_most(self.usage.each_pss, role, memory.pss)
                _keep_most(self.usage.rss, role, memory.rss)
        for role, size in pss.items():
            _keep_most(self.usage.pss, role, size)
        self.usage.peak_pss = max(self.usage.peak_pss, sum(pss.values()))


def _keep_most(most: dict[str, int], role: str, size: int) -> None:
    most[role] = max(most.get(role, 0), size)


@contextmanager
def watching(mark: str, role: Role) -> Iterator[Watch]:
    """A watch whose thread ends however the load does."""
    watch = Watch(mark, role)
    try:
        yield watch
    finally:
        watch._ended.set()


def _busy() -> float:
    """CPU seconds that all cores have been busy since the machine started."""
    times = psutil.cpu_times()
    return float(times.user + times.nice + times.system + times.irq + times.softirq)
