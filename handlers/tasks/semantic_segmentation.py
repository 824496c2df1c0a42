"""Semantic segmentation: which class each pixel of a picture belongs to."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from handlers import drawing, truths
from handlers.errors import InferenceError, SpecError
from handlers.foreign import Meaning, class_ids, through
from handlers.options import Option
from handlers.pictures import Picture
from handlers.runtimes import Arrays
from handlers.task import Difference, TaskHandler

if TYPE_CHECKING:
    from torch import Tensor, nn

Mask = NDArray[np.uint8]

MASKS = ("png", "rle", "none")
# A class with less of a picture is a speck, whose score a few pixels move.
_SPECK = 0.01
# One that has less in both of two masks may come and go: right networks in int8 let it.
_PATCH = 0.015
# Of the shares of 256 classes, each told with six digits.
_ROUNDED = 2e-4
# A first class of such a name is what shows no class, and is left as it is where others are tinted.
_BACKGROUND = ("background", "bg", "none", "unlabeled", "unlabelled", "void")


def out(network: nn.Module) -> nn.Module:
    """The class logits (N, classes, H, W) of a network that gives them alone or as ``["out"]``."""
    # Here, since most workers do without torch.
    import torch
    from torch import Tensor

    from handlers.servable import Adapter

    class Out(Adapter):
        def forward(self, pixels: Tensor) -> Tensor:
            result = self.network(pixels)
            if torch.jit.isinstance(result, dict[str, Tensor]):
                logits: Tensor = result["out"]
            else:
                logits = result
            return logits

    return Out(network)


def argmax() -> nn.Module:
    """Logits (N, classes, H, W) -> class ids and confidence (its softmax, 0..255), both uint8."""
    import torch
    from torch import nn

    class Argmax(nn.Module):
        def forward(self, logits: Tensor) -> tuple[Tensor, Tensor]:
            confidence, ids = torch.softmax(logits.float(), dim=1).max(dim=1)
            return ids.to(torch.uint8), (confidence * 255).round().to(torch.uint8)

    return Argmax()


class SemanticSegmentation(TaskHandler):
    """Answers ``{"size": [height, width], "classes": [{"label", "share", "score"}], "mask"}``.

    ``share`` is that of the picture's pixels, ``score`` the mean confidence over them; both are of
    the mask at the picture's own size. ``mask`` is a base64 PNG whose pixel values are class ids
    (mode P, in the colours of a drawn answer), or COCO's run-length encoding for each class.
    """

    meanings = (
        Meaning(("logits",), through(argmax, "N, classes, H, W"), needs_torch=True),
        Meaning(("ids",), class_ids),
    )
    continuous = False
    compared_by = ("changed", "iou")
    least_classes = 2
    network_form = 'pixels (N, C, H, W) -> logits (N, classes, H, W), alone or as "out" of a dict'
    torchvision = "torchvision.models.segmentation"
    torchvision_keys = {
        "runtime": "openvino",
        "runtime_options": {"torchscript": {"method": "trace"}},
        "samples": "samples/scenes",
        "serving": {"batch_size": 4},
    }
    # Class ids are bytes, in the artifact as in the mask.
    most_labels = 256
    distinct_labels = True
    crops = False
    # Masks in run lengths.
    requires = ("pycocotools",)

    @staticmethod
    def adapt(network: nn.Module, settings: dict[str, Any]) -> nn.Module:
        return out(network)

    @staticmethod
    def decode(settings: dict[str, Any]) -> nn.Module:
        return argmax()

    def options(self) -> list[Option]:
        default = self.bundle.defaults.get("mask", "png")
        return [Option("mask", str, default, "how the mask is encoded", choices=MASKS)]

    def postprocess(self, outputs: Arrays, picture: Picture, options: dict[str, Any]) -> Any:
        # The best of at most 256 classes has 1/256 or more, which rounds to 1: only NaN becomes 0.
        if not outputs[1].all():
            raise InferenceError("the model's output for this picture is not finite")
        shown = (self.bundle.input.plane_in_picture(each, picture.size) for each in outputs)
        ids, confidence = (_resized(each, picture.size) for each in shown)
        # Of pairs in one pass: with weights numpy would make floats of all pixels.
        pairs = _pairs(ids, confidence)
        counts, totals = pairs.sum(1), pairs @ np.arange(256)
        present = [int(i) for i in np.argsort(-counts, kind="stable") if counts[i]]
        answer: dict[str, Any] = {
            "size": [picture.height, picture.width],
            "classes": [
                {
                    "label": self.bundle.labels[i],
                    "share": round(float(counts[i] / ids.size), 6),
                    "score": round(float(totals[i] / counts[i] / 255), 6),
                }
                for i in present
            ],
        }
        if options["mask"] == "png":
            answer["mask"] = {"format": "png", "data": _png(ids)}
        elif options["mask"] == "rle":
            labels = self.bundle.labels
            answer["mask"] = {"format": "rle", "data": {labels[i]: _rle(ids == i) for i in present}}
        return answer

    def draw(self, answer: Any, picture: Image.Image) -> Image.Image:
        labels = self.bundle.labels
        clear = 0 if labels[0].strip("_ ").lower() in _BACKGROUND else None
        mask = self.mask(answer)
        return drawing.draw_mask(picture, mask, dict(enumerate(labels)), background=clear)

    def drawing_options(self) -> dict[str, Any]:
        return {"mask": "png"}

    def compare(self, expected: Any, answer: Any, **given: Any) -> Difference:
        """Masks pixel by pixel, and by the IoU of each class that is more than a patch in one of
        them; shares of the classes, and scores of those that are no specks.

        Answers without masks are told apart by the shares alone, and so are those whose ids have
        other labels where these tell more of them apart than the ids.
        """
        if expected["size"] != answer["size"]:
            return Difference(False, 1.0, f"size {answer['size']}, expected {expected['size']}")
        if ("mask" in expected) != ("mask" in answer):
            return Difference(False, 1.0, "only one of the two answers has a mask")
        first, second = ({each["label"]: each for each in a["classes"]} for a in (expected, answer))
        absent = {"share": 0.0, "score": 0.0}
        shares, scores = [0.0], [0.0]
        ious: dict[str, float] = {}
        for label in sorted(first.keys() | second.keys()):
            one, other = first.get(label, absent), second.get(label, absent)
            shares.append(abs(one["share"] - other["share"]))
            low, high = sorted((one["share"], other["share"]))
            if low > _SPECK:
                scores.append(abs(one["score"] - other["score"]))
            if high > _PATCH:
                ious[label] = low / high
        # A pixel that changes its class changes the shares of two.
        changed = sum(shares) / 2
        detail = f"by the shares of the classes {changed:.3%} of the pixels differ, or more"
        if "mask" in expected:
            pairs = _pairs(self.mask(expected), self.mask(answer))
            pixels = 1 - float(pairs.trace() / pairs.sum())
            # Never less than by the shares, but where another model gives the ids other labels.
            if pixels >= changed - _ROUNDED:
                changed, detail = pixels, f"{pixels:.3%} of the mask's pixels differ"
                known = self.bundle.labels
                for label in ious.keys() & set(known):
                    ious[label] = min(ious[label], _iou(pairs, known.index(label)))
        # Of 256 classes each may be a patch.
        worst = min(ious, key=lambda label: ious[label], default="")
        least = ious.get(worst, 1.0)
        if least < 1:
            detail += f", IoU of {worst} {least:.3f}"
        limits = self.bundle.closeness
        same = changed <= limits.changed and least >= limits.iou
        figures = {"largest_changed": changed, "least_iou": least}
        return Difference(same, max(shares + scores), detail, figures)

    def margin(self, answer: Any, **given: Any) -> float:
        """How far the mean confidence of the whole mask is above that of the other classes
        together: 0 for a coin's, 1 where it is sure."""
        mean = sum(each["share"] * each["score"] for each in answer["classes"])
        return max(0.0, 2 * float(mean) - 1)

    def mask(self, answer: Any) -> Mask:
        """The class ids (H, W) of an answer that has a mask."""
        data = answer["mask"]["data"]
        if answer["mask"]["format"] == "rle":
            return self._of_runs(data, answer["size"])
        return np.asarray(Image.open(io.BytesIO(base64.b64decode(data)), formats=["PNG"]))

    def _of_runs(self, runs: dict[str, Any], size: list[int]) -> Mask:
        from pycocotools import mask as coco

        ids = np.zeros(size, np.uint8)
        for label, encoded in runs.items():
            ids[coco.decode(encoded) > 0] = self.bundle.labels.index(label)
        return ids

    def widest(self) -> dict[str, Any]:
        return {"mask": "png"}

    metric_name = "mIoU"

    def evidence(self, answer: Any, truth: Any) -> Tensor:
        """Pixels of each class in both the truth and the answer, and in either: int64 (2, classes).

        A truth is a map of class ids (H, W) of the picture's size; 255 is not counted. Raises
        SpecError for one of another size.
        """
        import torch
        from torchmetrics.functional.classification import multiclass_confusion_matrix

        mask, truth = self.mask(answer), np.asarray(truth)
        if mask.shape != truth.shape:
            (height, width), (rows, columns) = mask.shape, truth.shape
            raise SpecError(
                f"its mask is {columns}x{rows}, the picture upright {width}x{height}: a mask has "
                "the pixels of the picture as it is shown, turned by its EXIF orientation"
            )
        found, wanted = (torch.from_numpy(ids.astype(np.int64)).flatten() for ids in (mask, truth))
        classes, ignored = len(self.bundle.labels), truths.IGNORED
        confusion = multiclass_confusion_matrix(found, wanted, classes, ignore_index=ignored)
        common = confusion.diagonal()
        # Not the matrix itself: of many classes a bootstrap would add up megabytes a picture.
        return torch.stack([common, confusion.sum(0) + confusion.sum(1) - common])

    @staticmethod
    def metric(evidence: Sequence[Any]) -> float:
        """Mean over the classes of intersection over union (Jaccard 1912) of all pixels."""
        import torch

        common, union = torch.stack(list(evidence)).sum(0)
        # A class in no truth and no answer has no union to share.
        return float((common[union > 0] / union[union > 0]).mean())

    def labelled(self, folder: Path) -> list[tuple[Path, Any]]:
        return list(truths.masks(folder, self.bundle.labels))

    def as_truth(self, answer: Any) -> Mask:
        return self.mask(answer)

    @staticmethod
    def classes(network: nn.Module, outputs: Tensor) -> int:
        _, count, _, _ = outputs.shape
        return int(count)

    @staticmethod
    def summary(answer: Any) -> str:
        return ", ".join(f"{each['label']} {each['share']:.0%}" for each in answer["classes"][:3])


