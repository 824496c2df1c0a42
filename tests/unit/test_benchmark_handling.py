"""The CPU time of a handler's stages, on an archive of digits."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from benchmarks import handling

DIGITS = Path(__file__).parents[2] / "samples/digits"


def test_stages_are_told_alone_and_in_batches(
    lenet5: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [str(lenet5), "--pictures", str(DIGITS), "--rounds", "1", "--functions", "5"]
    assert handling.main(words) == 0
    head, _, *lines = capsys.readouterr().out.splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[:2]]
    assert head == (
        "| pictures a batch | decode | preprocess | inference | postprocess | encode | rest | all |"
    )
    assert [row[0] for row in rows] == ["1", "8"]
    for row in rows:
        *stages, whole = map(float, row[1:])
        # Each is rounded.
        assert sum(stages) == pytest.approx(whole, abs=0.04)
        assert stages[2] > 0
    # Then what cProfile has seen.
    assert re.search(r"\d+ function calls", "\n".join(lines[2:]))


def test_a_folder_without_pictures_is_named(
    lenet5: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        handling.main([str(lenet5), "--pictures", str(tmp_path)])
    assert f"no pictures in {tmp_path}" in capsys.readouterr().err
