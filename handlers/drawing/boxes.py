"""Detections drawn: frames in class colours with tags, and a legend where tags lack room."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from handlers.drawing.panel import add_legend, enlarge, enlargement
from handlers.drawing.style import INK, Color, color, contrasting, fit, font, pill, text_size

Box = tuple[int, int, int, int]

_MAX_COVERED = 0.15  # share of a tag that may lie over other tags before it is left out
_MAX_TAGS = 0.2  # share of the picture that tags may hide


def draw_boxes(
    picture: Image.Image,
    boxes: npt.ArrayLike,
    labels: Sequence[str],
    scores: Sequence[float],
    classes: Sequence[int],
) -> Image.Image:
    """``picture`` with N ``boxes`` (N, 4), xyxy in pixels, each framed in its class's ``color``.

    Tags show label and score. They stay inside the picture and clear of one another; the tags of
    lower scores are left out where there is no room, and then a legend below names the colours.
    Boxes are cut at the picture's edges; those outside of it, or not finite, are not drawn.
    """
    frames = np.asarray(boxes, dtype=np.float64).reshape(-1, 4) * enlargement(*picture.size)
    canvas = enlarge(picture)
    width, height = canvas.size
    line = max(2, round(0.0045 * math.sqrt(width * height)))
    seen = [i for i in range(len(frames)) if _visible(frames[i], width, height)]
    limits = (width - 1, height - 1) * 2
    edges: dict[int, Box] = {}
    for i in seen:
        x0, y0, x1, y1 = (min(max(round(v), 0), m) for v, m in zip(frames[i], limits, strict=True))
        edges[i] = (x0, y0, x1, y1)

    draw = ImageDraw.Draw(canvas)
    # Small frames last, or those around them would cut through them.
    for i in sorted(seen, key=lambda i: -_area(edges[i])):
        _frame(draw, edges[i], color(classes[i]), line)
    tags: list[Box] = []
    size = max(13, round(0.9 * text_size(width, height)))
    budget = _MAX_TAGS * width * height
    for i in sorted(seen, key=lambda i: -scores[i]):
        text = f"{fit(labels[i], size, 0.6 * width - 2.5 * size)} {scores[i]:.2f}"
        tag = _place(edges[i], text, size, line, canvas.size, tags)
        if tag is not None and (budget := budget - _area(tag)) >= 0:
            tags.append(tag)
            _tag(canvas, tag, text, size, color(classes[i]))
    if len(tags) == len(seen):
        return canvas
    counts = Counter((labels[i], classes[i]) for i in seen)
    return add_legend(canvas, [(name, str(n), color(c)) for (name, c), n in counts.most_common()])


def _visible(frame: npt.NDArray[np.float64], width: int, height: int) -> bool:
    x0, y0, x1, y1 = frame
    inside = bool(x0 < width and y0 < height and x1 >= 0 and y1 >= 0)
    return bool(np.isfinite(frame).all()) and inside and bool(x0 <= x1 and y0 <= y1)


def _area(box: Box) -> int:
    return (box[2] - box[0]) * (box[3] - box[1])


def _frame(draw: ImageDraw.ImageDraw, box: Box, fill: Color, line: int) -> None:
    """A frame just inside ``box``, with a thin dark seam that parts it from a like background."""
    x0, y0, x1, y1 = box
    seam = max(1, line // 4)
    inner = line + seam
    if x1 - x0 > 4 * inner and y1 - y0 > 4 * inner:
        draw.rectangle((x0 + line, y0 + line, x1 - line, y1 - line), outline=INK, width=seam)
    draw.rectangle(box, outline=fill, width=line)


def _place(
    box: Box, text: str, size: int, line: int, within: tuple[int, int], tags: list[Box]
) -> Box | None:
    """Where the tag of ``box`` covers least of the others'; None where it would cover too much."""
    wide, high = math.ceil(font(size).getlength(text) + 0.7 * size), round(1.4 * size)
    x0, y0, x1, y1 = box
    right, middle = x1 - wide + 1, (y0 + y1 - high) // 2
    spots = (
        (x0, y0 - high + line),
        (x0, y0),
        (x0, y1 - line + 1),
        (x0, y1 - high + 1),
        (right, y0 - high + line),
        (right, y0),
        (right, y1 - line + 1),
        (right, y1 - high + 1),
        (x1 + 1, y0),
        (x0 - wide, y0),
        (x0, middle),
    )
    best, least = None, _MAX_COVERED * wide * high
    for x, y in spots:
        x, y = min(max(x, 0), within[0] - wide), min(max(y, 0), within[1] - high)
        spot = (x, y, x + wide, y + high)
        if x < 0 or y < 0:
            return None  # larger than the picture
        covered = sum(_shared(spot, tag) for tag in tags)
        if covered == 0:
            return spot
        if covered < least:
            best, least = spot, covered
    return best


def _shared(one: Box, other: Box) -> int:
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    return max(width, 0) * max(height, 0)


def _tag(canvas: Image.Image, tag: Box, text: str, size: int, fill: Color) -> None:
    pill(canvas, tag, fill, 0.2 * size)
    middle = (tag[0] + tag[2]) / 2, (tag[1] + tag[3]) / 2
    ImageDraw.Draw(canvas).text(middle, text, contrasting(fill), font(size), "mm")
