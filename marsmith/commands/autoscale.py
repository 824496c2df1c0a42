"""Keep as many workers as the load wants, between a least and a most number."""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path

import click

from handlers.errors import ServerError
from marsmith.client import Client
from marsmith.durations import OR_NONE, seconds
from marsmith.leaving import leave_in_order
from marsmith.processes import require_running
from marsmith.steps import heedless


@click.command()
@click.argument("models", nargs=-1, metavar="[MODEL...]")
@click.option(
    "--min", "least", default=1, show_default=True, type=click.IntRange(1), help="Workers at least."
)
@click.option(
    "--max", "most", default=2, show_default=True, type=click.IntRange(1), help="Workers at most."
)
@seconds("--interval", 5.0, "Length of a round.")
@click.option("--rounds", type=click.IntRange(1), help="Stop after so many rounds of each model.")
@click.option("--seconds", type=OR_NONE, help="Stop after so long.")
@click.option(
    "--up",
    type=OR_NONE,
    default=100.0,
    show_default=True,
    metavar="MS",
    help="One worker more where requests wait longer for one.",
)
@click.option(
    "--down",
    type=OR_NONE,
    default=5.0,
    show_default=True,
    metavar="MS",
    help="One worker less where requests wait less than that in --calm rounds.",
)
@click.option("--calm", default=5, show_default=True, type=click.IntRange(1), help="See --down.")
def command(
    models: tuple[str, ...],
    least: int,
    most: int,
    interval: float,
    rounds: int | None,
    seconds: float | None,
    up: float,
    down: float,
    calm: int,
) -> None:
    """Scale the default versions of the MODELs (default: all) by how long requests wait.

    Runs until Ctrl-C or SIGTERM, or for --rounds or --seconds. A worker ends between two requests,
    never in one. Prints a line a round, and what it does.
    """
    from marsmith.autoscale import Policy, run

    if most < least:
        raise ServerError(f"--max {most} is less than --min {least}")
    running = require_running(Path.cwd())
    end = float("inf") if seconds is None else time.monotonic() + seconds
    left = iter(range(rounds or 2**62))
    next(left)

    def go_on() -> bool:
        return time.monotonic() < end and next(left, None) is not None

    leave_in_order(0)
    with Client.of(running) as client:
        policy = Policy(least, most, up / 1000, down / 1000, calm)
        try:
            run(running, client, models, policy, interval, go_on, click.echo)
        except SystemExit:
            # The terminal may be what has ended.
            heedless(partial(click.echo, err=True))("stopped; the workers stay as they are")
            raise
