"""Sixteen bits for the network alone: what is around it computes in float32.

Weights of convolutions and linear layers are converted; autocast decides for everything between
them. So a normalisation keeps its float32 statistics, and no weight is converted at every call.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any

import torch
from torch import nn

from handlers.servable import Adapter, Servable

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
_LAYERS = (nn.Linear, nn.modules.conv._ConvNd)


class Lowered(nn.Module):
    """Computes ``inner`` in ``dtype``; takes float32 and gives float32."""

    def __init__(self, inner: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.inner = inner
        self._dtype = dtype

    def forward(self, given: Any) -> Any:
        device = next(self.inner.parameters()).device.type
        # Its cache of converted weights must not be traced.
        with torch.autocast(device, self._dtype, cache_enabled=False):
            return _float(self.inner(given))


def convert(module: nn.Module, precision: str) -> None:
    """Convert the weights of ``module``'s network in place; nothing for fp32."""
    for _, _, part in _parts(module, precision):
        for layer in part.modules():
            if isinstance(layer, _LAYERS):
                layer.to(DTYPES[precision])


def lower(module: nn.Module, precision: str) -> None:
    """Let the network of ``module`` (a Servable or its ``network``) compute in ``precision``.

    In place. Of a network with a ``backbone``, as torchvision's detectors and segmenters are, that
    part and its ``classifier`` alone: boxes and resized masks would suffer.
    """
    convert(module, precision)
    for owner, name, part in list(_parts(module, precision)):
        setattr(owner, name, Lowered(part, DTYPES[precision]))


def before(name: str, lowered: Collection[str]) -> str:
    """The name that a submodule had before ``lower`` put the ``Lowered`` of these names around."""
    for around in lowered:
        if name.startswith(f"{around}.inner"):
            return around + name.removeprefix(f"{around}.inner")
    return name


def _parts(module: nn.Module, precision: str) -> Iterator[tuple[nn.Module, str, nn.Module]]:
    if precision not in DTYPES:
        return
    owner = module.network if isinstance(module, Servable) else module
    network = owner.get_submodule("network")
    if isinstance(network, Adapter):
        owner, network = network, network.network
    if not hasattr(network, "backbone"):
        yield owner, "network", network
        return
    for name in ("backbone", "classifier"):
        if hasattr(network, name):
            yield network, name, network.get_submodule(name)


def _float(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.float() if value.is_floating_point() else value
    if isinstance(value, Mapping):
        return {name: _float(each) for name, each in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(map(_float, value))
    return value
