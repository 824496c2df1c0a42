"""Labelled pictures: a folder of them, or rendered ones; and the same in other sizes."""

from __future__ import annotations

import io
import random
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from handlers.errors import SpecError
from handlers.integrity import sha256
from handlers.task import TaskHandler

# Width and height of a photograph of 12 megapixels, upright or not, and the longer side of a
# thumbnail.
LARGE = (4032, 3024)
SMALL = 160
# A photograph of 12 megapixels takes seconds to make, and wrk holds every body in memory.
_LARGE_COUNT = 8
_SEED = 5
# Standard deviation of the noise of a photograph, in levels of 255: without it an enlarged picture
# would be a JPEG of a few hundred kilobytes, which no camera writes.
_NOISE = 4.0


@dataclass(frozen=True)
class Picture:
    """An encoded picture and its truth: a class index, or what the task's ``metric`` takes.

    One that int8 was calibrated with is asked, but not ``scored``.
    """

    name: str
    data: bytes
    truth: Any
    scored: bool = True


def rendered(task: str, count: int) -> list[Picture]:
    """Held-out pictures that no training script has read, of the models with weights in git."""
    from training import heldout

    if task == "image-classification":
        shapes = heldout.shapes(count)
        return [Picture(f"shape{i:04}.jpg", *each) for i, each in enumerate(shapes)]
    scenes = heldout.scenes(count)
    truths = [
        (boxes, classes, np.zeros_like(classes)) if task == "object-detection" else semantic
        for _, boxes, classes, semantic in scenes
    ]
    return [Picture(f"scene{i:04}.jpg", scenes[i][0], truth) for i, truth in enumerate(truths)]


def labelled(
    folder: Path,
    handler: TaskHandler,
    count: int | None = None,
    calibrated: Collection[str] = (),
) -> list[Picture]:
    """Pictures of a folder and its labels, as the handler's task reads them.

    Those with a sha256 in ``calibrated`` are not scored. At most ``count``, spread
    evenly over the names. Raises SpecError where it has no labels.
    """
    named = handler.labelled(folder)
    if not named:
        raise SpecError(f"no labelled pictures in {folder}: docs/precision.md says how to label")
    if count is not None and count < len(named):
        named = [named[i * len(named) // count] for i in range(count)]
    found = [
        Picture(path.name, path.read_bytes(), truth, sha256(path) not in calibrated)
        for path, truth in named
    ]
    if not any(one.scored for one in found):
        raise SpecError(f"int8 is calibrated with every picture of {folder}: give others, too")
    return found


def resized(pictures: Sequence[Picture], size: str) -> list[Picture]:
    """The pictures as they are ("real"), as 12-megapixel photographs, or as thumbnails.

    Photographs are a few seeded ones, enlarged and with noise of a camera's; JPEG at quality 90.
    """
    if size == "real":
        return list(pictures)
    chosen = list(pictures)
    if size == "large":
        chosen = random.Random(_SEED).sample(chosen, min(_LARGE_COUNT, len(chosen)))
    enlarge = _enlarged if size == "large" else _thumbnail
    return [replace(one, data=enlarge(one.data, i)) for i, one in enumerate(chosen)]


def _enlarged(data: bytes, number: int) -> bytes:
    picture = Image.open(io.BytesIO(data)).convert("RGB")
    sides = LARGE if picture.width >= picture.height else LARGE[::-1]
    large = np.asarray(picture.resize(sides, Image.Resampling.BICUBIC)).astype(np.float32)
    noise = np.random.default_rng(_SEED + number).standard_normal(large.shape, np.float32)
    return _jpeg(Image.fromarray((large + _NOISE * noise).clip(0, 255).astype(np.uint8)))


def _thumbnail(data: bytes, number: int) -> bytes:
    picture = Image.open(io.BytesIO(data)).convert("RGB")
    picture.thumbnail((SMALL, SMALL))
    return _jpeg(picture)


def _jpeg(picture: Image.Image) -> bytes:
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=90)
    return file.getvalue()
