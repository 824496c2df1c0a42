"""The README's accuracies, recomputed from the archives' answers on the held-out pictures."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from handlers import pictures
from handlers.bundle import Bundle
from handlers.plugins import load_task
from marsmith.archive import unpack
from training import heldout

HELD_OUT = {
    "image-classification": lambda name: heldout.digits() if "digits" in name else heldout.shapes(),
    "semantic-segmentation": lambda name: [(data, ids) for data, _, _, ids in heldout.scenes()],
    "object-detection": lambda name: [
        (data, (boxes, classes, np.zeros_like(classes)))
        for data, boxes, classes, _ in heldout.scenes()
    ],
}


def _stated(project: Path) -> dict[str, float]:
    text = (project / "README.md").read_text("utf-8")
    rows = re.findall(r"^\| `(\w+)` \|.*\| [\w -]+ (0\.\d+)(?: \(.*\))? \|$", text, re.MULTILINE)
    return {name: float(value) for name, value in rows}


def test_every_default_archive_has_a_stated_accuracy(project: Path, archives: Path) -> None:
    built = {path.stem.rpartition("-")[0] for path in archives.glob("*.mar")}
    assert built == set(_stated(project))


def test_accuracy_is_as_stated(project: Path, archives: Path, tmp_path: Path) -> None:
    for archive in sorted(archives.glob("*.mar")):
        folder = tmp_path / archive.stem
        unpack(archive, folder)
        bundle = Bundle.read(folder)
        task = load_task(bundle.task)()
        task.bind(bundle, folder)
        held_out: list[tuple[bytes, Any]] = HELD_OUT[bundle.task](bundle.name)
        images = [pictures.decode(data, bundle.limits.max_pixels) for data, _ in held_out]
        answers = task.answer(images, **task.widest())
        truths = [truth for _, truth in held_out]
        reached = task.metric([task.evidence(*each) for each in zip(answers, truths, strict=True)])
        # As many digits as are stated; rounding differs between processors.
        assert reached == pytest.approx(_stated(project)[bundle.name], abs=0.003), bundle.name