def _pairs(one: Mask, other: Mask) -> NDArray[np.int64]:
    """How often each pair of values lies at one place of two planes: (256, 256)."""
    pairs = np.bincount((one.astype(np.uint16) << 8 | other).ravel(), minlength=1 << 16)
    return pairs.reshape(256, 256)


def _iou(pairs: NDArray[np.int64], index: int) -> float:
    """Intersection over union of a class's pixels in both planes."""
    common = pairs[index, index]
    # Where ids have other labels, a class may lie in neither.
    return float(common / max(1, pairs[index].sum() + pairs[:, index].sum() - common))


def _resized(plane: NDArray[Any], size: tuple[int, int]) -> Mask:
    """Nearest neighbour to ``size`` (width, height), as ids have no values between them."""
    return np.asarray(Image.fromarray(plane).resize(size, Image.Resampling.NEAREST))


def _png(ids: Mask) -> str:
    image = Image.fromarray(ids)
    image.putpalette([channel for index in range(256) for channel in drawing.color(index)])
    file = io.BytesIO()
    image.save(file, "PNG", compress_level=3)
    return base64.b64encode(file.getvalue()).decode("ascii")


def _rle(mask: NDArray[np.bool_]) -> dict[str, Any]:
    """COCO's compressed run-length encoding of one class."""
    from pycocotools import mask as coco

    encoded = coco.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"size": list(encoded["size"]), "counts": encoded["counts"].decode("ascii")}
