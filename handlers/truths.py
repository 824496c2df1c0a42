"""Labelled pictures as people keep them: a table or folders of classes, masks, COCO's boxes.

Used where accuracy is measured, never by a worker. Raises SpecError for labels that cannot be read.
"""

from __future__ import annotations

import csv
import json
import warnings
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from handlers.errors import SpecError
from handlers.formats import exif_orientation, is_picture

TABLE, MASKS, BOXES = "labels.csv", "masks", "annotations.json"
Boxes = tuple[np.ndarray, np.ndarray, np.ndarray]
# The value of a mask's pixels that are not counted.
IGNORED = 255


def classes(folder: Path, labels: Sequence[str]) -> list[tuple[Path, int]]:
    """Pictures with the index of their label: ``labels.csv``, or a folder for each label.

    The table has the columns file and label, which is a label's name or its index.
    """
    if (folder / TABLE).is_file():
        return [
            (_picture(folder, name), _index(label, labels)) for name, label in _rows(folder / TABLE)
        ]
    folders = (path.name for path in folder.glob("*") if path.is_dir())
    names = sorted(name for name in folders if not name.startswith("."))
    if not set(names) & set(labels):
        return []
    if others := [name for name in names if name not in labels]:
        raise SpecError(
            f"{folder}: the names of some folders are labels, {', '.join(others[:5])} none of the "
            f"model's {len(labels)}: mend the name, or take the folder away"
        )
    return [
        (path, labels.index(name))
        for name in names
        for path in sorted((folder / name).rglob("*"))
        if is_picture(path)
    ]


def _rows(path: Path) -> Iterator[tuple[str, str]]:
    """File and label of each row."""
    try:
        # Excel's "CSV UTF-8" begins with a byte order mark.
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = list(csv.DictReader(file))
    except (UnicodeError, csv.Error) as error:
        raise SpecError(f"{path}: is no CSV in UTF-8 ({error}): save it as such") from error
    if not rows or not {"file", "label"} <= rows[0].keys():
        raise SpecError(f"{path}: needs the columns file and label, and rows")
    for row in rows:
        if not row["file"] or not row["label"]:
            raise SpecError(
                f"{path}: a row has file {row['file']!r} and label {row['label']!r}: give it both"
            )
        yield row["file"], row["label"]


@dataclass(frozen=True)
class Mask:
    """A map of class ids, uint8 (H, W), read when it is made an array: all at once may be more
    than memory holds."""

    path: Path
    classes: int

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return _ids(self.path, self.classes).astype(dtype or np.uint8, copy=False)


def masks(folder: Path, labels: Sequence[str]) -> list[tuple[Path, Mask]]:
    """Pictures with their maps of class ids: ``NAME.jpg`` and ``masks/NAME.png``.

    An id is the index of a label, or 255, which is not counted.
    """
    beside: dict[str, list[Path]] = defaultdict(list)
    for path in filter(is_picture, folder.glob("*")):
        beside[path.stem].append(path)
    found = []
    for path in sorted((folder / MASKS).glob("*.png")):
        pictures = beside[path.stem]
        if len(pictures) != 1:
            raise SpecError(f"{path}: {len(pictures)} pictures {path.stem}.* beside {MASKS}/")
        found.append((pictures[0], Mask(path, len(labels))))
    _check_counted(found, len(labels))
    return found


def _check_counted(found: Sequence[tuple[Path, Mask]], classes: int) -> None:
    """Raise SpecError for masks of 0 and 255 alone, as other tools write those of two classes."""
    seen: set[int] = set()
    for _, mask in found:
        seen |= {*np.unique(mask).tolist()}
        # The rest is read when it is measured.
        if seen - {0, IGNORED}:
            return
    if IGNORED in seen:
        raise SpecError(
            f"{found[0][1].path.parent}: the masks have no class but 0, and pixels of {IGNORED} "
            f"are not counted: write the index of a label, 1 to {classes - 1}, where one is meant"
        )


def _ids(path: Path, classes: int) -> np.ndarray:
    try:
        ids = np.asarray(Image.open(path))
    except OSError as error:
        raise SpecError(f"{path} cannot be read: {error}") from error
    if ids.ndim != 2:
        raise SpecError(f"{path}: pixel values must be class ids (modes P or L)")
    unknown = np.setdiff1d(ids, [*range(classes), IGNORED])
    if len(unknown):
        raise SpecError(
            f"{path}: class ids {', '.join(map(str, unknown[:5]))} are none of the model's "
            f"{classes}: accepted are 0 to {classes - 1}, and {IGNORED} for pixels not to count"
        )
    return ids.astype(np.uint8)


def boxes(folder: Path, labels: Sequence[str]) -> list[tuple[Path, Boxes]]:
    """Pictures with their boxes, float32 (M, 4) xyxy, and of each its class id and whether it is a
    crowd, both int64 (M,).

    ``annotations.json`` is COCO's: images, annotations with [x, y, width, height], categories. A
    crowd (``iscrowd``) holds an unknown number of objects: one found in it counts neither way.
    """
    path = folder / BOXES
    if not path.is_file():
        return []
    try:
        document = json.loads(path.read_text(encoding="utf-8-sig"))
        names = {each["id"]: each["name"] for each in document["categories"]}
        files = {each["id"]: each["file_name"] for each in document["images"]}
        sizes = {each["id"]: (each.get("width"), each.get("height")) for each in document["images"]}
        given: dict[Any, list[Any]] = {key: [] for key in files}
        for each in document["annotations"]:
            x, y, width, height = each["bbox"]
            label = _index(names[each["category_id"]], labels)
            box = (x, y, x + width, y + height), label, int(each.get("iscrowd", 0))
            given[each["image_id"]].append(box)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise SpecError(f"{path} is not as COCO's annotations are: {error!r}") from error
    for key, size in sizes.items():
        _check_upright(_picture(folder, files[key]), size)
    return [
        (
            _picture(folder, files[key]),
            (
                np.array([corners for corners, _, _ in found], np.float32).reshape(-1, 4),
                np.array([label for _, label, _ in found], np.int64),
                np.array([crowd for _, _, crowd in found], np.int64),
            ),
        )
        for key, found in given.items()
    ]


def _check_upright(path: Path, size: tuple[Any, Any]) -> None:
    """Boxes lie in the picture as it is shown; raises SpecError where they are of another."""
    if None in size:
        return
    try:
        with warnings.catch_warnings(action="ignore"), Image.open(path) as picture:
            # As a worker reads it. A TIFF that Pillow has opened has its sides as they are shown.
            exif = b"" if picture.format == "TIFF" else picture.info.get("exif", b"")
            shown = picture.size[::-1] if exif_orientation(exif) >= 5 else picture.size
    # Pillow documents no set of exceptions.
    except Exception as error:
        raise SpecError(f"{path} cannot be read: {error}") from error
    if size != shown:
        raise SpecError(
            f"{path} is {shown[0]}x{shown[1]} upright, and {BOXES} says {size[0]}x{size[1]}: boxes "
            "are of the picture as it is shown, turned by its EXIF orientation"
        )


def _picture(folder: Path, name: str) -> Path:
    path = folder / name
    if not path.is_file():
        raise SpecError(f"{path}: the labels name it, and it is not there")
    return path


def _index(label: str, labels: Sequence[str]) -> int:
    if label in labels:
        return list(labels).index(label)
    if label.isdecimal() and int(label) < len(labels):
        return int(label)
    known = ", ".join(labels[:5])
    raise SpecError(f"label {label!r} is none of the model's {len(labels)}: {known}...")
