"""What every task must keep: run over all files of handlers/tasks, whoever wrote them.

The material is the models that are built by default; a new task needs one of those and no test.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from torch import nn

from handlers import plugins
from handlers.bundle import DECODE_FILE
from handlers.errors import SpecError
from handlers.task import Difference, TaskHandler
from marsmith import build, preparing, resolve, samples, spec, spec_parts
from training.labelled import write

TASKS = plugins.names("tasks")
RUNTIMES = {name: plugins.load_runtime(name) for name in plugins.names("runtimes")}
# A build compares answers, for which a runtime of GPUs needs one.
EXPORTING = [
    name
    for name, runtime in RUNTIMES.items()
    if hasattr(runtime, "export") and "cpu" in runtime.devices
]
# Those that take a task's module whole in fp32 and not in every precision.
HALVED = [
    (task, runtime, precision)
    for task in TASKS
    for runtime in EXPORTING
    for precision in RUNTIMES[runtime].static_precisions
    if plugins.halved(task, runtime, precision) and not plugins.halved(task, runtime, "fp32")
    if task not in RUNTIMES[runtime].excluded_tasks
]
FIXED = spec_parts.InputSpec.model_validate(
    {"resize": [320, 320], "letterbox": 0, "mean": [0.0] * 3, "std": [1.0] * 3}
)
PROJECT = Path(__file__).parents[2]


def model_of(task: str) -> spec.ModelSpec:
    """The smallest model of a task that is built by default."""
    models = [model for model in spec.defaults(PROJECT) if model.task == task]
    if not models:
        pytest.skip(
            f"no model file of task {task} has `default: true`: nothing here to ask it with"
        )
    return min(models, key=lambda model: (PROJECT / str(model.weights.file)).stat().st_size)


class Material:
    """A task's handler with the eager network of its model, and its answers to the samples."""

    def __init__(self, task: str, folder: Path) -> None:
        self.model = model_of(task).model_copy(update={"runtime": "eager", "runtime_options": {}})
        module, bundle = preparing.prepare(self.model, PROJECT, folder)
        self.handler: TaskHandler = preparing.reference(bundle, module)
        limit = self.model.serving.max_pixels
        files = samples.found(PROJECT / self.model.samples)[:3]
        self.images = samples.compared(files, limit, any_size=False)
        self.answers = self.handler.answer(self.images)


@pytest.fixture(scope="module")
def material(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Material]:
    made: dict[str, Material] = {}

    def get(task: str) -> Material:
        if task not in made:
            made[task] = Material(task, tmp_path_factory.mktemp(task))
        return made[task]

    return get


each_task = pytest.mark.parametrize("task", TASKS)


@each_task
def test_a_task_has_a_model_that_is_built_by_default(task: str) -> None:
    known = {model.task for model in spec.defaults(PROJECT)}
    assert task in known, "without one in models/ nothing else here can be tested"


@each_task
def test_decode_is_a_module_without_weights_of_its_own(task: str) -> None:
    kind = plugins.load_task(task)
    assert issubclass(kind, TaskHandler)
    decode = kind.decode(dict(kind.decode_settings))
    assert isinstance(decode, nn.Module)
    assert list(decode.parameters()) == []


@each_task
def test_every_output_has_the_batch_as_its_first_axis(
    task: str, material: Callable[[str], Material]
) -> None:
    given = material(task)
    pixels = given.handler.preprocess(given.images[0])
    assert pixels.dtype == np.uint8
    assert pixels.ndim == 3
    for count in (1, 2):
        outputs = given.handler.model(np.stack([pixels] * count))
        assert isinstance(outputs, tuple)
        assert all(output.shape[0] == count for output in outputs)


@each_task
def test_answers_are_json(task: str, material: Callable[[str], Material]) -> None:
    given = material(task)
    assert json.loads(json.dumps(given.answers, allow_nan=False)) == given.answers


@each_task
def test_an_answer_is_equal_to_itself_and_not_to_one_of_another_picture(
    task: str, material: Callable[[str], Material]
) -> None:
    handler, answers = material(task).handler, material(task).answers
    for answer in answers:
        same = handler.compare(answer, json.loads(json.dumps(answer)))
        assert isinstance(same, Difference)
        assert same.same
        assert same.score == 0
    others = [handler.compare(answers[0], answer) for answer in answers[1:]]
    assert any(not other.same or other.score > 0.01 for other in others)


@each_task
def test_comparing_is_symmetric(task: str, material: Callable[[str], Material]) -> None:
    handler, answers = material(task).handler, material(task).answers
    for one in answers:
        for other in answers:
            there, back = handler.compare(one, other), handler.compare(other, one)
            assert there.same == back.same
            assert there.score == pytest.approx(back.score)
            assert "\n" not in there.detail


@each_task
def test_a_margin_is_a_distance(task: str, material: Callable[[str], Material]) -> None:
    handler, answers = material(task).handler, material(task).answers
    margins = [handler.margin(answer) for answer in answers]
    assert all(isinstance(margin, float) and margin >= 0 for margin in margins)
    assert max(margins) > 0


