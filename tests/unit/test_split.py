"""Detectors where shapes may not depend on data: TorchScript stands in for such a runtime."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torchvision.ops import box_iou
from torchvision.transforms.functional import resize

from benchmarks.prepared import SAMPLES, settle
from handlers import program_layers, split, task, torch_export
from handlers.bundle import Bundle
from handlers.errors import ExportError, RuntimeUnavailable
from handlers.inputs import ImageInput
from handlers.plugins import load_task
from handlers.runtimes import Arrays, ExportRequest
from handlers.runtimes.eager import layers as eager_layers
from handlers.runtimes.torchscript import TorchScript
from handlers.servable import Servable, create_network
from marsmith import bisecting, exporting, preparing, quantise

SIZE = 192
# Scores that lie closer tie.
NEAR = 2e-3


@pytest.fixture(autouse=True)
def _fixed_shapes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TorchScript, "streams", 2)
    monkeypatch.setattr(TorchScript, "static_precisions", TorchScript.precisions)


def _preset(picture: Tensor) -> Tensor:
    """Pixels from 0 to 1 in the size of the input, as small as the pictures here."""
    return resize(picture.float() / 255, [SIZE, SIZE])


def _module(name: str, spread: bool = False) -> Servable:
    """A detector of random weights; its scores ``spread`` as a trained one's do, if asked for."""
    torch.manual_seed(0)
    recipe: dict[str, Any] = {
        "architecture": f"torchvision:{name}",
        "arguments": {"num_classes": 4},
        "task": "object-detection",
        "decode": {"score_floor": 0.01, "nms_iou": None, "max_detections": 20},
        "mean": [0.0] * 3,
        "std": [1.0] * 3,
    }
    network = create_network(recipe["architecture"], recipe["arguments"], Path()).eval()
    if spread:
        settle(network, recipe["task"], _preset)
    return Servable.build(recipe, Path(), network)


def _bundle(module: Servable, given: ImageInput) -> Bundle:
    return Bundle(
        name="detector",
        version="1.0",
        task="object-detection",
        runtime="torchscript",
        artifact="model.pt",
        labels=["none", "a", "b", "c"],
        input=given,
        decode=module.recipe["decode"],
        defaults={"min_score": 0.01},
        runtime_options={"method": "trace"},
    )


@pytest.mark.parametrize(
    ("name", "spread"),
    [
        ("ssdlite320_mobilenet_v3_large", True),
        ("fasterrcnn_mobilenet_v3_large_320_fpn", True),
        # Its scores differ by themselves, and it is large.
        ("fcos_resnet50_fpn", False),
    ],
)
def test_the_two_halves_answer_like_the_whole(name: str, spread: bool, tmp_path: Path) -> None:
    module = _module(name, spread)
    given = ImageInput(resize=[SIZE, SIZE], letterbox=0, mean=(0.0,) * 3, std=(1.0,) * 3)
    bundle = _bundle(module, given)
    with Image.open(SAMPLES / "scenes/scene1.jpg") as scene:
        pixels = np.array(scene.convert("RGB").resize((SIZE, SIZE)))
    exporting.artifact(bundle, module, pixels, tmp_path).make()
    assert (tmp_path / "decode.pth").exists()
    artifact = load_task(bundle.task)()
    artifact.bind(bundle, tmp_path)
    assert artifact.model_streams == 1
    batch = np.stack([pixels])
    reference: Any = preparing.reference(bundle, module).model
    expected, found = reference(batch), artifact.model(batch)
    assert [output.shape for output in expected] == [output.shape for output in found]
    assert len(expected[1][0]) > 3
    # Where boxes tie, which of them comes first is a matter of rounding.
    np.testing.assert_allclose(expected[1], found[1], rtol=0, atol=NEAR)
    places = _places(expected, found)
    assert len(places) > 3
    ours, theirs = (np.array(each) for each in zip(*places, strict=True))
    assert sorted(theirs) == sorted(set(theirs)), "two boxes have the same partner"
    np.testing.assert_array_equal(expected[2][0][ours], found[2][0][theirs])
    np.testing.assert_allclose(expected[0][0][ours], found[0][0][theirs], rtol=0, atol=0.1)
    assert isinstance(artifact.model, split.Halves)
    maps = zip(reference.features(batch), artifact.model.features(batch), strict=True)
    for whole, half in maps:
        assert whole.shape == half.shape
        assert np.abs(whole - half).max() < 1e-4 * np.abs(whole).max()


def _places(expected: Arrays, found: Arrays) -> list[tuple[int, int]]:
    """Which box of ``found`` is which of ``expected``: by order, and among those of one score by
    IoU. Those whose score ties with the last may have fallen off the end, and are left out."""
    (boxes,), (scores,), _ = expected
    overlaps = box_iou(torch.from_numpy(boxes), torch.from_numpy(found[0][0])).numpy()
    tied = np.abs(scores[:, None] - found[1][0]) <= NEAR
    return [
        (i, int(np.where(tied[i], overlaps[i], -1).argmax()))
        for i, score in enumerate(scores)
        if score - scores[-1] > NEAR
    ]


def test_the_exported_half_has_no_second_copy_of_its_weights(tmp_path: Path) -> None:
    module = _module("ssdlite320_mobilenet_v3_large")
    given = ImageInput(resize=[SIZE, SIZE], mean=(0.0,) * 3, std=(1.0,) * 3)
    pixels = np.zeros((SIZE, SIZE, 3), dtype=np.uint8)
    exporting.artifact(_bundle(module, given), module, pixels, tmp_path).make()
    saved = torch.load(tmp_path / "decode.pth", weights_only=True)["state"]
    assert saved
    assert not [name for name in saved if "backbone" in name]
    whole = {name for name in module.state_dict() if "backbone" not in name}
    assert {name.removeprefix("adapted.") for name in saved} == {
        name.removeprefix("network.network.") for name in whole
    }


