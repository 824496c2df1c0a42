"""Does the artifact answer like eager? On tensors and answers, at several batch sizes."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from PIL import Image

from handlers.errors import ParityError
from handlers.runtimes import Array, Arrays
from handlers.task import TaskHandler


@dataclass(frozen=True)
class Report:
    """What was compared and the worst that was found; ``spread`` is how far eager's own outputs
    for different pictures lie apart, without which agreement would prove nothing."""

    pictures: int
    batch_sizes: list[int]
    tolerance: float
    largest_difference: float
    largest_score_difference: float
    spread: float

    def to_json(self) -> dict[str, Any]:
        """The report for the archive; figures rounded to what repeats."""
        return {k: _short(v) if isinstance(v, float) else v for k, v in asdict(self).items()}


def check(reference: TaskHandler, artifact: TaskHandler, images: list[Image.Image]) -> Report:
    """Compare ``artifact`` with the eager ``reference``; raises ParityError at the first miss.

    How close they must be says the artifact's bundle.
    """
    tolerance = artifact.bundle.closeness.outputs
    sizes = sorted({1, min(2, artifact.bundle.artifact_batch), artifact.bundle.artifact_batch})
    arrays = [reference.preprocess(image) for image in images]
    expected = [_alone(reference, array) for array in arrays]
    spread = _spread(reference, images)
    if spread <= tolerance:
        raise ParityError(
            f"eager's answers to {len(images)} samples differ by no more than {spread:.3g}, within "
            f"the tolerance {tolerance:g}: agreement would prove nothing. Are the weights trained? "
            "Give pictures of this model's kind with --samples"
        )
    worst = 0.0
    for size in sizes:
        for start in range(0, len(arrays), size):
            # Repeated from the front, so that the last batch is full, too.
            indices = [(start + i) % len(arrays) for i in range(size)]
            indices = [i for i in indices if arrays[i].shape == arrays[start].shape]
            outputs = artifact.model(np.stack([arrays[i] for i in indices]))
            if lengths := {len(output) for output in outputs} - {len(indices)}:
                raise ParityError(f"a batch of {len(indices)} gave outputs of length {lengths}")
            for row, index in enumerate(indices):
                got = tuple(output[row] for output in outputs)
                where = f"sample {index}, batch of {len(indices)}"
                worst = max(worst, _compare(reference, expected[index], got, tolerance, where))
    # Box decoding and thresholds magnify what rounding does; the scores' own limit is wider.
    limit = tolerance if reference.continuous else artifact.bundle.closeness.answers
    score = _compare_answers(reference, artifact, images, limit)
    return Report(len(images), sizes, tolerance, worst, score, spread)


def _alone(handler: TaskHandler, array: Array) -> Arrays:
    outputs = handler.model(np.stack([array]))
    if not all(np.isfinite(output).all() for output in outputs):
        raise ParityError("eager's own outputs are not finite: look at the weights")
    return tuple(output[0] for output in outputs)


def _compare(
    task: TaskHandler, expected: Arrays, got: Arrays, tolerance: float, where: str
) -> float:
    """Largest absolute difference; raises ParityError for shape, dtype, NaN or too much of it.

    Outputs that are not continuous (ids, boxes in any number) are compared as answers alone.
    """
    if len(expected) != len(got):
        raise ParityError(f"{where}: {len(got)} outputs, eager has {len(expected)}")
    worst = 0.0
    for number, (ours, theirs) in enumerate(zip(expected, got, strict=True)):
        place = f"{where}, output {number}"
        same_shape = ours.shape == theirs.shape if task.continuous else ours.ndim == theirs.ndim
        if not same_shape or ours.dtype != theirs.dtype:
            raise ParityError(
                f"{place}: {theirs.dtype} {theirs.shape}, eager has {ours.dtype} {ours.shape}"
            )
        if not np.isfinite(theirs).all():
            raise ParityError(f"{place}: not finite where eager is")
        if task.continuous:
            difference = float(np.abs(ours.astype(np.float64) - theirs).max(initial=0.0))
            if not difference <= tolerance:
                raise ParityError(
                    f"{place}: differs from eager by {difference:.3g} (> {tolerance:g})"
                )
            worst = max(worst, difference)
    return worst


def _compare_answers(
    reference: TaskHandler,
    artifact: TaskHandler,
    images: list[Image.Image],
    tolerance: float,
) -> float:
    """Largest move of a score; the decision may differ only where eager itself is undecided."""
    worst, options = 0.0, reference.widest()
    answers = reference.answer(images, **options), artifact.answer(images, **options)
    for index, (expected, got) in enumerate(zip(*answers, strict=True)):
        difference = reference.compare(expected, got, **options)
        decided = reference.margin(expected, **options) > 2 * tolerance
        if (decided and not difference.same) or not difference.score <= tolerance:
            raise ParityError(
                f"sample {index}: {difference.detail}, scores differ by {difference.score:.3g} "
                f"(> {tolerance:g})"
            )
        worst = max(worst, difference.score)
    return worst


def _spread(reference: TaskHandler, images: list[Image.Image]) -> float:
    """Largest difference between eager's answers to the first picture and to any other."""
    options = reference.widest()
    first, *others = reference.answer(images, **options)
    differences = [reference.compare(first, other, **options) for other in others]
    return max((each.score if each.same else 1.0 for each in differences), default=0.0)


def _short(value: float) -> float:
    """Two significant digits: the last bits of a maximum are no fact about the model."""
    return float(f"{value:.2g}")
