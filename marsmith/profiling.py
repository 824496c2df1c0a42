"""What a network costs: parameters, multiply-adds and activation memory, counted in one eager run.

- Multiply-adds are half of what ``torch.utils.flop_counter`` counts: matrix products, convolutions
  and attention, by the formulas there. Additions of a bias, norms, activations, resizing and
  sorting are not counted, as is usual.
- Activation memory is what operators allocate for their results, read from their tensors' storages.
  ``peak`` is the most of it that is alive at one time, with the input and without the weights;
  ``total`` is all of it, with nothing freed. What a kernel allocates within itself is not seen.

The work of a detector's heads depends on what it finds in the picture.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode


@dataclass
class Layer:
    """One module's own share, without that of the modules in it; shapes without the batch axis."""

    name: str
    kind: str
    weights: int
    parameters: int
    calls: int = 0
    multiply_adds: int = 0
    output: list[int] = field(default_factory=list)


@dataclass(frozen=True)
class Profile:
    """``layers`` in the network's order, those that have parameters or multiply-adds; memory in
    bytes. ``buffers`` are tensors that travel with the weights and are not trained."""

    layers: list[Layer]
    parameters: int
    buffers: int
    weight_bytes: int
    multiply_adds: int
    peak_activation_bytes: int
    total_activation_bytes: int

    def kinds(self) -> dict[str, Layer]:
        """The sums of each kind of layer, most multiply-adds first; ``calls`` counts layers."""
        sums: dict[str, Layer] = {}
        for each in self.layers:
            kind = sums.setdefault(each.kind, Layer(each.kind, each.kind, 0, 0))
            kind.calls += 1
            kind.weights += each.weights
            kind.parameters += each.parameters
            kind.multiply_adds += each.multiply_adds
        return dict(sorted(sums.items(), key=lambda item: -item[1].multiply_adds))


def profile(module: nn.Module, images: Tensor) -> Profile:
    """Run ``module`` once on uint8 ``images`` (N, H, W, C); multiply-adds are of all N together."""
    layers = {name: _layer(name, each) for name, each in module.named_modules()}
    memory = _Memory([*module.parameters(), *module.buffers()])
    memory.hold(images)
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), _plain_attention(), _counted(module, layers, counter), memory, counter:
        module(images)
    # Weights that two layers share are there once.
    state = {id(each): each for each in module.state_dict(keep_vars=True).values()}.values()
    parameters = sum(each.numel() for each in module.parameters())
    return Profile(
        layers=[each for each in layers.values() if each.parameters or each.multiply_adds],
        parameters=parameters,
        buffers=sum(each.numel() for each in state) - parameters,
        weight_bytes=sum(each.nbytes for each in state),
        multiply_adds=counter.get_total_flops() // 2,
        peak_activation_bytes=memory.peak,
        total_activation_bytes=memory.total,
    )


def _layer(name: str, module: nn.Module) -> Layer:
    own = [each.numel() for each in module.parameters(recurse=False)]
    weight = getattr(module, "weight", None)
    return Layer(name, _kind(module), weight.numel() if isinstance(weight, Tensor) else 0, sum(own))


def _kind(module: nn.Module) -> str:
    """The class, and of a convolution what its groups make of it."""
    name = type(module).__name__
    if isinstance(module, nn.modules.conv._ConvNd) and module.groups > 1:
        depthwise = module.groups == module.in_channels
        return f"{name} ({'depthwise' if depthwise else 'grouped'})"
    return name


@contextmanager
def _plain_attention() -> Iterator[None]:
    """Attention in operators that are counted: its fused form for inference is not."""
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)


@contextmanager
def _counted(
    module: nn.Module, layers: Mapping[str, Layer], counter: FlopCounterMode
) -> Iterator[None]:
    """Give each call's FLOPs to the innermost module that runs."""
    # FLOPs at the entry of each running module, and those of modules within it that are done.
    running: list[list[int]] = []

    def enter(*_: Any) -> None:
        running.append([counter.get_total_flops(), 0])

    def leave(layer: Layer, output: Any) -> None:
        start, inner = running.pop()
        spent = counter.get_total_flops() - start
        layer.calls += 1
        layer.multiply_adds += (spent - inner) // 2
        if isinstance(output, Tensor):
            layer.output = list(output.shape[1:])
        if running:
            running[-1][1] += spent

    hooks = []
    for name, each in module.named_modules():
        hooks.append(each.register_forward_pre_hook(enter))
        hooks.append(
            each.register_forward_hook(lambda _m, _i, output, n=name: leave(layers[n], output))
        )
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


class _Memory(TorchDispatchMode):
    """Follows the storages that operators allocate, from their birth to their death."""

    def __init__(self, known: list[Tensor]) -> None:
        super().__init__()
        self._known = {each.untyped_storage()._cdata for each in known}
        self._alive: dict[int, int] = {}
        self.now = self.peak = self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        results = func(*args, **(kwargs or {}))
        for result in tree_leaves(results):
            if isinstance(result, Tensor):
                self.hold(result)
        return results

    def hold(self, tensor: Tensor) -> None:
        """Count the storage of a tensor, if it is new."""
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._alive or key in self._known:
            return
        self._alive[key] = storage.nbytes()
        self.now += storage.nbytes()
        self.total += storage.nbytes()
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._release, key)

    def _release(self, key: int) -> None:
        self.now -= self._alive.pop(key)
