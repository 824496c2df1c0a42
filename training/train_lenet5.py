"""Train LeNet-5 on scikit-learn's handwritten digits: `python -m training.train_lenet5`."""

import io

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from training import data, heldout
from training.common import accuracy, batches, fit, options, save
from training.networks.lenet5 import LeNet5

MEAN, STD = 0.306, 0.359
SIDE = 32
BATCH, STEPS = 64, 3000


def inputs(digits: list[tuple[bytes, int]]) -> tuple[Tensor, list[int]]:
    """Decode, resize and normalise as served: float32 [count, 1, 32, 32], and the labels."""
    images = [Image.open(io.BytesIO(png)).convert("L") for png, _ in digits]
    resized = [image.resize((SIDE, SIDE), Image.Resampling.BILINEAR) for image in images]
    pixels = np.stack([np.asarray(image) for image in resized])
    scaled = torch.from_numpy(pixels).float()[:, None] / 255
    return (scaled - MEAN) / STD, [label for _, label in digits]


def jittered(x: Tensor) -> Tensor:
    """Shift, turn, scale and shear each picture a little."""
    turn, shear = (torch.empty(len(x)).uniform_(-0.2, 0.2) for _ in range(2))
    scale = torch.empty(len(x)).uniform_(0.85, 1.15)
    rows = torch.stack([scale * turn.cos(), shear - turn.sin(), turn.sin(), scale * turn.cos()], 1)
    shift = torch.empty(len(x), 2, 1).uniform_(-0.15, 0.15)
    grid = functional.affine_grid(torch.cat([rows.view(-1, 2, 2), shift], 2), list(x.shape), False)
    border = -MEAN / STD
    return functional.grid_sample(x - border, grid, align_corners=False) + border


def main() -> None:
    given = options(__doc__, "lenet5_digits.pth", minutes=5)
    x, values = inputs(data.digits("train"))
    labels = torch.tensor(values)
    model = LeNet5()
    batch = batches(len(x), BATCH)

    def loss(step: int) -> Tensor:
        chosen = batch(step)
        return functional.cross_entropy(model(jittered(x[chosen])), labels[chosen])

    fit(model, loss, STEPS, given.minutes)
    save(model, given.out)
    print(f"validation accuracy {accuracy(model, *inputs(data.digits('val'))):.4f}")
    print(f"held-out accuracy {accuracy(model, *inputs(heldout.digits())):.4f}")


if __name__ == "__main__":
    main()
