"""What a build asks of a runtime: in few bits the artifact in fp32 first, each finished."""

from __future__ import annotations

from dataclasses import replace
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
