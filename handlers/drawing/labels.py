"""A classification drawn: the picture over its labels and scores."""

from __future__ import annotations

import math
from collections.abc import Sequence

from PIL import Image, ImageDraw

from handlers.drawing.panel import BRIGHT, DIM, add_panel, enlarge
from handlers.drawing.style import Color, fit, font, percent, pill, text_size

_ACCENT: Color = (74, 196, 160)
_REST: Color = (96, 108, 128)
_TRACK: Color = (43, 47, 56)
_MAX_ROWS = 10


def draw_labels(picture: Image.Image, answers: Sequence[tuple[str, float]]) -> Image.Image:
    """``picture`` over a panel of (label, score) rows, in the given order, the first one larger.

    Scores are shown as percent with a bar from 0 to 1. At most 10 rows are drawn.
    """
    picture = enlarge(picture)
    answers = answers[:_MAX_ROWS]
    if not answers:
        return picture
    size = text_size(*picture.size)
    wide, pad = max(picture.width, 20 * size), size
    sizes = [round(1.3 * size)] + [size] * (len(answers) - 1)
    lines = [round(1.75 * each) for each in sizes]
    canvas, y = add_panel(picture, wide, sum(lines) + pad)
    y += pad // 2
    draw = ImageDraw.Draw(canvas)

    values = [percent(score) for _, score in answers]
    value_room = max(font(s).getlength(v) for s, v in zip(sizes, values, strict=True))
    room = 0.52 * (wide - 2 * pad - value_room)
    names = [fit(label, s, room) for (label, _), s in zip(answers, sizes, strict=True)]
    name_room = max(font(s).getlength(name) for s, name in zip(sizes, names, strict=True))
    start = round(pad + name_room + size)
    end = round(wide - pad - value_room - size)
    rows = zip(sizes, lines, names, values, (score for _, score in answers), strict=True)
    for row, (each, line, name, value, score) in enumerate(rows):
        middle = y + line // 2
        draw.text((pad, middle), name, DIM if row else BRIGHT, font(each), "lm")
        draw.text((wide - pad, middle), value, DIM if row else BRIGHT, font(each), "rm")
        thick = max(3, round(0.36 * each))
        above = middle - thick // 2
        pill(canvas, (start, above, end, above + thick), _TRACK, thick)
        share = min(max(score, 0.0), 1.0) if math.isfinite(score) else 0.0
        # The shortest bar is a dot, so that its round ends stay round.
        length = max(thick, round(share * (end - start))) if share >= 0.0005 else 0
        pill(
            canvas, (start, above, start + length, above + thick), _REST if row else _ACCENT, thick
        )
        y += line
    return canvas
