"""Does an archive still answer like eager, like another archive, or through a server? Anywhere."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field, replace
from itertools import cycle, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from handlers import golden, integrity, pictures, plugins
from handlers.bundle import Bundle
from handlers.closeness import Closeness
from handlers.errors import (
    AccuracyError,
    LimitError,
    ParityError,
    RequestError,
    SpecError,
    WeightsError,
)
from handlers.integrity import sha256
from handlers.task import Item, TaskHandler
from marsmith import accuracy, parity, quantise, samples
from marsmith.accuracy import Accuracy, Evaluation
from marsmith.asking import Asker, in_order
from marsmith.client import Client
from marsmith.spec import ModelSpec
from marsmith.spec_parts import AccuracySpec

if TYPE_CHECKING:
    from marsmith.subject import Subject

# Requests to a server at once: several batches of them.
AT_ONCE = 16
# A picture's file, what it should be answered with, and what it was; either may be a RequestError.
Answer = tuple[Path, Any, Any]


@dataclass(frozen=True)
class Verdict:
    """What came of comparing answers: ``same`` decisions of ``pictures``, the largest move of a
    score, what was ``wrong`` by any limit (no answer, no number, another shape), what ``moved``
    further than the archive's limits allow, whether the metric decides on that, the metric, and
    what parity found, as at build, where it passed."""

    against: str
    pictures: int
    same: int
    largest_move: float
    wrong: list[str]
    moved: list[str] = field(default_factory=list)
    metric_decides: bool = False
    accuracy: Accuracy | None = None
    parity: parity.Report | None = None

    @property
    def passed(self) -> bool:
        """Whether nothing was wrong, and nothing moved that the metric does not decide on."""
        return not self.wrong and (self.metric_decides or not self.moved)

    def to_json(self) -> dict[str, Any]:
        """The verdict as JSON values."""
        return asdict(self)


def opened(folder: Path) -> TaskHandler:
    """The handler of an unpacked archive, its files and golden requests checked.

    Raises LoadError.
    """
    integrity.verify(folder)
    bundle = Bundle.read(folder)
    task = plugins.load_task(bundle.task)()
    task.bind(bundle, folder)
    golden.check(task, folder)
    return task


def eager(task: TaskHandler, given: Subject, file: Path | None = None) -> TaskHandler:
    """A handler with the eager module of an archive, made of what this tells of itself.

    ``file`` is the state_dict; None looks for it in the project. Raises SpecError or WeightsError.
    """
    # It loads torch, which hosts that serve without it lack: all else here does without.
    from marsmith import preparing

    if file is not None:
        _check_weights(given.spec, file)
    return preparing.reference(task.bundle, given.trained(file))


def _check_weights(spec: ModelSpec, file: Path) -> None:
    if not file.is_file():
        raise WeightsError(f"no weights at {file}: give the state_dict's file")
    recorded, here = spec.weights.sha256, sha256(file)
    if recorded != here:
        raise WeightsError(
            f"the archive was made of weights with sha256 {recorded}, {file.name} has {here}: give "
            "its own with --weights"
        )


def compare(
    task: TaskHandler, reference: TaskHandler, files: Sequence[Path], against: str
) -> Verdict:
    """Answers of both to each picture alone, with the widest options; then what a build compares,
    outputs and answers at several batch sizes, of at most as many pictures as there.

    Outputs of two archives that take other inputs are of other pixels: their answers alone are
    compared. An answer that fails, on either side, is part of the verdict, and so is a reference
    that does not tell the pictures apart. Raises SpecError for two of different tasks.
    """
    if reference.bundle.task != task.bundle.task:
        raise SpecError(
            f"{against} is for {reference.bundle.task} and {task.bundle.name} for "
            f"{task.bundle.task}: compare two of one task"
        )
    options = task.widest()

    def ask(handler: TaskHandler, path: Path, name: str) -> Any:
        image = samples.opened(path, handler.bundle.limits.max_pixels)
        try:
            return handler.answer([image], **options)[0]
        except RequestError as error:
            return RequestError(f"{name} fails: {error}")

    answers = (
        (path, ask(reference, path, against), ask(task, path, "the artifact")) for path in files
    )
    verdict = _compare(task, answers, against, options)
    if reference.bundle.input != task.bundle.input:
        return verdict
    any_size = task.bundle.foreign is None and not task.bundle.input.fixed
    images = samples.compared(files, task.bundle.limits.max_pixels, any_size)
    if len(images) < 2:
        # One alone, as where a single golden picture stands for the samples, tells nothing apart.
        return verdict
    try:
        expected = parity.Expected.of(reference, images, against)
        return replace(verdict, parity=parity.check(expected, task))
    except ParityError as error:
        line = f"as a build compares: {error}"
        if isinstance(error, LimitError):
            return replace(verdict, moved=[*verdict.moved, line])
        return replace(verdict, wrong=[*verdict.wrong, line])


def served(
    task: TaskHandler, connect: Callable[[], Client], files: Sequence[Path]
) -> list[Verdict]:
    """Answers of a running server to the pictures' own bytes, against the archive's in process.

    First one picture after the other, then ``AT_ONCE`` requests at once, of which the server makes
    batches. ``connect`` gives a client, of which each thread needs one. Both sides run the same
    artifact, so that ``steady`` says how close they must be.
    """
    expected = {path: _as_served(task, path)[0] for path in files}
    held = parity.held_to(task, steady(task, expected))
    serving = task.bundle.provenance["spec"].get("serving", {})
    # More than its queue takes would be answered 503.
    together = min(AT_ONCE, serving.get("queue_size", AT_ONCE))
    many = list(islice(cycle(files), max(len(files), together)))
    found = {"the server": (files, 1), f"the server, {together} at once": (many, together)}
    with closing(Asker(connect, task.bundle.name, task.bundle.version)) as asker:
        return [
            _compare(held, _answers(asker, asked, count, expected), against, {})
            for against, (asked, count) in found.items()
        ]


def steady(task: TaskHandler, alone: Mapping[Path, Any]) -> Closeness:
    """How close two answers of one artifact on one host must be, whatever its precision.

    fp32's limits; or twice what a full batch moves an answer from ``alone``, those to pictures one
    by one, where that is more, for kernels of few bits round otherwise at other batch sizes. Never
    further than a golden request's score may move, or than the archive's own limits of the rest.
    """
    own, exact = task.bundle.closeness, Closeness()
    score, figures = _moved_by_batches(task, alone)
    outputs, answers = (max(each, 2 * score) for each in (exact.outputs, exact.answers))
    changed = max(exact.changed, 2 * figures.get("largest_changed", 0.0))
    overlap, iou = (
        min(getattr(exact, name), 1 - 2 * (1 - figures.get(f"least_{name}", 1.0)))
        for name in ("overlap", "iou")
    )
    return replace(
        own,
        outputs=min(own.golden, outputs),
        answers=min(own.golden, answers),
        overlap=max(own.overlap, overlap),
        changed=min(own.changed, changed),
        iou=max(own.iou, iou),
    )


def _moved_by_batches(
    task: TaskHandler, alone: Mapping[Path, Any]
) -> tuple[float, dict[str, float]]:
    """The largest move of a score, and the task's figures, between answers alone and in batches."""
    files, size = list(alone), task.bundle.limits.batch_size
    score = 0.0
    figures: dict[str, float] = {}
    for start in range(0, len(files), size):
        # Repeated from the front, so that the last batch is full, too.
        batch = [files[(start + i) % len(files)] for i in range(size)]
        for path, answer in zip(batch, _as_served(task, *batch), strict=True):
            if isinstance(answer, RequestError) or isinstance(alone[path], RequestError):
                continue
            found = task.compare(alone[path], answer)
            score = max(score, found.score)
            for name, value in found.figures.items():
                figures[name] = parity.joined(name, figures.get(name), value)
    return score, figures


