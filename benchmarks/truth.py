"""What plain torchvision answers: its own model, preset and arithmetic, one picture at a time.

Nothing here uses the code that serves, so that agreement means something.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision
from PIL import Image
from torch import nn
from torchvision.ops import box_iou
from torchvision.transforms._presets import ObjectDetection, SemanticSegmentation

from benchmarks.prepared import mixed, torchvision_model
from marsmith.client import Client
from marsmith.server import TorchServe
from marsmith.spec import ModelSpec

SCORE, IOU, PIXELS = 1e-3, 0.99, 0.999
# Below it archives give no boxes by default.
_FLOOR = 0.05
# Confidences of pixels travel as one of 256 steps; a class of few pixels has no steady mean.
_CONFIDENCE, _SPECK = SCORE + 1 / 255, 0.01


@dataclass(frozen=True)
class Agreement:
    """How near served answers came to torchvision's: the worst of all pictures and ways.

    ``objects`` are what was compared: labels, boxes or classes of masks. ``score`` is the largest
    difference of scores, ``overlap`` the least IoU of boxes or share of equal pixels.
    """

    objects: int
    score: float
    overlap: float
    problem: str | None = None

    @property
    def good(self) -> bool:
        return self.problem is None


def served_answers(
    server: TorchServe, spec: ModelSpec, images: Sequence[Image.Image], floor: float
) -> Iterator[tuple[str, list[Any]]]:
    """The server's answers to ``images`` together as JSON instances, and to each, all at once;
    of boxes those with a score of at least ``floor``."""
    options = {
        "image-classification": {"top_k": 1000},
        "object-detection": {"min_score": floor},
        "semantic-segmentation": {},
    }[spec.task]
    bodies = [_png(image) for image in images]

    def ask(body: bytes) -> Any:
        with server.client(timeout=300) as client:
            return _predict(
                client, spec, {"data": base64.b64encode(body).decode(), "parameters": options}
            )

    with server.client(timeout=300) as client:
        instances = [{"b64": base64.b64encode(body).decode()} for body in bodies]
        together = {"instances": instances, "parameters": options}
        yield "together", _predict(client, spec, together)["predictions"]
    with ThreadPoolExecutor(len(bodies)) as pool:
        yield "at once", list(pool.map(ask, bodies))


def agreement(server: TorchServe, spec: ModelSpec, weights: Path) -> Agreement:
    """Compare what ``server`` answers with torchvision's model made of the file ``weights``."""
    model, preset, labels = _reference(spec, torch.load(weights, weights_only=True))
    images = mixed("shapes" if spec.task == "image-classification" else "scenes")
    with torch.inference_mode():
        if spec.task == "object-detection":
            expected = [model([preset(image)])[0] for image in images]
        else:
            expected = [model(preset(image)[None]) for image in images]
    # FCOS of torchvision gives no box below 0.2, archives do so when they are asked.
    floor = max(_FLOOR, getattr(getattr(model, "roi_heads", model), "score_thresh", 0.0))
    compare = (
        partial(_boxes, floor=floor) if spec.task == "object-detection" else _OTHERS[spec.task]
    )
    count, scores, overlaps = 0, [0.0], [1.0]
    try:
        for way, answers in served_answers(server, spec, images, floor):
            left = {image.size for image in images}
            for image, theirs, answer in zip(images, expected, answers, strict=True):
                found, score, overlap = compare(theirs, answer, labels, image.size)
                count += found
                scores.append(score)
                overlaps.append(overlap)
                left -= {image.size} if found else set()
            assert not left, f"{way}: nothing was compared at {left}"
    except AssertionError as error:
        return Agreement(count, max(scores), min(overlaps), str(error) or "answers differ")
    return Agreement(count, max(scores), min(overlaps))


def _reference(
    spec: ModelSpec, state: dict[str, torch.Tensor]
) -> tuple[nn.Module, Callable[[Image.Image], torch.Tensor], Sequence[str]]:
    """torchvision's own model, preset and labels; those of its weights, or of a trained file."""
    name = spec.architecture.partition(":")[2]
    if spec.weights.torchvision is not None:
        entry = torchvision.models.get_model_weights(name)[spec.weights.torchvision]
        return torchvision_model(spec, state), entry.transforms(), entry.meta["categories"]
    model = torchvision.models.get_model(
        name, weights=None, weights_backbone=None, **spec.arguments
    ).eval()
    model.load_state_dict(state)
    assert isinstance(spec.labels, list)
    if spec.task == "object-detection":
        return model, ObjectDetection(), spec.labels
    assert spec.input is not None
    assert isinstance(spec.input.resize, int)
    return model, SemanticSegmentation(resize_size=spec.input.resize), spec.labels