@each_task
def test_the_widest_answer_has_margin_and_comparison_too(
    task: str, material: Callable[[str], Material]
) -> None:
    handler, images = material(task).handler, material(task).images
    options = handler.widest()
    (answer,) = handler.answer(images[:1], **options)
    same = handler.compare(answer, answer, **options)
    assert same.same
    assert same.score == 0
    assert handler.margin(answer, **options) >= 0


@each_task
def test_a_metric_takes_a_picture_more_than_once(
    task: str, material: Callable[[str], Material]
) -> None:
    handler, images = material(task).handler, material(task).images
    answers = handler.answer(images, **handler.widest())
    evidence = [handler.evidence(answer, handler.as_truth(answer)) for answer in answers]
    # A bootstrap draws pictures with replacement.
    for drawn in (evidence, evidence[:1] * 3):
        assert 0 <= handler.metric(drawn) <= 1
    assert handler.metric(evidence * 2) == pytest.approx(handler.metric(evidence), abs=1e-3)


@each_task
def test_options_can_be_described(task: str, material: Callable[[str], Material]) -> None:
    for option in material(task).handler.options():
        assert option.help
        json.dumps(option.describe())


@each_task
def test_an_answer_is_drawn_and_summed_up(task: str, material: Callable[[str], Material]) -> None:
    given = material(task)
    options = given.handler.drawing_options()
    for image, answer in zip(
        given.images, given.handler.answer(given.images, **options), strict=True
    ):
        before = image.tobytes()
        drawn = given.handler.draw(answer, image)
        assert isinstance(drawn, Image.Image)
        assert drawn.mode == "RGB"
        assert image.tobytes() == before
        assert drawn.size != image.size or drawn.tobytes() != before
        words = given.handler.summary(answer)
        assert words
        assert "\n" not in words


@each_task
@pytest.mark.parametrize("runtime", EXPORTING)
def test_a_model_of_the_task_goes_through_every_runtime_that_exports(
    task: str, runtime: str, tmp_path: Path
) -> None:
    changes: dict[str, Any] = {"runtime": runtime, "runtime_options": {}}
    model = model_of(task)
    if plugins.halved(task, runtime, "fp32"):
        changes["input"] = FIXED
    elif "height" not in RUNTIMES[runtime].varies and not resolve.image_input(model).fixed:
        given = model.input or spec_parts.InputSpec()
        changes["input"] = given.model_copy(update={"resize": (192, 192), "crop": None})
    # torch-compile tries every batch size at its load.
    changes["serving"] = model.serving.model_copy(update={"batch_size": 3})
    model = model.model_copy(update=changes)
    if task in RUNTIMES[runtime].excluded_tasks:
        with pytest.raises(SpecError, match=f"runtime {runtime} takes no models of task {task} "):
            build._stage(model, PROJECT, tmp_path, lambda stage: None)
        return
    proof = build._stage(model, PROJECT, tmp_path, lambda stage: None)
    assert proof.parity.pictures > 1
    # The build has loaded the files anew, as a worker does, and made its golden requests with that.
    assert list((tmp_path / "golden").iterdir())
    files = samples.found(PROJECT / model.samples)[:3]
    images = samples.compared(files, model.serving.max_pixels, any_size=False)
    assert all(each is not None for each in proof.artifact.answer(images))


@pytest.mark.parametrize(("task", "runtime", "precision"), HALVED)
def test_a_model_goes_in_halves_where_only_some_precisions_want_it(
    task: str, runtime: str, precision: str, tmp_path: Path
) -> None:
    labelled = tmp_path / "labelled"
    write("scenes", labelled, 12)
    changes: dict[str, Any] = {
        "runtime": runtime,
        "runtime_options": {},
        "precision": precision,
        "input": FIXED,
        "accuracy": spec_parts.AccuracySpec(folder=str(labelled), drop=0.2),
    }
    if precision == "int8":
        changes["calibration"] = spec_parts.CalibrationSpec(folder=str(labelled), count=4)
    folder = tmp_path / "archive"
    folder.mkdir()
    proof = build._stage(
        model_of(task).model_copy(update=changes), PROJECT, folder, lambda stage: None
    )
    # The artifact in fp32 that this one is made of is of the same part, and was proven before it.
    assert proof.exact is not None
    assert proof.exact.largest_score_difference < proof.parity.largest_score_difference
    assert (folder / DECODE_FILE).is_file()
    # The second half is PyTorch's, whatever runs the first.
    assert plugins.load_task(task).needs_torch(proof.artifact.bundle)
    assert any("split" in path.name for path in folder.rglob("*.py"))


@each_task
def test_a_blank_picture_of_any_shape_is_answered(
    task: str, material: Callable[[str], Material]
) -> None:
    for size in ((1, 1), (3, 200), (64, 64)):
        picture = Image.new("RGB", size, "white")
        (answer,) = material(task).handler.answer([picture])
        json.dumps(answer, allow_nan=False)
