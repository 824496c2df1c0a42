"""Does the artifact answer like eager? On tensors and answers, at several batch sizes."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from itertools import combinations
from typing import Any, Protocol, runtime_checkable

import numpy as np
from PIL import Image

from handlers.closeness import Closeness
from handlers.contract import file_of
from handlers.errors import (
    LimitError,
    MarsmithError,
    ParityError,
    PluginError,
    RequestError,
)
from handlers.plugins import described
from handlers.runtimes import Array, Arrays
from handlers.task import TaskHandler


@dataclass(frozen=True)
class Report:
    """What was compared and the worst that was found.

    ``tolerance`` is the limit of outputs, or of scores where outputs are not compared one by one;
    ``spread`` is how far the reference's own answers to different pictures lie apart, without which
    agreement would prove nothing. ``largest_difference`` is None where outputs are not compared;
    ``figures`` are what the task measures of answers in its own terms (``Difference.figures``), for
    a detector in two halves with ``largest_features``, the largest difference of a feature map as a
    share of its largest value; ``limits`` are what is allowed of them.
    """

    pictures: int
    batch_sizes: list[int]
    tolerance: float
    largest_difference: float | None
    largest_score_difference: float
    spread: float
    figures: dict[str, float] = field(default_factory=dict)
    limits: dict[str, float] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """The report for the archive; figures rounded to what repeats."""
        report = {k: _short(v) if isinstance(v, float) else v for k, v in asdict(self).items()}
        # An overlap of 0.9987 is not 1.
        return report | {"figures": {k: round(v, 6) for k, v in self.figures.items()}}

    def words(self, reference: str) -> str:
        """The report on one line; ``reference`` is what was compared with."""
        found = self.within(f" of {reference}")
        return f"parity on {self.pictures} pictures at batches {self.batch_sizes}: {found}"

    def within(self, of: str = "") -> str:
        """The differences and what was allowed, for ``words``."""
        outputs = ""
        if self.largest_difference is not None:
            outputs = f"outputs within {self.largest_difference:.1e} and "
        scores = f"scores within {self.largest_score_difference:.1e}"
        return f"{outputs}{scores}{of} (allowed {self.tolerance:.0e})"


@runtime_checkable
class _Featured(Protocol):
    """A model that shows the feature maps between a detector's two halves."""

    def features(self, *arrays: Array) -> Arrays:
        """Those of uint8 pictures."""


@dataclass(frozen=True)
class Expected:
    """What the reference gives for samples, each alone; ``name`` is what errors call it."""

    task: TaskHandler
    images: list[Image.Image]
    arrays: list[Array]
    outputs: list[Arrays]
    answers: list[Any]
    spread: float
    name: str

    @classmethod
    def of(cls, reference: TaskHandler, images: list[Image.Image], name: str = "eager") -> Expected:
        """Ask ``reference``; raises ParityError where it tells the pictures not apart or answers
        one of them not at all, PluginError where its task's ``compare`` finds a difference between
        an answer and itself.

        How far apart they must be is what rounding does in fp32, whatever the artifact's precision:
        the question is whether the reference says anything of the pictures at all.
        """
        arrays = [reference.preprocess(image) for image in images]
        outputs = [_alone(reference, array, name) for array in arrays]
        answers = _asked(reference, images, reference.widest(), name)
        _check_compare(reference, answers[0])
        spread, least = _spread(reference, images, answers, name), Closeness().outputs
        if spread <= least:
            raise ParityError(
                f"the answers of {name} to {len(images)} samples differ by no more than "
                f"{spread:.3g} (rounding alone makes {least:g}): agreement would prove nothing. "
                "Are the weights trained? Give other pictures of this model's kind (--samples, for "
                "verify --images)"
            )
        return cls(reference, images, arrays, outputs, answers, spread, name)

    @cached_property
    def features(self) -> list[Arrays] | None:
        """The feature maps of each picture, where the reference shows them."""
        model: Any = self.task.model
        if not isinstance(model, _Featured):
            return None
        return [model.features(np.stack([array])) for array in self.arrays]


