"""Weights: from a spec to a checked local file to a state_dict."""

from __future__ import annotations

import re
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from handlers.errors import PluginError, SpecError, WeightsError, one_line
from handlers.integrity import sha256
from handlers.servable import torchvision_entry
from marsmith.spec import ModelSpec, whole

CACHE = Path("weights/download")
# Under which of a checkpoint's keys its state_dict may be.
_KEYS = ("state_dict", "model_state_dict", "model")
# How many keys of another dict are told.
_TOLD = 8
_SAVE = "save it with torch.save(model.state_dict(), path)"
_UNSAFE = re.compile(r"GLOBAL (\S+) (?:was not an allowed global|whose module \S+ is blocked)")
_ADVICE = re.compile(r"In PyTorch 2\.6,|Check the documentation of torch")


def locate(spec: ModelSpec, root: Path) -> Path:
    """The local file of a spec's weights, downloaded where needed, its sha256 checked."""
    if spec.weights.file is None:
        from marsmith.download import download

        url = torchvision_weights(spec).url
        name = url.rsplit("/", 1)[1]
        # torchvision's file names end in the first eight digits of their sha256.
        digest = spec.weights.sha256 or name.rsplit("-", 1)[-1].partition(".")[0]
        return download(url, root / CACHE / name, digest)
    path = root / spec.weights.file
    if not path.is_file():
        place = whole(spec.weights.file, root)
        raise WeightsError(f"no weights at {place}: put the state_dict's file there")
    if spec.weights.sha256 and sha256(path) != spec.weights.sha256:
        raise WeightsError(
            f"{spec.weights.file} has sha256 {sha256(path)}, the spec says {spec.weights.sha256}: "
            "get the right file, or correct the spec if the weights were meant to change"
        )
    return path


def torchvision_weights(spec: ModelSpec) -> Any:
    """torchvision's entry (url, transforms, meta) of the weights that a spec names."""
    origin, _, name = spec.architecture.partition(":")
    if origin != "torchvision":
        raise SpecError("weights.torchvision needs an architecture of torchvision")
    try:
        return torchvision_entry(name, str(spec.weights.torchvision))
    except PluginError as error:
        raise SpecError(f"weights.torchvision: {error}") from error


def load(path: Path) -> dict[str, Tensor]:
    """The state_dict in a file, alone or under the usual keys of a checkpoint.

    Only tensors and plain containers are unpickled. Raises WeightsError.
    """
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True)
    # Its unpickler meets damage with IndexError, KeyError, struct.error and more.
    except Exception as error:
        raise WeightsError(
            f"{path.name} cannot be read as a state_dict: {_why(path, error)}"
        ) from error
    for key in _KEYS:
        if isinstance(saved, dict) and isinstance(saved.get(key), dict):
            saved = saved[key]
    if not isinstance(saved, dict) or not all(isinstance(v, Tensor) for v in saved.values()):
        raise WeightsError(
            f"{path.name} holds {_what(saved)}, not a state_dict of tensors, alone or under "
            f"{', '.join(_KEYS[:-1])} or {_KEYS[-1]}: {_SAVE}"
        )
    return saved


def _what(saved: Any) -> str:
    """What a file holds in the place of a state_dict."""
    if not isinstance(saved, dict):
        return f"a {type(saved).__name__}"
    keys = [" ".join(f"{key!s:.40}".split()) for key in saved]
    more = ", ..." if len(keys) > _TOLD else ""
    return f"a {type(saved).__name__} of {', '.join(keys[:_TOLD])}{more}"


def _why(path: Path, error: Exception) -> str:
    """What a file is that torch.load does not take for tensors, and what to do."""
    with path.open("rb") as file:
        start = file.read(64)
    if not start:
        return "it is empty: copy or download it again"
    if start.startswith(b"version https://git-lfs"):
        return "it is a pointer of git-lfs: fetch the file that it stands for with git lfs pull"
    if start.lstrip().startswith(b"<"):
        return "it is a page of HTML or XML: download the file itself"
    # The directory of a zip file is its end.
    if start.startswith(b"PK\x03\x04") and not zipfile.is_zipfile(path):
        return "it is cut off: copy or download it again"
    words = one_line(error, None)
    if "torch.jit" in words or "TorchScript" in words:
        return "it is a TorchScript file: pack it with --artifact, or artifact: in YAML"
    if found := _UNSAFE.search(words):
        return (
            f"it holds a pickled object of {found[1]}, such as a whole model, and reading that "
            f"would run code of the file: {_SAVE}"
        )
    # Around the reason torch advises to read the file without its guard.
    reason = _ADVICE.split(words.rpartition("WeightsUnpickler error: ")[2])[0].strip()
    return f"torch.load says {type(error).__name__} ({reason:.200}): {_SAVE}"
