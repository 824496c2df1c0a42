"""Tables of a sitting, as lines of cells: for the terminal, a file and the page."""

from __future__ import annotations

from collections.abc import Callable
from statistics import median
from typing import Any

from benchmarks.serving import timers
from benchmarks.serving.rows import (
    INSTALLED,
    Measurements,
    Row,
    baselines,
    best,
    latencies,
    names,
    rates,
    rows,
    select,
)
from benchmarks.serving.stats import Spread, ratio

Cells = list[list[str]]
# CPU milliseconds below which a process took no part in the answers.
_SOME = 0.005


def main_table(measurements: Measurements, reference: float | None) -> Cells:
    """The heading and a line for each contender, fastest first; failed ones at the end."""
    found = sorted(
        rows(measurements, reference), key=lambda row: -(row.rate.median if row.rate else -1)
    )
    bases = list(baselines(measurements, reference))
    head = ["contender", "score", "pictures/s", *(f"x {base}" for base in bases)]
    head += ["at", "p50/p95/p99 ms", "lone ms", "CPU ms a picture"]
    head += ["PSS MB", "worker RSS MB", "worker PSS MB", "ready s", "failed"]
    return [head] + [
        [
            row.contender,
            _score(row),
            spread(row.rate, "{:.1f}"),
            *(spread(row.ratios.get(base), "{:.2f}") for base in bases),
            str(row.connections or ""),
            "/".join(f"{value:.1f}" for value in row.latency or ()),
            number(row.lone, "{:.1f}"),
            ", ".join(f"{role} {ms:.2f}" for role, ms in row.cpu.items() if ms >= _SOME),
            number(row.pss, "{:.0f}"),
            number(row.worker_rss, "{:.0f}"),
            number(row.worker_pss, "{:.0f}"),
            spread(row.ready, "{:.1f}"),
            "did not run" if row.problem else str(row.failed),
        ]
        for row in found
    ]


def _score(row: Row) -> str:
    if row.score is None:
        return ""
    return f"{row.score:.3f}" + (" WRONG" if row.wrong else "")


def connections_table(measurements: Measurements) -> Cells:
    """Pictures per second at each number of connections, and through stock as installed there.

    Elsewhere each contender is told at its best load. Here all have as many clients, of which some
    stall under more than one. Without several numbers of connections there is only the heading.
    """
    found = select(measurements, kind="closed", size="real", per_request=1)
    # What runs without a server has none.
    counts = sorted({one["connections"] for one in found} - {0})
    if len(counts) < 2:
        counts = []
    at = {count: select(found, connections=count) for count in counts}
    bases = {count: rates(select(at[count], contender=INSTALLED)) for count in counts}
    bases = {count: base for count, base in bases.items() if base}
    head = ["contender", *(f"pictures/s at {count}" for count in counts)]
    lines = [[*head, *(f"x stock as installed at {count}" for count in bases)]]
    for name in dict.fromkeys(name for some in at.values() for name in names(some)):
        mine = {count: rates(select(at[count], contender=name)) for count in counts}
        spreads = [Spread.of([*some.values()]) if some else None for some in mine.values()]
        times = [ratio(mine[count], base) for count, base in bases.items()]
        cells = [spread(one, "{:.1f}") for one in spreads]
        lines.append([name, *cells, *(spread(one, "{:.2f}") for one in times)])
    return lines


def against_table(measurements: Measurements) -> Cells:
    """The rate of each of ours through that of each other contender, within each round."""
    measured = {name: rates(best(measurements, name)) for name in names(measurements)}
    ours = [name for name, mine in measured.items() if name.startswith("ours/") and mine]
    others = [name for name, mine in measured.items() if not name.startswith("ours/") and mine]
    lines = [
        [other, *(spread(ratio(measured[name], measured[other]), "{:.2f}") for name in ours)]
        for other in others
    ]
    return [["ours / other", *ours], *(lines if ours else [])]


