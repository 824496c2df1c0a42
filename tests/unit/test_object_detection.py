from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from torch import nn

from handlers.bundle import Bundle
from handlers.closeness import DEFAULTS
from handlers.errors import BadRequest, InferenceError, PluginError
from handlers.foreign import Contract
from handlers.inputs import ImageInput
from handlers.options import parse_options
from handlers.pictures import Picture
from handlers.servable import Servable
from handlers.tasks.object_detection import ObjectDetection
from marsmith import preparing
from marsmith.spec import load


def _task(given: ImageInput) -> ObjectDetection:
    task = ObjectDetection()
    labels = ["background", "car", "N/A", "N/A"]
    task.bundle = Bundle("m", "1.0", "object-detection", "eager", "m.pth", labels, given)
    task.bundle.decode["score_floor"] = 0.05
    return task


def test_what_is_found_in_the_bars_of_a_letterbox_is_no_box() -> None:
    task = _task(ImageInput(resize=[80, 80], letterbox=0))
    # 160x80 becomes 80x40 with 20 rows of bars above and below.
    picture = Picture.of(Image.new("RGB", (160, 80)))
    boxes = np.array(
        [[10, 2, 30, 15], [10, 10, 30, 30], [40, 65, 60, 80], [0, 20, 80, 60]], np.float32
    )
    scores, classes = np.array([0.9, 0.8, 0.7, 0.6], np.float32), np.array([1, 1, 1, 1])
    answer = task.postprocess((boxes, scores, classes), picture, {"min_score": 0.5})
    assert [each["box"] for each in answer] == [
        {"xmin": 20.0, "ymin": 0.0, "xmax": 60.0, "ymax": 20.0},
        {"xmin": 0.0, "ymin": 0.0, "xmax": 160.0, "ymax": 80.0},
    ]


def test_a_box_whose_score_is_the_least_asked_for_is_answered() -> None:
    boxes, classes = np.array([[0, 0, 9, 9]] * 3, np.float32), np.array([1, 1, 1])
    scores = np.array([0.5, 0.25, 0.0], np.float32)
    task, picture = _task(ImageInput()), Picture.of(Image.new("RGB", (20, 20)))
    for least, count in ((0.5, 1), (0.25, 2), (0.0, 2)):
        answer = task.postprocess((boxes, scores, classes), picture, {"min_score": least})
        assert len(answer) == count, least


def test_a_least_score_below_what_the_artifact_gives_is_raised_to_it() -> None:
    task = _task(ImageInput())
    task.bundle.decode["score_floor"] = 0.6
    [option] = task.options()
    assert (option.default, option.minimum) == (0.6, 0.6)


def test_a_lone_box_may_be_as_far_above_the_threshold_as_scores_may_move() -> None:
    task = _task(ImageInput())
    box = {"xmin": 0.0, "ymin": 0.0, "xmax": 9.0, "ymax": 9.0}
    for precision, score, same in (
        ("fp32", 0.54, True),
        ("fp32", 0.56, False),
        ("int8", 0.79, True),
        ("int8", 0.81, False),
    ):
        task.bundle = replace(task.bundle, closeness=DEFAULTS[precision])
        lone = [{"label": "car", "score": score, "box": box}]
        for expected, answer in ((lone, []), ([], lone)):
            found = task.compare(expected, answer)
            assert (found.same, found.score) == (same, pytest.approx(score - 0.5)), precision


def test_an_answer_is_like_itself() -> None:
    """Also where two classes of the same name have the same box."""
    task = _task(ImageInput())
    picture = Picture.of(Image.new("RGB", (100, 60)))
    boxes = np.array([[0, 0, 100, 60]] * 2 + [[5, 60, 20, 60], [5, 5, 20, 20]], np.float32)
    scores, classes = np.array([0.9, 0.6, 0.8, 0.7], np.float32), np.array([2, 3, 1, 1])
    answer = task.postprocess((boxes, scores, classes), picture, {"min_score": 0.05})
    assert len(answer) == 3
    difference = task.compare(answer, answer)
    assert (difference.same, difference.score) == (True, 0.0)


def _detector(name: str, **decode: Any) -> Any:
    """What has the thresholds of torchvision's detector ``name`` with a model's ``decode``."""
    recipe = {
        "architecture": f"torchvision:{name}",
        "arguments": {"num_classes": 4},
        "task": "object-detection",
        "decode": {**ObjectDetection.decode_settings, **decode},
        "mean": [0.0] * 3,
        "std": [1.0] * 3,
    }
    detector = Servable.build(recipe, Path()).bare()
    return getattr(detector, "roi_heads", detector)


