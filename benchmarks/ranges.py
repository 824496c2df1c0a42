"""Do other ranges make ONNX Runtime's int8 better than the extremes that it takes here?

``python -m benchmarks.ranges MODEL --images DIR [--weights FILE] [--seed N]`` prints a table. The
pictures, which need labels, are drawn into two halves; each recipe is calibrated on either and
measured on the other, so that every picture counts once and none calibrates what it measures.
Histograms are collected picture by picture: of all pictures at once they take gigabytes.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np

from handlers import pictures
from handlers.bundle import Bundle
from handlers.runtimes import Array
from handlers.task import TaskHandler
from marsmith import exporting, preparing
from marsmith.accuracy import Evaluation
from marsmith.spec import load

PROJECT = Path(__file__).parents[1]
# Of onnxruntime.quantization: the method, and the share of values that a range must hold, in %.
RECIPES: dict[str, tuple[str, float | None]] = {
    "extremes": ("MinMax", None),
    **{f"percentile {share}": ("Percentile", share) for share in (99.9999, 99.999, 99.99, 99.9)},
    "entropy": ("Entropy", None),
}
Half = Sequence[tuple[Path, Any]]


class Strided:
    """Calibration pictures that ONNX Runtime may ask for one by one."""

    def __init__(self, reader: Any) -> None:
        self._feeds = list(iter(reader.get_next, None))
        self.set_range(0, len(self._feeds))

    def __len__(self) -> int:
        return len(self._feeds)

    def set_range(self, start_index: int, end_index: int) -> None:
        self._next: Iterator[Mapping[str, Array]] = iter(self._feeds[start_index:end_index])

    def get_next(self) -> Mapping[str, Array] | None:
        return next(self._next, None)


def main(words: list[str]) -> int:
    """Measure every recipe and print a line for each."""
    parser = argparse.ArgumentParser(prog="benchmarks.ranges")
    parser.add_argument("model")
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args(words)
    changes: dict[str, Any] = {"runtime": "onnx"}
    if given.weights is not None:
        changes["weights"] = {"file": str(given.weights.absolute())}
    spec = load(PROJECT / f"models/{given.model}.yaml", changes)
    with tempfile.TemporaryDirectory() as temporary:
        exact = Path(temporary) / "exact"
        exact.mkdir()
        module, bundle = preparing.prepare(spec, PROJECT, exact)
        eager = preparing.reference(bundle, module)
        labelled = eager.labelled(given.images)
        if len(labelled) < 2:
            parser.error(f"{given.images} has no labels (docs/precision.md says how to give them)")
        random.Random(given.seed).shuffle(labelled)
        halves = [labelled[0::2], labelled[1::2]]
        example = _pixels(eager, labelled[0][0])
        exporting.artifact(bundle, module, example, exact).make()
        answers = [_answers(eager, half) for half in halves]
        truths = [truth for half in halves for _, truth in half]
        expected = [answer for half in answers for answer in half]
        print(f"| | {eager.metric_name} | same | move |\n|---|---|---|---|")
        print(_row("fp32", eager, truths, expected, expected), flush=True)
        for name in RECIPES:
            found = []
            for ours, other in (halves, halves[::-1]):
                folder = Path(tempfile.mkdtemp(dir=temporary))
                task = _quantised(name, bundle, module, eager, other, exact, folder)
                found += _answers(task, ours)
            print(_row(name, eager, truths, expected, found), flush=True)
    return 0


def _quantised(
    name: str,
    bundle: Bundle,
    module: Any,
    eager: TaskHandler,
    half: Half,
    exact: Path,
    folder: Path,
) -> TaskHandler:
    """The artifact in int8 that the runtime exports, but for the ranges of its activations."""
    from onnxruntime import quantization

    export, (method, share) = quantization.quantize_static, RECIPES[name]
    options: dict[str, float] = {} if method == "MinMax" else {"CalibStridedMinMax": 1}
    options |= {} if share is None else {"CalibPercentile": share}

    def quantize(model: Any, path: Path, reader: Any, **given: Any) -> None:
        chosen = getattr(quantization.CalibrationMethod, method)
        given |= {"calibrate_method": chosen, "extra_options": options}
        export(model, path, Strided(reader), **given)

    int8 = replace(bundle, precision="int8")
    batches = [np.stack([_pixels(eager, path)]) for path, _ in half]
    basis = exact / bundle.artifact
    with patch.object(quantization, "quantize_static", quantize):
        made = exporting.artifact(int8, module, batches[0][0], folder, batches, exact=basis)
        made.make()
    return made.bound()


def _pixels(task: TaskHandler, path: Path) -> Array:
    return task.preprocess(pictures.decode(path.read_bytes(), task.bundle.limits.max_pixels)).copy()


def _answers(task: TaskHandler, half: Half) -> list[Any]:
    limit = task.bundle.limits.max_pixels
    return Evaluation([path for path, _ in half], None, limit).answers(task)


def _row(
    name: str, task: TaskHandler, truths: Sequence[Any], expected: list[Any], found: list[Any]
) -> str:
    """The metric, the share of equal decisions, and the mean of the largest move of a score."""
    metric = task.metric([task.evidence(*each) for each in zip(found, truths, strict=True)])
    options = task.widest()
    both = [task.compare(*each, **options) for each in zip(expected, found, strict=True)]
    same = np.mean([each.same for each in both])
    move = np.mean([each.score for each in both])
    return f"| {name} | {metric:.3f} | {same:.3f} | {move:.3f} |"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
