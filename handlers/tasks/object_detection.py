"""Object detection: boxes around the objects of a picture, with labels and scores."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from handlers import drawing, truths
from handlers.errors import InferenceError, PluginError
from handlers.foreign import Meaning, detections
from handlers.inputs import ImageInput
from handlers.options import Option
from handlers.pictures import Picture
from handlers.runtimes import Arrays
from handlers.task import Difference, TaskHandler

if TYPE_CHECKING:
    from torch import Tensor, nn

# Settings of decode, and what torchvision's detectors call them.
_THEIRS = {
    "score_floor": "score_thresh",
    "nms_iou": "nms_thresh",
    "max_detections": "detections_per_img",
}
# What else clients call the IoU of NMS.
_NMS = ("iou", "nms", "iou_threshold", "iou_thresh", "nms_threshold", "nms_thresh")
# A box whose score is nearer than this to the threshold may come and go.
_BORDERLINE = 0.05
# A box with such a score counts where an answer stands for the truth.
_SURE = 0.5


def detector(network: nn.Module) -> nn.Module:
    """torchvision's list of dictionaries -> boxes (N, K, 4) xyxy, scores (N, K), labels (N, K).

    K is the largest number of detections in the batch; the others are padded with score 0.
    """
    # Here, since most workers do without torch.
    import torch
    from torch import nn

    from handlers.servable import Adapter

    class Detector(Adapter):
        def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            images = [pixels[i] for i in range(pixels.shape[0])]
            if torch.jit.is_scripting():
                # A scripted detector gives (losses, detections) whatever its mode.
                detections = self.network(images)[1]
            else:
                detections = self.network(images)
            if len(images) == 1:
                # Apart, since some exporters know no padding, and trace one picture at a time.
                only = detections[0]
                return only["boxes"][None], only["scores"][None], only["labels"][None]
            return (
                nn.utils.rnn.pad_sequence([each["boxes"] for each in detections], True),
                nn.utils.rnn.pad_sequence([each["scores"] for each in detections], True),
                nn.utils.rnn.pad_sequence([each["labels"] for each in detections], True),
            )

    return Detector(network)


def compact() -> nn.Module:
    """Detections as float32 boxes and scores and int32 labels."""
    import torch
    from torch import nn

    class Compact(nn.Module):
        def forward(
            self, detections: tuple[Tensor, Tensor, Tensor]
        ) -> tuple[Tensor, Tensor, Tensor]:
            boxes, scores, labels = detections
            return boxes.float(), scores.float(), labels.to(torch.int32)

    return Compact()


class ObjectDetection(TaskHandler):
    """Answers ``[{"label", "score", "box": {"xmin", "ymin", "xmax", "ymax"}}]``, best first.

    Boxes are in the picture's own pixels, upright as the picture is shown.
    """

    meanings = (
        Meaning(
            ("boxes", "scores", "labels"), detections, {"normalised": False, "label_offset": 0}
        ),
    )
    decode_settings = {"score_floor": 0.05, "nms_iou": None, "max_detections": 100}
    decode_bounds = {"score_floor": (0, 1), "nms_iou": (0, 1), "max_detections": (1, None)}
    # The detector resizes and normalises by itself; it takes the picture's own pixels.
    default_input = ImageInput(mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    continuous = False
    compared_by = ("overlap",)
    loops = True
    network_form = (
        "a list of pixels (C, H, W) -> a list of {boxes (K, 4) xyxy in them, scores (K), labels "
        "(K) as integers}"
    )
    torchvision = "torchvision.models.detection"
    torchvision_keys = {
        "runtime": "openvino",
        "runtime_options": {"torchscript": {"method": "script"}},
        # As many boxes as torchvision's own answer with.
        "decode": {"max_detections": None},
        "samples": "samples/scenes",
        "serving": {"batch_size": 4},
    }

    @staticmethod
    def adapt(network: nn.Module, settings: dict[str, Any]) -> nn.Module:
        # Here, since a worker whose runtime needs no torchvision does without.
        from torchvision.models.detection.transform import GeneralizedRCNNTransform

        from handlers.detector_resize import EagerResize

        # Two-stage detectors keep their thresholds with the second stage.
        head = getattr(network, "roi_heads", network)
        said = {key: value for key, value in settings.items() if value is not None}
        if lacking := [key for key in said if not hasattr(head, _THEIRS[key])]:
            theirs = ", ".join(_THEIRS[key] for key in lacking)
            keys = ", ".join(f"{key}: null" for key in lacking)
            options = " ".join(f"--decode {key}=null" for key in lacking)
            raise PluginError(
                f"{type(network).__name__} has no {theirs} as torchvision's have: say "
                f"decode: {{{keys}}} ({options}), which leaves that to the network"
            )
        for key, value in said.items():
            setattr(head, _THEIRS[key], value)
        transform: Any = getattr(network, "transform", None)
        if type(transform) is GeneralizedRCNNTransform and not transform.fixed_size:
            network.transform = EagerResize.of(transform)
        return detector(network)

    @staticmethod
    def settled(network: nn.Module, settings: dict[str, Any]) -> dict[str, Any]:
        head = getattr(network, "roi_heads", network)
        has = {key: getattr(head, name, None) for key, name in _THEIRS.items()}
        # What a network of one's own calls so may be anything.
        settings = settings | {key: v for key, v in has.items() if isinstance(v, (int, float))}
        # Whatever such a network answers with may be asked for.
        return settings | ({"score_floor": 0.0} if settings["score_floor"] is None else {})

    @staticmethod
    def decode(settings: dict[str, Any]) -> nn.Module:
        return compact()

    def options(self) -> list[Option]:
        floor = self._floor()
        default = max(floor, self.bundle.defaults.get("min_score", 0.5))
        words = "least score of an answered box; the lowest possible is fixed in the archive"
        return [Option("min_score", float, default, words, minimum=floor, maximum=1.0)]

    def fixed(self) -> dict[str, str]:
        has = self.bundle.decode
        # An artifact of others was made by others' settings.
        nms, most = (
            "the artifact's own" if self.bundle.foreign or has.get(key) is None else has[key]
            for key in ("nms_iou", "max_detections")
        )
        when = "is fixed when the archive is built, here"
        reasons = {
            "nms_iou": f"the IoU of NMS {when} {nms}",
            "max_detections": f"the number of boxes {when} {most}",
            "score_floor": f"the least possible score {when} {self._floor()}",
        }
        return reasons | dict.fromkeys(_NMS, reasons["nms_iou"])

    def postprocess(self, outputs: Arrays, picture: Picture, options: dict[str, Any]) -> Any:
        boxes, scores, classes = outputs
        boxes = self.bundle.input.boxes_in_picture(boxes, picture.size)
        # What was found in a letterbox's bars has no area in the picture.
        found = (np.round(boxes[:, 2:], 2) > np.round(boxes[:, :2], 2)).all(axis=1)
        found &= (scores > 0) & (scores >= options["min_score"])
        return [
            {
                "label": self._label(int(classes[i])),
                "score": round(float(scores[i]), 6),
                "box": dict(zip(_SIDES, (round(float(v), 2) for v in boxes[i]), strict=True)),
            }
            for i in np.argsort(-scores, kind="stable")
            if found[i]
        ]

    def _label(self, index: int) -> str:
        labels = self.bundle.labels
        if not 0 <= index < len(labels):
            raise InferenceError(
                f"this model found class {index} and its archive has {len(labels)} labels, counted "
                "from 0: build it with a label for each class"
            )
        return labels[index]

    def draw(self, answer: Any, picture: Image.Image) -> Image.Image:
        labels = [each["label"] for each in answer]
        classes = [self.bundle.labels.index(label) for label in labels]
        scores = [each["score"] for each in answer]
        return drawing.draw_boxes(picture, _boxes(answer), labels, scores, classes)

    def compare(self, expected: Any, answer: Any, **given: Any) -> Difference:
        """Boxes matched by label where they overlap; one without a partner counts by its score."""
        threshold = (self.defaults() | given)["min_score"]
        closeness = self.bundle.closeness
        moves, lost, rest = [0.0], [], list(answer)
        figures: dict[str, float] = {"boxes": len(expected)}
        for each in expected:
            overlaps = _overlaps(each, rest)
            best = int(overlaps.argmax()) if len(rest) else -1
            if best >= 0 and overlaps[best] >= closeness.overlap:
                moves.append(abs(each["score"] - rest.pop(best)["score"]))
                least = min(figures.get("least_overlap", 1.0), float(overlaps[best]))
                figures["least_overlap"] = least
            else:
                lost.append(each)
        lone = [*lost, *rest]
        moves += [each["score"] - threshold for each in lone]
        border = threshold + max(_BORDERLINE, closeness.answers)
        clear = [each for each in lone if each["score"] > border]
        detail = f"{len(clear)} of {len(expected)} boxes lost or added"
        return Difference(not clear, max(moves), detail, figures)

    def margin(self, answer: Any, **given: Any) -> float:
        """The best score less the threshold; 0 for an answer without boxes.

        Boxes near the threshold do not make an answer unclear: ``compare`` lets them come and go.
        """
        threshold = (self.defaults() | given)["min_score"]
        return max((each["score"] - threshold for each in answer), default=0.0)

    def widest(self) -> dict[str, Any]:
        return {"min_score": self._floor()}

    def _floor(self) -> float:
        """The least score that may be asked for; below it the exported module has no boxes.

        An artifact of others has those that its makers left.
        """
        return 0.0 if self.bundle.foreign else float(self.bundle.decode["score_floor"])

    metric_name = "mAP"
    # Of 200 pictures one takes a fifth of a second: a thousand would be minutes of a build.
    resamples = 100

    def evidence(self, answer: Any, truth: Any) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Boxes, scores and class ids found, and those wanted.

        A truth is (boxes (M, 4) xyxy in pixels, class ids (M,), 1 for a crowd and else 0 (M,)).
        """
        import torch

        ids = [self.bundle.labels.index(each["label"]) for each in answer]
        scores = torch.tensor([float(each["score"]) for each in answer])
        found = torch.from_numpy(_boxes(answer)).float()
        labels = torch.tensor(ids, dtype=torch.int64)
        boxes, classes, crowds = (torch.as_tensor(each) for each in truth)
        return (
            {"boxes": found, "scores": scores, "labels": labels},
            {"boxes": boxes, "labels": classes, "iscrowd": crowds},
        )

    @staticmethod
    def metric(evidence: Sequence[Any]) -> float:
        """COCO's mean average precision over IoU 0.50 to 0.95; NaN where no truth has a box."""
        from torchmetrics.detection import MeanAveragePrecision

        metric = MeanAveragePrecision()
        metric.update([found for found, _ in evidence], [wanted for _, wanted in evidence])
        found = float(metric.compute()["map"])
        return found if found >= 0 else math.nan

    def labelled(self, folder: Path) -> list[tuple[Path, Any]]:
        return list(truths.boxes(folder, self.bundle.labels))

    def as_truth(self, answer: Any) -> Any:
        """The boxes that are more likely there than not."""
        sure = [each for each in answer if each["score"] >= _SURE]
        ids = np.array([self.bundle.labels.index(each["label"]) for each in sure], np.int64)
        return _boxes(sure).astype(np.float32), ids, np.zeros_like(ids)

    @staticmethod
    def classes(network: nn.Module, outputs: Any) -> int | None:
        """Those of torchvision's heads, wherever in the network, which count the background."""
        found = {count for each in network.modules() if (count := _counted(each)) is not None}
        return found.pop() if len(found) == 1 else None

    @staticmethod
    def summary(answer: Any) -> str:
        return ", ".join(f"{each['label']} {each['score']:.2f}" for each in answer[:3]) or "nothing"


