"""The module that is exported: pixels in, answers out.

``uint8`` pictures of shape (N, H, W, C) go in; normalisation, the network and the task's head are
inside, so that every runtime gets the same arithmetic and parity is measured on what a user gets.
"""

import importlib.util
import inspect
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from handlers import plugins
from handlers.errors import PluginError, WeightsError

SOURCE = "source"


class Adapter(nn.Module):
    """Base of what a task puts around a bare ``network`` that takes or gives other than tensors."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network


class Network(nn.Module):
    """Normalisation and the adapted network: uint8 (N, H, W, C) -> what the task's decode takes."""

    def __init__(self, network: nn.Module, mean: list[float], std: list[float]) -> None:
        super().__init__()
        # Here, because TorchScript reads annotations of the class, and not when they are strings.
        self.mean: Tensor
        self.std: Tensor
        self.network = network
        shape = (1, len(mean), 1, 1)
        # Scaled by 255 so that pixels need no division of their own: (x - 255 m) / (255 s).
        self.register_buffer("mean", (torch.tensor(mean) * 255).reshape(shape), persistent=False)
        self.register_buffer("std", (torch.tensor(std) * 255).reshape(shape), persistent=False)

    def forward(self, images: Tensor):  # TorchScript infers what it returns
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

    def forward(self, images: Tensor):  # TorchScript infers what it returns
        return self.decode(self.network(images))

    @classmethod
    def build(cls, recipe: dict[str, Any], folder: Path) -> "Servable":
        """The module of a recipe, without weights, in evaluation mode.

        ``recipe`` has the keys architecture ("torchvision:resnet18" or "file.py:Class", a file in
        ``folder``), arguments (of the constructor), task, decode (its settings), mean and std.
        """
        task = plugins.load_task(recipe["task"])
        network = create_network(recipe["architecture"], recipe["arguments"], folder)
        adapted = task.adapt(network, recipe["decode"])
        decode = task.decode(recipe["decode"])
        return cls(Network(adapted, recipe["mean"], recipe["std"]), decode, recipe).eval()

    # A method, since TorchScript compiles every property.
    def bare(self) -> nn.Module:
        """The network as its author wrote it, whose state_dict the weights are."""
        inner = self.network.network
        return inner.network if isinstance(inner, Adapter) else inner

    def load_weights(self, state: dict[str, Tensor]) -> None:
        """Copy a state_dict of the bare network, of any float dtype; raises WeightsError."""
        _freeze_batch_norms(self.bare(), state, self.recipe.get("frozen_eps"))
        try:
            self.bare().load_state_dict(state, strict=True)
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
        return _torchvision_network(name, arguments)
    network = getattr(_import_file(folder / origin), name, None)
    if not callable(network):
        raise PluginError(f"{origin} defines no {name}: name a class or function that it defines")
    try:
        made = network(**arguments)
    except Exception as error:
        raise PluginError(f"{architecture} with arguments {arguments}: {error}") from error
    if not isinstance(made, nn.Module):
        raise PluginError(f"{architecture} made a {type(made).__name__}, not a torch.nn.Module")
    return made


def _torchvision_network(name: str, arguments: dict[str, Any]) -> nn.Module:
    import torchvision

    try:
        builder = torchvision.models.get_model_builder(name)
        if "weights_backbone" in inspect.signature(builder).parameters:
            # Its default would download a backbone only to have it overwritten.
            arguments = {"weights_backbone": None, **arguments}
        network: nn.Module = builder(weights=None, **arguments)
        return network
    except (ValueError, TypeError) as error:
        raise PluginError(f"torchvision:{name} with arguments {arguments}: {error}") from error


def _freeze_batch_norms(module: nn.Module, state: dict[str, Tensor], eps: float | None) -> None:
    """Use frozen batch norms where the weights were saved from such: they count no batches.

    torchvision's detectors have them when they come with weights, and plain ones otherwise.
    """
    from torchvision.ops import FrozenBatchNorm2d

    for name, child in list(module.named_modules()):
        counted = f"{name}.num_batches_tracked" in state
        if isinstance(child, nn.BatchNorm2d) and f"{name}.running_mean" in state and not counted:
            frozen = FrozenBatchNorm2d(child.num_features, eps=child.eps if eps is None else eps)
            module.set_submodule(name, frozen)


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
