"""Detectors where shapes may not depend on data: TorchScript stands in for such a runtime."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from handlers.bundle import Bundle
from handlers.errors import ExportError
from handlers.inputs import ImageInput
from handlers.plugins import load_task
from handlers.runtimes.torchscript import TorchScript
from handlers.servable import Servable
from marsmith import build, exporting

SIZE = 192


@pytest.fixture(autouse=True)
def _fixed_shapes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TorchScript, "streams", 2)
    monkeypatch.setattr(TorchScript, "dynamic_shapes", False)


def _module(name: str, **arguments: Any) -> Servable:
    torch.manual_seed(0)
    recipe = {
        "architecture": f"torchvision:{name}",
        "arguments": {"num_classes": 4, **arguments},
        "task": "object-detection",
        "decode": {"score_floor": 0.01, "nms_iou": None, "max_detections": 20},
        "mean": [0.0] * 3,
        "std": [1.0] * 3,
    }
    module = Servable.build(recipe, Path())
    head = module.bare()
    with torch.no_grad():
        for parameter in head.parameters():
            if parameter.ndim > 1:
                parameter.mul_(1.3)
    return module


def _bundle(module: Servable, given: ImageInput) -> Bundle:
    return Bundle(
        name="detector",
        version="1.0",
        task="object-detection",
        runtime="torchscript",
        artifact="model.pt",
        labels=["none", "a", "b", "c"],
        input=given,
        decode=module.recipe["decode"],
        defaults={"min_score": 0.01},
        runtime_options={"method": "trace"},
    )


@pytest.mark.parametrize(
    "name",
    ["ssdlite320_mobilenet_v3_large", "fasterrcnn_mobilenet_v3_large_320_fpn", "fcos_resnet50_fpn"],
)
def test_the_two_halves_answer_like_the_whole(name: str, tmp_path: Path) -> None:
    module = _module(name)
    given = ImageInput(resize=[SIZE, SIZE], letterbox=0, mean=(0.0,) * 3, std=(1.0,) * 3)
    bundle = _bundle(module, given)
    pixels = np.random.default_rng(0).integers(0, 255, (SIZE, SIZE, 3), dtype=np.uint8)
    exporting.export(bundle, module, pixels, tmp_path / "model.pt")
    assert (tmp_path / "decode.pth").exists()
    artifact = load_task(bundle.task)()
    artifact.bind(bundle, tmp_path)
    assert artifact.model_streams == 1
    batch = np.stack([pixels])
    expected, found = build.reference(bundle, module).model(batch), artifact.model(batch)
    assert [output.shape for output in expected] == [output.shape for output in found]
    assert len(expected[1][0]) > 3
    # Untrained, many boxes tie, and which of them comes first is a matter of rounding.
    np.testing.assert_allclose(expected[1], found[1], rtol=0, atol=2e-3)


def test_the_exported_half_has_no_second_copy_of_its_weights(tmp_path: Path) -> None:
    module = _module("ssdlite320_mobilenet_v3_large")
    given = ImageInput(resize=[SIZE, SIZE], mean=(0.0,) * 3, std=(1.0,) * 3)
    pixels = np.zeros((SIZE, SIZE, 3), dtype=np.uint8)
    exporting.export(_bundle(module, given), module, pixels, tmp_path / "model.pt")
    saved = torch.load(tmp_path / "decode.pth", weights_only=True)["state"]
    assert saved
    assert not [name for name in saved if "backbone" in name]
    whole = {name for name in module.state_dict() if "backbone" not in name}
    assert {name.removeprefix("adapted.") for name in saved} == {
        name.removeprefix("network.network.") for name in whole
    }


def test_an_input_without_a_fixed_size_is_refused(tmp_path: Path) -> None:
    module = _module("ssdlite320_mobilenet_v3_large")
    given = ImageInput(mean=(0.0,) * 3, std=(1.0,) * 3)
    pixels = np.zeros((SIZE, SIZE, 3), dtype=np.uint8)
    with pytest.raises(ExportError, match=r"give the input a fixed size, .*letterbox"):
        exporting.export(_bundle(module, given), module, pixels, tmp_path / "model.pt")
