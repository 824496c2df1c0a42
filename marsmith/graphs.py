"""The ONNX graph of a model, and its nodes in groups of one module each."""

from __future__ import annotations

import ast
import math
import re
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from handlers import layer_names, onnx_export, onnx_names
from handlers.errors import ExportError, RuntimeUnavailable
from marsmith import exporting, preparing, subject

SUFFIX = ".onnx"
# So many boxes a person can still read; where modules have more, theirs stay together.
BOXES = 30
# A module of no more nodes is one thing to look at, unless there are few boxes.
_BLOCK, _FEW = 12, 15
# Operators that move or measure data, which tell nothing of what a group computes.
_PLUMBING = {"Cast", "Constant", "ConstantOfShape", "Equal", "Expand", "Gather", "Identity"}
_PLUMBING |= {"Range", "Reshape", "Shape", "Slice", "Squeeze", "Transpose", "Unsqueeze", "Where"}
# Types of weights, as onnx.TensorProto calls them: other constants are sizes and indices.
_WEIGHTS = ("FLOAT", "FLOAT16", "BFLOAT16", "DOUBLE", "INT8", "UINT8")
_SCALING = ("QuantizeLinear", "DequantizeLinear")
# What ends the names of nodes that converters to few bits put beside others.
_CONVERTED = re.compile(r"(_(Quantize|Dequantize)Linear(_\d+)?|_cast_to_fp(16|32)_node)$")


@dataclass
class Group:
    """The nodes of one module: how many of each operator, and how many constants they hold."""

    module: str
    kinds: Counter[str] = field(default_factory=Counter)
    parameters: int = 0

    def summary(self) -> str:
        """Its operators in a few words, those with weights first."""
        ranked = sorted(
            self.kinds.items(),
            key=lambda each: (each[0] in _PLUMBING, each[0] not in onnx_names.WEIGHTED, -each[1]),
        )
        told = [each for each in ranked if each[0] not in _PLUMBING] or ranked
        words = [kind if count == 1 else f"{count} {kind}" for kind, count in told[:4]]
        return ", ".join(words) + (", ..." if len(told) > 4 else "")


def require(*packages: str) -> None:
    """Raise RuntimeUnavailable that names those not installed, and the extra that has them."""
    missing = [package for package in packages if find_spec(package) is None]
    if missing:
        raise RuntimeUnavailable(
            f"marsmith graph needs the Python packages {', '.join(missing)}: install them with "
            "`make extra-graph` in marsmith's folder"
        )


@contextmanager
def onnx_of(name: str) -> Iterator[tuple[Path, dict[str, str]]]:
    """The ONNX file of a model file, an archive or a path, and the classes of its modules.

    It is the archive's own where it has one, else it is exported, without the model's weights.
    """
    if name.endswith(SUFFIX):
        if not Path(name).is_file():
            raise ExportError(f"no ONNX file at {name}")
        yield Path(name), {}
        return
    require("onnx")
    with subject.find(name) as found, TemporaryDirectory(prefix="marsmith-graph-") as folder:
        own = list(found.folder.glob(f"model{SUFFIX}")) if found.folder else []
        if found.spec.artifact is not None:
            file = Path(found.spec.artifact.file)
            own += [file] if file.suffix == SUFFIX and file.is_file() else []
            if not own:
                raise ExportError(f"{name} holds no ONNX, and nothing that one can be made of")
            yield own[0], {}
            return
        network = found.network()
        kinds = {each: type(module).__name__ for each, module in network.named_modules()}
        path = own[0] if own else Path(folder) / f"{found.spec.name}{SUFFIX}"
        if not own:
            require(*onnx_export.REQUIRES)
            _export(found, network, path)
        yield path, kinds


def _export(found: subject.Subject, network: Any, path: Path) -> None:
    bundle = preparing.unrecorded(found.spec.on("onnx"), Path.cwd())
    request = exporting.request(bundle, network, found.pixels(), path, halved=False)
    onnx_export.export(request, path)


