"""A model of one's own: from options alone, from one's own source."""

from __future__ import annotations

import re
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import Result
from PIL import Image
from torch import nn
from user import NET, OWN, PROJECT, SQUARE, labelled, run, standing

from handlers.errors import BuildError, MarsmithError, SpecError
from handlers.integrity import sha256
from marsmith import (
    archive,
    build,
    model_options,
    own,
    preparing,
    resolve,
    sources,
    spec,
    trials,
)
from marsmith.spec_parts import WeightsSpec

# Source of one's own -------------------------------------------------------------------------


@pytest.fixture
def user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return standing(tmp_path, monkeypatch)


NETWORK = ("--weights", "net.pth", "--arg", "width=6", "--runtime", "eager", *OWN, *SQUARE)


@pytest.mark.parametrize("arch", ["my_model.py:Net", "mynet:Net", "mynet:models.Net"])
def test_a_network_of_ones_own_is_one_command(
    user: Path, tmp_path: Path, load_worker: Callable[[Path], Any], arch: str
) -> None:
    (user / "mynet/__pycache__").mkdir()
    (user / "mynet/__pycache__/x.pyc").touch()
    (user / "mynet/.git").mkdir()
    (user / "mynet/.git/config").touch()
    result = run("--arch", arch, *NETWORK)
    assert result.exit_code == 0, result.output + repr(result.exception)
    archive.unpack(user / "store/own-1.0.mar", tmp_path / "unpacked")
    files = {p.name for p in (tmp_path / "unpacked/source").rglob("*") if p.is_file()}
    package = {"__init__.py", "models.py", "parts.py"}
    assert files == (package if arch.startswith("mynet") else {"my_model.py"})
    everything = (user / "store/own-1.0.mar").read_bytes()
    assert str(tmp_path).encode() not in everything
    worker = load_worker(tmp_path / "unpacked")
    picture = (PROJECT / "samples/shapes/star.jpg").read_bytes()
    (reply,) = worker.ask(({"data": bytearray(picture)}, {}))
    assert {each["label"] for each in reply.json()} == {"cat", "dog"}


@pytest.mark.parametrize(("runtime", "there"), [("eager", True), ("torchscript", False)])
def test_what_the_source_imports_is_told(user: Path, runtime: str, there: bool) -> None:
    (user / "my_model.py").write_text(NET.format(imports="import rich.text, json"))
    result = run("--arch", "my_model.py:Net", *NETWORK, "--runtime", runtime)
    assert result.exit_code == 0, repr(result.exception)
    path = user / "store/own-1.0.mar"
    versions = archive.read_json(path, "marsmith.json")["provenance"]["versions"]
    assert versions["rich"] == version("rich")
    # A worker imports the source where its runtime builds the network.
    parts = archive.read_json(path, "sbom.cdx.json")["components"]
    assert ("rich" in {part["name"] for part in parts}) is there


@pytest.mark.parametrize("runtime", ["eager", "torchscript"])
def test_a_network_whose_layers_find_their_sizes_is_built(user: Path, runtime: str) -> None:
    lazy = NET.format(imports="").replace("nn.Linear(width, ", "nn.LazyLinear(")
    (user / "my_model.py").write_text(lazy.replace("nn.Conv2d(3, ", "nn.LazyConv2d("))
    result = run("--arch", "my_model.py:Net", *NETWORK, "--runtime", runtime)
    assert result.exit_code == 0, repr(result.exception)
    state = torch.load(user / "net.pth", weights_only=True)
    torch.save({k: v for k, v in state.items() if k != "linear.weight"}, user / "net.pth")
    result = run("--arch", "my_model.py:Net", *NETWORK, "--runtime", runtime)
    assert "(missing: linear.weight)" in str(result.exception)


def test_what_opencv_users_say_reaches_the_archive(user: Path) -> None:
    words = ("--letterbox", "114", "--letterbox-position", "top-left")
    words += ("--no-antialias", "--interpolation", "nearest")
    result = run("--arch", "my_model.py:Net", *NETWORK, *words)
    assert result.exit_code == 0, repr(result.exception)
    given = archive.read_json(user / "store/own-1.0.mar", "marsmith.json")["input"]
    said = {"letterbox": 114, "letterbox_position": "top-left", "interpolation": "nearest"}
    assert said.items() <= given.items()
    assert given["antialias"] is False


