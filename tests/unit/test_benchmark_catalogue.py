"""docs/catalogue.md holds what was measured: a row stays until the command replaces it."""

from __future__ import annotations

from pathlib import Path

from benchmarks.catalogue import PAGE, _page, _rows
from marsmith.spec import load

PROJECT = Path(__file__).parents[2]
FILES = {
    spec.name: spec
    for spec in map(load, sorted((PROJECT / "models").glob("*.yaml")))
    if spec.weights.torchvision is not None
}


def test_a_page_is_read_as_it_was_written() -> None:
    assert _page(_rows(PAGE), FILES) == PAGE.read_text("utf-8")


def test_each_model_file_is_served_on_the_runtimes_that_everybody_has() -> None:
    served = _rows(PAGE)
    for name, spec in FILES.items():
        wanted = {"openvino", "torchscript"}
        wanted |= set() if spec.task == "image-classification" else {"onnx"}
        assert {runtime for model, runtime in served if model == name} >= wanted, name
    assert not [row for row in served.values() if "**fails**" in row]


def test_a_model_that_was_not_run_is_named(tmp_path: Path) -> None:
    rows = {key: row for key, row in _rows(PAGE).items() if key != ("resnet18", "openvino")}
    assert "Not run yet on the runtime of its model file: `resnet18`." in _page(rows, FILES)
    assert _rows(tmp_path / "missing.md") == {}
