"""Set the number of workers of a running model."""

from __future__ import annotations

from pathlib import Path

import click

from handlers import cores
from marsmith import journal
from marsmith.client import Client
from marsmith.durations import seconds
from marsmith.leaving import leave_in_order
from marsmith.managing import GrpcManaged
from marsmith.processes import require_running
from marsmith.retire import scale_down
from marsmith.rollout_options import grpc_option
from marsmith.status import describe


@click.command()
@click.argument("model")
@click.argument("workers", type=click.IntRange(min=0))
@click.option("--most", type=click.IntRange(min=0), help="Workers at most; WORKERS if not given.")
@click.option("--version", help="The version to scale; the default version if not given.")
@seconds("--timeout", 120.0, "For all to load.")
@click.option("--now", is_flag=True, help="End workers at once: requests in them may fail.")
@grpc_option
def command(
    model: str,
    workers: int,
    most: int | None,
    version: str | None,
    timeout: float,
    now: bool,
    over_grpc: bool,
) -> None:
    """Set the number of WORKERS of a running MODEL, and wait until they have loaded.

    A worker that is too many ends between two requests. With no workers TorchServe lets requests
    wait instead of refusing them; more workers than cores fight for them: both are warned of.
    Refused while a rollout or a rollback is under way.
    """
    if over_grpc and not workers:
        raise click.UsageError("TorchServe's gRPC cannot scale to no workers: leave --grpc out")
    if most is not None and most < workers:
        raise click.UsageError(f"--most {most} is less than WORKERS, {workers}")
    kind = GrpcManaged if over_grpc else Client
    leave_in_order()
    running = require_running(Path.cwd())
    with journal.exclusive(running.home), kind.of(running) as client:
        chosen = describe(client, model, version)["modelVersion"]
        if not now:
            scale_down(running, model, chosen, max(workers, most or 0), timeout, kind)
        click.echo(client.scale(model, workers, most, version=chosen, timeout=timeout))
    if warning := _warning(f"{model} {chosen}", workers, cores.usable()):
        click.echo(f"warning: {warning}", err=True)


def _warning(name: str, workers: int, here: int) -> str | None:
    if not workers:
        return (
            f"{name} has no workers now: its requests wait without an answer, until "
            "`marsmith scale` gives it one"
        )
    if workers > here:
        return (
            f"{name} has {workers} workers for {here} cores, for which their threads fight: as a "
            "rule no more requests are answered, and each later"
        )
    return None
