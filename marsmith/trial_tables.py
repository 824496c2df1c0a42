"""Trials of one model side by side: as a table for a person, as JSON, as a picture."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

from rich.console import Console

from handlers.errors import RuntimeUnavailable
from marsmith.spec import ModelSpec
from marsmith.trials import BATCH, REFERENCE, Trial
from marsmith.uncut import Problems, print_uncut

_COLUMNS = (
    "runtime",
    "precision",
    "MB",
    "load s",
    "worker MB",
    "ms at 1",
    "pictures/s at {batch}",
    "x eager",
)
# Of the points of a plot, by runtime.
_MARKS = "osDv^PX*"


def print_table(
    console: Console, spec: ModelSpec, trials: Sequence[Trial], batch: int = BATCH
) -> None:
    """One row for each trial, timed by ``batch`` pictures, the fastest first; those that failed
    last, with the number of the reason, which stands below."""
    metric = next((each.metric_name for each in trials if each.metric is not None), "")
    extra = (metric, "from fp32") if metric else ("largest score move",)
    eager = next((t for t in trials if (t.runtime, t.precision) == REFERENCE), None)
    order = sorted(trials, key=lambda each: (each.problem is not None, -each.throughput))
    problems = Problems()
    rows = []
    for trial in order:
        status = "ok" if trial.device == "cpu" else f"ok on {trial.device}"
        if trial.problem is not None:
            status = problems.mark(trial.problem)
        rows.append([*_row(trial, eager, bool(metric)), status])
    headings = [name.format(batch=batch) for name in (*_COLUMNS, *extra, "status")]
    title = f"{spec.name} {spec.version} on this host"
    print_uncut(console, title, headings, rows, left=("runtime", "precision", "status"))
    problems.print(console)


def _row(trial: Trial, eager: Trial | None, measured: bool) -> list[str]:
    name = [trial.runtime, trial.precision]
    if trial.problem is not None:
        return [*name, *[""] * (8 if measured else 7)]
    ratio = f"{trial.throughput / eager.throughput:.1f}" if eager and eager.throughput else ""
    figures = [
        _three(trial.archive_bytes / 1e6),
        _three(trial.import_s + trial.load_s),
        _three(trial.resident_bytes / 1e6),
        _three(trial.alone_s * 1e3),
        _three(trial.throughput),
        ratio,
    ]
    if not measured:
        return [*name, *figures, f"{trial.largest_difference:.1e}"]
    if trial.metric is None:
        return [*name, *figures, "", ""]
    # An artifact of others has no fp32.
    drop = "" if trial.reference is None else f"{trial.metric - trial.reference:+.4f}"
    return [*name, *figures, f"{trial.metric:.4f}", drop]


def _three(value: float) -> str:
    """At least three significant digits: what is small is not 0."""
    places = 2 - math.floor(math.log10(value)) if value > 0 else 0
    return f"{value:.{max(0, places)}f}"


def to_json(spec: ModelSpec, trials: Sequence[Trial]) -> dict[str, Any]:
    """The trials as JSON values."""
    return {
        "model": spec.name,
        "version": spec.version,
        "batch": BATCH,
        "trials": [trial.to_json() for trial in trials],
    }


def new_figure() -> tuple[Any, Any]:
    """An empty figure and its axes; raises RuntimeUnavailable where matplotlib is missing."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise RuntimeUnavailable(
            "a plot needs the Python package matplotlib: install it with `make extra-plots`"
        ) from error
    figure = Figure(figsize=(8, 5), layout="constrained")
    return figure, figure.add_subplot()


def plot(spec: ModelSpec, trials: Sequence[Trial], path: Path) -> None:
    """Speed against accuracy (or the largest move of a score) as a PNG."""
    figure, axes = new_figure()
    good = [trial for trial in trials if trial.problem is None]
    points: list[tuple[Trial, float]] = []
    measured = any(None not in (trial.metric, trial.reference) for trial in good)
    for trial in good:
        across = trial.largest_difference
        if measured:
            if trial.metric is None or trial.reference is None:
                continue
            # int8 is measured without the pictures that it was calibrated on.
            across = trial.metric - trial.reference
        points.append((trial, across))
    # Many lie at the same height and some in one place, where words would cover each other.
    marks = dict(zip(dict.fromkeys(each.runtime for each, _ in points), cycle(_MARKS)))
    seen = dict.fromkeys(each.precision for each, _ in points)
    colors = {precision: f"C{i}" for i, precision in enumerate(seen)}
    for trial, across in points:
        axes.scatter(
            trial.throughput,
            across,
            s=70,
            marker=marks[trial.runtime],
            facecolor=(colors[trial.precision], 0.5),
            edgecolor=colors[trial.precision],
        )
    for runtime, mark in marks.items():
        axes.scatter([], [], s=70, marker=mark, color="grey", label=runtime)
    for precision, color in colors.items():
        axes.scatter([], [], s=70, marker="s", color=color, label=precision)
    if points:
        # Matplotlib warns of a legend that is empty.
        figure.legend(loc="outside right upper")
    name = next((trial.metric_name for trial in good if trial.metric_name), "") if measured else ""
    axes.set(
        title=f"{spec.name} {spec.version}",
        xlabel=f"pictures per second at batch {BATCH}",
        ylabel=f"{name}, difference from eager fp32" if name else "largest move of a score",
    )
    axes.margins(x=0.08, y=0.2)
    axes.set_xlim(left=0)
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=120)
