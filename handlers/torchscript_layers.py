"""What the submodules of a TorchScript module give: hooks are not to be had there.

A copy of every submodule's result is put into the graphs where it is called, then all calls are
inlined, and the one graph that comes of it gives the copies in place of its own result. A call
within a condition or a loop is not shown.
"""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import Tensor

from handlers import precision, torchscript_devices
from handlers.errors import RuntimeUnavailable
from handlers.layer_names import Calls

_MARK = "layer"


def layers(module: Any, images: Tensor) -> dict[str, Tensor]:
    """Results of submodules by their names; ``module`` must be loaded for this and not frozen.

    Raises RuntimeUnavailable where all calls are within loops.
    """
    marked: set[str] = set()
    for each in module.modules():
        # Modules of one type have one graph.
        if (kind := str(each._c._type())) not in marked:
            marked.add(kind)
            for method in filter(_runs, each._c._method_names()):
                _mark(each._c._get_method(method).graph)
    graph = module._c._get_method("forward").graph.copy()
    torchscript_devices.move(graph, str(images.device))
    marks = [node for node in graph.nodes() if node.hasAttribute(_MARK)]
    if not marks:
        raise RuntimeUnavailable(
            "this TorchScript file calls its modules within loops, as torch.jit.script keeps them: "
            "build it with --method trace to look inside"
        )
    lowered = [name for name, each in module.named_modules() if _is_lowered(each)]
    values, names = [], []
    for mark in marks:
        copy, owner = mark.inputs()
        if (name := _qualified(owner)) not in lowered:
            values.append(copy)
            names.append(precision.before(name, lowered))
        mark.destroy()
    bundle = graph.create("prim::TupleConstruct", values, 1)
    graph.appendNode(bundle)
    bundle.output().setType(torch._C.TupleType([value.type() for value in values]))
    for _ in list(graph.outputs()):
        graph.eraseOutput(0)
    graph.registerOutput(bundle.output())
    calls = Calls()
    results = torch._C._create_function_from_graph("layers", graph)(module._c, images)
    return {calls.next(name): each for name, each in zip(names, results, strict=True)}


def _is_lowered(module: Any) -> bool:
    """Whether it is a ``precision.Lowered``, which gives what the module inside gives."""
    names: list[str] = module._c._type().qualified_name().split(".")
    return (names[1:3], names[-1]) == (["handlers", "precision"], precision.Lowered.__name__)


def _runs(method: str) -> bool:
    """Tracing gives a module a method of its own for every further call: forward1, forward2."""
    return re.fullmatch(r"forward\d*", method) is not None


def _mark(graph: Any) -> None:
    """Put a copy behind every call of a submodule, and a marked pair of the copy and the submodule.

    A copy, for the next module may work in place. The pair, for what calls look like once they are
    inlined forgets the containers that a module was taken from.
    """
    for node in list(graph.nodes()):
        called = node.kind() == "prim::CallMethod" and _runs(node.s("name"))
        if called and str(node.output().type()) == "Tensor":
            none = graph.create("prim::Constant", [], 1)
            none.output().setType(torch._C.NoneType.get())
            none.insertAfter(node)
            copy = graph.create("aten::clone", [node.output(), none.output()], 1)
            copy.insertAfter(none)
            pair = [copy.output(), next(iter(node.inputs()))]
            mark = graph.create("prim::TupleConstruct", pair, 1)
            mark.output().setType(torch._C.TupleType([each.type() for each in pair]))
            mark.s_(_MARK, "")
            mark.insertAfter(copy)


def _qualified(module: Any) -> str:
    """The whole name of a submodule, by the way to it from the one that the graph is of."""
    parts = []
    while (node := module.node()).kind() == "prim::GetAttr":
        parts.append(node.s("name"))
        module = node.input()
    return ".".join(reversed(parts))
