"""A model of one's own: from options alone, from one's own source, from the artifact of others."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
import torchvision
from click.testing import CliRunner, Result
from PIL import Image
from torch import Tensor, nn

from handlers import plugins
from handlers.errors import BuildError, ExportError, MarsmithError, ParityError, SpecError
from handlers.foreign import Contract, Foreign, flatten, meaning_of
from handlers.inputs import ImageInput
from handlers.integrity import sha256
from marsmith import archive, build, cli, fitting, own, sources, spec

PROJECT = Path(__file__).parents[2]
RNG = np.random.default_rng(0)


def noise(width: int, height: int) -> Image.Image:
    return Image.fromarray(RNG.integers(0, 256, (height, width, 3), dtype=np.uint8))


# Preprocessing as OpenCV does it -------------------------------------------------------------


@pytest.mark.parametrize("size", [(640, 480), (64, 48), (37, 200), (31, 31), (1, 9), (224, 224)])
@pytest.mark.parametrize("target", [[224, 224], [96, 160]])
def test_without_antialias_pixels_are_those_of_cv2(
    size: tuple[int, int], target: list[int]
) -> None:
    picture = noise(*size)
    made = ImageInput("bgr", target, antialias=False).prepare(picture)
    bgr = np.asarray(picture)[:, :, ::-1]
    wanted = cv2.resize(bgr, (target[1], target[0]), interpolation=cv2.INTER_LINEAR)
    assert made.shape == wanted.shape
    assert np.abs(made.astype(int) - wanted).max() <= 1
    assert (made != wanted).mean() < 0.2


def test_without_antialias_a_crop_is_the_middle_of_the_whole() -> None:
    picture = noise(90, 70)
    whole = ImageInput(resize=[50, 60], antialias=False).prepare(picture)
    part = ImageInput(resize=[50, 60], crop=[20, 40], antialias=False).prepare(picture)
    assert np.array_equal(part, whole[15:35, 10:50])
    grey = ImageInput("gray", [50, 60], antialias=False).prepare(picture)
    assert grey.shape == (50, 60, 1)


def cv2_letterbox(bgr: Any, height: int, width: int, level: int) -> Any:
    ratio = min(height / bgr.shape[0], width / bgr.shape[1])
    inner = round(bgr.shape[1] * ratio), round(bgr.shape[0] * ratio)
    dw, dh = (width - inner[0]) / 2, (height - inner[1]) / 2
    made = cv2.resize(bgr, inner, interpolation=cv2.INTER_LINEAR)
    around = round(dh - 0.1), round(dh + 0.1), round(dw - 0.1), round(dw + 0.1)
    return cv2.copyMakeBorder(made, *around, cv2.BORDER_CONSTANT, value=(level,) * 3)


LETTERBOX = ImageInput("bgr", [96, 128], antialias=False, letterbox=114)


@pytest.mark.parametrize("size", [(300, 200), (200, 300), (17, 11), (500, 40), (128, 96)])
def test_a_letterbox_is_that_of_the_usual_detectors(size: tuple[int, int]) -> None:
    picture = noise(*size)
    wanted = cv2_letterbox(np.asarray(picture)[:, :, ::-1], 96, 128, 114)
    made = LETTERBOX.prepare(picture)
    assert made.shape == wanted.shape
    assert np.abs(made.astype(int) - wanted).max() <= 1


@pytest.mark.parametrize("given", [LETTERBOX, ImageInput(resize=80, crop=64), ImageInput()])
def test_boxes_come_back_to_where_they_are_in_the_picture(given: ImageInput) -> None:
    canvas = np.zeros((200, 300, 3), np.uint8)
    canvas[80:120, 130:190] = 255
    picture = Image.fromarray(canvas)
    rows, columns = np.nonzero(given.prepare(picture)[:, :, 0] > 180)
    box = np.array([[columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]], np.float32)
    back = given.boxes_in_picture(box, picture.size)
    assert np.abs(back - [[130, 80, 190, 120]]).max() <= 3
    outside = given.boxes_in_picture(np.array([[-999.0, -999, 9999, 9999]]), picture.size)
    if given != ImageInput():
        assert outside.tolist() == [[0, 0, 300, 200]]


def test_a_plane_loses_what_is_around_the_letterbox() -> None:
    plane = np.zeros((48, 64), np.uint8)
    plane[:, 16:48] = 1
    # 100x150 becomes 64x96 with 32 columns of grey on both sides, here at half the resolution.
    assert LETTERBOX.plane_in_picture(plane, (100, 150)).tolist() == np.ones((48, 32)).tolist()
    grey = ImageInput("gray", [96, 128], letterbox=7).prepare(Image.new("RGB", (10, 10), "white"))
    assert (grey[0, 0, 0], grey[50, 64, 0]) == (7, 255)
    assert ImageInput(resize=[96, 128]).plane_in_picture(plane, (100, 150)) is plane


# Outputs of the artifacts of others ----------------------------------------------------------


class Fake:
    """A runtime whose artifact always gives the same outputs, and keeps what it was given."""

    def __init__(self, **outputs: Any) -> None:
        self.outputs = {name.strip("_"): np.asarray(value) for name, value in outputs.items()}
        self.fed: Any = None

    def named(self, images: Any) -> dict[str, Any]:
        self.fed = images
        return self.outputs


def foreign(
    task: str, runtime: Fake, outputs: dict[str, Any], labels: int = 3, **contract: Any
) -> Foreign:
    meaning = meaning_of(outputs, plugins.load_task(task).meanings)
    given = ImageInput(mean=(0.5, 0.25, 0.0), std=(0.5, 1.0, 2.0))
    return Foreign(runtime, Contract(outputs=outputs, **contract), given, meaning, labels)  # type: ignore[arg-type]


PIXELS = RNG.integers(0, 256, (1, 40, 60, 3), dtype=np.uint8)


@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
def test_pixels_become_what_the_artifact_takes(layout: str) -> None:
    runtime = Fake(_0=[[0.0, 1.0, 2.0]])
    foreign("image-classification", runtime, {"logits": None}, layout=layout)(PIXELS)
    wanted = (PIXELS / 255 - [0.5, 0.25, 0.0]) / [0.5, 1.0, 2.0]
    wanted = wanted.transpose(0, 3, 1, 2) if layout == "nchw" else wanted
    assert runtime.fed.dtype == np.float32
    assert runtime.fed.flags.c_contiguous
    np.testing.assert_allclose(runtime.fed, wanted, atol=1e-6)


def test_uint8_pixels_are_left_as_they_are_and_scale_divides() -> None:
    runtime = Fake(_0=[[0.0, 1.0, 2.0]])
    foreign("image-classification", runtime, {"logits": None}, layout="nhwc", dtype="uint8")(PIXELS)
    assert np.array_equal(runtime.fed, PIXELS)
    foreign("image-classification", runtime, {"logits": None}, layout="nhwc", scale=1.0)(PIXELS)
    np.testing.assert_allclose(runtime.fed[..., 2], PIXELS[..., 2] / 2)


def test_logits_and_probabilities_give_the_same_scores() -> None:
    logits = np.array([[1.0, 3.0, 2.0]], np.float32)
    scores = np.exp(logits) / np.exp(logits).sum()
    for name, value in (("logits", logits), ("probabilities", scores)):
        (made,) = foreign("image-classification", Fake(out=value), {name: "out"})(PIXELS)
        np.testing.assert_allclose(made, scores, atol=1e-6)
        assert made.dtype == np.float32


def test_a_segmenter_gives_logits_or_ids() -> None:
    logits = RNG.normal(size=(1, 3, 4, 5)).astype(np.float32)
    first = foreign("semantic-segmentation", Fake(out=logits), {"logits": "out"})(PIXELS)
    for plane in (logits.argmax(1), logits.argmax(1)[:, None].astype(np.float32)):
        ids, confidence = foreign("semantic-segmentation", Fake(out=plane), {"ids": None})(PIXELS)
        assert np.array_equal(ids, first[0])
        assert (ids.dtype, confidence.dtype, confidence.min()) == (np.uint8, np.uint8, 255)


BOXES = {"boxes": [[0.1, 0.25, 0.5, 1.0]], "scores": [0.9], "labels": [2]}


@pytest.mark.parametrize("batch_axis", [True, False])
def test_a_detector_gives_named_boxes_in_pixels_or_parts_of_the_input(batch_axis: bool) -> None:
    runtime = Fake(
        **{k: np.float32([v]) if batch_axis else np.float32(v) for k, v in BOXES.items()}
    )
    outputs = {"boxes": "boxes", "scores": None, "labels": None}
    settings = {"normalised": True, "label_offset": -1}
    boxes, scores, labels = foreign("object-detection", runtime, outputs | settings)(PIXELS)
    np.testing.assert_allclose(boxes, [[[6, 10, 30, 40]]], rtol=1e-6)
    assert (scores.shape, labels.tolist()) == ((1, 1), [[1]])
    plain = foreign("object-detection", runtime, {})(PIXELS)
    np.testing.assert_allclose(plain[0], [BOXES["boxes"]])
    assert plain[2].tolist() == [[2]]


@pytest.mark.parametrize(
    ("task", "outputs", "given", "words"),
    [
        ("image-classification", {"logits": "y"}, {"x": [[1, 2, 3]]}, "gives x (1, 3)"),
        ("image-classification", {"logits": None}, {"x": [[1]], "y": [[2]]}, "x (1, 1), y (1, 1)"),
        ("image-classification", {"logits": None}, {"x": [[1.0, 2]]}, "2 classes .* 3 labels"),
        ("image-classification", {"logits": None}, {"x": [1.0, 2, 3]}, "logits are (N, classes)"),
        ("image-classification", {"probabilities": None}, {"x": [[1, 2, 3]]}, "say logits"),
        ("image-classification", {"probabilities": None}, {"x": [1.0]}, "are (N, classes)"),
        ("semantic-segmentation", {"ids": None}, {"x": [[[0, 3]]]}, "0.0 to 3.0, ids of 3 labels"),
        ("semantic-segmentation", {"ids": None}, {"x": [[[0, 0.5]]]}, "ids of 3 labels are whole"),
        ("semantic-segmentation", {"ids": None}, {"x": [[1]]}, "ids are (N, H, W)"),
        ("object-detection", {}, BOXES | {"labels": [3]}, "3 to 3, there are 3, .* label_offset"),
        ("object-detection", {}, BOXES | {"scores": [[0.9, 0.8]]}, "boxes are (1, 1, 4)"),
    ],
)
def test_outputs_that_are_not_what_the_spec_says_are_named(
    task: str, outputs: dict[str, Any], given: dict[str, Any], words: str
) -> None:
    model = foreign(task, Fake(**{k: np.asarray(v, np.float32) for k, v in given.items()}), outputs)
    with pytest.raises(ValueError, match=words.replace("(", r"\(").replace(")", r"\)")):
        model(PIXELS)


def test_outputs_of_torch_modules_get_names() -> None:
    one, two = torch.ones(2, 3), torch.zeros(2)
    assert list(flatten(one)) == ["0"]
    assert list(flatten((one, two))) == ["0", "1"]
    assert list(flatten({"out": one, "aux": one})) == ["out", "aux"]
    each = [{"boxes": torch.ones(3, 4)}, {"boxes": torch.ones(0, 4)}]
    for outputs in (each, ({}, each)):
        boxes = flatten(outputs)["boxes"]
        assert (boxes.shape, boxes[1].max()) == ((2, 3, 4), 0)


# The model file ------------------------------------------------------------------------------

ARTIFACT: dict[str, Any] = {
    "name": "m",
    "task": "image-classification",
    "artifact": {"file": "m.pt"},
    "outputs": "logits",
    "input": {"resize": [32, 32], "mean": [0, 0, 0], "std": [1, 1, 1]},
}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"architecture": "torchvision:resnet18"}, "architecture: not for an artifact of others"),
        ({"decode": {}}, "decode: not for an artifact"),
        ({"input": {"resize": 3}}, "say mean and std of the artifact"),
        ({"input": {"dtype": "uint8", "mean": [0, 0, 0]}}, "not applied to dtype uint8"),
        ({"input": {"scale": 0.00392156862745098}}, "input.scale: .* 1"),
        ({"input": {"layout": "cnhw"}}, "input.layout"),
        ({"input": {"letterbox": 114, "resize": 640}}, "letterbox needs resize: .height, width."),
        ({"input": {"antialias": False, "interpolation": "bicubic"}}, "for interpolation bilinear"),
        ({"input": {"backend": "tensor", "interpolation": "lanczos"}}, "bilinear or bicubic with"),
        (
            {"input": {"backend": "tensor", "antialias": False}},
            "bilinear or bicubic with antialias",
        ),
        ({"outputs": "boxes"}, "says boxes: accepted .* logits or probabilities"),
        ({"outputs": {}}, "outputs says nothing: accepted"),
        ({"outputs": {"logits": 0}}, "outputs.logits: 0 is not of type str"),
        ({"artifact": {"file": "m.abc"}}, "runtime torchscript loads no .abc file"),
        ({"task": "object-detection", "outputs": {"boxes": None}}, "boxes, scores, labels .and"),
    ],
)
def test_what_an_artifact_needs_is_said(changes: dict[str, Any], words: str) -> None:
    assert spec.parse(ARTIFACT, "m").outputs == {"logits": None}
    with pytest.raises(SpecError, match=words):
        spec.parse(ARTIFACT | changes, "m")


def test_a_network_of_marsmith_has_no_layout_of_its_own() -> None:
    plain = {"architecture": "torchvision:resnet18", "weights": {"file": "w"}, "name": "m"}
    for more in ({"outputs": "logits"}, {"input": {"layout": "nhwc"}}):
        with pytest.raises(SpecError, match="are of an artifact that others exported"):
            spec.parse({**plain, "task": "image-classification", **more}, "m")


# Weights that do not fit ---------------------------------------------------------------------


def resnet(classes: int) -> nn.Module:
    made: nn.Module = torchvision.models.resnet18(num_classes=classes)
    return made


def refusal(state: dict[str, Tensor], network: nn.Module, classes: int | None = None) -> str:
    with pytest.raises(MarsmithError) as refused:
        fitting.check(state, network, "torchvision:resnet18", classes)
    return str(refused.value)


def test_another_number_of_classes_is_said_with_both() -> None:
    words = refusal(resnet(5).state_dict(), resnet(2))
    assert "the weights are of 5 classes (found: fc.bias (5,))" in words
    assert "built with 2 (expected: (2,)): say num_classes 5" in words


def test_a_detectors_classes_are_counted_through_its_boxes() -> None:
    class Head(nn.Module):
        def __init__(self, classes: int) -> None:
            super().__init__()
            self.scores, self.boxes = nn.Linear(8, 6 * classes), nn.Linear(8, 24 * classes)

    assert "of 5 classes" in refusal(Head(5).state_dict(), Head(2), 2)
    assert "built with 2" in refusal(Head(5).state_dict(), Head(2), 2)


def test_weights_of_another_architecture_are_said_to_be() -> None:
    other = torchvision.models.squeezenet1_1(num_classes=2).state_dict()
    words = refusal(other, resnet(2))
    assert "the weights need another architecture than torchvision:resnet18" in words
    assert "0 of the network's 102 tensors" in words
    layers = nn.ModuleDict({"first": nn.Linear(4, 8), "last": nn.Linear(8, 2)})
    wider = nn.ModuleDict({"first": nn.Linear(4, 16), "last": nn.Linear(16, 2)})
    words = refusal(wider.state_dict(), layers)
    assert "of another shape: first.bias (16,), not (8,)" in words


def test_prefixes_of_training_tools_are_taken_off_and_noted() -> None:
    state = resnet(2).state_dict()
    wrapped = {f"module.model.{key}": value for key, value in state.items()}
    taken, notes = fitting.unwrapped(wrapped, resnet(2))
    assert taken.keys() == state.keys()
    assert notes == [
        'the prefix "module." was taken off all 122 names of the weights',
        'the prefix "model." was taken off all 122 names of the weights',
    ]
    assert fitting.unwrapped(state, resnet(2)) == (state, [])


def test_a_lightning_checkpoint_with_more_in_it_gets_a_hint() -> None:
    state = {f"net.{key}": value for key, value in resnet(2).state_dict().items()}
    words = refusal({**state, "loss.weight": torch.ones(2)}, resnet(2))
    assert 'names begin with "net.": keep those alone' in words


# Source of one's own -------------------------------------------------------------------------

NET = """
import torch
from torch import nn
{imports}

