"""The dark panel below a picture, and the legend that goes on it."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image, ImageDraw

from handlers.drawing.style import Color, fit, font, pill, text_size

LEAST_SIDE = 384  # pixels of a picture's longer side below which it is enlarged
PANEL: Color = (22, 24, 30)
BRIGHT: Color = (245, 246, 248)
DIM: Color = (166, 171, 181)

Entry = tuple[str, str, Color | None]  # name, value, and the colour of the chip before them

_MAX_ENTRIES = 24


def enlargement(width: int, height: int) -> int:
    """The whole factor by which a picture of this size is enlarged before it is drawn on."""
    return -(-LEAST_SIDE // max(width, height)) if max(width, height) < LEAST_SIDE else 1


def enlarge(picture: Image.Image) -> Image.Image:
    """A copy that can be drawn on; its size times ``enlargement``."""
    factor = enlargement(*picture.size)
    if factor == 1:
        return picture.copy()
    # So few pixels are looked at one by one; more of them are looked at as a picture.
    way = Image.Resampling.NEAREST if factor > 3 else Image.Resampling.LANCZOS
    return picture.resize((picture.width * factor, picture.height * factor), way)


def add_panel(picture: Image.Image, width: int, height: int) -> tuple[Image.Image, int]:
    """``picture`` centred over a panel at least ``width`` wide; y where the panel begins."""
    wide = max(picture.width, width)
    canvas = Image.new("RGB", (wide, picture.height + height), PANEL)
    canvas.paste(picture, ((wide - picture.width) // 2, 0))
    return canvas, picture.height


def add_legend(picture: Image.Image, entries: Sequence[Entry]) -> Image.Image:
    """``picture`` over a panel of entries that flow into lines.

    At most 24 entries are shown; the last line then says how many more there are.
    """
    size = text_size(*picture.size)
    wide = max(picture.width, 14 * size)
    more = len(entries) - _MAX_ENTRIES
    placed, lines = _flow(entries[:_MAX_ENTRIES], size, wide, more)
    pad, line = round(0.8 * size), round(1.6 * size)
    canvas, top = add_panel(picture, wide, 2 * pad + lines * line - (line - size))
    draw = ImageDraw.Draw(canvas)
    for x, row, name, value, chip in placed:
        middle = top + pad + row * line + size // 2
        if chip is not None:
            side = round(0.8 * size)
            above = middle - side // 2
            pill(canvas, (x, above, x + side, above + side), chip, 0.25 * side)
            x += round(1.25 * size)
        draw.text((x, middle), name, BRIGHT, font(size), "lm")
        x += round(font(size).getlength(name) + 0.4 * size) if name else 0
        draw.text((x, middle), value, DIM, font(size), "lm")
    return canvas


_Placed = tuple[int, int, str, str, Color | None]


def _flow(entries: Sequence[Entry], size: int, wide: int, more: int) -> tuple[list[_Placed], int]:
    """Each entry's x, line, fitted name, value and colour; and how many lines there are."""
    pad, face = round(0.8 * size), font(size)
    pieces = [*entries]
    if more > 0:
        pieces.append(("", f"and {more} more", None))
    placed: list[_Placed] = []
    x, row = pad, 0
    for name, value, chip in pieces:
        room = wide - 2 * pad - 1.65 * size - face.getlength(value)
        name = fit(name, size, room) if name else ""
        needs = round(1.65 * size + face.getlength(name) + face.getlength(value))
        if x > pad and x + needs > wide - pad:
            x, row = pad, row + 1
        placed.append((x, row, name, value, chip))
        x += needs + round(1.2 * size)
    return placed, row + 1
