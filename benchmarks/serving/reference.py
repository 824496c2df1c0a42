"""What eager PyTorch scores on the pictures with torchvision's own preprocessing, in this process.

It is the model as the other servers load it: ``peers/picture_model.py``.
"""

from __future__ import annotations

import importlib.util
import json
import tempfile
from pathlib import Path

from benchmarks.serving.peer import APPS
from benchmarks.serving.subject import Subject

_BATCH = 16


def score(subject: Subject) -> float | None:
    """Top-1 of a classifier; None for other tasks."""
    if subject.spec.task != "image-classification":
        return None
    spec = importlib.util.spec_from_file_location("picture_model", APPS / "picture_model.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    with tempfile.TemporaryDirectory() as folder:
        model = module.TorchModel(json.loads(subject.describe(Path(folder)).read_text()))
    scored = [one for one in subject.pictures if one.scored]
    inputs = [model.decode(one.data) for one in scored]
    answers = []
    for start in range(0, len(inputs), _BATCH):
        answers += model.predict(inputs[start : start + _BATCH])
    return subject.score(answers, [one.truth for one in scored])
