"""Names of an ONNX graph's nodes and values that say which eager module they come from.

- A ``Conv``, ``ConvTranspose``, ``Gemm`` or ``MatMul`` node bears the qualified name of the module
  whose weights it has: ``network.network.features.0.0``. Every other node bears that of the module
  it was computed in, and its own kind: ``network.network.features.0.2/Clip``.
- A value that is what a module gives bears that module's name, so that it can be compared with
  what the eager module gives. Both exporters fold a batch norm into the convolution in front of
  it: then the node is named after the convolution (``...features.0.0``) and its value after the
  batch norm (``...features.0.1``), and no value is named after the convolution.
- ``#1``, ``#2`` follow where a module is called again (``...head.conv.0#1``);
  ``layer_names.module_of`` takes that and the kind off.

What runs is another graph, in which the names are kept as far as this (measured on all tasks):

- ONNX Runtime keeps node names when it folds a batch norm or an activation into a convolution.
  In its blocked layout (level "all" on processors that have it) it names a convolution after its
  value, with ``_nchwc`` behind.
- OpenVINO makes the node name the operation's friendly name, also in the compiled model; of a
  layer with a bias that is ``NAME/WithoutBiases``, which ``module_of`` reads rightly. A value's
  name is that of the operation's output tensor and stays in the IR.
"""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

from handlers.layer_names import numbered

if TYPE_CHECKING:
    from torch import Tensor, nn

WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul")
SCOPES = "pkg.torch.onnx.name_scopes"
# Ends every module's name in the scopes of the exporter by tracing.
_MARK = "|"


@dataclass
class Calls:
    """What one eager run of a module tells: how often each submodule was called (``counts``), and
    after which submodule each batch norm was (``norms``: its input's maker -> the norm), and how
    many ``outputs`` the module has."""

    modules: frozenset[str] = frozenset()
    counts: Counter[str] = field(default_factory=Counter)
    norms: dict[str, str] = field(default_factory=dict)
    outputs: int = 1


@dataclass(frozen=True)
class _Place:
    """Where a node was computed: in which call of which module, within which others."""

    module: str
    call: int
    path: tuple[str, ...]


def watch(module: nn.Module, example: Tensor) -> Calls:
    """Run ``module`` once and note its submodules' calls."""
    import torch
    from torch import Tensor, nn

    calls = Calls(frozenset(name for name, _ in module.named_modules()))
    # The tensors are kept, as an address that is free again would be taken for the same one.
    makers: dict[int, tuple[str, Tensor]] = {}

    def note(name: str, norm: bool) -> Any:
        def hook(_: nn.Module, inputs: Any, output: Any) -> None:
            calls.counts[name] += 1
            if norm and id(inputs[0]) in makers:
                calls.norms[makers[id(inputs[0])][0]] = name
            if isinstance(output, Tensor):
                makers[id(output)] = name, output

        return hook

    hooks = [
        each.register_forward_hook(note(name, isinstance(each, nn.modules.batchnorm._BatchNorm)))
        for name, each in module.named_modules()
    ]
    try:
        with torch.no_grad():
            outputs = module(example)
        calls.outputs = len(outputs) if isinstance(outputs, (tuple, list)) else 1
    finally:
        for hook in hooks:
            hook.remove()
    return calls


@contextmanager
def marked(module: nn.Module) -> Iterator[None]:
    """The exporter by tracing names scopes with whole names of modules, each ending in a mark.

    Left alone, it keeps but the end of a name ("conv.0") and adds "_1" at a second call, which may
    be another module's name.
    """
    names = [(f"{name.replace('.', _MARK)}{_MARK}", each) for name, each in module.named_modules()]
    with patch.object(module, "named_modules", lambda *_, **__: iter(names)):
        yield


def apply(model: Any, calls: Calls) -> None:
    """Name the nodes and values of an exporter's ``onnx.ModelProto``, its metadata still there."""
    graph = model.graph
    places = _places(graph.node, calls)
    kept = {each.name for each in (*graph.input, *graph.output, *graph.initializer)}
    results = _results(graph.node, places, calls)
    _rename(graph, places, results, dict.fromkeys(kept), Counter(), calls)


