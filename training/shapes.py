"""The shape classes, drawn as outlines in a unit circle, and their anti-aliased coverage."""

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

Array = npt.NDArray[np.float32]
Path = npt.NDArray[np.float64]
"""Points of a line or of a closed outline: float64 [n, 2], x and y."""

SUPERSAMPLING = 3


def _polar(radii: npt.ArrayLike, start: float = -np.pi / 2) -> Path:
    """Points at evenly spaced angles, one for each of `radii`, the first one pointing up."""
    distance = np.asarray(radii, np.float64)
    angle = start + np.arange(len(distance)) * (2 * np.pi / len(distance))
    return np.stack([distance * np.cos(angle), distance * np.sin(angle)], axis=1)


def _disc(radius: float = 1.0) -> Path:
    return _polar(np.full(72, radius))


def _square(rng: np.random.Generator) -> list[Path]:
    return [_polar(np.ones(4), start=-np.pi / 4)]


def _triangle(rng: np.random.Generator) -> list[Path]:
    return [_polar(np.ones(3))]


def _star(rng: np.random.Generator) -> list[Path]:
    return [_polar([1.0, rng.uniform(0.38, 0.5)] * 5)]


def _ring(rng: np.random.Generator) -> list[Path]:
    return [_disc(), _disc(rng.uniform(0.5, 0.72))]


def _cross(rng: np.random.Generator) -> list[Path]:
    a = rng.uniform(0.26, 0.38)
    corner = np.array([[-a, -1], [a, -1], [a, -a]])
    quarter = np.array([[0, 1], [-1, 0]])
    turned = [corner @ np.linalg.matrix_power(quarter, turns) for turns in range(4)]
    return [np.concatenate(turned)]


def _heart(rng: np.random.Generator) -> list[Path]:
    t = np.linspace(0, 2 * np.pi, 72, endpoint=False)
    x = 16 * np.sin(t) ** 3
    y = 13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)
    return [np.stack([x, -y - 2.5], axis=1) / 16.5]


def _crescent(rng: np.random.Generator) -> list[Path]:
    return [_disc(), _disc(rng.uniform(0.78, 0.88)) + np.array([rng.uniform(0.38, 0.5), 0])]


def _hexagon(rng: np.random.Generator) -> list[Path]:
    return [_polar(np.ones(6))]


def _arrow(rng: np.random.Generator) -> list[Path]:
    shaft, neck = rng.uniform(0.18, 0.28), rng.uniform(-0.15, 0.15)
    half = np.array([[0, -1], [0.75, neck], [shaft, neck], [shaft, 1]])
    return [np.concatenate([half, half[:0:-1] * [-1, 1]])]


OUTLINES: dict[str, Callable[[np.random.Generator], list[Path]]] = {
    "arrow": _arrow,
    "circle": lambda rng: [_disc()],
    "crescent": _crescent,
    "cross": _cross,
    "heart": _heart,
    "hexagon": _hexagon,
    "ring": _ring,
    "square": _square,
    "star": _star,
    "triangle": _triangle,
}
SHAPES = tuple(OUTLINES)
"""Class names in index order; in maps and boxes, where 0 is the background, they count from 1."""


def place(rng: np.random.Generator, paths: Sequence[Path], radius: float) -> list[Path]:
    """Scale to `radius` pixels, squeeze a little and rotate by any angle, about the origin."""
    turn = rng.uniform(0, 2 * np.pi)
    rotation = np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]])
    squeeze = np.diag([radius, radius * rng.uniform(0.85, 1.0)])
    return [path @ squeeze @ rotation for path in paths]


def coverage(size: tuple[int, int], paths: Sequence[Path], stroke: float | None = None) -> Array:
    """How much of each pixel is covered: float32 [height, width] in 0..1.

    Without `stroke` the first path is filled and the others are holes in it; with it each path is
    a line of that many pixels' width.
    """
    width, height = size
    mask = Image.new("L", (width * SUPERSAMPLING, height * SUPERSAMPLING))
    draw = ImageDraw.Draw(mask)
    for index, path in enumerate(paths):
        points = [(float(x), float(y)) for x, y in path * SUPERSAMPLING]
        if stroke is None:
            draw.polygon(points, fill=0 if index else 255)
        else:
            draw.line(points, 255, max(1, round(stroke * SUPERSAMPLING)), joint="curve")
    return np.asarray(mask.reduce(SUPERSAMPLING), np.float32) / np.float32(255)
