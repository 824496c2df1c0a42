"""Weights for torchvision's models without a download: random, seeded, and with outputs that mean
something.

A fresh network answers every picture alike, and a fresh detector finds nothing, so agreement on
either would prove nothing. Here batch norms learn their statistics from the sample pictures, and
the last layers are scaled until pictures, pixels and boxes differ and scores spread.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import torchvision
from PIL import Image
from torch import Tensor, nn
from torchvision.ops import FrozenBatchNorm2d
from torchvision.transforms.functional import pil_to_tensor, to_pil_image

from handlers.inputs import ImageInput
from marsmith.spec import ModelSpec

SAMPLES = Path(__file__).parents[1] / "samples"
# On average so many candidates of a picture are above 0.05, and the best is near 0.9. With many
# more, scores lie so close that rounding decides which of two boxes suppresses the other, and
# those after torchvision's limit are cut off.
_CANDIDATES = 50
_FLOOR, _BEST = math.log(0.05 / 0.95), math.log(0.9 / 0.1)


def torchvision_model(spec: ModelSpec, state: dict[str, Tensor]) -> nn.Module:
    """``torchvision.models.get_model`` with the spec's weights, for whose file ``state`` stands."""
    name = spec.architecture.partition(":")[2]
    entry = torchvision.models.get_model_weights(name)[str(spec.weights.torchvision)]
    with patch.object(entry, "get_state_dict", lambda **_: copy.copy(state)):
        model: nn.Module = torchvision.models.get_model(name, weights=entry)
    return model.eval()


def prepare(spec: ModelSpec, folder: Path, fixed: ImageInput | None = None) -> Path:
    """A state_dict file in ``folder`` like the one that the spec's weights entry would download.

    ``fixed`` is the input that a detector gets instead of pictures of their own sizes.
    """
    torch.manual_seed(len(spec.name))
    name = spec.architecture.partition(":")[2]
    entry = torchvision.models.get_model_weights(name)[str(spec.weights.torchvision)]
    given: dict[str, Any] = {"num_classes": len(entry.meta["categories"]), **spec.arguments}
    if spec.task != "image-classification":
        given["weights_backbone"] = None
    model = torchvision.models.get_model(name, weights=None, **given).eval()
    preset = entry.transforms()
    settle(model, spec.task, preset if fixed is None else _after(fixed, preset))
    state = model.state_dict()
    for module, each in torchvision_model(spec, state).named_modules():
        if isinstance(each, FrozenBatchNorm2d):
            # torchvision's own files were saved from frozen batch norms, which count no batches.
            del state[f"{module}.num_batches_tracked"]
    path = folder / str(entry.url.rsplit("/", 1)[1])
    torch.save(state, path)
    return path


def _after(given: ImageInput, preset: Any) -> Any:
    """The preset, of pictures (3, H, W) that have been made ``given``'s input."""

    def run(picture: Tensor) -> Any:
        return preset(pil_to_tensor(Image.fromarray(given.prepare(to_pil_image(picture)))))

    return run


def settle(model: nn.Module, task: str, preset: Any) -> None:
    """Give a network of random weights, in place, outputs that mean something."""
    with torch.no_grad():
        _stir(model)
        _TASKS[task](model, preset)


def _stir(model: nn.Module) -> None:
    """Values where a new network has constants, which would hide what is left out."""
    for name, value in model.named_parameters():
        if name.endswith("layer_scale"):
            nn.init.uniform_(value, 0.1, 0.5)
        elif value.ndim > 1 and not value.any():
            nn.init.normal_(value, std=0.02)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.7, 1.3)
            nn.init.normal_(module.bias, std=0.1)
    for module in model.modules():
        if hasattr(module, "downsample") or getattr(module, "use_res_connect", False):
            # Random blocks at full strength magnify rounding from one to the next.
            norms = [
                each
                for name, each in module.named_modules()
                if isinstance(each, nn.BatchNorm2d) and "downsample" not in name
            ]
            norms[-1].weight.mul_(0.2)


def _warm(model: nn.Module, batches: Iterable[Any]) -> None:
    """Let the batch norms, and nothing else, learn from batches."""
    norms = [each for each in model.modules() if isinstance(each, (nn.BatchNorm2d, nn.BatchNorm1d))]
    for norm in norms:
        norm.train().momentum = None
        norm.reset_running_stats()
    for batch in batches:
        model(batch)
    model.eval()


def _outputs(model: nn.Module, batches: Iterable[Any], layers: Iterable[nn.Module]) -> list[Tensor]:
    """What each layer gives for the batches, as (positions, channels)."""
    layers = list(layers)
    found: list[list[Tensor]] = [[] for _ in layers]
    hooks = [
        layer.register_forward_hook(
            lambda _module, _inputs, output, place=place: place.append(
                output if output.ndim == 2 else output.movedim(1, -1).flatten(0, -2)
            )
        )
        for layer, place in zip(layers, found, strict=True)
    ]
    for batch in batches:
        model(batch)
    for hook in hooks:
        hook.remove()
    return [torch.cat(each) for each in found]


def _scale(layer: Any, factor: float, shift: Tensor | float) -> None:
    layer.weight *= factor
    if layer.bias is not None:
        layer.bias.copy_(layer.bias * factor + shift)


