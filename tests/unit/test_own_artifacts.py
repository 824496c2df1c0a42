"""An artifact that others exported, from options alone: packed as it is, or refused by name."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from user import OWN, PROJECT, SQUARE, labelled, run, standing

from handlers.bundle import Bundle
from handlers.errors import BuildError, ExportError, ParityError, SpecError
from handlers.integrity import sha256
from handlers.tasks.image_classification import ImageClassification
from marsmith import archive, artifacts, build, inspection, spec
from tests.user import ARTIFACT


@pytest.fixture
def user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return standing(tmp_path, monkeypatch)


def traced(module: nn.Module, path: Path, count: int, example: Tensor | None = None) -> None:
    given = torch.rand(count, 3, 32, 32) if example is None else example
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.trace(module.eval(), given), str(path))


class OnePicture(nn.Module):
    """Logits of one picture: its form is fixed at a batch of one."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean((2, 3)).reshape(1, 3)[:, :2] * 20


class InTraining(nn.Module):
    """Logits that depend on the batch, as those of a network exported in training mode."""

    def forward(self, x: Tensor) -> Tensor:
        means = x.mean((2, 3))[:, :2] * 20
        return means - means.mean(0) + 2 * torch.arange(2)


EXPORTED = ("--artifact", "m.pt", "--outputs", "logits", *OWN, *SQUARE)


@pytest.mark.parametrize("outputs", ["logits", "probabilities"])
@pytest.mark.parametrize("labels", [1, 3])
def test_an_artifact_of_others_has_as_many_labels_as_classes(
    user: Path, outputs: str, labels: int
) -> None:
    layers = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 2), nn.Softmax(1)]
    traced(nn.Sequential(*layers), user / "m.pt", 2)
    labelled(user, labels)
    result = run(*EXPORTED, "--outputs", outputs)
    assert isinstance(result.exception, BuildError), result.output
    assert f"2 classes and there are {labels} labels" in str(result.exception)


def test_an_artifact_for_one_picture_works_and_says_so(user: Path) -> None:
    traced(OnePicture(), user / "m.pt", 1)
    result = run(*EXPORTED)
    assert result.exit_code == 0, repr(result.exception)
    said = " ".join(result.output.split())
    assert "answers 8 pictures alone and in batches of [1] alike: outputs within 0.0e+00" in said
    assert "no PyTorch model says whether its answers are right: --evaluate measures that" in said
    assert "note: the artifact takes one picture per call" in result.output
    path = user / "store/own-1.0.mar"
    report = archive.read_json(path, "parity.json")
    assert report["reference"].startswith("none: the artifact was exported elsewhere")
    assert report["batch_sizes"] == [1]
    bundle = archive.read_json(path, "marsmith.json")
    assert (bundle["artifact_batch"], bundle["limits"]["batch_size"]) == (1, 8)
    assert bundle["provenance"]["spec"]["artifact"]["sha256"] == sha256(user / "m.pt")


def test_nobody_is_told_a_precision_that_others_have_not_said(user: Path) -> None:
    onnx_file(user / "m.onnx", 0, 3, 32, 32)
    words = ("--artifact", "m.onnx", "--outputs", "logits", *OWN, *SQUARE)
    result = run(*words)
    assert result.exit_code == 0, repr(result.exception)
    assert " MB, onnx as exported, " in " ".join(result.output.split())
    assert json.loads(run(*words, "--json").stdout)["precision"] == "as exported"
    path = user / "store/own-1.0.mar"
    assert inspection.read(path)["precision"] == "as exported"
    assert artifacts.describe(path, load=False).precision == "as exported"
    archive.unpack(path, user / "unpacked")
    bundle = Bundle.read(user / "unpacked")
    # What ONNX Runtime and the limits of parity go by stays, as in archives of before.
    assert bundle.precision == "fp32"
    served = ImageClassification()
    served.bundle = bundle
    assert served.describe()["precision"] == "as exported"


class GrayBytes(nn.Module):
    """Logits of gray pixels in uint8, as a camera gives them."""

    def forward(self, x: Tensor) -> Tensor:
        mean = x.float().mean((1, 2, 3))[:, None] / 255
        return torch.cat([mean, 1 - mean], 1) * 20


def test_an_artifact_of_gray_bytes_needs_no_mean(user: Path) -> None:
    traced(GrayBytes(), user / "m.pt", 2, torch.zeros(2, 1, 32, 32, dtype=torch.uint8))
    words = ("--artifact", "m.pt", "--outputs", "logits", *OWN, *SQUARE[:2])
    result = run(*words, "--color", "gray", "--dtype", "uint8")
    assert result.exit_code == 0, repr(result.exception)
    given = archive.read_json(user / "store/own-1.0.mar", "marsmith.json")["input"]
    assert (given["color"], given["mean"], given["std"]) == ("gray", [0.0], [1.0])


