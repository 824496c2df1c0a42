"""At which layer do two runtimes part? Their layers' results for one picture, side by side.

The relative difference of a layer is the largest absolute difference of its values, divided by the
largest absolute value that the first runtime has there: a single small value cannot make it large,
and 0/0 does not occur. A layer of nothing but zeros where the other has any other value, a value
that is not finite where the other's is, and other shapes are infinitely far apart. Of values that
are no numbers in both nothing is known: they do not part, and they do not agree.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from handlers import plugins
from handlers.bundle import Bundle
from handlers.errors import PluginError, SpecError
from handlers.runtimes import Array, Runtime, as_arrays
from handlers.runtimes.eager import layers as eager_layers
from handlers.split import Halves
from handlers.task import TaskHandler
from marsmith.subject import Subject


@dataclass(frozen=True)
class Row:
    """One layer of both: its largest differences (NaN where neither has a finite value), whether
    they are past the tolerance, how many values of each are not finite, and what is to be said of
    it; ``scale`` is the largest absolute value of the first."""

    layer: str
    shape: tuple[int, ...]
    scale: float
    absolute: float
    relative: float
    parts: bool
    not_finite: tuple[int, int]
    note: str = ""


@dataclass(frozen=True)
class Report:
    """``rows`` in the first runtime's order. ``suspects`` are its layers from behind the last that
    agrees up to the first that does not; the other runtime may have them folded into one."""

    tolerance: float
    rows: list[Row]
    suspects: list[str]

    @property
    def first(self) -> Row | None:
        """The first layer past the tolerance; None: they part nowhere."""
        return next((row for row in self.rows if row.parts), None)

    @property
    def not_finite(self) -> list[Row]:
        """The layers in which either has values that are not finite."""
        return [row for row in self.rows if any(row.not_finite)]

    @property
    def agree(self) -> bool:
        """Whether they part nowhere, and every value of both is finite."""
        return self.first is None and not self.not_finite

    def to_json(self) -> dict[str, Any]:
        """JSON values; a difference that is not finite is a text, for JSON has no such numbers."""
        rows = [
            {
                k: str(v) if isinstance(v, float) and not math.isfinite(v) else v
                for k, v in r.items()
            }
            for r in map(asdict, self.rows)
        ]
        first = self.first.layer if self.first else None
        return {
            "agree": self.agree,
            "first": first,
            "not_finite": {row.layer: list(row.not_finite) for row in self.not_finite},
            "suspects": self.suspects,
            "tolerance": self.tolerance,
            "layers": rows,
        }


def compare(first: dict[str, Array], second: dict[str, Array], tolerance: float) -> Report:
    """Compare the layers that both have; raises SpecError where these are none."""
    rows, since, suspects = [], list[str](), list[str]()
    for name, array in first.items():
        since.append(name)
        if name not in second:
            continue
        rows.append(_row(name, array, second[name], tolerance))
        if rows[-1].parts and not suspects:
            suspects = list(since)
        since.clear()
    if not any(not row.layer.startswith("output ") for row in rows):
        raise SpecError(
            "no layer of the one has the name of a layer of the other: they are of two networks, "
            "or of an older marsmith, which gave layers no names: build them again"
        )
    return Report(tolerance, rows, suspects)


def _row(name: str, first: Array, second: Array, tolerance: float) -> Row:
    ours, theirs = first.astype(np.float64), second.astype(np.float64)
    one, other = (int((~np.isfinite(each)).sum()) for each in (ours, theirs))
    if first.shape != second.shape:
        note = f"{list(first.shape)} against {list(second.shape)}"
        return Row(name, first.shape, math.nan, math.inf, math.inf, True, (one, other), note)
    scale = float(np.abs(ours[np.isfinite(ours)]).max(initial=0.0))
    absolute = _difference(ours, theirs)
    relative = absolute / scale if scale else (math.inf if absolute > 0 else absolute)
    note = f"not finite: {one} against {other} values" if one or other else ""
    parts = relative > tolerance
    return Row(name, first.shape, scale, absolute, relative, parts, (one, other), note)


def _difference(ours: Array, theirs: Array) -> float:
    """The largest absolute difference of two of one shape; NaN where no value can tell."""
    finite = np.isfinite(ours) & np.isfinite(theirs)
    # The very same value, or not a number in both.
    alike = (ours == theirs) | (np.isnan(ours) & np.isnan(theirs))
    if not (finite | alike).all():
        return math.inf
    if ours.size and not finite.any():
        return math.nan
    return float(np.abs(ours[finite] - theirs[finite]).max(initial=0.0))


def handler_of(subject: Subject) -> TaskHandler:
    """A handler with the model of an archive, whose files are as they lie there."""
    assert subject.folder is not None
    bundle = Bundle.read(subject.folder)
    handler = plugins.load_task(bundle.task)()
    handler.bind(bundle, subject.folder)
    return handler


def archive_layers(handler: TaskHandler, images: Array) -> dict[str, Array]:
    """Layers and outputs of an archive's artifact; raises PluginError where there are none."""
    runtime = handler.model
    if not isinstance(runtime, Runtime | Halves):
        raise PluginError(f"{handler.bundle.name} was exported by others: its layers have no names")
    return {**runtime.layers(images), **_outputs(runtime(images))}


def module_layers(subject: Subject, weights: Path | None, images: Array) -> dict[str, Array]:
    """Layers and outputs of the eager module that a subject was, or will be, exported from."""
    module, batch = subject.trained(weights), torch.from_numpy(images)
    found = eager_layers(module, batch)
    with torch.inference_mode():
        return {**found, **_outputs(as_arrays(module(batch)))}


def _outputs(arrays: tuple[Array, ...]) -> dict[str, Array]:
    return {f"output {number}": array for number, array in enumerate(arrays)}
