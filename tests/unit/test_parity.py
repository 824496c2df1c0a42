"""The parity gate lets a faithful artifact pass, and none that is wrong in a usual way."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from handlers import split
from handlers.bundle import Bundle, Limits
from handlers.closeness import DEFAULTS, Closeness
from handlers.errors import LimitError, ParityError, PluginError
from handlers.inputs import ImageInput
from handlers.runtimes import Array, Arrays, as_arrays
from handlers.servable import Network, Servable
from handlers.task import TaskHandler
from handlers.tasks.image_classification import ImageClassification, softmax
from marsmith import parity, preparing, samples, spec

Model = Callable[[Array], Arrays]
TOLERANCE = Closeness().outputs
MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]


def network() -> nn.Module:
    """Small, with all that behaves otherwise in training."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 5, stride=4),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Dropout(0.2),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(32, 10),
    )


def servable(mean: list[float] = MEAN, std: list[float] = STD, training: bool = False) -> Model:
    module = Servable(Network(network(), mean, std), softmax(), {}).train(training)

    def run(images: Array) -> Arrays:
        with torch.no_grad():
            return as_arrays(module(torch.from_numpy(np.ascontiguousarray(images))))

    return run


def handler(model: Model, batch: int = 4, resize: int | None = None) -> ImageClassification:
    made = ImageClassification()
    made.bundle = Bundle(
        "m",
        "1.0",
        "image-classification",
        "eager",
        "m.pth",
        list("abcdefghij"),
        ImageInput(resize=resize or 36, crop=None if resize else 32),
        limits=Limits(batch_size=batch),
        artifact_batch=batch,
    )
    made.model = model
    return made


@pytest.fixture(scope="module")
def images(project: Path) -> list[Image.Image]:
    return samples.compared(samples.found(project / "samples/shapes"), 10**8, any_size=False)


EAGER = servable()


def compare(
    reference: TaskHandler, artifact: TaskHandler, images: list[Image.Image]
) -> parity.Report:
    return parity.check(parity.Expected.of(reference, images), artifact)


def changed(change: Callable[[Array], Any]) -> Model:
    """Eager with its scores changed."""

    def run(images: Array) -> Arrays:
        made = change(EAGER(images)[0])
        return made if isinstance(made, tuple) else (made,)

    return run


def once(images: Array) -> Arrays:
    """Right for one picture, and wrong for the second of a batch."""
    (scores,) = EAGER(images)
    scores[1:] = scores[:1]
    return (scores,)


def nan_in_one(scores: Array) -> Array:
    scores[0, 3] = np.nan
    return scores


class Restless(ImageClassification):
    """Finds a difference where there is none."""

    def compare(self, expected: Any, answer: Any, **given: Any) -> Any:
        found = super().compare(expected, answer, **given)
        return replace(found, score=found.score + 0.25)


def test_a_compare_of_an_answer_with_itself_must_find_nothing(images: list[Image.Image]) -> None:
    task = Restless()
    task.bundle, task.model = handler(EAGER).bundle, EAGER
    words = r"^test_parity\.py: compare of an answer with itself gives same=True, score=0\.25: it"
    with pytest.raises(PluginError, match=words):
        compare(task, handler(EAGER), images)


@pytest.mark.parametrize("name", ["eager", "the artifact"])
def test_outputs_without_the_batch_as_first_axis_are_refused(
    images: list[Image.Image], name: str
) -> None:
    pair = {"eager": handler(EAGER), "the artifact": handler(EAGER)}
    pair[name] = handler(lambda images: (np.array(images.mean()),))
    words = rf"output 0 of {name} has shape \(\) for a batch of 1: its first axis must be the batch"
    with pytest.raises(ParityError, match=words):
        compare(pair["eager"], pair["the artifact"], images)


def test_a_faithful_artifact_passes(images: list[Image.Image]) -> None:
    report = compare(handler(EAGER), handler(servable()), images)
    assert (report.pictures, report.batch_sizes) == (8, [1, 2, 4])
    assert 0 <= report.largest_difference < 1e-5
    assert report.spread > TOLERANCE


