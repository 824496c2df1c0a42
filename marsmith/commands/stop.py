"""Stop this project's TorchServe, however it was started."""

from __future__ import annotations

from pathlib import Path

import click

from marsmith.environment import temp_folder
from marsmith.processes import stop_running


@click.command()
@click.option(
    "--patience",
    default=20.0,
    show_default=True,
    metavar="SECONDS",
    help="How long TorchServe may take before it is ended by force.",
)
def command(patience: float) -> None:
    """Stop this project's TorchServe, however it was started.

    Returns when TorchServe and all its workers are gone. Requests under way are lost.
    """
    pid = stop_running(temp_folder(Path.cwd()), patience)
    none = "no TorchServe runs for this folder"
    click.echo(none if pid is None else f"TorchServe (pid {pid}) has stopped")
