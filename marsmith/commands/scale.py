"""Set the number of workers of a running model."""

from __future__ import annotations

from pathlib import Path

import click

from marsmith.client import Client
from marsmith.processes import require_running


@click.command()
@click.argument("model")
@click.argument("workers", type=click.IntRange(min=0))
@click.option("--most", type=click.IntRange(min=0), help="Workers at most; WORKERS if not given.")
@click.option("--version", help="The version to scale; the default version if not given.")
@click.option(
    "--timeout", default=120.0, show_default=True, metavar="SECONDS", help="For all to load."
)
def command(
    model: str, workers: int, most: int | None, version: str | None, timeout: float
) -> None:
    """Set the number of WORKERS of a running MODEL, and wait until they have loaded.

    With no workers TorchServe lets requests wait instead of refusing them.
    """
    with Client.of(require_running(Path.cwd())) as client:
        click.echo(client.scale(model, workers, most, version=version, timeout=timeout))