def check(expected: Expected, artifact: TaskHandler) -> Report:
    """Compare ``artifact`` with the reference; raises ParityError at the first miss.

    How close they must be says the artifact's bundle.
    """
    closeness, most = artifact.bundle.closeness, artifact.bundle.artifact_batch
    sizes = sorted({1, min(2, most), most})
    differences = np.zeros(len(expected.arrays))
    beyond: str | None = None
    for size in sizes:
        for indices in _batches(expected.arrays, size):
            outputs = _run(artifact, [expected.arrays[i] for i in indices])
            _check_axes(outputs, len(indices), "the artifact")
            for row, index in enumerate(indices):
                got = tuple(output[row] for output in outputs)
                where = f"sample {index}, batch of {len(indices)}"
                found, further = _compare(expected, index, got, closeness.outputs, where)
                differences[index] = max(differences[index], found)
                beyond = beyond or further
    alike = _alike(expected, differences)
    if beyond:
        raise (ParityError if alike else LimitError)(beyond)
    if alike:
        raise ParityError(alike)
    maps = _compare_features(expected, artifact)
    # Box decoding and thresholds magnify what rounding does; the scores' own limit is wider.
    limit = closeness.outputs if expected.task.continuous else closeness.answers
    # Answers are compared by the reference, which may have other limits of its own.
    held = replace(expected, task=held_to(expected.task, closeness))
    score, figures = _compare_answers(held, artifact, limit, sizes)
    worst = float(differences.max()) if expected.task.continuous else None
    allowed = {name: getattr(closeness, name) for name in artifact.compared_by}
    if maps and closeness.features is not None:
        allowed["features"] = closeness.features
    figures |= maps
    return Report(len(differences), sizes, limit, worst, score, expected.spread, figures, allowed)


def _compare_features(expected: Expected, artifact: TaskHandler) -> dict[str, float]:
    """``largest_features`` of ``Report``; nothing where no half was exported alone, or where the
    reference shows none.

    Raises ParityError, of what is past its limit alone LimitError.
    """
    model: Any = artifact.model
    limit, worst = artifact.bundle.closeness.features, 0.0
    if not isinstance(model, _Featured):
        return {}
    # Here, for it imports torch, which is there where there are halves.
    from handlers.split import Halves

    if not isinstance(model, Halves) or expected.features is None:
        return {}
    for index, (array, wanted) in enumerate(zip(expected.arrays, expected.features, strict=True)):
        found = model.features(np.stack([array]))
        shapes, ours = ([each.shape for each in maps] for maps in (found, wanted))
        if shapes != ours:
            raise ParityError(
                f"sample {index}: the exported half gives feature maps {shapes}, {expected.name} "
                f"has {ours}"
            )
        for number, (one, other) in enumerate(zip(wanted, found, strict=True)):
            place = f"sample {index}, feature map {number} of the exported half"
            worst = max(worst, _share(one, other, limit, place, expected.name))
    return {"largest_features": worst}


def _share(ours: Array, theirs: Array, limit: float | None, place: str, name: str) -> float:
    """The largest difference of two feature maps, as a share of the first's largest value."""
    if not np.isfinite(theirs).all():
        raise ParityError(f"{place}: not finite where {name} is")
    # Of a map of nothing but zeros there is no share.
    share = _distance(ours, theirs) / (float(np.abs(ours).max(initial=0.0)) or 1.0)
    if limit is not None and not share <= limit:
        raise LimitError(
            f"{place}: differs from {name} by {share:.3g} of its largest value (> {limit:g})"
        )
    return share


def _run(artifact: TaskHandler, arrays: list[Array]) -> Arrays:
    try:
        return artifact.model(np.stack(arrays))
    # A runtime fails in ways of its own, often with pages of a compiler behind it.
    except Exception as error:
        raise ParityError(
            f"the artifact fails on a batch of {len(arrays)}: {described(error)}"
        ) from error


