"""A plane of class ids and one of confidences, made by hand, and every kind of answer to them."""

from __future__ import annotations

import base64
import copy
import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as coco

from handlers import golden
from handlers.bundle import FILE, Bundle, Limits
from handlers.closeness import DEFAULTS
from handlers.errors import InferenceError, ParityError
from handlers.inputs import ImageInput
from handlers.pictures import Picture
from handlers.task import Item
from handlers.tasks.semantic_segmentation import SemanticSegmentation, argmax
from marsmith import goldens, parity, verification

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


def test_what_is_drawn_has_a_mask_whatever_was_asked_for(task: SemanticSegmentation) -> None:
    file = io.BytesIO()
    Image.new("RGB", (5, 3)).save(file, "PNG")
    headers = {"x-marsmith-mask": "none", "accept": "image/png"}
    task._offered = task.options(), task.fixed()
    [item] = task._read({"body": file.getvalue()}, headers).items
    assert item.options == {"mask": "png"}


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
    found = task.postprocess((ids, ids + 255), Picture.of(picture), {"mask": "png"})
    drawn = task.draw(found, picture)
    assert (drawn.getpixel((250, 150)) == (90, 90, 90)) == clear


def quadrants(task: SemanticSegmentation, default: str) -> list[Image.Image]:
    """Pictures of four levels, which the task now answers with a class for each."""

    def model(pixels: Any) -> Any:
        red = pixels[..., 0]
        return red // 80, np.full_like(red, 250)

    task.bundle = replace(task.bundle, defaults={"mask": default})
    task.model = model
    levels = np.repeat(np.array([10, 90, 170, 250], np.uint8), 4)
    planes = [levels.reshape(4, 4), levels.reshape(4, 4).T, np.sort(levels // 2).reshape(4, 4)]
    return [Image.fromarray(np.stack([plane] * 3, axis=-1)) for plane in planes]


# pycocotools' own, of NumPy 2.
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
@pytest.mark.parametrize("mask", ["png", "rle", "none"])
def test_whatever_the_default_mask_all_that_a_build_asks_is_answered(
    task: SemanticSegmentation, mask: str, tmp_path: Path
) -> None:
    images = quadrants(task, mask)
    report = parity.check(parity.Expected.of(task, images), task)
    assert report.figures == {"largest_changed": 0.0, "least_iou": 1.0}
    goldens.write(task, task, images, tmp_path)
    golden.check(task, tmp_path)
    (found,) = task.answer(images[:1], **task.widest())
    truth = task.as_truth(found)
    assert truth.tolist() == [[0] * 4, [1] * 4, [2] * 4, [3] * 4]
    assert task.metric([task.evidence(found, truth)]) == 1.0


# pycocotools' own, of NumPy 2.
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_a_mask_is_the_same_in_either_encoding(task: SemanticSegmentation) -> None:
    png, rle = answer(task, "png"), answer(task, "rle")
    assert np.array_equal(task.mask(rle), IDS)
    assert task.compare(png, rle).figures == {"largest_changed": 0.0, "least_iou": 1.0}


def test_answers_without_masks_differ_by_the_shares_of_their_classes(
    task: SemanticSegmentation,
) -> None:
    expected = answer(task, "none")
    found = copy.deepcopy(expected)
    # Three of 15 pixels become another class: each changes the shares of two.
    found["classes"][0]["share"] -= 0.2
    found["classes"][1]["share"] += 0.2
    difference = task.compare(expected, found)
    # Of seven trees four may be those of before.
    least = pytest.approx(4 / 7, abs=1e-5)
    assert difference.figures == {"largest_changed": pytest.approx(0.2), "least_iou": least}
    assert (difference.same, difference.score) == (False, pytest.approx(0.2))
    assert task.compare(expected, copy.deepcopy(expected)).same


def test_an_answer_without_a_mask_is_not_one_with(task: SemanticSegmentation) -> None:
    one, other = answer(task, "png"), answer(task, "none")
    for difference in (task.compare(one, other), task.compare(other, one)):
        assert (difference.same, difference.score) == (False, 1.0)
        assert difference.detail == "only one of the two answers has a mask"


def test_the_same_ids_under_other_labels_are_another_answer(task: SemanticSegmentation) -> None:
    before = answer(task, "png")
    task.bundle.labels[1], task.bundle.labels[3] = LABELS[3], LABELS[1]
    found = task.compare(before, answer(task, "png"))
    # Four trees and two cats, the other way round.
    assert not found.same
    assert found.figures["largest_changed"] == pytest.approx(2 / 15, abs=1e-5)
    assert found.detail.startswith("by the shares of the classes")


class _Any(SemanticSegmentation):
    """Answers as ``said`` does, with planes of the picture's size."""

    def __init__(self, said: Any, batch: int = 1, precision: str = "fp32") -> None:
        super().__init__()
        self.bundle = Bundle(
            "m",
            "1.0",
            "semantic-segmentation",
            "eager",
            "m.pth",
            list(LABELS),
            ImageInput(),
            limits=Limits(batch_size=4),
            artifact_batch=batch,
            closeness=DEFAULTS[precision],
        )
        self.model = said


def _planes(images: Any, confidence: int = 255) -> Any:
    """The brighter half of each picture is a cat."""
    ids = (images[..., 0] > 127).astype(np.uint8)
    return ids, np.full_like(ids, confidence)


def _pictures() -> list[Image.Image]:
    """Half a white picture, on another side each; one of another size."""
    found = []
    for share in (10, 20, 30):
        pixels = np.zeros((40, 40, 3), np.uint8)
        pixels[:share] = 255
        found.append(Image.fromarray(pixels))
    return [*found, found[0].resize((60, 50), Image.Resampling.NEAREST)]


def test_a_segmenter_that_tells_all_pictures_the_same_proves_nothing() -> None:
    def background(images: Any) -> Any:
        return np.zeros_like(images[..., 0]), np.full_like(images[..., 0], 255)

    with pytest.raises(ParityError, match="agreement would prove nothing"):
        parity.Expected.of(_Any(background), _pictures())
    assert parity.Expected.of(_Any(_planes), _pictures()).spread > 0.1
    # As many pixels of each class, at other places.
    mirrored = [_pictures()[0], _pictures()[0].transpose(Image.Transpose.FLIP_TOP_BOTTOM)]
    assert parity.Expected.of(_Any(_planes), mirrored).spread == 1.0


@pytest.mark.parametrize(("precision", "allowed"), [("fp32", 0.001), ("bf16", 0.02), ("int8", 0.1)])
def test_changed_pixels_are_a_limit_however_unsure_the_network_is(
    precision: str, allowed: float
) -> None:
    def unsure(images: Any) -> Any:
        return _planes(images, 140)

    def flipped(share: float) -> Any:
        def model(images: Any) -> Any:
            ids, confidence = unsure(images)
            rows = round(share * ids.shape[1] * ids.shape[2])
            # As many become cats as cease to be: shares and scores tell nothing.
            for plane in ids:
                flat = plane.reshape(-1)
                flat[: rows // 2], flat[len(flat) - (rows - rows // 2) :] = 0, 1
            return ids, confidence

        return model

    expected = parity.Expected.of(_Any(unsure), _pictures()[:3])
    with pytest.raises(ParityError, match="of the mask's pixels differ"):
        parity.check(expected, _Any(flipped(2 * allowed + 0.01), precision=precision))


@pytest.mark.parametrize("precision", DEFAULTS)
@pytest.mark.parametrize("mask", ["png", "none"])
def test_a_class_that_is_lost_is_another_answer_however_small_it_is(
    precision: str, mask: str
) -> None:
    ids = np.zeros((100, 100), np.uint8)
    ids[:50], ids[90:, :18] = 3, 1

    def answered(gone: int, into: int) -> Any:
        plane = np.where(ids == gone, into, ids).astype(np.uint8)
        return task.postprocess((plane, plane + 200), picture, {"mask": mask})

    task, picture = _Any(None, precision=precision), Picture.of(Image.new("RGB", (100, 100)))
    whole, lost = answered(0, 0), answered(1, 0)
    # 1.8 % of the picture; lost or found.
    for difference in (task.compare(whole, lost), task.compare(lost, whole)):
        assert not difference.same
        assert difference.figures == {"largest_changed": pytest.approx(0.018), "least_iou": 0.0}
        assert difference.detail.endswith("IoU of cat 0.000")
    assert task.compare(whole, whole).same


def test_an_archive_of_before_has_its_precision_s_limit(tmp_path: Path) -> None:
    bundle = replace(_Any(None).bundle, precision="bf16", closeness=DEFAULTS["bf16"])
    bundle.write(tmp_path)
    told = json.loads((tmp_path / FILE).read_text())
    assert told["closeness"].pop("iou") == DEFAULTS["bf16"].iou
    assert Bundle.parse(json.dumps(told)).closeness == DEFAULTS["bf16"]


def test_a_patch_may_come_and_go() -> None:
    task, picture = _Any(None, precision="bf16"), Picture.of(Image.new("RGB", (100, 100)))
    ids = np.zeros((100, 100), np.uint8)
    patch = ids.copy()
    patch[:12, :12] = 1
    one, other = (task.postprocess((i, i + 200), picture, {"mask": "png"}) for i in (ids, patch))
    assert task.compare(one, other).same
    assert task.compare(one, other).figures["least_iou"] == pytest.approx(1 - 0.0144)


@pytest.mark.parametrize("count", [3, 256])
def test_a_network_that_computes_nan_fails_on_that_picture_alone(count: int) -> None:
    head = argmax()

    def nan_where_white(images: Any) -> Any:
        red = torch.from_numpy(images[..., 0].astype(np.float32))[:, None]
        # No class is preferred, so that confidence is as low as it can be.
        logits = torch.zeros_like(red).repeat(1, count, 1, 1)
        logits[:, -1:][red == 255] = torch.nan
        return tuple(output.numpy() for output in head(logits))

    task = _Any(nan_where_white, batch=4)
    black, white = Image.new("RGB", (8, 6)), Image.new("RGB", (8, 6))
    white.putpixel((3, 2), (255, 255, 255))
    items = [Item(Picture.of(each), {"mask": "none"}) for each in (black, white, black)]
    good, bad, other = task.predict(items)
    assert good == other
    assert good["classes"] == [
        {"label": "background", "share": 1.0, "score": round(round(255 / count) / 255, 6)}
    ]
    assert isinstance(bad, InferenceError)
    assert "not finite" in str(bad)


def test_a_segmenter_that_computes_nan_for_one_picture_is_no_parity() -> None:
    def broken(images: Any) -> Any:
        ids, confidence = _planes(images)
        # As ``argmax`` makes of NaN; three quarters of one picture alone are white.
        confidence[ids.mean(axis=(1, 2)) > 0.6] = 0
        return ids, confidence

    words = "does not answer a sample: the model's output for this picture is not finite$"
    expected = parity.Expected.of(_Any(_planes), _pictures())
    with pytest.raises(ParityError, match=f"^the artifact, in a batch of 1, {words}") as refused:
        parity.check(expected, _Any(broken))
    # An attempt of int8 that is told by it goes on to the next.
    assert refused.type is ParityError
    with pytest.raises(ParityError, match=f"^eager {words}"):
        parity.Expected.of(_Any(broken), _pictures())


def test_masks_are_compared_in_batches_of_every_size() -> None:
    def mixed(images: Any) -> Any:
        ids, confidence = _planes(images)
        # Right alone and in full batches, and wrong for two.
        return (ids[::-1] if len(ids) == 2 else ids), confidence

    expected = parity.Expected.of(_Any(_planes), _pictures())
    report = parity.check(expected, _Any(_planes, batch=4))
    assert report.batch_sizes == [1, 2, 4]
    assert report.figures == {"largest_changed": 0.0, "least_iou": 1.0}
    with pytest.raises(ParityError, match="sample 0, batch of 2: .* of the mask's pixels differ"):
        parity.check(expected, _Any(mixed, batch=4))


def test_a_margin_is_0_for_a_coin_and_1_where_all_is_sure(task: SemanticSegmentation) -> None:
    for score, margin in ((0.5, 0.0), (0.75, 0.5), (1.0, 1.0), (0.2, 0.0)):
        found = {"classes": [{"label": "cat", "share": 1.0, "score": score}]}
        assert task.margin(found) == pytest.approx(margin)


@pytest.mark.parametrize(
    ("rows", "changed", "iou"), [(0, 0.001, 0.9), (2, 0.04, 0.9), (10, 0.1, 0.6), (20, 0.1, 0.2)]
)
def test_a_server_s_masks_change_as_far_as_batches_change_them(
    tmp_path: Path, rows: int, changed: float, iou: float
) -> None:
    def batched(images: Any) -> Any:
        ids, confidence = _planes(images)
        if len(ids) > 1:
            # Of the 50 that are of a cat.
            ids[:, 50 - rows : 50] = 0
        return ids, confidence

    pixels = np.zeros((100, 100, 3), np.uint8)
    pixels[:50] = 255
    path = tmp_path / "half.png"
    Image.fromarray(pixels).save(path)
    task = _Any(batched, batch=4, precision="int8")
    [alone] = verification._as_served(task, path)
    limits = verification.steady(task, {path: alone})
    # fp32's, or twice what was seen, within int8's own.
    assert (limits.changed, limits.iou) == (pytest.approx(changed), pytest.approx(iou))


def test_an_archive_is_held_against_another_one_by_its_own_limits(tmp_path: Path) -> None:
    def nearly(images: Any) -> Any:
        ids, confidence = _planes(images)
        # A fortieth of the rows, which bf16 may change and fp32 not.
        ids[:, : max(1, ids.shape[1] // 60)] ^= 1
        return ids, confidence

    for index, picture in enumerate(_pictures()[:3]):
        picture.resize((200, 200), Image.Resampling.NEAREST).save(tmp_path / f"{index}.png")
    files = sorted(tmp_path.glob("*.png"))
    for precision, passes in (("bf16", True), ("fp32", False)):
        task = _Any(nearly, precision=precision)
        verdict = verification.compare(task, _Any(_planes), files, "other.mar")
        assert verdict.passed is passes, (precision, verdict)
