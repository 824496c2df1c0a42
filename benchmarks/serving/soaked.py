"""What a soak found, in words, and what of it is beyond its limits."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

from rich.table import Table

from benchmarks.serving.machine import describe
from benchmarks.serving.residents import Growth, Sample

# A worker that is killed takes the batch with it that it has, and the one being gathered for it.
_BATCHES_A_KILL = 2
# All workers live again within so many times what a start takes.
_STARTS = 2.0


@dataclass(frozen=True)
class Limits:
    """What a soak may show.

    ``growth`` of resident memory and ``failed`` requests are shares, ``descriptors`` how many more
    a process may have open when no client is connected, ``slack`` the seconds that workers may take
    to live again beside twice those of a start. ``batch`` is the model's batch size.
    """

    growth: float
    failed: float
    descriptors: int
    slack: float
    batch: int


@dataclass
class Kills:
    """Workers killed every so many seconds (0: none); seconds until all lived again, for each."""

    every: float
    recoveries: list[float] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Soaked:
    """What a soak found. ``ready`` are the seconds of a start, ``rate`` is in requests/s.

    ``capacity`` is what the server can do in requests/s, None where it was not measured.
    """

    ready: float
    capacity: float | None
    rate: float
    minutes: float
    asked: dict[str, Any]
    # Descriptors by role before and after, when no client is connected: a connection is one, too.
    idle: tuple[dict[str, int], dict[str, int]]
    samples: list[Sample]
    growth: list[Growth]
    kills: Kills

    def to_json(self) -> dict[str, Any]:
        """The same as JSON values."""
        grown = [{**asdict(one), "share": one.share} for one in self.growth]
        return {**asdict(self), "growth": grown, "machine": describe()}

    def problems(self, limits: Limits) -> Iterator[str]:
        """What is beyond the limits, a line each."""
        if wrong := self.asked["wrong"]:
            yield f"{wrong} answers were wrong"
        yield from self._failures(limits)
        yield from self._growth(limits)
        before, after = self.idle
        for role, count in before.items():
            if after.get(role, 0) > count + limits.descriptors:
                yield (
                    f"descriptors of the {role} without clients: {count} -> {after[role]}, which "
                    f"is more than {limits.descriptors} more"
                )
        yield from self._recoveries(limits)

    def _failures(self, limits: Limits) -> Iterator[str]:
        killed = len(self.kills.recoveries)
        lost = _BATCHES_A_KILL * limits.batch * killed
        errors = Counter(self.asked["errors"])
        # A full queue is 503; the others are what TorchServe says of a worker that died.
        clean = {"503", "500", "507"} if killed else {"503"}
        if strange := {
            code: n for code, n in errors.items() if code.isdigit() and code not in clean
        }:
            yield f"statuses that nothing explains: {strange}"
        unanswered = {why: n for why, n in errors.items() if not why.isdigit()}
        if sum(unanswered.values()) > lost:
            yield f"requests without an answer: {unanswered}, with {killed} workers killed"
        failed, sent = self.asked["failed"], self.asked["requests"]
        if failed - lost > limits.failed * sent:
            yield f"{failed} of {sent} requests failed, more than {limits.failed:.1%}"

    def _growth(self, limits: Limits) -> Iterator[str]:
        if "front end" not in {one.role for one in self.growth}:
            yield "too few samples to say what grew: take more --minutes"
        for one in self.growth:
            if one.share > limits.growth:
                yield (
                    f"memory of the {one.role} {one.pid} grew by {one.share:.1%}, more than "
                    f"{limits.growth:.1%}"
                )

    def _recoveries(self, limits: Limits) -> Iterator[str]:
        yield from self.kills.problems
        if self.kills.every and not self.kills.recoveries:
            yield "no worker was killed: take more --minutes, or a shorter --kill-every"
        bound = _STARTS * self.ready + limits.slack
        if (worst := max(self.kills.recoveries, default=0.0)) > bound:
            yield f"after a kill all lived again after {worst:.1f} s, later than {bound:.1f} s"

    def words(self) -> Iterator[str]:
        """What clients got, what is open without them, and how fast workers came back."""
        asked = self.asked
        yield (
            f"{asked['requests']} requests in {asked['seconds']:.0f} s: {asked['failed']} failed "
            f"{asked['errors'] or ''}, {asked['wrong']} wrong"
        )
        # Without an answer there are no latencies.
        if "p50" in asked:
            yield ", ".join(f"{name} {asked[name]:.0f} ms" for name in ("p50", "p99", "max"))
        before, after = self.idle
        counts = (f"{role} {before[role]} -> {after.get(role, 0)}" for role in sorted(before))
        yield f"descriptors with no client connected: {', '.join(counts)}"
        if times := sorted(self.kills.recoveries):
            middle = times[len(times) // 2]
            yield (
                f"{len(times)} workers killed: all lived again after {middle:.1f} s (median), "
                f"{times[-1]:.1f} s at most; a start takes {self.ready:.1f} s"
            )

    def table(self, warm_up: float) -> Table:
        """What grew, process by process; ``warm_up`` is the share of the time not judged."""
        title = f"median of the last fifth against the first, without the first {warm_up:.0%}"
        table = Table(
            "process", "pid", "memory MB", "growth", "descriptors", "threads", title=title
        )
        for one in self.growth:
            memory = " -> ".join(f"{size / 1e6:.1f}" for size in one.rss)
            counts = (
                " -> ".join(f"{n:g}" for n in each) for each in (one.descriptors, one.threads)
            )
            table.add_row(one.role, str(one.pid), memory, f"{one.share:+.1%}", *counts)
        return table
