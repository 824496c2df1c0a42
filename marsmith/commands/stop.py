"""Stop this project's TorchServe, however it was started."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import click

from marsmith.drain import drain_before_stop
from marsmith.durations import seconds
from marsmith.environment import others, temp_folder
from marsmith.locks import alone
from marsmith.processes import START_LOCK, find_running, stop_running


@click.command()
@click.option("--drain/--no-drain", default=True, help="Wait for requests first, or lose them.")
@seconds(
    "--drain-timeout",
    30.0,
    "How long requests that wait or are under way are waited for; 0: they are lost.",
    zero=True,
)
@seconds(
    "--patience",
    20.0,
    "How long TorchServe may take after that before it is ended by force.",
    zero=True,
)
def command(drain: bool, drain_timeout: float, patience: float) -> None:
    """Stop this project's TorchServe, however it was started.

    Waits until nothing is queued or under way and nothing new comes; it cannot keep clients from
    asking, so take the server out of the load balancer first. Returns when TorchServe and all its
    workers are gone; a `marsmith serve` that waits for it ends with status 0.
    """
    temp = temp_folder(Path.cwd())
    if drain and drain_timeout and (running := find_running(temp)):
        drain_before_stop(running, drain_timeout, partial(click.echo, err=True))
    # A start that is under way would bring up the server after this had found none
    with alone(temp / START_LOCK):
        pid = stop_running(temp, patience)
    none = f"no TorchServe runs for this folder{others(Path.cwd())}"
    click.echo(none if pid is None else f"TorchServe (pid {pid}) has stopped")
