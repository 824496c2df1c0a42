"""Four models of somebody's own, each from one command to its answers in one real TorchServe."""

from __future__ import annotations

import base64
import io
import subprocess
import warnings
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from click.testing import CliRunner
from numpy.typing import NDArray
from PIL import Image
from tiny import PROJECT
from torch import Tensor, nn

from marsmith import build, cli
from marsmith.client import Client
from marsmith.server import TorchServe

SHAPES = sorted((PROJECT / "samples/shapes").glob("*.jpg"))
MEAN, STD = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
COMMON = ("--store", "home/model-store")

MY_MODEL = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, width, classes, names=()):
        super().__init__()
        self.conv = nn.Conv2d(3, width, 3)
        self.linear = nn.Linear(width, classes)

    def forward(self, x):
        return self.linear(torch.relu(self.conv(x)).mean((2, 3)))
"""


class Lights(nn.Module):
    """A detector as torchvision's: one box around what is light, and a bad one around all."""

    def forward(
        self, images: list[Tensor]
    ) -> tuple[dict[str, Tensor], list[dict[str, Tensor]]]:  # as torch.jit.script wants it
        found: list[dict[str, Tensor]] = []
        for image in images:
            places = torch.nonzero(image.mean(0) > 0.6).to(torch.float32)
            boxes = torch.zeros((0, 4))
            if places.shape[0] > 0:
                low, high = places.amin(0), places.amax(0) + 1
                box = torch.stack([low[1], low[0], high[1], high[0]])
                whole = torch.tensor([0.0, 0.0, float(image.shape[2]), float(image.shape[1])])
                boxes = torch.stack([box, whole])
            scores = torch.tensor([0.9, 0.2])[: boxes.shape[0]]
            kept = torchvision.ops.nms(boxes, scores, 0.99)
            labels = torch.ones_like(kept)
            found.append({"boxes": boxes[kept], "labels": labels, "scores": scores[kept]})
        losses: dict[str, Tensor] = {}
        return losses, found


class Layers(nn.Module):
    """A segmenter: class 0 where it is dark, 1 where it is red, 2 where it is light."""

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        red, light = x[:, 0] - x[:, 2], x.mean(1)
        logits = torch.stack([torch.full_like(red, 4.0), red * 12, light * 8], 1)
        return {"out": logits, "aux": -logits}


def _pixels(path: Path, side: int) -> NDArray[np.uint8]:
    return np.asarray(Image.open(path).convert("RGB").resize((side, side), Image.BILINEAR))


def _normalised(pixels: NDArray[np.uint8]) -> Tensor:
    return ((torch.from_numpy(pixels.copy()) / 255 - MEAN) / STD).permute(0, 3, 1, 2)


def _fine_tuned() -> nn.Module:
    """A resnet18 with two classes whose batch norms know the samples, and whose answers differ."""
    torch.manual_seed(0)
    network: nn.Module = torchvision.models.resnet18(num_classes=2)
    batch = _normalised(np.stack([_pixels(path, 64) for path in SHAPES]))
    with torch.no_grad():
        for _ in range(10):
            network(batch)
        network.eval()
        network.get_parameter("fc.weight").mul_(20)
    return network


def _marsmith(*arguments: str) -> str:
    result = CliRunner().invoke(cli.group, ["build", *arguments, *COMMON])
    assert result.exit_code == 0, result.output + repr(result.exception)
    return result.output


def _net_state() -> dict[str, Tensor]:
    torch.manual_seed(3)
    state = {"conv.weight": torch.randn(6, 3, 3, 3), "conv.bias": torch.zeros(6)}
    return state | {"linear.weight": torch.randn(3, 6) * 0.3, "linear.bias": torch.zeros(3)}


def _build_network(user: Path) -> None:
    (user / "my_model.py").write_text(MY_MODEL)
    torch.save(_net_state(), user / "net.pth")
    (user / "three.txt").write_text("a\nb\nc\n")
    _marsmith(
        *("--name", "net", "--arch", "my_model.py:Net", "--arg", "width=6", "--arg", "classes=3"),
        *("--arg", "names=[x, y]", "--weights", "net.pth", "--labels", "three.txt"),
        *("--task", "image-classification", "--resize", "32,32"),
    )


def _build_artifacts(user: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.script(Lights()), str(user / "lights.pt"))
        example = torch.rand(2, 3, 64, 64)
        torch.jit.save(torch.jit.trace(Layers(), example, strict=False), str(user / "layers.pt"))
    plain = ("--mean", "0,0,0", "--std", "1,1,1", "--runtime", "torchscript")
    (user / "lights.txt").write_text("__background__\nlight\n")
    _marsmith(
        *("--name", "lights", "--artifact", "lights.pt", "--task", "object-detection"),
        *("--labels", "lights.txt", "--resize", "96,128", "--letterbox", "114", *plain),
        *("--no-antialias", "--samples", str(PROJECT / "samples/scenes")),
    )
    (user / "layers.txt").write_text("dark\nred\nlight\n")
    _marsmith(
        *("--name", "layers", "--artifact", "layers.pt", "--task", "semantic-segmentation"),
        *("--labels", "layers.txt", "--outputs", "logits=out", "--resize", "64,64", *plain),
    )


