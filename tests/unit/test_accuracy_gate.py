"""The gate of accuracy: the paired bootstrap, int8's worst layers."""

from __future__ import annotations

import json
import math
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from greys import LABELS, classifier, evaluation, grey
from PIL import ExifTags, Image
from torch import Tensor, nn

from handlers import pictures, truths
from handlers.bundle import Bundle, Limits
from handlers.errors import AccuracyError, PluginError, SpecError
from handlers.inputs import ImageInput
from handlers.servable import Network, Servable
from handlers.tasks.image_classification import ImageClassification, softmax
from handlers.tasks.object_detection import ObjectDetection
from handlers.tasks.semantic_segmentation import SemanticSegmentation
from marsmith import accuracy, preparing, quantise
from marsmith.accuracy import Accuracy, Evaluation
from marsmith.spec_parts import AccuracySpec, CalibrationSpec


def test_the_drop_is_that_of_the_metric_and_lies_in_its_interval(tmp_path: Path) -> None:
    levels = list(range(10, 250, 12))
    folder = grey(tmp_path, levels)
    rows = [f"{i:02}.png,{int(level > 120)}" for i, level in enumerate(levels)]
    (folder / "labels.csv").write_text("\n".join(["file,label", *rows]))
    reference, artifact = classifier(120), classifier(150)
    measured = evaluation(folder, reference)
    found = accuracy.compare(reference, measured.answers(reference), artifact, measured, 0.01)
    wrong = sum(120 < level <= 150 for level in levels) / len(levels)
    assert (found.reference, found.truth) == (1.0, "labels")
    assert found.drop == pytest.approx(wrong)
    assert found.interval[0] <= wrong <= found.interval[1]
    assert found.interval[0] < found.interval[1]
    assert not found.passed


def test_a_drop_of_as_much_as_is_allowed_passes() -> None:
    drop = 0.95 - 0.94
    assert drop > 0.01, "as floats have it"
    for allowed, passes in ((0.01, True), (0.009999, False)):
        found = Accuracy("top-1", "labels", 100, 0.95, 0.94, drop, (0.0, 0.02), allowed, "", 9)
        assert found.passed is passes


