"""Detectors and segmenters through the build, on what is special to them: whole or in two halves,
in few bits, and for pictures of any size. Parity compares each with eager on two sizes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from exports import int8_readers
from PIL import Image
from torch import Tensor
from torchvision.transforms.functional import pil_to_tensor, resize

from benchmarks.prepared import settle
from handlers import onnx_names, split
from handlers.bundle import DECODE_FILE
from handlers.inner import NETWORK
from handlers.layer_names import module_of
from handlers.servable import Servable, create_network
from marsmith import named, preparing, proving, quantise, samples, spec
from marsmith.proving import Proven
from marsmith.spec import ModelSpec

SCENES = Path(__file__).parents[2] / "samples/scenes"
FIXED = {"input": {"resize": [128, 128], "letterbox": 0}}
# Without the even bands of letterboxing: boxes that a random network finds there score alike.
SMALL = {"input": {"resize": [128, 128]}, "decode": {"score_floor": 0.1}}
ANY = {"input": {"resize": 96}}
# Small ones for what takes minutes to compile: a detector whose backbone gives two maps, and a
# segmenter that looks at the whole picture and enlarges its answer to the size of that.
SOURCE = """
from collections import OrderedDict

from torch import Tensor, nn
from torch.nn import functional
from torchvision.models.detection.anchor_utils import DefaultBoxGenerator
from torchvision.models.detection.ssd import SSD, SSDHead


def layer(before: int, after: int) -> nn.Module:
    conv = nn.Conv2d(before, after, 3, stride=4, padding=1)
    return nn.Sequential(conv, nn.BatchNorm2d(after), nn.ReLU())


