"""Preprocessing as the service does it, and the variations that training adds."""

import torch
from PIL import Image
from torch import Tensor

MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)
"""Of the scaled (0..1) red, green and blue, as in torchvision's presets."""


def resize_short(image: Image.Image, short: int) -> Image.Image:
    """Resize the short side to `short` pixels, as torchvision's Resize does (the long floors)."""
    width, height = image.size
    size = (
        (short, int(short * height / width))
        if width <= height
        else (int(short * width / height), short)
    )
    return image.resize(size, Image.Resampling.BILINEAR)


def centre_crop(image: Image.Image, side: int) -> Image.Image:
    """The central square of `side` pixels, placed as torchvision's CenterCrop places it."""
    left, top = (round((extent - side) / 2) for extent in image.size)
    return image.crop((left, top, left + side, top + side))


def normalised(pixels: Tensor) -> Tensor:
    """uint8 [batch, height, width, 3] -> float32 [batch, 3, height, width], channels last."""
    mean, std = 255 * torch.tensor(MEAN), 255 * torch.tensor(STD)
    return ((pixels - mean) / std).permute(0, 3, 1, 2)


def random_light(pixels: Tensor) -> Tensor:
    """Vary brightness, contrast and tint of each picture: uint8 [batch, height, width, 3]."""
    one = (len(pixels), 1, 1, 1)
    tint = torch.empty(len(pixels), 1, 1, 3).uniform_(0.9, 1.1)
    contrast, shift = torch.empty(one).uniform_(0.7, 1.3), torch.empty(one).uniform_(-25, 25)
    return (pixels * (tint * contrast) + shift).clamp(0, 255)


def random_symmetry(pictures: Tensor) -> Tensor:
    """The batch [batch, side, side, ...], mirrored or not and turned by quarter turns."""
    if torch.rand(()) < 0.5:
        pictures = pictures.flip(2)
    return pictures.rot90(int(torch.randint(4, ())), (1, 2))
