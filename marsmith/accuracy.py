"""Is the artifact as accurate as eager? A metric on pictures that nothing was calibrated on."""

from __future__ import annotations

import hashlib
import math
import random
from collections.abc import Callable, Collection, Iterator
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from handlers.contract import file_of
from handlers.errors import AccuracyError, PluginError, RequestError, SpecError
from handlers.integrity import sha256
from handlers.runtimes import Array
from handlers.task import TaskHandler
from handlers.truths import Mask
from marsmith import samples
from marsmith.spec_parts import AccuracySpec

CONFIDENCE = 0.95
# Answered at a time, so that a thousand decoded pictures need not fit into memory.
_CHUNK = 16
# By how much sums of many shares may leave the range of 0 to 1.
_ROUNDING = 1e-6


@dataclass(frozen=True)
class Accuracy:
    """The metric of eager's fp32 and of the artifact on the same pictures.

    ``truth`` is "labels" or, for pictures without, "eager": then the metric says how far the two
    agree. ``drop`` is ``reference`` less ``artifact``, ``interval`` its 95 % bootstrap confidence
    interval (percentiles of ``resamples`` draws of the pictures, seeded), ``data`` the sha256 of
    all pictures and truths. An artifact that others exported has no ``reference``, ``drop`` and
    what is ``allowed``: they are None, and ``interval`` is that of ``artifact``. ``unlabelled``
    counts the folder's pictures that have no label where others have one.
    """

    metric: str
    truth: str
    pictures: int
    reference: float | None
    artifact: float
    drop: float | None
    interval: tuple[float, float]
    allowed: float | None
    data: str
    resamples: int
    unlabelled: int = 0

    @property
    def passed(self) -> bool:
        """Whether the drop is within what is allowed."""
        return self.drop is None or self.allowed is None or self.drop <= self.allowed + 1e-9

    def __str__(self) -> str:
        low, high = self.interval
        without = f" ({self.unlabelled} more without a label: left out)" if self.unlabelled else ""
        if self.drop is None:
            return (
                f"{self.metric} {self.artifact:.4f} on {self.pictures} pictures{without}, 95 % "
                f"interval {low:.4f} to {high:.4f} (there is no fp32 to compare with)"
            )
        truth = "" if self.truth == "labels" else " (agreement with eager: no labels)"
        return (
            f"{self.metric} {self.artifact:.4f}, reference {self.reference:.4f} on {self.pictures} "
            f"pictures{truth}{without}: drop {self.drop:+.4f}, 95 % interval {low:+.4f} to "
            f"{high:+.4f}, allowed {self.allowed:g}"
        )

    def to_json(self) -> dict[str, Any]:
        """The report for the archive."""
        return asdict(self)


@dataclass(frozen=True)
class Evaluation:
    """Pictures to measure on, with their truths where the folder has labels (else None).

    ``unlabelled`` counts those that are left out there, for they have none.
    """

    files: list[Path]
    truths: list[Any] | None
    max_pixels: int
    unlabelled: int = 0

    @classmethod
    def of(
        cls, spec: AccuracySpec, root: Path, task: TaskHandler, without: Collection[str] = ()
    ) -> Evaluation:
        """The pictures of a spec's folder; those with a sha256 in ``without`` are left out.

        Raises SpecError where there is none, or none is left.
        """
        folder = root / spec.folder
        samples.check(folder, samples.ACCURACY)
        labelled = task.labelled(folder)
        found = labelled or [
            (path, None) for path in samples.files(folder, samples.ACCURACY, deep=True)
        ]
        left = [each for each in found if sha256(each[0]) not in without]
        if not left:
            raise SpecError(
                f"accuracy.folder: all {len(found)} pictures of {spec.folder} were taken to "
                "calibrate with, and none of them may measure: give other pictures, or calibrate "
                f"with fewer, as by --calibrate-count {max(1, len(found) // 2)} "
                "(calibration.count; 100 if not given)"
            )
        if spec.count is not None and spec.count < len(left):
            drawn = random.Random(spec.seed).sample(left, spec.count)
            left = sorted(drawn, key=lambda each: each[0])
        truths = [truth for _, truth in left] if labelled else None
        unlabelled = len({*samples.found(folder, deep=True)} - {path for path, _ in found})
        limit = task.bundle.limits.max_pixels
        made = cls([path for path, _ in left], truths, limit, unlabelled)
        # It reads each truth: a wrong one is told before anything is exported.
        _ = made.digest
        return made

    def answers(self, task: TaskHandler, name: str = "eager") -> list[Any]:
        """The task's answers to all pictures, with its widest options; errors call it ``name``.

        Raises SpecError for a picture that cannot be read, AccuracyError for one without an answer.
        """
        options = task.widest()
        found: list[Any] = []
        for files in self._chunks():
            images = [samples.opened(path, self.max_pixels) for path in files]
            try:
                found += task.answer(images, **options)
            except RequestError as error:
                raise AccuracyError(
                    f"{name} does not answer one of {files[0].name} to {files[-1].name}: {error}"
                ) from error
        return found

    @cached_property
    def digest(self) -> str:
        """One sha256 of the pictures' bytes and their truths."""
        digest = hashlib.sha256()
        for index, path in enumerate(self.files):
            digest.update(bytes.fromhex(sha256(path)))
            if self.truths is not None:
                truth = self.truths[index]
                for part in truth if isinstance(truth, tuple) else (truth,):
                    digest.update(np.ascontiguousarray(part).tobytes())
        return digest.hexdigest()

    def _chunks(self) -> Iterator[list[Path]]:
        for start in range(0, len(self.files), _CHUNK):
            yield self.files[start : start + _CHUNK]


