"""Does an archive still answer like eager, like another archive, or through a server? Anywhere."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from PIL import Image

from handlers import golden, integrity, pictures, plugins
from handlers.bundle import Bundle
from handlers.errors import RequestError, SpecError
from handlers.integrity import sha256
from handlers.task import TaskHandler
from marsmith import accuracy, build, samples, weights
from marsmith.accuracy import Accuracy, Evaluation
from marsmith.client import Client
from marsmith.spec import MODELS, ModelSpec, load
from marsmith.spec_parts import AccuracySpec

Ask = Callable[[TaskHandler, Path], Any]


@dataclass(frozen=True)
class Verdict:
    """What came of comparing answers: ``same`` decisions of ``pictures``, the largest move of a
    score, what was ``wrong``, what only ``moved`` further than others, and the metric."""

    against: str
    pictures: int
    same: int
    largest_move: float
    wrong: list[str]
    moved: list[str] = field(default_factory=list)
    accuracy: Accuracy | None = None

    @property
    def passed(self) -> bool:
        """Whether nothing was wrong."""
        return not self.wrong

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


def eager(task: TaskHandler, root: Path, folder: Path, changes: dict[str, Any]) -> TaskHandler:
    """A handler with the eager module of an archive's model file; raises SpecError.

    ``changes`` are keys of that file, such as other ``weights``; ``folder`` takes a network's own
    source.
    """
    path = root / MODELS / f"{task.bundle.name}.yaml"
    if not path.is_file():
        raise SpecError(
            f"--against eager needs the model file {path.relative_to(root)} and its weights; "
            "compare with another archive by --against ARCHIVE"
        )
    spec = load(path, {"runtime": "eager", "precision": "fp32", **changes})
    _check_weights(task, spec, root)
    module, _ = build.prepare(spec, root, folder)
    return build.reference(task.bundle, module)


def _check_weights(task: TaskHandler, spec: ModelSpec, root: Path) -> None:
    recorded = task.bundle.provenance["spec"].get("weights", {}).get("sha256")
    here = sha256(weights.locate(spec, root))
    if recorded != here:
        raise SpecError(
            f"the archive was made of weights with sha256 {recorded}, those of {spec.name} here "
            f"have {here}: give its own with --weights"
        )


def compare(
    task: TaskHandler, reference: TaskHandler, files: Sequence[Path], against: str
) -> Verdict:
    """Answers of both to each picture alone, with the widest options."""
    options = task.widest()

    def ask(handler: TaskHandler, path: Path) -> Any:
        return handler.answer([_open(handler, path)], **options)[0]

    return _compare(task, files, against, lambda path: ask(reference, path), ask, options)


def served(task: TaskHandler, client: Client, files: Sequence[Path]) -> Verdict:
    """Answers of a running server to the pictures' own bytes, against the archive's in process."""

    def ask(handler: TaskHandler, path: Path) -> Any:
        bundle = handler.bundle
        reply = client.predict(bundle.name, path.read_bytes(), version=bundle.version)
        return reply.json() if reply.ok else RequestError(reply.problem())

    def alone(path: Path) -> Any:
        return json.loads(json.dumps(task.answer([_open(task, path)])[0]))

    return _compare(task, files, "the server", alone, ask, {})


def _compare(
    task: TaskHandler,
    files: Sequence[Path],
    against: str,
    expect: Callable[[Path], Any],
    ask: Ask,
    options: dict[str, Any],
) -> Verdict:
    closeness = task.bundle.closeness
    limit = closeness.outputs if task.continuous else closeness.answers
    same, worst, wrong = 0, 0.0, []
    for path in files:
        expected, answer = expect(path), ask(task, path)
        if isinstance(answer, RequestError):
            wrong.append(f"{path.name}: {answer}")
            continue
        difference = task.compare(expected, answer, **options)
        same += difference.same
        worst = max(worst, difference.score)
        decided = task.margin(expected, **options) > 2 * limit
        if (decided and not difference.same) or not difference.score <= limit:
            wrong.append(
                f"{path.name}: {difference.detail}, scores moved by {difference.score:.3g} "
                f"(allowed {limit:g})"
            )
    return Verdict(against, len(files), same, worst, wrong)


def measured(
    verdict: Verdict, task: TaskHandler, reference: TaskHandler, folder: Path, drop: float
) -> Verdict:
    """The verdict with the metric on the folder's labels, or on the reference's answers."""
    spec = AccuracySpec(folder=str(folder), drop=drop)
    evaluation = Evaluation.of(spec, Path(), reference)
    expected = evaluation.answers(reference)
    found = accuracy.compare(reference, expected, task, evaluation, drop)
    failed = [] if found.passed else [f"the metric: {found}"]
    # Of many pictures int8 decides some otherwise; whether too many, the metric says.
    if task.bundle.precision == "int8":
        return replace(verdict, accuracy=found, wrong=failed, moved=verdict.wrong)
    return replace(verdict, accuracy=found, wrong=verdict.wrong + failed)


def sample_files(task: TaskHandler, root: Path, folder: Path) -> list[Path]:
    """The samples of the model file where there is one, else the archive's golden pictures."""
    path = root / MODELS / f"{task.bundle.name}.yaml"
    if path.is_file():
        return samples.files(root / load(path).samples)
    return [folder / request.picture for request in golden.read(folder)]


def _open(task: TaskHandler, path: Path) -> Image.Image:
    try:
        return pictures.decode(path.read_bytes(), task.bundle.limits.max_pixels)
    except RequestError as error:
        raise SpecError(f"{path}: {error}") from error
