"""A segmentation drawn: classes tinted and outlined, with a legend of their shares."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
from PIL import Image

from handlers.drawing.panel import add_legend, enlarge
from handlers.drawing.style import color, percent

Mask = npt.NDArray[np.uint8]


def draw_mask(
    picture: Image.Image,
    ids: Mask,
    names: Mapping[int, str],
    opacity: float = 0.5,
    background: int | None = 0,
) -> Image.Image:
    """``picture`` tinted with the ``color`` of each pixel's class, over a legend of their shares.

    ``ids`` (H, W), uint8, covers the whole picture; another size is scaled to it. ``background``
    stays clear (None: every class is tinted). ``opacity`` is that of the tint, 0 to 1; outlines
    at class borders are opaque.
    """
    counts = np.bincount(ids.ravel(), minlength=256)
    canvas = enlarge(picture)
    scaled = np.asarray(Image.fromarray(ids).resize(canvas.size, Image.Resampling.NEAREST))
    tints = np.array([color(i) for i in range(256)], dtype=np.uint8)
    opaque = np.full(256, round(255 * min(max(opacity, 0.0), 1.0)), dtype=np.uint8)
    if background is not None:
        opaque[background] = 0
    alpha = opaque[scaled]
    reach = max(1, round(0.002 * math.sqrt(canvas.width * canvas.height)))
    alpha[_borders(scaled, reach) & (scaled != (-1 if background is None else background))] = 255
    canvas.paste(Image.fromarray(tints[scaled]), mask=Image.fromarray(alpha))

    found = [int(i) for i in np.argsort(-counts, kind="stable") if counts[i] and i != background]
    if not found and background is not None:
        found = [background]
    entries = [(names.get(i, f"class {i}"), percent(counts[i] / ids.size), color(i)) for i in found]
    return add_legend(canvas, entries)


def _borders(ids: Mask, reach: int) -> npt.NDArray[np.bool_]:
    """True at pixels within ``reach`` of another class, in a square neighbourhood."""
    lowest, highest = ids.copy(), ids.copy()
    for axis in (0, 1):
        low, high = np.moveaxis(lowest, axis, 0), np.moveaxis(highest, axis, 0)
        before_low, before_high = low.copy(), high.copy()
        for step in range(1, reach + 1):
            np.minimum(low[step:], before_low[:-step], out=low[step:])
            np.minimum(low[:-step], before_low[step:], out=low[:-step])
            np.maximum(high[step:], before_high[:-step], out=high[step:])
            np.maximum(high[:-step], before_high[step:], out=high[:-step])
    return np.not_equal(lowest, highest)