def _spread(
    model: nn.Module, batches: Iterable[Any], given: Iterable[tuple[Any, float, float]]
) -> None:
    """Give the outputs of each (layer, mean, deviation) this mean in every channel, and this
    standard deviation in all."""
    given = list(given)
    outputs = _outputs(model, batches, [layer for layer, _, _ in given])
    for (layer, mean, deviation), output in zip(given, outputs, strict=True):
        centre = output.mean(0)
        factor = deviation / float((output - centre).std())
        _scale(layer, factor, mean - centre * factor)


def _rank(
    model: Any, pictures: list[Tensor], layers: list[Any], classes: int, background: bool
) -> None:
    """Let the best candidates' scores lie between 0.05 and 0.9, and the others' below.

    Pictures differ, so the floor is that of all on average, and the best is of those that have the
    samples' own size: an archive's golden requests are such.
    """
    _spread(model, [[picture] for picture in pictures], [(layer, 0.0, 1.0) for layer in layers])
    best = []
    for picture in pictures:
        logits = torch.cat([each.flatten() for each in _outputs(model, [[picture]], layers)])
        best.append(logits.topk(_CANDIDATES).values)
    lowest = float(torch.stack(best)[:, -1].mean())
    highest = max(float(each[0]) for each in (best[0], best[-1]))
    factor = (_BEST - _FLOOR) / (highest - lowest)
    for layer in layers:
        _scale(layer, factor, _FLOOR - lowest * factor)
        if background:
            layer.weight[::classes] = 0
            layer.bias[::classes] = 0


def _pictures(folder: str) -> list[Image.Image]:
    return [Image.open(path).convert("RGB") for path in sorted((SAMPLES / folder).glob("*.jpg"))]


def mixed(folder: str) -> list[Image.Image]:
    """Four sample pictures in three sizes; the first has its own, and the last the first's.

    427x640 is among them because a detector's resized height in single precision is often a row
    short there. The scene in which detectors find least shares its size with another.
    """
    first, last, second, third = _pictures(folder)[:4]
    return [first, second.resize((427, 640)), third.resize((640, 300)), last.resize(first.size)]


def _classifier(model: nn.Module, preset: Any) -> None:
    batch = torch.stack([preset(picture) for picture in _pictures("shapes") + _pictures("scenes")])
    _warm(model, [batch])
    last = [each for each in model.modules() if isinstance(each, (nn.Linear, nn.Conv2d))][-1]
    _spread(model, [batch], [(last, 0.0, 5.0)])


def _segmenter(model: Any, preset: Any) -> None:
    # Half their size: statistics need no detail.
    batch = torch.stack([preset(picture)[:, ::2, ::2] for picture in _pictures("scenes")])
    _warm(model, [batch])
    classifiers = [model.classifier, getattr(model, "aux_classifier", None)]
    layers = [
        (each, 0.0, 4.0)
        for classifier in classifiers
        if classifier is not None
        for each in classifier.modules()
        if isinstance(each, nn.Conv2d) and each.bias is not None
    ]
    _spread(model, [batch], layers)


def _detector(model: Any, preset: Any) -> None:
    pictures = [preset(pil_to_tensor(picture)) for picture in mixed("scenes")]
    # At full size, since smaller ones have other statistics, with which no box might be found. One
    # by one, as a batch of several sizes is padded; where all get one size, the last layers' map is
    # a single pixel, of which alone no statistics can be learnt.
    batches = [pictures] if model.transform.fixed_size else [[picture] for picture in pictures]
    # Of a fresh network all boxes score alike, and sorting them out takes half a minute.
    getattr(model, "roi_heads", model).score_thresh = 0.99
    _warm(model, batches)
    if hasattr(model, "roi_heads"):
        rpn, box = model.rpn.head, model.roi_heads.box_predictor
        _spread(model, batches, [(rpn.cls_logits, 0.0, 2.0), (rpn.bbox_pred, 0.0, 0.2)])
        _spread(model, batches, [(box.bbox_pred, 0.0, 0.5)])
        _rank(model, pictures, [box.cls_score], box.cls_score.out_features, background=True)
        return
    scoring, regression = model.head.classification_head, model.head.regression_head
    if hasattr(scoring, "module_list"):
        _spread(model, batches, [(_last(each), 0.0, 0.7) for each in regression.module_list])
        layers = [_last(each) for each in scoring.module_list]
        _rank(model, pictures, layers, scoring.num_columns, background=True)
        return
    if hasattr(regression, "bbox_ctrness"):
        centres = (regression.bbox_ctrness, 3.0, 1.0)
        _spread(model, batches, [(regression.bbox_reg, 1.5, 0.5), centres])
    else:
        _spread(model, batches, [(regression.bbox_reg, 0.0, 0.3)])
    _rank(model, pictures, [scoring.cls_logits], scoring.num_classes, background=False)


def _last(module: nn.Module) -> nn.Module:
    """The last convolution of an SSD's head, which may stand alone."""
    return [each for each in module.modules() if isinstance(each, nn.Conv2d)][-1]


_TASKS = {
    "image-classification": _classifier,
    "semantic-segmentation": _segmenter,
    "object-detection": _detector,
}
