"""Show what every loaded version is really doing, and whether it answers rightly."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import click

from marsmith.client import Client
from marsmith.drain import Queue, silent_workers
from marsmith.durations import seconds
from marsmith.probe import GoldenCheck
from marsmith.processes import require_running
from marsmith.status import VersionStatus, check_golden, read_status

_HEAD = ("model", "version", "default", "workers", "queue", "golden", "takes", "state")


@click.command()
@click.option("--golden/--no-golden", default=True, help="Ask each version its golden requests.")
@click.option("--json", "as_json", is_flag=True, help="One JSON list instead of a table.")
@seconds("--timeout", 30.0, "For each request, and for every worker of a version to answer one.")
@click.pass_context
def command(ctx: click.Context, golden: bool, as_json: bool, timeout: float) -> None:
    """Show what every loaded version is really doing, and whether it answers rightly.

    Workers are counted by their processes, which TorchServe's own description is late with. Each
    has proven the golden requests when it loaded. Here of several workers each must answer a call;
    then as many golden requests are asked as there are workers, or all if that is more, one after
    the other. Where nobody else asks, each worker gets one; under load those that become free do,
    and one that answers wrongly may be missed. The exit status is 1 where a version has fewer
    workers than asked for, a wrong golden answer, or a worker that does not answer. One that was
    scaled to none has what was asked for; "no workers" says that its requests wait.
    """
    running = require_running(Path.cwd())
    with Client.of(running, timeout=timeout) as client:
        found = [
            # Without a worker a request would wait in vain
            (one, _check(client, one, timeout) if golden and one.ready_workers else None)
            for one in read_status(running, client)
        ]
    if as_json:
        rows = [{**asdict(one), "golden": check and asdict(check)} for one, check in found]
        click.echo(json.dumps(rows, indent=2))
    else:
        click.echo(f"TorchServe, pid {running.pid}, {running.addresses.inference}")
        click.echo(_table([_HEAD, *(_row(one, check) for one, check in found)]))
    if any(not one.ready or (check and check.problem) for one, check in found):
        ctx.exit(1)


def _check(client: Client, status: VersionStatus, seconds: float) -> GoldenCheck:
    several = status.ready_workers > 1
    # First, for a golden request in a worker that hangs would not tell which one that is.
    if several and (silent := _silent(client, status, seconds)):
        return silent
    # TorchServe gives each to the worker that has waited longest; asked at once, they would be a
    # batch of one worker.
    check = check_golden(client, status, least=status.ready_workers)
    if several or check.count or check.problem:
        return check
    return _silent(client, status, seconds) or check


def _silent(client: Client, status: VersionStatus, seconds: float) -> GoldenCheck | None:
    silent = silent_workers(Queue(client, status.model, status.version), seconds)
    pids = ", ".join(map(str, sorted(silent)))
    problem = f"no answer within {seconds:g} s by the workers with pids {pids}"
    return GoldenCheck(0, problem) if silent else None


def _row(status: VersionStatus, check: GoldenCheck | None) -> tuple[str, ...]:
    return (
        status.model,
        status.version,
        "yes" if status.default else "",
        f"{status.ready_workers}/{status.min_workers}",
        f"{status.pending}/{status.pending + status.capacity}",
        str(check or "not asked"),
        f"{check.seconds * 1e3:.0f} ms" if check and check.count else "",
        _state(status),
    )


def _state(status: VersionStatus) -> str:
    if not status.ready:
        return f"refused: {status.refusal}" if status.refusal else "loading"
    return "ready" if status.ready_workers else "no workers"


def _table(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = (zip(row, widths, strict=True) for row in rows)
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in line).rstrip() for line in lines
    )