def _as_served(task: TaskHandler, *files: Path) -> list[Any]:
    """Answers, or RequestErrors, to pictures together, decoded as a worker decodes them; raises
    SpecError for a file that is no picture."""
    answers = task.predict([Item(_picture(task, path), task.defaults()) for path in files])
    return [
        RequestError(f"in process: {answer}")
        if isinstance(answer, RequestError)
        else json.loads(json.dumps(answer))
        for answer in answers
    ]


def _picture(task: TaskHandler, path: Path) -> pictures.Picture:
    limits, given = task.bundle.limits, task.bundle.input
    try:
        return pictures.read(path.read_bytes(), limits.max_pixels, given.wanted)
    except RequestError as error:
        raise SpecError(f"{path}: {error}") from error


def _answers(
    asker: Asker, files: Sequence[Path], at_once: int, expected: Mapping[Path, Any]
) -> Iterator[Answer]:
    for one in in_order(asker.ask, files, at_once):
        # A reply without a problem, or a problem.
        answer = one.reply.json() if one.reply and one.reply.ok else RequestError(str(one.problem))
        yield one.path, expected[one.path], answer


def _compare(
    task: TaskHandler, answers: Iterable[Answer], against: str, options: dict[str, Any]
) -> Verdict:
    closeness = task.bundle.closeness
    limit = closeness.outputs if task.continuous else closeness.answers
    count, same, worst = 0, 0, 0.0
    wrong: list[str] = []
    moved: list[str] = []
    for path, expected, answer in answers:
        count += 1
        failed = [each for each in (expected, answer) if isinstance(each, RequestError)]
        if failed:
            wrong += [f"{path.name}: {each}" for each in failed]
            continue
        difference = task.compare(expected, answer, **options)
        same += difference.same
        worst = max(worst, difference.score)
        same_enough = difference.same or not parity.is_decided(task, expected, limit, options)
        if not same_enough or not difference.score <= limit:
            (moved if math.isfinite(difference.score) else wrong).append(
                f"{path.name}: {difference.detail}, scores moved by {difference.score:.3g} "
                f"(allowed {limit:g})"
            )
    return Verdict(against, count, same, worst, wrong, moved)