@pytest.mark.parametrize(
    ("artifact", "words"),
    [
        (lambda images: EAGER(images[..., ::-1]), "differs from eager"),
        (lambda images: EAGER(images[:, ::-1]), "differs from eager"),
        (servable(training=True), "differs from eager"),
        (servable([0.0] * 3, [1.0] * 3), "differs from eager"),
        (servable(MEAN, [s * 255 for s in STD]), "differs from eager"),
        (changed(lambda s: s + np.float32(2e-4)), r"differs from eager by 0\.0002 \(> 0\.0001\)"),
        (changed(lambda s: s.astype(np.float64)), "float64 .*, eager has float32"),
        (changed(lambda s: s.astype(np.float16)), "float16 .*, eager has float32"),
        (changed(nan_in_one), "not finite where eager is"),
        (changed(lambda s: s * np.float32("inf")), "not finite where eager is"),
        (changed(lambda s: (s, s)), "2 outputs, eager has 1"),
        (changed(lambda s: ()), "0 outputs, eager has 1"),
        (changed(lambda s: s[:, :9]), r"\(9,\), eager has float32 \(10,\)"),
        (changed(lambda s: s[:, :, None]), r"\(10, 1\), eager has float32 \(10,\)"),
        (once, "sample 1, batch of 2, output 0: differs from eager"),
    ],
    ids=[
        "swapped channels",
        "upside down",
        "forgotten eval()",
        "missing normalisation",
        "pixels not scaled",
        "moved scores",
        "float64",
        "float16",
        "NaN",
        "infinite",
        "more outputs",
        "fewer outputs",
        "fewer classes",
        "another shape",
        "wrong in a batch",
    ],
)
def test_a_wrong_artifact_is_caught(images: list[Image.Image], artifact: Model, words: str) -> None:
    with pytest.raises(ParityError, match=words):
        compare(handler(EAGER), handler(artifact), images)


def test_a_batch_of_another_size_is_tried_too(images: list[Image.Image]) -> None:
    def wrong_when_full(images: Array) -> Arrays:
        (scores,) = EAGER(images)
        return (scores if len(images) < 4 else scores[::-1],)

    with pytest.raises(ParityError, match="batch of 4"):
        compare(handler(EAGER), handler(wrong_when_full), images)
    wrong_in_three = handler(lambda i: EAGER(i if len(i) < 3 else i[::-1]), batch=3)
    with pytest.raises(ParityError, match="batch of 3"):
        compare(handler(EAGER, batch=3), wrong_in_three, images)


def test_an_artifact_that_fails_on_some_batches_is_one_line(images: list[Image.Image]) -> None:
    right = servable()

    def model(pixels: Array) -> Arrays:
        if len(pixels) == 4:
            raise RuntimeError("specialised\n  to a constant")
        return right(pixels)

    words = r"^the artifact fails on a batch of 4: RuntimeError: specialised to a constant$"
    with pytest.raises(ParityError, match=words):
        parity.check(parity.Expected.of(handler(right), images), handler(model))


def test_a_constant_model_proves_nothing(images: list[Image.Image]) -> None:
    def constant(images: Array) -> Arrays:
        return (np.full((len(images), 10), 0.1, np.float32),)

    with pytest.raises(ParityError, match="agreement would prove nothing"):
        compare(handler(constant), handler(constant), images)


def unsure(scores: Array) -> Array:
    """The same decision for all pictures, and scores that hardly move."""
    first = np.eye(10, dtype=np.float32)[0]
    return (scores + 19 * (0.2 * first + 0.08)) / np.float32(20)


@pytest.mark.parametrize("precision", ["bf16", "int8"])
def test_a_model_that_is_unsure_of_its_answers_passes_in_few_bits(
    images: list[Image.Image], precision: str
) -> None:
    reference = handler(changed(unsure))
    artifact = handler(changed(lambda s: unsure(s) + np.float32(2e-4)))
    for each in (reference, artifact):
        each.bundle = replace(each.bundle, closeness=DEFAULTS[precision])
    report = compare(reference, artifact, images)
    assert TOLERANCE < report.spread < DEFAULTS[precision].outputs / 2
    # Within the tolerance, but it says nothing of the picture.
    fixed = reference.model(np.stack([reference.preprocess(images[0])]))[0]
    artifact.model = lambda pixels: (np.repeat(fixed, len(pixels), axis=0),)
    with pytest.raises(ParityError, match="one answer to all of them could be as near"):
        compare(reference, artifact, images)


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        (lambda s: s + np.float32(2e-4), LimitError),
        (lambda s: np.full_like(s, 0.1), ParityError),
    ],
    ids=["moved scores", "one answer"],
)
def test_what_is_past_its_limits_alone_is_told_from_another_model(
    images: list[Image.Image], change: Callable[[Array], Array], kind: type[ParityError]
) -> None:
    with pytest.raises(ParityError, match="differs from eager") as refused:
        compare(handler(EAGER), handler(changed(change)), images)
    assert refused.type is kind