def test_the_saved_model_file_builds_the_same_bytes(user: Path) -> None:
    result = run("--arch", "mynet:Net", *NETWORK, "--save-yaml", "own.yaml")
    assert result.exit_code == 0, repr(result.exception)
    digest = sha256(user / "store/own-1.0.mar")
    (user / "store/own-1.0.mar").unlink()
    again = run("own.yaml")
    assert again.exit_code == 0, repr(again.exception)
    assert sha256(user / "store/own-1.0.mar") == digest
    assert "my" in (user / "own.yaml").read_text()
    (user / "own.yaml").write_text("name: other\n")
    other = run("--arch", "mynet:Net", *NETWORK, "--save-yaml", "own.yaml")
    assert "own.yaml is there and says something else" in str(other.exception)


def test_what_is_in_the_store_is_left_out_where_missing_is_asked_for(user: Path) -> None:
    (user / "store").mkdir()
    there = user / "store/own-1.0.mar"
    there.touch()
    result = run("--arch", "my_model.py:Net", *NETWORK, "--missing")
    assert result.exit_code == 0, repr(result.exception)
    assert there.stat().st_size == 0


def test_what_is_in_the_store_gets_its_model_file_all_the_same(user: Path) -> None:
    (user / "store").mkdir()
    (user / "store/own-1.0.mar").touch()
    words = ("--arch", "my_model.py:Net", *NETWORK, "--missing", "--save-yaml")
    result = run(*words, "own.yaml")
    assert result.exit_code == 0, repr(result.exception)
    assert "model file own.yaml" in result.stderr
    assert spec.load(user / "own.yaml").arguments == {"width": 6}
    assert "labels.txt is there and says" in str(run(*words, "labels.txt").exception)
    result = run(*words, "auto.yaml", "--runtime", "auto")
    assert "own 1.0 is in the store already, so that --runtime auto" in str(result.exception)
    assert not (user / "auto.yaml").exists()


@pytest.mark.parametrize(
    ("file", "words"),
    [
        ("none/own.yaml", "--save-yaml: there is no folder .*none"),
        ("labels.txt", "labels.txt is there, and what --runtime auto chooses is not in it yet"),
    ],
)
def test_a_model_file_that_cannot_be_saved_is_named_before_any_runtime_is_tried(
    user: Path, monkeypatch: pytest.MonkeyPatch, file: str, words: str
) -> None:
    monkeypatch.setattr(trials, "run", lambda *_, **__: pytest.fail("a runtime was tried"))
    result = run("--arch", "my_model.py:Net", *NETWORK, "--runtime", "auto", "--save-yaml", file)
    assert isinstance(result.exception, SpecError)
    assert re.search(words, str(result.exception))


def test_prefixed_weights_are_noted_in_the_output_and_the_archive(user: Path) -> None:
    state = torch.load(user / "net.pth", weights_only=True)
    torch.save({f"module.{key}": value for key, value in state.items()}, user / "net.pth")
    result = run("--arch", "my_model.py:Net", *NETWORK)
    assert result.exit_code == 0, repr(result.exception)
    assert 'note: the prefix "module." was taken off all 4 names' in result.output
    bundle = archive.read_json(user / "store/own-1.0.mar", "marsmith.json")
    assert len(bundle["provenance"]["notes"]) == 1


def test_what_is_left_out_of_a_package_is_noted(user: Path) -> None:
    (user / "mynet/best.pth").touch()
    (user / "mynet/large.json").write_bytes(bytes(sources.LARGEST + 1))
    (user / "mynet/config.yaml").touch()
    (user / "mynet/linked").symlink_to(user)
    (note,) = sources.copy(user / "mynet", user / "copy")
    assert note.endswith("mynet/best.pth, mynet/large.json, mynet/linked")
    assert (user / "copy/mynet/config.yaml").is_file()


