"""Nodes and values of exported graphs bear the names of the eager modules that they come from."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

from handlers import onnx_export, plugins
from handlers.layer_names import module_of
from handlers.onnx_names import WEIGHTED
from handlers.runtimes import ExportRequest
from handlers.servable import Servable


def _servable(task: str, name: str) -> Servable:
    torch.manual_seed(0)
    return Servable.build(
        {
            "architecture": f"torchvision:{name}",
            "arguments": {},
            "task": task,
            "decode": plugins.load_task(task).decode_settings,
            "mean": [0.0] * 3,
            "std": [1.0] * 3,
        },
        Path(),
    )


def _graph(module: nn.Module, folder: Path, loops: bool, side: int = 64) -> Any:
    shape = (1 if loops else 2, side, side, 3)
    request = ExportRequest(
        module=module,
        example=np.random.default_rng(0).integers(0, 255, shape, dtype=np.uint8),
        dynamic={} if loops else {0: ("batch", 1, 8)},
        path=folder / "model.onnx",
        loops=loops,
    )
    onnx_export.export(request, request.path)
    onnx.checker.check_model(str(request.path), full_check=True)
    return onnx.load(request.path).graph


@pytest.mark.parametrize(
    ("task", "name"),
    [
        ("image-classification", "mobilenet_v2"),
        ("semantic-segmentation", "lraspp_mobilenet_v3_large"),
        ("object-detection", "ssdlite320_mobilenet_v3_large"),
    ],
)
def test_every_weighted_layer_is_a_node_of_its_name(task: str, name: str, tmp_path: Path) -> None:
    module = _servable(task, name)
    graph = _graph(module, tmp_path, loops=task == "object-detection")
    names = Counter(node.name for node in graph.node)
    assert max(names.values()) == 1
    layers = {
        name for name, each in module.named_modules() if isinstance(each, (nn.Conv2d, nn.Linear))
    }
    weighted = {node.name for node in graph.node if node.op_type in WEIGHTED}
    assert len(layers) > 20
    assert weighted == layers
    # The batch norm is folded into the convolution, whose value is what the batch norm gives.
    folded = {node.name: node.output[0] for node in graph.node if node.op_type == "Conv"}
    norms = {n for n, each in module.named_modules() if isinstance(each, nn.BatchNorm2d)}
    assert len(norms & set(folded.values())) == len(norms)


class _Repeats(nn.Module):
    """Calls modules again, and has one whose name is what exporters make of a second call."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.conv_1 = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)
        self.block = nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.ReLU())
        self.linear = nn.Linear(3, 3)

    def forward(self, images: Tensor) -> tuple[Tensor]:
        pixels = self.conv(images.permute(0, 3, 1, 2).float())
        pixels = self.conv(self.conv_1(pixels)) + 1
        pixels = self.block(self.block(pixels))
        return (self.linear(self.linear(pixels.mean((2, 3)))) * 2,)


@pytest.mark.parametrize("loops", [False, True])
def test_a_module_that_is_called_again_has_a_number(loops: bool, tmp_path: Path) -> None:
    module = _Repeats().eval()
    graph = _graph(module, tmp_path, loops, side=8)
    nodes = {node.name: node for node in graph.node}
    weighted = [node.name for node in graph.node if node.op_type in WEIGHTED]
    assert sorted(weighted) == [
        "block.0",
        "block.0#1",
        "conv",
        "conv#1",
        "conv_1",
        "linear",
        "linear#1",
    ]
    assert list(nodes["conv#1"].output) == ["conv#1"]
    assert {module_of(name) for name in ("conv#1", "conv", "conv/Add#2")} == {"conv"}
    relus = [node.output[0] for node in graph.node if node.op_type == "Relu"]
    assert relus == ["block.2", "block.2#1"]


@pytest.mark.parametrize("loops", [False, True])
def test_a_value_of_a_module_s_name_is_what_the_module_gives(loops: bool, tmp_path: Path) -> None:
    import onnxruntime as ort

    module = _Repeats().eval()
    with torch.no_grad():
        # A batch norm that does nothing would agree with the convolution in front of it.
        module.block[1].running_mean = torch.tensor([1.0, 2.0, 3.0])
    given: dict[str, list[Tensor]] = {}
    for name, each in module.named_modules():
        each.register_forward_hook(
            lambda _m, _i, output, name=name: given.setdefault(name, []).append(output)
        )
    _graph(module, tmp_path, loops, side=8)
    model = onnx.load(tmp_path / "model.onnx")
    values = [
        value
        for node in model.graph.node
        for value in node.output
        if module_of(value) in dict(module.named_modules()) and ":" not in value
    ]
    assert {"conv", "conv#1", "conv_1", "block.1", "block.1#1", "block.2#1", "linear"} <= set(
        values
    )
    model.graph.output.extend(onnx.ValueInfoProto(name=value) for value in values)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    pixels = np.random.default_rng(1).integers(0, 255, (1, 8, 8, 3), dtype=np.uint8)
    given.clear()
    with torch.no_grad():
        module(torch.from_numpy(pixels))
    found = session.run(values, {session.get_inputs()[0].name: pixels})
    for value, array in zip(values, found, strict=True):
        _, _, call = value.partition("#")
        expected = given[module_of(value)][int(call or 0)].numpy()
        np.testing.assert_allclose(array, expected, rtol=1e-4, atol=1e-3, err_msg=value)


def test_no_path_of_the_build_machine_is_left(tmp_path: Path) -> None:
    _graph(_Repeats().eval(), tmp_path, loops=False, side=8)
    assert b"site-packages" not in (tmp_path / "model.onnx").read_bytes()
    assert str(Path(__file__).parent).encode() not in (tmp_path / "model.onnx").read_bytes()
