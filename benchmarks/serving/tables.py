"""From measurements to rows: medians over the rounds, ratios within each round, and marks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from benchmarks.serving.stats import Spread, ratio

Measurements = Sequence[dict[str, Any]]
# Ratios are to these, where they take part; the best tuning is the fastest of them.
INSTALLED, TUNED = "torchserve/installed", "torchserve/tuned"
# How many of the pictures a contender may get wrong beyond the reference.
_TOLERANCE = 0.005


@dataclass(frozen=True)
class Row:
    """One contender. Rates in pictures per second, times in ms, memory in MB, CPU in ms a picture.

    ``latency`` is p50, p95 and p99 at ``connections``, where the rate is highest; ``lone`` the mean
    latency of one connection.
    """

    contender: str
    score: float | None = None
    wrong: bool = False
    rate: Spread | None = None
    connections: int = 0
    latency: tuple[float, float, float] | None = None
    lone: float | None = None
    cpu: dict[str, float] = field(default_factory=dict)
    pss: float | None = None
    rss: dict[str, float] = field(default_factory=dict)
    ready: Spread | None = None
    failed: int = 0
    others: float = 0.0
    problem: str = ""
    ratios: dict[str, Spread] = field(default_factory=dict)


def rates(found: Iterable[dict[str, Any]]) -> dict[int, float]:
    """Pictures answered per second, by round."""
    return {
        one["round"]: (one["requests"] - min(one["failed"], one["requests"]))
        * one.get("per_request", 1)
        / one["seconds"]
        for one in found
    }


def names(measurements: Measurements) -> list[str]:
    """The contenders, in the order of their first measurement."""
    return list(dict.fromkeys(one["contender"] for one in measurements))


def select(measurements: Measurements, **wanted: Any) -> list[dict[str, Any]]:
    """The measurements with these values."""
    return [
        one for one in measurements if all(one.get(key) == value for key, value in wanted.items())
    ]


def best(measurements: Measurements, name: str) -> list[dict[str, Any]]:
    """The closed loops of single pictures of real size at the connections that gave most."""
    found = select(measurements, contender=name, kind="closed", size="real", per_request=1)
    by_connections: dict[int, list[dict[str, Any]]] = {}
    for one in found:
        by_connections.setdefault(one["connections"], []).append(one)
    return max(by_connections.values(), key=lambda group: median(rates(group).values()), default=[])


def baselines(measurements: Measurements) -> dict[str, str]:
    """What ratios are to: heading -> contender; the first contender where there is no stock."""
    known = names(measurements)
    found = {"stock as installed": INSTALLED} if best(measurements, INSTALLED) else {}
    tuned = [name for name in known if name.startswith(TUNED) and best(measurements, name)]
    if tuned:
        found["stock at its best"] = max(
            tuned, key=lambda name: median(rates(best(measurements, name)).values())
        )
    return found or ({known[0]: known[0]} if known else {})


def rows(measurements: Measurements, reference: float | None) -> list[Row]:
    """A row for each contender; ``reference`` is the score of eager PyTorch, if known."""
    scores = {one["contender"]: one["score"] for one in select(measurements, kind="accuracy")}
    limit = reference if reference is not None else max(scores.values(), default=0.0)
    bases = {
        heading: rates(best(measurements, name))
        for heading, name in baselines(measurements).items()
    }
    return [
        _row(measurements, name, scores.get(name), limit - _TOLERANCE, bases)
        for name in names(measurements)
    ]


def _row(
    measurements: Measurements,
    name: str,
    score: float | None,
    limit: float,
    bases: dict[str, dict[int, float]],
) -> Row:
    own = select(measurements, contender=name)
    group, mine = best(own, name), rates(best(own, name))
    ready = [one["seconds"] for one in select(own, kind="ready")]
    ratios = {heading: ratio(mine, base) for heading, base in bases.items()}
    lone = select(own, kind="closed", size="real", per_request=1, connections=1)
    usages = [one["usage"] for one in own if "usage" in one]
    reasons = [one["reason"] for one in select(own, kind="failed")]
    return Row(
        contender=name,
        score=score,
        # With room for the rounding of a score that is a share of pictures.
        wrong=score is not None and score < limit - 1e-9,
        rate=Spread.of(list(mine.values())) if mine else None,
        connections=group[0]["connections"] if group else 0,
        latency=_latency(group),
        lone=median(one["mean"] for one in lone) if lone else None,
        cpu=_cpu(group),
        pss=max((usage["peak_pss"] / 1e6 for usage in usages), default=None),
        rss=_largest(usages),
        ready=Spread.of(ready) if ready else None,
        failed=sum(one.get("failed", 0) for one in own if one["kind"] != "failed"),
        others=max((usage["others"] for usage in usages), default=0.0),
        problem=reasons[0] if reasons else "",
        ratios={heading: found for heading, found in ratios.items() if found},
    )


def _latency(group: Measurements) -> tuple[float, float, float] | None:
    if not group or "p50" not in group[0]:
        return None
    p50, p95, p99 = (float(median(one[key] for one in group)) for key in ("p50", "p95", "p99"))
    return p50, p95, p99


def _cpu(group: Measurements) -> dict[str, float]:
    """CPU milliseconds for each picture, by what the process is for."""
    roles = sorted({role for one in group for role in one["usage"]["cpu"]})
    return {
        role: float(
            median(
                1e3
                * one["usage"]["cpu"].get(role, 0.0)
                / max(1, one["requests"] * one.get("per_request", 1))
                for one in group
            )
        )
        for role in roles
    }


def _largest(usages: Sequence[dict[str, Any]]) -> dict[str, float]:
    found: dict[str, float] = {}
    for usage in usages:
        for role, size in usage["rss"].items():
            found[role] = max(found.get(role, 0.0), size / 1e6)
    return found


Cells = list[list[str]]


def main_table(measurements: Measurements, reference: float | None) -> Cells:
    """The heading and a line for each contender, fastest first; failed ones at the end."""
    found = sorted(
        rows(measurements, reference), key=lambda row: -(row.rate.median if row.rate else -1)
    )
    bases = list(baselines(measurements))
    head = ["contender", "score", "pictures/s", *(f"x {base}" for base in bases)]
    head += ["at", "p50/p95/p99 ms", "lone ms", "CPU ms a picture", "PSS MB", "ready s", "failed"]
    return [head] + [
        [
            row.contender,
            _score(row),
            spread(row.rate, "{:.1f}"),
            *(spread(row.ratios.get(base), "{:.2f}") for base in bases),
            str(row.connections or ""),
            "/".join(f"{value:.1f}" for value in row.latency or ()),
            number(row.lone, "{:.1f}"),
            ", ".join(f"{role} {value:.2f}" for role, value in row.cpu.items()),
            number(row.pss, "{:.0f}"),
            spread(row.ready, "{:.1f}"),
            row.problem[:160] or str(row.failed),
        ]
        for row in found
    ]


def _score(row: Row) -> str:
    if row.score is None:
        return ""
    return f"{row.score:.3f}" + (" WRONG" if row.wrong else "")


def poisson_table(measurements: Measurements) -> Cells:
    """Open loops: what was asked for and how long the answers took, against a lone request."""
    lines = [
        ["contender", "asked/s", "share", "p50 ms", "p95 ms", "p99 ms", "p99 / lone", "late ms"]
    ]
    lone = {row.contender: row.lone for row in rows(measurements, None)}
    for name in names(measurements):
        found = select(measurements, contender=name, kind="poisson")
        for share in dict.fromkeys(one["share"] and round(one["share"], 2) for one in found):
            group = [one for one in found if (one["share"] and round(one["share"], 2)) == share]
            latency, alone = _latency(group), lone[name]
            if latency is None:
                continue
            times = [one["p99"] / alone for one in group] if alone else []
            lines.append(
                [
                    name,
                    spread(Spread.of([one["rate"] for one in group]), "{:.1f}"),
                    number(share, "{:.2f}"),
                    *(f"{value:.1f}" for value in latency),
                    spread(Spread.of(times) if times else None, "{:.1f}"),
                    number(median(one["late_p99"] for one in group), "{:.1f}"),
                ]
            )
    return lines


def size_table(measurements: Measurements) -> Cells:
    """Pictures per second of other sizes and of several pictures a request, and ratios."""
    bases, lines = baselines(measurements), []
    kinds = {"large": ("large", 1), "small": ("small", 1), "eight a request": ("real", 8)}
    for heading, (size, together) in kinds.items():
        wanted = {"kind": "closed", "size": size, "per_request": together}
        for name in names(measurements):
            mine = rates(select(measurements, contender=name, **wanted))
            if not mine:
                continue
            others = [
                ratio(mine, rates(select(measurements, contender=base, **wanted)))
                for base in bases.values()
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
                str(told.get("Result is", "")),
                f"{one['score']:.3f}",
                str(one["failed"]),
            ]
        )
    return lines


def every(results: dict[str, Any]) -> dict[str, Cells]:
    """The tables that have lines, by their headings."""
    found = results["measurements"]
    made: dict[str, Callable[[], Cells]] = {
        "Closed loop, single pictures": lambda: main_table(found, results.get("reference")),
        "Other pictures": lambda: size_table(found),
        "Open loop, Poisson arrivals": lambda: poisson_table(found),
        "MLPerf LoadGen": lambda: mlperf_table(found),
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
