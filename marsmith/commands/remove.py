"""End a version that is not the default one, when nothing is under way in it."""

from __future__ import annotations

from pathlib import Path

import click

from marsmith.durations import seconds
from marsmith.leaving import leave_in_order
from marsmith.processes import require_running
from marsmith.rollout_options import grpc_option


@click.command()
@click.argument("model")
@click.argument("version")
@seconds(
    "--drain-timeout",
    120.0,
    "How long its requests are waited for; 0: they are lost, as of a version that is dead.",
    zero=True,
)
@grpc_option
def command(model: str, version: str, drain_timeout: float, over_grpc: bool) -> None:
    """Drain VERSION of MODEL, which must not be the default one, and unregister it.

    Its archive stays in the store. Requests that name the version get 404 from then on.
    """
    from marsmith.operate import end_version

    leave_in_order()
    running = require_running(Path.cwd())
    click.echo(end_version(running, model, version, drain_timeout, over_grpc))
