"""Each way of a step runs, on the samples."""

from __future__ import annotations

import math
import re
import zipfile
from pathlib import Path

import pytest

from benchmarks import steps

SAMPLES = Path(__file__).parents[2] / "samples"


def test_every_way_of_every_step_has_a_figure(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    archive = tmp_path / "some.mar"
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("model.bin", bytes(100_000))
    words = ["--pictures", str(SAMPLES / "scenes"), "--archive", str(archive), "--rounds", "1"]
    assert steps.main(words) == 0
    _, _, *lines = capsys.readouterr().out.splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    # Some ways say how many bytes came of them.
    found = [(row[0], re.sub(r":? [\d.]+ (bytes|MB)$", "", row[1])) for row in rows]
    decoders = ("simplejpeg, as here", "Pillow", "torchvision")
    assert found == [
        *(("decode a JPEG", way) for way in decoders),
        *(("decode 8 JPEGs", way) for way in ("in turn", "2 threads", "4 threads")),
        *(("write a mask", f"PNG, level {level}") for level in (1, 3, 6, 9)),
        ("write a mask", "runs of each class"),
        *(("unpack an archive", way) for way in ("stored", "deflated")),
    ]
    assert all(math.isfinite(float(cell)) for row in rows for cell in row[2:])


def test_a_folder_without_jpegs_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        steps.main(["--pictures", str(tmp_path)])
    assert f"no JPEG in {tmp_path}" in capsys.readouterr().err