def _places(nodes: Iterable[Any], calls: Calls) -> list[_Place | None]:
    traced = [_traced(node.name) for node in nodes]
    found, operations = [], dict[str, list[str]]()
    for node in nodes:
        scopes = next((p.value for p in node.metadata_props if p.key == SCOPES), "[]")
        *path, operation = ast.literal_eval(scopes) or [""]
        path = [name for name in path if name in calls.modules]
        found.append((tuple(path), operation))
        if path and operation not in (made := operations.setdefault(path[-1], [])):
            made.append(operation)
    return [
        place or (_exported(path, operation, operations, calls) if path else None)
        for place, (path, operation) in zip(traced, found, strict=True)
    ]


def _traced(name: str) -> _Place | None:
    """The place in a scope such as "|/network|/network|features|_1/Conv"."""
    *scopes, _ = name.split("/")
    if not scopes or not all(_MARK in scope for scope in scopes):
        return None
    parts = [scope.rpartition(_MARK) for scope in scopes]
    path = tuple(part[0].replace(_MARK, ".") for part in parts)
    return _Place(path[-1], int(parts[-1][2].removeprefix("_") or 0), path)


def _exported(
    path: tuple[str, ...], operation: str, operations: dict[str, list[str]], calls: Calls
) -> _Place:
    """The place in torch.export's metadata, which tells no calls apart: each has as many
    operations as another; call -1 where they do not divide evenly."""
    made, count = operations[path[-1]], max(1, calls.counts[path[-1]])
    each = len(made) // count
    call = made.index(operation) // each if each * count == len(made) else -1
    return _Place(path[-1], call, path)


def _results(nodes: Iterable[Any], places: list[_Place | None], calls: Calls) -> dict[int, str]:
    """Names of values that modules give, by the index of their node.

    It is the module's last node of all that were computed within the call; a module whose last one
    lies within another module gives what that gives.
    """
    last: dict[tuple[str, int], int] = {}
    outer = {name for place in places if place for name in place.path[:-1]}
    for index, place in enumerate(places):
        if place is not None and place.call >= 0:
            last[place.module, place.call] = index
            last |= {(name, 0): index for name in place.path[:-1] if calls.counts[name] == 1}
    results: dict[int, str] = {}
    for index, (node, place) in enumerate(zip(nodes, places, strict=True)):
        if place is None or last.get((place.module, place.call)) != index or len(node.output) > 1:
            continue
        # Of a second call of a module with others in it, scopes do not tell the end.
        if place.module in outer and calls.counts[place.module] != 1:
            continue
        module = calls.norms.get(place.module) if _folded(node, place.module) else place.module
        name = module and numbered(module, place.call)
        if name and name not in results.values():
            results[index] = name
    return results


def _folded(node: Any, module: str) -> bool:
    """Whether the exporter by tracing put a batch norm into a convolution: its weights are new.

    The other exporter leaves such a node in the scope of the batch norm.
    """
    exported = any(each.key == SCOPES for each in node.metadata_props)
    return not exported and node.op_type in WEIGHTED[:2] and node.input[1] != f"{module}.weight"


def _rename(
    graph: Any,
    places: list[_Place | None],
    results: dict[int, str],
    known: dict[str, str | None],
    used: Counter[str],
    calls: Calls,
) -> None:
    """Rename nodes, and values but those whose name in ``known`` is None; inner graphs as well."""
    names = dict(known)
    for index, (node, place) in enumerate(zip(graph.node, places, strict=True)):
        if place is not None:
            plain = _plain(node, place.module, calls)
            node.name = numbered(plain.removeprefix("/"), used[plain])
            used[plain] += 1
            for number, output in enumerate(node.output):
                names.setdefault(output, results.get(index, f"{node.name}:{number}"))
        node.input[:] = [names.get(name) or name for name in node.input]
        node.output[:] = [names.get(name) or name for name in node.output]
        for inner in (each.g for each in node.attribute if each.HasField("g")):
            inside = _places(inner.node, calls)
            _rename(inner, inside, {}, names, used, calls)
    for value in (*graph.value_info, *graph.output):
        value.name = names.get(value.name) or value.name


def _plain(node: Any, module: str, calls: Calls) -> str:
    if node.op_type not in WEIGHTED:
        return f"{module}/{node.op_type}"
    # A batch norm's scope, or that of attention whose projection is not called as a module.
    owner = node.input[1].removesuffix(".weight")
    return owner if owner in calls.modules else module
