"""Trials of runtimes side by side: what is tried, what failed, which is best, what is shown."""

from __future__ import annotations

import io
import json
import re
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from rich.console import Console

from handlers.errors import ExportError, RuntimeUnavailable, SpecError
from marsmith import cli, spec, trial_tables, trials
from marsmith.commands import formats
from marsmith.trials import Trial
from tests.user import THEIRS

EAGER = Trial("eager", "fp32", archive_bytes=10**7, throughput=20.0, alone_s=0.05)
FAST = Trial("fast", "int8", archive_bytes=10**6, throughput=90.0, alone_s=0.01)
BROKEN = Trial("broken", "fp32", problem="it needs the Python package nothing")


def lenet5(project: Path, **changes: Any) -> spec.ModelSpec:
    return spec.load(project / "models/lenet5_digits.yaml", changes)


def test_int8_is_tried_where_there_are_pictures_for_it(project: Path) -> None:
    plain = list(trials.pairs(lenet5(project)))
    folders = {"calibration": {"folder": "a"}, "accuracy": {"folder": "b"}}
    ready = list(trials.pairs(lenet5(project, **folders)))
    assert ("eager", "fp32") in plain
    assert not any(precision == "int8" for _, precision in plain)
    assert {("onnx", "int8"), ("openvino", "int8")} <= set(ready)
    assert {precision for _, precision in trials.pairs(lenet5(project), ["fp32"])} == {"fp32"}


@pytest.mark.parametrize(
    ("named", "words"),
    [
        (
            "bf61",
            r"onnx, eager can be built in bf61: accepted are fp32, bf16, fp16; int8 needs --c",
        ),
        (
            "int8",
            r"onnx, eager can be built in int8: accepted are fp32, bf16, fp16; int8 needs --c",
        ),
    ],
)
def test_a_precision_that_nothing_is_built_in_is_refused(
    project: Path, named: str, words: str
) -> None:
    with pytest.raises(SpecError, match=words):
        trials.pairs(lenet5(project), ["fp32", named], ["onnx", "eager"])


def test_a_runtime_of_which_nothing_can_be_built_is_refused(project: Path) -> None:
    words = "runtime onnx can be built in fp32, fp16, int8, not in bf16: leave it out"
    with pytest.raises(SpecError, match=words):
        trials.pairs(lenet5(project), ["bf16"], ["eager", "onnx"])


def test_a_pair_that_fails_says_why_and_the_next_is_tried(project: Path, tmp_path: Path) -> None:
    model = lenet5(project, samples="samples/none")
    tried = list(trials.run(model, project, tmp_path, [("eager", "fp32"), ("onnx", "fp32")], print))
    assert [trial.problem is not None for trial in tried] == [True, True]
    assert "samples (--samples): there is no folder" in str(tried[0].problem)


def test_the_best_is_the_fastest_of_those_that_work() -> None:
    assert trials.best([EAGER, BROKEN, FAST]) is FAST
    with pytest.raises(ExportError, match="broken: it needs the Python package nothing"):
        trials.best([BROKEN])


def test_the_table_shows_ratios_and_reasons(project: Path) -> None:
    file = io.StringIO()
    console = Console(file=file, width=200)
    measured = replace(FAST, metric_name="top-1", metric=0.85, reference=0.86, device="cuda:0")
    trial_tables.print_table(console, lenet5(project), [EAGER, BROKEN, measured])
    rows = [line for line in file.getvalue().splitlines() if "fp32" in line or "int8" in line]
    names = ("fast", "eager", "broken")
    assert all(name in row for name, row in zip(names, rows[-3:], strict=True))
    assert "4.5" in rows[-3]
    assert "-0.0100" in rows[-3]
    assert "ok on cuda:0" in rows[-3]
    assert "ok on" not in rows[-2]
    assert "failed (1)" in rows[-1]
    assert file.getvalue().splitlines()[-1] == "(1) it needs the Python package nothing"
    quick = replace(EAGER, alone_s=1.234e-5, import_s=0.01, load_s=0.0034, throughput=0.1234)
    trial_tables.print_table(console, lenet5(project), [quick])
    assert {"0.0134", "0.0123", "0.123"} <= set(file.getvalue().splitlines()[-2].split())
    theirs = replace(EAGER, metric_name="top-1", metric=0.85)
    trial_tables.print_table(console, lenet5(project), [theirs])
    assert "0.8500" in file.getvalue().splitlines()[-2]