def test_an_input_without_a_fixed_size_is_refused(tmp_path: Path) -> None:
    module = _module("ssdlite320_mobilenet_v3_large")
    given = ImageInput(mean=(0.0,) * 3, std=(1.0,) * 3)
    pixels = np.zeros((SIZE, SIZE, 3), dtype=np.uint8)
    options = r"--resize 320,320 --letterbox 0 \(in a model file input: .*letterbox"
    accepted = rf"in fp32, bf16, fp16: give the input a fixed size, such as {options}"
    with pytest.raises(ExportError, match=accepted):
        exporting.artifact(_bundle(module, given), module, pixels, tmp_path).make()


def test_layers_that_stay_in_float_are_those_of_the_exported_half(tmp_path: Path) -> None:
    module = _module("ssdlite320_mobilenet_v3_large")
    given = ImageInput(resize=[SIZE, SIZE], letterbox=0, mean=(0.0,) * 3, std=(1.0,) * 3)
    pixels = np.random.default_rng(0).integers(0, 255, (SIZE, SIZE, 3), dtype=np.uint8)
    # The heads run eagerly, whatever the precision.
    layers = quantise.layers(module, split.TRUNK)
    kept = frozenset(layers)
    made = exporting.artifact(_bundle(module, given), module, pixels, tmp_path, float_layers=kept)
    request = made.request
    exported = dict(request.module.named_modules())
    assert request.float_layers <= exported.keys()
    kinds = {name for name, each in exported.items() if isinstance(each, quantise.kinds())}
    assert request.float_layers == kinds
    shapes = [module.get_submodule(name).weight.shape for name in sorted(layers)]
    assert shapes == [exported[name].weight.shape for name in sorted(request.float_layers)]


def test_the_layers_of_the_exported_half_bear_the_names_of_the_whole(tmp_path: Path) -> None:
    module = _module("ssdlite320_mobilenet_v3_large")
    given = ImageInput(resize=[SIZE, SIZE], letterbox=0, mean=(0.0,) * 3, std=(1.0,) * 3)
    pixels = np.random.default_rng(0).integers(0, 255, (SIZE, SIZE, 3), dtype=np.uint8)
    bundle = _bundle(module, given)
    exporting.artifact(bundle, module, pixels, tmp_path).make()
    artifact = load_task(bundle.task)()
    artifact.bind(bundle, tmp_path)
    batch = np.stack([pixels])
    found = bisecting.archive_layers(artifact, batch)
    expected = eager_layers(module, torch.from_numpy(batch))
    layers = [name for name in found if not name.startswith("output ")]
    assert len(layers) > 50
    for name in layers:
        np.testing.assert_allclose(expected[name], found[name], rtol=0, atol=1e-4, err_msg=name)


def test_an_exported_half_in_16_bits_shows_no_layers_and_says_why(tmp_path: Path) -> None:
    module = _module("ssdlite320_mobilenet_v3_large")
    given = ImageInput(resize=[SIZE, SIZE], letterbox=0, mean=(0.0,) * 3, std=(1.0,) * 3)
    trunk, rest = split.halves(module, given)
    pixels = np.zeros((1, SIZE, SIZE, 3), dtype=np.uint8)
    request = ExportRequest(trunk, pixels, {}, tmp_path / "model.pt2", precision="bf16")
    program: Any = torch_export.capture(request).module()
    shown = program_layers.tap(program)

    class Program(TorchScript):
        """Shows what torch-compile does, without compiling it."""

        def __init__(self) -> None:
            pass

        def layers(self, images: Any) -> dict[str, Any]:
            return dict.fromkeys(shown, images)

    with pytest.raises(RuntimeUnavailable, match="keeps no names of those .* bf16 or fp16: bisect"):
        split.Halves(Program(), rest, "cpu").layers(pixels)


def test_the_second_half_runs_where_the_first_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The GPU is a stand-in: what is asked to move to it stays, and is noted."""
    module = _module("ssdlite320_mobilenet_v3_large")
    given = ImageInput(resize=[SIZE, SIZE], letterbox=0, mean=(0.0,) * 3, std=(1.0,) * 3)
    pixels = np.zeros((SIZE, SIZE, 3), dtype=np.uint8)
    bundle = _bundle(module, given)
    exporting.artifact(bundle, module, pixels, tmp_path).make()
    moved: list[str] = []

    class OnGpu(TorchScript):
        def __init__(self, path: Path, device: str, options: Any) -> None:
            assert device == "cuda:1"
            super().__init__(path, "cpu", options)

    def noted(real: Any) -> Any:
        def to(self: Any, *given: Any, **more: Any) -> Any:
            if more.get("device", *given[:1]) != "cuda:1":
                return real(self, *given, **more)
            moved.append(type(self).__name__)
            return self

        return to

    for kind in (torch.Tensor, torch.nn.Module):
        monkeypatch.setattr(kind, "to", noted(kind.to))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(task, "load_runtime", lambda name: OnGpu)
    artifact = load_task(bundle.task)()
    artifact.bind(bundle, tmp_path, 1)
    assert moved == ["Rest"]
    boxes, _, _ = artifact.model(pixels[None])
    assert boxes.shape == (1, 20, 4)
    # A detector of SSD's kind has six maps of features.
    assert moved[1:] == ["Tensor"] * 6