def measured(
    verdict: Verdict,
    task: TaskHandler,
    reference: TaskHandler | None,
    images: Path,
    drop: float | None,
    folder: Path,
    other: Path | None = None,
) -> Verdict:
    """The verdict with the metric on the labels of ``images``, or on the reference's answers.

    As many are drawn, by the same seed, as for the archive's build. Left out are pictures that the
    archive, unpacked in ``folder``, was calibrated with, and those of the reference where it is an
    archive, unpacked in ``other``. ``reference`` None: there is none but the archive itself.
    ``drop`` None allows what the archive was built with. Where one picture has no answer, so has
    the metric none, and the verdict says why. Raises SpecError.
    """
    built: dict[str, Any] = task.bundle.provenance["spec"].get("accuracy") or {}
    said = {} if drop is None else {"drop": drop}
    spec = AccuracySpec(**{**built, "folder": str(images), **said})
    taken = _calibrated(task, folder)
    if reference is not None and other is not None:
        taken += _calibrated(reference, other)
    evaluation = Evaluation.of(spec, Path(), task, without=taken)
    try:
        if reference is None:
            return replace(verdict, accuracy=accuracy.alone(task, evaluation))
        expected = evaluation.answers(reference, verdict.against)
        found = accuracy.compare(reference, expected, task, evaluation, spec.drop)
    except AccuracyError as error:
        return replace(verdict, wrong=[*verdict.wrong, f"the metric: {error}"])
    failed = [] if found.passed else [f"the metric: {found}"]
    # Of many pictures int8 decides some otherwise; whether too many, the metric says.
    decides = task.bundle.precision == "int8"
    wrong = verdict.wrong + failed
    return replace(verdict, accuracy=found, wrong=wrong, metric_decides=decides)


def _calibrated(task: TaskHandler, folder: Path) -> list[str]:
    """The sha256 of each picture that an archive was calibrated with; raises SpecError."""
    return quantise.read(folder) if task.bundle.precision == "int8" else []


def sample_files(task: TaskHandler, root: Path, folder: Path) -> list[Path]:
    """The samples that an archive was built with where the project has them, else its golden
    pictures."""
    provenance = task.bundle.provenance
    here = samples.found(root / provenance["spec"].get("samples", samples.DEFAULT))
    if quantise.digest(samples.spread(here)) == provenance["data"]["samples"]["data"]:
        return here
    return [folder / request.picture for request in golden.read(folder)]
