"""The exported module: torchvision's normalisation inside, any source outside, clear refusals."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torchvision.transforms.functional import normalize, to_tensor

from handlers.errors import PluginError, WeightsError
from handlers.servable import Network, Servable, create_network

SOURCE = """
from torch import nn

class Tiny(nn.Module):
    def __init__(self, classes=3):
        super().__init__()
        self.linear = nn.Linear(3, classes)
        self.drop = nn.Dropout(0.5)

    def forward(self, x):
        return self.linear(self.drop(x.mean((2, 3))))

def make(classes):
    return Tiny(classes)

class BNReLU(nn.BatchNorm2d):
    def forward(self, x):
        return super().forward(x).relu()

class Normed(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = BNReLU(3)

    def forward(self, x):
        return self.norm(x).mean((2, 3))

not_callable = 3

def makes_a_list():
    return []
"""
MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "tiny.py").write_text(SOURCE)
    return tmp_path


def recipe(**changes: Any) -> dict[str, Any]:
    plain = {
        "architecture": "tiny.py:Tiny",
        "arguments": {},
        "task": "image-classification",
        "decode": {},
        "mean": MEAN,
        "std": STD,
    }
    return plain | changes


@pytest.mark.parametrize(("mean", "std"), [(MEAN, STD), ([0.306], [0.359]), ([0.0] * 3, [1.0] * 3)])
def test_pixels_are_normalised_as_torchvision_does(mean: list[float], std: list[float]) -> None:
    shape = (5, 7, len(mean))
    pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    pixels[0, 0], pixels[0, 1] = 0, 255
    ours = Network(nn.Identity(), mean, std)(torch.from_numpy(pixels)[None])
    expected = normalize(to_tensor(pixels), mean, std)[None]
    assert ours.shape == expected.shape
    assert ours.dtype == torch.float32
    assert float((ours - expected).abs().max()) <= 1e-6


def test_the_module_is_the_network_between_normalisation_and_the_tasks_head(folder: Path) -> None:
    module = Servable.build(recipe(), folder)
    pixels = torch.randint(0, 256, (4, 6, 5, 3), dtype=torch.uint8)
    normalised = normalize(pixels.permute(0, 3, 1, 2) / 255, MEAN, STD)
    with torch.inference_mode():
        (scores,) = module(pixels)
        expected = torch.softmax(module.bare()(normalised), dim=1)
    torch.testing.assert_close(scores, expected)


def test_the_module_is_in_evaluation_mode(folder: Path) -> None:
    module = Servable.build(recipe(), folder)
    assert not any(part.training for part in module.modules())


def test_the_network_may_be_a_class_or_a_function_with_arguments(folder: Path) -> None:
    for name in ("Tiny", "make"):
        network = create_network(f"tiny.py:{name}", {"classes": 7}, folder)
        assert network.get_parameter("linear.weight").shape == (7, 3)


def test_the_network_may_be_torchvisions_with_arguments(folder: Path) -> None:
    network = create_network("torchvision:squeezenet1_1", {"num_classes": 4}, folder)
    assert network.get_parameter("classifier.1.weight").shape[0] == 4


def test_a_source_file_shadows_no_module(folder: Path) -> None:
    (folder / "json.py").write_text(SOURCE)
    create_network("json.py:Tiny", {}, folder)
    import json

    assert json.loads("1") == 1


@pytest.mark.parametrize(
    ("architecture", "words"),
    [
        ("tiny.py:Huge", "tiny.py defines no Huge"),
        ("tiny.py:not_callable", "tiny.py defines no not_callable"),
        ("tiny.py:makes_a_list", "made a list, not a torch.nn.Module"),
        ("missing.py:Net", "no Python file missing.py"),
        ("torchvision:resnet17", "Unknown model resnet17"),
    ],
)
def test_a_network_that_cannot_be_made_is_named(
    folder: Path, architecture: str, words: str
) -> None:
    with pytest.raises(PluginError, match=words):
        create_network(architecture, {}, folder)


def test_weights_of_the_bare_network_are_taken(folder: Path) -> None:
    module = Servable.build(recipe(), folder)
    state = {"linear.weight": torch.ones(3, 3), "linear.bias": torch.zeros(3)}
    module.load_weights(state)
    assert torch.equal(module.bare().get_parameter("linear.weight"), torch.ones(3, 3))


def test_a_batch_norm_that_does_more_stays_where_the_weights_count_no_batches(
    folder: Path,
) -> None:
    answers = []
    for counted in (True, False):
        module = Servable.build(recipe(architecture="tiny.py:Normed"), folder)
        state = module.bare().state_dict()
        if not counted:
            del state["norm.num_batches_tracked"]
        module.load_weights(state)
        answers.append(module.network(torch.zeros(1, 4, 4, 3, dtype=torch.uint8)))
    # What is normalised is negative all over.
    assert torch.equal(answers[0], torch.zeros(1, 3))
    assert torch.equal(answers[0], answers[1])


def test_weights_of_another_float_type_are_converted(folder: Path) -> None:
    module = Servable.build(recipe(), folder)
    module.load_weights({k: v.half() for k, v in module.bare().state_dict().items()})
    assert module.bare().get_parameter("linear.weight").dtype == torch.float32


@pytest.mark.parametrize(
    ("state", "words"),
    [
        ({}, "Missing key"),
        ({"linear.weight": torch.ones(3, 3)}, "Missing key.*linear.bias"),
        ({"linear.weight": torch.ones(4, 3), "linear.bias": torch.ones(4)}, "size mismatch"),
        (
            {"linear.weight": torch.ones(3, 3), "linear.bias": torch.ones(3), "x": torch.ones(1)},
            'Unexpected key.*"x"',
        ),
    ],
)
def test_weights_that_do_not_fit_are_refused_saying_why(
    folder: Path, state: dict[str, torch.Tensor], words: str
) -> None:
    module = Servable.build(recipe(), folder)
    with pytest.raises(WeightsError, match=words) as refused:
        module.load_weights(state)
    assert "the weights do not fit tiny.py:Tiny with arguments {}" in str(refused.value)
    assert "\n" not in str(refused.value)
