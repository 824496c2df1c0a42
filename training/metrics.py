"""Mean IoU and mean average precision, as short as they can be said."""

from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt
from torch import Tensor
from torchvision.ops import box_iou

Map = npt.NDArray[np.uint8]


def mean_iou(pairs: Iterable[tuple[Map, Map]], classes: int) -> float:
    """Mean over classes of intersection over union, over all pixels of (predicted, true) maps."""
    confusion = np.zeros(classes * classes, np.int64)
    for predicted, true in pairs:
        cells = predicted.astype(np.int64).ravel() * classes + true.ravel()
        confusion += np.bincount(cells, minlength=classes * classes)
    square = confusion.reshape(classes, classes)
    both = np.diag(square)
    return float(np.mean(both / (square.sum(axis=0) + square.sum(axis=1) - both)))


def mean_average_precision(
    found: Sequence[dict[str, Tensor]],
    true: Sequence[tuple[Tensor, Tensor]],
    classes: Sequence[int],
    iou: float = 0.5,
) -> float:
    """Mean over classes of the area under the precision envelope (VOC 2010) at this IoU.

    For each picture `found` has boxes [n, 4], scores [n] and labels [n]; `true` has boxes [m, 4]
    and labels [m].
    """
    return float(np.mean([_average_precision(found, true, label, iou) for label in classes]))


def _average_precision(
    found: Sequence[dict[str, Tensor]],
    true: Sequence[tuple[Tensor, Tensor]],
    label: int,
    iou: float,
) -> float:
    scores: list[float] = []
    hits: list[bool] = []
    objects = 0
    for answer, (boxes, labels) in zip(found, true, strict=True):
        wanted = boxes[labels == label]
        objects += len(wanted)
        mine = answer["labels"] == label
        order = answer["scores"][mine].argsort(descending=True)
        scores += answer["scores"][mine][order].tolist()
        hits += _matches(answer["boxes"][mine][order], wanted, iou)
    ranked = np.array(hits, bool)[np.argsort(-np.array(scores), kind="stable")]
    correct = np.cumsum(ranked)
    precision = correct / np.arange(1, len(ranked) + 1)
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    return float((envelope * ranked).sum() / objects)


def _matches(boxes: Tensor, wanted: Tensor, iou: float) -> list[bool]:
    """Whether each box, best first, is the first to cover the object that it overlaps most."""
    if not len(wanted):
        return [False] * len(boxes)
    taken: set[int] = set()
    hits = []
    overlaps, nearest = box_iou(boxes, wanted).max(dim=1)
    for overlap, index in zip(overlaps.tolist(), nearest.tolist(), strict=True):
        hits.append(overlap >= iou and index not in taken)
        if hits[-1]:
            taken.add(index)
    return hits
