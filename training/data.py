"""The pictures and digits that the weights are trained and judged on, as encoded files.

Networks are trained on what a service decodes, so everything goes through JPEG or PNG bytes.
"""

import io
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from typing import TypeVar

import numpy as np
import numpy.typing as npt
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from training.render import Split, scene
from training.shapes import SHAPES
from training.textures import Size

Shape = tuple[bytes, int]
"""JPEG bytes and an index in SHAPES."""
AnnotatedScene = tuple[bytes, npt.NDArray[np.float32], npt.NDArray[np.int64], npt.NDArray[np.uint8]]
"""JPEG bytes, boxes [n, 4] xyxy, class ids [n], semantic map [height, width]; see Scene."""

JPEG_QUALITY = 90
DIGIT_PIXELS = 64

_Record = TypeVar("_Record")


def jpeg(image: Image.Image) -> bytes:
    """The picture as a JPEG file."""
    file = io.BytesIO()
    image.save(file, "JPEG", quality=JPEG_QUALITY)
    return file.getvalue()


def decode(data: bytes) -> Image.Image:
    """The RGB picture in an image file."""
    return Image.open(io.BytesIO(data)).convert("RGB")


def shape(split: Split, seed: int, size: Size | None = None) -> Shape:
    """One dominant shape among clutter; the classes follow each other with the seed."""
    label = seed % len(SHAPES)
    return jpeg(scene(seed, split, size, dominant=label).image), label


def annotated_scene(split: Split, seed: int, size: Size | None = None) -> AnnotatedScene:
    """A scene of one to six shapes and its annotations."""
    made = scene(seed, split, size)
    return jpeg(made.image), made.boxes, made.class_ids, made.semantic


def _render(make: Callable[[int], _Record], count: int) -> list[_Record]:
    with ProcessPoolExecutor(max_workers=2) as pool:
        return list(pool.map(make, range(count), chunksize=64))


def shapes(split: Split, count: int) -> list[Shape]:
    """The first `count` classification pictures of a split, about 10 ms each."""
    return _render(partial(shape, split), count)


def annotated_scenes(split: Split, count: int) -> list[AnnotatedScene]:
    """The first `count` scenes of a split, about 15 ms each."""
    return _render(partial(annotated_scene, split), count)


def digits(split: Split) -> list[tuple[bytes, int]]:
    """PNG bytes and value of scikit-learn's 8x8 digits: 70 % train, 10 % val, 20 % test.

    The pictures are grey and enlarged to 64x64 without smoothing.
    """
    pixels, values = load_digits(return_X_y=True)
    x_train, x_rest, y_train, y_rest = train_test_split(
        pixels, values, test_size=0.3, random_state=0, stratify=values
    )
    x_val, x_test, y_val, y_test = train_test_split(
        x_rest, y_rest, test_size=2 / 3, random_state=0, stratify=y_rest
    )
    chosen = {"train": (x_train, y_train), "val": (x_val, y_val), "test": (x_test, y_test)}
    return [(_digit_png(row), int(value)) for row, value in zip(*chosen[split], strict=True)]


def _digit_png(row: npt.NDArray[np.float64]) -> bytes:
    grey = np.round(row.reshape(8, 8) * (255 / 16)).astype(np.uint8)
    file = io.BytesIO()
    enlarged = Image.fromarray(grey).resize((DIGIT_PIXELS,) * 2, Image.Resampling.NEAREST)
    enlarged.save(file, "PNG")
    return file.getvalue()
