"""The arithmetic of a comparison: medians over rounds with their spread, ratios."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median


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