def _batches(arrays: list[Array], size: int) -> Iterator[list[int]]:
    """Indices of full batches of pictures of one shape each, that together have all pictures."""
    shapes: dict[tuple[int, ...], list[int]] = {}
    for index, array in enumerate(arrays):
        shapes.setdefault(array.shape, []).append(index)
    for same in shapes.values():
        for start in range(0, len(same), size):
            # Repeated from the front, so that the last batch is full, too.
            yield [same[(start + i) % len(same)] for i in range(size)]


def _alone(handler: TaskHandler, array: Array, name: str) -> Arrays:
    try:
        outputs = handler.model(np.stack([array]))
    except MarsmithError:
        raise
    # A runtime fails in ways of its own.
    except Exception as error:
        raise ParityError(f"{name} fails on a sample: {described(error)}") from error
    _check_axes(outputs, 1, name)
    if not all(np.isfinite(output).all() for output in outputs):
        raise ParityError(f"the outputs of {name} itself are not finite: look at the weights")
    return tuple(output[0] for output in outputs)


def _check_axes(outputs: Arrays, count: int, name: str) -> None:
    for number, output in enumerate(outputs):
        if output.shape[:1] != (count,):
            raise ParityError(
                f"output {number} of {name} has shape {output.shape} for a batch of {count}: its "
                "first axis must be the batch"
            )


def _compare(
    expected: Expected, index: int, got: Arrays, tolerance: float, where: str
) -> tuple[float, str | None]:
    """Largest absolute difference, and what is further off than ``tolerance``, if anything is.

    Raises ParityError for shape, dtype or NaN.

    Outputs that are not continuous (ids, boxes in any number) are compared as answers alone.
    """
    task, name, worst = expected.task, expected.name, 0.0
    beyond: str | None = None
    if len(expected.outputs[index]) != len(got):
        raise ParityError(f"{where}: {len(got)} outputs, {name} has {len(expected.outputs[index])}")
    for number, (ours, theirs) in enumerate(zip(expected.outputs[index], got, strict=True)):
        place = f"{where}, output {number}"
        same_shape = ours.shape == theirs.shape if task.continuous else ours.ndim == theirs.ndim
        if not same_shape or ours.dtype != theirs.dtype:
            raise ParityError(
                f"{place}: {theirs.dtype} {theirs.shape}, {name} has {ours.dtype} {ours.shape}"
            )
        if not np.isfinite(theirs).all():
            raise ParityError(f"{place}: not finite where {name} is")
        if task.continuous:
            difference = _distance(ours, theirs)
            if beyond is None and not difference <= tolerance:
                beyond = f"{place}: differs from {name} by {difference:.3g} (> {tolerance:g})"
            worst = max(worst, difference)
    return worst, beyond


def _alike(expected: Expected, differences: Array) -> str | None:
    """What is wrong with an artifact that is no nearer to the reference than one answer to all
    pictures; None where it is nearer.

    A tolerance that is wide beside the outputs themselves would let that pass. One answer c to all
    is by the triangle inequality, d(e_i, e_j) <= d(e_i, c) + d(c, e_j), on average at least half as
    far from the reference's answers e as these are from each other.
    """
    if not expected.task.continuous:
        return None
    pairs = [
        max(map(_distance, one, other), default=0.0)
        for one, other in combinations(expected.outputs, 2)
        if [each.shape for each in one] == [each.shape for each in other]
    ]
    if not pairs:
        return None
    apart, error = float(np.mean(pairs)), float(differences.mean())
    if error < apart / 2:
        return None
    return (
        f"outputs differ from {expected.name} by {error:.3g} on average, and its own for two "
        f"pictures by {apart:.3g}: one answer to all of them could be as near"
    )


def _distance(ours: Array, theirs: Array) -> float:
    return float(np.abs(ours.astype(np.float64) - theirs).max(initial=0.0))


