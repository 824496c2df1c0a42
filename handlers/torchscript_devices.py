"""Devices that tracing wrote down: ``torch.jit.load`` moves tensors, not these."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

# A tensor's shape as a tensor is always made on the CPU, beside constants that are not there.
_SHAPE = """
graph(%x):
    %shape : Tensor = aten::_shape_as_tensor(%x)
    return (%shape)
"""
_MOVED_SHAPE = """
graph(%x):
    %shape : Tensor = aten::_shape_as_tensor(%x)
    %device : Device = prim::Constant[value="DEVICE"]()
    %int64 : int = prim::Constant[value=4]()
    %no : bool = prim::Constant[value=0]()
    %none : NoneType = prim::Constant()
    %moved : Tensor = aten::to(%shape, %device, %int64, %no, %no, %none)
    return (%moved)
"""


def move(graph: Any, device: str) -> None:
    """Inline all calls of a TorchScript graph and let all that it makes be made on ``device``.

    In place, before the graph runs or is frozen. A traced ``torch.arange(n, device=x.device)``
    has the device of the host that traced it: it would make tensors there on every other one.
    """
    torch._C._jit_pass_inline(graph)
    for node in devices(graph):
        node.s_("value", device)
    torch._C._jit_pass_custom_pattern_based_rewrite_graph(
        _SHAPE, _MOVED_SHAPE.replace("DEVICE", device), graph
    )


def devices(block: Any) -> Iterator[Any]:
    """The nodes of a graph, and of the branches and loops inside, that name a device."""
    for node in block.nodes():
        if node.kind() == "prim::Constant" and str(node.output().type()) == "Device":
            yield node
        for inner in node.blocks():
            yield from devices(inner)
