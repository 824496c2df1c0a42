"""Eager PyTorch: the reference that every other runtime is compared with."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from handlers import precision, saving
from handlers.errors import IntegrityError, one_line
from handlers.layer_names import Calls
from handlers.runtimes import Array, Arrays, ExportRequest, Runtime, as_arrays
from handlers.servable import SOURCE, Servable


class Eager(Runtime):
    """A state_dict and the recipe that builds its module; a network's own source lies beside it."""

    suffix = ".pth"
    needs_source = True
    precisions = ("fp32", *precision.DTYPES)

    def __init__(self, path: Path, device: str, options: Mapping[str, Any]) -> None:
        torch.set_num_threads(options["threads"])
        try:
            saved = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        # Its unpickler meets damage with errors of any kind.
        except Exception as error:
            line = one_line(error)
            raise IntegrityError(f"{path.name} cannot be read by torch.load: {line}") from error
        if not isinstance(saved, dict) or set(saved) != {"recipe", "state"}:
            raise IntegrityError(f"{path.name} is not an artifact of the eager runtime")
        module = Servable.build(saved["recipe"], path.parent / SOURCE)
        module.load_weights(saved["state"])
        precision.lower(module, options["precision"])
        self._module = module.to(device)
        self._device = device

    def __call__(self, *arrays: Array) -> Arrays:
        with torch.inference_mode():
            images = (torch.from_numpy(array).to(self._device) for array in arrays)
            return as_arrays(self._module(*images))

    def layers(self, images: Array) -> dict[str, Array]:
        return layers(self._module, torch.from_numpy(images).to(self._device))

    @staticmethod
    def export(request: ExportRequest) -> None:
        module = request.module
        assert isinstance(module, Servable), "eager takes every shape, and so the whole module"
        if request.precision in precision.DTYPES:
            module = copy.deepcopy(module)
            precision.convert(module, request.precision)
        saved = {"recipe": module.recipe, "state": module.bare().state_dict()}
        saving.write(lambda file: torch.save(saved, file), request.path)


def layers(module: torch.nn.Module, images: Tensor) -> dict[str, Array]:
    """What each submodule gives for ``images``, by forward hooks; see ``Runtime.layers``."""
    found: dict[str, Array] = {}
    calls = Calls()

    def keep(name: str, output: Any) -> None:
        key = calls.next(name)
        if isinstance(output, tuple) and sum(part is not None for part in output) == 1:
            # Attention without its weights.
            output = output[0]
        if isinstance(output, Tensor):
            # A copy: the next module may work in place. Numpy has no bfloat16.
            found[key] = output.detach().float().cpu().numpy().copy()

    modules = dict(module.named_modules())
    # These give what the one inside gives.
    lowered = [name for name, each in modules.items() if isinstance(each, precision.Lowered)]
    names = {name: precision.before(name, lowered) for name in modules if name not in lowered}
    hooks = [
        modules[name].register_forward_hook(lambda _m, _i, output, told=told: keep(told, output))
        for name, told in names.items()
        if name
    ]
    try:
        with torch.inference_mode():
            module(images)
    finally:
        for hook in hooks:
            hook.remove()
    return found
