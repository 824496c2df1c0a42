"""int8 stays between the network's layers: normalisation and head are in float, as the docs say."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from exports import export, int8_readers
from torch import Tensor, fx, nn

from handlers import torch_int8
from handlers.plugins import load_runtime, load_task
from handlers.runtimes import ExportRequest
from handlers.servable import Network

SEGMENTATION = "semantic-segmentation"
PIXELS = np.random.default_rng(0).integers(0, 255, (4, 12, 12, 3), dtype=np.uint8)


class Unit(nn.Module):
    """A head with a layer of its own, and outputs of norm 1, in several arithmetic operations."""

    def __init__(self) -> None:
        super().__init__()
        self.turned = nn.Linear(5, 5)

    def forward(self, features: Tensor) -> tuple[Tensor]:
        return (nn.functional.normalize(self.turned(features.float()), dim=1),)


class Whole(nn.Module):
    """Normalisation, layers and head, named as those of a Servable."""

    def __init__(self, layers: nn.Module, decode: nn.Module) -> None:
        super().__init__()
        self.network = Network(layers, [0.5] * 3, [0.2] * 3)
        self.decode = decode

    def forward(self, images: Tensor) -> Any:
        return self.decode(self.network(images))


def _pooled() -> nn.Module:
    """Two layers with an activation and a pooling between them."""
    last = nn.Linear(8, 5)
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AvgPool2d(10), nn.Flatten(), last)


def _dense() -> nn.Module:
    """Layers up to a transposed one, whose map is then enlarged."""
    layers = [nn.Conv2d(3, 8, 3), nn.ReLU(), nn.ConvTranspose2d(8, 4, 2, stride=2)]
    return nn.Sequential(*layers, nn.Upsample(scale_factor=2, mode="bilinear"))


def _whole(name: str) -> Whole:
    torch.manual_seed(0)
    if name == "features":
        return Whole(_pooled(), Unit()).eval()
    layers = _dense() if name == SEGMENTATION else _pooled()
    return Whole(layers, load_task(name).decode({})).eval()


def _request(name: str, path: Path) -> ExportRequest:
    batch = {0: ("batch", 1, 4)}
    given: Any = {"precision": "int8", "calibration": [PIXELS]}
    return ExportRequest(_whole(name), PIXELS[:2], batch, path, **given)


each_head = pytest.mark.parametrize("name", ["image-classification", SEGMENTATION, "features"])


@each_head
def test_openvino_quantises_nothing_behind_or_before_the_layers(name: str, tmp_path: Path) -> None:
    path = tmp_path / "model.xml"
    runtime: Any = load_runtime("openvino")
    export(runtime, _request(name, path))
    readers = int8_readers(path)
    assert "Convolution" in readers.values()
    assert ("ConvolutionBackpropData" in readers.values()) == (name == SEGMENTATION)
    assert not any(reader.startswith(("network/", "decode")) for reader in readers), readers
    # Of those that have lost their names.
    unnamed = {kind for reader, kind in readers.items() if not reader.startswith("network.network")}
    assert unnamed <= {"ConvolutionBackpropData"}
    if name == "features":
        model = runtime(path, "cpu", {**runtime.options, "threads": 1, "precision": "int8"})
        norms = np.linalg.norm(model(PIXELS)[0], axis=1)
        np.testing.assert_allclose(norms, 1, atol=1e-5)


def test_openvino_leaves_a_transposed_layer_in_float_where_it_is_asked_to(tmp_path: Path) -> None:
    path, kept = tmp_path / "model.xml", frozenset({"network.network.2"})
    export(load_runtime("openvino"), replace(_request(SEGMENTATION, path), float_layers=kept))
    assert set(int8_readers(path).values()) == {"Convolution"}


@each_head
def test_aotinductor_quantises_nothing_behind_or_before_the_layers(
    name: str, tmp_path: Path
) -> None:
    request = _request(name, tmp_path / "model.pt2")
    with torch.no_grad():
        found: Any = torch_int8.quantised(request.module, request)
    graph: fx.Graph = found.graph
    readers = {
        user
        for node in graph.nodes
        if "dequantize" in str(node.target)
        for user in node.users
        if "quantize" not in str(user.target)
    }
    assert readers
    for reader in readers:
        places = [name for name, _ in reader.meta["nn_module_stack"].values()]
        assert "network.network" in places[-1], (reader, places)