@pytest.mark.parametrize(
    ("place", "line", "words"),
    [
        ("mynet/models.py", "import parts", "imports parts, which lies in the package mynet"),
        ("mynet/models.py", "from mynet.parts import json", "imports mynet, .* relative import"),
        ("mynet/models.py", "import random", "imports random, .* would shadow or miss another"),
        ("my_model.py", "from random import seed", "random, which lies beside it .* does not trav"),
        ("my_model.py", "import mynet", "imports mynet, which lies beside it"),
        ("my_model.py", "import nowhere_at_all", "imports nowhere_at_all, which is neither in"),
        ("mynet/models.py", "from . import missing", "cannot import name 'missing'"),
        ("mynet/models.py", "from .missing import x", r"imports mynet\.missing, which is neither"),
        ("my_model.py", "1 / 0", "my_model.py cannot be imported: ZeroDivisionError"),
        ("my_model.py", "def", "my_model.py is not Python"),
    ],
)
def test_an_import_that_would_fail_in_the_archive_stops_the_build(
    user: Path, place: str, line: str, words: str
) -> None:
    (user / "mynet/random.py").write_text("seed = 3\n")
    (user / "random.py").write_text("seed = 3\n")
    (user / place).write_text(NET.format(imports=line))
    result = run("--arch", "my_model.py:Net" if place == "my_model.py" else "mynet:Net", *NETWORK)
    assert isinstance(result.exception, MarsmithError)
    with pytest.raises(MarsmithError, match=words):
        raise result.exception
    assert not list((user / "store").iterdir())


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--weights", "net.pth", *OWN), "give --arch with --weights"),
        (("--arch", "my_model.py:Net", *OWN), "--weights is missing"),
        (("--arch", "my_model.py:Net", "--weights", "net.pth", *OWN[2:]), "--name is missing"),
        (("--arch", "my_model.py:Net", "--weights", "no.pth", *OWN), "no file no.pth"),
        (("--arch", "my_model.py:Net", "--weights", "net.pth", *OWN[:4]), "--labels is missing"),
        (("--arch", "my_model.py:Net", *NETWORK, "--arg", "x"), "--arg 'x': write KEY=VALUE"),
        (
            ("--arch", "my_model.py:Net", *NETWORK, "--decode", "floor"),
            "--decode 'floor': write KEY=VALUE",
        ),
        (("--arch", "my_model.py:Net", *NETWORK, "--decode", "x=1"), "decode has the unknown key"),
        (("--artifact", "net.pth", *OWN, "--decode", "x=1"), "--decode goes with --arch alone"),
        (("--arch", "my_model.py:Net", *NETWORK, "--save-yaml", "no/m.yaml"), "no folder"),
        (("--arch", "my_model.py:Net", *NETWORK, "--save-yaml", "labels.txt"), "something else"),
        (("--arch", "my_model.py:Net", *NETWORK, "--layout", "nhwc"), "goes with --artifact"),
        (("--artifact", "net.pth", *NETWORK), "goes with --arch alone"),
        (
            ("--artifact", "net.pth", *OWN, *SQUARE),
            r"no runtime here reads net\.pth: files are \.onnx, \.pt, \.pt2, \.xml: rename",
        ),
        (
            ("--artifact", "net.pth", *OWN, *SQUARE, "--outputs", "logits", "--runtime", "eager"),
            r"eager loads no \.pth file of others; those that do: none.* --arch with --weights",
        ),
        (("mobilenet_v2", "--labels", "labels.txt"), "--labels makes a model without a file"),
        (("--arch", "other:Net", *NETWORK), "no package folder .*other: it needs an __init__.py"),
        (("--arch", "torchvision:resnet17", *NETWORK), "no resnet17 .*did you mean resnet1"),
        (
            ("--arch", "torchvision:resnet18", *NETWORK, "--task", "object-detection"),
            "--task object-detection: torchvision's resnet18 is a network for image-classific",
        ),
        (("--arch", "my_model.py:Net", *NETWORK, "--num-classes", "3"), "num_classes"),
        (
            ("--arch", "my_model.py:Net", *NETWORK, "--arg", "day=2024-13-01"),
            "--arg day=2024-13-01: '2024-13-01' is no YAML value: month must be in 1..12",
        ),
        (
            ("--arch", "my_model.py:Net", *NETWORK, "--arg", "x=[1"),
            r"--arg x=\[1: '\[1' is no YAML value: while parsing a flow sequence .* expected ','",
        ),
        (("--arch", "my_model.py:Net", *NETWORK, "--arg", "classes=3"), "are of 2 classes"),
        (
            ("--arch", "my_model.py:Net", *NETWORK[:2], "--arg", "width=7", *NETWORK[4:]),
            "another architecture",
        ),
        (
            ("--arch", "my_model.py:Net", *NETWORK, "--arg", "width=7"),
            "--arg 'width=7': width is 6 already: give it once",
        ),
        (
            ("--arch", "my_model.py:Net", *NETWORK, "--decode", "x=1", "--decode", "x=1"),
            "--decode 'x=1': x is 1 already: give it once",
        ),
        (
            ("--arch", "my:Net", *NETWORK, "--arg", "num_classes=5", "--num-classes", "2"),
            "--num-classes 2 is short for --arg num_classes=2, and there is --arg num_classes=5",
        ),
        (("--arch", "torchvision:resnet18", *NETWORK), "resnet18 with arguments .*width"),
        (
            ("--arch", "my_model.py:Net", "--weights", "net.pth", *OWN),
            "input: say what becomes of a picture",
        ),
    ],
)
def test_a_mistake_on_the_command_line_is_named(
    user: Path, arguments: tuple[str, ...], words: str
) -> None:
    result = run(*arguments)
    assert isinstance(result.exception, MarsmithError), result.output
    with pytest.raises(MarsmithError, match=words):
        raise result.exception