class Net(nn.Module):
    def __init__(self, width=4, classes=2):
        super().__init__()
        self.conv = nn.Conv2d(3, width, 3)
        self.linear = nn.Linear(width, classes)

    def forward(self, x):
        return self.linear(torch.relu(self.conv(x)).mean((2, 3)))
"""


@pytest.fixture
def user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of somebody who has a network, weights and labels, and stands in it."""
    folder = tmp_path / "user"
    (folder / "mynet").mkdir(parents=True)
    (folder / "my_model.py").write_text(NET.format(imports=""))
    (folder / "mynet/__init__.py").write_text("from .models import Net\n")
    (folder / "mynet/models.py").write_text(NET.format(imports="from . import parts"))
    (folder / "mynet/parts.py").write_text("import json\n")
    (folder / "labels.txt").write_text("cat\ndog\n")
    torch.manual_seed(3)
    state = {
        "conv.weight": torch.randn(6, 3, 3, 3),
        "conv.bias": torch.zeros(6),
        "linear.weight": torch.randn(2, 6) * 0.3,
        "linear.bias": torch.zeros(2),
    }
    torch.save(state, folder / "net.pth")
    monkeypatch.setenv("MARSMITH_CALLER", str(folder))
    monkeypatch.chdir(PROJECT)
    monkeypatch.setattr(build.smoke, "prepared", lambda: nullcontext(lambda path: None))
    return folder


