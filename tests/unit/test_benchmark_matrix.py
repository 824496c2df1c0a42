"""The table of models and runtimes goes on from the page alone, which a clone has."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from benchmarks import matrix
from marsmith import named
from marsmith.commands.build import command
from marsmith.model_options import overrides
from marsmith.spec import load


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
    results, commits = matrix._read(page)
    assert len(results) > 10
    assert results.keys() == commits.keys()
    assert all(all(each) for each in commits.values())


def test_the_star_stands_for_options_of_the_command(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(project)
    (options,) = re.findall(r"`(--resize[^`]*)`", matrix._HEAD)
    rows = [line for line in matrix.PAGE.read_text("utf-8").splitlines() if "* |" in line]
    assert len(rows) > 4
    for name in (row.split("`")[1] for row in rows):
        words = [name, "--weights", "w.pth", "--runtime", "aotinductor", *options.split()]
        given = command.make_context("build", words).params
        built = named.load(name, project, overrides(given, project))
        fixed = matrix._changed(load(project / f"models/{name}.yaml"), True, project / "w.pth")
        weights = {"torchvision": built.weights.torchvision, "file": "w.pth", "sha256": None}
        said = {**fixed.on("aotinductor").model_dump(), "weights": weights}
        assert built.model_dump() == said


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The runtimes that are asked for; none has room."""
    names: list[str] = []
    none = {"problem": "no | room\nleft"}

    def run(spec: Any, root: Path, store: Path, pairs: Any, tell: Any) -> Iterator[Any]:
        names.extend(runtime for runtime, _ in pairs)
        yield SimpleNamespace(to_json=lambda: none)

    def as_onnx(spec: Any, runtime: str, home: Path) -> Any:
        names.append(runtime)
        return none

    monkeypatch.setattr(matrix, "prepare", lambda spec, home, fixed: home / "weights.pth")
    monkeypatch.setattr(matrix.trials, "run", run)
    monkeypatch.setattr(matrix, "_as_onnx", as_onnx)
    monkeypatch.setattr(matrix, "commit", lambda: "abc1234")
    return names


def test_what_is_missing_is_run_and_the_rest_stays(page: Path, asked: list[str]) -> None:
    rows = page.read_text("utf-8").splitlines()
    [row] = [line for line in rows if line.startswith("| `resnet18`")]
    cells = row.split(" | ")
    known = [*cells[:2], "not run", *cells[3:]]
    page.write_text("\n".join(rows).replace(row, " | ".join(known)) + "\n")
    matrix.main(["resnet18"])
    assert asked == ["eager"]
    found, commits = matrix._read(page)
    assert found["resnet18"].pop("eager") == {"problem": "no room left"}
    before, earlier = matrix._read(Path(matrix.PROJECT / "docs/matrix.md"))
    assert before["resnet18"].pop("eager")
    assert found == before
    assert commits.pop("resnet18") == [*earlier.pop("resnet18"), "abc1234"]
    assert commits == earlier


def test_a_row_that_is_run_anew_tells_its_commit_alone(page: Path, asked: list[str]) -> None:
    matrix.main(["resnet18", "--again", "--runtime", "onnx"])
    before = matrix._read(Path(matrix.PROJECT / "docs/matrix.md"))[1]["resnet18"]
    assert matrix._read(page)[1]["resnet18"] == [*before, "abc1234"]
    matrix.main(["resnet18", "--again"])
    assert asked == ["onnx", *matrix._read(page)[0]["resnet18"]]
    assert matrix._read(page)[1]["resnet18"] == ["abc1234"]


def test_what_tensorrt_would_be_given_is_run_without_it(page: Path, project: Path) -> None:
    spec = load(project / "models/lenet5_digits.yaml")
    found = matrix._as_onnx(spec, "tensorrt", page.parent)
    assert found.pop("largest_difference") < 1e-5
    assert found == {"problem": None, "as_onnx": True}
    assert matrix._cell(spec, "tensorrt", found | {"largest_difference": 2e-6}, []) == "2e-06~"


@pytest.mark.parametrize("words", [["--agian"], ["mobilenet_v9"], ["--runtime", "onx"]])
def test_what_it_does_not_know_starts_nothing(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        matrix.main(words)
    assert ended.value.code == 2
    assert words[-1] in capsys.readouterr().err
