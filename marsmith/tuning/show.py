"""What a search found: as a table for a person, as JSON, as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console

from marsmith.trial_tables import new_figure, print_table
from marsmith.trials import Trial
from marsmith.tuning import fingerprint
from marsmith.tuning.points import LOAD, Measured, Objective, pareto
from marsmith.tuning.session import Session
from marsmith.uncut import Problems, print_uncut

_NAMES = ("", "runtime", "precision")
_COLUMNS = ("workers", "threads", "batch", "delay ms", "pictures/s", "p50 ms", "p99 ms", "asked")


def print_tables(console: Console, session: Session) -> None:
    """The pairs; the points, the fastest first, starred where none beats them; the choice."""
    if session.tried:
        print_table(console, session.spec, session.tried)
    spec, objective = session.spec, session.objective
    front = pareto(session.measured)
    best = objective.best(session.measured) if front else None
    metrics = {(each.runtime, each.precision): each for each in session.tried}
    metric = next((each.metric_name for each in session.tried if each.metric is not None), "")
    chosen = any(one.point.options for one in session.measured)
    failed = any(one.problem for one in session.measured)
    words = ["options"] * chosen + ["status"] * failed
    rows, problems = [], Problems()
    for one in sorted(session.measured, key=lambda one: (one.problem or "", -one.throughput)):
        mark = "->" if one is best else "*" if one in front else ""
        trial = metrics.get((one.point.runtime, one.point.precision))
        options = ", ".join(f"{key} {value}" for key, value in one.point.options.items())
        status = "ok" if one.problem is None else problems.mark(one.problem)
        why = [options] * chosen + [status] * failed
        rows.append([*_row(mark, one, trial if metric else None), *why])
    if rows:
        headings = [*_NAMES, *_COLUMNS, *([metric] if metric else []), *words]
        title = f"{spec.name} {spec.version} served by this host"
        print_uncut(console, title, headings, rows, left=(*_NAMES, *words))
        problems.print(console)
        console.print(
            f"* no other point is better on both; p99 under Poisson arrivals at {LOAD:.0%} of the "
            "point's own pictures/s"
        )
    _print_rest(console, session)
    if best is not None:
        console.print(
            f"-> {best.point}: {objective.reason(session.measured)}", markup=False, soft_wrap=True
        )


def _row(mark: str, one: Measured, trial: Trial | None) -> list[str]:
    point = one.point
    counts = (point.workers, point.threads, point.batch_size, point.delay)
    settings = [mark, point.runtime, point.precision, *map(str, counts)]
    if one.problem is None:
        figures = f"{one.throughput:.1f}", f"{one.p50:.1f}", f"{one.p99:.1f}", str(one.requests)
    else:
        figures = "", "", "", ""
    if trial is None:
        return [*settings, *figures]
    return [*settings, *figures, "" if trial.metric is None else f"{trial.metric:.4f}"]


def _print_rest(console: Console, session: Session) -> None:
    """What is in no table."""
    good = [one for one in session.measured if one.problem is None]
    if session.skipped:
        names = ", ".join(" ".join(pair) for pair in session.skipped)
        console.print(f"not tried for want of time (--budget): {names}", soft_wrap=True)
    if session.untried:
        console.print(session.untried, markup=False, soft_wrap=True)
    if not session.complete:
        console.print("the search is not complete: the same command goes on where this one ended")
    if good:
        cpu = max(one.client_cpu for one in good)
        late = max(one.late_p99 for one in good)
        console.print(
            f"the client shared the cores: at most {cpu:.2f} ms of CPU a request, and 99 % of its "
            f"requests left at most {late:.1f} ms late"
        )


def to_json(session: Session) -> dict[str, Any]:
    """All of it as JSON values; ``chosen`` is None where no point was measured."""
    front = pareto(session.measured)
    best = session.objective.best(session.measured) if front else None
    return {
        "model": session.spec.name,
        "version": session.spec.version,
        "host": fingerprint.host(),
        "max_p99": session.objective.max_p99,
        "complete": session.complete,
        "trials": [trial.to_json() for trial in session.tried],
        "skipped": session.skipped,
        "untried": session.untried or None,
        "points": [{**one.to_json(), "pareto": one in front} for one in session.measured],
        "chosen": best and asdict(best.point),
        "reason": best and session.objective.reason(session.measured),
    }


def plot(title: str, measured: Sequence[Measured], objective: Objective, path: Path) -> None:
    """Throughput against p99 as a PNG, with the Pareto front and the choice."""
    figure, axes = new_figure()
    good = [one for one in measured if one.problem is None]
    for name in dict.fromkeys(f"{one.point.runtime} {one.point.precision}" for one in good):
        mine = [one for one in good if f"{one.point.runtime} {one.point.precision}" == name]
        axes.scatter([one.throughput for one in mine], [one.p99 for one in mine], label=name)
    front = pareto(measured)
    axes.plot([one.throughput for one in front], [one.p99 for one in front], "k--", linewidth=1)
    for one in front:
        point = one.point
        words = f"{point.workers}x{point.threads} b{point.batch_size} {point.delay}ms"
        axes.annotate(
            words, (one.throughput, one.p99), xytext=(6, 4), textcoords="offset points", fontsize=8
        )
    best = objective.best(measured)
    size = {"s": 220, "facecolors": "none", "edgecolors": "k"}
    axes.scatter([best.throughput], [best.p99], label="chosen", **size)
    if objective.max_p99 is not None:
        axes.axhline(objective.max_p99, linewidth=1, label="largest p99 wanted")
    axes.set(title=title, xlabel="pictures per second", ylabel=f"p99 in ms at {LOAD:.0%} load")
    axes.set_ylim(bottom=0)
    axes.margins(x=0.15)
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=120)
