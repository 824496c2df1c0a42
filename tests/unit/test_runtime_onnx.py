"""ONNX Runtime: what int8 is in the graph, and the choice of a GPU, without one.

For that two stand-ins: the CUDA provider in the list of what is compiled in, as onnxruntime-gpu has
it (the real session then leaves it out, as it does where CUDA's libraries are missing), and a
session that says that it runs on CUDA and computes on the CPU. A real one is not tested here.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from exports import export
from onnx import TensorProto, helper
from onnxruntime.capi import onnxruntime_inference_collection as sessions
from torch import Tensor, nn

from handlers.errors import RuntimeUnavailable
from handlers.plugins import load_runtime
from handlers.runtimes import ExportRequest
from handlers.servable import Network

PIXELS = np.full((2, 3), 4, np.uint8)
AVAILABLE = onnxruntime.get_available_providers()
CUDA = "CUDAExecutionProvider"


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    given = helper.make_tensor_value_info("images", TensorProto.UINT8, ["batch", 3])
    made = helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["batch", 3])
    nodes = [
        helper.make_node("Cast", ["images"], ["network"], to=TensorProto.FLOAT),
        helper.make_node("Sqrt", ["network"], ["scores"]),
    ]
    graph = helper.make_graph(nodes, "graph", [given], [made])
    opset = helper.make_opsetid("", 17)
    path = tmp_path_factory.mktemp("onnx") / "model.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[opset], ir_version=9), path)
    return path


@pytest.fixture
def compiled_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """As onnxruntime-gpu lists what it was built with, whether it loads or not."""
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [CUDA, *AVAILABLE])
    monkeypatch.setattr(sessions.C, "get_available_providers", lambda: [CUDA, *AVAILABLE])


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch, compiled_in: None) -> list[dict[str, Any]]:
    """What sessions are opened with, on a host whose GPU is not real."""
    seen: list[dict[str, Any]] = []
    real = onnxruntime.InferenceSession

    class Session(real):  # type: ignore[misc]
        def __init__(self, path: Path, settings: Any, **given: Any) -> None:
            seen.append(given)
            super().__init__(path, settings, providers=["CPUExecutionProvider"])

        def get_providers(self) -> list[str]:
            return [CUDA, "CPUExecutionProvider"]

    monkeypatch.setattr(onnxruntime, "InferenceSession", Session)
    return seen


def _load(path: Path, device: str) -> Any:
    return load_runtime("onnx")(path, device, {"threads": 1, "precision": "fp32"})


def test_without_a_cuda_provider_it_says_what_to_install(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    with pytest.raises(RuntimeUnavailable, match="no CUDA provider: install onnxruntime-gpu"):
        _load(path, "cuda:0")


@pytest.mark.skipif(CUDA in AVAILABLE, reason="here the CUDA provider may well load")
@pytest.mark.usefixtures("compiled_in")
def test_a_provider_that_does_not_load_is_refused_and_not_the_cpu(path: Path) -> None:
    with pytest.raises(
        RuntimeUnavailable, match=f"took CPUExecutionProvider in the place of {CUDA}"
    ):
        _load(path, "cuda:0")


def test_the_gpu_asked_for_computes_in_float32_and_never_falls_back(
    path: Path, opened: list[dict[str, Any]]
) -> None:
    model = _load(path, "cuda:3")
    assert (model(PIXELS)[0] == 2).all()
    wanted = {"providers": [(CUDA, {"device_id": 3, "use_tf32": 0})], "enable_fallback": 0}
    assert opened == [wanted]
    # On the very same GPU.
    model.layers(PIXELS)
    assert opened == [wanted, wanted]


def test_on_the_cpu_no_gpu_is_asked_for(path: Path, opened: list[dict[str, Any]]) -> None:
    with pytest.raises(RuntimeUnavailable, match="in the place of CPUExecutionProvider"):
        _load(path, "cpu")
    assert opened == [{"providers": [("CPUExecutionProvider", {})], "enable_fallback": 0}]


class _Whole(nn.Module):
    """A normalisation, two layers and a head, named as those of a Servable."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        layers = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8, 5))
        self.network = Network(layers, [0.5] * 3, [0.2] * 3)
        self.decode = nn.Softmax(1)

    def forward(self, images: Tensor) -> Tensor:
        found: Tensor = self.decode(self.network(images))
        return found


@pytest.fixture(scope="module")
def int8(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The graph in int8."""
    pixels = np.random.default_rng(0).integers(0, 255, (4, 3, 3, 3), dtype=np.uint8)
    path = tmp_path_factory.mktemp("int8") / "model.onnx"
    runtime: Any = load_runtime("onnx")
    batch, options = {0: ("batch", 1, 4)}, {"precision": "int8", "calibration": [pixels]}
    export(runtime, ExportRequest(_Whole().eval(), pixels[:2], batch, path, **options))
    return onnx.load(path).graph


def test_int8_has_unsigned_activations_and_signed_weights_by_channel(int8: Any) -> None:
    constants = {each.name: each for each in int8.initializer}
    activations = [node for node in int8.node if node.op_type == "QuantizeLinear"]
    assert len(activations) >= 2
    kinds = {constants[node.input[2]].data_type for node in activations}
    assert kinds == {TensorProto.UINT8}
    weights = [
        (constants[node.input[0]], constants[node.input[1]], node.attribute)
        for node in int8.node
        if node.op_type == "DequantizeLinear" and len(_dims(constants, node.input[0])) > 1
    ]
    assert [list(weight.dims) for weight, _, _ in weights] == [[8, 3, 3, 3], [5, 8]]
    for weight, scale, (axis,) in weights:
        assert weight.data_type == TensorProto.INT8
        assert (axis.name, axis.i) == ("axis", 0)
        assert list(scale.dims) == [weight.dims[0]]


def _dims(constants: dict[str, Any], name: str) -> list[int]:
    return list(constants[name].dims) if name in constants else []


def test_normalisation_and_head_of_an_int8_graph_stay_in_float(int8: Any) -> None:
    maker = {name: node for node in int8.node for name in node.output}
    reads: dict[str, set[str]] = {}
    for node in int8.node:
        made = [maker[name].op_type for name in node.input if name in maker]
        reads.setdefault(node.op_type, set()).update(made)
    # Pixels, normalised, are what the first layer takes; scores come of what the last one gives.
    assert {"Sub", "Div", "Softmax"} <= reads.keys()
    assert not {"QuantizeLinear", "DequantizeLinear"} & (reads["Sub"] | reads["Div"])
    assert not {"Transpose", "Cast", "Sub", "Softmax"} & reads["QuantizeLinear"]
    assert [maker[each.name].op_type for each in int8.output] == ["Softmax"]
    assert {reads_of for layer in ("Conv", "Gemm") for reads_of in reads[layer]} == {
        "DequantizeLinear"
    }