def compare(
    reference: TaskHandler,
    expected: list[Any],
    artifact: TaskHandler,
    evaluation: Evaluation,
    allowed: float,
) -> Accuracy:
    """Measure ``artifact`` beside eager's answers ``expected`` to the same pictures.

    Raises AccuracyError where it does not answer one.
    """
    truths = evaluation.truths
    known = truths is not None
    if truths is None:
        truths = [reference.as_truth(answer) for answer in expected]
    answers = evaluation.answers(artifact, "the artifact")
    ours, theirs = _evidence(reference, evaluation.files, truths, answers, expected)
    why = "their labels have nothing" if known else "eager finds nothing"
    best = _metric(reference, theirs, why)
    reached = _checked(reference, reference.metric(ours))

    def drop(drawn: Array) -> float:
        return _metric_of(reference, theirs, drawn) - _metric_of(reference, ours, drawn)

    return Accuracy(
        metric=reference.metric_name,
        truth="labels" if known else "eager",
        pictures=len(answers),
        reference=best,
        artifact=reached,
        drop=best - reached,
        interval=_interval(len(answers), reference.resamples, drop),
        allowed=allowed,
        data=evaluation.digest,
        resamples=reference.resamples,
        unlabelled=evaluation.unlabelled,
    )


def alone(artifact: TaskHandler, evaluation: Evaluation) -> Accuracy:
    """Measure an artifact that has no reference; raises SpecError for pictures without labels,
    AccuracyError where it does not answer one."""
    if evaluation.truths is None:
        raise SpecError(
            "accuracy.folder: its pictures have no labels, and there is no eager model here, as an "
            "artifact of others has none, whose answers could stand for them: give labels (see "
            "docs/precision.md)"
        )
    answers = evaluation.answers(artifact, "the artifact")
    [ours] = _evidence(artifact, evaluation.files, evaluation.truths, answers)
    return Accuracy(
        metric=artifact.metric_name,
        truth="labels",
        pictures=len(answers),
        reference=None,
        artifact=_metric(artifact, ours, "their labels have nothing"),
        drop=None,
        interval=_interval(
            len(ours), artifact.resamples, lambda drawn: _metric_of(artifact, ours, drawn)
        ),
        allowed=None,
        data=evaluation.digest,
        resamples=artifact.resamples,
        unlabelled=evaluation.unlabelled,
    )


def _evidence(
    task: TaskHandler, files: list[Path], truths: list[Any], *answers: list[Any]
) -> list[list[Any]]:
    """What each answer of each list adds to the metric; raises SpecError with the file for a wrong
    truth."""
    found: list[list[Any]] = [[] for _ in answers]
    for path, truth, *given in zip(files, truths, *answers, strict=True):
        # Once for all, for a mask is read then.
        known = np.asarray(truth) if isinstance(truth, Mask) else truth
        try:
            for each, answer in zip(found, given, strict=True):
                each.append(task.evidence(answer, known))
        except SpecError as error:
            raise SpecError(f"{path}: {error}") from error
    return found


def _metric(task: TaskHandler, evidence: list[Any], why: str) -> float:
    """The metric; raises SpecError with ``why`` where the pictures have none, and PluginError."""
    found = task.metric(evidence)
    if math.isnan(found):
        raise SpecError(
            f"accuracy.folder: {task.metric_name} says nothing on these {len(evidence)} pictures, "
            f"for {why} in them: give pictures of this model's kind"
        )
    return _checked(task, found)


def _checked(task: TaskHandler, found: float) -> float:
    """A metric of its kind, from 0 to 1; raises PluginError."""
    if not -_ROUNDING <= found <= 1 + _ROUNDING:
        raise PluginError(
            f"{file_of(type(task))}: {task.metric_name} is {found:.6g}, and a metric is from 0 "
            "to 1: mend what evidence and metric give"
        )
    return min(max(float(found), 0.0), 1.0)


def _metric_of(task: TaskHandler, evidence: list[Any], drawn: Array) -> float:
    return task.metric([evidence[index] for index in drawn.tolist()])


def _interval(count: int, resamples: int, figure: Callable[[Array], float]) -> tuple[float, float]:
    """Percentile bootstrap of a figure of drawn pictures (Efron and Tibshirani 1993, chapter 13).

    A difference of two is of the same pictures, so the bootstrap is a paired one.
    """
    generator = np.random.default_rng(0)
    figures = [figure(generator.integers(count, size=count)) for _ in range(resamples)]
    tail = (1 - CONFIDENCE) / 2
    # A draw of pictures in which nothing is to be found has no metric.
    low, high = np.nanquantile(figures, [tail, 1 - tail])
    return float(low), float(high)
