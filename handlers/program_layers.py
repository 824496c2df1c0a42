"""What the submodules of a ``torch.export`` program give, by what it keeps of where each node was.

A module's result is the one value that nodes outside of it read of those inside. One that gives
several, or that computes nothing (dropout in evaluation), has none.
"""

from __future__ import annotations

import torch
from torch import Tensor, fx

from handlers.layer_names import Calls

_STACK = "nn_module_stack"


def tap(module: fx.GraphModule) -> list[str]:
    """Let the module of a program give its submodules' results instead of its own, as a tuple.

    Their names, in the order of computing. In place.
    """
    graph = module.graph
    results = _results(graph)
    # A copy, for the next module may work in place.
    copies = []
    for node in results.values():
        with graph.inserting_after(node):
            copies.append(graph.call_function(torch.ops.aten.clone.default, (node,)))
    (output,) = (node for node in graph.nodes if node.op == "output")
    output.args = (tuple(copies),)
    # What the program's own outputs look like no longer holds.
    graph.set_codegen(fx.graph.CodeGen())
    graph.eliminate_dead_code()
    module.recompile()
    return list(results)


def _results(graph: fx.Graph) -> dict[str, fx.Node]:
    """The nodes that are results, by the names of the modules; ``#1`` behind at a second call."""
    # A second call of a module has a key of its own, under the same name.
    inside: dict[str, list[fx.Node]] = {}
    names: dict[str, str] = {}
    for node in graph.nodes:
        for key, (name, _) in node.meta.get(_STACK, {}).items():
            if name:
                inside.setdefault(key, []).append(node)
                names[key] = name
    calls = Calls()
    found: dict[str, fx.Node] = {}
    for key, nodes in inside.items():
        name, own = calls.next(names[key]), set(nodes)
        read = [node for node in nodes if not own.issuperset(node.users)]
        if len(read) == 1 and isinstance(read[0].meta.get("val"), Tensor):
            found[name] = read[0]
    order = {node: place for place, node in enumerate(graph.nodes)}
    return dict(sorted(found.items(), key=lambda each: order[each[1]]))