def test_a_score_that_is_no_number_is_another_model_s(images: list[Image.Image]) -> None:
    class Endless(ImageClassification):
        def compare(self, expected: Any, answer: Any, **given: Any) -> Any:
            found = super().compare(expected, answer, **given)
            return found if answer is expected else replace(found, score=np.inf)

    task = Endless()
    task.bundle, task.model = handler(EAGER).bundle, EAGER
    with pytest.raises(ParityError, match=r"scores differ by inf") as refused:
        compare(task, handler(EAGER), images)
    assert refused.type is ParityError


class Shown:
    """Eager's model, which shows what its first layers give, changed."""

    def __init__(self, change: Callable[[Array], Array] = lambda maps: maps) -> None:
        self._first = Network(network()[:3].eval(), MEAN, STD)
        self._change = change

    def __call__(self, *arrays: Array) -> Arrays:
        return EAGER(*arrays)

    def features(self, *arrays: Array) -> Arrays:
        with torch.no_grad():
            maps = self._first(torch.from_numpy(arrays[0])).numpy()
        return self._change(maps), maps[:, :2]


class InHalves(split.Halves):
    """The same as an artifact in two halves, which answers right whatever the first gives."""

    def __init__(self, change: Callable[[Array], Array]) -> None:
        self._shown = Shown(change)

    def __call__(self, *arrays: Array) -> Arrays:
        return EAGER(*arrays)

    def features(self, *arrays: Array) -> Arrays:
        return self._shown.features(*arrays)


def in_halves(
    images: list[Image.Image], precision: str, change: Callable[[Array], Array]
) -> parity.Report:
    artifact = handler(InHalves(change), batch=1)
    artifact.bundle = replace(artifact.bundle, closeness=DEFAULTS[precision])
    return compare(handler(Shown()), artifact, images)


def moved(maps: Array) -> Array:
    """One value of a map by a hundredth of the largest one."""
    changed = maps.copy()
    changed[0, 3, 2, 2] += np.float32(0.01) * np.abs(maps).max()
    return changed


def test_the_exported_half_of_a_detector_is_held_to_eagers_maps(images: list[Image.Image]) -> None:
    right = in_halves(images, "fp32", lambda maps: maps)
    assert right.figures == {"largest_features": 0.0}
    assert right.limits == {"features": 1e-3}
    words = r"^sample 0, feature map 0 of the exported half: differs from eager by 0\.01 of its lar"
    with pytest.raises(LimitError, match=words):
        in_halves(images, "fp32", moved)
    # In few bits it is told, and what they were made of has passed in fp32.
    few = in_halves(images, "int8", moved)
    assert few.figures["largest_features"] == pytest.approx(0.01, rel=1e-3)
    assert few.limits == {}


@pytest.mark.parametrize("precision", ["fp32", "int8"])
@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda maps: maps * np.float32("nan"), "feature map 0 .*: not finite where eager is"),
        (lambda maps: maps[..., 1:], r"exported half gives feature maps \[.*eager has \["),
    ],
    ids=["NaN", "another shape"],
)
def test_maps_that_no_limit_excuses_are_refused(
    images: list[Image.Image], precision: str, change: Callable[[Array], Array], words: str
) -> None:
    with pytest.raises(ParityError, match=words) as refused:
        in_halves(images, precision, change)
    assert refused.type is ParityError


def test_a_reference_that_shows_no_maps_is_asked_for_none(images: list[Image.Image]) -> None:
    report = compare(handler(EAGER), handler(InHalves(moved), batch=1), images)
    assert report.figures == {}


