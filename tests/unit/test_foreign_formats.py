"""Artifacts that others exported, in every format: built from options, and answering as eager."""

from __future__ import annotations

import io
import pickle
import warnings
import zipfile
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import openvino
import pytest
import torch
from click.testing import CliRunner
from numpy.typing import NDArray
from onnxruntime.quantization import QuantFormat, quantize_static
from onnxruntime.transformers.float16 import convert_float_to_float16
from PIL import Image
from torch import Tensor, nn
from torch.export import Dim
from torchvision.ops import nms

from handlers.bundle import Bundle
from handlers.errors import ExportError, IntegrityError, SpecError, WeightsError
from handlers.plugins import load_runtime, load_task
from handlers.quiet import quiet
from marsmith import archive, artifacts, build, cli

PROJECT = Path(__file__).parents[2]
SIDE = 48
MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.5)
NORMALISED = ("--mean", "0.5,0.4,0.3", "--std", "0.2,0.25,0.5")
BUILT_IN = ("--mean", "0,0,0", "--std", "1,1,1")


class Means(nn.Module):
    """Logits (N, 3): how red, green and blue normalised pixels are, by a convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 1, bias=False)
        self.conv.weight = nn.Parameter(3 * torch.eye(3)[:, :, None, None])

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x).mean((2, 3))  # type: ignore[no-any-return]


class Layers(nn.Module):
    """A segmenter as torchvision's: class 0 where it is dark, 1 where it is red, 2 where light."""

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        red, light = x[:, 0] - x[:, 2], x.mean(1)
        logits = torch.stack([torch.full_like(red, 4.0), red * 12, light * 8], 1)
        return {"out": logits, "aux": -logits}


class WithNormalisation(nn.Module):
    """uint8 pictures (N, H, W, C) to what a network says of them."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, pixels: Tensor) -> Any:
        x = (pixels.float() / 255 - torch.tensor(MEAN)) / torch.tensor(STD)
        return self.network(x.permute(0, 3, 1, 2))


class Lights(nn.Module):
    """A detector as torchvision's, of a list of pictures: a box around what is light."""

    def forward(self, images: list[Tensor]) -> list[dict[str, Tensor]]:
        (image,) = images
        places = torch.nonzero(image.mean(0) > 0.6).float()
        low, high = places.amin(0), places.amax(0) + 1
        box = torch.stack([low[1], low[0], high[1], high[0]])
        boxes = torch.stack([box, box + 1])
        scores = torch.stack([box.sum() * 0 + 0.9, box.sum() * 0 + 0.4])
        kept = nms(boxes, scores, 0.5)
        labels = torch.ones_like(kept)
        return [{"boxes": boxes[kept], "labels": labels, "scores": scores[kept]}]


def _program(module: nn.Module, path: Path, example: Tensor) -> torch.export.ExportedProgram:
    axes = ({0: Dim.DYNAMIC(min=1, max=8)},)
    return torch.export.export(module.eval(), (example,), dynamic_shapes=axes)


def write_program(module: nn.Module, path: Path, example: Tensor) -> None:
    torch.export.save(_program(module, path, example), path)


def write_package(module: nn.Module, path: Path, example: Tensor) -> None:
    program = _program(module, path, example)
    torch._inductor.aoti_compile_and_package(program, package_path=str(path))


def write_onnx(module: nn.Module, path: Path, example: Any, **given: Any) -> None:
    flat = module(*example) if isinstance(example, tuple) else module(example)
    names = list(flat) if isinstance(flat, dict) else ["logits"]
    given = {"output_names": names, "dynamic_axes": {"x": {0: "N"}}, **given}
    torch.onnx.export(
        module.eval(),
        example if isinstance(example, tuple) else (example,),
        str(path),
        dynamo=False,
        input_names=["x"],
        **given,
    )


def write_ir(module: nn.Module, path: Path, example: Any, **given: Any) -> None:
    plain = path.with_suffix(".onnx")
    write_onnx(module, plain, example, **given)
    openvino.save_model(openvino.convert_model(plain), path, compress_to_fp16=False)


