"""``python -m benchmarks.serving``: choose, measure, write down."""

from __future__ import annotations

import json
import shlex
import signal
import sys
from dataclasses import asdict, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

import marsmith  # noqa: F401  # first of all: it says how the threads of torch wait
from benchmarks.serving import machine, page, plots, rows, tables
from benchmarks.serving import reference as eager
from benchmarks.serving.choice import chosen, families
from benchmarks.serving.plan import Plan
from benchmarks.serving.session import Session
from benchmarks.serving.subject import PROJECT, Subject, serving_settings
from handlers.errors import MarsmithError, SpecError

RESULTS = PROJECT / "results"
LOADS = ("closed", "poisson", "mlperf", "eight", "large", "small")
# Settings of some loads: each needs one of each set.
_OPEN = {"poisson", "mlperf"}
_NEEDED = {"shares": (_OPEN, {"closed"}), "rates": (_OPEN,), "latency_ms": ({"mlperf"},)}
_QUICK = Plan(
    rounds=1,
    seconds=2.0,
    warm=1.0,
    warm_requests=0,
    warm_each=1.0,
    connections=(1, 8),
    loads=("closed",),
    patience=60.0,
)
_QUICK_PICTURES = 50
_PIPE_WIDTH = 200


def _numbers(kind: Any) -> Any:
    def read(context: Any, option: Any, text: str | None) -> Any:
        try:
            return None if text is None else tuple(kind(part) for part in text.split(","))
        except ValueError as error:
            raise click.BadParameter(f"{text!r}: write numbers with commas between") from error

    return read


@click.command()
@click.argument("contenders", nargs=-1)
@click.option(
    "--model", default="mobilenet_v2_shapes", show_default=True, help="Name or YAML file."
)
@click.option("--weights", type=click.Path(path_type=Path, exists=True), help="Its state_dict.")
@click.option(
    "--pictures",
    type=click.Path(path_type=Path, exists=True),
    help="Labelled: labels.csv of file,label or a folder for each label. Default: rendered.",
)
@click.option("--count", type=click.IntRange(1), help="How many pictures at most. Default: 200.")
@click.option("--serving", multiple=True, help="KEY=NUMBER of our archives' serving part.")
@click.option("--rounds", type=click.IntRange(1), help="Default: 3.")
@click.option("--seconds", type=click.FloatRange(0.5), help="Of each load. Default: 5.")
@click.option("--warm", type=click.FloatRange(0.5), help="Seconds of load before. Default: 5.")
@click.option("--warm-requests", type=click.IntRange(0), help="Answers before. Default: 20000.")
@click.option("--warm-most", type=click.FloatRange(0.5), help="Seconds for those. Default: 60.")
@click.option("--warm-each", type=click.FloatRange(0.5), help="Before each load. Default: 2.")
@click.option("--connections", callback=_numbers(int), help="Closed loops. Default: 1,8,32.")
@click.option("--load", "loads", multiple=True, type=click.Choice(LOADS), help="Repeatable.")
@click.option("--shares", callback=_numbers(float), help="Of capacity, Poisson. Default: 0.6.")
@click.option("--rates", callback=_numbers(float), help="Poisson rates that all are asked for.")
@click.option("--latency-ms", type=click.FloatRange(1), help="LoadGen's bound. Default: 100.")
@click.option("--patience", type=click.FloatRange(1), help="Seconds until ready. Default: 180.")
@click.option("--quick", is_flag=True, help="One short round of ours and its ceiling.")
@click.option("--out", type=click.Path(path_type=Path), help="Default: a new folder in results/.")
@click.option("--list", "listing", is_flag=True, help="List contenders and what they follow.")
@click.option(
    "--page",
    "results",
    multiple=True,
    type=click.Path(path_type=Path),
    help="Only write docs/performance-figures.md from these results.json; repeatable.",
)
def main(contenders: tuple[str, ...], **given: Any) -> None:
    """Measure CONTENDERS: parts (ours, stock, peers, ceilings), names or patterns. Default: all."""
    # A pipe has no width; its 80 columns would cut every cell.
    width = None if sys.stdout.isatty() else _PIPE_WIDTH
    console = Console(highlight=False, soft_wrap=True, width=width)
    # As Ctrl-C does: every server is ended.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        if given["results"]:
            page.write(given["results"])
            return
        serving = serving_settings(given["serving"])
        count = given["count"] or (_QUICK_PICTURES if given["quick"] else 200)
        subject = Subject.load(given["model"], given["weights"], given["pictures"], count, serving)
        if given["listing"]:
            _list(console, subject)
            return
        words = contenders or _default(subject, given["quick"])
        names = chosen(words, subject)
        failed = _run(console, subject, names, _plan(given), given["out"])
    except MarsmithError as error:
        console.print(f"error: {error}", markup=False)
        sys.exit(1)
    except KeyboardInterrupt:
        console.print("stopped: all servers have been ended")
        sys.exit(130)
    sys.exit(1 if failed else 0)