def test_one_sample_proves_nothing(images: list[Image.Image]) -> None:
    with pytest.raises(ParityError, match="agreement would prove nothing"):
        compare(handler(EAGER), handler(EAGER), images[:1])


def test_weights_that_make_no_numbers_are_not_the_artifacts_fault(
    images: list[Image.Image],
) -> None:
    broken = handler(changed(nan_in_one))
    with pytest.raises(ParityError, match="the outputs of eager itself are not finite"):
        compare(broken, broken, images)


def test_samples_of_many_sizes_are_compared(images: list[Image.Image]) -> None:
    mixed = [*images[:3], *(image.crop((0, 0, 30, 45)) for image in images[:3])]
    reference, artifact = (handler(servable(), resize=40) for _ in range(2))
    assert compare(reference, artifact, mixed).pictures == 6
    artifact.model = lambda pixels: EAGER(pixels[..., ::-1])
    with pytest.raises(ParityError):
        compare(reference, artifact, mixed)


def test_batches_are_full_and_have_pictures_of_one_shape(images: list[Image.Image]) -> None:
    wide, high = (0, 0, 60, 40), (0, 0, 30, 45)
    turns = [images[i].crop(wide if i % 2 else high) for i in range(4)]
    reference, artifact = (handler(servable(), resize=40) for _ in range(2))
    seen: list[tuple[int, ...]] = []

    def watched(pixels: Array) -> Arrays:
        seen.append(pixels.shape)
        return EAGER(pixels)

    artifact.model = watched
    report = compare(reference, artifact, turns)
    most = report.batch_sizes[-1]
    shapes = {shape[1:] for shape in seen}
    assert len(shapes) == 2
    assert most > 2
    assert {(most, *shape) for shape in shapes} <= set(seen)


def test_answers_are_compared_beside_outputs(images: list[Image.Image]) -> None:
    relabelled = handler(EAGER)
    relabelled.bundle = replace(relabelled.bundle, labels=list("bacdefghij"))
    with pytest.raises(ParityError, match="^sample "):
        compare(handler(EAGER), relabelled, images)


def test_the_best_two_may_change_places_where_both_may_move_as_far_as_they_lie_apart() -> None:
    for second, decided in ((0.41, False), (0.39, True)):
        answer = [{"label": "a", "score": 0.6}, {"label": "b", "score": second}]
        assert parity.is_decided(handler(EAGER), answer, 0.1, {}) is decided


def test_the_report_holds_what_repeats() -> None:
    report = parity.Report(8, [1, 2], 1e-4, 1.23456e-9, 0.0, 0.98765)
    assert report.to_json() == {
        "pictures": 8,
        "batch_sizes": [1, 2],
        "tolerance": 1e-4,
        "largest_difference": 1.2e-9,
        "largest_score_difference": 0.0,
        "spread": 0.99,
        "figures": {},
        "limits": {},
    }
    others = parity.Report(8, [1], 1e-3, None, 0.0, 0.5, {"least_overlap": 0.99873456}, {})
    assert others.to_json()["figures"] == {"least_overlap": 0.998735}
    assert others.to_json()["largest_difference"] is None


def test_a_detector_that_lost_its_nms_threshold_is_caught(project: Path, tmp_path: Path) -> None:
    model = spec.load(project / "models/ssdlite_shapes.yaml", {"runtime": "eager"})
    module, bundle = preparing.prepare(model, project, tmp_path)
    scenes = samples.compared(samples.found(project / model.samples)[:2], 10**8, any_size=False)
    right = preparing.reference(bundle, module)
    report = compare(right, right, scenes)
    assert (report.pictures, report.largest_difference) == (2, None)
    assert report.figures == {"boxes": report.figures["boxes"], "least_overlap": 1.0}
    assert report.figures["boxes"] >= 2
    boxes = sum(map(len, right.answer(scenes, **right.widest())))
    assert report.figures["boxes"] == boxes, "once a picture, whatever the batch sizes"
    assert report.limits == {"overlap": 0.99}
    # What an exporter does that keeps the boxes and drops the suppression of overlapping ones.
    lost = copy.deepcopy(module)
    lost.bare().nms_thresh = 0.99
    with pytest.raises(ParityError, match="boxes lost or added"):
        compare(right, preparing.reference(bundle, lost), scenes)