def run(*arguments: str | Path) -> Result:
    command = ["build", *map(str, arguments), "--store", "store"]
    return CliRunner().invoke(cli.group, command)


OWN = ("--name", "own", "--task", "image-classification", "--labels", "labels.txt")
SQUARE = ("--resize", "32,32", "--mean", "0.5,0.5,0.5", "--std", "0.2,0.2,0.2")
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
        (("--arch", "my_model.py:Net", *NETWORK, "--arg", "x"), "write KEY=VALUE"),
        (("--arch", "my_model.py:Net", *NETWORK, "--layout", "nhwc"), "goes with --artifact"),
        (("--artifact", "net.pth", *NETWORK), "goes with --arch alone"),
        (("mobilenet_v2", "--labels", "labels.txt"), "--labels makes a model without a file"),
        (("--arch", "other:Net", *NETWORK), "other is no package folder"),
        (("--arch", "torchvision:resnet17", *NETWORK), "torchvision has no resnet17"),
        (("--arch", "my_model.py:Net", *NETWORK, "--num-classes", "3"), "num_classes"),
        (("--arch", "my_model.py:Net", *NETWORK, "--arg", "classes=3"), "are of 2 classes"),
        (("--arch", "my_model.py:Net", *NETWORK, "--arg", "width=7"), "another architecture"),
        (("--arch", "torchvision:resnet18", *NETWORK), "resnet18 with arguments .*width"),
        (("--arch", "my_model.py:Net", "--weights", "net.pth", *OWN), "input: say resize"),
    ],
)
def test_a_mistake_on_the_command_line_is_named(
    user: Path, arguments: tuple[str, ...], words: str
) -> None:
    result = run(*arguments)
    assert isinstance(result.exception, MarsmithError), result.output
    with pytest.raises(MarsmithError, match=words):
        raise result.exception


