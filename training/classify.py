"""Training of a classifier on pictures with one dominant shape."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from training import common, data, heldout, pictures


@dataclass(frozen=True)
class Recipe:
    """What a classifier sees, and for how long: sides in pixels, counts of pictures and steps."""

    resize: int
    crop: int
    pictures: int
    batch: int
    steps: int


def pixels(shapes: list[data.Shape], resize: int, crop: int) -> Tensor:
    """Decode, resize the short side, crop the centre: uint8 [count, crop, crop, 3]."""
    images = (pictures.resize_short(data.decode(file), resize) for file, _ in shapes)
    squares = [np.asarray(pictures.centre_crop(image, crop)) for image in images]
    return torch.from_numpy(np.stack(squares))


def random_crop(squares: Tensor, side: int) -> Tensor:
    """The same random window of `side` pixels in each of the pictures [batch, h, w, 3]."""
    top, left = (int(torch.randint(squares.shape[1] - side + 1, ())) for _ in range(2))
    return squares[:, top : top + side, left : left + side]


def judge(model: nn.Module, shapes: list[data.Shape], recipe: Recipe) -> float:
    """Top-1 accuracy, the pictures being preprocessed as they are in the service."""
    inputs = pixels(shapes, recipe.resize, recipe.crop)
    return common.accuracy(model, inputs, [label for _, label in shapes], pictures.normalised)


def train(model: nn.Module, recipe: Recipe, given: common.Options) -> None:
    """Train on rendered pictures, save, and print the accuracy on the two other splits."""
    shapes = data.shapes("train", recipe.pictures)
    x = pixels(shapes, recipe.resize, recipe.resize)
    labels = torch.tensor([label for _, label in shapes])
    batch = common.batches(len(x), recipe.batch)
    model.to(memory_format=torch.channels_last)

    def loss(step: int) -> Tensor:
        chosen = batch(step)
        views = pictures.random_symmetry(random_crop(x[chosen], recipe.crop))
        inputs = pictures.normalised(pictures.random_light(views))
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(inputs)
        return functional.cross_entropy(logits.float(), labels[chosen], label_smoothing=0.05)

    common.fit(model, loss, recipe.steps, given.minutes)
    common.save(model, given.out)
    print(f"validation accuracy {judge(model, data.shapes('val', 500), recipe):.4f}")
    print(f"held-out accuracy {judge(model, heldout.shapes(), recipe):.4f}")
