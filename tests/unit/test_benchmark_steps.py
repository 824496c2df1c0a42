"""Each way of a step runs, on the samples."""

from __future__ import annotations

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
    assert {row[0] for row in rows} == {
        *("decode a JPEG", "decode 8 JPEGs", "write a mask", "unpack an archive")
    }
    assert all(float(cell) >= 0 for row in rows for cell in row[2:])


def test_a_folder_without_jpegs_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        steps.main(["--pictures", str(tmp_path)])
    assert f"no JPEG in {tmp_path}" in capsys.readouterr().err
