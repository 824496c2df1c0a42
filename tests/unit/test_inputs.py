"""Pixels are those of torchvision's Resize and CenterCrop on the same PIL picture."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torchvision.transforms import CenterCrop, Compose, InterpolationMode, Resize, v2

from handlers.errors import TooLarge
from handlers.inputs import MAX_PIXELS, ImageInput
from handlers.resampling import FILTERS, Pixels, is_whole

SIZES = [
    (256, 256),
    (640, 480),
    (333, 500),
    (37, 41),
    (224, 224),
    (1, 1),
    (2, 3),
    (1, 700),
    (700, 1),
    (2000, 7),
    (1023, 767),
]
UNCROPPED = [
    ImageInput(),
    ImageInput(resize=20),
    ImageInput(resize=[32, 32]),
    ImageInput(resize=[97, 61]),
    ImageInput(resize=[97, 61], crop=[97, 200]),
    ImageInput(crop=64),
    ImageInput(crop=[31, 500]),
]
CROPPED = [
    ImageInput(resize=256, crop=224),
    ImageInput(resize=232, crop=[224, 200]),
    ImageInput(resize=36, crop=32),
    ImageInput(resize=32, crop=48),
    ImageInput(resize=33, crop=[16, 64]),
    ImageInput(resize=[97, 61], crop=[51, 70]),
]
# Of a long thin picture only a box is resampled, whose corners Pillow keeps as float32. On noise,
# one in a hundred of such pictures has a pixel that differs by two levels.
ROUNDING = 2


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    """A picture whose neighbouring pixels have nothing in common: the hardest to resize alike."""
    shape = (height, width, 3)
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8))


def expected(given: ImageInput, picture: Image.Image) -> Pixels:
    """The two steps as torchvision's presets take them."""
    steps = []
    if given.resize is not None:
        steps.append(Resize(given.resize, InterpolationMode(given.interpolation), antialias=True))
    if given.crop is not None:
        steps.append(CenterCrop(given.crop))
    pixels = np.asarray(Compose(steps)(picture.convert("L" if given.color == "gray" else "RGB")))
    return pixels[:, :, None] if pixels.ndim == 2 else pixels


def furthest(given: ImageInput, picture: Image.Image) -> int:
    """Largest distance in grey levels from torchvision's pixels, of the same shape and type."""
    wanted, made = expected(given, picture), given.prepare(picture)
    assert made.shape == wanted.shape
    assert made.dtype == np.uint8
    return int(np.abs(made.astype(int) - wanted).max())


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("given", UNCROPPED, ids=lambda i: f"{i.resize}-{i.crop}")
def test_pixels_are_torchvisions(given: ImageInput, size: tuple[int, int]) -> None:
    assert furthest(given, noise(*size)) == 0


@pytest.mark.parametrize("interpolation", FILTERS)
@pytest.mark.parametrize("color", ["rgb", "gray"])
def test_pixels_are_torchvisions_in_every_mode(interpolation: str, color: str) -> None:
    given = ImageInput(color, 50, None, interpolation)
    assert furthest(given, noise(123, 87)) == 0
    assert given.prepare(noise(123, 87)).shape == (50, 70, given.channels)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("size", [(256, 256), (640, 480), (333, 500), (37, 41), (2, 3)], ids=str)
def test_the_tensor_backend_is_torchvisions_of_tensors(
    size: tuple[int, int], interpolation: str
) -> None:
    given = ImageInput("rgb", 64, 56, interpolation, backend="tensor")
    picture = noise(*size)
    resize = v2.Resize(64, InterpolationMode(interpolation), antialias=True)
    wanted = v2.Compose([resize, v2.CenterCrop(56)])(
        torch.from_numpy(np.array(picture)).permute(2, 0, 1)
    ).permute(1, 2, 0)
    made = given.prepare(picture)
    assert np.array_equal(made, wanted)
    # As a batch wants them: whatever has another order is copied once more.
    assert np.stack([made] * 2).flags.c_contiguous
    assert np.abs(made.astype(int) - expected(given, picture)).max() <= 2


def allowed(given: ImageInput, size: tuple[int, int]) -> int:
    """How far the pixels of a picture of ``size`` may be from torchvision's."""
    place = given.place(size)
    return 0 if place.size == size or is_whole(place.size, place.window) else ROUNDING


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic", "lanczos"])
@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("given", CROPPED, ids=lambda i: f"{i.resize}-{i.crop}")
def test_cropped_pixels_are_torchvisions(
    given: ImageInput, size: tuple[int, int], interpolation: str
) -> None:
    given = replace(given, interpolation=interpolation)
    assert furthest(given, noise(*size)) <= allowed(given, size)


