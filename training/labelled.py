"""Write held-out pictures with their labels, as ``marsmith build --evaluate`` reads them.

``python -m training.labelled shapes FOLDER [COUNT]``: shapes and digits with labels.csv, scenes
with masks/ and annotations.json. The pictures are those of ``training.heldout``.
"""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from training import heldout
from training.render import LABELS


def write(kind: str, folder: Path, count: int) -> None:
    """Write ``count`` pictures of "shapes", "digits" or "scenes" into ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    if kind == "scenes":
        _scenes(folder, count)
        return
    if kind == "digits":
        _table(folder, [(f"{i:04}.png", *each) for i, each in enumerate(heldout.digits()[:count])])
        return
    _table(folder, [(f"{i:04}.jpg", *each) for i, each in enumerate(heldout.shapes(count))])


def _table(folder: Path, pictures: list[tuple[str, bytes, int]]) -> None:
    with (folder / "labels.csv").open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(["file", "label"])
        for name, data, label in pictures:
            (folder / name).write_bytes(data)
            rows.writerow([name, label])


def _scenes(folder: Path, count: int) -> None:
    (folder / "masks").mkdir(exist_ok=True)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number, (data, boxes, classes, ids) in enumerate(heldout.scenes(count)):
        name = f"{number:04}"
        (folder / f"{name}.jpg").write_bytes(data)
        Image.fromarray(np.asarray(ids)).save(folder / "masks" / f"{name}.png")
        images.append({"id": number, "file_name": f"{name}.jpg"})
        for (left, top, right, bottom), category in zip(boxes.tolist(), classes, strict=True):
            box = [left, top, right - left, bottom - top]
            annotations.append({"image_id": number, "category_id": int(category), "bbox": box})
    categories = [{"id": index, "name": name} for index, name in enumerate(LABELS)]
    document = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "annotations.json").write_text(json.dumps(document), encoding="utf-8")


if __name__ == "__main__":
    write(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]) if len(sys.argv) > 3 else 200)
