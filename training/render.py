"""One seeded scene generator for classification, detection and segmentation.

A scene is made of a textured background, clutter, and shapes that may overlap or be cut off by the
border, all under uneven light. Each (split, seed) has a random stream of its own, so a picture of
one split can never be a picture of another.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
from PIL import Image

from training.shapes import OUTLINES, SHAPES, Array, Path, coverage, place
from training.textures import Size, background, blend, blur, clutter, colour, light, pattern

Split = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = ("train", "val", "test")
LABELS = ("background", *SHAPES)
"""Names of the class ids in boxes and maps."""

_MOST_OBJECTS = 6
_LEAST_VISIBLE = 0.55
_LEAST_AREA = 0.002
_LEAST_CONTRAST = 0.4


@dataclass(frozen=True)
class Scene:
    """A picture and everything that is known about it; n objects, the last one on top."""

    image: Image.Image
    boxes: npt.NDArray[np.float32]
    """float32 [n, 4]: xmin, ymin, xmax, ymax of the visible part, in pixels, ends exclusive."""
    class_ids: npt.NDArray[np.int64]
    """int64 [n]: index in LABELS, so never 0."""
    masks: npt.NDArray[np.bool_]
    """bool [n, height, width]: the visible part of each object."""
    semantic: npt.NDArray[np.uint8]
    """uint8 [height, width]: index in LABELS of what is seen at each pixel."""


def scene(
    seed: int,
    split: Split,
    size: Size | None = None,
    *,
    dominant: int | None = None,
) -> Scene:
    """Render the scene of this seed and split.

    `size` is (width, height) in pixels, drawn at random when None. `dominant` is an index in
    SHAPES: the scene then has one large object of that class near its centre, and only clutter
    besides; without it there are one to six objects of any class.
    """
    rng = np.random.default_rng([SPLITS.index(split), seed, dominant is not None])
    size = size or _random_size(rng)
    canvas = clutter(rng, background(rng, size), int(rng.integers(1, 7)))
    masks: list[npt.NDArray[np.bool_]] = []
    class_ids: list[int] = []
    for _ in range(1 if dominant is not None else rng.integers(1, _MOST_OBJECTS + 1)):
        index = int(rng.integers(len(SHAPES))) if dominant is None else dominant
        paths = _placed(rng, SHAPES[index], size, dominant is not None, whole=not masks)
        alpha = coverage(size, paths)
        mask = alpha > 0.5
        hidden = any((old & ~mask).sum() < _LEAST_VISIBLE * old.sum() for old in masks)
        if hidden or mask.mean() < _LEAST_AREA:
            continue
        canvas = _paint(rng, canvas, paths, alpha)
        masks = [*(old & ~mask for old in masks), mask]
        class_ids.append(index + 1)
    pixels = np.round(light(rng, canvas) * 255).astype(np.uint8)
    return _annotated(Image.fromarray(pixels), class_ids, np.stack(masks))


def _random_size(rng: np.random.Generator) -> Size:
    short = int(rng.integers(208, 289))
    long = int(short * rng.uniform(1, 1.6))
    return (long, short) if rng.random() < 0.7 else (short, long)


def _placed(
    rng: np.random.Generator, name: str, size: Size, dominant: bool, whole: bool
) -> list[Path]:
    """Outlines of one shape in picture coordinates."""
    short, extent = min(size), np.array(size)
    if dominant:
        radius = rng.uniform(0.2, 0.42) * short
        slack = 0.55 * short - radius
        centre = extent / 2 + rng.uniform(-1, 1, 2) * slack
    else:
        radius = rng.uniform(0.11, 0.28) * short
        margin = radius if whole or rng.random() < 0.7 else 0.35 * radius
        centre = rng.uniform(margin, extent - margin)
    return [path + centre for path in place(rng, OUTLINES[name](rng), radius)]


def _contrasting(rng: np.random.Generator, behind: Array) -> Array:
    """A colour that stands out from the colour `behind` (both float32 [3])."""
    tries = [colour(rng) for _ in range(8)]
    distances = [float(np.linalg.norm(one - behind)) for one in tries]
    for one, distance in zip(tries, distances, strict=True):
        if distance > _LEAST_CONTRAST:
            return one
    return tries[int(np.argmax(distances))]


def _paint(rng: np.random.Generator, canvas: Array, paths: list[Path], alpha: Array) -> Array:
    """The canvas with one textured object, its shadow and, sometimes, a rim."""
    size = canvas.shape[1], canvas.shape[0]
    reach = float(np.ptp(paths[0], axis=0).max())
    behind = np.average(canvas.reshape(-1, 3), axis=0, weights=alpha.ravel() + 1e-6)
    if rng.random() < 0.6:
        offset = rng.uniform(-0.08, 0.08, 2) * reach
        shadow = blur(coverage(size, [path + offset for path in paths]), 0.04 * reach)
        canvas = canvas * (1 - np.float32(rng.uniform(0.2, 0.6)) * shadow)[..., None]
    surface = np.broadcast_to(_contrasting(rng, behind), canvas.shape)
    if rng.random() < 0.6:
        weave = pattern(rng, size) * np.float32(rng.uniform(0.2, 0.9))
        surface = blend(surface, _contrasting(rng, behind), weave)
    canvas = blend(canvas, surface, alpha)
    if rng.random() < 0.3:
        rim = coverage(size, [np.vstack([path, path[:2]]) for path in paths], 0.03 * reach)
        canvas = blend(canvas, colour(rng, value=0.5), rim * alpha)
    return canvas


def _annotated(image: Image.Image, class_ids: list[int], masks: npt.NDArray[np.bool_]) -> Scene:
    semantic = np.zeros(masks.shape[1:], np.uint8)
    boxes = np.zeros((len(class_ids), 4), np.float32)
    for index, (class_id, mask) in enumerate(zip(class_ids, masks, strict=True)):
        semantic[mask] = class_id
        columns, rows = np.flatnonzero(mask.any(axis=0)), np.flatnonzero(mask.any(axis=1))
        boxes[index] = columns[0], rows[0], columns[-1] + 1, rows[-1] + 1
    return Scene(image, boxes, np.array(class_ids, np.int64), masks, semantic)
