"""Write the sample pictures, all from the held-out split: `python -m training.make_samples`.

Their seeds lie beyond the pictures on which accuracies are stated.
"""

from pathlib import Path

from training import data
from training.shapes import SHAPES

ROOT = Path("samples")
SHAPE_PICTURES = {
    "arrow": (10_040, (400, 300)),
    "crescent": (10_030, (300, 400)),
    "cross": (10_040, (320, 320)),
    "heart": (10_030, (480, 320)),
    "hexagon": (10_000, (320, 240)),
    "ring": (10_030, (240, 360)),
    "star": (10_040, (400, 400)),
    "triangle": (10_040, (512, 320)),
}
"""First seed of a round through the classes, and (width, height) in pixels; chosen by looks."""
SCENE_SIZE = (480, 360)
SCENE_SEEDS = (10_002, 10_006, 10_009, 10_013)


def write(path: Path, content: bytes) -> None:
    """Write a file, and the folders above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def main() -> None:
    for name, (first, size) in SHAPE_PICTURES.items():
        file, _ = data.shape("test", first + SHAPES.index(name), size)
        write(ROOT / "shapes" / f"{name}.jpg", file)
    for number, seed in enumerate(SCENE_SEEDS, start=1):
        file, *_ = data.annotated_scene("test", seed, SCENE_SIZE)
        write(ROOT / "scenes" / f"scene{number}.jpg", file)
    digits = {digit: png for png, digit in reversed(data.digits("test"))}
    for digit, png in sorted(digits.items()):
        write(ROOT / "digits" / f"{digit}.png", png)


if __name__ == "__main__":
    main()
