"""Is the artifact as accurate as eager? A metric on pictures that nothing was calibrated on."""

from __future__ import annotations

import hashlib
import math
import random
from collections.abc import Collection, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from handlers import pictures
from handlers.errors import RequestError, SpecError
from handlers.integrity import sha256
from handlers.task import TaskHandler
from marsmith import samples
from marsmith.spec_parts import AccuracySpec

# Enough for the two digits of an interval that are worth reading.
RESAMPLES = 100
CONFIDENCE = 0.95
# Answered at a time, so that a thousand decoded pictures need not fit into memory.
_CHUNK = 16


@dataclass(frozen=True)
class Accuracy:
    """The metric of eager's fp32 and of the artifact on the same pictures.

    ``truth`` is "labels" or, for pictures without, "eager": then the metric says how far the two
    agree. ``drop`` is ``reference`` less ``artifact``, ``interval`` its 95 % bootstrap confidence
    interval (percentiles of 100 resamples of the pictures, seeded), ``data`` the sha256 of all
    pictures and truths.
    """

    metric: str
    truth: str
    pictures: int
    reference: float
    artifact: float
    drop: float
    interval: tuple[float, float]
    allowed: float
    data: str

    @property
    def passed(self) -> bool:
        """Whether the drop is within what is allowed."""
        return self.drop <= self.allowed + 1e-9

    def __str__(self) -> str:
        low, high = self.interval
        truth = "" if self.truth == "labels" else " (agreement with eager: no labels)"
        return (
            f"{self.metric} {self.artifact:.4f}, reference {self.reference:.4f} on {self.pictures} "
            f"pictures{truth}: drop {self.drop:+.4f}, 95 % interval {low:+.4f} to {high:+.4f}, "
            f"allowed {self.allowed:g}"
        )

    def to_json(self) -> dict[str, Any]:
        """The report for the archive."""
        return asdict(self)


@dataclass(frozen=True)
class Evaluation:
    """Pictures to measure on, with their truths where the folder has labels (else None)."""

    files: list[Path]
    truths: list[Any] | None
    max_pixels: int

    @classmethod
    def of(
        cls, spec: AccuracySpec, root: Path, task: TaskHandler, without: Collection[str] = ()
    ) -> Evaluation:
        """The pictures of a spec's folder; those with a sha256 in ``without`` are left out.

        Raises SpecError where none is left.
        """
        folder = root / spec.folder
        labelled = task.labelled(folder)
        found = labelled or [(path, None) for path in samples.files(folder, deep=True)]
        left = [each for each in found if sha256(each[0]) not in without]
        if not left:
            raise SpecError(
                f"accuracy.folder: all {len(found)} pictures of {spec.folder} were taken to "
                "calibrate with: lower calibration.count, or give other pictures"
            )
        if spec.count is not None and spec.count < len(left):
            left = sorted(random.Random(spec.seed).sample(left, spec.count))
        truths = [truth for _, truth in left] if labelled else None
        return cls([path for path, _ in left], truths, task.bundle.limits.max_pixels)

    def answers(self, task: TaskHandler) -> list[Any]:
        """The task's answers to all pictures, with its widest options; raises SpecError."""
        options = task.widest()
        return [answer for chunk in self._chunks() for answer in task.answer(chunk, **options)]

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

    def _chunks(self) -> Iterator[list[Image.Image]]:
        for start in range(0, len(self.files), _CHUNK):
            yield [self._open(path) for path in self.files[start : start + _CHUNK]]

    def _open(self, path: Path) -> Image.Image:
        try:
            return pictures.decode(path.read_bytes(), self.max_pixels)
        except RequestError as error:
            raise SpecError(f"accuracy.folder: {path}: {error}") from error


def compare(
    reference: TaskHandler,
    expected: list[Any],
    artifact: TaskHandler,
    evaluation: Evaluation,
    allowed: float,
) -> Accuracy:
    """Measure ``artifact`` beside eager's answers ``expected`` to the same pictures."""
    truths = evaluation.truths
    known = truths is not None
    if truths is None:
        truths = [reference.as_truth(answer) for answer in expected]
    answers = evaluation.answers(artifact)
    ours, theirs = (
        [reference.evidence(*each) for each in zip(given, truths, strict=True)]
        for given in (answers, expected)
    )
    reached, best = reference.metric(ours), reference.metric(theirs)
    if not math.isfinite(best):
        why = "their labels have nothing" if known else "eager finds nothing"
        raise SpecError(
            f"accuracy.folder: {reference.metric_name} says nothing on these {len(answers)} "
            f"pictures, for {why} in them: give pictures of this model's kind"
        )
    return Accuracy(
        metric=reference.metric_name,
        truth="labels" if known else "eager",
        pictures=len(answers),
        reference=best,
        artifact=reached,
        drop=best - reached,
        interval=_interval(reference, theirs, ours),
        allowed=allowed,
        data=evaluation.digest(),
    )


def _interval(task: TaskHandler, theirs: list[Any], ours: list[Any]) -> tuple[float, float]:
    """Percentile bootstrap of the paired difference (Efron and Tibshirani 1993, chapter 13)."""
    generator = np.random.default_rng(0)
    drops = []
    for _ in range(RESAMPLES):
        drawn = generator.integers(len(ours), size=len(ours))
        best, reached = ([each[i] for i in drawn] for each in (theirs, ours))
        drops.append(task.metric(best) - task.metric(reached))
    tail = (1 - CONFIDENCE) / 2
    # A draw of pictures in which nothing is to be found has no metric.
    low, high = np.nanquantile(drops, [tail, 1 - tail])
    return float(low), float(high)
