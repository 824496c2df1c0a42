"""Surfaces and light: seeded patterns, backgrounds, clutter and illumination.

A picture in the making is a canvas, float32 [height, width, 3] in 0..1; a field is float32
[height, width] in 0..1; sizes are (width, height) in pixels, as Pillow has them.
"""

import colorsys

import numpy as np
from PIL import Image, ImageFilter

from training.shapes import Array, Path, coverage

Size = tuple[int, int]


def colour(rng: np.random.Generator, saturation: float = 0.9, value: float = 1.0) -> Array:
    """A random RGB colour, float32 [3], at most this saturated and bright."""
    hsv = (rng.uniform(), rng.uniform(0.1, saturation), rng.uniform(0.35, value))
    return np.array(colorsys.hsv_to_rgb(*hsv), np.float32)


def blend(below: Array, above: Array, alpha: Array) -> Array:
    """`above` over `below` (colours or canvases), weighted by the field `alpha`."""
    return np.asarray(below + (above - below) * alpha[..., None], np.float32)


def ramp(rng: np.random.Generator, size: Size) -> Array:
    """A linear field from 0 to 1 in a random direction."""
    y, x = np.mgrid[: size[1], : size[0]].astype(np.float32)
    turn = rng.uniform(0, 2 * np.pi)
    field = x * np.float32(np.cos(turn)) + y * np.float32(np.sin(turn))
    return np.asarray((field - field.min()) / np.ptp(field), np.float32)


def clouds(rng: np.random.Generator, size: Size, cells: int) -> Array:
    """Smooth noise, about `cells` bumps across."""
    grid = Image.fromarray(rng.random((cells + 1, cells + 1), np.float32))
    smooth = grid.resize(size, Image.Resampling.BICUBIC)
    return np.clip(np.asarray(smooth, np.float32), 0, 1)


def pattern(rng: np.random.Generator, size: Size) -> Array:
    """Stripes, checks, dots, waves, clouds or speckles of random period and direction."""
    y, x = np.mgrid[: size[1], : size[0]].astype(np.float32)
    frequency = 2 * np.pi / rng.uniform(0.04, 0.16) / min(size)
    turn = rng.uniform(0, np.pi)
    c, s = np.float32(np.cos(turn) * frequency), np.float32(np.sin(turn) * frequency)
    u, v = x * c + y * s, y * c - x * s
    sharp = np.float32(rng.uniform(1, 5))
    kind = rng.choice(["stripes", "checks", "dots", "waves", "clouds", "speckles"])
    if kind == "clouds":
        return clouds(rng, size, int(rng.integers(8, 24)))
    if kind == "speckles":
        return rng.random((size[1], size[0]), np.float32)
    waves = {
        "stripes": np.sin(u),
        "checks": np.sin(u / 2) * np.sin(v / 2),
        "dots": (np.cos(u) + np.cos(v)) / 2 - np.float32(0.3),
        "waves": np.sin(u + 2 * np.sin(v / 3)),
    }
    return np.asarray(np.clip(waves[str(kind)] * sharp, -1, 1) / 2 + 0.5, np.float32)


def background(rng: np.random.Generator, size: Size) -> Array:
    """A canvas of two or three blended colours under up to two patterns."""
    muted, bright = rng.uniform(0.2, 0.75), rng.uniform(0.7, 1.0)
    first, second, third = (colour(rng, muted, bright) for _ in range(3))
    canvas = blend(first, second, ramp(rng, size))
    canvas = blend(canvas, third, clouds(rng, size, int(rng.integers(2, 7))))
    for _ in range(rng.integers(0, 3)):
        strength = np.float32(rng.uniform(0.05, 0.45))
        canvas = blend(canvas, colour(rng, muted, bright), pattern(rng, size) * strength)
    return canvas


