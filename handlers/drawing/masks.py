"""A segmentation drawn: classes tinted and outlined, with a legend of their shares."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
from PIL import Image

from handlers.drawing.panel import Entry, add_legend, enlarge
from handlers.drawing.style import INK, color, percent

_SEAM = 110  # opacity of the seam around outlines, 0 to 255

Mask = npt.NDArray[np.uint8]


def draw_mask(
    picture: Image.Image,
    ids: Mask,
    names: Mapping[int, str],
    opacity: float = 0.6,
    background: int | None = 0,
) -> Image.Image:
    """``picture`` tinted with the ``color`` of each pixel's class, over a legend of their shares.

    ``ids`` (H, W), uint8, covers the whole picture; another size is scaled to it. ``background``
    stays clear (None: every class is tinted). ``opacity`` is that of the tint, 0 to 1, over the
    picture in grey, so that a tint has the hue of its class; outlines at class borders are opaque,
    with a dark seam beside them.
    """
    canvas = enlarge(picture)
    classes = Image.fromarray(ids).resize(canvas.size, Image.Resampling.NEAREST)
    opaque = [round(255 * min(max(opacity, 0.0), 1.0))] * 256
    outlined = [255] * 256
    if background is not None:
        opaque[background] = outlined[background] = 0
    alpha = classes.point(opaque)
    # The picture's own colours would turn a tint to that of another class.
    canvas.paste(canvas.convert("L").convert("RGB"), mask=classes.point(outlined))
    reach = max(1, round(0.003 * math.sqrt(canvas.width * canvas.height)))
    borders = _grown(_edges(np.asarray(classes)), reach - 1)
    alpha.paste(classes.point(outlined), mask=Image.fromarray(borders))
    # A soft seam parts an outline from a background like it.
    around = Image.fromarray(_grown(borders, max(1, reach // 2)))
    canvas.paste(INK, mask=around.convert("L").point(lambda on: _SEAM * (on > 0)))
    tint = classes.copy()
    tint.putpalette([channel for i in range(256) for channel in color(i)])
    canvas.paste(tint.convert("RGB"), mask=alpha)

    counts = np.bincount(ids.ravel(), minlength=256)
    found = [int(i) for i in np.argsort(-counts, kind="stable") if counts[i] and i != background]
    entries: list[Entry] = [
        (names.get(i, f"class {i}"), percent(counts[i] / ids.size), color(i)) for i in found
    ]
    if not entries and background is not None:
        entries = [(names.get(background, "background"), percent(1.0), None)]
    return add_legend(canvas, entries)


def _edges(ids: Mask) -> npt.NDArray[np.bool_]:
    """True at pixels that touch another class."""
    edges = np.zeros(ids.shape, dtype=np.bool_)
    for near, values in ((edges, ids), (edges.T, ids.T)):
        changes = values[1:] != values[:-1]
        near[1:] |= changes
        near[:-1] |= changes
    return edges


def _grown(mask: npt.NDArray[np.bool_], reach: int) -> npt.NDArray[np.bool_]:
    """True at pixels at most ``reach`` away from one of ``mask``, across and down."""
    grown = mask.copy()
    for near in (grown, grown.T):
        before = near.copy()
        for step in range(1, reach + 1):
            near[step:] |= before[:-step]
            near[:-step] |= before[step:]
    return grown
