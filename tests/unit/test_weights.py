"""Weights: the right file, whole and of tensors, or a message that says what to do."""

from __future__ import annotations

import os
import pickle
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from handlers.errors import SpecError, WeightsError
from handlers.integrity import sha256
from marsmith.spec import ModelSpec, parse
from marsmith.weights import load, locate, torchvision_weights

STATE = {"linear.weight": torch.ones(2, 3), "linear.bias": torch.zeros(2)}


class Anything:
    """Something that a state_dict must not hold."""


def spec(**weights: Any) -> ModelSpec:
    fields = {
        "name": "m",
        "task": "image-classification",
        "architecture": "torchvision:squeezenet1_1",
        "weights": weights,
    }
    return parse(fields, "m.yaml")


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    torch.save(STATE, tmp_path / "w.pth")
    return tmp_path / "w.pth"


def test_a_file_with_the_right_digest_is_found(saved: Path) -> None:
    assert locate(spec(file="w.pth"), saved.parent) == saved
    assert locate(spec(file="w.pth", sha256=sha256(saved)), saved.parent) == saved


def test_a_file_with_another_digest_is_refused_with_both(saved: Path) -> None:
    with pytest.raises(WeightsError) as refused:
        locate(spec(file="w.pth", sha256="0" * 64), saved.parent)
    assert sha256(saved) in str(refused.value)
    assert "0" * 64 in str(refused.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    words = f"no weights at {tmp_path}/weights/w.pth (paths in a model file are relative to "
    with pytest.raises(WeightsError, match=re.escape(f"{words}{tmp_path})")):
        locate(spec(file="weights/w.pth"), tmp_path)
    with pytest.raises(WeightsError, match=r"no weights at /nowhere/w\.pth: put"):
        locate(spec(file="/nowhere/w.pth"), tmp_path)


def test_torchvisions_weights_come_from_the_cache_when_they_are_there(tmp_path: Path) -> None:
    wanted = spec(torchvision="IMAGENET1K_V1")
    url = torchvision_weights(wanted).url
    cached = tmp_path / "weights/download" / url.rsplit("/", 1)[1]
    cached.parent.mkdir(parents=True)
    cached.write_bytes(b"not theirs")
    pinned = spec(torchvision="IMAGENET1K_V1", sha256=sha256(cached))
    assert locate(pinned, tmp_path) == cached


@pytest.mark.parametrize("name", ["IMAGENET1K_V9", "", "url"])
def test_weights_that_torchvision_does_not_have_are_refused(name: str) -> None:
    with pytest.raises(
        SpecError, match=r"weights.torchvision: torchvision's squeezenet1_1 has no weights"
    ):
        torchvision_weights(spec(torchvision=name))


def test_torchvisions_weights_need_torchvisions_architecture() -> None:
    own = spec(torchvision="IMAGENET1K_V1").model_copy(update={"architecture": "net.py:Net"})
    with pytest.raises(SpecError, match="needs an architecture of torchvision"):
        torchvision_weights(own)


@pytest.mark.parametrize("key", [None, "state_dict", "model_state_dict", "model"])
def test_a_state_dict_is_read_alone_or_in_a_checkpoint(tmp_path: Path, key: str | None) -> None:
    path = tmp_path / "w.pth"
    torch.save(STATE if key is None else {key: STATE, "epoch": 3}, path)
    assert load(path).keys() == STATE.keys()
    assert torch.equal(load(path)["linear.weight"], STATE["linear.weight"])


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ([1, 2], "holds a list, not a state_dict"),
        (torch.ones(3), "holds a Tensor, not a state_dict"),
        ({"epoch": 3}, "holds a dict of epoch, not a state_dict of tensors"),
        ({"state_dict": {"a": 1}}, "holds a dict of a, not a state_dict of tensors"),
        (
            {"net": STATE, "acc": 0.9},
            "dict of net, acc, .* under state_dict, model_state_dict or model",
        ),
    ],
)
def test_a_file_of_something_else_says_what_it_holds(
    tmp_path: Path, content: object, words: str
) -> None:
    torch.save(content, tmp_path / "w.pth")
    with pytest.raises(WeightsError, match=words):
        load(tmp_path / "w.pth")


def test_no_object_but_tensors_is_unpickled(tmp_path: Path) -> None:
    torch.save(Anything(), tmp_path / "w.pth")
    with pytest.raises(WeightsError, match=r"save it with torch\.save\(model\.state_dict"):
        load(tmp_path / "w.pth")
    (tmp_path / "p.pth").write_bytes(pickle.dumps(Anything()))
    with pytest.raises(WeightsError, match=r"p\.pth cannot be read as a state_dict"):
        load(tmp_path / "p.pth")


class Runs:
    """What runs a command where it is unpickled."""

    def __reduce__(self) -> Any:
        return os.system, ("true",)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "it is empty: copy or download it again"),
        (b"\n<!DOCTYPE html><html>404</html>", "it is a page of HTML or XML: download the file"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
        (b"\x93NUMPY\x01\x00v\x00{", r"\(Unsupported operand 147\): save it with torch\.save"),
    ],
)
def test_a_file_of_another_kind_is_told_by_what_it_is(
    tmp_path: Path, content: bytes, words: str
) -> None:
    (tmp_path / "w.pth").write_bytes(content)
    with pytest.raises(WeightsError, match=words) as refused:
        load(tmp_path / "w.pth")
    assert "set to" not in str(refused.value)


def test_half_a_file_is_told_from_a_whole_one(saved: Path) -> None:
    saved.write_bytes(saved.read_bytes()[:-200])
    with pytest.raises(WeightsError, match="it is cut off: copy or download it again"):
        load(saved)


@pytest.mark.parametrize("content", [Runs(), Anything()])
def test_nobody_is_told_to_unpickle_what_runs_code(tmp_path: Path, content: object) -> None:
    torch.save(content, tmp_path / "w.pth")
    with pytest.raises(WeightsError, match="reading that would run code of the file") as refused:
        load(tmp_path / "w.pth")
    assert "set to" not in str(refused.value)


@given(data=st.data())
def test_no_damage_raises_anything_else(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    path = tmp_path_factory.getbasetemp() / "damaged.pth"
    torch.save(STATE, path)
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content[: data.draw(st.integers(0, len(content)))])
    message = ""
    try:
        load(path)
    except WeightsError as refused:
        message = str(refused)
    assert "\n" not in message


@given(st.binary(max_size=60))
def test_no_bytes_raise_anything_else(
    tmp_path_factory: pytest.TempPathFactory, content: bytes
) -> None:
    path = tmp_path_factory.getbasetemp() / "bytes.pth"
    path.write_bytes(content)
    with pytest.raises(WeightsError, match="cannot be read as a state_dict"):
        load(path)