def test_too_many_labels_are_counted(user: Path) -> None:
    labelled(user, 1000)
    with pytest.raises(BuildError, match="1000 labels for a network with 2 classes"):
        raise run("--arch", "my_model.py:Net", *NETWORK).exception or AssertionError
    arguments = {"arch": "torchvision:resnet18", "num_classes": 2, "name": "m"}
    arguments |= {"weights": "net.pth", "labels": "labels.txt", "task": "image-classification"}
    keys, _ = own.fields(arguments, user, PROJECT)
    with pytest.raises(BuildError, match="1000 labels for num_classes 2"):
        preparing.bundle_of(spec.parse(keys, "m"), PROJECT, [], weights=user / "net.pth")


SEGMENTER = """
from torch import nn

class Net(nn.Module):
    def __init__(self, classes=3):
        super().__init__()
        self.conv = nn.Conv2d(3, classes, 1)

    def forward(self, x):
        return {"out": self.conv(x)}
"""
DETECTOR = """
from torchvision.models.detection import ssdlite320_mobilenet_v3_large

def Net():
    return ssdlite320_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=11)
"""


def segmenter(folder: Path, classes: int, labels: int) -> Result:
    (folder / "my_model.py").write_text(SEGMENTER)
    state = {"conv.weight": 9 * torch.randn(classes, 3, 1, 1), "conv.bias": torch.zeros(classes)}
    torch.save(state, folder / "net.pth")
    labelled(folder, labels)
    words = ("--weights", "net.pth", "--arg", f"classes={classes}", "--resize", "32,32")
    words += ("--task", "semantic-segmentation", "--runtime", "eager")
    return run("--name", "own", "--arch", "my_model.py:Net", "--labels", "labels.txt", *words)


@pytest.mark.parametrize(
    ("classes", "labels", "words"),
    [
        (3, 1000, "1000 labels: task semantic-segmentation can tell 256 classes apart"),
        (3, 4, "4 labels for a network with 3 classes: list exactly 3 labels"),
        (3, 2, "2 labels for a network with 3 classes"),
        (257, 257, "257 labels: task semantic-segmentation can tell 256 classes apart"),
        (257, 256, "256 labels for a network with 257 classes"),
    ],
)
def test_a_segmenter_has_as_many_labels_as_classes_and_no_more_than_bytes(
    user: Path, classes: int, labels: int, words: str
) -> None:
    result = segmenter(user, classes, labels)
    assert isinstance(result.exception, BuildError), result.output
    assert words in str(result.exception)