_SIDES = ("xmin", "ymin", "xmax", "ymax")


def _counted(head: nn.Module) -> int | None:
    from torchvision.models.detection.faster_rcnn import FastRCNNPredictor
    from torchvision.models.detection.fcos import FCOSClassificationHead
    from torchvision.models.detection.retinanet import RetinaNetClassificationHead
    from torchvision.models.detection.ssd import SSDClassificationHead
    from torchvision.models.detection.ssdlite import SSDLiteClassificationHead

    if isinstance(head, FastRCNNPredictor):
        return int(head.cls_score.out_features)
    if isinstance(head, (SSDClassificationHead, SSDLiteClassificationHead)):
        return int(head.num_columns)
    if isinstance(head, (FCOSClassificationHead, RetinaNetClassificationHead)):
        return int(head.num_classes)
    return None


def _boxes(answer: Any) -> NDArray[np.float64]:
    return np.array([[each["box"][side] for side in _SIDES] for each in answer]).reshape(-1, 4)


def _overlaps(one: Any, others: Any) -> NDArray[np.float64]:
    """IoU of one detection with each other of its label; 0 with those of other labels."""
    a, b = _boxes([one]), _boxes(others)
    low, high = np.maximum(a[:, :2], b[:, :2]), np.minimum(a[:, 2:], b[:, 2:])
    common = np.clip(high - low, 0, None).prod(axis=1)
    areas = [(box[:, 2:] - box[:, :2]).prod(axis=1) for box in (a, b)]
    union = areas[0] + areas[1] - common
    iou = np.divide(common, union, out=np.zeros_like(common), where=union > 0)
    return np.asarray(iou * np.array([each["label"] == one["label"] for each in others]))
