"""Weights that do not fit the network: what the error says."""

from __future__ import annotations

import pytest
import torch
import torchvision
from torch import Tensor, nn

from handlers.errors import MarsmithError
from marsmith import fitting


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


@pytest.mark.parametrize("prefix", ["", "module.", "model.net."])
def test_what_modules_say_of_their_version_stays_with_the_weights(prefix: str) -> None:
    """MNASNet reads a file by it, and takes none without."""
    theirs = torchvision.models.mnasnet0_5(num_classes=3)
    holder: nn.Module = theirs
    for name in reversed(prefix.split(".")[:-1]):
        holder = nn.ModuleDict({name: holder})
    ours = torchvision.models.mnasnet0_5(num_classes=3)
    state, _ = fitting.unwrapped(holder.state_dict(), ours)
    ours.load_state_dict(state)
    assert torch.equal(ours.layers[0].weight, theirs.layers[0].weight)


def test_a_head_that_was_replaced_is_told_the_way() -> None:
    trained = resnet(5)
    trained.fc = nn.Sequential(nn.Dropout(), nn.Linear(512, 3))  # type: ignore[assignment]
    words = refusal(trained.state_dict(), resnet(3))
    assert '"fc" was replaced: name a function that makes the network so' in words
