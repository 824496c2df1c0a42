"""When the requests of an open loop are due, and percentiles of how long they took."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least ``share`` (0..1) of ``values`` do not exceed.

    The nearest rank, so that it is always a value that was measured; ``values`` may not be empty.
    """
    ordered = sorted(values)
    return ordered[max(1, math.ceil(share * len(ordered))) - 1]


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
