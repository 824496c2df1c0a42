"""From a decoded picture to the pixels that the servable module takes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from handlers.errors import TooLarge
from handlers.pictures import Picture
from handlers.resampling import Pixels, Window, by_pillow, by_torch, is_whole, unsmoothed

Size = int | list[int] | None

# What a network may be given: a long thin picture resized by its short side grows without bound.
MAX_PIXELS = 64_000_000
# What the pictures of one request may become by that, so that a batch of eight such requests is
# answered in less than a minute on two cores. One so many times as long as wide always may come.
REQUEST_PIXELS = 16_000_000
LONGEST = 8


@dataclass(frozen=True)
class Placement:
    """Where a picture lies in the input: resized to ``size``, of which ``window`` (left, top,
    right, bottom) is pasted at ``at`` (x, y) of a canvas of ``canvas`` (width, height)."""

    size: tuple[int, int]
    window: Window
    at: tuple[int, int]
    canvas: tuple[int, int]


@dataclass(frozen=True)
class ImageInput:
    """Geometry and colour of a model's input, as torchvision's presets define them.

    ``resize`` is the length of the shorter side or exact [height, width]; ``crop`` a centre crop of
    that side length or [height, width]; None leaves the picture as it is. ``letterbox`` is the grey
    level (0..255) around a picture that keeps its shape within ``resize``; None stretches it.
    ``letterbox_position`` says where the picture lies in it. ``antialias`` False resizes as
    ``cv2.resize`` with INTER_NEAREST, INTER_LINEAR or INTER_CUBIC does. ``backend`` is whose
    resize it is: ``pil``, torchvision's transforms of PIL pictures, or ``tensor``, those of uint8
    tensors, which take a third of the time; of photographs one value in three hundred differs, by
    one level. ``mean`` and ``std`` are per channel, in the order of ``color``, for scaled pixels
    (0..1), and are applied inside the exported module.
    """

    color: str = "rgb"
    resize: Size = None
    crop: Size = None
    interpolation: str = "bilinear"
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    antialias: bool = True
    letterbox: int | None = None
    letterbox_position: str = "center"
    backend: str = "pil"

    @property
    def channels(self) -> int:
        return 1 if self.color == "gray" else 3

    @property
    def needs_torch(self) -> bool:
        """Whether PyTorch resizes the pictures."""
        return self.backend == "tensor"

    @property
    def fixed(self) -> bool:
        """Whether every picture becomes pixels of the same size."""
        return self.crop is not None or isinstance(self.resize, list)

    def prepare(self, picture: Image.Image | Picture) -> Pixels:
        """Pixels of shape (height, width, channels), uint8, for the RGB ``picture``.

        Sizes and offsets have torchvision's rounding (transforms.functional.resize and
        center_crop), so that the pixels are those of its presets; of a picture that was decoded
        at a smaller scale, or is long and thin, nearly. A picture smaller than the crop is padded
        with black, as torchvision does.
        """
        place = self.place(picture.size)
        if place.canvas[0] * place.canvas[1] > MAX_PIXELS:
            raise TooLarge(
                f"a picture of {picture.width}x{picture.height} would become "
                f"{place.canvas[0]}x{place.canvas[1]} "
                f"pixels for this model: send one that is less long or less large"
            )
        pixels = self._resample(self._colored(picture), place.size, place.window)
        height, width, channels = pixels.shape
        if (width, height) != place.canvas:
            shape = (place.canvas[1], place.canvas[0], channels)
            canvas = np.full(shape, self.letterbox or 0, np.uint8)
            left, top = place.at
            canvas[top : top + height, left : left + width] = pixels
            pixels = canvas
        return pixels[:, :, ::-1] if self.color == "bgr" else pixels

    def check_together(self, sizes: Sequence[tuple[int, int]], max_pictures: int) -> None:
        """Raise TooLarge where pictures of ``sizes`` (width, height) are too much for one request.

        ``max_pictures`` twice as long as wide may come, up to ``REQUEST_PIXELS``, or one that is
        ``LONGEST`` times as long. Inputs of one size bound it by the number of pictures, and those
        without a resize by the pixels that are decoded. A shorter side bounds nothing: of 1x236
        pixels it makes a hundred megabytes.
        """
        if self.fixed or not isinstance(self.resize, int):
            return
        canvases = [self.place(size).canvas for size in sizes]
        pixels = sum(width * height for width, height in canvases)
        square = self.resize**2
        most = max(LONGEST * square, min(2 * max_pictures * square, REQUEST_PIXELS))
        if pixels > most:
            raise TooLarge(
                f"the pictures of this request ({len(sizes)}) would become {pixels} pixels for "
                f"this model; the limit of a request is {most}: send fewer, or less long ones"
            )

    def wanted(self, size: tuple[int, int]) -> tuple[int, int] | None:
        """What a picture of ``size`` is resized to, (width, height); None: every pixel counts.

        A resize that smooths does not need all of a picture that it shrinks much.
        """
        smooth = self.antialias and self.interpolation != "nearest"
        return self.place(size).size if self.resize is not None and smooth else None

    def place(self, size: tuple[int, int]) -> Placement:
        """Where a picture of ``size`` (width, height) lies in the input."""
        resized = self._resized(*size)
        canvas = _pair(self.crop) or (resized if self.letterbox is None else _pair(self.resize))
        assert canvas is not None, "letterbox without resize"
        (left, right), (top, bottom) = (_span(resized[axis], canvas[axis]) for axis in (0, 1))
        at = ((canvas[0] - right + left) // 2, (canvas[1] - bottom + top) // 2)
        if self.letterbox is not None and self.letterbox_position == "top-left":
            at = (0, 0)
        return Placement(resized, (left, top, right, bottom), at, canvas)

    def boxes_in_picture(
        self, boxes: NDArray[np.floating], size: tuple[int, int]
    ) -> NDArray[np.floating]:
        """Boxes (K, 4) xyxy in pixels of the input as pixels of the picture of ``size``."""
        place = self.place(size)
        if place.size == place.canvas == size:
            return boxes.clip(0, np.array(size * 2, boxes.dtype))
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
        rows = _part(top * down, (top + height) * down, plane.shape[0])
        return plane[rows, _part(left * across, (left + width) * across, plane.shape[1])]

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

    def _colored(self, picture: Image.Image | Picture) -> Pixels:
        """Pixels (H, W, C) of the picture, grey or in the order red, green, blue."""
        if self.color == "gray":
            if isinstance(picture, Picture):
                picture = Image.fromarray(picture.pixels)
            return np.asarray(picture.convert("L"))[:, :, None]
        if isinstance(picture, Picture):
            return picture.pixels
        return np.asarray(picture.convert("RGB"))

    def _resample(self, pixels: Pixels, size: tuple[int, int], window: Window) -> Pixels:
        """The part ``window`` (in pixels of ``size``) of ``pixels`` resized to ``size``."""
        height, width, _ = pixels.shape
        if size == (width, height):
            left, top, right, bottom = window
            return pixels[top:bottom, left:right]
        if not self.antialias:
            return unsmoothed(pixels, size, window, self.interpolation)
        if self.backend == "tensor" and is_whole(size, window):
            return by_torch(pixels, size, window, self.interpolation)
        return by_pillow(pixels, size, window, self.interpolation)

    def describe(self) -> dict[str, Any]:
        """What a client may want to know, as JSON values."""
        return {
            "color": self.color,
            "resize": self.resize,
            "crop": self.crop,
            "backend": self.backend,
        }


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


def _part(first: float, last: float, length: int) -> slice:
    """Whole places from ``first`` to ``last`` of ``length``, at least one of them."""
    start = min(round(first), length - 1)
    return slice(start, max(round(last), start + 1))