@pytest.mark.parametrize("said", [None, 7])
def test_pictures_are_drawn_as_often_as_the_task_says(
    said: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if said is not None:
        monkeypatch.setattr(ImageClassification, "resamples", said)
    reference, count = classifier(120), said or 1000
    measured = evaluation(grey(tmp_path, [10, 100, 140, 240]), reference)
    expected, asked = measured.answers(reference), list[int]()
    mean = reference.metric
    reference.metric = lambda evidence: (asked.append(1), mean(evidence))[1]  # type: ignore[method-assign]
    found = accuracy.compare(reference, expected, classifier(150), measured, 0.5)
    # Of both sides, and once of each with all pictures.
    assert len(asked) == 2 * (count + 1)
    assert found.to_json()["resamples"] == count


@pytest.mark.parametrize("value", [1.5488, -0.1, math.inf])
@pytest.mark.parametrize("artifact_alone", [False, True])
def test_a_metric_that_is_not_from_0_to_1_is_refused(
    value: float, artifact_alone: bool, tmp_path: Path
) -> None:
    folder = grey(tmp_path, [10, 200])
    (folder / "labels.csv").write_text("file,label\n00.png,dark\n01.png,light")
    reference, artifact = classifier(120), classifier(120)
    measured = evaluation(folder, reference)
    words = (
        rf"^handlers/tasks/image_classification\.py: top-1 is {value}, and .* evidence and metric"
    )
    given = iter([1.0, value])
    reference.metric = lambda evidence: next(given)  # type: ignore[method-assign]
    artifact.metric = lambda evidence: value  # type: ignore[method-assign]
    expected = measured.answers(reference)
    measure = partial(accuracy.compare, reference, expected, allowed=0.01)
    with pytest.raises(PluginError, match=words):
        (accuracy.alone if artifact_alone else measure)(artifact=artifact, evaluation=measured)


def test_what_rounding_adds_to_a_metric_is_taken_off(tmp_path: Path) -> None:
    folder, task = grey(tmp_path, [10, 200]), classifier(120)
    (folder / "labels.csv").write_text("file,label\n00.png,dark\n01.png,light")
    for found, kept in ((1 + 1e-7, 1.0), (-1e-7, 0.0)):
        task.metric = lambda evidence, found=found: found  # type: ignore[method-assign]
        assert accuracy.alone(task, evaluation(folder, task)).artifact == kept


def test_an_artifacts_metric_that_is_no_number_is_refused(tmp_path: Path) -> None:
    folder, task = grey(tmp_path, [10, 200]), classifier(120)
    measured, given = evaluation(folder, task), iter([1.0, math.nan])
    task.metric = lambda evidence: next(given)  # type: ignore[method-assign]
    with pytest.raises(PluginError, match="top-1 is nan, and a metric is from 0 to 1"):
        accuracy.compare(task, measured.answers(task), task, measured, 0.01)


def test_a_picture_without_an_answer_fails_the_gate(tmp_path: Path) -> None:
    folder, task = grey(tmp_path, [10, 200]), classifier(120)
    (folder / "labels.csv").write_text("file,label\n00.png,dark\n01.png,light")
    measured, artifact = evaluation(folder, task), classifier(120)
    expected, right = measured.answers(task), artifact.model

    def model(pixels: Any) -> Any:
        return tuple(np.where(pixels.max() > 120, np.nan, each) for each in right(pixels))

    artifact.model = model
    words = "^the artifact does not answer one of 00.png to 01.png: the model's output for this pic"
    with pytest.raises(AccuracyError, match=words):
        accuracy.compare(task, expected, artifact, measured, 1.0)
    with pytest.raises(AccuracyError, match=words):
        accuracy.alone(artifact, measured)
    with pytest.raises(AccuracyError, match="^eager does not answer one of 00.png to 01.png: the"):
        measured.answers(artifact)


def test_without_labels_the_truth_is_eagers_answer(tmp_path: Path) -> None:
    folder = grey(tmp_path, [10, 100, 140, 240])
    reference = classifier(120)
    measured = evaluation(folder, reference)
    expected = measured.answers(reference)
    same = accuracy.compare(reference, expected, classifier(120), measured, 0.0)
    other = accuracy.compare(reference, expected, classifier(150), measured, 0.5)
    assert (same.truth, same.artifact, same.drop) == ("eager", 1.0, 0.0)
    assert (other.artifact, other.passed) == (0.75, True)


def test_calibration_and_evaluation_pictures_never_overlap(tmp_path: Path) -> None:
    folder = grey(tmp_path, list(range(20, 220, 10)))
    drawn = quantise.calibration_files(CalibrationSpec(folder=str(folder), count=8), Path())
    assert drawn == quantise.calibration_files(CalibrationSpec(folder=str(folder), count=8), Path())
    # The same picture under another name is the same picture.
    (folder / "copy.png").write_bytes(drawn[0].read_bytes())
    given, without = AccuracySpec(folder=str(folder)), quantise.digests(drawn)
    left = Evaluation.of(given, Path(), classifier(100), without=without)
    taken = {path.read_bytes() for path in drawn}
    assert len(left.files) == 12
    assert not any(path.read_bytes() in taken for path in left.files)
    everything = quantise.digests(list(folder.glob("*.png")))
    with pytest.raises(SpecError, match="were taken to calibrate with.* as by --calibrate-count "):
        Evaluation.of(given, Path(), classifier(1), without=everything)


def test_a_folder_to_measure_on_that_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(
        SpecError, match=r"^accuracy\.folder \(--evaluate\): there is no folder .*/x"
    ):
        evaluation(tmp_path / "x", classifier(1))


@pytest.mark.parametrize("name", ["calibration", "accuracy"])
def test_a_broken_picture_of_int8_is_named(name: str, project: Path, tmp_path: Path) -> None:
    from marsmith import proving, spec

    (tmp_path / "broken.png").write_bytes(b"%PDF")
    folders = {key: {"folder": "samples/digits"} for key in ("calibration", "accuracy")}
    folders[name] = {"folder": str(tmp_path)}
    changes = {**folders, "precision": "int8", "runtime": "openvino"}
    model = spec.load(project / "models/lenet5_digits.yaml", changes)
    images = [Image.new("RGB", (8, 8), (level,) * 3) for level in (10, 200)]
    with pytest.raises(SpecError, match=r"/broken\.png: the body is a PDF document"):
        proving._Gate(model, project, classifier(100), images)


def test_the_layer_that_int8_hurts_most_comes_first() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.Flatten())
    network.append(nn.Linear(8 * 12 * 12, 4))
    with torch.no_grad():
        # One input channel a thousand times the others leaves these few of its 256 levels.
        network[0].weight[0] *= 1000
        network[2].weight[:, 0] *= 0.001
    module = Servable(Network(network, [0.5] * 3, [0.2] * 3), softmax(), {}).eval()
    pixels = np.random.default_rng(0).integers(0, 255, (2, 16, 16, 3)).astype(np.uint8)
    ranked = quantise.rank(module, [pixels])
    assert ranked[0][0] == "network.network.2"
    assert sorted(quantise.layers(module)) == sorted(name for name, _ in ranked)
    assert all(0 < error < 1 for _, error in ranked)
    assert ranked[0][1] > 10 * ranked[1][1]