FORMATS: dict[str, tuple[str, Callable[..., None]]] = {
    "onnx": ("m.onnx", write_onnx),
    "openvino": ("m.xml", write_ir),
    "torch-compile": ("m.pt2", write_program),
    "aotinductor": ("m.pt2", write_package),
}


@pytest.fixture
def user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "three.txt").write_text("a\nb\nc\n")
    (tmp_path / "two.txt").write_text("__background__\nlight\n")
    monkeypatch.setenv("MARSMITH_CALLER", str(tmp_path))
    monkeypatch.chdir(PROJECT)
    monkeypatch.setattr(build.smoke, "prepared", lambda *_: nullcontext(lambda path: None))
    return tmp_path


def packed(user: Path, file: str, task: str, *arguments: str) -> Any:
    """The task's handler of the archive that the command line makes of ``file``."""
    labels = "two.txt" if task == "object-detection" else "three.txt"
    command = ["--name", "m", "--artifact", file, "--task", task, "--labels", labels, *arguments]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        result = CliRunner().invoke(cli.group, ["build", *command, "--store", "store"])
    if result.exception:
        raise result.exception
    archive.unpack(user / "store/m-1.0.mar", user / "unpacked")
    handler = load_task(task)()
    handler.bind(Bundle.read(user / "unpacked"), user / "unpacked")
    return handler


