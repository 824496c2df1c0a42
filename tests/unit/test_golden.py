"""Golden requests: a worker whose answers are not those of the build refuses to load."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from handlers import golden
from handlers.bundle import Bundle, Limits
from handlers.errors import GoldenError, InferenceError, ParityError, PluginError
from handlers.golden import Golden
from handlers.inputs import ImageInput
from handlers.runtimes import Array, Arrays
from handlers.tasks.image_classification import ImageClassification
from handlers.tasks.object_detection import ObjectDetection
from marsmith import goldens

LABELS = ["red", "green", "blue"]
COLORS = [Image.new("RGB", (8, 8), name) for name in ("red", "lime", "blue")]


def means(images: Array) -> Arrays:
    """Scores that are each channel's share: 1 for a picture of that colour alone."""
    sums = images.sum(axis=(1, 2)).astype(np.float32)
    return (sums / sums.sum(axis=1, keepdims=True),)


def handler(model: Callable[[Array], Arrays] = means, batch: int = 4) -> ImageClassification:
    made = ImageClassification()
    made.bundle = Bundle(
        "m",
        "1.0",
        "image-classification",
        "eager",
        "m.pth",
        LABELS,
        ImageInput(),
        limits=Limits(batch_size=batch),
        artifact_batch=batch,
    )
    made.model = model
    return made


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    goldens.write(handler(), handler(), COLORS, tmp_path)
    return tmp_path


def rewrite(folder: Path, **changes: Any) -> None:
    requests = [replace(request, **changes) for request in golden.read(folder)]
    (folder / golden.FILE).write_text(golden.to_json(requests))


def test_the_same_model_passes(folder: Path) -> None:
    golden.check(handler(), folder)
    assert golden.read(folder)[0] == Golden(
        "golden/0.png",
        [
            {"label": "red", "score": 1.0},
            {"label": "green", "score": 0.0},
            {"label": "blue", "score": 0.0},
        ],
        0.001,
    )


def test_pictures_are_lossless(folder: Path) -> None:
    for request, original in zip(golden.read(folder), COLORS, strict=False):
        with Image.open(folder / request.picture) as stored:
            assert np.array_equal(np.asarray(stored), np.asarray(original))


def test_the_clearest_samples_are_chosen(tmp_path: Path) -> None:
    unclear = Image.new("RGB", (8, 8), (100, 99, 0))
    goldens.write(handler(), handler(), [unclear, COLORS[1], unclear, COLORS[2]], tmp_path)
    found = golden.read(tmp_path)
    assert [request.answer[0]["label"] for request in found] == ["green", "blue"]
    assert len(found) == goldens.COUNT


