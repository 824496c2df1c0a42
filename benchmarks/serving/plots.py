"""Plots of a sitting: rates with their spread, latency over connections, and of open loops."""

from __future__ import annotations

from pathlib import Path
from statistics import median
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.ticker import LogLocator, NullFormatter, ScalarFormatter

from benchmarks.serving import rows as figures

_COLORS = {"ours": "#1b7837", "ceiling": "#999999", "torchserve": "#2166ac"}
_OTHERS = "#d6604d"
_MARKERS = "osD^vP*X<>hp"
# Answers without a model: its bar would leave nothing of the others.
_NO_MODEL = "torchserve/nothing"


def draw(results: dict[str, Any], folder: Path) -> list[Path]:
    """PNG files in ``folder`` of what was measured."""
    found = results["measurements"]
    made = []
    if any(row.rate for row in figures.rows(found, results.get("reference"))):
        made.append(_rates(found, results.get("reference"), folder / "throughput.png"))
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
    models = [row.rate.most for row in rows if row.rate and row.contender != _NO_MODEL]
    end = 1.15 * max(models or [row.rate.most for row in rows if row.rate])
    for place, row in enumerate(rows):
        assert row.rate is not None
        error = [[row.rate.median - row.rate.least], [row.rate.most - row.rate.median]]
        hatch = "//" if row.wrong else None
        axes.barh(
            place, row.rate.median, xerr=error, color=_color(row.contender), hatch=hatch, capsize=3
        )
        words, beyond = f" {row.rate.median:.0f}", row.rate.most > end
        axes.annotate(
            f"{words} \N{RIGHTWARDS ARROW} " if beyond else words,
            (end if beyond else row.rate.most, place),
            ha="right" if beyond else "left",
            va="center",
            color="white" if beyond else "black",
        )
    named = [row.contender + (" (wrong)" if row.wrong else "") for row in rows]
    axes.set_yticks(range(len(rows)), named)
    axes.set_xlim(0, end)
    axes.set_xlabel("pictures/s: median, least, largest")
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
            axes.plot(*zip(*points, strict=True), label=name, **_style(found, name))
    _plain(axes)
    axes.set(xlabel="pictures/s", ylabel="p99 in ms")
    axes.set_title("closed loop: a point for each number of connections")
    axes.legend(fontsize="x-small", loc="center left", bbox_to_anchor=(1, 0.5))
    return _save(figure, path)


def _poisson(found: figures.Measurements, path: Path) -> Path:
    figure, axes = plt.subplots(figsize=(8, 5), layout="constrained")
    for name in figures.names(found):
        loops = figures.select(found, contender=name, kind="poisson")
        loops = sorted((one for one in loops if "p99" in one), key=lambda one: one["rate"])
        if loops:
            asked = [one["rate"] for one in loops]
            style = _style(found, name) | {"linestyle": ""}
            axes.plot(asked, [one["p99"] for one in loops], label=name, **style)
    _plain(axes)
    axes.set(xlabel="asked for, pictures/s", ylabel="p99 in ms")
    axes.set_title("Poisson arrivals: a point for each round")
    axes.legend(fontsize="x-small", loc="center left", bbox_to_anchor=(1, 0.5))
    return _save(figure, path)


def _color(contender: str) -> str:
    return _COLORS.get(contender.partition("/")[0], _OTHERS)


def _style(found: figures.Measurements, contender: str) -> dict[str, Any]:
    """Colour by family, and a mark for each of its members, alike in all plots of a sitting."""
    family = [name for name in figures.names(found) if _color(name) == _color(contender)]
    mark = _MARKERS[family.index(contender) % len(_MARKERS)]
    return {"color": _color(contender), "marker": mark, "alpha": 0.85}


def _plain(axes: Any) -> None:
    """Logarithmic axes with numbers as they are, three for each power of ten."""
    axes.set(xscale="log", yscale="log")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.set_major_formatter(ScalarFormatter())
        axis.set_minor_formatter(NullFormatter())
    axes.grid(alpha=0.3)


def _save(figure: Any, path: Path) -> Path:
    figure.savefig(path, dpi=120, bbox_inches="tight")
    plt.close(figure)
    return path
