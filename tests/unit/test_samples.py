from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from handlers.errors import SpecError
from marsmith import samples


@pytest.mark.parametrize("count", [1, 3, 8, 9, 10, 15, 16, 100])
def test_samples_are_spread_over_all_pictures(tmp_path: Path, count: int) -> None:
    for number in range(count):
        (tmp_path / f"{number:03}.png").touch()
    found = [int(path.stem) for path in samples.spread(samples.files(tmp_path, "--samples"))]
    assert len(found) == len(set(found)) == min(8, count)
    gaps = {second - first for first, second in zip(found, [*found[1:], count], strict=True)}
    assert max(gaps) - min(gaps) <= 1
    assert found[0] == 0


def test_a_folder_that_is_missing_or_empty_is_told_with_its_option(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"^--images: there is no folder .*/none: give one of pict"):
        samples.files(tmp_path / "none", "--images")
    (tmp_path / "notes.txt").touch()
    with pytest.raises(SpecError, match=r"^--images: no pictures in .*: give a folder of \.jpg, "):
        samples.files(tmp_path, "--images", deep=True)


def test_a_picture_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    broken, large = tmp_path / "broken.png", tmp_path / "large.png"
    broken.write_bytes(b"%PDF")
    Image.new("RGB", (9, 9)).save(large)
    with pytest.raises(SpecError, match=r"/broken\.png: the body is a PDF document; send"):
        samples.opened(broken, 80)
    with pytest.raises(SpecError, match=r"/large\.png: the picture is 9x9"):
        samples.compared([large], 80, any_size=False)


def test_masks_beside_their_pictures_are_none(tmp_path: Path) -> None:
    for name in ("a.jpg", "masks/a.png", "masks/b.png", "x/masks/a.png", "x/a.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    found = samples.files(tmp_path, "--images", deep=True)
    # A class may be called masks: b.png is the mask of no picture.
    assert [str(path.relative_to(tmp_path)) for path in found] == [
        "a.jpg",
        "masks/b.png",
        "x/a.png",
    ]
