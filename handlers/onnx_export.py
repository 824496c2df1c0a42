"""A servable module as ONNX, for every runtime that reads it; needed at build alone."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from handlers import inner, layer_names, onnx_names
from handlers.errors import ExportError, one_line
from handlers.quiet import quiet

if TYPE_CHECKING:
    from handlers.runtimes import ExportRequest

# The opset that the exporter by tracing knows torchvision's detectors in.
OPSET = 17
REQUIRES = ("onnx", "onnxscript")


def export(request: ExportRequest, path: Path) -> None:
    """``write`` and ``finish``, for a graph that another one is made of."""
    write(request, path)
    finish(request, path)


def write(request: ExportRequest, path: Path) -> None:
    """Write ``request.module`` to ``path``, as the exporter leaves it; raises ExportError.

    Modules without loops go through torch.export. One that loops over pictures has shapes that
    depend on data, which torch.export refuses: it is traced, with one picture per call.
    """
    try:
        with quiet():
            if request.loops:
                _traced(request, path, _calls(request).outputs)
            else:
                _exported(request, path)
    # The exporters raise errors of many kinds, all of which mean the same to a user.
    except Exception as error:
        line = one_line(error, 400)
        raise ExportError(f"this model has no ONNX form: {type(error).__name__}: {line}") from error


def _exported(request: ExportRequest, path: Path) -> None:
    import torch

    axes = {axis: name for axis, (name, _, _) in request.dynamic.items()}
    example = (torch.from_numpy(request.example),)
    torch.onnx.export(
        request.module, example, path, dynamo=True, dynamic_shapes=(axes,), external_data=False
    )


def _traced(request: ExportRequest, path: Path, count: int) -> None:
    import torch

    axes = {axis: name for axis, (name, _, _) in request.dynamic.items()}
    outputs = [f"output_{number}" for number in range(count)]
    with onnx_names.marked(request.module):
        torch.onnx.export(
            request.module,
            (torch.from_numpy(request.example),),
            str(path),
            dynamo=False,
            opset_version=OPSET,
            input_names=["images"],
            output_names=outputs,
            dynamic_axes={"images": axes, **{name: {1: "detections"} for name in outputs}},
        )


def finish(request: ExportRequest, path: Path) -> None:
    """Name nodes and values after the modules that they come from, as ``onnx_names`` says; remove
    stack traces with paths of the machine."""
    import onnx

    model = onnx.load(path)
    onnx_names.apply(model, _calls(request))
    graphs = [model.graph, *model.functions]
    while graphs:
        graph = graphs.pop()
        _without_empty_constants(graph)
        for thing in (graph, *graph.node, *getattr(graph, "value_info", ())):
            thing.ClearField("doc_string")
            thing.ClearField("metadata_props")
        for thing in (*getattr(graph, "input", ()), *getattr(graph, "output", ())):
            if hasattr(thing, "ClearField"):
                thing.ClearField("metadata_props")
        for node in graph.node:
            graphs += [each.g for each in node.attribute if each.HasField("g")]
    model.ClearField("doc_string")
    onnx.save(model, path)


def _calls(request: ExportRequest) -> onnx_names.Calls:
    import torch

    return onnx_names.watch(request.module, torch.from_numpy(request.example))


def _without_empty_constants(graph: Any) -> None:
    """A tensor without elements as ``ConstantOfShape``, for OpenVINO reads its constant as a 0.

    torchvision's NMS has one where no box is left: the 0 would be the index of a box.
    """
    from onnx import TensorProto, helper

    for index, node in reversed(list(enumerate(graph.node))):
        if node.op_type != "Constant" or 0 not in node.attribute[0].t.dims:
            continue
        value, shape = node.attribute[0].t, f"{node.output[0]}.shape"
        dims = helper.make_tensor("shape", TensorProto.INT64, [len(value.dims)], value.dims)
        value.CopyFrom(helper.make_tensor("value", value.data_type, [1], [0]))
        node.op_type = "ConstantOfShape"
        node.input.append(shape)
        made = helper.make_node("Constant", [], [shape], f"{node.name}.shape", value=dims)
        graph.node.insert(index, made)


def order(graph: Any) -> None:
    """Put each node behind those that it reads, as ONNX asks for; others keep their places.

    ONNX Runtime's converter to float16 leaves casts at the end.
    """
    nodes = list(graph.node)
    makers = {name: index for index, node in enumerate(nodes) for name in node.output if name}
    waiting, begun, done = list(reversed(range(len(nodes)))), set[int](), dict[int, Any]()
    while waiting:
        index = waiting[-1]
        if index in begun:
            done.setdefault(waiting.pop(), nodes[index])
        else:
            begun.add(index)
            waiting += [makers[name] for name in nodes[index].input if name in makers]
    del graph.node[:]
    graph.node.extend(done.values())


def inner_nodes(model: Any, without: frozenset[str], loops: bool) -> list[str]:
    """Names of the nodes of an exported model that int8 may compute.

    They are the network's layers but those of ``without``, and what lies ``inner.between`` them.
    Where the module ``loops`` over pictures, boxes are decoded between layers, so that only the
    layers themselves are.
    """
    layers = {
        node.name
        for node in model.graph.node
        if node.op_type in onnx_names.WEIGHTED and node.name.startswith(inner.NETWORK)
    }
    kept = {name for name in layers if layer_names.module_of(name) in without}
    if loops:
        return sorted(layers - kept)
    maker = {output: node.name for node in model.graph.node for output in node.output}
    graph: dict[str, set[str]] = {}
    for node in model.graph.node:
        read = {maker[name] for name in node.input if name in maker}
        graph.setdefault(node.name, set()).update(read)
    return sorted(inner.between(graph, layers) - kept)