def _default(subject: Subject, quick: bool) -> tuple[str, ...]:
    """All parts; for a quick look what the base environments run."""
    if not quick:
        return tuple(sorted({one.part for one in families().values()
                             if subject.spec.task in one.tasks}))  # fmt: skip
    own = f"{subject.spec.runtime}:{subject.spec.precision}"
    return (f"ours/{own}", f"ceiling/{own}")


def _plan(given: dict[str, Any]) -> Plan:
    keys = (
        "rounds",
        "seconds",
        "warm",
        "warm_requests",
        "warm_most",
        "warm_each",
        "connections",
        "loads",
        "shares",
        "rates",
        "latency_ms",
        "patience",
    )
    said = {key: given[key] for key in keys if given[key] not in (None, ())}
    plan = replace(_QUICK if given["quick"] else Plan(), **said)
    for key, needed in _NEEDED.items():
        for loads in needed if key in said else ():
            if not loads & set(plan.loads):
                option = f"--{key.replace('_', '-')}"
                raise SpecError(f"{option} needs --load {' or '.join(sorted(loads))} as well")
    return plan


def _run(
    console: Console, subject: Subject, names: list[str], plan: Plan, out: Path | None
) -> bool:
    """Run the sitting; whether a contender failed."""
    started = datetime.now().astimezone()
    folder = out or RESULTS / started.strftime("%Y-%m-%d-%H%M%S")
    folder.mkdir(parents=True, exist_ok=True)
    console.print(f"{len(names)} contenders: {', '.join(names)}")
    kinds = {name: families()[name.partition("/")[0]] for name in names}
    environments = sorted({one.environment for one in kinds.values() if one.environment})
    sizes = [len(one.data) for one in subject.pictures]
    results: dict[str, Any] = {
        "started": started.isoformat(timespec="seconds"),
        "command": shlex.join(["python", "-m", "benchmarks.serving", *sys.argv[1:]]),
        "subject": {
            "model": subject.spec.name,
            "task": subject.spec.task,
            "architecture": subject.spec.architecture,
            "pictures": len(sizes),
            "scored": sum(one.scored for one in subject.pictures),
            "kilobytes": round(sum(sizes) / len(sizes) / 1e3),
            "serving": dict(subject.serving),
        },
        "plan": asdict(plan),
        "machine": machine.describe(),
        "versions": machine.versions(environments),
        "recommended": {name: one.recommended for name, one in kinds.items()},
        "reference": eager.score(subject),
        "measurements": [],
    }

    def keep(measurement: dict[str, Any]) -> None:
        results["measurements"].append(measurement)
        # After each: what was measured survives whatever comes.
        (folder / "results.json").write_text(json.dumps(results, indent=1))

    try:
        Session(subject, names, plan, folder, keep, console.print).run()
    finally:
        if rows.select(results["measurements"], kind="closed"):
            plots.draw(results, folder)
        _show(console, results, folder)
    return bool(rows.select(results["measurements"], kind="failed"))


def _show(console: Console, results: dict[str, Any], folder: Path) -> None:
    made = tables.every(results)
    for heading, (head, *lines) in made.items():
        table = Table(title=heading)
        for name in head:
            table.add_column(name, overflow="fold")
        for line in lines:
            table.add_row(*line)
        console.print(table)
    texts = [f"{heading}\n" + "\n".join(" | ".join(line) for line in cells)
             for heading, cells in made.items()]  # fmt: skip
    (folder / "tables.txt").write_text("\n\n".join(texts) + "\n", encoding="utf-8")
    console.print(f"results in {folder}")


def _list(console: Console, subject: Subject) -> None:
    for name, one in families().items():
        if subject.spec.task in one.tasks:
            variants = ", ".join(f"{name}/{variant}" for variant in one.variants(subject))
            console.print(f"[bold]{one.part}[/]: {variants}\n  {one.recommended}")


if __name__ == "__main__":
    main()
