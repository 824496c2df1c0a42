"""Grey pictures, a classifier that tells dark ones from light ones, and how it is measured."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from handlers.bundle import Bundle
from handlers.inputs import ImageInput
from handlers.tasks.image_classification import ImageClassification
from marsmith.accuracy import Evaluation
from marsmith.spec_parts import AccuracySpec

LABELS = ["dark", "light"]


def classifier(threshold: float) -> ImageClassification:
    """Calls a picture light whose mean is above ``threshold``."""
    task = ImageClassification()
    given = ImageInput(resize=(8, 8))
    task.bundle = Bundle("m", "1.0", "image-classification", "eager", "m.pth", LABELS, given)

    def run(images: Any) -> Any:
        light = (images.mean((1, 2, 3)) > threshold).astype(np.float32)
        return (np.stack([1 - light, light], axis=1),)

    task.model = run
    return task


def grey(folder: Path, levels: list[int]) -> Path:
    """One grey PNG of each level, 16x16 pixels."""
    folder.mkdir(parents=True, exist_ok=True)
    for index, level in enumerate(levels):
        Image.new("L", (16, 16), level).save(folder / f"{index:02}.png")
    return folder


def evaluation(folder: Path, task: Any, **changes: Any) -> Evaluation:
    """Of the pictures in ``folder``, with ``changes`` of a model file's accuracy."""
    return Evaluation.of(AccuracySpec(folder=str(folder), **changes), Path(), task)
