"""Weights: from a spec to a checked local file to a state_dict."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from handlers.errors import PluginError, SpecError, WeightsError
from handlers.integrity import sha256
from handlers.servable import torchvision_entry
from marsmith.spec import ModelSpec, whole

CACHE = Path("weights/download")


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
            f"{path.name} cannot be read as a state_dict ({_why(path, error)}): "
            "save it with torch.save(model.state_dict(), path)"
        ) from error
    for key in ("state_dict", "model_state_dict", "model"):
        if isinstance(saved, dict) and isinstance(saved.get(key), dict):
            saved = saved[key]
    if not isinstance(saved, dict) or not all(isinstance(v, Tensor) for v in saved.values()):
        raise WeightsError(
            f"{path.name} holds a {type(saved).__name__}, not a state_dict of tensors: save it "
            "with torch.save(model.state_dict(), path)"
        )
    return saved


def _why(path: Path, error: Exception) -> str:
    """What a file is that torch.load does not take for tensors, as far as its error tells."""
    words = " ".join(str(error).split())
    if "torch.jit" in words or "TorchScript" in words:
        return "it is a TorchScript file, which is packed with --artifact, or artifact: in YAML"
    if found := re.search(r"GLOBAL (\S+) was not an allowed global", words):
        return (
            f"it holds a pickled object of {found[1]}, such as a whole model, and reading that "
            "would run code of the file"
        )
    return words[:200]