def _compare_answers(
    expected: Expected, artifact: TaskHandler, tolerance: float, sizes: Sequence[int]
) -> tuple[float, dict[str, float]]:
    """Largest move of a score, and the task's own figures of all pictures.

    The decision may differ only where the reference is undecided.
    """
    task, worst, options = expected.task, 0.0, expected.task.widest()
    figures: dict[str, float] = {}
    seen: set[int] = set()
    for index, got, where in _answers(expected, artifact, sizes, options):
        wanted = expected.answers[index]
        difference = task.compare(wanted, got, **options)
        same = difference.same or not is_decided(task, wanted, tolerance, options)
        if not same or not difference.score <= tolerance:
            kind = LimitError if np.isfinite(difference.score) else ParityError
            raise kind(
                f"{where}: {difference.detail}, scores differ by {difference.score:.3g} "
                f"(> {tolerance:g})"
            )
        worst = max(worst, float(difference.score))
        for name, value in difference.figures.items():
            # What is counted is counted once a picture.
            if not (index in seen and _is_count(name)):
                figures[name] = joined(name, figures.get(name), value)
        seen.add(index)
    return worst, figures


def _check_compare(task: TaskHandler, answer: Any) -> None:
    """An answer is as itself, or what is found between two says nothing; raises PluginError."""
    found = task.compare(answer, answer, **task.widest())
    if not found.same or found.score != 0:
        raise PluginError(
            f"{file_of(type(task))}: compare of an answer with itself gives same={found.same}, "
            f"score={found.score:g}: it must give same=True, score=0"
        )


def is_decided(task: TaskHandler, answer: Any, tolerance: float, options: dict[str, Any]) -> bool:
    """Whether another decision than in ``answer`` is a miss: not where the best two lie so close
    that scores within the tolerance may change places. A limit of the task's own allows already
    what it allows."""
    return bool(task.compared_by) or task.margin(answer, **options) > 2 * tolerance


def _asked(
    task: TaskHandler, images: list[Image.Image], options: dict[str, Any], name: str
) -> list[Any]:
    """Its answers; raises ParityError where it has none, as a segmenter that computes NaN, whose
    outputs are bytes."""
    try:
        return task.answer(images, **options)
    except RequestError as error:
        raise ParityError(f"{name} does not answer a sample: {error}") from error


def _answers(
    expected: Expected, artifact: TaskHandler, sizes: Sequence[int], options: dict[str, Any]
) -> Iterator[tuple[int, Any, str]]:
    """Answers with the index of their picture and where they come from; in full batches of every
    size where outputs were not compared so. Raises ParityError where there is none."""
    if expected.task.continuous:
        answers = _asked(artifact, expected.images, options, "the artifact")
        for index, answer in enumerate(answers):
            yield index, answer, f"sample {index}"
        return
    for size in sizes:
        for indices in _batches(expected.arrays, size):
            images = [expected.images[i] for i in indices]
            answers = _asked(artifact, images, options, f"the artifact, in a batch of {size},")
            for index, answer in zip(indices, answers, strict=True):
                yield index, answer, f"sample {index}, batch of {size}"


def _is_count(name: str) -> bool:
    return not name.startswith(("least_", "largest_"))


def joined(name: str, one: float | None, other: float) -> float:
    """A figure of two sets of pictures, of which one may have none; see ``Difference``."""
    if one is None:
        return other
    if name.startswith("least_"):
        return min(one, other)
    return max(one, other) if name.startswith("largest_") else one + other


def held_to(task: TaskHandler, closeness: Closeness) -> TaskHandler:
    """The same handler with other limits."""
    made = copy.copy(task)
    made.bundle = replace(task.bundle, closeness=closeness)
    return made


def _spread(
    reference: TaskHandler, images: list[Image.Image], answers: list[Any], name: str
) -> float:
    """Largest difference between the answer to the first picture and to any other, as of fp32.

    All as large as the first: of another size a mask or a box is another in any case.
    """
    exact, options = held_to(reference, Closeness()), reference.widest()
    size = images[0].size
    answers = [
        answer if image.size == size else _asked(reference, [image.resize(size)], options, name)[0]
        for image, answer in zip(images, answers, strict=True)
    ]
    differences = [exact.compare(answers[0], other, **options) for other in answers[1:]]
    return max((each.score if each.same else 1.0 for each in differences), default=0.0)


def _short(value: float) -> float:
    """Two significant digits: the last bits of a maximum are no fact about the model."""
    return float(f"{value:.2g}")
