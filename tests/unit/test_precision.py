"""Sixteen bits: the network computes in them, nothing else does, and every torch runtime can."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from exports import finished
from torch import Tensor, nn

from handlers import precision
from handlers.errors import ExportError
from handlers.plugins import load_runtime
from handlers.runtimes import Array, ExportRequest, as_arrays
from handlers.servable import Servable

SOURCE = """
import torch
from torch import Tensor, nn

class Tiny(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 32, 3, stride=2)
        self.norm = nn.BatchNorm2d(32)
        self.linear = nn.Linear(32, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(torch.relu(self.norm(self.conv(x))).mean((2, 3)))
"""
PIXELS = np.random.default_rng(0).integers(0, 255, (3, 24, 20, 3), dtype=np.uint8)
# The largest step of a score that rounding to 8 or 11 bits can make here, generously.
NEAR = {"bf16": 2e-2, "fp16": 3e-3}


def _servable(folder: Path, architecture: str, task: str, **arguments: Any) -> Servable:
    torch.manual_seed(0)
    boxes = {"score_floor": 0.01, "nms_iou": None, "max_detections": 20}
    recipe = {
        "architecture": architecture,
        "arguments": arguments,
        "task": task,
        "decode": boxes if task == "object-detection" else {},
        "mean": [0.5] * 3,
        "std": [0.25] * 3,
    }
    return Servable.build(recipe, folder)


@pytest.fixture
def tiny(tmp_path: Path) -> Servable:
    (tmp_path / "source").mkdir()
    (tmp_path / "source/tiny.py").write_text(SOURCE)
    return _servable(tmp_path / "source", "tiny.py:Tiny", "image-classification")


def _outputs(module: nn.Module, pixels: Array = PIXELS) -> list[Array]:
    with torch.inference_mode():
        return list(as_arrays(module(torch.from_numpy(pixels))))


@pytest.mark.parametrize("name", ["eager", "torchscript", "torch-compile", "aotinductor"])
@pytest.mark.parametrize("bits", ["bf16", "fp16"])
def test_scores_are_near_those_of_fp32_and_not_the_same(
    name: str, bits: str, tiny: Servable, tmp_path: Path
) -> None:
    runtime = load_runtime(name)
    path = tmp_path / f"model{runtime.suffix}"
    before = copy.deepcopy(tiny.state_dict())
    request = ExportRequest(
        module=tiny,
        example=PIXELS[:2],
        dynamic={0: ("batch", 1, 3)},
        path=path,
        precision=bits,
        options={**runtime.options, "cache": str(tmp_path / "cache")},
    )
    finished(runtime, request)
    assert all(torch.equal(before[key], value) for key, value in tiny.state_dict().items())
    options = {**request.options, "threads": 1, "batch": 3, "precision": bits}
    (scores,) = runtime(path, "cpu", options)(PIXELS)
    (expected,) = _outputs(tiny)
    assert scores.dtype == np.float32
    np.testing.assert_allclose(scores, expected, atol=NEAR[bits])
    assert np.abs(scores - expected).max() > 1e-6


def test_an_eager_archive_has_half_the_weights(tiny: Servable, tmp_path: Path) -> None:
    path = tmp_path / "model.pth"
    load_runtime("eager").export(  # type: ignore[attr-defined]
        ExportRequest(module=tiny, example=PIXELS, dynamic={}, path=path, precision="bf16")
    )
    kinds = {name: each.dtype for name, each in torch.load(path)["state"].items()}
    assert kinds["conv.weight"] == kinds["linear.bias"] == torch.bfloat16
    assert kinds["norm.weight"] == kinds["norm.running_mean"] == torch.float32


def test_script_has_no_other_precision(tiny: Servable, tmp_path: Path) -> None:
    request = ExportRequest(
        module=tiny,
        example=PIXELS,
        dynamic={},
        path=tmp_path / "model.pt",
        precision="bf16",
        options={"method": "script"},
    )
    with pytest.raises(ExportError, match="script computes in fp32 alone: .* method: trace"):
        load_runtime("torchscript").export(request)  # type: ignore[attr-defined]


def test_a_segmenter_resizes_its_logits_in_float(tmp_path: Path) -> None:
    name = "torchvision:lraspp_mobilenet_v3_large"
    module = _servable(tmp_path, name, "semantic-segmentation", num_classes=4)
    seen: list[Tensor] = []
    module.decode.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    expected = _outputs(module)
    precision.lower(module, "bf16")
    outputs = _outputs(module)
    assert [each.dtype for each in outputs] == [each.dtype for each in expected]
    exact, near = seen
    assert near.dtype == torch.float32
    # Numbers of bfloat16 would all be their own rounding.
    assert not torch.equal(near, near.bfloat16().float())
    assert not torch.equal(exact, near)
    torch.testing.assert_close(exact, near, atol=0.02 * float(exact.abs().max()), rtol=0)


def test_a_detector_keeps_its_boxes_in_float(tmp_path: Path) -> None:
    name = "torchvision:ssdlite320_mobilenet_v3_large"
    module = _servable(tmp_path, name, "object-detection", num_classes=3)
    precision.lower(module, "bf16")
    detector: Any = module.bare()
    assert isinstance(detector.backbone, precision.Lowered)
    assert {each.dtype for each in detector.head.parameters()} == {torch.float32}
    seen: list[Any] = []
    detector.anchor_generator.register_forward_pre_hook(lambda _, given: seen.append(given[1]))
    _outputs(module, PIXELS[:1])
    assert {each.dtype for each in seen[0]} == {torch.float32}