def test_without_a_clear_sample_nothing_is_written(tmp_path: Path) -> None:
    tie = Image.new("RGB", (8, 8), (100, 100, 0))
    with pytest.raises(ParityError, match="no sample is decided clearly"):
        goldens.write(handler(), handler(), [tie], tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_an_answer_of_one_label_hides_no_tie(tmp_path: Path) -> None:
    task = handler()
    task.bundle = replace(task.bundle, defaults={"top_k": 1})
    tie = Image.new("RGB", (8, 8), (100, 100, 0))
    goldens.write(task, task, [tie, COLORS[1]], tmp_path)
    assert [request.answer[0]["label"] for request in golden.read(tmp_path)] == ["green"]


def test_boxes_below_the_threshold_decide_nothing(tmp_path: Path) -> None:
    task = ObjectDetection()
    changes = {"task": "object-detection", "decode": dict(ObjectDetection.decode_settings)}
    task.bundle = replace(handler().bundle, **changes)
    task.model = lambda images: (
        np.tile(np.float32([[[0, 0, 4, 4]]]), (len(images), 1, 1)),
        np.full((len(images), 1), 0.4, np.float32),
        np.ones((len(images), 1), np.int32),
    )
    with pytest.raises(ParityError, match="no sample is decided clearly: the best margin is 0"):
        goldens.write(task, task, COLORS, tmp_path)


def test_large_samples_are_shrunk_and_left_as_they_are(tmp_path: Path) -> None:
    large = Image.new("RGB", (2000, 1000), "red")
    goldens.write(handler(), handler(), [large], tmp_path)
    with Image.open(tmp_path / "golden/0.png") as small:
        assert small.size == (320, 160)
    assert large.size == (2000, 1000)
    golden.check(handler(), tmp_path)


def test_every_request_is_answered_alone_and_in_a_full_batch(folder: Path) -> None:
    sizes = []

    def counting(images: Array) -> Arrays:
        sizes.append(len(images))
        return means(images)

    golden.check(handler(counting, batch=5), folder)
    assert sizes == [1, 1, 5]


@pytest.mark.parametrize(
    "model",
    [
        lambda images: means(images[..., ::-1]),
        lambda images: (means(images)[0] * 0.99,),
        lambda images: (np.roll(means(images)[0], 1, axis=1),),
        lambda images: (means(images)[0] if len(images) == 1 else means(images)[0][::-1],),
        lambda images: (means(images)[0] - np.float32(0.002),),
        lambda images: (np.roll(means(images)[0], int(len(images) == 1), axis=1),),
    ],
    ids=[
        "swapped channels",
        "other scale",
        "swapped labels",
        "swapped rows",
        "moved scores",
        "swapped labels of one alone",
    ],
)
def test_another_model_is_refused(folder: Path, model: Callable[[Array], Arrays]) -> None:
    with pytest.raises(GoldenError, match=r"golden/\d\.png is not answered as at build"):
        golden.check(handler(model), folder)


def test_a_move_within_the_tolerance_passes(folder: Path) -> None:
    golden.check(handler(lambda images: (means(images)[0] - np.float32(0.0005),)), folder)


def test_another_answer_is_refused(folder: Path) -> None:
    # However far scores may move.
    rewrite(folder, answer=[{"label": "green", "score": 1.0}], tolerance=1.0)
    with pytest.raises(GoldenError, match="top-1 is red, expected green"):
        golden.check(handler(), folder)


def test_a_tolerance_that_is_no_number_lets_nothing_pass(folder: Path) -> None:
    rewrite(folder, tolerance=float("nan"))
    with pytest.raises(GoldenError, match="allowed nan"):
        golden.check(handler(), folder)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", "[1]", '[{"picture": 1}]', "null", "5"])
def test_requests_that_cannot_be_read_are_refused(folder: Path, text: str) -> None:
    (folder / golden.FILE).write_text(text)
    with pytest.raises(GoldenError, match="build the archive again"):
        golden.check(handler(), folder)


def test_a_picture_that_cannot_be_read_is_refused(folder: Path) -> None:
    (folder / "golden/1.png").write_bytes(b"no picture")
    with pytest.raises(GoldenError, match=r"1\.png cannot be read"):
        golden.check(handler(), folder)


def test_the_requests_are_text_that_a_person_can_read(folder: Path) -> None:
    text = (folder / golden.FILE).read_text()
    assert json.loads(text)[0]["tolerance"] == 0.001
    assert text.endswith("]\n")


def test_an_answer_that_is_no_json_builds_nothing(tmp_path: Path) -> None:
    task = handler()
    task.postprocess = lambda outputs, *_: [  # type: ignore[method-assign]
        {"label": "red", "score": outputs[0][0]}
    ]
    words = r"^handlers/tasks/image_classification\.py: postprocess gives what is no JSON .*float32"
    with pytest.raises(PluginError, match=words):
        goldens.write(task, task, COLORS, tmp_path)
    assert not list(tmp_path.iterdir())


def test_an_answer_that_cannot_be_drawn_builds_nothing(tmp_path: Path) -> None:
    task = handler()
    task.draw = lambda answer, picture: None  # type: ignore[assignment, method-assign, return-value]
    with pytest.raises(InferenceError, match="could not answer: AttributeError: 'NoneType' object"):
        goldens.write(task, task, COLORS, tmp_path)
    assert not list(tmp_path.iterdir())
