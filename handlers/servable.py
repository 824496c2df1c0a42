"""The module that is exported: pixels in, answers out.

``uint8`` pictures of shape (N, H, W, C) go in; normalisation, the network and the task's head are
inside, so that every runtime gets the same arithmetic and parity is measured on what a user gets.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from handlers import plugins
from handlers.errors import PluginError, WeightsError

SOURCE = "source"


class Network(nn.Module):
    """Normalisation and the bare network: uint8 (N, H, W, C) -> whatever the network gives."""

    def __init__(self, network: nn.Module, mean: list[float], std: list[float]) -> None:
        super().__init__()
        self.network = network
        shape = (1, len(mean), 1, 1)
        # Scaled by 255 so that pixels need no division of their own: (x - 255 m) / (255 s).
        self.register_buffer("mean", (torch.tensor(mean) * 255).reshape(shape), persistent=False)
        self.register_buffer("std", (torch.tensor(std) * 255).reshape(shape), persistent=False)

    def forward(self, images: Tensor):  # type: ignore[no-untyped-def]  # TorchScript infers it
        pixels = images.permute(0, 3, 1, 2).to(self.mean.dtype)
        return self.network((pixels - self.mean) / self.std)


class Servable(nn.Module):
    """``network`` and the task's ``decode``; every output's first axis is the batch.

    ``recipe`` is what ``build`` made the module of, as JSON values.
    """

    def __init__(self, network: Network, decode: nn.Module, recipe: dict[str, Any]) -> None:
        super().__init__()
        self.network = network
        self.decode = decode
        self.recipe = recipe

    def forward(self, images: Tensor):  # type: ignore[no-untyped-def]  # TorchScript infers it
        return self.decode(self.network(images))

    @classmethod
    def build(cls, recipe: dict[str, Any], folder: Path) -> Servable:
        """The module of a recipe, without weights, in evaluation mode.

        ``recipe`` has the keys architecture ("torchvision:resnet18" or "file.py:Class", a file in
        ``folder``), arguments (of the constructor), task, decode (its settings), mean and std.
        """
        network = create_network(recipe["architecture"], recipe["arguments"], folder)
        decode = plugins.load_task(recipe["task"]).decode(recipe["decode"])
        module = cls(Network(network, recipe["mean"], recipe["std"]), decode, recipe)
        return module.eval()

    def load_weights(self, state: dict[str, Tensor]) -> None:
        """Copy a state_dict of the bare network, of any float dtype; raises WeightsError."""
        network = self.network.network
        try:
            network.load_state_dict(state, strict=True)
        except (RuntimeError, AttributeError, TypeError) as error:
            detail = " ".join(str(error).split())[:600]
            raise WeightsError(
                f"the weights do not fit {self.recipe['architecture']} with arguments "
                f"{self.recipe['arguments']}: {detail}"
            ) from error


def create_network(architecture: str, arguments: dict[str, Any], folder: Path) -> nn.Module:
    """The bare network "torchvision:<name>" or "<file.py>:<class>" of ``folder``, untrained."""
    origin, _, name = architecture.partition(":")
    if origin == "torchvision":
        import torchvision

        return torchvision.models.get_model(name, weights=None, **arguments)
    network = getattr(_import_file(folder / origin), name, None)
    if not callable(network):
        raise PluginError(f"{origin} defines no {name}: name a class or function that it defines")
    made = network(**arguments)
    if not isinstance(made, nn.Module):
        raise PluginError(f"{architecture} made a {type(made).__name__}, not a torch.nn.Module")
    return made


def _import_file(path: Path) -> Any:
    """Import a file under a name of its own, so that it shadows no other module."""
    name = f"marsmith_{SOURCE}_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None or not path.is_file():
        raise PluginError(f"no Python file {path.name} with the network's source")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module
