"""Go back to the version that a model had before its last rollout."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from marsmith.leaving import leave_in_order
from marsmith.processes import require_running
from marsmith.rollout_options import read_options, watching


@click.command()
@click.argument("model")
@watching
def command(model: str, keep: bool, **given: Any) -> None:
    """Make the version before the default one of MODEL again, as the journal knows it.

    Taken with the same care as a rollout: the version gone back to must answer its golden requests
    before it becomes the default, and a step that fails takes back all before it. With --keep at
    the rollout, the version before is still loaded, and the model API need not be on if this is
    called with --keep, too.
    """
    from marsmith.operate import roll_back

    leave_in_order()
    roll_back(require_running(Path.cwd()), model, read_options(given), keep, click.echo)
    click.echo("done")
