"""The module that is exported: pixels in, answers out.

``uint8`` pictures of shape (N, H, W, C) go in; normalisation, the network and the task's head are
inside, so that every runtime gets the same arithmetic and parity is measured on what a user gets.
"""

import copy
import importlib
import importlib.util
import inspect
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn

from handlers import plugins, vision
from handlers.errors import PluginError, WeightsError, one_line

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
    def build(
        cls, recipe: dict[str, Any], folder: Path, network: nn.Module | None = None
    ) -> "Servable":
        """The module of a recipe, in evaluation mode: around ``network``, or one without weights.

        ``recipe`` has the keys architecture ("torchvision:resnet18" or "file.py:Class" or
        "package:Class", a file or package in ``folder``), arguments (of the constructor), task,
        decode (its settings), mean and std, and may have entry, the name of torchvision's weights
        as whose builder makes the network.
        """
        task = plugins.load_task(recipe["task"])
        if network is None:
            network = create_network(
                recipe["architecture"], recipe["arguments"], folder, recipe.get("entry")
            )
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
        freeze_batch_norms(self.bare(), state)
        try:
            self.bare().load_state_dict(_counted(state, self.bare()), strict=True)
        # ValueError: MNASNet's own of a file that does not tell its version.
        except (RuntimeError, AttributeError, TypeError, ValueError) as error:
            detail = one_line(error, 600)
            raise WeightsError(
                f"the weights do not fit {self.recipe['architecture']} with arguments "
                f"{self.recipe['arguments']}: {detail}"
            ) from error


def create_network(
    architecture: str, arguments: dict[str, Any], folder: Path, entry: str | None = None
) -> nn.Module:
    """The bare network "torchvision:<name>" or "<file.py>:<class>" of ``folder``, untrained.

    A package is named as "<folder>:<class>" or "<folder>:<submodule>.<class>".

    ``entry`` names the weights of torchvision that will be loaded: their builder differs.
    """
    origin, _, name = architecture.partition(":")
    if origin == "torchvision":
        return _torchvision_network(name, arguments, entry)
    *inner, name = name.split(".")
    network = getattr(_import_source(folder / origin, inner), name, None)
    if not callable(network):
        raise PluginError(f"{origin} defines no {name}: name a class or function that it defines")
    try:
        made = network(**arguments)
    except Exception as error:
        raise PluginError(f"{architecture} with arguments {arguments}: {error}") from error
    if not isinstance(made, nn.Module):
        raise PluginError(f"{architecture} made a {type(made).__name__}, not a torch.nn.Module")
    return made


def torchvision_entry(name: str, entry: str) -> Any:
    """torchvision's entry (url, transforms, meta) of its weights; raises PluginError."""
    try:
        return vision.torchvision().models.get_model_weights(name)[entry]
    except (KeyError, ValueError) as error:
        raise PluginError(f"torchvision's {name} has no weights {entry} ({error})") from error


def _torchvision_network(name: str, arguments: dict[str, Any], entry: str | None) -> nn.Module:
    try:
        try:
            builder = vision.torchvision().models.get_model_builder(name)
        except ValueError as error:
            raise PluginError(f"torchvision: {error}; {vision.nearest(name)}") from error
        if "weights_backbone" in inspect.signature(builder).parameters:
            # Its default would download a backbone only to have it overwritten.
            arguments = {"weights_backbone": None, **arguments}
        if entry is None:
            network: nn.Module = builder(weights=None, **arguments)
        else:
            network = _unloaded(builder, torchvision_entry(name, entry), arguments)
        return network
    except PluginError:
        raise
    # Arguments of a wrong kind fail where the builder first uses them, in any way.
    except Exception as error:
        line = one_line(error)
        raise PluginError(f"torchvision:{name} with arguments {arguments}: {line}") from error


def _unloaded(builder: Callable[..., Any], weights: Any, arguments: dict[str, Any]) -> Any:
    """What ``builder`` makes with ``weights`` (frozen batch norms, say), without their values."""
    with (
        patch.object(weights, "get_state_dict", lambda **_: {}),
        patch.object(nn.Module, "load_state_dict", lambda *_, **__: None),
    ):
        return builder(weights=weights, **arguments)


def freeze_batch_norms(module: nn.Module, state: dict[str, Tensor]) -> None:
    """Use frozen batch norms where the weights were saved from such: they count no batches.

    torchvision's detectors have them when they come with weights, and plain ones otherwise. What
    derives from a batch norm may do more, such as an activation, and stays.
    """
    for name, child in list(module.named_modules()):
        counted = f"{name}.num_batches_tracked" in state
        if type(child) is nn.BatchNorm2d and f"{name}.running_mean" in state and not counted:
            # Here, for most networks of one's own need no torchvision.
            frozen = vision.torchvision().ops.FrozenBatchNorm2d
            module.set_submodule(name, frozen(child.num_features, eps=child.eps))


def _counted(state: dict[str, Tensor], module: nn.Module) -> dict[str, Tensor]:
    """The state_dict with the counts of batches that it lacks: only training asks for them."""
    # A copy keeps the versions of the modules, by which some of them read a file.
    counted = copy.copy(state)
    for key, value in module.state_dict().items():
        if key.endswith(".num_batches_tracked"):
            counted.setdefault(key, value)
    return counted


def _import_source(path: Path, inner: list[str]) -> Any:
    """Import a file or a package (and its module ``inner``) under a name of its own.

    So it shadows no other module, and relative imports find their neighbours.
    """
    name = f"marsmith_{SOURCE}_" + re.sub(r"\W", "_", path.name.removesuffix(".py"))
    file, places = (path, None) if path.suffix == ".py" else (path / "__init__.py", [str(path)])
    spec = importlib.util.spec_from_file_location(name, file, submodule_search_locations=places)
    if spec is None or spec.loader is None or not file.is_file():
        raise PluginError(f"no Python file {file.name} with the network's source in {path.name}")
    # Of another archive, or of the folder that this one was built from.
    for known in [known for known in sys.modules if f"{known}.".startswith(f"{name}.")]:
        del sys.modules[known]
    importlib.invalidate_caches()
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
        return importlib.import_module(".".join([name, *inner]))
    except ModuleNotFoundError as error:
        missing = str(error.name).replace(name, path.name)
        raise PluginError(
            f"{path.name} imports {missing}, which is neither in the archive nor installed: "
            "install it on every host, or make the network's folder a package and import it "
            "relatively"
        ) from error
    # A source may fail at import in any way.
    except Exception as error:
        line = one_line(error)
        raise PluginError(
            f"{path.name} cannot be imported: {type(error).__name__}: {line}"
        ) from error