@pytest.mark.parametrize("width", [20, 80, 200])
def test_a_narrow_terminal_cuts_no_figure_and_no_reason(project: Path, width: int) -> None:
    file = io.StringIO()
    measured = replace(FAST, metric_name="top-1", metric=0.85, reference=0.86)
    tried = [EAGER, measured, BROKEN, replace(BROKEN, precision="int8")]
    trial_tables.print_table(Console(file=file, width=width), lenet5(project), tried)
    assert "…" not in file.getvalue()
    words = file.getvalue().split()
    assert {"eager", "0.8500", "-0.0100", "failed"} <= set(words)
    assert file.getvalue().count("it needs the Python package nothing") == 1


def test_runtimes_are_compared_with_all_cores_and_whole_batches(project: Path) -> None:
    model = spec.load(project / "models/mobilenet_v2.yaml")
    assert (model.serving.workers, model.serving.batch_size) == (2, 4)
    serving = trials.alone(model).serving
    assert (serving.workers, serving.threads, serving.batch_size) == (1, 0, trials.BATCH)
    wide = model.model_copy(update={"serving": model.serving.model_copy(update={"batch_size": 16})})
    assert trials.alone(wide).serving.batch_size == 16
    assert trials.alone(wide, 1000).serving.queue_size == 1000


