"""What all drawings share: class colours, text that always fits, smooth shapes, encoding."""

from __future__ import annotations

import math
import unicodedata
from functools import lru_cache
from io import BytesIO

from PIL import Image, ImageDraw, ImageFont

from handlers.errors import TooLarge

Color = tuple[int, int, int]

WHITE: Color = (255, 255, 255)
INK: Color = (18, 20, 24)

# Of libjpeg's encoder, a little less than the format could name.
MAX_JPEG_SIDE = 65_500

_GOLDEN_ANGLE = math.pi * (3 - math.sqrt(5))
# Like hues are a Fibonacci number of indices apart; this step parts them best by their lightness,
# measured as the least distance in OKLab among the first 21, 80 and 256 colours.
_LIGHTNESS_STEP = 0.3437
_SMOOTHING = 4
# Pillow's built-in font has ASCII and a few signs; these letters have no Unicode decomposition.
_SPELLED = {"ß": "ss", "ø": "o", "Ø": "O", "ł": "l", "Ł": "L", "đ": "d", "Đ": "D", "\u0131": "i"}
_SPELLED |= {"æ": "ae", "Æ": "AE", "œ": "oe", "Œ": "OE", "\u2014": "-", "\u2013": "-"}


@lru_cache(maxsize=1024)
def color(index: int) -> Color:
    """The colour of class ``index``: always the same, unlike its neighbours', strong on photos.

    Hues a golden angle apart in OKLCH (https://bottosson.github.io/posts/oklab), as saturated as
    sRGB allows up to chroma 0.19.
    """
    hue = 0.5 + index * _GOLDEN_ANGLE
    lightness = 0.55 + 0.3 * ((0.5 + index * _LIGHTNESS_STEP) % 1)
    for step in range(19, -1, -1):
        linear = _oklch_to_linear(lightness, step / 100, hue)
        if all(0 <= channel <= 1 for channel in linear):
            break
    return _srgb(linear[0]), _srgb(linear[1]), _srgb(linear[2])


def _oklch_to_linear(lightness: float, chroma: float, hue: float) -> tuple[float, float, float]:
    a, b = chroma * math.cos(hue), chroma * math.sin(hue)
    long = (lightness + 0.3963377774 * a + 0.2158037573 * b) ** 3
    middle = (lightness - 0.1055613458 * a - 0.0638541728 * b) ** 3
    short = (lightness - 0.0894841775 * a - 1.2914855480 * b) ** 3
    return (
        4.0767416621 * long - 3.3077115913 * middle + 0.2309699292 * short,
        -1.2684380046 * long + 2.6097574011 * middle - 0.3413193965 * short,
        -0.0041960863 * long - 0.7034186147 * middle + 1.7076147010 * short,
    )


def _srgb(linear: float) -> int:
    return round(
        255 * (12.92 * linear if linear < 0.0031308 else 1.055 * linear ** (1 / 2.4) - 0.055)
    )


def contrasting(background: Color) -> Color:
    """Ink or white, whichever reads better on ``background``."""
    red, green, blue = ((channel / 255) ** 2.2 for channel in background)
    # 0.18 is the luminance at which WCAG's contrast with black and with white is the same.
    return INK if 0.2126 * red + 0.7152 * green + 0.0722 * blue > 0.18 else WHITE


def text_size(width: int, height: int) -> int:
    """Font size in pixels that suits a picture of this size."""
    return max(13, round(0.029 * math.sqrt(width * height)))


@lru_cache(maxsize=64)
def font(size: int) -> ImageFont.FreeTypeFont:
    """Pillow's built-in sans serif at ``size`` pixels."""
    built_in = ImageFont.load_default(size)
    assert isinstance(built_in, ImageFont.FreeTypeFont), "Pillow is built without FreeType"
    return built_in


@lru_cache(maxsize=4096)
def _drawable(character: str) -> bool:
    if not character.isprintable():
        return False
    missing, mask = font(32).getmask("\U0010fffd"), font(32).getmask(character)
    return (mask.size, bytes(mask)) != (missing.size, bytes(missing))


def plain(text: str) -> str:
    """``text`` on one line in characters that the font has: é becomes e, ß ss, and 猫 ?."""
    characters = []
    for character in " ".join(text.split()):
        if not _drawable(character):
            parts = _SPELLED.get(character) or unicodedata.normalize("NFKD", character)
            character = "".join(part for part in parts if _drawable(part)) or "?"
        characters.append(character)
    return "".join(characters)


def fit(text: str, size: int, width: float) -> str:
    """``text`` made ``plain`` and cut with an ellipsis to at most ``width`` pixels."""
    text, face = plain(text[:500]), font(size)
    if face.getlength(text) <= width:
        return text
    longest = 0
    for bit in (256, 128, 64, 32, 16, 8, 4, 2, 1):
        cut = text[: longest + bit].rstrip() + "…"
        if longest + bit < len(text) and face.getlength(cut) <= width:
            longest += bit
    return text[:longest].rstrip() + "…"


def percent(share: float) -> str:
    """``0.123`` as ``12.3%``; what is there but would round to nothing as ``<0.1%``."""
    if 0 < share < 0.0005:
        return "<0.1%"
    return f"{100 * share:.1f}%" if math.isfinite(share) else "?"


def pill(canvas: Image.Image, box: tuple[int, int, int, int], fill: Color, radius: float) -> None:
    """Fill a rectangle (xyxy, end exclusive) with smooth round corners."""
    width, height = box[2] - box[0], box[3] - box[1]
    if width < 1 or height < 1:
        return
    n = _SMOOTHING
    mask = Image.new("L", (width * n, height * n))
    corner = min(radius, width / 2, height / 2) * n
    ImageDraw.Draw(mask).rounded_rectangle((0, 0, width * n - 1, height * n - 1), corner, 255)
    canvas.paste(fill, box, mask.reduce(n))


def encode(picture: Image.Image, media_type: str) -> bytes:
    """``picture`` as ``image/png`` or ``image/jpeg``; any other type is a ValueError.

    Raises TooLarge for a side that JPEG does not have.
    """
    file = BytesIO()
    if media_type == "image/png":
        picture.save(file, "PNG", compress_level=1)
    elif media_type == "image/jpeg":
        if max(picture.size) > MAX_JPEG_SIDE:
            raise TooLarge(
                f"the drawing is {picture.width}x{picture.height}, and a JPEG has at most "
                f"{MAX_JPEG_SIDE} pixels a side: ask for image/png or application/json",
                max_side=MAX_JPEG_SIDE,
            )
        # Full colour resolution: thin coloured lines and words turn to mud without it.
        picture.save(file, "JPEG", quality=90, subsampling=0)
    else:
        raise ValueError(f"cannot encode {media_type}, only image/png and image/jpeg")
    return file.getvalue()