def test_layers_are_ranked_on_pictures_of_all_folders() -> None:
    """In the order of their paths the first ones are of one class, with a folder for each."""
    module = Servable(Network(nn.Conv2d(3, 4, 1), [0.5] * 3, [0.2] * 3), softmax(), {}).eval()
    seen: list[int] = []
    module.register_forward_pre_hook(lambda _, given: seen.append(int(given[0].max())))
    quantise.rank(module, [np.full((1, 4, 5, 3), level, np.uint8) for level in range(1, 33)])
    assert seen == [1, 5, 9, 13, 17, 21, 25, 29]


def test_a_transposed_convolution_is_ranked_as_the_convolution_that_it_equals() -> None:
    torch.manual_seed(0)
    one, other = nn.Conv2d(3, 8, 1), nn.ConvTranspose2d(3, 8, 1)
    with torch.no_grad():
        one.weight[0] *= 50
        other.weight.copy_(one.weight.transpose(0, 1))
        other.bias.copy_(one.bias)
    pixels = np.random.default_rng(0).integers(0, 255, (2, 4, 5, 3)).astype(np.uint8)
    errors = []
    for layer in (one, other):
        network = Network(nn.Sequential(layer), [0.5] * 3, [0.2] * 3)
        module = Servable(network, softmax(), {}).eval()
        errors.append(quantise.rank(module, [pixels]))
    ((name, error),) = errors[0]
    assert errors[1] == [(name, pytest.approx(error, rel=1e-3))]


class _ToSize(nn.Module):
    """Says what size it wants, for a stride leaves that open."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.ConvTranspose2d(3, 4, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.up(x, output_size=[10, 12])


def test_a_transposed_convolution_to_a_size_is_ranked() -> None:
    module = Servable(Network(_ToSize(), [0.5] * 3, [0.2] * 3), softmax(), {}).eval()
    pixels = np.random.default_rng(0).integers(0, 255, (2, 4, 5, 3)).astype(np.uint8)
    assert [name for name, _ in quantise.rank(module, [pixels])] == ["network.network.up"]


class _Attends(nn.Module):
    """Attention over the places of a picture, whose projections are not called as modules."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 2, 2)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x).flatten(2).transpose(1, 2)
        found: Tensor = self.attention(x, x, x, need_weights=False)[0]
        return found.mean(1)