def test_two_classes_of_one_label_are_refused_where_labels_tell_masks_apart(user: Path) -> None:
    """As run lengths, whose keys are labels, one of them would be lost."""
    result = segmenter(user, 3, 3)
    assert result.exit_code == 0, repr(result.exception)
    task = {"task": "semantic-segmentation", "labels": ["road", "car", "road"]}
    made = {"name": "m", "architecture": "my_model.py:Net", "weights": {"file": "net.pth"}, **task}
    with pytest.raises(BuildError, match="road more than once"):
        resolve.labels(spec.parse(made, "m"), user)


def test_a_segmenter_of_as_many_classes_as_there_are_bytes_is_built(user: Path) -> None:
    result = segmenter(user, 256, 256)
    assert result.exit_code == 0, repr(result.exception)


@pytest.mark.parametrize("labels", [10, 12, 1000])
def test_a_detector_has_as_many_labels_as_classes(user: Path, labels: int) -> None:
    (user / "my_model.py").write_text(DETECTOR)
    labelled(user, labels)
    weights = PROJECT / "weights/ssdlite_shapes.pth"
    words = ("--task", "object-detection", "--runtime", "eager", "--weights", weights)
    words += ("--samples", PROJECT / "samples/scenes", "--labels", "labels.txt", "--resize", "320")
    result = run("--name", "own", "--arch", "my_model.py:Net", *words)
    assert isinstance(result.exception, BuildError), result.output
    assert f"{labels} labels for a network with 11 classes" in str(result.exception)


LISTED = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, images):
        found = []
        for image in images:
            _, height, width = image.shape
            box = torch.tensor([[0.0, 0.0, width / 2, height / 2]])
            score = torch.sigmoid(self.weight * (image[0].mean() - image[2].mean()) * 9)
            found.append({"boxes": box, "scores": score, "labels": torch.tensor([1])})
        return found