def picture(width: int = SIDE, height: int = SIDE) -> Image.Image:
    made = Image.new("RGB", (width, height))
    made.paste("red", (0, height // 2, width // 2, height))
    made.paste("white", (width // 2, 0, width, height))
    return made


def write(name: str, module: nn.Module, user: Path, example: Any, **given: Any) -> str:
    file, writer = FORMATS[name]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        writer(module, user / file, example, **given)
    return file


SQUARE = ("--resize", f"{SIDE},{SIDE}")


@pytest.mark.parametrize("name", FORMATS)
def test_a_segmenter_s_out_is_found_by_its_name(name: str, user: Path) -> None:
    file = write(name, Layers(), user, torch.rand(2, 3, SIDE, SIDE))
    handler = packed(
        user, file, "semantic-segmentation", "--outputs", "logits=out", *SQUARE, *BUILT_IN
    )
    assert handler.bundle.runtime.replace("_", "-") == name
    assert handler.bundle.artifact_batch == 8
    for answer in handler.answer([picture(), picture(90, 60), picture(60, 90)]):
        mask = handler.mask(answer)
        corners = mask[-5, 5], mask[5, 5], mask[len(mask) // 2, -5]
        assert corners == (1, 0, 2)


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("inside", [False, True], ids=["normalised here", "normalised inside"])
def test_a_classifier_with_and_without_normalisation(name: str, inside: bool, user: Path) -> None:
    network = Means().eval()
    whole = WithNormalisation(network).eval()
    example = torch.rand(2, 3, SIDE, SIDE)
    pixels = np.random.default_rng(0).integers(0, 256, (2, SIDE, SIDE, 3), dtype=np.uint8)
    file = write(name, whole, user, torch.from_numpy(pixels)) if inside else ""
    file = file or write(name, network, user, example)
    said = ("--dtype", "uint8", "--layout", "nhwc") if inside else NORMALISED
    handler = packed(user, file, "image-classification", "--outputs", "logits", *SQUARE, *said)
    with torch.no_grad():
        expected = torch.softmax(whole(torch.from_numpy(pixels)), 1).numpy()
    np.testing.assert_allclose(handler.model(pixels)[0], expected, atol=1e-5)


@pytest.mark.parametrize("name", ["onnx", "openvino"])
def test_a_detector_of_a_list_of_pictures_takes_one_without_a_batch(name: str, user: Path) -> None:
    axes = {"x": {1: "height", 2: "width"}, **{n: {0: "K"} for n in ("boxes", "labels", "scores")}}
    image = torch.zeros(3, SIDE, SIDE)
    image[:, 5:20, 7:30] = 1
    file = write(
        name, Lights(), user, ([image],), output_names=["boxes", "labels", "scores"],
        dynamic_axes=axes, opset_version=17,
    )  # fmt: skip
    handler = packed(
        user, file, "object-detection", "--layout", "chw", "--outputs", "boxes,scores,labels",
        *BUILT_IN, "--samples", str(PROJECT / "samples/shapes"),
    )  # fmt: skip
    assert handler.bundle.artifact_batch == 1
    for size in ((60, 40), (100, 130)):
        made = Image.new("RGB", size)
        made.paste("white", (20, 10, 50, 35))
        (answer,) = handler.answer([made], min_score=0.5)
        assert [(each["label"], each["score"]) for each in answer] == [("light", 0.9)]
        wanted = {"xmin": 20, "ymin": 10, "xmax": 50, "ymax": 35}
        assert answer[0]["box"] == pytest.approx(wanted, abs=1)


class _Batches:
    def __init__(self, arrays: NDArray[np.float32]) -> None:
        self._feeds = iter([{"x": array[None]} for array in arrays])

    def get_next(self) -> dict[str, NDArray[np.float32]] | None:
        return next(self._feeds, None)


@pytest.mark.parametrize("bits", ["int8", "fp16", "fp16 inside"])
def test_an_onnx_of_few_bits_is_packed_as_it_is(bits: str, user: Path) -> None:
    write("onnx", Means(), user, torch.rand(2, 3, SIDE, SIDE))
    plain, dtype = onnx.load(user / "m.onnx"), "float32"
    if bits == "int8":
        inputs = np.random.default_rng(0).normal(0, 2, (8, 3, SIDE, SIDE)).astype(np.float32)
        quantize_static(plain, user / "m.onnx", _Batches(inputs), quant_format=QuantFormat.QDQ)
    else:
        dtype = "float32" if bits == "fp16 inside" else "float16"
        onnx.save(
            convert_float_to_float16(plain, keep_io_types=bits == "fp16 inside"), user / "m.onnx"
        )
    handler = packed(
        user, "m.onnx", "image-classification", "--outputs", "logits", *SQUARE, *NORMALISED,
        "--dtype", dtype,
    )  # fmt: skip
    pixels = np.stack([handler.preprocess(picture()), handler.preprocess(picture(20, 80))])
    with torch.no_grad():
        logits = WithNormalisation(Means().eval())(torch.from_numpy(pixels))
    (scores,) = handler.model(pixels)
    assert scores.dtype == np.float32
    np.testing.assert_allclose(scores, torch.softmax(logits, 1).numpy(), atol=0.05)


@pytest.fixture
def beside(user: Path) -> Path:
    """``m.onnx`` as torch.onnx.export writes it by default, its weights in ``m.onnx.data``."""
    network, example = Means().eval(), (torch.rand(2, 3, SIDE, SIDE),)
    # So many that they are not in the file itself.
    network.conv.weight = nn.Parameter(nn.functional.pad(network.conv.weight, (2, 2, 2, 2)))
    network.conv.padding = (2, 2)
    with quiet():
        axes = ({0: Dim("N", max=8)},)
        torch.onnx.export(network, example, user / "m.onnx", dynamo=True, dynamic_shapes=axes)
    return user / "m.onnx.data"


LOGITS = ("image-classification", "--outputs", "logits", *SQUARE, *NORMALISED)


def test_weights_beside_an_onnx_file_are_packed(beside: Path, user: Path) -> None:
    assert beside.is_file()
    handler = packed(user, "m.onnx", *LOGITS)
    assert (user / "unpacked/m.onnx.data").read_bytes() == beside.read_bytes()
    whole = (user / "m.onnx").stat().st_size + beside.stat().st_size
    assert artifacts.describe(user / "store/m-1.0.mar", load=False).artifact_bytes == whole
    pixels = np.stack([handler.preprocess(picture()), handler.preprocess(picture(20, 80))])
    with torch.no_grad():
        logits = WithNormalisation(Means().eval())(torch.from_numpy(pixels))
    np.testing.assert_allclose(handler.model(pixels)[0], torch.softmax(logits, 1), atol=1e-5)
    beside.unlink()
    with pytest.raises(WeightsError, match=r"m\.onnx needs m\.onnx\.data beside it"):
        packed(user, "m.onnx", *LOGITS)


@pytest.mark.parametrize("place", ["../m.onnx.data", "/etc/hostname", "in/it", "..", "numpy.py"])
def test_weights_of_an_onnx_file_lie_beside_it_and_are_no_code(
    place: str, beside: Path, user: Path
) -> None:
    model = onnx.load(user / "m.onnx", load_external_data=False)
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            entry.value = place if entry.key == "location" else entry.value
    # As it is, for onnx.save would look for the weights.
    (user / "m.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(IntegrityError, match=rf"m\.onnx has weights in '{place}', and they must"):
        packed(user, "m.onnx", *LOGITS)


def test_an_artifact_for_exactly_eight_pictures_is_refused_and_says_so(user: Path) -> None:
    write("onnx", Means(), user, torch.rand(8, 3, SIDE, SIDE), dynamic_axes=None)
    with pytest.raises(ExportError, match="exactly 8: export it with a batch that may vary, or"):
        packed(user, "m.onnx", *LOGITS)


class Two(nn.Module):
    def forward(self, x: Tensor, other: Tensor) -> Tensor:
        return x + other


def test_a_program_of_more_than_pictures_is_refused(user: Path) -> None:
    given = torch.rand(2, 3, 8, 8)
    torch.export.save(torch.export.export(Two(), (given, given)), user / "m.pt2")
    with pytest.raises(IntegrityError, match="the program takes x, other, and pictures come as"):
        packed(user, "m.pt2", "image-classification", "--outputs", "logits", *SQUARE, *BUILT_IN)


def test_an_ir_that_takes_bytes_is_given_nothing_else(user: Path) -> None:
    bytes_first = WithNormalisation(Means().eval()).eval()
    pixels = torch.zeros(2, SIDE, SIDE, 3, dtype=torch.uint8)
    file = write("openvino", bytes_first, user, pixels)
    said = ("--outputs", "logits", *SQUARE, "--layout", "nhwc", *NORMALISED)
    with pytest.raises(ExportError, match="takes uint8 and was given float32: write dtype: uint8"):
        packed(user, file, "image-classification", *said)


def test_an_ir_of_more_than_pictures_is_refused(user: Path) -> None:
    file = write("openvino", Two(), user, (torch.rand(2, 3, SIDE, SIDE),) * 2)
    with pytest.raises(IntegrityError, match=r"model\.xml takes x, .*, and pictures come as one"):
        packed(user, file, "image-classification", "--outputs", "logits", *SQUARE, *BUILT_IN)


def test_a_pt2_that_is_neither_kind_is_said_to_be(user: Path) -> None:
    (user / "m.pt2").write_bytes(b"nothing")
    with pytest.raises(SpecError, match="no runtime here reads"):
        packed(user, "m.pt2", "image-classification", "--outputs", "logits", *SQUARE, *BUILT_IN)


class _Hostile:
    def __init__(self, path: Path) -> None:
        self._path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self._path,)


def test_a_program_runs_no_pickled_code(user: Path) -> None:
    write("torch-compile", Means(), user, torch.rand(2, 3, SIDE, SIDE))
    with zipfile.ZipFile(user / "m.pt2") as good, zipfile.ZipFile(user / "bad.pt2", "w") as bad:
        for name in good.namelist():
            hostile = name.endswith("sample_inputs/model.pt")
            data = _pickled(_Hostile(user / "ran")) if hostile else good.read(name)
            bad.writestr(name, data)
    options = {"threads": 1, "precision": "fp32", "cache": ""}
    with pytest.raises(IntegrityError, match=r"bad\.pt2 is not a program"):
        load_runtime("torch-compile")(user / "bad.pt2", "cpu", options)
    assert not (user / "ran").exists()


def _pickled(thing: Any) -> bytes:
    file = io.BytesIO()
    torch.save(thing, file, pickle_protocol=pickle.HIGHEST_PROTOCOL)
    return file.getvalue()
