"""Plots of a sitting: rates with their spread, latency over connections, and of open loops."""

from __future__ import annotations

from pathlib import Path
from statistics import median
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.ticker import ScalarFormatter

from benchmarks.serving import rows as figures

_COLORS = {"ours": "#1b7837", "ceiling": "#999999", "torchserve": "#2166ac"}


def draw(results: dict[str, Any], folder: Path) -> list[Path]:
    """PNG files in ``folder`` of what was measured."""
    found = results["measurements"]
    made = [_rates(found, results.get("reference"), folder / "throughput.png")]
    if len({one["connections"] for one in _real(found)} - {0}) > 1:
        made.append(_latencies(found, folder / "latency.png"))
    if figures.select(found, kind="poisson"):
        made.append(_poisson(found, folder / "poisson.png"))
    return made


def _real(found: figures.Measurements) -> list[dict[str, Any]]:
    return figures.select(found, kind="closed", size="real", per_request=1)


def _rates(found: figures.Measurements, reference: float | None, path: Path) -> Path:
    rows = [row for row in figures.rows(found, reference) if row.rate]
    rows.sort(key=lambda row: row.rate.median if row.rate else 0)
    figure, axes = plt.subplots(figsize=(8, 1 + 0.35 * len(rows)), layout="constrained")
    for place, row in enumerate(rows):
        assert row.rate is not None
        error = [[row.rate.median - row.rate.least], [row.rate.most - row.rate.median]]
        color = _COLORS.get(row.contender.partition("/")[0], "#d6604d")
        hatch = "//" if row.wrong else None
        axes.barh(place, row.rate.median, xerr=error, color=color, hatch=hatch, capsize=3)
    named = [row.contender + (" (wrong)" if row.wrong else "") for row in rows]
    axes.set_yticks(range(len(rows)), named)
    axes.set_xlabel("pictures/s: median of the rounds, with the least and the largest")
    return _save(figure, path)


def _latencies(found: figures.Measurements, path: Path) -> Path:
    figure, axes = plt.subplots(figsize=(8, 5), layout="constrained")
    for name in figures.names(found):
        groups: dict[int, list[dict[str, Any]]] = {}
        for one in figures.select(_real(found), contender=name):
            if "p99" in one:
                groups.setdefault(one["connections"], []).append(one)
        points = [
            (median(figures.rates(group).values()), median(one["p99"] for one in group))
            for _, group in sorted(groups.items())
        ]
        if points:
            axes.plot(*zip(*points, strict=True), marker="o", label=name)
    _plain(axes)
    axes.set(xlabel="pictures/s", ylabel="p99 in ms")
    axes.set_title("closed loop: a point for each number of connections")
    axes.legend(fontsize="x-small")
    return _save(figure, path)


def _poisson(found: figures.Measurements, path: Path) -> Path:
    figure, axes = plt.subplots(figsize=(8, 5), layout="constrained")
    for name in figures.names(found):
        loops = figures.select(found, contender=name, kind="poisson")
        loops = sorted((one for one in loops if "p99" in one), key=lambda one: one["rate"])
        if loops:
            asked = [one["rate"] for one in loops]
            axes.plot(asked, [one["p99"] for one in loops], "o", label=name)
    _plain(axes)
    axes.set(xlabel="asked for, pictures/s", ylabel="p99 in ms")
    axes.set_title("Poisson arrivals: a point for each round")
    axes.legend(fontsize="x-small")
    return _save(figure, path)


def _plain(axes: Any) -> None:
    """Logarithmic axes with numbers as they are."""
    axes.set(xscale="log", yscale="log")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(ScalarFormatter())
        axis.set_minor_formatter(ScalarFormatter())


def _save(figure: Any, path: Path) -> Path:
    figure.savefig(path, dpi=120)
    plt.close(figure)
    return path
