"""Pixels resized as Pillow, torchvision's tensors or OpenCV do it, without what a crop drops.

Each takes ``pixels`` (H, W, C), uint8, the ``size`` (width, height) that the whole of them would
become, and the ``window`` (left, top, right, bottom) of it that is wanted, which it returns.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Pixels = NDArray[np.uint8]
Window = tuple[int, int, int, int]

# Pillow's filters, each with how many source pixels it reaches to either side when it enlarges.
FILTERS = {
    "nearest": (Image.Resampling.NEAREST, 0),
    "bilinear": (Image.Resampling.BILINEAR, 1),
    "bicubic": (Image.Resampling.BICUBIC, 2),
    "lanczos": (Image.Resampling.LANCZOS, 3),
}
TENSOR_MODES = ("bilinear", "bicubic")
# Those that there are without antialias.
PLAIN_MODES = ("nearest", "bilinear", "bicubic")

# Up to so many times the window, the pixels are those of a picture that is resized whole and then
# cropped, as torchvision does. A long thin one would cost without bound.
WHOLE = 4


def is_whole(size: tuple[int, int], window: Window) -> bool:
    """Whether the window is cut out of the whole resized picture, bit for bit."""
    left, top, right, bottom = window
    return size[0] * size[1] <= WHOLE * (right - left) * (bottom - top)


def by_pillow(pixels: Pixels, size: tuple[int, int], window: Window, mode: str) -> Pixels:
    """As ``Image.resize`` does it; ``mode`` is of ``FILTERS``.

    Of pictures that are not ``is_whole``, values may differ by two levels: Pillow keeps the edges
    of the box that it takes in single precision.
    """
    height, width, channels = pixels.shape
    left, top, right, bottom = window
    flat = pixels if channels > 1 else pixels[:, :, 0]
    method, _ = FILTERS[mode]
    if window == (0, 0, *size):
        resized = np.asarray(Image.fromarray(flat).resize(size, method))
    elif not is_whole(size, window):
        across, down = width / size[0], height / size[1]
        box = (left * across, top * down, right * across, bottom * down)
        resized = np.asarray(
            Image.fromarray(flat).resize((right - left, bottom - top), method, box=box)
        )
    elif mode == "nearest" or _columns_first((width, height), size):
        resized = np.asarray(Image.fromarray(flat).resize(size, method))[top:bottom, left:right]
    else:
        resized = _by_axes(flat, size, window, mode)
    return resized if channels > 1 else resized[:, :, None]


def _by_axes(pixels: Pixels, size: tuple[int, int], window: Window, mode: str) -> Pixels:
    """Along the rows first, then along the columns, each for what the window needs of it.

    Pillow takes the two in this order itself, and rounds to uint8 between them. Of photographs a
    sixth of the time is left out for the usual crop of 224 from 256.
    """
    method, reach = FILTERS[mode]
    height, width = pixels.shape[:2]
    left, top, right, bottom = window
    columns, x_from, x_to, x_skip = _axis(width, size[0], left, right)
    rows, y_from, y_to, y_skip = _axis(height, size[1], top, bottom)
    if rows < size[1]:
        margin = reach * max(height / size[1], 1) + 1
        first, last = max(0, int(y_from - margin)), min(height, int(y_to + margin) + 1)
        pixels, height, y_from, y_to = (
            pixels[first:last],
            last - first,
            y_from - first,
            y_to - first,
        )
    half = Image.fromarray(pixels).resize((columns, height), method, box=(x_from, 0, x_to, height))
    wide = right - left
    if wide < columns:
        half = half.crop((x_skip, 0, x_skip + wide, height))
    done = half.resize((wide, rows), method, box=(0, y_from, wide, y_to))
    return np.asarray(done)[y_skip : y_skip + bottom - top]


def _columns_first(source: tuple[int, int], size: tuple[int, int]) -> bool:
    """Whether Pillow (from 13 on) takes the columns first: the height loses far more."""
    less_wide, less_high = (source[axis] - size[axis] for axis in (0, 1))
    return less_high > max(2 * less_wide, 0)


def _axis(length: int, size: int, start: int, stop: int) -> tuple[int, float, float, int]:
    """How to resize ``length`` pixels to ``size``, of which ``start`` to ``stop`` are wanted.

    Returns how many to make, from which edges of the source, and how many of them to skip: those
    wanted alone where single precision holds the edges as they are, as it does with a side that
    becomes 256, and else all.
    """
    begin, end = start * length / size, stop * length / size
    if all(float(np.float32(edge)) == edge for edge in (begin, end, end - begin)):
        return stop - start, begin, end, 0
    return size, 0, length, start


def by_torch(pixels: Pixels, size: tuple[int, int], window: Window, mode: str) -> Pixels:
    """As torchvision.transforms.v2 resizes uint8 tensors; ``mode`` is of ``TENSOR_MODES``."""
    import torch
    from torch import nn

    # torch warns of arrays that may not be written, as Pillow's are.
    writable = pixels if pixels.flags.writeable else pixels.copy()
    # In this order torch sees that channels come last, and has a faster kernel for that.
    channels_last = torch.from_numpy(writable)[None].permute(0, 3, 1, 2)
    resized = nn.functional.interpolate(
        channels_last, size=size[::-1], mode=mode, antialias=True, align_corners=False
    )
    left, top, right, bottom = window
    whole: Pixels = resized.permute(0, 2, 3, 1)[0].numpy()
    return whole[top:bottom, left:right]


def unsmoothed(pixels: Pixels, size: tuple[int, int], window: Window, mode: str) -> Pixels:
    """As OpenCV resizes, each pixel from its nearest neighbours; ``mode`` is of ``PLAIN_MODES``.

    Borders are repeated, nothing is smoothed. Pillow has such, too (``transform``), but never
    rounds up.
    """
    across, down = (
        _taps(mode, pixels.shape[1 - axis], size[axis], window[axis], window[axis + 2])
        for axis in (0, 1)
    )
    if mode == "nearest":
        taken: Pixels = pixels[down[0][0]][:, across[0][0]]
        return taken
    tail = [1] * (pixels.ndim - 2)
    columns = [(column, weight.reshape(1, -1, *tail)) for column, weight in across]
    lines = (
        _summed(rows[:, column] * weight for column, weight in columns)
        * share.reshape(-1, 1, *tail)
        for rows, share in ((pixels[row], share) for row, share in down)
    )
    mixed = _summed(lines)
    mixed += np.float32(0.5)
    return mixed.clip(0, 255, out=mixed).astype(np.uint8)


def _summed(arrays: Iterator[NDArray[np.float32]]) -> NDArray[np.float32]:
    total = next(arrays)
    for each in arrays:
        total += each
    return total


def _taps(
    mode: str, length: int, size: int, start: int, stop: int
) -> list[tuple[NDArray[np.intp], NDArray[np.float32]]]:
    """Along one axis, the source pixels of each target pixel with their shares.

    Pixel centres are at half pixels, but INTER_NEAREST's at whole ones. The weights of INTER_CUBIC
    are Keys' (1981) with a = -0.75, which torch's bicubic without antialias has as well.
    """
    target = np.arange(start, stop)
    if mode == "nearest":
        # OpenCV's own order of divisions, which decides where they are not exact.
        nearest = np.floor(target * (1 / (size / length))).astype(np.intp)
        return [(np.minimum(nearest, length - 1), np.ones(len(target), np.float32))]
    at = (target + 0.5) * (length / size) - 0.5
    if mode == "bilinear":
        at = at.clip(0, length - 1)
    first = np.floor(at).astype(np.intp)
    share = (at - first).astype(np.float32)
    weights = [1 - share, share] if mode == "bilinear" else _cubic(share)
    before = len(weights) // 2 - 1
    return [
        ((first + step - before).clip(0, length - 1), weight) for step, weight in enumerate(weights)
    ]


def _cubic(share: NDArray[np.float32]) -> list[NDArray[np.float32]]:
    """Shares of the four pixels around a place that is ``share`` behind the second."""
    a, far = np.float32(-0.75), share + 1
    first = ((a * far - 5 * a) * far + 8 * a) * far - 4 * a
    second, third = (((a + 2) * near - (a + 3)) * near * near + 1 for near in (share, 1 - share))
    return [first, second, third, 1 - first - second - third]
