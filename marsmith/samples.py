"""Pictures on which a build compares answers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from PIL import Image

from handlers import pictures
from handlers.errors import RequestError, SpecError
from handlers.formats import SUFFIXES, is_picture

# Of a model file that names none.
DEFAULT = "samples/shapes"
# How many pictures an artifact is compared on, and the size (width, height) of one more where it
# takes any: a script may compute another size than eager for some pictures and not for others.
COMPARED = 8
OTHER_SIZE = (427, 640)


def found(folder: Path, deep: bool = False) -> list[Path]:
    """The picture files of a folder, sorted; with ``deep`` those of folders in it, too."""
    return sorted(filter(is_picture, folder.glob("**/*" if deep else "*")))


def files(folder: Path, deep: bool = False) -> list[Path]:
    """What ``found`` finds; raises SpecError when there is none."""
    every = found(folder, deep)
    if not every:
        raise SpecError(
            f"no sample pictures in {folder}: give a folder of {', '.join(SUFFIXES)} with --samples"
        )
    return every


def spread(given: Sequence[Path], most: int = COMPARED) -> list[Path]:
    """At most ``most`` of the files, spread evenly over them."""
    most = min(most, len(given))
    return [given[index * len(given) // most] for index in range(most)]


def compared(given: Sequence[Path], max_pixels: int, any_size: bool) -> list[Image.Image]:
    """The pictures among the files on which an artifact is compared; ``any_size`` says that it
    takes pictures of all sizes."""
    images = _opened(spread(given), max_pixels)
    return [*images, images[0].resize(OTHER_SIZE)] if any_size else images


def load(folder: Path, most: int, max_pixels: int) -> list[Image.Image]:
    """At most ``most`` pictures of a folder, spread evenly over them and decoded."""
    return _opened(spread(files(folder), most), max_pixels)


def _opened(paths: Iterable[Path], max_pixels: int) -> list[Image.Image]:
    loaded = []
    for path in paths:
        try:
            loaded.append(pictures.decode(path.read_bytes(), max_pixels))
        except RequestError as error:
            raise SpecError(f"sample {path}: {error}") from error
    return loaded
