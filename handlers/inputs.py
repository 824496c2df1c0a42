"""From a decoded picture to the pixels that the servable module takes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from handlers.errors import TooLarge

Pixels = NDArray[np.uint8]
Size = int | list[int] | None

# What a network may be given: a long thin picture resized by its short side grows without bound.
MAX_PIXELS = 64_000_000

# Up to so many times the crop, the picture is resized whole and then cropped, bit for bit as
# torchvision does it.
WHOLE = 4

_MODES = {"rgb": "RGB", "bgr": "RGB", "gray": "L"}
COLORS = tuple(_MODES)
INTERPOLATIONS = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}


@dataclass(frozen=True)
class Placement:
    """Where a picture lies in the input: resized to ``size``, of which ``window`` (left, top,
    right, bottom) is pasted at ``at`` (x, y) of a canvas of ``canvas`` (width, height)."""

    size: tuple[int, int]
    window: tuple[int, int, int, int]
    at: tuple[int, int]
    canvas: tuple[int, int]


@dataclass(frozen=True)
class ImageInput:
    """Geometry and colour of a model's input, as torchvision's presets define them.

    ``resize`` is the length of the shorter side or exact [height, width]; ``crop`` a centre crop of
    that side length or [height, width]; None leaves the picture as it is. ``letterbox`` is the grey
    level (0..255) around a picture that keeps its shape within ``resize``; None stretches it.
    ``antialias`` False resizes as ``cv2.resize`` with INTER_LINEAR does. ``mean`` and ``std`` are
    per channel, in the order of ``color``, for scaled pixels (0..1), and are applied inside the
    exported module.
    """

    color: str = "rgb"
    resize: Size = None
    crop: Size = None
    interpolation: str = "bilinear"
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    antialias: bool = True
    letterbox: int | None = None

    @property
    def channels(self) -> int:
        return 1 if self.color == "gray" else 3

    @property
    def fixed(self) -> bool:
        """Whether every picture becomes pixels of the same size."""
        return self.crop is not None or isinstance(self.resize, list)

    def prepare(self, picture: Image.Image) -> Pixels:
        """Pixels of shape (height, width, channels), uint8, for the RGB ``picture``.

        Sizes and offsets have torchvision's rounding (transforms.functional.resize and
        center_crop), so that the pixels are those of its presets. A picture smaller than the crop
        is padded with black, as torchvision does.
        """
        mode = _MODES[self.color]
        if picture.mode != mode:
            picture = picture.convert(mode)
        place = self.place(picture.size)
        if place.canvas[0] * place.canvas[1] > MAX_PIXELS:
            raise TooLarge(
                f"a picture of {picture.width}x{picture.height} would become "
                f"{place.canvas[0]}x{place.canvas[1]} "
                f"pixels for this model: send one that is less long or less large"
            )
        picture = self._resample(picture, place.size, place.window)
        if picture.size != place.canvas:
            level = self.letterbox or 0
            canvas = Image.new(mode, place.canvas, (level,) * len(picture.getbands()))
            canvas.paste(picture, place.at)
            picture = canvas
        pixels = np.asarray(picture)
        if self.color == "bgr":
            pixels = pixels[:, :, ::-1]
        return pixels[:, :, None] if pixels.ndim == 2 else pixels

    def place(self, size: tuple[int, int]) -> Placement:
        """Where a picture of ``size`` (width, height) lies in the input."""
        resized = self._resized(*size)
        canvas = _pair(self.crop) or (resized if self.letterbox is None else _pair(self.resize))
        assert canvas is not None, "letterbox without resize"
        (left, right), (top, bottom) = (_span(resized[axis], canvas[axis]) for axis in (0, 1))
        at = ((canvas[0] - right + left) // 2, (canvas[1] - bottom + top) // 2)
        return Placement(resized, (left, top, right, bottom), at, canvas)

    def boxes_in_picture(
        self, boxes: NDArray[np.floating], size: tuple[int, int]
    ) -> NDArray[np.floating]:
        """Boxes (K, 4) xyxy in pixels of the input as pixels of the picture of ``size``."""
        place = self.place(size)
        if place.size == size and place.window == (0, 0, *size) and place.at == (0, 0):
            return boxes
        offset = np.array([place.at[axis] - place.window[axis] for axis in (0, 1)] * 2)
        scale = np.array([size[axis] / place.size[axis] for axis in (0, 1)] * 2)
        moved: NDArray[np.floating] = ((boxes - offset) * scale).clip(0, np.array(size * 2))
        return moved

    def plane_in_picture(self, plane: NDArray[Any], size: tuple[int, int]) -> NDArray[Any]:
        """The part of ``plane`` (H, W; the whole input) that shows the picture of ``size``."""
        if self.letterbox is None:
            return plane
        place = self.place(size)
        across, down = (plane.shape[1 - axis] / place.canvas[axis] for axis in (0, 1))
        (left, top), (width, height) = place.at, place.size
        rows = slice(round(top * down), max(round((top + height) * down), 1))
        return plane[rows, round(left * across) : max(round((left + width) * across), 1)]

    def _resized(self, width: int, height: int) -> tuple[int, int]:
        exact = _pair(self.resize)
        if self.letterbox is not None and exact is not None:
            ratio = min(exact[0] / width, exact[1] / height)
            return max(1, round(width * ratio)), max(1, round(height * ratio))
        if not isinstance(self.resize, int):
            return exact or (width, height)
        if width <= height:
            return self.resize, int(self.resize * height / width)
        return int(self.resize * width / height), self.resize

    def _resample(
        self, picture: Image.Image, size: tuple[int, int], window: tuple[int, int, int, int]
    ) -> Image.Image:
        """The part ``window`` (in pixels of ``size``) of ``picture`` resized to ``size``."""
        if size == picture.size:
            return picture if window == (0, 0, *size) else picture.crop(window)
        if not self.antialias:
            return Image.fromarray(_interpolated(np.asarray(picture), size, window))
        method = INTERPOLATIONS[self.interpolation]
        part = (window[2] - window[0], window[3] - window[1])
        if size[0] * size[1] <= WHOLE * part[0] * part[1]:
            return picture.resize(size, method).crop(window)
        # Of a long thin picture, resampling what the crop throws away would cost without bound.
        # Pillow keeps the box in single precision: pixels may differ by one level from the above.
        across, down = picture.width / size[0], picture.height / size[1]
        box = (window[0] * across, window[1] * down, window[2] * across, window[3] * down)
        return picture.resize(part, method, box=box)

    def describe(self) -> dict[str, Any]:
        """What a client may want to know, as JSON values."""
        return {"color": self.color, "resize": self.resize, "crop": self.crop}


def _interpolated(
    pixels: Pixels, size: tuple[int, int], window: tuple[int, int, int, int]
) -> Pixels:
    """The part ``window`` of ``pixels`` resized to ``size``, each from its four neighbours.

    OpenCV's INTER_LINEAR and torch's bilinear without antialias: pixel centres at half pixels,
    borders repeated, nothing smoothed. Pillow has it too (``transform``), but never rounds up.
    """
    (left, right, across), (top, bottom, down) = (
        _neighbours(pixels.shape[1 - axis], size[axis], window[axis], window[axis + 2])
        for axis in (0, 1)
    )
    across = across.reshape(1, -1, *[1] * (pixels.ndim - 2))
    upper, lower = pixels[top], pixels[bottom]
    rows = [row[:, left] * (1 - across) + row[:, right] * across for row in (upper, lower)]
    down = down.reshape(-1, *[1] * (pixels.ndim - 1))
    mixed = rows[0] * (1 - down) + rows[1] * down
    return (mixed + 0.5).astype(np.uint8)


def _neighbours(
    length: int, size: int, start: int, stop: int
) -> tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.float32]]:
    """Along one axis: the source pixels before and after each target pixel, and the share of the
    second."""
    at = ((np.arange(start, stop) + 0.5) * (length / size) - 0.5).clip(0, length - 1)
    first = np.floor(at).astype(np.intp)
    return first, np.minimum(first + 1, length - 1), (at - first).astype(np.float32)


def _pair(size: Size) -> tuple[int, int] | None:
    """(width, height) of a size given as a side length or as [height, width]."""
    if size is None:
        return None
    return (size, size) if isinstance(size, int) else (size[1], size[0])


def _span(length: int, crop: int) -> tuple[int, int]:
    """The part of an axis that a centre crop keeps; the whole axis where the crop is longer."""
    if crop >= length:
        return 0, length
    start = round((length - crop) / 2)
    return start, start + crop