@pytest.mark.parametrize(("count", "words"), [(1000, "1000 labels for a network with 2 outputs")])
def test_too_many_labels_are_counted(user: Path, count: int, words: str) -> None:
    (user / "labels.txt").write_text("".join(f"class {index}\n" for index in range(count)))
    with pytest.raises(BuildError, match=words):
        raise run("--arch", "my_model.py:Net", *NETWORK).exception or AssertionError
    arguments = {"arch": "torchvision:resnet18", "num_classes": 2, "name": "m"}
    arguments |= {"weights": "net.pth", "labels": "labels.txt", "task": "image-classification"}
    keys, _ = own.fields(arguments, user, PROJECT)
    with pytest.raises(BuildError, match="1000 labels for num_classes 2"):
        build.bundle_of(spec.parse(keys, "m"), PROJECT, [], weights=user / "net.pth")


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


def test_paths_are_relative_to_the_caller_and_to_the_project_in_a_model_file() -> None:
    assert own.place(PROJECT / "weights/../models/x.yaml", PROJECT) == "models/x.yaml"
    assert own.place(Path("/elsewhere/x.yaml"), PROJECT) == "/elsewhere/x.yaml"


# Artifacts of others -------------------------------------------------------------------------


def traced(module: nn.Module, path: Path, count: int) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.trace(module.eval(), torch.rand(count, 3, 32, 32)), str(path))


