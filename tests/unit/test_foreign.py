"""The artifact of others: its pixels, its outputs, and what must be said of it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from handlers import plugins
from handlers.errors import SpecError
from handlers.foreign import Contract, Foreign, flatten, meaning_of
from handlers.inputs import ImageInput
from marsmith import spec
from tests.user import ARTIFACT

CV2 = {
    "nearest": cv2.INTER_NEAREST,
    "bilinear": cv2.INTER_LINEAR,
    "bicubic": cv2.INTER_CUBIC,
}
RNG = np.random.default_rng(0)


def noise(width: int, height: int) -> Image.Image:
    return Image.fromarray(RNG.integers(0, 256, (height, width, 3), dtype=np.uint8))


# Preprocessing as OpenCV does it -------------------------------------------------------------


@pytest.mark.parametrize("size", [(640, 480), (64, 48), (37, 200), (31, 31), (1, 9), (224, 224)])
@pytest.mark.parametrize("target", [[224, 224], [96, 160]])
@pytest.mark.parametrize(("mode", "most"), [("nearest", 0), ("bilinear", 1), ("bicubic", 1)])
def test_without_antialias_pixels_are_those_of_cv2(
    size: tuple[int, int], target: list[int], mode: str, most: int
) -> None:
    """To the level that its fixed-point arithmetic rounds away."""
    picture = noise(*size)
    made = ImageInput("bgr", target, interpolation=mode, antialias=False).prepare(picture)
    wanted = cv2.resize(np.asarray(picture)[:, :, ::-1], target[::-1], interpolation=CV2[mode])
    assert made.shape == wanted.shape
    assert np.abs(made.astype(int) - wanted).max() <= most
    assert (made != wanted).mean() < 0.2
    grey = ImageInput("gray", target, interpolation=mode, antialias=False).prepare(picture)
    wanted = cv2.resize(np.asarray(picture.convert("L")), target[::-1], interpolation=CV2[mode])
    assert np.abs(grey[:, :, 0].astype(int) - wanted).max() <= most


SIDES = st.integers(1, 90)


@given(SIDES, SIDES, SIDES, SIDES, st.sampled_from(["nearest", "bilinear", "bicubic"]))
def test_every_size_is_resized_as_cv2_does(
    width: int, height: int, wide: int, high: int, mode: str
) -> None:
    picture = noise(width, height)
    made = ImageInput(resize=[high, wide], interpolation=mode, antialias=False).prepare(picture)
    wanted = cv2.resize(np.asarray(picture), (wide, high), interpolation=CV2[mode])
    assert np.abs(made.astype(int) - wanted).max() <= (0 if mode == "nearest" else 1)


def test_bicubic_without_antialias_is_torchs() -> None:
    picture = noise(90, 70)
    made = ImageInput(resize=[33, 150], interpolation="bicubic", antialias=False).prepare(picture)
    pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None].float()
    wanted = torch.nn.functional.interpolate(pixels, (33, 150), mode="bicubic")
    wanted = wanted[0].permute(1, 2, 0).clamp(0, 255)
    assert np.abs(made - wanted.numpy()).max() <= 0.51


def test_without_antialias_a_crop_is_the_middle_of_the_whole() -> None:
    picture = noise(90, 70)
    whole = ImageInput(resize=[50, 60], antialias=False).prepare(picture)
    part = ImageInput(resize=[50, 60], crop=[20, 40], antialias=False).prepare(picture)
    assert np.array_equal(part, whole[15:35, 10:50])
    grey = ImageInput("gray", [50, 60], antialias=False).prepare(picture)
    assert grey.shape == (50, 60, 1)


def cv2_letterbox(bgr: Any, height: int, width: int, level: int, centered: bool) -> Any:
    ratio = min(height / bgr.shape[0], width / bgr.shape[1])
    inner = round(bgr.shape[1] * ratio), round(bgr.shape[0] * ratio)
    dw, dh = (width - inner[0]) / 2, (height - inner[1]) / 2
    made = cv2.resize(bgr, inner, interpolation=cv2.INTER_LINEAR)
    around = round(dh - 0.1), round(dh + 0.1), round(dw - 0.1), round(dw + 0.1)
    if not centered:
        around = 0, height - inner[1], 0, width - inner[0]
    return cv2.copyMakeBorder(made, *around, cv2.BORDER_CONSTANT, value=(level,) * 3)


LETTERBOX = ImageInput("bgr", [96, 128], antialias=False, letterbox=114)
CORNER = replace(LETTERBOX, letterbox_position="top-left")


@pytest.mark.parametrize("size", [(300, 200), (200, 300), (17, 11), (500, 40), (128, 96)])
@pytest.mark.parametrize("letterbox", [LETTERBOX, CORNER], ids=["center", "top-left"])
def test_a_letterbox_is_that_of_the_usual_detectors(
    size: tuple[int, int], letterbox: ImageInput
) -> None:
    picture = noise(*size)
    centered = letterbox is LETTERBOX
    wanted = cv2_letterbox(np.asarray(picture)[:, :, ::-1], 96, 128, 114, centered)
    made = letterbox.prepare(picture)
    assert made.shape == wanted.shape
    assert np.abs(made.astype(int) - wanted).max() <= 1


@pytest.mark.parametrize("given", [LETTERBOX, CORNER, ImageInput(resize=80, crop=64), ImageInput()])
def test_boxes_come_back_to_where_they_are_in_the_picture(given: ImageInput) -> None:
    canvas = np.zeros((200, 300, 3), np.uint8)
    canvas[80:120, 130:190] = 255
    picture = Image.fromarray(canvas)
    rows, columns = np.nonzero(given.prepare(picture)[:, :, 0] > 180)
    box = np.array([[columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]], np.float32)
    back = given.boxes_in_picture(box, picture.size)
    assert np.abs(back - [[130, 80, 190, 120]]).max() <= 3
    outside = given.boxes_in_picture(np.array([[-999.0, -999, 9999, 9999]]), picture.size)
    assert outside.tolist() == [[0, 0, 300, 200]]


@pytest.mark.parametrize("side", [640, 1280])
def test_boxes_end_at_the_picture_where_it_has_the_inputs_size(side: int) -> None:
    given = ImageInput(resize=[640, 640], letterbox=114)
    boxes = np.array([[-12.3, 5, 700.5, 650]], np.float32)
    found = given.boxes_in_picture(boxes, (side, side))
    assert found.tolist() == [[0, 5 * side / 640, side, side]]
    assert given.boxes_in_picture(boxes, (640, 640)).dtype == np.float32


def test_a_plane_loses_what_is_around_the_letterbox() -> None:
    plane = np.zeros((48, 64), np.uint8)
    plane[:, 16:48] = 1
    # 100x150 becomes 64x96 with 32 columns of grey on both sides, here at half the resolution.
    assert LETTERBOX.plane_in_picture(plane, (100, 150)).tolist() == np.ones((48, 32)).tolist()
    grey = ImageInput("gray", [96, 128], letterbox=7).prepare(Image.new("RGB", (10, 10), "white"))
    assert (grey[0, 0, 0], grey[50, 64, 0]) == (7, 255)
    assert ImageInput(resize=[96, 128]).plane_in_picture(plane, (100, 150)) is plane
    corner = np.zeros((48, 64), np.uint8)
    corner[:, :32] = 1
    assert CORNER.plane_in_picture(corner, (100, 150)).tolist() == np.ones((48, 32)).tolist()


@given(
    st.sampled_from([LETTERBOX, CORNER, ImageInput(resize=[96, 128]), ImageInput(resize=64)]),
    st.tuples(st.integers(1, 400), st.integers(1, 400)),
    st.lists(st.floats(0, 1), min_size=4, max_size=4),
)
def test_a_box_of_the_picture_comes_back_from_the_input(
    made: ImageInput, size: tuple[int, int], shares: list[float]
) -> None:
    place = made.place(size)
    low, high = (np.array(sorted(shares[axis::2])) * size[axis] for axis in (0, 1))
    box = np.array([[low[0], high[0], low[1], high[1]]])
    scale = np.array([place.size[axis] / size[axis] for axis in (0, 1)] * 2)
    moved = box * scale + np.array(place.at * 2) - np.array(place.window[:2] * 2)
    assert np.abs(made.boxes_in_picture(moved, size) - box).max() < 1e-6 * max(size)
    inside = moved - np.array(place.at * 2)
    assert (inside >= -1e-9).all()
    assert (moved <= np.array(place.canvas * 2) + 1e-9).all()
    plane = np.zeros(place.canvas[::-1], np.uint8)
    left, top = place.at
    plane[top : top + place.size[1], left : left + place.size[0]] = 1
    assert made.plane_in_picture(plane, size).all()
    assert made.plane_in_picture(plane, size).size > 0


def test_boxes_in_the_bars_of_a_corner_letterbox_end_at_the_picture() -> None:
    """Also where the picture has the very width of the input, and is not resized."""
    boxes = np.array([[10.0, 20, 128, 96], [0, 50, 9, 90]])
    found = CORNER.boxes_in_picture(boxes, (128, 48))
    assert found.tolist() == [[10, 20, 128, 48], [0, 48, 9, 48]]


# Outputs of the artifacts of others ----------------------------------------------------------


class Fake:
    """A runtime whose artifact always gives the same outputs, and keeps what it was given."""

    def __init__(self, **outputs: Any) -> None:
        self.outputs = {name.strip("_"): np.asarray(value) for name, value in outputs.items()}
        self.fed: Any = None

    def named(self, images: Any) -> dict[str, Any]:
        self.fed = images
        return self.outputs


def foreign(
    task: str, runtime: Fake, outputs: dict[str, Any], labels: int = 3, **contract: Any
) -> Foreign:
    meaning = meaning_of(outputs, plugins.load_task(task).meanings)
    given = ImageInput(mean=(0.5, 0.25, 0.0), std=(0.5, 1.0, 2.0))
    return Foreign(runtime, Contract(outputs=outputs, **contract), given, meaning, labels)  # type: ignore[arg-type]


PIXELS = RNG.integers(0, 256, (1, 40, 60, 3), dtype=np.uint8)


@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
def test_pixels_become_what_the_artifact_takes(layout: str) -> None:
    runtime = Fake(_0=[[0.0, 1.0, 2.0]])
    foreign("image-classification", runtime, {"logits": None}, layout=layout)(PIXELS)
    wanted = (PIXELS / 255 - [0.5, 0.25, 0.0]) / [0.5, 1.0, 2.0]
    wanted = wanted.transpose(0, 3, 1, 2) if layout == "nchw" else wanted
    assert runtime.fed.dtype == np.float32
    assert runtime.fed.flags.c_contiguous
    np.testing.assert_allclose(runtime.fed, wanted, atol=1e-6)


def test_uint8_pixels_are_left_as_they_are_and_scale_divides() -> None:
    runtime = Fake(_0=[[0.0, 1.0, 2.0]])
    foreign("image-classification", runtime, {"logits": None}, layout="nhwc", dtype="uint8")(PIXELS)
    assert np.array_equal(runtime.fed, PIXELS)
    foreign("image-classification", runtime, {"logits": None}, layout="nhwc", scale=1.0)(PIXELS)
    np.testing.assert_allclose(runtime.fed[..., 2], PIXELS[..., 2] / 2)


def test_logits_and_probabilities_give_the_same_scores() -> None:
    logits = np.array([[1.0, 3.0, 2.0]], np.float32)
    scores = np.exp(logits) / np.exp(logits).sum()
    for name, value in (("logits", logits), ("probabilities", scores)):
        (made,) = foreign("image-classification", Fake(out=value), {name: "out"})(PIXELS)
        np.testing.assert_allclose(made, scores, atol=1e-6)
        assert made.dtype == np.float32
    halves = foreign("image-classification", Fake(out=np.float16(logits)), {"logits": "out"})
    assert halves.outputs(PIXELS)["logits"].dtype == np.float32


def test_a_segmenter_gives_logits_or_ids() -> None:
    logits = RNG.normal(size=(1, 3, 4, 5)).astype(np.float32)
    first = foreign("semantic-segmentation", Fake(out=logits), {"logits": "out"})(PIXELS)
    for plane in (logits.argmax(1), logits.argmax(1)[:, None].astype(np.float32)):
        ids, confidence = foreign("semantic-segmentation", Fake(out=plane), {"ids": None})(PIXELS)
        assert np.array_equal(ids, first[0])
        assert (ids.dtype, confidence.dtype, confidence.min()) == (np.uint8, np.uint8, 255)


BOXES = {"boxes": [[0.1, 0.25, 0.5, 1.0]], "scores": [0.9], "labels": [2]}


@pytest.mark.parametrize("batch_axis", [True, False])
def test_a_detector_gives_named_boxes_in_pixels_or_parts_of_the_input(batch_axis: bool) -> None:
    runtime = Fake(
        **{k: np.float32([v]) if batch_axis else np.float32(v) for k, v in BOXES.items()}
    )
    outputs = {"boxes": "boxes", "scores": None, "labels": None}
    settings = {"normalised": True, "label_offset": -1}
    boxes, scores, labels = foreign("object-detection", runtime, outputs | settings)(PIXELS)
    np.testing.assert_allclose(boxes, [[[6, 10, 30, 40]]], rtol=1e-6)
    assert (scores.shape, labels.tolist()) == ((1, 1), [[1]])
    # What has no score is no detection, and may have any label.
    padded = {"boxes": BOXES["boxes"] * 2, "scores": [0.9, 0.0], "labels": [2, -1]}
    found = foreign("object-detection", Fake(**{k: [v] for k, v in padded.items()}), {})(PIXELS)
    assert found[1].tolist() == [[pytest.approx(0.9), 0.0]]
    plain = foreign("object-detection", runtime, {})(PIXELS)
    np.testing.assert_allclose(plain[0], [BOXES["boxes"]])
    assert plain[2].tolist() == [[2]]


@pytest.mark.parametrize(
    ("task", "outputs", "given", "words"),
    [
        ("image-classification", {"logits": "y"}, {"x": [[1, 2, 3]]}, "gives x (1, 3)"),
        ("image-classification", {"logits": None}, {"x": [[1]], "y": [[2]]}, "x (1, 1), y (1, 1)"),
        ("image-classification", {"logits": None}, {"x": [[1.0, 2]]}, "2 classes .* 3 labels"),
        ("image-classification", {"logits": None}, {"x": [1.0, 2, 3]}, "logits are (N, classes)"),
        ("image-classification", {"probabilities": None}, {"x": [[1, 2, 3]]}, "say logits"),
        ("image-classification", {"probabilities": None}, {"x": [1.0]}, "are (N, classes)"),
        ("semantic-segmentation", {"ids": None}, {"x": [[[0, 3]]]}, "0.0 to 3.0, ids of 3 labels"),
        ("semantic-segmentation", {"ids": None}, {"x": [[[0, 0.5]]]}, "ids of 3 labels are whole"),
        ("semantic-segmentation", {"ids": None}, {"x": [[1]]}, "ids are (N, H, W)"),
        ("object-detection", {}, BOXES | {"labels": [3]}, "3 to 3, there are 3, .* label_offset"),
        ("object-detection", {}, BOXES | {"scores": [[0.9, 0.8]]}, "boxes are (1, 1, 4)"),
    ],
)
def test_outputs_that_are_not_what_the_spec_says_are_named(
    task: str, outputs: dict[str, Any], given: dict[str, Any], words: str
) -> None:
    model = foreign(task, Fake(**{k: np.asarray(v, np.float32) for k, v in given.items()}), outputs)
    with pytest.raises(ValueError, match=words.replace("(", r"\(").replace(")", r"\)")):
        model(PIXELS)


def test_one_class_alone_says_nothing() -> None:
    model = foreign("image-classification", Fake(_0=np.float32([[3.0]])), {"logits": None}, 1)
    with pytest.raises(ValueError, match="1 classes and there are 1 labels: .* at least two"):
        model(PIXELS)


def test_outputs_of_torch_modules_get_names() -> None:
    one, two = torch.ones(2, 3), torch.zeros(2)
    assert list(flatten(one)) == ["0"]
    assert list(flatten((one, two))) == ["0", "1"]
    assert list(flatten({"out": one, "aux": one})) == ["out", "aux"]
    # Auxiliary outputs that there are in training alone.
    assert list(flatten((one, None, None))) == ["0"]
    with pytest.raises(ValueError, match=r"^output 1\.note is a str: export it with tensors alone"):
        flatten((one, {"note": "a"}))
    each = [{"boxes": torch.ones(3, 4)}, {"boxes": torch.ones(0, 4)}]
    for outputs in (each, ({}, each)):
        boxes = flatten(outputs)["boxes"]
        assert (boxes.shape, boxes[1].max()) == ((2, 3, 4), 0)


def test_outputs_inside_of_others_have_their_path_for_a_name() -> None:
    main, first, second = (torch.full((1,), value) for value in (0.0, 1.0, 2.0))

    def names(outputs: Any) -> dict[str, float]:
        return {name: float(array[0]) for name, array in flatten(outputs).items()}

    assert names((main, [first, second])) == {"0": 0, "1.0": 1, "1.1": 2}
    assert names({"out": main, "aux": [first, second]}) == {"out": 0, "aux.0": 1, "aux.1": 2}
    assert names((main, {"aux": {"a": first, "b": second}})) == {"0": 0, "aux.a": 1, "aux.b": 2}
    # Of two dictionaries with one key, and of a key that is a position elsewhere, none has the
    # short name.
    assert names(({"out": main}, {"out": first})) == {"0.out": 0, "1.out": 1}
    assert names((main, {"0": first})) == {"0": 0, "1.0": 1}
    assert names([{"out": main}, {"aux": first}]) == {"out": 0, "aux": 1}


# The model file ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"architecture": "torchvision:resnet18"}, "architecture: not for an artifact of others"),
        ({"decode": {}}, "decode: not for an artifact"),
        ({"input": {"resize": 3}}, "say mean and std of the artifact"),
        ({"input": {"resize": 3, "mean": [0, 0, 0]}}, "say mean and std of the artifact"),
        ({"input": {"dtype": "uint8", "mean": [0, 0, 0]}}, "not applied to dtype uint8"),
        ({"input": {"scale": 0.00392156862745098}}, "input.scale: .* 1"),
        ({"input": {"layout": "cnhw"}}, "input.layout"),
        ({"input": {"letterbox": 114, "resize": 640}}, "letterbox needs resize: .height, width."),
        ({"input": {"antialias": False, "interpolation": "lanczos"}}, "nearest, bilinear, bicubic"),
        ({"input": {"backend": "tensor", "interpolation": "lanczos"}}, "bilinear or bicubic with"),
        (
            {"input": {"backend": "tensor", "antialias": False}},
            "bilinear or bicubic with antialias",
        ),
        ({"outputs": "boxes"}, "says boxes: accepted .* logits or probabilities"),
        ({"outputs": {}}, "outputs says nothing: accepted"),
        ({"outputs": {"logits": 0}}, "outputs.logits: 0 is not of type str"),
        ({"artifact": {"file": "m.abc"}}, "runtime torchscript loads no .abc file"),
        ({"task": "object-detection", "outputs": {"boxes": None}}, "boxes, scores, labels .and"),
    ],
)
def test_what_an_artifact_needs_is_said(changes: dict[str, Any], words: str) -> None:
    assert spec.parse(ARTIFACT, "m").outputs == {"logits": None}
    with pytest.raises(SpecError, match=words):
        spec.parse(ARTIFACT | changes, "m")


def test_a_network_of_marsmith_has_no_layout_of_its_own() -> None:
    plain = {"architecture": "torchvision:resnet18", "weights": {"file": "w"}, "name": "m"}
    for more in ({"outputs": "logits"}, {"input": {"layout": "nhwc"}}):
        with pytest.raises(SpecError, match="are of an artifact that others exported"):
            spec.parse({**plain, "task": "image-classification", **more}, "m")
