"""The fast way of JPEGs gives what Pillow gives, and leaves to Pillow what it does not know."""

from __future__ import annotations

import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from handlers import jpeg, pictures
from handlers.errors import BrokenPicture, TooLarge
from handlers.inputs import ImageInput

LIMIT = 10**8


def photograph(width: int, height: int) -> Image.Image:
    """Smooth colours with some detail, as a photograph has."""
    across, down = np.meshgrid(np.linspace(0, 9, width), np.linspace(0, 7, height))
    planes = [np.sin(across + k) * np.cos(down * (k + 1)) for k in range(3)]
    noise = np.random.default_rng(0).normal(0, 6, (height, width, 3))
    return Image.fromarray(np.clip(128 + 90 * np.stack(planes, 2) + noise, 0, 255).astype(np.uint8))


def encoded(image: Image.Image, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, "JPEG", **options)
    return file.getvalue()


def with_orientation(image: Image.Image, orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encoded(image, exif=exif)


def whole(size: tuple[int, int]) -> None:
    """Every pixel is wanted."""


@given(
    width=st.integers(1, 90),
    height=st.integers(1, 90),
    quality=st.integers(5, 100),
    subsampling=st.sampled_from([0, 1, 2]),
    progressive=st.booleans(),
    grey=st.booleans(),
)
def test_at_full_scale_pixels_are_pillows(
    width: int, height: int, quality: int, subsampling: int, progressive: bool, grey: bool
) -> None:
    image = photograph(width, height).convert("L" if grey else "RGB")
    data = encoded(image, quality=quality, subsampling=subsampling, progressive=progressive)
    assert jpeg.decode(data, None) is not None
    read = pictures.read(data, LIMIT, whole)
    assert np.array_equal(read.pixels, np.asarray(pictures.decode(data, LIMIT)))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation_is_turned_upright(orientation: int) -> None:
    data = with_orientation(photograph(60, 40), orientation)
    picture = pictures.decode(data, LIMIT)
    read = pictures.read(data, LIMIT, whole)
    assert read.size == picture.size
    assert np.array_equal(read.pixels, np.asarray(picture))


@pytest.mark.parametrize("orientation", [1, 6])
def test_a_large_photograph_is_decoded_smaller_and_prepared_alike(orientation: int) -> None:
    data = with_orientation(photograph(4032, 3024), orientation)
    model = ImageInput(resize=256, crop=224)
    read = pictures.read(data, LIMIT, model.wanted)
    picture = pictures.decode(data, LIMIT)
    assert read.size == picture.size
    assert read.pixels.size < np.asarray(picture).size / 4
    difference = np.abs(model.prepare(read).astype(int) - model.prepare(picture))
    assert difference.max() <= 4
    assert difference.mean() < 1
    # Drawn on is the whole picture.
    assert read.image.size == picture.size


def test_a_photograph_has_enough_pixels_on_both_sides() -> None:
    wide = encoded(photograph(4000, 3000))
    for wanted in ((100, 200), (240, 100)):
        pixels = jpeg.decode(wide, wanted)
        assert pixels is not None
        assert pixels.shape == (750, 1000, 3)
    turned = with_orientation(photograph(4000, 3000), 6)
    read = pictures.read(turned, LIMIT, lambda size: (200, 100))
    assert (read.size, read.pixels.shape) == ((3000, 4000), (1000, 750, 3))


@pytest.mark.parametrize(
    "model",
    [
        ImageInput(),
        ImageInput(resize=256, antialias=False),
        ImageInput(resize=9, interpolation="nearest"),
    ],
)
def test_inputs_that_do_not_smooth_get_every_pixel(model: ImageInput) -> None:
    read = pictures.read(encoded(photograph(2400, 1600)), LIMIT, model.wanted)
    assert read.pixels.shape == (1600, 2400, 3)


def test_a_picture_not_much_larger_than_the_input_is_decoded_whole() -> None:
    model = ImageInput(resize=256, crop=224)
    read = pictures.read(encoded(photograph(1500, 1400)), LIMIT, model.wanted)
    assert read.pixels.shape == (1400, 1500, 3)


def test_a_small_picture_is_decoded_whole_for_a_tiny_input() -> None:
    model = ImageInput(resize=32, crop=32)
    read = pictures.read(encoded(photograph(999, 1000)), LIMIT, model.wanted)
    assert read.pixels.shape == (1000, 999, 3)
    read = pictures.read(encoded(photograph(1000, 1000)), LIMIT, model.wanted)
    assert read.pixels.shape == (125, 125, 3)


def test_cmyk_goes_through_pillow() -> None:
    data = encoded(photograph(40, 30).convert("CMYK"))
    assert jpeg.decode(data, None) is None
    read = pictures.read(data, LIMIT, whole)
    assert np.array_equal(read.pixels, np.asarray(pictures.decode(data, LIMIT)))


def test_a_cut_jpeg_is_broken_as_pillow_says() -> None:
    data = encoded(photograph(200, 200))
    for length in (3, 30, 200, len(data) // 2, len(data) - 40):
        with pytest.raises(BrokenPicture):
            pictures.read(data[:length], LIMIT, whole)


def test_the_limit_of_pixels_is_that_of_the_whole_picture() -> None:
    data = encoded(photograph(400, 300))
    with pytest.raises(TooLarge, match="400x300"):
        pictures.read(data, 400 * 300 - 1, ImageInput(resize=20).wanted)
