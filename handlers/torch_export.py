"""A servable module as a graph of ``torch.export``, for every runtime that starts from one."""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch.export import Dim, ExportedProgram

from handlers import precision
from handlers.errors import ExportError, IntegrityError, one_line
from handlers.quiet import quiet

if TYPE_CHECKING:
    from handlers.runtimes import ExportRequest

_SAFE = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"


def capture(request: ExportRequest) -> ExportedProgram:
    """The graph of ``request.module`` in ``request.precision``; raises ExportError.

    Nothing in it tells of the machine: the same request gives the same graph.
    """
    module = copy.deepcopy(request.module)
    precision.lower(module, request.precision)
    try:
        with quiet(), torch.no_grad():
            if request.precision == "int8":
                from handlers import torch_int8

                module = torch_int8.quantised(module, request)
            program = export(module, request)
            if request.precision in precision.DTYPES:
                program = _plain(program)
    except ExportError:
        raise
    # It gives its many reasons as many kinds of exception, which share no base of their own.
    except Exception as error:
        line = one_line(error, 400)
        raise ExportError(f"torch.export cannot capture this model: {line}") from error
    for node in program.graph.nodes:
        # They name files of the build machine, and addresses in its memory.
        for key in ("stack_trace", "from_node"):
            node.meta.pop(key, None)
    return program


def export(module: torch.nn.Module, request: ExportRequest) -> ExportedProgram:
    """``torch.export.export`` with the request's example and dynamic axes."""
    # An axis of at most two would be refused: it takes every dynamic axis to be two or more, and
    # two alone to be fixed. What it captures answers one as well, and nobody asks for three.
    axes = {
        axis: Dim.DYNAMIC(min=least, max=max(most, 3))
        for axis, (_, least, most) in request.dynamic.items()
    }
    return torch.export.export(module, (torch.from_numpy(request.example),), dynamic_shapes=(axes,))


def _plain(program: ExportedProgram) -> ExportedProgram:
    """Regions of autocast as plain conversions, which is what decomposing by no table does."""
    plain: ExportedProgram = program.run_decompositions({})
    for node in plain.graph.nodes:
        if node.target is torch.ops.aten.view.default:
            # What was a view of the example may need a copy for a batch of one.
            node.target = torch.ops.aten.reshape.default
    plain.graph_module.recompile()
    return plain


def load(path: Path) -> ExportedProgram:
    """A program of ``torch.export.save``; raises IntegrityError.

    Without what torch would do with pickles that hold more than tensors: run them.
    """
    try:
        with quiet(), _tensors_alone():
            program: ExportedProgram = torch.export.load(path)
            return program
    # Damage shows itself as errors of many kinds, from the zip file to the graph.
    except Exception as error:
        line = one_line(error)
        raise IntegrityError(f"{path.name} is not a program of torch.export: {line}") from error


@contextmanager
def _tensors_alone() -> Iterator[None]:
    """``torch.export.load`` has no such argument, and reads with ``weights_only=False``."""
    before = os.environ.get(_SAFE)
    os.environ[_SAFE] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[_SAFE]
        else:
            os.environ[_SAFE] = before
