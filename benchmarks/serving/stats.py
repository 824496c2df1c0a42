"""The arithmetic of a comparison: percentiles, medians over rounds with their spread, ratios."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least ``share`` (0..1) of ``values`` do not exceed.

    The nearest rank, so that it is always a value that was measured; ``values`` may not be empty.
    """
    ordered = sorted(values)
    return ordered[max(1, math.ceil(share * len(ordered))) - 1]


@dataclass(frozen=True)
class Spread:
    """The median of a figure over the rounds, with its least and largest value."""

    median: float
    least: float
    most: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """The spread of at least one value."""
        return cls(float(median(values)), float(min(values)), float(max(values)))


def ratio(values: dict[int, float], base: dict[int, float]) -> Spread | None:
    """``values / base`` round by round; None where they share no round, or base has a 0.

    Both are by round. What slows the machine for a whole round slows both, so that a ratio within
    a round moves less than the quotient of two medians would.
    """
    shared = sorted(values.keys() & base.keys())
    if not shared or not all(base[number] for number in shared):
        return None
    return Spread.of([values[number] / base[number] for number in shared])


def poisson_arrivals(rate: float, seconds: float, seed: int) -> list[float]:
    """Times in seconds, from 0 to below ``seconds``, of a Poisson process of ``rate`` per second.

    The gaps are exponential with mean 1 / rate; the same seed gives the same times.
    """
    if rate <= 0:
        raise ValueError(f"a rate of {rate} per second: it must be above 0")
    drawn = random.Random(seed)
    times, now = [], drawn.expovariate(rate)
    while now < seconds:
        times.append(now)
        now += drawn.expovariate(rate)
    return times
