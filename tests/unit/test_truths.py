"""Labelled pictures: tables, folders, masks and COCO files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from greys import LABELS, classifier, evaluation, grey
from PIL import Image

from handlers import truths
from handlers.bundle import Bundle
from handlers.errors import SpecError
from handlers.inputs import ImageInput
from handlers.tasks.object_detection import ObjectDetection
from handlers.tasks.semantic_segmentation import SemanticSegmentation
from marsmith import accuracy


def test_a_table_and_folders_of_labels_say_the_same(tmp_path: Path) -> None:
    for name, levels in (("dark", [1, 2]), ("light", [200])):
        grey(tmp_path / "folders" / name, levels)
    table = grey(tmp_path / "table", [1, 2, 200])
    (table / "labels.csv").write_text("file,label\n00.png,dark\n01.png,0\n02.png,light\n")
    by_folder = [truth for _, truth in truths.classes(tmp_path / "folders", LABELS)]
    by_table = [truth for _, truth in truths.classes(table, LABELS)]
    assert by_folder == by_table == [0, 0, 1]


def test_folders_that_are_no_labels_are_pictures_without_labels(tmp_path: Path) -> None:
    grey(tmp_path / "holiday", [1, 2])
    assert truths.classes(tmp_path, LABELS) == []
    assert evaluation(tmp_path, classifier(100)).truths is None


def test_one_folder_that_is_no_label_is_named(tmp_path: Path) -> None:
    for name in ("dark", "light", ".ipynb_checkpoints"):
        grey(tmp_path / name / "more", [1])
        (tmp_path / name / ".DS_Store").touch()
    assert [truth for _, truth in truths.classes(tmp_path, LABELS)] == [0, 1]
    for name in ("drak", "lihgt"):
        grey(tmp_path / name, [1])
    with pytest.raises(SpecError, match=r"are labels, drak, lihgt none of the model's 2: mend"):
        truths.classes(tmp_path, LABELS)


def test_a_table_of_excel_is_read(tmp_path: Path) -> None:
    (grey(tmp_path, [1]) / "labels.csv").write_text("file,label\n00.png,dark\n", "utf-8-sig")
    assert [truth for _, truth in truths.classes(tmp_path, LABELS)] == [0]


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ("name,label\n00.png,dark\n", "needs the columns file and label"),
        ("file,label\n", "needs the columns file and label"),
        ("file,label\n00.png,grey\n", "label 'grey' is none of the model's 2"),
        ("file,label\n00.png,2\n", "label '2' is none"),
        ("file,label\n99.png,dark\n", "99.png: the labels name it"),
        ("file,label\n00.png\n", r"labels\.csv: a row has file '00\.png' and label None"),
        ("label,file\ndark\n", r"labels\.csv: a row has file None and label 'dark'"),
        ("file,label\n00.png,d\u00e4mmrig\n", r"labels\.csv: is no CSV in UTF-8 .*: save it as"),
    ],
)
def test_a_wrong_table_is_named(table: str, words: str, tmp_path: Path) -> None:
    (grey(tmp_path, [1]) / "labels.csv").write_text(table, "latin-1")
    with pytest.raises(SpecError, match=words):
        truths.classes(tmp_path, LABELS)


def test_coco_boxes_become_corners_of_the_models_classes(tmp_path: Path) -> None:
    grey(tmp_path, [1, 2])
    document = {
        "images": [{"id": 7, "file_name": "00.png"}, {"id": 9, "file_name": "01.png"}],
        "categories": [{"id": 3, "name": "light"}],
        "annotations": [
            {"image_id": 7, "category_id": 3, "bbox": [1, 2, 3, 4]},
            {"image_id": 7, "category_id": 3, "bbox": [0, 0, 9, 9], "iscrowd": 1},
        ],
    }
    (tmp_path / "annotations.json").write_text(json.dumps(document), "utf-8-sig")
    (_, (boxes, classes, crowds)), (_, (none, _, _)) = truths.boxes(tmp_path, LABELS)
    assert boxes.tolist() == [[1, 2, 4, 6], [0, 0, 9, 9]]
    assert classes.tolist() == [1, 1]
    assert crowds.tolist() == [0, 1]
    assert none.shape == (0, 4)


@pytest.mark.parametrize("category", [{"id": 3}, {"id": 3, "name": None}, {"id": 3, "name": "x"}])
def test_annotations_that_are_not_cocos_are_named(category: Any, tmp_path: Path) -> None:
    grey(tmp_path, [1])
    document = {
        "images": [{"id": 7, "file_name": "00.png"}],
        "categories": [category],
        "annotations": [{"image_id": 7, "category_id": 3, "bbox": [1, 2, 3, 4]}],
    }
    (tmp_path / "annotations.json").write_text(json.dumps(document))
    with pytest.raises(SpecError, match=r"annotations\.json is not as COCO's|label 'x' is none of"):
        truths.boxes(tmp_path, LABELS)


def test_a_crowd_is_nothing_that_a_detector_misses() -> None:
    task = ObjectDetection()
    task.bundle = Bundle("m", "1", "t", "r", "a", ["background", "car"], ImageInput())
    box = {"xmin": 1.0, "ymin": 2.0, "xmax": 30.0, "ymax": 40.0}
    answer = [{"label": "car", "score": 0.9, "box": box}]
    boxes, classes, _ = task.as_truth(answer)
    crowd = np.array([[40, 40, 90, 90]], np.float32)
    truth = np.concatenate([boxes, crowd]), np.repeat(classes, 2), np.array([0, 1])
    assert task.metric([task.evidence(answer, truth)]) == pytest.approx(1.0)


def test_masks_lie_beside_their_pictures(tmp_path: Path) -> None:
    grey(tmp_path, [5])
    grey(tmp_path / "masks", [1])
    [(path, ids)] = truths.masks(tmp_path, LABELS)
    assert path.name == "00.png"
    assert (np.asarray(ids) == 1).all()
    (tmp_path / "00.png").unlink()
    with pytest.raises(SpecError, match="0 pictures 00"):
        truths.masks(tmp_path, LABELS)


def test_pictures_without_a_label_among_others_with_one_are_told(tmp_path: Path) -> None:
    task = SemanticSegmentation()
    task.bundle = Bundle("m", "1", "semantic-segmentation", "r", "a", LABELS, ImageInput())
    grey(tmp_path / "masks", [1])
    found = evaluation(grey(tmp_path, [5, 6, 7]), task)
    assert ([path.name for path in found.files], found.unlabelled) == (["00.png"], 2)
    table = grey(tmp_path / "table", [1, 200, 3])
    (table / "labels.csv").write_text("file,label\n00.png,dark\n01.png,light\n")
    measured = accuracy.alone(classifier(100), evaluation(table, classifier(100)))
    assert "on 2 pictures (1 more without a label: left out), 95 %" in str(measured)
    assert evaluation(grey(tmp_path / "none", [1, 2]), classifier(100)).unlabelled == 0


def test_the_picture_of_a_mask_is_found_by_its_whole_name(tmp_path: Path) -> None:
    (tmp_path / "masks").mkdir()
    for name in ("img.png", "img.2.png", "photo [1].png"):
        for folder in (tmp_path, tmp_path / "masks"):
            Image.new("L", (4, 3)).save(folder / name)
    (tmp_path / "img.txt").touch()
    found = [path.name for path, _ in truths.masks(tmp_path, LABELS)]
    assert found == ["img.2.png", "img.png", "photo [1].png"]
    (tmp_path / "img.JPG").touch()
    with pytest.raises(SpecError, match=r"masks/img\.png: 2 pictures img\.\* beside"):
        truths.masks(tmp_path, LABELS)


@pytest.mark.parametrize("kind", [np.uint8, np.uint16, np.bool_])
def test_a_mask_of_any_depth_is_bytes_of_the_models_classes(kind: Any, tmp_path: Path) -> None:
    grey(tmp_path, [5])
    (tmp_path / "masks").mkdir()
    ids = np.eye(16).astype(kind)
    Image.fromarray(ids).save(tmp_path / "masks/00.png")
    [(_, mask)] = truths.masks(tmp_path, LABELS)
    read = np.asarray(mask)
    assert read.dtype == np.uint8
    assert np.array_equal(read, ids)


def test_ids_that_are_no_labels_are_named_with_their_mask(tmp_path: Path) -> None:
    grey(tmp_path, [5])
    mask = np.array([[0, 1, 255]], np.uint8)
    (tmp_path / "masks").mkdir()
    Image.fromarray(mask).save(tmp_path / "masks/00.png")
    [(_, ids)] = truths.masks(tmp_path, LABELS)
    assert np.array_equal(ids, mask)
    Image.fromarray(mask + 2).save(tmp_path / "masks/00.png")
    with pytest.raises(SpecError, match=r"masks/00\.png: class ids 2, 3 are none of the model's 2"):
        np.asarray(ids)


def test_masks_that_mean_a_class_by_255_are_refused(tmp_path: Path) -> None:
    grey(tmp_path, [5, 6])
    (tmp_path / "masks").mkdir()
    for name, value in (("00", 0), ("01", 255)):
        Image.fromarray(np.array([[0, value]], np.uint8)).save(tmp_path / f"masks/{name}.png")
    with pytest.raises(SpecError, match=r"no class but 0, and pixels of 255 .* 1 to 1, where"):
        truths.masks(tmp_path, LABELS)
    Image.fromarray(np.array([[0, 1]], np.uint8)).save(tmp_path / "masks/01.png")
    assert len(truths.masks(tmp_path, LABELS)) == 2


def test_a_wrong_mask_is_told_before_anything_is_exported(tmp_path: Path) -> None:
    grey(tmp_path, [5, 6])
    (tmp_path / "masks").mkdir()
    for name, value in (("00", 1), ("01", 7)):
        Image.new("L", (16, 16), value).save(tmp_path / f"masks/{name}.png")
    task = SemanticSegmentation()
    task.bundle = Bundle("m", "1", "t", "r", "a", LABELS, ImageInput())
    with pytest.raises(SpecError, match=r"masks/01\.png: class ids 7 are none of the model's 2"):
        evaluation(tmp_path, task)


def test_a_mask_of_another_size_than_its_upright_picture_is_named(tmp_path: Path) -> None:
    picture = Image.new("RGB", (4, 3))
    exif = picture.getexif()
    exif[274] = 6
    picture.save(tmp_path / "00.jpg", exif=exif)
    (tmp_path / "masks").mkdir()
    Image.new("L", (4, 3)).save(tmp_path / "masks/00.png")
    task = SemanticSegmentation()
    task.bundle = Bundle("m", "1", "t", "r", "a", LABELS, ImageInput())
    task.model = lambda pixels: (pixels[..., 0] * 0, pixels[..., 0] * 0 + 255)
    measured = evaluation(tmp_path, task)
    with pytest.raises(SpecError, match=r"/00\.jpg: its mask is 4x3, the picture upright 3x4"):
        accuracy.alone(task, measured)
