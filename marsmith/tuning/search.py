"""Which points to measure, and in what order: one coordinate after the other, halving the field.

The full grid of a host of many cores has hundreds of points of some fifteen seconds each. Here the
workers are settled first, for each of the fastest pairs, then batches, then the delay, and last
what the runtime lets one choose at load.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from typing import Any

from marsmith.tuning.points import BATCHES, DELAYS, Measured, Objective, Point

Pair = tuple[str, str]
# How many points each coordinate after the first starts from.
KEPT = (2, 1)
# Chance may put a point first: at the end the best is measured again, until the best has been. So
# many at most.
AGAIN = 4


@dataclass(frozen=True)
class Room:
    """What a pair leaves to choose: for how many workers there is memory, and other ``options``."""

    workers: int
    options: Sequence[Mapping[str, Any]] = ()


def splits(cores: int, room: int | None = None) -> list[tuple[int, int]]:
    """(workers, threads) with workers x threads <= cores: one worker, one a core, and between.

    There is memory for ``room`` workers (default: for one a core).
    """
    wanted = (1, cores, 2 ** round(math.log2(cores) / 2))
    counts = dict.fromkeys(min(workers, room or cores) for workers in wanted)
    return [(workers, cores // workers) for workers in counts]


def most(pairs: int, cores: int, options: int = 0, sizes: Sequence[int] = BATCHES) -> int:
    """At most so many points are measured, where a pair has at most so many other options."""
    first, last = KEPT
    ends = len(DELAYS) - 1 + options
    return pairs * len(splits(cores)) + first * (len(sizes) - 1) + last * ends


def points(
    pairs: Mapping[Pair, Room],
    cores: int,
    objective: Objective,
    measured: list[Measured],
    sizes: Sequence[int] = BATCHES,
) -> Iterator[Point]:
    """The points in turn; the caller appends to ``measured`` what each gave before the next.

    ``pairs`` tell what each of them leaves to choose; ``sizes`` of batches begin with the first.
    """
    delay, batch_size = DELAYS[0], sizes[0]
    for (runtime, precision), room in pairs.items():
        for workers, threads in splits(cores, room.workers):
            yield Point(runtime, precision, workers, threads, batch_size, delay)
    first, last = KEPT
    for one in objective.ranked(measured)[:first]:
        for size in sizes[1:]:
            yield replace(one.point, batch_size=size)
    for one in objective.ranked(measured)[:last]:
        # A batch of one waits for nobody.
        if one.point.batch_size > 1:
            for other in DELAYS[1:]:
                yield replace(one.point, delay=other)
    for one in objective.ranked(measured)[:last]:
        for options in pairs[one.point.runtime, one.point.precision].options:
            yield replace(one.point, options=options)


def unsure(
    measured: Sequence[Measured], objective: Objective, twice: Set[Point]
) -> Measured | None:
    """The point to measure again: the best one, until that is one of ``twice``.

    None where ``AGAIN`` points were, or no two can be compared.
    """
    ranked = objective.ranked(measured)
    if len(ranked) < 2 or len(twice) >= AGAIN or ranked[0].point in twice:
        return None
    return ranked[0]
