"""Pictures on which a build compares answers."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from handlers import pictures
from handlers.errors import RequestError, SpecError

# Of a model file that names none.
DEFAULT = "samples/shapes"
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")


def files(folder: Path, deep: bool = False) -> list[Path]:
    """The picture files of a folder, sorted; with ``deep`` those of folders in it, too.

    Raises SpecError when there is none.
    """
    found = sorted(p for p in folder.glob("**/*" if deep else "*") if p.suffix.lower() in SUFFIXES)
    if not found:
        raise SpecError(
            f"no sample pictures in {folder}: give a folder of {', '.join(SUFFIXES)} with --samples"
        )
    return found


def chosen(folder: Path, most: int) -> list[Path]:
    """At most ``most`` picture files of a folder, spread evenly over them."""
    found = files(folder)
    most = min(most, len(found))
    return [found[index * len(found) // most] for index in range(most)]


def load(folder: Path, most: int, max_pixels: int) -> list[Image.Image]:
    """At most ``most`` pictures of a folder, decoded; see ``chosen``."""
    loaded = []
    for path in chosen(folder, most):
        try:
            loaded.append(pictures.decode(path.read_bytes(), max_pixels))
        except RequestError as error:
            raise SpecError(f"sample {path}: {error}") from error
    return loaded