@pytest.mark.parametrize("interpolation", FILTERS)
@pytest.mark.parametrize("color", ["rgb", "gray"])
def test_of_pictures_no_pixel_differs(interpolation: str, color: str, project: Path) -> None:
    given = ImageInput(color, 256, 224, interpolation)
    paths = [
        *(project / "samples/shapes").glob("*.jpg"),
        *(project / "samples/scenes").glob("*.jpg"),
    ]
    distances = []
    for path in paths:
        picture = Image.open(path).convert("RGB")
        distances.append(np.abs(given.prepare(picture).astype(int) - expected(given, picture)))
    assert len(distances) > 5
    assert max(distance.max() for distance in distances) == 0


SIDES = st.integers(1, 400)
TARGETS = st.integers(1, 120)
PAIRS = st.lists(TARGETS, min_size=2, max_size=2)


@given(
    size=st.tuples(SIDES, SIDES),
    resize=st.none() | TARGETS | PAIRS,
    crop=st.none() | TARGETS | PAIRS,
)
def test_pixels_of_any_size_are_torchvisions(
    size: tuple[int, int], resize: int | list[int] | None, crop: int | list[int] | None
) -> None:
    given = ImageInput("rgb", resize, crop)
    assert furthest(given, noise(*size)) <= allowed(given, size)


def test_a_small_picture_is_padded_with_black_around_it() -> None:
    made = ImageInput(crop=[5, 4]).prepare(Image.new("RGB", (2, 2), "white"))
    assert made[:, :, 0].tolist() == [
        [0, 0, 0, 0],
        [0, 255, 255, 0],
        [0, 255, 255, 0],
        [0, 0, 0, 0],
        [0, 0, 0, 0],
    ]


def test_the_part_that_is_cropped_away_is_never_computed() -> None:
    long = Image.new("RGB", (1_000_000, 2))
    assert ImageInput(resize=256, crop=224).prepare(long).shape == (224, 224, 3)


def test_a_picture_that_would_become_too_large_is_refused() -> None:
    with pytest.raises(TooLarge, match="1000000x2 would become 128000000x256"):
        ImageInput(resize=256).prepare(Image.new("RGB", (1_000_000, 2)))
    assert MAX_PIXELS < 128_000_000 * 256


def test_pictures_that_together_would_become_too_large_are_refused() -> None:
    """As PNG 32 of 1x236 pixels are 3 KB, and would be 6 GB."""
    given, thin = ImageInput(resize=520), (1, 236)
    with pytest.raises(TooLarge, match=r"request \(32\) would become 2042060800 pixels"):
        given.check_together([thin] * 32, 32)
    with pytest.raises(TooLarge, match="the limit of a request is 16000000"):
        given.check_together([thin], 32)
    with pytest.raises(TooLarge, match="the limit of a request is 2359296"):
        ImageInput(resize=192).check_together([(1, 65)], 32)
    given.check_together([(1920, 1080)] * 32, 32)


def test_what_the_model_file_allows_is_not_refused() -> None:
    ImageInput(resize=3000).check_together([(8000, 1000)], 1)
    ImageInput(resize=[2048, 2048]).check_together([(1, 236)] * 32, 32)
    ImageInput(resize=520, crop=480).check_together([(1, 236)] * 32, 32)
    ImageInput().check_together([(5000, 4000)] * 5, 32)


def test_the_picture_itself_is_left_as_it_is() -> None:
    picture = noise(40, 30)
    before = picture.tobytes()
    ImageInput("gray", 20, 10).prepare(picture)
    assert (picture.mode, picture.size, picture.tobytes()) == ("RGB", (40, 30), before)


@pytest.mark.parametrize(
    ("given", "fixed"),
    [
        (ImageInput(resize=256, crop=224), True),
        (ImageInput(resize=[32, 32]), True),
        (ImageInput(resize=256), False),
        (ImageInput(), False),
    ],
)
def test_it_tells_whether_all_pictures_become_one_size(given: ImageInput, fixed: bool) -> None:
    assert given.fixed is fixed
    shapes = {given.prepare(noise(*size)).shape for size in [(40, 30), (30, 40), (90, 30)]}
    assert (len(shapes) == 1) is fixed


@pytest.mark.parametrize("size", [(1600, 50), (50, 1600), (3, 3), (512, 1), (1, 512), (4000, 7)])
@pytest.mark.parametrize("side", [512, 16, 1])
def test_a_letterboxed_plane_has_a_part_of_every_picture(size: tuple[int, int], side: int) -> None:
    given = ImageInput(resize=[512, 512], letterbox=0)
    part = given.plane_in_picture(np.zeros((side, side)), size)
    assert min(part.shape) >= 1
