"""Folders of pictures that a person names, and the samples on which a build compares answers."""

from __future__ import annotations

from collections.abc import Container, Sequence
from pathlib import Path
from typing import TypeVar

from PIL import Image

from handlers import pictures
from handlers.errors import RequestError, SpecError
from handlers.formats import SUFFIXES, is_picture
from handlers.truths import MASKS

T = TypeVar("T")
# Of a model file that names none.
DEFAULT = "samples/shapes"
# How many pictures an artifact is compared on, and the size (width, height) of one more where it
# takes any: a script may compute another size than eager for some pictures and not for others.
COMPARED = 8
OTHER_SIZE = (427, 640)
# Folders of pictures as a model file and the command line name them.
SAMPLES, CALIBRATION, ACCURACY = (
    "samples (--samples)",
    "calibration.folder (--calibrate)",
    "accuracy.folder (--evaluate)",
)
_KINDS = ", ".join(SUFFIXES)


def found(folder: Path, deep: bool = False) -> list[Path]:
    """The picture files of a folder, sorted; with ``deep`` those of folders in it, too, but for
    masks that lie there beside their pictures."""
    every = sorted(filter(is_picture, folder.glob("**/*" if deep else "*")))
    places = {(path.parent, path.stem) for path in every}
    return [path for path in every if not _is_mask(path, places)]


def _is_mask(path: Path, places: Container[tuple[Path, str]]) -> bool:
    """Whether it is ``masks/NAME.png`` of a picture ``NAME.*`` beside that folder."""
    return path.parent.name == MASKS and (path.parent.parent, path.stem) in places


def files(folder: Path, option: str, deep: bool = False) -> list[Path]:
    """What ``found`` finds in the folder that ``option`` named; raises SpecError when there is
    none."""
    check(folder, option)
    every = found(folder, deep)
    if not every:
        raise SpecError(f"{option}: no pictures in {folder}: give a folder of {_KINDS}")
    return every


def check(folder: Path, option: str) -> None:
    """Raises SpecError when the folder that ``option`` named is not there."""
    if not folder.is_dir():
        raise SpecError(f"{option}: there is no folder {folder}: give one of pictures ({_KINDS})")


def spread(given: Sequence[T]) -> list[T]:
    """At most ``COMPARED`` of those given, spread evenly over them."""
    most = min(COMPARED, len(given))
    return [given[index * len(given) // most] for index in range(most)]


def compared(given: Sequence[Path], max_pixels: int, any_size: bool) -> list[Image.Image]:
    """The pictures among the files on which an artifact is compared; ``any_size`` says that it
    takes pictures of all sizes."""
    images = [opened(path, max_pixels) for path in spread(given)]
    return [*images, images[0].resize(OTHER_SIZE)] if any_size else images


def opened(path: Path, max_pixels: int) -> Image.Image:
    """The picture in a file, as ``pictures.decode`` gives it; raises SpecError with its name."""
    try:
        return pictures.decode(path.read_bytes(), max_pixels)
    except RequestError as error:
        raise SpecError(f"{path}: {error}") from error
