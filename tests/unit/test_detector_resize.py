"""Detectors resize a picture to the same size however they are exported."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision.models.detection.transform import GeneralizedRCNNTransform

from handlers.plugins import load_task
from handlers.servable import Servable

# (height, width), and (shorter, longer) side of the network's input. torchvision's own transform is
# a row or a column short for all of these when it is scripted, for the last two when traced.
SIZES = [
    ((427, 640), (800, 1333)),
    ((500, 333), (800, 1333)),
    ((427, 640), (320, 640)),
    ((375, 500), (800, 1333)),
    ((61, 142), (320, 640)),
]


class Network(nn.Module):
    """What ``adapt`` needs of a detector; gives what the transform makes of a picture."""

    def __init__(self, shorter: int, longer: int) -> None:
        super().__init__()
        mean, std = [0.4, 0.5, 0.6], [0.2, 0.3, 0.1]
        self.transform = GeneralizedRCNNTransform(shorter, longer, mean, std)
        self.score_thresh, self.detections_per_img = 0.5, 10

    def forward(self, picture: Tensor) -> Tensor:
        pixels: Tensor = self.transform([picture])[0].tensors
        return pixels


def adapted(sides: tuple[int, int]) -> Any:
    task = load_task("object-detection")
    return task.adapt(Network(*sides).eval(), dict(task.decode_settings)).network


@pytest.mark.filterwarnings(
    "ignore:.*torch.jit", "ignore::torch.jit.TracerWarning", "ignore:To copy"
)
@pytest.mark.parametrize(("shape", "sides"), SIZES)
@pytest.mark.parametrize("method", ["eager", "script", "trace"])
def test_a_picture_gets_torchvisions_eager_size(
    method: str, shape: tuple[int, int], sides: tuple[int, int]
) -> None:
    picture = torch.rand(3, *shape)
    expected = Network(*sides).eval()(picture)
    network = adapted(sides)
    if method == "script":
        network = torch.jit.script(network)
    elif method == "trace":
        network = torch.jit.trace(network, torch.rand(3, 111, 137), check_trace=False)
    found = network(picture)
    assert found.shape == expected.shape
    # One row or column fewer moves every pixel.
    assert torch.equal(found, expected)


@pytest.mark.filterwarnings("ignore:.*torch.jit", "ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("shape", [(1, 2000), (2000, 1), (1, 700)])
@pytest.mark.parametrize("method", ["eager", "script", "trace"])
def test_a_very_long_picture_keeps_a_row(method: str, shape: tuple[int, int]) -> None:
    network = adapted((320, 640))
    if method == "script":
        network = torch.jit.script(network)
    elif method == "trace":
        network = torch.jit.trace(network, torch.rand(3, 111, 137), check_trace=False)
    found = network(torch.rand(3, *shape))
    assert max(found.shape[-2:]) == 640
    assert torch.isfinite(found).all()


def test_a_transform_with_a_fixed_size_stays_torchvisions() -> None:
    recipe = {
        "architecture": "torchvision:ssdlite320_mobilenet_v3_large",
        "arguments": {},
        "task": "object-detection",
        "decode": dict(load_task("object-detection").decode_settings),
        "mean": [0.0] * 3,
        "std": [1.0] * 3,
    }
    assert type(Servable.build(recipe, Path()).bare().transform) is GeneralizedRCNNTransform
