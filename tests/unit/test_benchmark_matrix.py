"""The table of models and runtimes goes on from the page alone, which a clone has."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from benchmarks import matrix


@pytest.fixture
def page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the page in the place of the project's."""
    copy = tmp_path / "matrix.md"
    copy.write_text(matrix.PAGE.read_text("utf-8"))
    monkeypatch.setattr(matrix, "PAGE", copy)
    return copy


def test_the_page_is_what_is_written_of_it(page: Path) -> None:
    before = page.read_text("utf-8")
    assert matrix.main(["--page"]) == 0
    assert page.read_text("utf-8") == before
    assert len(matrix._read(page)) > 10


def test_what_is_missing_is_run_and_the_rest_stays(
    page: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = page.read_text("utf-8").splitlines()
    [row] = [line for line in rows if line.startswith("| `resnet18`")]
    cells = row.split(" | ")
    known = [*cells[:2], "not run", *cells[3:]]
    page.write_text("\n".join(rows).replace(row, " | ".join(known)) + "\n")
    asked: list[Any] = []

    def run(spec: Any, root: Path, store: Path, pairs: Any, tell: Any) -> Iterator[Any]:
        asked.extend(pairs)
        yield SimpleNamespace(to_json=lambda: {"problem": "no | room\nleft"})

    monkeypatch.setattr(matrix, "prepare", lambda spec, home, fixed: home / "weights.pth")
    monkeypatch.setattr(matrix.trials, "run", run)
    matrix.main(["resnet18"])
    assert asked == [("eager", "fp32")]
    found = matrix._read(page)
    assert found["resnet18"].pop("eager") == {"problem": "no room left"}
    before = matrix._read(Path(matrix.PROJECT / "docs/matrix.md"))
    assert before["resnet18"].pop("eager")
    assert found == before


@pytest.mark.parametrize("words", [["--agian"], ["mobilenet_v9"], ["--runtime", "onx"]])
def test_what_it_does_not_know_starts_nothing(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        matrix.main(words)
    assert ended.value.code == 2
    assert words[-1] in capsys.readouterr().err
