"""Points that a search measures, which of them no other beats, and which one to take."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from handlers.errors import ServerError


@dataclass(frozen=True)
class Point:
    """One way to serve a model; ``delay`` in milliseconds, ``threads`` of each worker.

    ``options`` are those of the runtime that differ from what the archive was built with.
    """

    runtime: str
    precision: str
    workers: int
    threads: int
    batch_size: int
    delay: int
    options: Mapping[str, Any] = field(default_factory=dict, hash=False)

    def __str__(self) -> str:
        return (
            f"{self.runtime} {self.precision}, {self.workers} x {self.threads} threads, "
            f"batches of {self.batch_size}, {self.delay} ms"
            + "".join(f", {key} {value}" for key, value in self.options.items())
        )

    def serving(self) -> dict[str, int]:
        """The keys of a model file's ``serving`` that it stands for."""
        return {
            "workers": self.workers,
            "threads": self.threads,
            "batch_size": self.batch_size,
            "max_batch_delay": self.delay,
        }


@dataclass(frozen=True)
class Measured:
    """A point served: pictures per second of a closed loop, and milliseconds of an open one.

    ``problem`` says why there are no figures. ``requests`` are those of the open loop, which came
    at ``LOAD`` of the throughput; ``late_p99`` is how late the client itself sent them and
    ``client_cpu`` its milliseconds of CPU a request.
    """

    point: Point
    throughput: float = 0.0
    p50: float = 0.0
    p99: float = 0.0
    requests: int = 0
    late_p99: float = 0.0
    client_cpu: float = 0.0
    problem: str | None = None

    def to_json(self) -> dict[str, Any]:
        """All fields as JSON values."""
        return asdict(self)

    def averaged(self, second: Measured) -> Measured:
        """The means of two measurements of one point; one that failed in either has failed."""
        if second.problem is not None:
            return second
        names = ("throughput", "p50", "p99", "late_p99", "client_cpu")
        means = {name: (getattr(self, name) + getattr(second, name)) / 2 for name in names}
        return replace(self, requests=self.requests + second.requests, **means)

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> Measured:
        """The inverse of ``to_json``."""
        return cls(**{**fields, "point": Point(**fields["point"])})


LOAD = 0.6
DELAYS = (1, 5)
BATCHES = (8, 1, 4, 16)
# Points that are no further apart may change places when they are measured anew.
NEAR = 0.05


@dataclass(frozen=True)
class Objective:
    """The least p99 among the points within ``NEAR`` of the most throughput; with ``max_p99``
    (milliseconds) the most throughput among those whose p99 is at most that."""

    max_p99: float | None = None

    def meets(self, one: Measured) -> bool:
        """Whether a point is within the limit."""
        return self.max_p99 is None or one.p99 <= self.max_p99

    def ranked(self, measured: Iterable[Measured]) -> list[Measured]:
        """Those with figures, the best first: beyond the limit those of the least p99."""
        good = [one for one in measured if one.problem is None]
        if self.max_p99 is None:
            near = _near(good)
            return sorted(
                good, key=lambda one: (0, one.p99) if one in near else (1, -one.throughput)
            )
        return sorted(
            good,
            key=lambda one: (0, -one.throughput) if self.meets(one) else (1, one.p99),
        )

    def best(self, measured: Sequence[Measured]) -> Measured:
        """The point to take; raises ServerError where none was measured."""
        if ranked := self.ranked(measured):
            return ranked[0]
        why = "; ".join(f"{one.point}: {one.problem}" for one in measured)
        raise ServerError(f"no point was measured: {why or 'give more time with --budget MINUTES'}")

    def reason(self, measured: Sequence[Measured]) -> str:
        """Why the best is taken, in one line."""
        best = self.best(measured)
        figures = f"{best.throughput:.0f} pictures/s, p99 {best.p99:.1f} ms at {LOAD:.0%} load"
        count = sum(one.problem is None for one in measured)
        if self.max_p99 is None:
            near = _near([one for one in measured if one.problem is None])
            if len(near) == 1:
                return f"the most pictures per second of {count} points: {figures}"
            most = max(one.throughput for one in near)
            return (
                f"the least p99 of the {len(near)} of {count} points within {NEAR:.0%} of the most "
                f"({most:.0f} pictures/s): {figures}"
            )
        if self.meets(best):
            return f"the most of {count} points with p99 <= {self.max_p99:g} ms: {figures}"
        return f"none of {count} points has p99 <= {self.max_p99:g} ms; the least is {figures}"


def _near(good: Sequence[Measured]) -> list[Measured]:
    """Those whose throughput is within ``NEAR`` of the most."""
    most = max((one.throughput for one in good), default=0.0)
    return [one for one in good if one.throughput >= (1 - NEAR) * most]


def pareto(measured: Sequence[Measured]) -> list[Measured]:
    """The points that no other beats on throughput and p99 both, the fastest first.

    One is beaten by another that is no worse on either and better on one.
    """
    good = [one for one in measured if one.problem is None]
    front = [one for one in good if not any(_beats(other, one) for other in good)]
    return sorted(front, key=lambda one: -one.throughput)


def _beats(one: Measured, other: Measured) -> bool:
    no_worse = one.throughput >= other.throughput and one.p99 <= other.p99
    return no_worse and (one.throughput > other.throughput or one.p99 < other.p99)
