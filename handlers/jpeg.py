"""JPEGs decoded straight into an array, and smaller where the model shrinks them much anyway."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]

# A picture of at least MANY pixels, and LARGE times the size that it is resized to, is decoded
# smaller, at no less than SPARE times that size: what a scaled inverse DCT averages, the smoothing
# of the resize would average, too. A photograph of 12 megapixels is decoded at a quarter for 256
# pixels: libjpeg has a faster way for that than for 3/8, and Pillow less to resize. Of fewer pixels
# it would save a few milliseconds, and move the scores of a network with a tiny input by 0.01.
MANY, LARGE, SPARE = 1_000_000, 8, 2.5
_INKS = ("CMYK", "YCCK")


def decode(data: bytes, wanted: tuple[int, int] | None) -> Pixels | None:
    """Pixels (H, W, 3) of a JPEG, RGB, not turned; None: Pillow must say what it is.

    At full scale they are Pillow's, bit for bit: both are libjpeg-turbo. ``wanted`` is the (width,
    height) that the picture will be resized to; None decodes it whole. Whatever is unusual (CMYK,
    damage, even such as libjpeg mends) is left to Pillow.
    """
    import simplejpeg

    width, height = 0, 0
    try:
        whole_height, whole_width, ink, *_ = simplejpeg.decode_jpeg_header(data)
        if ink in _INKS:
            return None
        times = min(whole_width / wanted[0], whole_height / wanted[1]) if wanted else 0.0
        if wanted and times >= LARGE and whole_width * whole_height >= MANY:
            width, height = (int(SPARE * side) for side in wanted)
        pixels: Pixels = simplejpeg.decode_jpeg(data, "RGB", min_width=width, min_height=height)
    # The errors of libjpeg; which of them matter, Pillow decides.
    except ValueError:
        return None
    return pixels


def size(data: bytes) -> tuple[int, int] | None:
    """(width, height) that the header of a JPEG declares; None where it cannot be read."""
    import simplejpeg

    try:
        height, width, *_ = simplejpeg.decode_jpeg_header(data)
    except ValueError:
        return None
    return width, height


def upright(pixels: Pixels, orientation: int) -> Pixels:
    """Pixels turned as EXIF's orientation (1 to 8) says that they must be."""
    if orientation in (2, 3):
        pixels = pixels[:, ::-1]
    if orientation in (3, 4):
        pixels = pixels[::-1]
    if orientation >= 5:
        pixels = pixels.transpose(1, 0, 2)
        if orientation in (6, 7):
            pixels = pixels[:, ::-1]
        if orientation in (7, 8):
            pixels = pixels[::-1]
    return np.ascontiguousarray(pixels)
