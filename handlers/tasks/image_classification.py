"""Image classification: which of the labels a picture shows, with softmax scores."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from handlers import drawing, truths
from handlers.foreign import Meaning, probabilities, through
from handlers.options import Option
from handlers.pictures import Picture
from handlers.runtimes import Array, Arrays
from handlers.task import Difference, TaskHandler

if TYPE_CHECKING:
    from torch import Tensor, nn


def softmax() -> nn.Module:
    """Logits (N, classes) -> scores (N, classes) in float32 that sum to 1."""
    # Here, since most workers do without torch.
    import torch
    from torch import nn

    class Softmax(nn.Module):
        def forward(self, logits: Tensor) -> tuple[Tensor]:
            return (torch.softmax(logits.float(), dim=1),)

    return Softmax()


class ImageClassification(TaskHandler):
    """Answers ``[{"label", "score"}, ...]``, best first."""

    meanings = (
        Meaning(("logits",), through(softmax, "N, classes"), needs_torch=True),
        Meaning(("probabilities",), probabilities),
    )
    least_classes = 2
    network_form = "pixels (N, C, H, W) -> logits (N, classes)"
    torchvision = "torchvision.models"
    torchvision_keys = {
        "runtime": "openvino",
        "runtime_options": {"torchscript": {"method": "trace"}},
        "samples": "samples/shapes",
        "serving": {"batch_size": 8},
    }

    @staticmethod
    def decode(settings: dict[str, Any]) -> nn.Module:
        return softmax()

    def options(self) -> list[Option]:
        default = min(self.bundle.defaults.get("top_k", 5), len(self.bundle.labels))
        return [Option("top_k", int, default, "how many labels to answer with", minimum=1)]

    def postprocess(self, outputs: Arrays, picture: Picture, options: dict[str, Any]) -> Any:
        scores = outputs[0]
        best = _best(scores, options["top_k"])
        return [
            {"label": self.bundle.labels[index], "score": round(float(scores[index]), 6)}
            for index in best
        ]

    def draw(self, answer: Any, picture: Image.Image) -> Image.Image:
        return drawing.draw_labels(picture, [(each["label"], each["score"]) for each in answer])

    def compare(self, expected: Any, answer: Any, **given: Any) -> Difference:
        """Same top-1; scores by label, a label beyond the other's top k counting as its last."""
        first, second = _by_label(expected), _by_label(answer)
        moves = [
            abs(first.get(label, min(first.values())) - second.get(label, min(second.values())))
            for label in first.keys() | second.keys()
        ]
        best, found = expected[0]["label"], answer[0]["label"]
        detail = f"top-1 is {found}, expected {best}" if best != found else f"top-1 is {best}"
        return Difference(best == found, max(moves), detail)

    def margin(self, answer: Any, **given: Any) -> float:
        """Score of the best label less that of the next."""
        return float(answer[0]["score"] - answer[1]["score"]) if len(answer) > 1 else 1.0

    metric_name = "top-1"

    def evidence(self, answer: Any, truth: Any) -> bool:
        """Whether the best label is the true one; a truth is an index in the labels."""
        return bool(answer[0]["label"] == self.bundle.labels[truth])

    @staticmethod
    def metric(evidence: Sequence[Any]) -> float:
        """Share of answers whose best label is the true one."""
        return float(np.mean(evidence))

    def labelled(self, folder: Path) -> list[tuple[Path, Any]]:
        return list(truths.classes(folder, self.bundle.labels))

    def as_truth(self, answer: Any) -> int:
        return self.bundle.labels.index(answer[0]["label"])

    @staticmethod
    def summary(answer: Any) -> str:
        return ", ".join(f"{each['label']} {each['score']:.3f}" for each in answer[:2])

    def widest(self) -> dict[str, Any]:
        return {"top_k": len(self.bundle.labels)}

    @staticmethod
    def classes(network: nn.Module, outputs: Tensor) -> int:
        _, count = outputs.shape
        return int(count)


def _by_label(answer: Any) -> dict[tuple[str, int], float]:
    """Scores by label and occurrence: ImageNet has two cranes and two maillots."""
    scores: dict[tuple[str, int], float] = {}
    seen: Counter[str] = Counter()
    for each in answer:
        scores[each["label"], seen[each["label"]]] = each["score"]
        seen[each["label"]] += 1
    return scores


def _best(scores: Array, count: int) -> Array:
    """Indices of the ``count`` largest, largest first, of equal ones the first.

    Only those that may be among them are sorted: of 1,000 scores in 17 instead of 35 microseconds.
    """
    some = np.arange(len(scores))
    if count < len(scores):
        some = np.flatnonzero(scores >= np.partition(scores, -count)[-count])
    return some[np.argsort(-scores[some], kind="stable")][:count]
