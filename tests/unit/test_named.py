"""Models by name: files of the project, and every network of torchvision of the three tasks."""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import pytest
import torchvision
from click.testing import CliRunner, Result

from handlers import plugins
from handlers.errors import MarsmithError, PluginError, SpecError, WeightsError
from marsmith import build, cli, model_options, named, resolve, trials, weights
from marsmith.commands.build import command as build_command
from marsmith.spec import ModelSpec, defaults, parse
from marsmith.tuning.session import Session

MODELS = torchvision.models
KINDS = {
    "image-classification": MODELS,
    "object-detection": MODELS.detection,
    "semantic-segmentation": MODELS.segmentation,
}
THEIRS = {name: task for task, module in KINDS.items() for name in MODELS.list_models(module)}


def run(*words: str) -> Result:
    return CliRunner().invoke(cli.group, words)


@pytest.fixture(autouse=True)
def _here(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(project)
    monkeypatch.delenv("MARSMITH_CALLER", raising=False)


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every try to open a connection is an error that no code expects."""

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("something was to be downloaded")

    monkeypatch.setattr("socket.socket.connect", refuse)


def test_all_networks_of_the_three_tasks_are_known() -> None:
    assert named.torchvision_names() == dict(sorted(THEIRS.items()))
    assert len(THEIRS) > 90


def test_two_tasks_with_the_networks_of_one_module_are_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(plugins.load_task("object-detection"), "torchvision", "torchvision.models")
    with pytest.raises(PluginError, match="image-classification and object-detection both take"):
        named.torchvision_names()


@pytest.mark.usefixtures("no_network")
@pytest.mark.parametrize("name", sorted(THEIRS))
def test_a_network_of_torchvision_is_a_spec_by_its_name(project: Path, name: str) -> None:
    spec = named.load(name, Path())
    entry = MODELS.get_model_weights(name).DEFAULT
    assert (spec.name, spec.task) == (name, THEIRS[name])
    assert spec.architecture == f"torchvision:{name}"
    assert spec.weights.torchvision is not None
    assert weights.torchvision_weights(spec) is entry
    assert resolve.labels(spec, project) == entry.meta["categories"]
    preset, given = entry.transforms(), resolve.image_input(spec)
    for ours, theirs in (("resize", "resize_size"), ("crop", "crop_size")):
        wanted = getattr(preset, theirs, None)
        assert getattr(given, ours) == (wanted[0] if wanted else None)
    if interpolation := getattr(preset, "interpolation", None):
        assert given.interpolation == interpolation.value
        assert (list(given.mean), list(given.std)) == (preset.mean, preset.std)
    # In the spec, and not tried in silence.
    loops = plugins.load_task(spec.task).loops
    assert spec.on("torchscript").options == {"method": "script" if loops else "trace"}
    assert (project / spec.samples).is_dir()
    assert spec.licence == entry.meta.get("license", "BSD-3-Clause")


def test_a_model_file_comes_before_torchvisions_name() -> None:
    assert named.load("mobilenet_v3_small", Path()).serving.workers == 2
    changed = named.load("resnet34", Path(), {"version": "2.0", "runtime": "torchscript"})
    assert (changed.version, changed.options) == ("2.0", {"method": "trace"})
    theirs = named.load("resnet34", Path(), {"weights": {"file": "w.pth"}}).weights
    assert (theirs.file, theirs.torchvision) == ("w.pth", "IMAGENET1K_V1")


def test_a_detector_answers_with_as_many_boxes_as_torchvisions_own() -> None:
    spec = named.load("ssd300_vgg16", Path())
    settings = resolve.decode_settings(spec)
    network = MODELS.get_model("ssd300_vgg16", weights=None, weights_backbone=None)
    plugins.load_task(spec.task).adapt(network, settings)
    assert network.detections_per_img == 200


def changed(name: str, *words: str) -> tuple[ModelSpec, list[str]]:
    """What ``marsmith build`` makes of a name and options, and what it tells of that."""
    given = build_command.make_context("build", [name, *words]).params
    told: list[str] = []
    return named.load(name, Path(), model_options.overrides(given, Path()), told.append), told


SQUARE = ("--resize", "320,320", "--letterbox", "0")


@pytest.mark.usefixtures("no_network")
@pytest.mark.parametrize(
    ("name", "words", "wanted"),
    [
        # Nothing in the file, and a task that leaves the picture as it is.
        ("ssdlite_shapes", SQUARE, {"resize": [320, 320], "letterbox": 0}),
        # The preset of torchvision's weights, with a file and without.
        ("efficientnet_b0", ("--resize", "200"), {"resize": 200, "crop": None}),
        ("ssd300_vgg16", SQUARE[:2], {"resize": [320, 320]}),
        ("resnet34", ("--crop", "99", "--resize", "120"), {"resize": 120, "crop": 99}),
        ("mobilenet_v2", ("--backend", "tensor"), {"backend": "tensor"}),
        # The file's own.
        (
            "lenet5_digits",
            ("--mean", "0.5", "--no-antialias"),
            {"mean": (0.5,), "antialias": False},
        ),
        ("lraspp_shapes", SQUARE, {"resize": [320, 320], "letterbox": 0}),
    ],
)
def test_options_change_the_input_of_a_named_model_and_nothing_else_of_it(
    name: str, words: tuple[str, ...], wanted: dict[str, Any]
) -> None:
    before = named.load(name, Path())
    found, told = changed(name, *words)
    own = asdict(resolve.image_input(before))
    assert asdict(resolve.image_input(found)) == own | wanted
    assert found.model_dump(exclude={"input"}) == before.model_dump(exclude={"input"})
    [line] = told
    assert f"{name} gets other pixels, and may answer otherwise" in line
    # As ``formats`` and --runtime auto hand it on.
    again = parse(found.model_dump(mode="json", exclude_unset=True), "again")
    assert resolve.image_input(again) == resolve.image_input(found)


def test_a_letterbox_goes_with_the_resize_that_it_fills(tmp_path: Path) -> None:
    fields = json.dumps({"resize": [64, 64], "letterbox": 9, "letterbox_position": "top-left"})
    path = tmp_path / "m.yaml"
    path.write_text(f"{Path('models/ssdlite_shapes.yaml').read_text()}input: {fields}\n")
    moved = resolve.image_input(changed(str(path), "--letterbox-position", "center")[0])
    assert (moved.resize, moved.letterbox, moved.letterbox_position) == ([64, 64], 9, "center")
    plain = resolve.image_input(changed(str(path), "--resize", "80")[0])
    assert (plain.resize, plain.letterbox, plain.letterbox_position) == (80, None, "center")


def test_an_input_that_stays_as_it_was_is_not_told_of() -> None:
    found, told = changed("lenet5_digits", "--resize", "32,32", "--color", "gray")
    assert told == []
    assert resolve.image_input(found) == resolve.image_input(named.load("lenet5_digits", Path()))


@pytest.mark.parametrize(
    ("name", "words", "message"),
    [
        ("lraspp_shapes", ("--crop", "9"), r"lraspp_shapes\.yaml with --crop: .* every pixel"),
        ("ssdlite_shapes", SQUARE[2:], "with --letterbox: input: letterbox needs resize"),
        (
            "ssdlite_shapes",
            ("--backend", "tensor"),
            "^--backend: .* no resize .* give --resize, too",
        ),
        (
            "ssdlite_shapes",
            (*SQUARE[:2], "--letterbox-position", "center"),
            "^--letterbox-position: .* no letterbox .* give --letterbox, too",
        ),
        ("mobilenet_v2", ("--color", "gray"), "mean has 3 values, gray has 1"),
    ],
)
@pytest.mark.parametrize("command", ["build", "formats", "tune"])
def test_an_input_option_that_means_nothing_is_refused(
    command: str, name: str, words: tuple[str, ...], message: str
) -> None:
    with pytest.raises(SpecError, match=message):
        raise run(command, name, *words).exception or AssertionError


def test_what_an_artifact_of_others_takes_is_no_option_of_a_network() -> None:
    with pytest.raises(SpecError, match="mobilenet_v2.yaml with --layout: .* others exported"):
        raise run("build", "mobilenet_v2", "--layout", "nhwc").exception or AssertionError


def test_an_input_option_wants_a_model() -> None:
    with pytest.raises(SpecError, match="^--resize, --letterbox: of which model"):
        raise run("build", *SQUARE).exception or AssertionError


def test_formats_compares_with_the_input_that_options_say(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[ModelSpec] = []

    def tried(spec: ModelSpec, *_: Any) -> Any:
        asked.append(spec)
        yield trials.Trial("torch-compile", "fp32", "no room")

    monkeypatch.setattr(trials, "run", tried)
    words = ("--runtime", "torch-compile", "--precision", "fp32", *SQUARE)
    result = run("formats", "ssdlite_shapes", *words)
    assert result.exit_code == 0, repr(result.exception)
    assert resolve.image_input(asked[0]).fixed
    assert "input: resize [320, 320], letterbox 0 in the place of its own" in result.stderr


@pytest.mark.parametrize("option", ["--write", "--profile=host.yaml"])
def test_a_choice_for_another_input_is_not_kept(
    option: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Session, "run", lambda *_: pytest.fail("searched in vain"))
    with pytest.raises(
        SpecError, match="^--resize, --letterbox: --write and --profile keep nothing"
    ):
        raise run("tune", "ssdlite_shapes", *SQUARE, option).exception or AssertionError


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("resnt34", r"did you mean resnet34, .*\./build_mar\.sh --list has all"),
        ("lraspp_shape", "did you mean lraspp_shapes"),
        ("fasterrcnn_resnet50", "did you mean fasterrcnn_resnet50_fpn"),
        ("qqqq", r"known are cifar_net_shapes, .*\./build_mar\.sh --list"),
        ("raft_large", "torchvision has it, but it is for none of the tasks image-class"),
        ("no/m.yaml", r"there is no no/m\.yaml"),
        ("lenet5_digits.yaml", r"there is no lenet5_digits\.yaml; did you mean lenet5_digits\?"),
        ("../etc", "no model ../etc"),
    ],
)
@pytest.mark.parametrize("command", ["build", "formats", "profile", "tune", "graph"])
def test_a_name_that_is_none_gets_the_nearest(command: str, name: str, words: str) -> None:
    result = run(command, name)
    assert isinstance(result.exception, SpecError), repr(result.exception)
    assert "\n" not in str(result.exception)
    with pytest.raises(SpecError, match=words):
        raise result.exception


@pytest.mark.parametrize("command", ["build", "formats"])
def test_an_archive_is_told_from_a_model(command: str) -> None:
    with pytest.raises(SpecError, match=r"^store/m-1\.0\.mar is an archive, .* `marsmith verify`"):
        raise run(command, "store/m-1.0.mar").exception or AssertionError


def test_all_names_are_listed_beside_the_files() -> None:
    listed = run("build", "--list").output
    files = {path.stem for path in Path("models").glob("*.yaml")}
    *_, block = listed.partition("And by their names")
    words = set(block.replace(",", " ").split())
    assert set(THEIRS) - files <= words
    assert not files & words
    assert all(f"{name} " in listed.partition("And by")[0] for name in files)


class Builds(list[list[str]]):
    """Stands for the processes of several builds, and keeps their commands: any of
    ``lraspp_shapes`` fails with a reason, of ``ssdlite_shapes`` is killed."""

    def __call__(self, command: list[str]) -> Any:
        report, name = command[-2:]
        self.append([*command[3:-2], name])
        told: dict[str, Any] = {
            "model": name,
            "version": "1.0",
            "runtime": "openvino",
            "precision": "int8",
            "bytes": 9_640_000,
            "seconds": 12.3,
            "parity": {"largest_difference": None, "largest_score_difference": 0.00042},
        }
        if name == "lraspp_shapes":
            told = {"problem": "no such layer\nand where"}
        if name != "ssdlite_shapes":
            Path(report.removeprefix("--report=")).write_text(json.dumps(told))
        code = {"lraspp_shapes": 1, "ssdlite_shapes": -9}.get(name, 0)
        begun = MagicMock(**{"wait.return_value": code})
        begun.__enter__.return_value = begun
        return begun


@pytest.fixture
def builds(monkeypatch: pytest.MonkeyPatch) -> Builds:
    builds = Builds()
    monkeypatch.setattr(subprocess, "Popen", builds)
    return builds


def test_each_of_several_models_is_built_with_all_options(builds: Builds) -> None:
    names = ["lenet5_digits", "mobilenet_v2_shapes"]
    # What is missing is not asked again: another build may have made it meanwhile.
    assert run("build", "--missing", *names, "--store", "nowhere").exit_code == 0
    assert [command[-1] for command in builds] == names
    assert not any("--missing" in command for command in builds)
    builds.clear()
    options = ["--store", names[0], "--runtime", "eager", "--max-drop", "0.5", "--force"]
    result = run("build", names[0], *options, names[1], "--evaluate", names[1])
    assert result.exit_code == 0, repr(result.exception)
    given = ["--force", "--runtime=eager", "--max-drop=0.5"]
    given += [f"--store={names[0]}", f"--evaluate={names[1]}"]
    assert [command[-1] for command in builds] == names
    for command in builds:
        assert command[0] == "build"
        assert sorted(command[1:-1]) == sorted(given)


def test_each_of_several_models_gets_the_input_that_options_say(builds: Builds) -> None:
    names = ["lenet5_digits", "mobilenet_v2_shapes"]
    result = run("build", *names, "--resize", "40,50", "--no-antialias", "--crop", "30")
    assert result.exit_code == 0, repr(result.exception)
    for command in builds:
        assert sorted(command[1:-1]) == ["--crop=30", "--no-antialias", "--resize=40,50"]
    # Each tells of its own.
    assert "input:" not in result.stderr


def test_what_fails_of_several_models_leaves_the_rest_and_a_table_closes_them(
    builds: Builds,
) -> None:
    names = ["lraspp_shapes", "lenet5_digits", "ssdlite_shapes", "mobilenet_v2_shapes"]
    result = run("build", *names)
    assert [command[-1] for command in builds] == names
    assert result.exit_code == 1
    title, _, head, _, *rows, _, first, second = result.stdout.rstrip().splitlines()
    assert title.startswith("2 of 4 models built in ")
    assert head.split() == ["model", "version", "runtime", "MB", "parity", "seconds"]
    assert [row.split()[:-1] for row in rows] == [
        ["lraspp_shapes", "1.0", "failed", "(1)"],
        ["lenet5_digits", "1.0", "openvino", "int8", "9.6", "4.2e-04"],
        ["ssdlite_shapes", "1.0", "failed", "(2)"],
        ["mobilenet_v2_shapes", "1.0", "openvino", "int8", "9.6", "4.2e-04"],
    ]
    assert rows[1].split()[-1] == "12.3"
    assert max(map(len, [head, *rows])) <= 80
    assert first == "(1) no such layer"
    killed = "ended by signal 9 (SIGKILL: out of memory?)"
    assert second == f"(2) {killed}; what it said stands above"


def test_several_models_as_json_are_a_line_each(builds: Builds) -> None:
    result = run("build", "lraspp_shapes", "lenet5_digits", "--json")
    assert result.exit_code == 1
    assert all("--json" in command for command in builds)
    # The process of the other tells its own, which is none here.
    (line,) = result.stdout.splitlines()
    found = json.loads(line)
    assert (found["model"], found["problem"]) == ("lraspp_shapes", "no such layer\nand where")
    assert found["seconds"] >= 0
    assert "1 of 2 models built" in result.stderr


def test_ctrl_c_ends_the_build_under_way_and_begins_no_other(builds: Builds) -> None:
    begun = []

    def stopped(command: list[str]) -> Any:
        begun.append(builds(command))
        begun[0].wait.side_effect = KeyboardInterrupt
        return begun[0]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(subprocess, "Popen", stopped)
        result = run("build", "lenet5_digits", "mobilenet_v2_shapes")
    assert (result.exit_code, result.stderr.strip()) == (1, "Aborted!")
    (process,) = begun
    process.send_signal.assert_called_once_with(signal.SIGINT)


def test_a_build_reports_what_its_json_says_and_why_it_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build.smoke, "prepared", lambda *_: nullcontext(lambda path: None))
    words = ("--runtime", "eager", "--store", str(tmp_path), "--report", str(tmp_path / "report"))
    result = run("build", "lenet5_digits", "--json", *words)
    assert result.exit_code == 0, repr(result.exception)
    found = json.loads(result.stdout)
    assert json.loads((tmp_path / "report").read_text()) == found
    assert found["seconds"] > 0
    assert found["bytes"] == (tmp_path / "lenet5_digits-1.0.mar").stat().st_size
    result = run("build", "lenet5_digits", "--json", "--samples", "models", *words)
    assert result.stdout == ""
    told = json.loads((tmp_path / "report").read_text())
    wanted = {"model": "lenet5_digits", "version": "1.0", "problem": str(result.exception)}
    assert told == wanted
    result = run("build", "lenet5_digits", "--json", "--samples", "models", *words[:-2])
    assert json.loads(result.stdout) == wanted


@pytest.fixture
def bad(project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file with a mistake among the models of the working folder."""
    shutil.copytree(project / "models", tmp_path / "models")
    path = tmp_path / "models/mine.yaml"
    path.write_text("name: mine\ntask: mind-reading\narchitecture: a.py:A\nweights: {file: w}\n")
    monkeypatch.chdir(tmp_path)
    return path


def test_a_wrong_file_is_named_when_all_others_are_listed(bad: Path) -> None:
    result = run("build", "--list")
    assert isinstance(result.exception, SpecError)
    words = "^models/mine.yaml: model: task 'mind-reading': accepted are image-classification"
    assert re.match(words, str(result.exception))
    files = {path.stem for path in Path("models").glob("*.yaml")} - {"mine"}
    assert all(f"{name} " in result.output.partition("And by")[0] for name in files)
    assert "segmentation: deeplabv3" in result.output


def test_a_wrong_file_that_nobody_asks_for_stops_no_plain_build(bad: Path, project: Path) -> None:
    assert [each.name for each in defaults(bad.parents[1])] == [
        each.name for each in defaults(project)
    ]
    bad.write_text(f"{bad.read_text()}default: true\n")
    with pytest.raises(SpecError, match="mine.yaml: model: task 'mind-reading'"):
        defaults(bad.parents[1])


def test_a_file_that_cannot_be_read_is_left_out_of_a_plain_build(bad: Path, project: Path) -> None:
    bad.write_text("name: [mine\n")
    told: list[str] = []
    found = defaults(bad.parents[1], told.append)
    assert [each.name for each in found] == [each.name for each in defaults(project)]
    [words] = told
    assert words.startswith(f"left out: {bad}: cannot be read as YAML: ")


def test_a_network_by_name_is_counted_without_its_weights() -> None:
    result = run("profile", "squeezenet1_1", "--json", "--no-load")
    assert result.exit_code == 0, repr(result.exception)
    found = json.loads(result.output)
    assert found["architecture"] == "torchvision:squeezenet1_1"
    network = MODELS.get_model("squeezenet1_1", weights=None)
    assert found["parameters"] == sum(each.numel() for each in network.parameters())


def test_without_network_a_build_by_name_says_which_file_to_put_where(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    entry = MODELS.get_model_weights("shufflenet_v2_x0_5").DEFAULT
    name = entry.url.rsplit("/", 1)[1]
    monkeypatch.setattr(entry.value, "url", f"http://127.0.0.1:9/{name}")
    result = run("build", "shufflenet_v2_x0_5", "--store", str(tmp_path))
    assert isinstance(result.exception, WeightsError)
    assert "\n" not in str(result.exception)
    assert f"put it at {Path.cwd() / 'weights/download' / name}" in str(result.exception)


def test_several_names_are_all_known_before_the_first_is_built(tmp_path: Path) -> None:
    result = run("build", "lenet5_digits", "resnt34", "--store", str(tmp_path))
    assert isinstance(result.exception, SpecError)
    assert not list(tmp_path.iterdir())


def test_the_choice_of_tune_is_not_written_into_a_file_that_there_is_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Session, "run", lambda *_: pytest.fail("searched in vain"))
    result = run("tune", "resnet34", "--write")
    assert isinstance(result.exception, MarsmithError)
    assert "--write: resnet34 is torchvision's and has no file here" in str(result.exception)
