"""Which pictures of a batch go through the network together."""

from __future__ import annotations

import math
from collections.abc import Mapping

from handlers.runtimes import Array

# Eight 12-megapixel photographs in one batch would take gigabytes as float; alone each fits.
PIXELS_AT_ONCE = 16_000_000


def groups(arrays: Mapping[int, Array], most: int, streams: int = 1) -> list[list[int]]:
    """Keys of arrays (H, W, C) of equal shapes together, for ``streams`` calls at once.

    A group has at most ``most`` arrays, and no more than leaves a group for every stream; groups
    that run at once have at most ``PIXELS_AT_ONCE`` pixels together, but for single pictures.
    """
    by_shape: dict[tuple[int, ...], list[int]] = {}
    for key, array in arrays.items():
        by_shape.setdefault(array.shape, []).append(key)
    found = []
    for shape, same in by_shape.items():
        fit = PIXELS_AT_ONCE // (shape[0] * shape[1] * streams)
        step = max(1, min(most, fit, math.ceil(len(same) / streams)))
        found += [same[i : i + step] for i in range(0, len(same), step)]
    return found