def test_formats_builds_measures_and_plots(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(project)
    picture = tmp_path / "formats.png"
    pairs = ["--runtime", "eager", "--runtime", "openvino", "--precision", "fp32"]
    words = ["lenet5_digits", *pairs, "--json", "--plot", str(picture)]
    done = CliRunner().invoke(formats.command, words)
    assert done.exit_code == 0, done.output
    # There is no terminal, whose status line would tell what it is at.
    steps = [f"{name} fp32: {step}" for name in ("eager", "openvino") for step in ("build", "meas")]
    lines = done.stderr.splitlines()
    assert [line.partition("ure")[0] for line in lines[:4]] == steps
    found = json.loads(done.stdout)["trials"]
    assert [(trial["runtime"], trial["problem"]) for trial in found] == [
        ("eager", None),
        ("openvino", None),
    ]
    for trial in found:
        gpu = trial["runtime"] == "eager" and torch.cuda.is_available()
        assert trial["device"] == ("cuda:0" if gpu else "cpu")
        assert trial["load_s"] > 0
        assert trial["resident_bytes"] > 5e7
        assert trial["throughput"] > 1 / trial["alone_s"] / 8
        assert trial["archive_bytes"] > 10**5
    with Image.open(picture) as drawn:
        assert drawn.size[0] > 500


def test_formats_shows_the_metric_and_its_difference_from_fp32(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(project)
    samples = sorted((project / "samples/digits").glob("*.png"))
    evaluated, calibrated = tmp_path / "evaluated", tmp_path / "calibrated"
    for folder, files in ((evaluated, samples), (calibrated, samples[::2])):
        folder.mkdir()
        for path in files:
            shutil.copy(path, folder)
    # One label is wrong, so that the metric is not that of a model compared with itself.
    lines = [f"{path.name},{path.stem.replace('9', '3')}" for path in samples]
    (evaluated / "labels.csv").write_text("\n".join(["file,label", *lines]) + "\n")
    folders = ["--evaluate", str(evaluated), "--calibrate", str(calibrated)]
    pairs = ["--runtime", "openvino", "--precision", "fp32", "--precision", "int8"]
    picture = tmp_path / "formats.png"
    words = ["lenet5_digits", *pairs, *folders, "--plot", str(picture)]
    done = CliRunner().invoke(formats.command, words)
    assert done.exit_code == 0, done.output
    assert "top-1" in done.stdout
    rows = [line.split() for line in done.stdout.splitlines() if line.startswith(" openvino ")]
    assert {row[1]: row[-3:] for row in rows} == {
        "fp32": ["0.9000", "+0.0000", "ok"],
        # Of the five pictures that it was not calibrated on, and so is its fp32.
        "int8": ["0.8000", "+0.0000", "ok"],
    }
    with Image.open(picture) as drawn:
        assert drawn.size[0] > 500


@pytest.mark.parametrize("command", ["formats", "tune"])
def test_an_artifact_of_others_has_one_runtime_and_nothing_to_compare(
    command: str, tmp_path: Path
) -> None:
    (tmp_path / "theirs.yaml").write_text(json.dumps(THEIRS))
    done = CliRunner().invoke(cli.group, [command, str(tmp_path / "theirs.yaml")])
    assert isinstance(done.exception, SpecError)
    assert str(done.exception).startswith("theirs: an artifact of others runs in the runtime of")


@pytest.mark.parametrize("command", ["formats", "tune"])
@pytest.mark.parametrize("pairs", [("--precision", "fp32"), ("--runtime", "eager")])
@pytest.mark.parametrize("option", ["--calibrate", "--calibrate-count", "--keep-fp32"])
def test_options_of_int8_are_refused_where_nothing_of_it_is_tried(
    project: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    command: str,
    pairs: tuple[str, str],
    option: str,
) -> None:
    monkeypatch.chdir(project)
    monkeypatch.setattr(trials, "run", lambda *_, **__: pytest.fail("something was built"))
    file = tmp_path / "m.yaml"
    folders = "calibration: {folder: a}\naccuracy: {folder: b}\n"
    file.write_text((project / "models/lenet5_digits.yaml").read_text() + folders)
    done = CliRunner().invoke(cli.group, [command, str(file), *pairs, option, "1"])
    assert isinstance(done.exception, SpecError)
    assert "--keep-fp32 are for --precision int8, and this is fp32" in str(done.exception)


def test_a_plot_without_matplotlib_is_refused_before_anything_is_built(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(project)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    monkeypatch.setattr(trials, "run", lambda *_: pytest.fail("something was built"))
    done = CliRunner().invoke(cli.group, ["formats", "lenet5_digits", "--plot", "plot.png"])
    assert isinstance(done.exception, RuntimeUnavailable)
    assert "make extra-plots" in str(done.exception)


def drawn_points(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tried: list[Trial]
) -> tuple[str, list[tuple[float, float]]]:
    """The label and the points of a plot."""
    figure, axes = trial_tables.new_figure()
    monkeypatch.setattr(trial_tables, "new_figure", lambda: (figure, axes))
    trial_tables.plot(lenet5(project), tried, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")
    # Those of the legend have no place.
    offsets = [each.get_offsets() for each in axes.collections]
    return axes.get_ylabel(), [tuple(each[0].tolist()) for each in offsets if len(each)]


def test_a_plot_shows_what_accuracy_is_lost_where_it_was_measured(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    eager = replace(EAGER, metric_name="top-1", metric=0.9, reference=0.9)
    # Measured on fewer pictures: only the difference from fp32 on the same ones says anything.
    fast = replace(FAST, metric_name="top-1", metric=0.75, reference=0.875, largest_difference=0.3)
    theirs = replace(FAST, runtime="theirs", metric_name="top-1", metric=0.9)
    tried = [eager, BROKEN, fast, theirs, replace(FAST, runtime="unmeasured")]
    label, found = drawn_points(project, tmp_path, monkeypatch, tried)
    assert label == "top-1, difference from eager fp32"
    assert found == [(20.0, 0.0), (90.0, -0.125)]


def test_a_plot_shows_the_largest_move_where_no_metric_was_measured(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried = [EAGER, BROKEN, replace(FAST, largest_difference=0.25)]
    label, found = drawn_points(project, tmp_path, monkeypatch, tried)
    assert label == "largest move of a score"
    assert found == [(20.0, 0.0), (90.0, 0.25)]


def test_a_plot_of_nothing_is_empty_and_warns_of_nothing(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, found = drawn_points(project, tmp_path, monkeypatch, [BROKEN])
    assert found == []


def test_pictures_to_calibrate_with_and_none_to_measure_are_not_ignored(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(project)
    words = ["formats", "lenet5_digits", "--calibrate", "samples/digits"]
    done = CliRunner().invoke(cli.group, words)
    assert done.exit_code
    assert "--calibrate is for int8, which needs --evaluate DIR, too" in str(done.exception)
    # Of a model file that says so, the others are compared.
    model = spec.load(project / "models/lenet5_digits.yaml", {"calibration": {"folder": "a"}})
    assert {precision for _, precision in trials.pairs(model)} == {"fp32", "bf16", "fp16"}


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ("--max-drop", "accuracy.folder: which pictures? .* with --evaluate DIR"),
        ("--keep-fp32", "calibration.folder: which pictures? .* with --calibrate DIR"),
        ("--calibrate-count", "calibration.folder: which pictures? .* with --calibrate DIR"),
    ],
)
def test_an_option_of_pictures_without_pictures_says_which_are_missing(
    option: str, words: str, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(project)
    done = CliRunner().invoke(cli.group, ["build", "lenet5_digits", option, "1"])
    assert done.exit_code
    assert re.search(words.replace("?", r"\?"), str(done.exception))
