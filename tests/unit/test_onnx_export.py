"""Graphs that detectors need, through ONNX, on the runtimes that read it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from exports import export, finished
from torch import Tensor, nn
from torchvision.ops import batched_nms

from handlers import plugins
from handlers.errors import ExportError
from handlers.runtimes import ExportRequest


class Light(nn.Module):
    """A box around each pixel that is light, sorted out as torchvision's detectors do it."""

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        pixels = images[0, :, :, 0]
        places = torch.nonzero(pixels > 200).float()
        boxes = torch.cat([places, places + 3], 1)
        scores = pixels[pixels > 200].float() / 255
        kept = batched_nms(boxes, scores, torch.zeros_like(scores, dtype=torch.int64), 0.1)
        return boxes[kept][None], scores[kept][None]


def test_branches_in_int8_on_openvino_are_refused_and_told_where_they_go(tmp_path: Path) -> None:
    runtime = plugins.load_runtime("openvino")
    light = np.full((1, 20, 24, 3), 255, np.uint8)
    path, given = tmp_path / "model.xml", {"calibration": [light], "loops": True}
    with pytest.raises(ExportError, match="branches, which NNCF cannot quantise for OpenVINO: tak"):
        export(runtime, ExportRequest(Light(), light, {}, path, "int8", **given))


@pytest.mark.parametrize("name", ["onnx", "openvino"])
def test_where_nothing_is_found_no_box_is(name: str, tmp_path: Path) -> None:
    runtime = plugins.load_runtime(name)
    path = tmp_path / f"model{runtime.suffix}"
    light = np.zeros((1, 20, 24, 3), np.uint8)
    light[0, 4:6, 5:7], light[0, 15, 15] = 255, 230
    request = ExportRequest(Light(), light, {}, path, loops=True, options=dict(runtime.options))
    finished(runtime, request)
    model = runtime(path, "cpu", {**runtime.options, "threads": 1, "precision": "fp32"})
    for pixels, count in ((np.zeros_like(light), 0), (light, 2), (np.zeros_like(light), 0)):
        boxes, scores = model(pixels)
        assert (boxes.shape, scores.shape) == ((1, count, 4), (1, count))
