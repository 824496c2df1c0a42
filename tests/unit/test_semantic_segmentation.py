"""A plane of class ids and one of confidences, made by hand, and every kind of answer to them."""

from __future__ import annotations

import base64
import io
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco

from handlers.bundle import Bundle
from handlers.inputs import ImageInput
from handlers.pictures import Picture
from handlers.tasks.semantic_segmentation import SemanticSegmentation

LABELS = ["background", "cat", "dog", "tree"]
IDS = np.array(
    [[0, 0, 0, 0, 0], [0, 3, 3, 1, 0], [0, 3, 3, 1, 0]],
    np.uint8,
)
CONFIDENCE = np.array(
    [[255, 250, 245, 240, 235], [230, 100, 120, 51, 225], [220, 140, 160, 102, 215]],
    np.uint8,
)


@pytest.fixture
def task() -> SemanticSegmentation:
    made = SemanticSegmentation()
    given = ImageInput()
    labels = list(LABELS)
    made.bundle = Bundle("m", "1.0", "semantic-segmentation", "eager", "m.pth", labels, given)
    return made


def answer(task: SemanticSegmentation, mask: str, scale: int = 1) -> Any:
    """The answer to a picture ``scale`` times as large as the planes."""
    picture = Picture.of(Image.new("RGB", (IDS.shape[1] * scale, IDS.shape[0] * scale)))
    [option] = task.options()
    return task.postprocess((IDS, CONFIDENCE), picture, {"mask": option.parse(mask)})


@pytest.mark.parametrize("scale", [1, 4])
@pytest.mark.parametrize("mask", ["png", "rle", "none"])
def test_classes_are_told_with_share_and_mean_confidence(
    task: SemanticSegmentation, mask: str, scale: int
) -> None:
    found = answer(task, mask, scale)
    assert found["size"] == [3 * scale, 5 * scale]
    assert [each["label"] for each in found["classes"]] == ["background", "tree", "cat"]
    for each in found["classes"]:
        here = LABELS.index(each["label"]) == IDS
        assert each["share"] == pytest.approx(here.mean(), abs=1e-6)
        assert each["score"] == pytest.approx(CONFIDENCE[here].mean() / 255, abs=1e-6)


@pytest.mark.parametrize("scale", [1, 4])
def test_a_png_is_the_plane(task: SemanticSegmentation, scale: int) -> None:
    mask = answer(task, "png", scale)["mask"]
    assert mask["format"] == "png"
    shown = np.asarray(Image.open(io.BytesIO(base64.b64decode(mask["data"]))))
    assert np.array_equal(shown, IDS.repeat(scale, 0).repeat(scale, 1))


# pycocotools' own, of NumPy 2.
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
@pytest.mark.parametrize("scale", [1, 4])
def test_run_lengths_are_those_of_coco(task: SemanticSegmentation, scale: int) -> None:
    mask = answer(task, "rle", scale)["mask"]
    assert mask["format"] == "rle"
    assert list(mask["data"]) == ["background", "tree", "cat"]
    for label, encoded in mask["data"].items():
        decoded = coco.decode(encoded)
        expected = (LABELS.index(label) == IDS).repeat(scale, 0).repeat(scale, 1)
        assert np.array_equal(decoded, expected)


def test_no_mask_is_sent_where_none_is_asked_for(task: SemanticSegmentation) -> None:
    assert answer(task, "none").keys() == {"size", "classes"}


@pytest.mark.parametrize(
    ("first", "clear"),
    [("background", True), ("__background__", True), ("Void", True), ("road", False)],
)
def test_a_first_class_is_drawn_unless_it_is_the_background(
    task: SemanticSegmentation, first: str, clear: bool
) -> None:
    task.bundle.labels[0:1] = [first]
    picture = Image.new("RGB", (500, 300), (90, 90, 90))
    ids = np.zeros((300, 500), np.uint8)
    found = task.postprocess((ids, ids), Picture.of(picture), {"mask": "png"})
    drawn = task.draw(found, picture)
    assert (drawn.getpixel((250, 150)) == (90, 90, 90)) == clear