"""


def test_a_detector_that_lists_dictionaries_is_built_from_options_alone(user: Path) -> None:
    (user / "my_model.py").write_text(LISTED)
    torch.save({"weight": torch.ones(1)}, user / "net.pth")
    words = ("--name", "own", "--arch", "my_model.py:Net", "--weights", "net.pth")
    words += ("--task", "object-detection", "--labels", "labels.txt", "--runtime", "eager")
    result = run(*words)
    assert isinstance(result.exception, MarsmithError), result.output
    assert "has no score_thresh, detections_per_img as torchvision's have" in str(result.exception)
    said = ("--decode", "score_floor=null", "--decode", "max_detections=null")
    assert f"({' '.join(said)})" in str(result.exception)
    result = run(*words, *said, "--save-yaml", "own.yaml")
    assert result.exit_code == 0, repr(result.exception)
    bundle = archive.read_json(user / "store/own-1.0.mar", "marsmith.json")
    assert bundle["decode"] == {"score_floor": 0.0, "nms_iou": None, "max_detections": None}
    kept = "decode:\n  score_floor: null\n  max_detections: null\n"
    assert kept in (user / "own.yaml").read_text()


def test_a_number_of_classes_that_is_none_is_refused(user: Path) -> None:
    words = ("--weights", "net.pth", *OWN)
    result = run("--arch", "torchvision:resnet18", *words, "--num-classes", "two")
    assert result.exit_code == 2
    assert "'two' is not a valid integer" in result.output
    result = run("--arch", "torchvision:resnet18", *words, "--arg", "num_classes=two")
    assert isinstance(result.exception, SpecError)
    assert "'two' is not how many classes there are: write a whole number from 1" in str(
        result.exception
    )


@pytest.mark.parametrize(
    ("name", "argument"),
    [("vit_b_16", "image_size=7"), ("resnet18", "norm_layer=x")],
)
def test_arguments_that_a_builder_of_torchvision_cannot_use_are_named(
    user: Path, name: str, argument: str
) -> None:
    words = ("--weights", "net.pth", "--num-classes", "2", "--arg", argument, *OWN)
    result = run("--arch", f"torchvision:{name}", *words)
    assert isinstance(result.exception, MarsmithError), repr(result.exception)
    assert argument.partition("=")[0] in str(result.exception)


def test_a_whole_pickled_model_says_how_to_save_its_weights(user: Path) -> None:
    for content in (nn.Linear(2, 2), {"model": nn.Linear(2, 2)}):
        torch.save(content, user / "net.pth")
        result = run("--arch", "my_model.py:Net", *NETWORK)
        words = str(result.exception)
        assert "a pickled object of torch.nn.modules.linear.Linear, such as a whole model" in words
        assert "save it with torch.save(model.state_dict(), path)" in words


@pytest.mark.parametrize(
    ("architecture", "wanted"),
    [
        ("resnet18", {"resize": 256, "crop": 224}),
        ("lraspp_mobilenet_v3_large", {"resize": 520}),
        ("ssdlite320_mobilenet_v3_large", {"mean": [0.0] * 3, "std": [1.0] * 3}),
    ],
)
def test_torchvisions_architectures_bring_their_preset(
    user: Path, architecture: str, wanted: dict[str, Any]
) -> None:
    given = {"name": "m", "task": "t", "arch": f"torchvision:{architecture}"}
    given |= {"weights": "net.pth", "labels": "labels.txt"}
    keys, (note,) = own.fields(given, user, PROJECT)
    assert wanted.items() <= keys["input"].items()
    assert "input: as the preset of torchvision's " in note
    keys, (note,) = own.fields({**given, "resize": [64, 64]}, user, PROJECT)
    assert keys["input"]["resize"] == [64, 64]
    assert "crop" not in keys["input"]


def test_what_a_network_of_ones_own_leaves_unsaid_is_said(user: Path) -> None:
    given = {"name": "m", "task": "t", "arch": "my_model.py:Net", "resize": 9}
    given |= {"weights": "net.pth", "labels": "labels.txt"}
    assert own.fields(given, user, PROJECT)[1] == [
        "input: mean and std of ImageNet, for none were given"
    ]
    assert own.fields({**given, "mean": [0.0], "std": [1.0]}, user, PROJECT)[1] == []
    detector = {**given, "task": "object-detection", "std": [0.2] * 3}
    assert own.fields(detector, user, PROJECT)[1] == [
        "input: mean [0.0, 0.0, 0.0] of task object-detection, for none were given"
    ]


def test_paths_are_relative_to_the_caller_and_to_the_project_in_a_model_file() -> None:
    assert model_options.place(PROJECT / "weights/../models/x.yaml", PROJECT) == "models/x.yaml"
    assert model_options.place(Path("/elsewhere/x.yaml"), PROJECT) == "/elsewhere/x.yaml"


# What a network gives -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("end", "words"),
    [
        ("nn.Softmax(1)", "softmax is applied to what it gives: leave out the softmax at its end"),
        ("nn.Linear(2, 1)", "one class alone, as one with a sigmoid at its end"),
    ],
)
def test_a_network_that_gives_no_logits_is_told(user: Path, end: str, words: str) -> None:
    (user / "ends.py").write_text(
        "from torch import nn\n\ndef Net():\n"
        f"    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 2), {end})\n"
    )
    module = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 2), eval(end))
    torch.save(module.state_dict(), user / "ends.pth")
    result = run(
        "--arch", "ends.py:Net", "--weights", "ends.pth", "--runtime", "eager", *OWN, *SQUARE
    )
    assert result.exit_code
    assert words in str(result.exception)


def test_a_segmenter_that_gives_probabilities_is_told(user: Path) -> None:
    (user / "ends.py").write_text(
        "from torch import nn\n\ndef Net():\n"
        "    return nn.Sequential(nn.Conv2d(3, 2, 1), nn.Softmax(1))\n"
    )
    torch.save(nn.Sequential(nn.Conv2d(3, 2, 1)).state_dict(), user / "ends.pth")
    words = ("--arch", "ends.py:Net", "--weights", "ends.pth", "--runtime", "eager", *OWN, *SQUARE)
    result = run(*words, "--task", "semantic-segmentation")
    assert "leave out the softmax at its end" in str(result.exception)


GIVES = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 2, 1)

    def forward(self, x):
        {before}
        y = self.conv({x})
        logits = y.mean((2, 3))
        return {gives}
"""
LOGITS = "image-classification is of the form pixels (N, C, H, W) -> logits (N, classes)"
PLANES = "semantic-segmentation is of the form pixels (N, C, H, W) -> logits (N, classes, H, W)"
BOXES = (
    r"object-detection .* a list of pixels (C, H, W) -> a list of {boxes (K, 4) xyxy in them, sco"
)


