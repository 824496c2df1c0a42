"""From measurements to rows: medians over the rounds, ratios within each round, and marks."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from benchmarks.serving.stats import Spread, ratio

Measurements = Sequence[dict[str, Any]]
# Ratios are to these, where they take part; the best tuning is the fastest of them.
INSTALLED, TUNED = "torchserve/installed", "torchserve/tuned"
# The roles of processes that have a model.
_WORKERS = ("worker", "server")
# What tells, by the kind of a measurement, how many requests were not answered well.
_FAILED = {"accuracy": "unanswered"}
# How many of the pictures a contender may get wrong beyond the reference.
_TOLERANCE = 0.005


@dataclass(frozen=True)
class Row:
    """One contender. Rates in pictures per second, times in ms, memory in MB, CPU in ms a picture.

    ``pss`` is that of all processes, ``worker_rss`` and ``worker_pss`` that of its largest worker.
    ``latency`` is p50, p95 and p99 at ``connections``, where the rate is highest; ``lone`` the time
    through the answers of one connection, for wrk's mean has requests in it that were never sent.
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
    worker_rss: float | None = None
    worker_pss: float | None = None
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


def best(
    measurements: Measurements, name: str, size: str = "real", together: int = 1
) -> list[dict[str, Any]]:
    """The closed loops of ``together`` pictures a request at the connections that gave most."""
    wanted = {"kind": "closed", "size": size, "per_request": together}
    found = select(measurements, contender=name, **wanted)
    by_connections: dict[int, list[dict[str, Any]]] = {}
    for one in found:
        by_connections.setdefault(one["connections"], []).append(one)
    return max(by_connections.values(), key=lambda group: median(rates(group).values()), default=[])


def baselines(
    measurements: Measurements,
    reference: float | None = None,
    size: str = "real",
    together: int = 1,
) -> dict[str, str]:
    """What ratios are to: heading -> contender; the first contender where there is no stock.

    Which tuning is the best differs with the pictures' size. One that answers wrongly is not it,
    unless all do: a faster wrong answer does not count, whoever gives it.
    """
    known = names(measurements)
    loops = {name: best(measurements, name, size, together) for name in known}
    found = {"stock as installed": INSTALLED} if loops.get(INSTALLED) else {}
    tuned = [name for name in known if name.startswith(TUNED) and loops[name]]
    wrong = _wrong(_scores(measurements), _limit(measurements, reference))
    if tuned := [name for name in tuned if name not in wrong] or tuned:
        found["stock at its best"] = max(
            tuned, key=lambda name: median(rates(loops[name]).values())
        )
    return found or ({known[0]: known[0]} if known else {})


def rows(measurements: Measurements, reference: float | None) -> list[Row]:
    """A row for each contender; ``reference`` is the score of eager PyTorch, if known."""
    scores = _scores(measurements)
    wrong = _wrong(scores, _limit(measurements, reference))
    bases = {
        heading: rates(best(measurements, name))
        for heading, name in baselines(measurements, reference).items()
    }
    return [
        _row(measurements, name, scores.get(name), name in wrong, bases)
        for name in names(measurements)
    ]


def _scores(measurements: Measurements) -> dict[str, float]:
    """The worst of a contender's rounds: a server that starts anew may answer otherwise."""
    scores: dict[str, float] = {}
    for one in select(measurements, kind="accuracy"):
        name = one["contender"]
        scores[name] = min(one["score"], scores.get(name, one["score"]))
    return scores


def _limit(measurements: Measurements, reference: float | None) -> float:
    """Below which answers are wrong: so far below ``reference``, else below the best contender."""
    found = select(measurements, kind="accuracy")
    if reference is None:
        return max((one["score"] for one in found), default=0.0) - _TOLERANCE
    # Of top-1, that of one picture.
    least = max((1 / float(one["scored"]) for one in found if "scored" in one), default=0.0)
    return reference - max(_TOLERANCE, least)


def _wrong(scores: dict[str, float], limit: float) -> set[str]:
    # With room for the rounding of a score that is a share of pictures.
    return {name for name, score in scores.items() if score < limit - 1e-9}


def _row(
    measurements: Measurements,
    name: str,
    score: float | None,
    wrong: bool,
    bases: dict[str, dict[int, float]],
) -> Row:
    own = select(measurements, contender=name)
    group, mine = best(own, name), rates(best(own, name))
    ready = [one["seconds"] for one in select(own, kind="ready")]
    ratios = {heading: ratio(mine, base) for heading, base in bases.items()}
    alone = select(own, kind="closed", size="real", per_request=1, connections=1)
    lone = [1e3 / rate for rate in rates(alone).values() if rate]
    usages = [one["usage"] for one in own if "usage" in one]
    reasons = [one["reason"] for one in select(own, kind="failed")]
    return Row(
        contender=name,
        score=score,
        wrong=wrong,
        rate=Spread.of(list(mine.values())) if mine else None,
        connections=group[0]["connections"] if group else 0,
        latency=latencies(group),
        lone=median(lone) if lone else None,
        cpu=_cpu(group),
        pss=max((usage["peak_pss"] / 1e6 for usage in usages), default=None),
        worker_rss=_largest_worker(usages, "rss"),
        worker_pss=_largest_worker(usages, "each_pss"),
        ready=Spread.of(ready) if ready else None,
        failed=sum(one.get(_FAILED.get(one["kind"], "failed"), 0) for one in own),
        others=max((usage["others"] for usage in usages), default=0.0),
        problem=reasons[0] if reasons else "",
        ratios={heading: found for heading, found in ratios.items() if found},
    )


def latencies(group: Measurements) -> tuple[float, float, float] | None:
    """The medians of p50, p95 and p99 in ms; None where no latency was measured."""
    answered = [one for one in group if "p50" in one]
    if not answered:
        return None
    p50, p95, p99 = (float(median(one[key] for one in answered)) for key in ("p50", "p95", "p99"))
    return p50, p95, p99


def _cpu(group: Measurements) -> dict[str, float]:
    """CPU milliseconds for each picture, by what the process is for."""
    group = [one for one in group if one["requests"]]
    roles = sorted({role for one in group for role in one["usage"]["cpu"]})
    return {
        role: float(
            median(
                1e3
                * one["usage"]["cpu"].get(role, 0.0)
                / (one["requests"] * one.get("per_request", 1))
                for one in group
            )
        )
        for role in roles
    }


def _largest_worker(usages: Sequence[dict[str, Any]], memory: str) -> float | None:
    """MB of the largest process that has a model; None where no sitting has told of it."""
    sizes = [usage.get(memory, {}).get(role) for usage in usages for role in _WORKERS]
    return max((size / 1e6 for size in sizes if size is not None), default=None)