class OnePicture(nn.Module):
    """Logits of one picture: its form is fixed at a batch of one."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean((2, 3)).reshape(1, 3)[:, :2] * 20


class InTraining(nn.Module):
    """Logits that depend on the batch, as those of a network exported in training mode."""

    def forward(self, x: Tensor) -> Tensor:
        means = x.mean((2, 3))[:, :2] * 20
        return means - means.mean(0) + torch.arange(2)


EXPORTED = ("--artifact", "m.pt", "--outputs", "logits", *OWN, *SQUARE)


def test_an_artifact_for_one_picture_works_and_says_so(user: Path) -> None:
    traced(OnePicture(), user / "m.pt", 1)
    result = run(*EXPORTED)
    assert result.exit_code == 0, repr(result.exception)
    assert "within 0.0e+00 of itself, alone (there is no eager model)" in " ".join(
        result.output.split()
    )
    assert "note: the artifact takes one picture per call" in result.output
    path = user / "store/own-1.0.mar"
    report = archive.read_json(path, "parity.json")
    assert report["reference"].startswith("none: the artifact was exported elsewhere")
    assert report["batch_sizes"] == [1]
    bundle = archive.read_json(path, "marsmith.json")
    assert (bundle["artifact_batch"], bundle["limits"]["batch_size"]) == (1, 8)
    assert bundle["provenance"]["spec"]["artifact"]["sha256"] == sha256(user / "m.pt")


def test_an_artifact_whose_answers_depend_on_the_batch_is_refused(user: Path) -> None:
    traced(InTraining(), user / "m.pt", 2)
    with pytest.raises(ParityError, match="exported in training mode"):
        raise run(*EXPORTED).exception or AssertionError


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--outputs", "probabilities"), "say logits"),
        (("--outputs", "logits=out"), "no output 'out' for logits: the artifact gives 0"),
        (("--layout", "nhwc"), "does not fit input and outputs of the spec"),
    ],
)
def test_an_artifact_that_is_not_as_the_options_say_is_refused(
    user: Path, arguments: tuple[str, ...], words: str
) -> None:
    traced(nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 2)), user / "m.pt", 2)
    with pytest.raises(ExportError, match=words):
        raise run(*EXPORTED, *arguments).exception or AssertionError


def test_the_artifact_is_packed_as_it_is_and_its_digest_is_checked(user: Path) -> None:
    traced(OnePicture(), user / "m.pt", 1)
    fields = {**ARTIFACT, "labels": ["a", "b"], "samples": str(PROJECT / "samples/shapes")}
    fields["artifact"] = {"file": "m.pt", "sha256": "0" * 64}
    (user / "m.yaml").write_text(json.dumps(fields))
    with pytest.raises(BuildError, match=r"m\.pt has sha256"):
        build.build(spec.load(user / "m.yaml"), user, user / "store", tell=lambda stage: None)
    fields["artifact"] = {"file": "none.pt"}
    with pytest.raises(BuildError, match=r"no artifact at none\.pt"):
        build._stage(spec.parse(fields, "m"), user, user, lambda stage: None)
