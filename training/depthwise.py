"""Faster depthwise convolutions for training on a CPU.

The backward passes of strided ones in bfloat16, and of dilated ones in any type, are many times
slower than the others. These do the same arithmetic by a faster way; parameters keep their names.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional


class Strided(nn.Conv2d):
    """In float32 whatever autocast says: 4 to 20 times faster than bfloat16 at stride 2."""

    def forward(self, input: Tensor) -> Tensor:
        with torch.autocast("cpu", enabled=False):
            return super().forward(input.float())


class Dilated(nn.Conv2d):
    """Dilation 2 as a plain convolution of the four pictures that take every second pixel."""

    def forward(self, input: Tensor) -> Tensor:
        batch, channels, height, width = input.shape
        rows, columns = (height + 1) // 2, (width + 1) // 2
        even = functional.pad(input, (0, width % 2, 0, height % 2))
        cells = even.view(batch, channels, rows, 2, columns, 2).permute(3, 5, 0, 1, 2, 4)
        quarters = cells.reshape(4 * batch, channels, rows, columns)
        padding = [int(side) // 2 for side in self.padding]
        done = functional.conv2d(
            quarters.contiguous(memory_format=torch.channels_last),
            self.weight,
            padding=padding,
            groups=self.groups,
        )
        back = done.view(2, 2, batch, channels, rows, columns).permute(2, 3, 4, 0, 5, 1)
        whole = back.reshape(batch, channels, 2 * rows, 2 * columns)[..., :height, :width]
        return whole.contiguous(memory_format=torch.channels_last)


def accelerate(model: nn.Module) -> None:
    """Let the slow depthwise convolutions of `model` take the faster way, in place."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d) and module.groups == module.in_channels > 1:
            if module.stride == (2, 2):
                module.__class__ = Strided
            elif module.dilation == (2, 2) and module.stride == (1, 1) and module.bias is None:
                module.__class__ = Dilated
