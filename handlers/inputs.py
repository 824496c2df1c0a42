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

_MODES = {"rgb": "RGB", "gray": "L"}
INTERPOLATIONS = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}


@dataclass(frozen=True)
class ImageInput:
    """Geometry and colour of a model's input, as torchvision's presets define them.

    ``resize`` is the length of the shorter side or exact [height, width]; ``crop`` a centre crop of
    that side length or [height, width]; None leaves the picture as it is. ``mean`` and ``std`` are
    per channel for pixels scaled to 0..1 and are applied inside the exported module.
    """

    color: str = "rgb"
    resize: Size = None
    crop: Size = None
    interpolation: str = "bilinear"
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)

    @property
    def channels(self) -> int:
        return 1 if self.color == "gray" else 3

    @property
    def fixed(self) -> bool:
        """Whether every picture becomes pixels of the same size."""
        return self.crop is not None or isinstance(self.resize, list)

    def prepare(self, picture: Image.Image) -> Pixels:
        """Pixels of shape (height, width, channels), uint8, for the RGB ``picture``.

        Resize and centre crop are one resampling of the part that survives the crop, with
        torchvision's rounding (transforms.functional.resize and center_crop), so that the pixels
        are those of the two steps and the rest is never computed. A picture smaller than the crop
        is padded with black, as torchvision does.
        """
        mode = _MODES[self.color]
        if picture.mode != mode:
            picture = picture.convert(mode)
        size = self._resized(picture.width, picture.height)
        crop = _pair(self.crop) or size
        if crop[0] * crop[1] > MAX_PIXELS:
            raise TooLarge(
                f"a picture of {picture.width}x{picture.height} would become {crop[0]}x{crop[1]} "
                f"pixels for this model: send one that is less long or less large"
            )
        spans = [_span(size[axis], crop[axis]) for axis in (0, 1)]
        (left, right), (top, bottom) = spans
        picture = self._resample(picture, size, (left, top, right, bottom))
        if picture.size != crop:
            canvas = Image.new(mode, crop)
            canvas.paste(picture, ((crop[0] - picture.width) // 2, (crop[1] - picture.height) // 2))
            picture = canvas
        pixels = np.asarray(picture)
        return pixels[:, :, None] if pixels.ndim == 2 else pixels

    def _resized(self, width: int, height: int) -> tuple[int, int]:
        if not isinstance(self.resize, int):
            return _pair(self.resize) or (width, height)
        if width <= height:
            return self.resize, int(self.resize * height / width)
        return int(self.resize * width / height), self.resize

    def _resample(
        self, picture: Image.Image, size: tuple[int, int], window: tuple[int, int, int, int]
    ) -> Image.Image:
        """The part ``window`` (in pixels of ``size``) of ``picture`` resized to ``size``."""
        if size == picture.size:
            return picture if window == (0, 0, *size) else picture.crop(window)
        across, down = picture.width / size[0], picture.height / size[1]
        box = (window[0] * across, window[1] * down, window[2] * across, window[3] * down)
        part = (window[2] - window[0], window[3] - window[1])
        return picture.resize(part, INTERPOLATIONS[self.interpolation], box=box)

    def describe(self) -> dict[str, Any]:
        """What a client may want to know, as JSON values."""
        return {"color": self.color, "resize": self.resize, "crop": self.crop}


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