@pytest.mark.parametrize(
    ("gives", "came", "wanted"),
    [
        ("{'logits': logits}", "{logits: tensor (1, 2)}", LOGITS),
        ("(logits, logits)", "(tensor (1, 2), tensor (1, 2))", LOGITS),
        ("logits[:, :, None, None]", "tensor (1, 2, 1, 1)", LOGITS),
        ("(y, y)", "(tensor (1, 2, 32, 32), tensor (1, 2, 32, 32))", PLANES),
        ("{'logits': y}", "{logits: tensor (1, 2, 32, 32)}", PLANES),
        ("logits", "tensor (1, 2)", PLANES),
        ("[{'bbox': logits}]", "[{bbox: tensor (1, 2)}]", BOXES),
        ("logits", "tensor (1, 2)", BOXES),
    ],
)
def test_a_network_that_gives_something_else_is_told_what_its_task_wants(
    user: Path, gives: str, came: str, wanted: str
) -> None:
    task = wanted.partition(" ")[0]
    x = "torch.stack(x)" if wanted is BOXES else "x"
    (user / "gives.py").write_text(GIVES.format(gives=gives, x=x, before="pass"))
    state = {"conv.weight": torch.randn(2, 3, 1, 1), "conv.bias": torch.zeros(2)}
    torch.save(state, user / "gives.pth")
    fields = {
        "name": "m",
        "task": task,
        "architecture": "gives.py:Net",
        "weights": {"file": "gives.pth"},
        "labels": ["cat", "dog"],
        "input": {"resize": [32, 32]},
        "samples": str(PROJECT / "samples/shapes"),
        "runtime": "eager",
    }
    if wanted is BOXES:
        fields["decode"] = dict.fromkeys(("score_floor", "nms_iou", "max_detections"))
    (user / "archive").mkdir()
    with pytest.raises(SpecError) as refused:
        build._stage(spec.parse(fields, "m"), user, user / "archive", lambda stage: None)
    assert f"the network gives {came}" in str(refused.value)
    assert re.search(".*".join(map(re.escape, wanted.split(".*"))), str(refused.value))
    assert "input:" not in str(refused.value)


def test_a_network_of_one_input_size_is_told_to_say_it(user: Path) -> None:
    """Also where all samples have that size: other pictures are resized to another shape."""
    before = "assert x.shape[2:] == (32, 32), 'only 32x32'"
    (user / "gives.py").write_text(GIVES.format(gives="logits", x="x", before=before))
    state = {"conv.weight": torch.randn(2, 3, 1, 1), "conv.bias": torch.zeros(2)}
    torch.save(state, user / "gives.pth")
    (user / "squares").mkdir()
    for path in (PROJECT / "samples/shapes").glob("*.jpg"):
        Image.open(path).resize((64, 64)).save(user / "squares" / path.name)
    words = ("--arch", "gives.py:Net", "--weights", "gives.pth", "--runtime", "eager", *OWN)
    result = run(*words, "--samples", "squares", "--resize", "32")
    assert isinstance(result.exception, SpecError), repr(result.exception)
    assert "input: the network fails on pixels of shape (47, 32, 3)" in str(result.exception)
    assert "say resize: [height, width]" in str(result.exception)
    assert "only 32x32" in str(result.exception)


@pytest.mark.parametrize("arguments", [{}, {"transform_input": True}])
def test_what_no_state_dict_tells_must_be_said(arguments: dict[str, bool]) -> None:
    fields = {"name": "m", "task": "image-classification", "arguments": arguments}
    fields |= {"architecture": "torchvision:inception_v3", "weights": {"file": "cats.pth"}}
    model, network = spec.parse(fields, "m"), nn.Module()
    preparing.check_flags(model, network)
    # As Inception v3 and GoogLeNet have it.
    network.transform_input = False  # type: ignore[assignment]
    if arguments:
        preparing.check_flags(model, network)
        return
    with pytest.raises(SpecError, match="say --arg transform_input=true where yours was"):
        preparing.check_flags(model, network)
    theirs = model.model_copy(update={"weights": WeightsSpec(torchvision="IMAGENET1K_V1")})
    preparing.check_flags(theirs, network)