def _classes(
    theirs: Any, answer: Any, labels: Sequence[str], size: tuple[int, int]
) -> tuple[int, float, float]:
    scores = theirs[0].softmax(0).numpy()
    order = np.argsort(-scores)
    assert len(answer) == len(labels)
    # Labels are not unique in ImageNet, so ranks are compared, where eager itself is decided.
    moves = np.abs(scores[order] - [each["score"] for each in answer])
    gaps = np.minimum(-np.diff(scores[order], append=0), -np.diff(scores[order], prepend=1))
    decided = [rank for rank in range(len(order)) if gaps[rank] > 2 * SCORE]
    for rank in decided:
        assert answer[rank]["label"] == labels[order[rank]], f"rank {rank} has another label"
    assert moves.max() <= SCORE, f"scores differ by {moves.max():.2g}"
    return len(decided), float(moves.max()), 1.0


def _boxes(
    theirs: Any, answer: Any, labels: Sequence[str], size: tuple[int, int], floor: float
) -> tuple[int, float, float]:
    sides = ("xmin", "ymin", "xmax", "ymax")
    rest = [
        (each["label"], each["score"], torch.tensor([[each["box"][side] for side in sides]]))
        for each in answer
    ]
    worst, least, count = 0.0, 1.0, 0
    for box, score, label in zip(theirs["boxes"], theirs["scores"], theirs["labels"], strict=True):
        overlaps = [
            float(box_iou(box[None], other)) if name == labels[label] else 0.0
            for name, _, other in rest
        ]
        best = int(np.argmax(overlaps)) if overlaps else -1
        if best < 0 or overlaps[best] < IOU:
            assert score <= floor + SCORE, f"no {labels[label]} with score {score:.3f} at {box}"
            continue
        move = abs(float(score) - rest.pop(best)[1])
        assert move <= SCORE, f"scores differ by {move:.2g}"
        worst, least, count = max(worst, move), min(least, overlaps[best]), count + 1
    left = [each for each in rest if each[1] > floor + SCORE]
    assert not left, f"boxes that torchvision does not have: {left[:2]}"
    return count, worst, least


def _masks(
    theirs: Any, answer: Any, labels: Sequence[str], size: tuple[int, int]
) -> tuple[int, float, float]:
    best = theirs["out"][0].softmax(0).max(0)
    ids, sure = (_enlarged(each.numpy(), size) for each in (best.indices.int(), best.values))
    mask = np.asarray(Image.open(io.BytesIO(base64.b64decode(answer["mask"]["data"]))))
    assert mask.shape == ids.shape
    equal = float((mask == ids).mean())
    assert equal >= PIXELS, f"{1 - equal:.3%} of the mask's pixels differ"
    shares = {each["label"]: each["share"] for each in answer["classes"]}
    moves = [abs(float((ids == i).mean()) - shares.get(labels[i], 0)) for i in range(len(labels))]
    assert max(moves) <= SCORE, f"shares differ by {max(moves):.2g}"
    for each in answer["classes"]:
        theirs_here = sure[ids == labels.index(each["label"])]
        if len(theirs_here) < _SPECK * ids.size:
            continue
        move = abs(float(theirs_here.mean()) - each["score"])
        assert move <= _CONFIDENCE, f"the score of {each['label']} differs by {move:.2g}"
    return len(shares), max(moves), equal


def _enlarged(plane: Any, size: tuple[int, int]) -> Any:
    return np.asarray(Image.fromarray(plane).resize(size, Image.Resampling.NEAREST))


_OTHERS = {
    "image-classification": _classes,
    "semantic-segmentation": _masks,
}


def _png(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def _predict(client: Client, spec: ModelSpec, body: dict[str, Any]) -> Any:
    reply = client.predict(spec.name, body, version=spec.version)
    assert reply.ok, reply.problem()
    return reply.json()
