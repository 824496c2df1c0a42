"""What a build asks of a runtime: in few bits the artifact in fp32 first, each finished."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from handlers.runtimes import ExportRequest


def export(runtime: Any, request: ExportRequest) -> None:
    """Write ``request.path``, and for few bits that in fp32 into a folder of its own beside it."""
    if request.precision != "fp32":
        exact = request.path.parent / "exact" / request.path.name
        exact.parent.mkdir()
        plain = replace(request, path=exact, precision="fp32", calibration=())
        finished(runtime, replace(plain, float_layers=frozenset()))
        request = replace(request, exact=exact)
    finished(runtime, request)


def finished(runtime: Any, request: ExportRequest) -> None:
    """Write ``request.path`` as it is kept."""
    runtime.export(request)
    if hasattr(runtime, "finish"):
        runtime.finish(request)


def int8_readers(path: Path) -> dict[str, str]:
    """The operations of OpenVINO's IR that read 8-bit values, with their kinds."""
    # Here, for its runtime says first what it may send home.
    import openvino

    operations = openvino.Core().read_model(path).get_ordered_ops()
    return {
        target.get_node().get_friendly_name(): target.get_node().get_type_name()
        for each in operations
        if each.get_type_name() == "FakeQuantize"
        for target in each.output(0).get_target_inputs()
    }