def groups(path: Path, boxes: int = BOXES) -> tuple[list[Group], dict[tuple[int, int], str]]:
    """At most about ``boxes`` groups of a file's nodes, and the shapes of what goes between them.

    An edge is (from, to) by index, -1 for the graph's input; constants are left out.
    """
    import onnx

    model = onnx.load(path, load_external_data=False)
    onnx_export.order(model.graph)
    # A converter to float16 leaves some that tell the type of before.
    del model.graph.value_info[:]
    graph = onnx.shape_inference.infer_shapes(model).graph
    nodes = _computing(graph)
    keys = _parts(_keys(_modules(nodes), boxes))
    found: list[Group] = []
    places: dict[str, int] = {}
    stored = _stored(graph)
    kinds = {onnx.TensorProto.DataType.Value(kind) for kind in _WEIGHTS}
    sizes = {
        each.name: math.prod(each.dims)
        for each in graph.initializer
        if each.data_type in kinds or each.name in stored.values()
    }
    shapes = {each.name: _shape(each) for each in (*graph.value_info, *graph.input)}
    makers = {each.name: -1 for each in graph.input}
    edges: dict[tuple[int, int], str] = {}
    for node, key in zip(nodes, keys, strict=True):
        if key not in places:
            places[key] = len(found)
            found.append(Group(key.partition("#")[0]))
        place = places[key]
        found[place].kinds[node.op_type] += 1
        for name in node.input[: 1 if node.op_type in _SCALING else None]:
            found[place].parameters += sizes.pop(stored.get(name, name), 0)
            if makers.get(name, place) != place:
                edges.setdefault((makers[name], place), shapes.get(name, ""))
        makers |= dict.fromkeys(node.output, place)
    return found, edges


def _stored(graph: Any) -> dict[str, str]:
    """Weights that are converted before they are read: the value that is read -> its initializer"""
    found = {each.name: each.name for each in graph.initializer}
    for node in graph.node:
        if node.op_type in ("Cast", "DequantizeLinear") and node.input[0] in found:
            found[node.output[0]] = found[node.input[0]]
    return {name: initializer for name, initializer in found.items() if name != initializer}


def _computing(graph: Any) -> list[Any]:
    """Nodes that depend on the input's values; what depends on its shape alone is left out."""
    alive, nodes = {each.name for each in graph.input}, []
    for node in graph.node:
        if alive & set(node.input) and node.op_type not in ("Shape", "Size"):
            nodes.append(node)
            alive |= set(node.output)
    return nodes


def _modules(nodes: list[Any]) -> list[str]:
    """The module of each node: by our own names, by the metadata of torch.export, or by scopes such
    as "/layer1/conv/Conv". Where a name tells none, a node with weights is one of its own, and any
    other belongs to the one in front of it."""
    modules: list[str] = []
    makers: dict[str, str] = {}
    for node in nodes:
        name = _CONVERTED.sub("", node.name)
        scopes = [each.value for each in node.metadata_props if each.key == onnx_names.SCOPES]
        if scopes:
            module = ast.literal_eval(scopes[0])[-2:][0]
        elif name.startswith("/"):
            module = ".".join(name.strip("/").split("/")[:-1])
        else:
            module = layer_names.module_of(name)
            if "." not in name and "/" not in name:
                module = "" if node.op_type not in onnx_names.WEIGHTED else module
        before = next((makers[name] for name in node.input if name in makers), "")
        modules.append(module or before or node.name or node.op_type)
        makers |= dict.fromkeys(node.output, modules[-1])
    return modules


def _keys(modules: list[str], boxes: int) -> list[str]:
    """The group of each node: the module at the depth to which its parents were opened. Modules of
    one parent are opened together, those of most nodes first, as far as ``boxes`` allows, but for
    such as are small already."""
    opened: set[str] = set()
    while True:
        keys = [_key(module, opened) for module in modules]
        counts, sizes = Counter(keys), Counter[str]()
        siblings: dict[str, set[str]] = {}
        for key, module in zip(keys, modules, strict=True):
            if key != module:
                parent = key.rpartition(".")[0]
                sizes[parent] += 1
                siblings.setdefault(parent, set()).add(key)
        for parent, _ in sizes.most_common():
            trial = opened | siblings[parent]
            limit = boxes
            if max(counts[key] for key in siblings[parent]) <= _BLOCK:
                limit = min(boxes, _FEW)
            if len({_key(module, trial) for module in modules}) <= limit:
                opened = trial
                break
        else:
            return keys


def _parts(keys: list[str]) -> list[str]:
    """What a module computes before and after the modules in it, as parts of its own."""
    outer = {key for key in set(keys) if any(each.startswith(f"{key}.") for each in set(keys))}
    part, found, before = Counter[str](), list[str](), ""
    for key in keys:
        if key in outer:
            part[key] += key != before
            found.append(f"{key}#{part[key]}")
        else:
            found.append(key)
        before = key
    return found


def _key(module: str, opened: set[str]) -> str:
    parts = module.split(".")
    for depth in range(1, len(parts)):
        if ".".join(parts[:depth]) not in opened:
            return ".".join(parts[:depth])
    return module


def _shape(value: Any) -> str:
    dims = value.type.tensor_type.shape.dim[1:]
    sides = [str(each.dim_value) if each.dim_value else "?" for each in dims]
    return " x ".join(sides) if sides.count("?") * 2 < len(sides) else ""
