"""Faster strided depthwise convolutions for training on a CPU."""

import torch
from torch import Tensor, nn


class Strided(nn.Conv2d):
    """In float32 whatever autocast says: 4 to 20 times faster backwards than in bfloat16."""

    def forward(self, input: Tensor) -> Tensor:
        with torch.autocast("cpu", enabled=False):
            return super().forward(input.float())


def accelerate(model: nn.Module) -> None:
    """Let the strided depthwise convolutions of `model` take the faster way, in place."""
    for module in model.modules():
        depthwise = isinstance(module, nn.Conv2d) and module.groups == module.in_channels > 1
        if depthwise and module.stride == (2, 2):
            module.__class__ = Strided