class Backbone(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = layer(3, 8), layer(8, 12)

    def forward(self, images: Tensor) -> OrderedDict[str, Tensor]:
        first = self.first(images)
        return OrderedDict([("near", first), ("far", self.second(first))])


class Detector(SSD):
    def __init__(self, num_classes: int) -> None:
        boxes = DefaultBoxGenerator([[2], [2]], min_ratio=30, max_ratio=80)
        head = SSDHead([8, 12], boxes.num_anchors_per_location(), num_classes)
        super().__init__(Backbone(), boxes, (64, 64), num_classes, head=head)


class Segmenter(nn.Module):
    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.backbone, self.whole = Backbone(), nn.Conv2d(12, 8, 1)
        self.classifier = nn.Sequential(nn.Conv2d(8, num_classes, 1))

    def forward(self, images: Tensor) -> Tensor:
        maps = self.backbone(images)
        seen = self.whole(functional.adaptive_avg_pool2d(maps["far"], 1)).sigmoid()
        logits = self.classifier(maps["near"] * seen)
        return functional.interpolate(logits, size=images.shape[-2:], mode="bilinear")
"""


BUILT = [
    ("ssdlite_shapes", "onnx", "int8", {}),
    ("ssdlite_shapes", "onnx", "fp16", FIXED),
    ("ssdlite_shapes", "openvino", "bf16", {}),
    ("lraspp_shapes", "onnx", "int8", {}),
    ("lraspp_shapes", "onnx", "fp16", {}),
    ("lraspp_shapes", "openvino", "bf16", {}),
    ("Detector", "openvino", "int8", SMALL),
    ("Detector", "aotinductor", "fp32", SMALL),
    ("Detector", "torch-compile", "fp32", SMALL),
    ("Segmenter", "openvino", "int8", ANY),
    ("Segmenter", "aotinductor", "fp32", ANY),
    ("Segmenter", "torch-compile", "fp32", ANY),
]


def _small(folder: Path, name: str, given: dict[str, Any]) -> ModelSpec:
    """A small network of random weights, whose answers differ from place to place."""
    (folder / "small.py").write_text(SOURCE)
    torch.manual_seed(0)
    network = create_network(f"small.py:{name}", {"num_classes": 4}, folder).eval()
    task = {"Detector": "object-detection", "Segmenter": "semantic-segmentation"}[name]
    settle(network, task, _preset)
    torch.save(network.state_dict(), folder / "weights.pth")
    fields = {
        "name": "small",
        "task": task,
        "architecture": f"small.py:{name}",
        "arguments": {"num_classes": 4},
        "weights": {"file": "weights.pth"},
        "labels": ["none", "a", "b", "c"],
        "samples": str(SCENES),
    }
    return spec.parse(fields | given, name)


def _preset(picture: Any) -> Tensor:
    pixels = picture if isinstance(picture, Tensor) else pil_to_tensor(picture)
    return resize(pixels.float() / 255, [128, 128])


def _proven(model: ModelSpec, root: Path, folder: Path) -> tuple[Proven, Servable]:
    """What a build proves of two pictures of different sizes, and the eager module."""
    module, bundle = preparing.prepare(model, root, folder)
    eager = preparing.reference(bundle, module)
    first, second = samples.found(SCENES)[:2]
    pictures = [Image.open(first).convert("RGB"), Image.open(second).resize((300, 200))]
    told: list[str] = []
    return proving.proven(model, root, folder, module, eager, pictures, told.append), module


@pytest.mark.parametrize(
    ("name", "runtime", "precision", "given"), BUILT, ids=["-".join(each[:3]) for each in BUILT]
)
def test_it_answers_like_eager(
    name: str, runtime: str, precision: str, given: dict[str, Any], project: Path, tmp_path: Path
) -> None:
    given = {**given, "runtime": runtime, "precision": precision, "serving": {"batch_size": 2}}
    if precision == "int8":
        pictures = {"folder": str(SCENES), "count": 1}
        # How good int8 is says ``benchmarks.ranges``; the limits of parity hold here as well.
        given |= {"calibration": {**pictures, "keep_fp32": 1}}
        given |= {"accuracy": {"folder": str(SCENES), "drop": 0.5}}
    own = project / f"models/{name}.yaml"
    # FIXED is what --resize 128,128 --letterbox 0 say of it.
    model = named.load(str(own), Path(), given) if own.exists() else _small(tmp_path, name, given)
    (folder := tmp_path / "archive").mkdir()
    proof, module = _proven(model, project if own.exists() else tmp_path, folder)
    bundle = proof.artifact.bundle
    assert (folder / DECODE_FILE).exists() == bundle.input.fixed
    figures = proof.parity.figures
    assert "largest_changed" in figures or figures["boxes"] > 3
    # Of the artifact itself, and of that in fp32 before it.
    reports = [proof.parity, *([proof.exact] if proof.exact else [])]
    assert all(("largest_features" in each.figures) == bundle.input.fixed for each in reports)
    assert (reports[-1].limits.get("features") == 1e-3) == bundle.input.fixed
    if precision == "int8":
        kept = bundle.provenance["calibration"]["float_layers"]
        assert len(kept) == 1
        layers = set(quantise.layers(module, split.TRUNK if bundle.input.fixed else NETWORK))
        path = folder / bundle.artifact
        if runtime == "onnx":
            _check_onnx(path, layers - set(kept), whole=bundle.task == "object-detection")
        else:
            _check_openvino(path, layers, set(kept))


def _check_onnx(path: Path, layers: set[str], whole: bool) -> None:
    """The weights of these layers are in int8, and values that they read or give; in a detector no
    others, for boxes are decoded between its layers."""
    graph = onnx.load(path).graph
    constants = {each.name for each in graph.initializer}
    makers = {each.output[0]: each for each in graph.node}
    weighted = [each for each in graph.node if each.op_type in onnx_names.WEIGHTED]
    few = {
        each.name: each
        for each in weighted
        if (maker := makers.get(each.input[1])) and set(maker.input) <= constants
    }
    assert few.keys() == layers
    quantised = {each.input[0] for each in graph.node if each.op_type == "QuantizeLinear"}
    read = {makers[makers[each.input[0]].input[0]].input[0] for each in few.values()}
    others = quantised - read - {each.output[0] for each in few.values()}
    assert bool(others) != whole
    assert not [each for each in others if makers[each].name.startswith("decode")]


def _check_openvino(path: Path, layers: set[str], kept: set[str]) -> None:
    """Of all layers these read 8-bit values, and nothing in front of the network or behind it does:
    NNCF leaves out those that only weigh channels."""
    readers = {module_of(split.in_whole(each)) for each in int8_readers(path)}
    assert all(each.startswith(f"{NETWORK}network") for each in readers)
    assert not readers & kept
    assert len(readers & layers) >= len(layers) / 2