def test_attention_is_ranked_as_one_layer_and_left_in_float_with_its_projections() -> None:
    torch.manual_seed(0)
    module = Servable(Network(_Attends(), [0.5] * 3, [0.2] * 3), softmax(), {}).eval()
    pixels = np.random.default_rng(0).integers(0, 255, (2, 8, 6, 3)).astype(np.uint8)
    assert len(quantise.layers(module)) == 2
    ranked = dict(quantise.rank(module, [pixels]))
    assert sorted(ranked) == ["network.network.attention", "network.network.conv"]
    assert 0 < ranked["network.network.attention"] < 1
    names = {f"network.network.{name}" for name in ("attention", "attention.out_proj", "conv")}
    assert quantise.within(module, list(ranked)) == names


def test_the_mean_of_ious_is_torchmetrics() -> None:
    from torchmetrics.classification import MulticlassJaccardIndex

    generator = np.random.default_rng(0)
    task = SemanticSegmentation()
    labels = list("abcde")
    task.bundle = Bundle("m", "1", "t", "r", "a", labels, ImageInput(), limits=Limits())
    ours, metric = [], MulticlassJaccardIndex(5, ignore_index=255)
    for _ in range(4):
        # Class 4 is in no picture, 255 is not counted.
        found, truth = (generator.choice([0, 1, 2, 3], (9, 7)).astype(np.uint8) for _ in range(2))
        truth[0, 0] = 255
        ours.append(task.evidence({"mask": {"format": "png", "data": _png(found)}}, truth))
        metric.update(torch.from_numpy(found).long(), torch.from_numpy(truth).long())
    assert task.metric(ours) == pytest.approx(float(metric.compute()), abs=1e-6)


def _png(ids: Any) -> str:
    import base64
    import io

    file = io.BytesIO()
    Image.fromarray(ids).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


def test_a_detectors_own_sure_boxes_are_a_perfect_truth() -> None:
    task = ObjectDetection()
    task.bundle = Bundle("m", "1", "t", "r", "a", ["background", "car"], ImageInput())
    box = {"xmin": 1.0, "ymin": 2.0, "xmax": 30.0, "ymax": 40.0}
    answer = [
        {"label": "car", "score": 0.9, "box": box},
        {"label": "car", "score": 0.1, "box": {**box, "xmax": 90.0}},
    ]
    truth = task.as_truth(answer)
    assert truth[0].shape == (1, 4)
    assert task.metric([task.evidence(answer, truth)]) == pytest.approx(1.0)


def test_ranking_layers_warns_of_no_picture(project: Path, tmp_path: Path) -> None:
    """What Pillow gives may not be written, and torch warns of such arrays."""
    from marsmith import proving, samples, spec

    folders = {"calibration": {"folder": "samples/digits", "count": 4}}
    changes = {**folders, "accuracy": {"folder": "samples/digits"}, "precision": "int8"}
    path = project / "models/lenet5_digits.yaml"
    model = spec.load(path, {**changes, "runtime": "openvino"})
    module, bundle = preparing.prepare(model, project, tmp_path)
    reference = preparing.reference(bundle, module)
    images = samples.compared(samples.found(project / model.samples), 10**8, any_size=False)
    gate = proving._Gate(model, project, reference, images)
    assert len(gate.calibration) == 4
    assert len(quantise.rank(module, gate.calibration)) == len(quantise.layers(module))


def test_pictures_in_which_a_detector_finds_nothing_are_no_gate(tmp_path: Path) -> None:
    assert math.isnan(ObjectDetection.metric([_no_boxes()]))
    folder = grey(tmp_path, [10, 100])
    task = ObjectDetection()
    task.bundle = Bundle("m", "1", "t", "r", "a", ["background", "car"], ImageInput())
    task.widest = dict  # type: ignore[method-assign]
    measured = Evaluation.of(AccuracySpec(folder=str(folder)), tmp_path, task)
    task.answer = lambda images, **_: [[] for _ in images]  # type: ignore[method-assign]
    with pytest.raises(SpecError, match="mAP says nothing on these 2 pictures, for eager finds"):
        accuracy.compare(task, [[], []], task, measured, 0.01)