@pytest.fixture(scope="module")
def cats() -> nn.Module:
    return _fine_tuned()


@pytest.fixture(scope="module")
def client(
    make_home: Callable[[], Path], cats: nn.Module, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Client]:
    """A TorchServe with the four models, built from a folder that is not the project's."""
    user = tmp_path_factory.mktemp("user")
    home = make_home()
    (user / "home").symlink_to(home)
    torch.save(cats.state_dict(), user / "cats.pth")
    (user / "labels.txt").write_text("cat\ndog\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MARSMITH_CALLER", str(user))
        patch.chdir(PROJECT)
        # TorchServe itself loads them a moment later.
        patch.setattr(build.smoke, "prepared", lambda *_: nullcontext(lambda path: None))
        output = _marsmith(
            *("--name", "cats", "--arch", "torchvision:resnet18", "--num-classes", "2"),
            *("--weights", "cats.pth", "--labels", "labels.txt"),
            *("--task", "image-classification", "--resize", "64,64"),
        )
        assert "input: as the preset of torchvision's ResNet18_Weights" in output
        _build_network(user)
        _build_artifacts(user)
    with TorchServe(home) as server:
        failed = [each.model for each in server.wait_ready(180) if each.failed]
        assert failed == []
        with server.client() as client:
            yield client


def test_paths_are_relative_to_where_the_caller_of_the_script_stands(tmp_path: Path) -> None:
    options = ("--name", "x", "--task", "y", "--arch", "a:b", "--weights", "w")
    done = subprocess.run(
        ["bash", PROJECT / "build_mar.sh", *options],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
    )
    problem = f"error: --weights: no file w, which would be {tmp_path / 'w'}\n"
    assert (done.returncode, done.stderr) == (1, problem)


def test_the_fine_tuned_network_answers_as_in_training(client: Client, cats: nn.Module) -> None:
    for path in SHAPES[:3]:
        answer = client.predict("cats", path.read_bytes()).json()
        with torch.inference_mode():
            logits = cats(_normalised(_pixels(path, 64)[None]))
        expected = dict(zip(("cat", "dog"), torch.softmax(logits, 1)[0].tolist(), strict=True))
        assert {each["label"]: each["score"] for each in answer} == pytest.approx(
            expected, abs=1e-3
        )


def test_the_network_of_ones_own_file_answers(client: Client) -> None:
    """As its author's own code does with the arguments that were given."""
    scope: dict[str, Any] = {}
    exec(MY_MODEL, scope)
    network = scope["Net"](width=6, classes=3, names=["x", "y"])
    network.load_state_dict(_net_state())
    answers = []
    for path in SHAPES:
        # As PNG, since a JPEG would be decoded at a smaller scale.
        picture = _png(Image.open(path).convert("RGB"))
        found = client.predict("net", picture).json()
        answers.append({each["label"]: each["score"] for each in found})
        with torch.inference_mode():
            logits = network(_normalised(_pixels(path, 32)[None]))
        expected = dict(zip("abc", torch.softmax(logits, 1)[0].tolist(), strict=True))
        assert answers[-1] == pytest.approx(expected, abs=1e-5)
    assert max(abs(answers[0][label] - answers[1][label]) for label in "abc") > 1e-2


def _png(picture: Image.Image) -> bytes:
    file = io.BytesIO()
    picture.save(file, "PNG")
    return file.getvalue()


@pytest.mark.parametrize("size", [(160, 120), (100, 300)])
def test_the_scripted_detectors_boxes_are_in_the_picture(
    client: Client, size: tuple[int, int]
) -> None:
    picture = Image.new("RGB", size)
    picture.paste("white", (40, 30, 80, 60))
    (found,) = client.predict("lights", _png(picture)).json()
    assert (found["label"], found["score"]) == ("light", 0.9)
    wanted = {"xmin": 40, "ymin": 30, "xmax": 80, "ymax": 60}
    assert found["box"] == pytest.approx(wanted, abs=3)
    black = client.predict("lights", _png(Image.new("RGB", size)))
    assert black.json() == []


def test_the_traced_segmenters_mask_is_the_pictures(client: Client) -> None:
    picture = Image.new("RGB", (200, 100))
    picture.paste("red", (0, 50, 100, 100))
    picture.paste("white", (100, 0, 200, 100))
    answer = client.predict("layers", _png(picture)).json()
    assert answer["size"] == [100, 200]
    shares = {each["label"]: each["share"] for each in answer["classes"]}
    assert shares == pytest.approx({"light": 0.5, "red": 0.25, "dark": 0.25}, abs=0.02)
    mask = np.asarray(Image.open(io.BytesIO(base64.b64decode(answer["mask"]["data"]))))
    assert (mask[75, 50], mask[25, 50], mask[50, 150]) == (1, 0, 2)