def test_an_artifact_that_ends_in_softmax_gives_no_logits(user: Path) -> None:
    layers = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 2), nn.Softmax(1))
    traced(nn.Sequential(*layers), user / "m.pt", 2)
    with pytest.raises(SpecError, match="from 0 to 1 with a sum of 1, .* say probabilities"):
        raise run(*EXPORTED).exception or AssertionError


def test_an_artifact_whose_answers_depend_on_the_batch_is_refused(user: Path) -> None:
    traced(InTraining(), user / "m.pt", 2)
    with pytest.raises(ParityError, match="exported in training mode"):
        raise run(*EXPORTED).exception or AssertionError


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        (("--outputs", "probabilities"), ExportError, "say logits"),
        (
            ("--outputs", "logits=out"),
            ExportError,
            "no output 'out' for logits: the artifact gives 0",
        ),
        (("--layout", "nhwc"), ExportError, "does not fit input and outputs of the spec"),
        (("--outputs", "logits=a,logits=b"), SpecError, "=a,logits=b': logits stands there twice"),
        (("--method", "script"), SpecError, r"TorchScript, and m\.pt was exported by others: lea"),
    ],
)
def test_an_artifact_that_is_not_as_the_options_say_is_refused(
    user: Path, arguments: tuple[str, ...], error: type[Exception], words: str
) -> None:
    traced(nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 2)), user / "m.pt", 2)
    with pytest.raises(error, match=words):
        raise run(*EXPORTED, *arguments).exception or AssertionError


def onnx_file(path: Path, *shape: int) -> None:
    """An ONNX file of means for pictures of a shape; N varies, or whatever axis is 0."""
    from onnx import TensorProto, helper, save

    axes = [length or "n" for length in shape]
    given = helper.make_tensor_value_info("pixels", TensorProto.FLOAT, axes)
    made = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", 2])
    channels = 1 if shape[1] == 3 else 3
    rest = [axis for axis in (1, 2, 3) if axis != channels]
    axis = helper.make_tensor("axes", TensorProto.INT64, [2], rest)
    both = helper.make_tensor("both", TensorProto.INT64, [2], [0, 1])
    nodes = [
        helper.make_node("ReduceMean", ["pixels", "axes"], ["means"], keepdims=0),
        helper.make_node("Gather", ["means", "both"], ["logits"], axis=1),
    ]
    graph = helper.make_graph(nodes, "means", [given], [made], [axis, both])
    opset = [helper.make_opsetid("", 18)]
    save(helper.make_model(graph, opset_imports=opset, ir_version=9), path)


@pytest.mark.parametrize(
    ("shape", "arguments", "words"),
    [
        (
            (0, 3, 32, 32),
            ("--layout", "nhwc"),
            r"\(n, 3, 32, 32\) and was given \(1, 32, 32, 3\): give --layout nchw",
        ),
        ((0, 32, 32, 3), (), r"takes \(n, 32, 32, 3\) and was given .*: give --layout nhwc"),
        ((0, 3, 32, 32), ("--dtype", "float16"), "takes float32 and was given float16: .*--dtype"),
        ((0, 3, 24, 24), (), "give --resize 24,24"),
        ((0, 32, 32, 1), (), "give --layout nhwc --color gray"),
    ],
)
def test_an_onnx_file_that_takes_another_input_says_which_option_it_is(
    user: Path, shape: tuple[int, ...], arguments: tuple[str, ...], words: str
) -> None:
    onnx_file(user / "m.onnx", *shape)
    given = ("--artifact", "m.onnx", "--outputs", "logits", *OWN, *SQUARE)
    with pytest.raises(ExportError, match=words) as raised:
        raise run(*given, *arguments).exception or AssertionError
    assert "ONNXRuntimeError" not in str(raised.value)


def test_the_artifact_is_packed_as_it_is_and_its_digest_is_checked(user: Path) -> None:
    traced(OnePicture(), user / "m.pt", 1)
    fields = {**ARTIFACT, "labels": ["a", "b"], "samples": str(PROJECT / "samples/shapes")}
    fields["artifact"] = {"file": "m.pt", "sha256": "0" * 64}
    (user / "m.yaml").write_text(json.dumps(fields))
    with pytest.raises(BuildError, match=r"m\.pt has sha256"):
        build.build(spec.load(user / "m.yaml"), user, user / "store", tell=lambda stage: None)
    fields["artifact"] = {"file": "none.pt"}
    with pytest.raises(BuildError, match=rf"no artifact at {user}/none\.pt \(paths"):
        build._stage(spec.parse(fields, "m"), user, user, lambda stage: None)
