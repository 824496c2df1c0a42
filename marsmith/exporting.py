"""From the eager module to the runtime's artifact."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from torch import nn

from handlers import plugins, split
from handlers.bundle import Bundle
from handlers.errors import ExportError
from handlers.integrity import sha256
from handlers.runtimes import Array, ExportRequest
from handlers.servable import Servable
from handlers.task import TaskHandler


@dataclass(frozen=True)
class Artifact:
    """What is made of a module: ``bundle.artifact`` in ``folder``, and what goes with it there.

    First it is written as the exporter leaves it, then finished as it is kept.
    """

    bundle: Bundle
    folder: Path
    request: ExportRequest

    def write(self) -> None:
        """Export the module; raises ExportError."""
        runtime = plugins.load_runtime(self.bundle.runtime)
        write = getattr(runtime, "export", None)
        if write is None:
            raise ExportError(
                f"runtime {self.bundle.runtime} only serves artifacts that others exported"
            )
        write(self.request)
        if not self.request.path.is_file():
            raise ExportError(f"runtime {self.bundle.runtime} did not write {self.bundle.artifact}")

    def finish(self) -> bool:
        """Let the runtime rewrite what it has written, and whether that changed the file."""
        finish = getattr(plugins.load_runtime(self.bundle.runtime), "finish", None)
        if finish is None:
            return False
        before = sha256(self.request.path)
        finish(self.request)
        return sha256(self.request.path) != before

    def make(self) -> None:
        """Write and finish it, with nothing in between."""
        self.write()
        self.finish()

    def bound(self) -> TaskHandler:
        """A handler with the file as it is now."""
        handler = plugins.load_task(self.bundle.task)()
        handler.bind(self.bundle, self.folder)
        return handler


def artifact(
    bundle: Bundle,
    module: Servable,
    example: Array,
    folder: Path,
    calibration: Sequence[Array] = (),
    float_layers: frozenset[str] = frozenset(),
    exact: Path | None = None,
    halved: bool | None = None,
) -> Artifact:
    """What ``module`` will be in ``folder``; ``example`` is one picture's pixels (H, W, C).

    In few bits ``exact`` is where the same runtime's artifact in fp32 lies. ``halved`` tells
    whether only the part without shapes that depend on data is exported, by default as the runtime
    does it in the bundle's precision; then the other part is saved in ``folder`` at once. Raises
    ExportError.
    """
    if halved is None:
        halved = plugins.halved(bundle.task, bundle.runtime, bundle.precision)
    part: nn.Module = module
    if halved:
        part = _trunk(bundle, module, folder)
        float_layers = frozenset(map(split.in_trunk, float_layers))
    plain = request(bundle, part, example, folder / bundle.artifact, halved)
    wanted = replace(
        plain,
        precision=bundle.precision,
        calibration=calibration,
        float_layers=float_layers,
        exact=exact,
    )
    return Artifact(bundle, folder, wanted)


def request(
    bundle: Bundle, module: nn.Module, example: Array, path: Path, halved: bool
) -> ExportRequest:
    """To write ``module``, which may be one that was ``halved``, in fp32 to ``path``; ``example``
    is one picture's pixels (H, W, C)."""
    return ExportRequest(
        module=module,
        # Two pictures: some exporters take an axis of length 1 for a constant.
        example=np.stack([example, example[:, ::-1]][: bundle.artifact_batch]),
        dynamic=_dynamic(bundle),
        path=path,
        loops=plugins.load_task(bundle.task).loops and not halved,
        options=bundle.runtime_options,
    )


def _trunk(bundle: Bundle, module: Servable, folder: Path) -> nn.Module:
    """The part of a module that has no shapes that depend on data; the other is saved beside it."""
    if not bundle.input.fixed:
        precisions = ", ".join(plugins.load_runtime(bundle.runtime).static_precisions)
        raise ExportError(
            f"runtime {bundle.runtime} takes no shapes that depend on data in {precisions}: give "
            "the input a fixed size, such as --resize 320,320 --letterbox 0 (in a model file "
            "input: {resize: [320, 320], letterbox: 0})"
        )
    network, rest = split.halves(module, bundle.input)
    split.save(rest, module.recipe, folder)
    return network


def _dynamic(bundle: Bundle) -> dict[int, tuple[str, int, int]]:
    """The axes of the input (N, H, W, C) that vary from call to call."""
    axes = {}
    if bundle.artifact_batch > 1:
        axes[0] = ("batch", 1, bundle.artifact_batch)
    if not bundle.input.fixed:
        axes |= {1: ("height", 1, 16384), 2: ("width", 1, 16384)}
    return axes