def _scribble(rng: np.random.Generator, size: Size) -> tuple[list[Path], float]:
    """Rows of handwriting-like strokes."""
    em = rng.uniform(0.03, 0.08) * min(size)
    x0, y0 = rng.uniform(-0.1, 0.7) * size[0], rng.uniform(0, 1) * size[1]
    rows = []
    for row in range(rng.integers(1, 4)):
        count = int(rng.integers(8, 30))
        x = x0 + np.cumsum(rng.uniform(-0.1, 0.6, count)) * em
        y = y0 + row * 1.8 * em + rng.uniform(-0.5, 0.5, count) * em
        rows.append(np.stack([x, y], axis=1))
    return rows, em * rng.uniform(0.08, 0.2)


def _lines(rng: np.random.Generator, size: Size) -> tuple[list[Path], float]:
    """Long curved lines across the picture."""
    t = np.linspace(0, 1, 24)[:, None]
    curves = []
    for _ in range(rng.integers(1, 5)):
        a, b, c = rng.uniform(-0.2, 1.2, (3, 2)) * size
        curves.append((1 - t) ** 2 * a + 2 * t * (1 - t) * b + t**2 * c)
    return curves, rng.uniform(0.004, 0.025) * min(size)


def _blob(rng: np.random.Generator, size: Size) -> tuple[list[Path], None]:
    """An irregular, elongated patch that is none of the classes."""
    angle = np.linspace(0, 2 * np.pi, 60, endpoint=False)
    radius = np.ones_like(angle)
    for lobes in (2, 3, 5):
        radius += rng.uniform(0.15, 0.3) * np.cos(lobes * angle + rng.uniform(0, 2 * np.pi))
    points = np.stack([np.cos(angle), np.sin(angle) * rng.uniform(0.3, 0.7)], 1) * radius[:, None]
    turn = rng.uniform(0, np.pi)
    rotation = np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]])
    scale = rng.uniform(0.04, 0.2) * min(size)
    return [points @ rotation * scale + rng.uniform(0, 1, 2) * size], None


def clutter(rng: np.random.Generator, canvas: Array, count: int) -> Array:
    """The canvas with `count` lines, scribbles and blobs, none of which is a shape class."""
    size = canvas.shape[1], canvas.shape[0]
    kinds = (_scribble, _lines, _blob, _blob)
    for _ in range(count):
        paths, stroke = kinds[rng.integers(len(kinds))](rng, size)
        strength = np.float32(rng.uniform(0.3, 0.95))
        canvas = blend(canvas, colour(rng), coverage(size, paths, stroke) * strength)
    return canvas


def blur(field: Array, radius: float) -> Array:
    """A field blurred by a Gaussian of `radius` pixels."""
    image = Image.fromarray((np.clip(field, 0, 1) * 255).astype(np.uint8))
    return np.asarray(image.filter(ImageFilter.GaussianBlur(radius)), np.float32) / np.float32(255)


def light(rng: np.random.Generator, canvas: Array) -> Array:
    """The canvas under uneven light, with a colour cast, through an imperfect camera."""
    size = canvas.shape[1], canvas.shape[0]
    glow = np.asarray(1 + rng.uniform(0, 0.7) * (ramp(rng, size) - 0.5), np.float32)
    if rng.random() < 0.4:
        edge = (ramp(rng, size) - rng.uniform(0.3, 0.7)) * rng.uniform(5, 60)
        glow *= 1 - rng.uniform(0.15, 0.5) / (1 + np.exp(-edge))
    cast = rng.uniform(0.9, 1.15, 3).astype(np.float32)
    canvas = np.clip(canvas * glow[..., None] * cast, 0, 1) ** np.float32(rng.uniform(0.7, 1.2))
    if rng.random() < 0.35:
        radius = rng.uniform(0.4, 1.4)
        canvas = np.stack([blur(canvas[..., c], radius) for c in range(3)], axis=-1)
    grain = rng.standard_normal(canvas.shape, np.float32) * rng.uniform(0, 0.04)
    return np.asarray(np.clip(canvas + grain, 0, 1), np.float32)