def _no_boxes() -> Any:
    found = {"boxes": torch.zeros(0, 4), "scores": torch.zeros(0)}
    nothing = torch.zeros(0, dtype=torch.int64)
    return {**found, "labels": nothing}, {"boxes": torch.zeros(0, 4), "labels": nothing}


def test_masks_are_read_one_by_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = grey(tmp_path, [10, 100])
    (folder / "masks").mkdir()
    for path in folder.glob("*.png"):
        Image.fromarray(np.ones((4, 4), np.uint8)).save(folder / "masks" / path.name)
    read: list[str] = []
    ids = truths._ids
    monkeypatch.setattr(truths, "_ids", lambda path, n: (read.append(path.name), ids(path, n))[1])
    found = truths.masks(folder, LABELS)
    assert len(found) == 2
    # Until one has a class.
    assert len(read) == 1
    assert np.asarray(found[0][1]).dtype == np.uint8
    assert len(read) == 2
    # For its digest before anything is built, and once to measure both sides.
    task = SemanticSegmentation()
    task.bundle = Bundle("m", "1", "semantic-segmentation", "r", "a", LABELS, ImageInput())
    answer = {"size": [4, 4], "classes": [], "mask": {"format": "rle", "data": {}}}
    task.answer = lambda images, **_: [answer] * len(images)  # type: ignore[method-assign]
    evaluation = Evaluation.of(AccuracySpec(folder=str(folder)), tmp_path, task)
    read.clear()
    accuracy.compare(task, evaluation.answers(task), task, evaluation, 0.01)
    assert len(read) == len(found)


def test_boxes_of_a_picture_that_is_shown_turned_are_refused(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    Image.new("RGB", (9, 5)).save(tmp_path / "a.jpg", exif=exif)
    document = {
        "images": [{"id": 1, "file_name": "a.jpg", "width": 5, "height": 9}],
        "categories": [{"id": 3, "name": "light"}],
        "annotations": [{"image_id": 1, "category_id": 3, "bbox": [1, 2, 3, 4]}],
    }
    (tmp_path / "annotations.json").write_text(json.dumps(document))
    assert len(truths.boxes(tmp_path, LABELS)) == 1
    document["images"][0] |= {"width": 9, "height": 5}  # type: ignore[operator]
    (tmp_path / "annotations.json").write_text(json.dumps(document))
    with pytest.raises(SpecError, match=r"a\.jpg is 5x9 upright, and annotations.json says 9x5"):
        truths.boxes(tmp_path, LABELS)


@pytest.mark.parametrize("kind", ["tiff", "damaged"])
def test_what_is_shown_is_what_a_worker_reads(kind: str, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    name, size = ("a.tiff", (5, 9)) if kind == "tiff" else ("a.jpg", (9, 5))
    given = exif if kind == "tiff" else b"Exif\0\0MM\0*damaged"
    Image.new("RGB", (9, 5)).save(tmp_path / name, exif=given)
    assert pictures.decode((tmp_path / name).read_bytes(), 100).size == size
    document = {
        "images": [{"id": 1, "file_name": name, "width": size[0], "height": size[1]}],
        "categories": [{"id": 3, "name": "light"}],
        "annotations": [],
    }
    (tmp_path / "annotations.json").write_text(json.dumps(document))
    assert len(truths.boxes(tmp_path, LABELS)) == 1


def test_a_picture_that_is_listed_twice_may_be_drawn_twice(tmp_path: Path) -> None:
    grey(tmp_path, [1, 2])
    files = ("00.png", "00.png", "01.png")
    document = {
        "images": [{"id": index, "file_name": name} for index, name in enumerate(files)],
        "categories": [{"id": 3, "name": "light"}],
        "annotations": [{"image_id": 0, "category_id": 3, "bbox": [1, 2, 3, 4]}],
    }
    (tmp_path / "annotations.json").write_text(json.dumps(document))
    task = ObjectDetection()
    task.bundle = Bundle("m", "1", "t", "r", "a", LABELS, ImageInput())
    found = Evaluation.of(AccuracySpec(folder=str(tmp_path), count=2), tmp_path, task)
    assert len(found.files) == 2
