"""Weights of an ONNX file in others beside it, as ``torch.onnx.export`` writes them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from handlers.errors import IntegrityError, one_line

# What Python would import from an archive, or an archive has files of its own with.
TAKEN = (".py", ".pyc", ".so", ".pth", ".json", ".yaml", ".onnx")


def parts(path: Path) -> dict[str, Path]:
    """The files that the ONNX file at ``path`` needs, by the names that it has for them.

    They lie in the same folder. Raises IntegrityError for one that is to lie elsewhere, or whose
    name an archive cannot have, and for what is no ONNX file.
    """
    import onnx

    try:
        model = onnx.load(path, load_external_data=False)
    # Protobuf's errors and those of files are of many kinds.
    except Exception as error:
        raise IntegrityError(f"{path.name} is no ONNX model: {one_line(error)}") from error
    locations = {
        entry.value
        for tensor in _tensors(model)
        for entry in tensor.external_data
        if entry.key == "location"
    }
    for name in locations:
        if Path(name).name != name or name == ".." or name.endswith(TAKEN):
            raise IntegrityError(
                f"{path.name} has weights in {name!r}, and they must lie beside it in a file that "
                "is no code, such as model.onnx.data: save it anew with onnx.save(model, path, "
                "save_as_external_data=True, location='model.onnx.data')"
            )
    return {name: path.with_name(name) for name in sorted(locations)}


def _tensors(model: Any) -> list[Any]:
    """All constants of a model, those in branches and loops among them."""
    found: list[Any] = []
    graphs = [model.graph, *model.functions]
    while graphs:
        graph = graphs.pop()
        found += getattr(graph, "initializer", ())
        for attribute in (each for node in graph.node for each in node.attribute):
            found += [attribute.t, *attribute.tensors]
            graphs += [attribute.g, *attribute.graphs]
    return found
