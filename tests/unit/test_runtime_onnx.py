"""ONNX Runtime's choice of a GPU, without one.

Two stand-ins: the CUDA provider in the list of what is compiled in, as onnxruntime-gpu has it (the
real session then leaves it out, as it does where CUDA's libraries are missing), and a session that
says that it runs on CUDA and computes on the CPU. A real CUDA provider is not tested here.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper
from onnxruntime.capi import onnxruntime_inference_collection as sessions

from handlers.errors import RuntimeUnavailable
from handlers.plugins import load_runtime

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