@pytest.mark.parametrize(
    "name", ["ssdlite320_mobilenet_v3_large", "fasterrcnn_mobilenet_v3_large_320_fpn"]
)
def test_the_settings_of_decode_are_the_detectors_own(name: str) -> None:
    head = _detector(name, score_floor=0.3, nms_iou=0.4, max_detections=7)
    assert (head.score_thresh, head.nms_thresh, head.detections_per_img) == (0.3, 0.4, 7)
    # What torchvision's builders say, where a model says nothing.
    usual = {"ssdlite320_mobilenet_v3_large": 0.55}.get(name, 0.5)
    head = _detector(name)
    assert (head.score_thresh, head.nms_thresh, head.detections_per_img) == (0.05, usual, 100)


def test_a_detector_of_another_kind_that_has_no_such_setting_is_refused() -> None:
    with pytest.raises(
        PluginError, match="Identity has no score_thresh, detections_per_img as torc"
    ):
        ObjectDetection.adapt(nn.Identity(), dict(ObjectDetection.decode_settings))


@pytest.mark.parametrize(
    "name",
    [
        "fasterrcnn_mobilenet_v3_large_320_fpn",
        "fcos_resnet50_fpn",
        "retinanet_resnet50_fpn",
        "ssd300_vgg16",
        "ssdlite320_mobilenet_v3_large",
    ],
)
def test_the_classes_of_torchvisions_detectors_are_counted(name: str) -> None:
    network = _detector(name)
    wrapped = nn.ModuleDict({"inside": network})
    assert ObjectDetection.classes(network, None) == 4
    assert ObjectDetection.classes(wrapped, None) == 4
    assert ObjectDetection.classes(nn.Linear(3, 4), None) is None


@pytest.mark.parametrize(
    ("name", "decode", "words"),
    [
        (
            "nms_iou",
            {"nms_iou": 0.55},
            "the IoU of NMS is fixed when the archive is built, here 0.55",
        ),
        ("iou", {"nms_iou": 0.55}, "option iou: the IoU of NMS is fixed"),
        (
            "iou_threshold",
            {"nms_iou": None},
            "is built, here the artifact's own: accepted are min_",
        ),
        ("max_detections", {"max_detections": 300}, "the number of boxes is fixed .*, here 300"),
        ("score_floor", {"score_floor": 0.1}, "least possible score is fixed .*, here 0.1"),
    ],
)
def test_what_an_archive_fixes_is_told_to_who_asks_for_another(
    name: str, decode: dict[str, Any], words: str
) -> None:
    task = _task(ImageInput())
    task.bundle.decode.update({**ObjectDetection.decode_settings, **decode})
    with pytest.raises(BadRequest, match=words) as refused:
        parse_options({name: 0.3}, task.options(), task.fixed())
    assert "accepted are min_score: a number from" in str(refused.value)
    with pytest.raises(BadRequest, match="unknown option 'other'"):
        parse_options({"other": 0.3}, task.options(), task.fixed())


def test_an_artifact_of_others_may_be_asked_for_all_that_it_gives() -> None:
    task = _task(ImageInput())
    task.bundle = replace(task.bundle, foreign=Contract(outputs={"boxes": None}))
    boxes = np.array([[0, 0, 9, 9], [0, 0, 7, 7]], np.float32)
    outputs = (boxes, np.array([0.9, 0.03], np.float32), np.array([1, 1]))
    picture = Picture.of(Image.new("RGB", (20, 20)))
    asked = parse_options({"min_score": 0.01}, task.options())
    for options, count in ((asked, 2), (task.widest(), 2), (task.defaults(), 1)):
        assert len(task.postprocess(outputs, picture, options)) == count


@pytest.mark.parametrize(("said", "has"), [(None, 0.55), (0.3, 0.3)])
def test_an_archive_tells_what_its_network_has(
    project: Path, tmp_path: Path, said: float | None, has: float
) -> None:
    changes = {"decode": {"nms_iou": said, "max_detections": None}}
    _, bundle = preparing.prepare(
        load(project / "models/ssdlite_shapes.yaml", changes), project, tmp_path
    )
    assert bundle.decode == {"score_floor": 0.05, "nms_iou": has, "max_detections": 300}


@pytest.mark.parametrize("index", [-1, 4])
def test_a_class_without_a_label_is_no_other_class(index: int) -> None:
    task = _task(ImageInput())
    boxes, scores = np.array([[0, 0, 9, 9]], np.float32), np.array([0.9], np.float32)
    outputs = (boxes, scores, np.array([index]))
    picture = Picture.of(Image.new("RGB", (20, 20)))
    with pytest.raises(InferenceError, match=f"found class {index} and its archive has 4 labels"):
        task.postprocess(outputs, picture, {"min_score": 0.5})
    assert task.postprocess(outputs, picture, {"min_score": 0.95}) == []