def poisson_table(measurements: Measurements) -> Cells:
    """Open loops: what was asked for and how long the answers took, against a lone request."""
    head = ["contender", "asked/s", "share", "p50 ms", "p95 ms", "p99 ms", "p99 / lone", "late ms"]
    lines = [[*head, "failed"]]
    lone = {row.contender: row.lone for row in rows(measurements, None)}
    for name in names(measurements):
        found = select(measurements, contender=name, kind="poisson")
        groups: dict[tuple[str, float], list[dict[str, Any]]] = {}
        for one in found:
            # A share of each round's own capacity, or the same rate in every round.
            key = ("rate", one["rate"]) if one["share"] is None else ("share", one["share"])
            groups.setdefault(key, []).append(one)
        for (kind, asked), group in groups.items():
            latency, alone = latencies(group) or (None,) * 3, lone[name]
            times = [one["p99"] / alone for one in group if "p99" in one] if alone else []
            late = [one["late_p99"] for one in group if "late_p99" in one]
            lines.append(
                [
                    name,
                    spread(Spread.of([one["rate"] for one in group]), "{:.1f}"),
                    number(asked if kind == "share" else None, "{:.2f}"),
                    *(number(value, "{:.1f}") for value in latency),
                    spread(Spread.of(times) if times else None, "{:.1f}"),
                    number(median(late) if late else None, "{:.1f}"),
                    str(sum(one["failed"] for one in group)),
                ]
            )
    return lines


def size_table(measurements: Measurements, reference: float | None = None) -> Cells:
    """Pictures per second of other sizes and of several pictures a request, and ratios."""
    bases, lines = baselines(measurements, reference), []
    kinds = {"large": ("large", 1), "small": ("small", 1), "eight a request": ("real", 8)}
    for heading, (size, together) in kinds.items():
        wanted = {"kind": "closed", "size": size, "per_request": together}
        within = bases | baselines(measurements, reference, size, together)
        for name in names(measurements):
            mine = rates(select(measurements, contender=name, **wanted))
            if not mine:
                continue
            others = [
                ratio(mine, rates(select(measurements, contender=within[base], **wanted)))
                for base in bases
            ]
            cells = [spread(each, "{:.2f}") for each in others]
            lines.append([heading, name, spread(Spread.of(list(mine.values())), "{:.1f}"), *cells])
    return [["pictures", "contender", "pictures/s", *(f"x {base}" for base in bases)], *lines]


def mlperf_table(measurements: Measurements) -> Cells:
    """What LoadGen's own summaries and accuracy logs say."""
    lines = [["contender", "scenario", "samples/s", "p99 ms", "LoadGen says", "accuracy", "failed"]]
    for one in select(measurements, kind="mlperf"):
        told = one["summary"]
        rate = told.get("Completed samples per second", told.get("Samples per second"))
        late = told.get("99.00 percentile latency (ns)")
        lines.append(
            [
                one["contender"],
                one["scenario"],
                number(rate, "{:.1f}"),
                number(None if late is None else late / 1e6, "{:.1f}"),
                _verdict(told),
                f"{one['score']:.3f}",
                str(one["failed"]),
            ]
        )
    return lines


def _verdict(told: dict[str, Any]) -> str:
    """LoadGen's result, and the conditions that were not met."""
    unmet = [
        key.removesuffix(" satisfied")
        for key, value in told.items()
        if key.endswith(" satisfied") and str(value).upper().startswith("NO")
    ]
    return f"{told.get('Result is', '')}{': ' if unmet else ''}{', '.join(unmet)}"


def trouble_table(measurements: Measurements) -> Cells:
    """Who did not run, and why."""
    found = select(measurements, kind="failed")
    lines = [[one["contender"], str(one["round"] + 1), one["reason"][:400]] for one in found]
    return [["contender", "round", "reason"], *lines]


def every(results: dict[str, Any]) -> dict[str, Cells]:
    """The tables that have lines, by their headings."""
    found = results["measurements"]
    made: dict[str, Callable[[], Cells]] = {
        "Closed loop, single pictures": lambda: main_table(found, results.get("reference")),
        "Closed loop, by connections": lambda: connections_table(found),
        "Ours against each": lambda: against_table(found),
        "Other pictures": lambda: size_table(found, results.get("reference")),
        "Open loop, Poisson arrivals": lambda: poisson_table(found),
        "Where the time of a request goes": lambda: timers.table(found),
        "MLPerf LoadGen": lambda: mlperf_table(found),
        "Did not run": lambda: trouble_table(found),
    }
    tables = {heading: make() for heading, make in made.items()}
    return {heading: cells for heading, cells in tables.items() if len(cells) > 1}


def spread(found: Spread | None, form: str) -> str:
    """The median with the least and the largest value, where there are several rounds."""
    if found is None:
        return ""
    middle = form.format(found.median)
    if found.least == found.most:
        return middle
    return f"{middle} ({form.format(found.least)}..{form.format(found.most)})"


def number(value: float | None, form: str) -> str:
    """A figure, or nothing where there is none."""
    return "" if value is None else form.format(value)
