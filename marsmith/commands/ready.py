"""Tell whether models really answer, for an orchestrator's probe."""

from __future__ import annotations

from pathlib import Path

import click

from marsmith.durations import seconds
from marsmith.readiness import read_readiness


@click.command()
@click.argument("model", required=False)
@seconds("--timeout", 5.0, "For each call.")
@click.pass_context
def command(ctx: click.Context, model: str | None, timeout: float) -> None:
    """Tell whether MODEL, or every model, really answers: status 0 or 1, and why in one line.

    Asked is the default version: it must have a living worker and answer its golden requests over
    REST. TorchServe's own /ping says Healthy of dead and of loading workers.
    """
    readiness = read_readiness(Path.cwd(), model, timeout)
    click.echo(f"{'ready' if readiness.ready else 'not ready'}: {readiness.reason}")
    ctx.exit(0 if readiness.ready else 1)
