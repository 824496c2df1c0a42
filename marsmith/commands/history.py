"""What was rolled out, rolled back and removed, when, by whom and why."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import click
from rich.table import Table

from handlers.nearest import hint
from marsmith import journal
from marsmith.terminal import console


@click.command()
@click.argument("model", required=False)
@click.option("--json", "as_json", is_flag=True, help="JSON lines, as they are in the journal.")
def command(model: str | None, as_json: bool) -> None:
    """Show what was done to MODEL's versions, or to those of all models, oldest first.

    It is read from state/journal.jsonl. An operation of which the table says "started" is under way
    or was broken off: `marsmith status` shows what is registered.
    """
    entries = journal.read(Path.cwd(), model)
    if as_json:
        for entry in entries:
            click.echo(json.dumps(asdict(entry), ensure_ascii=False))
        return
    if not entries:
        known = {entry.model for entry in journal.read(Path.cwd())}
        of = f" of {model}; {hint(model, known)}" if model and known else ""
        click.echo(f"{journal.FILE} has nothing{of}")
        return
    table = Table("time (UTC)", "operation", "model", "from", "to", "result", "by")
    for entry in journal.ended(entries):
        result = f"{entry.result}: {entry.reason}" if entry.reason else entry.result
        time = entry.time.partition("+")[0].replace("T", " ")
        cells = (time, entry.operation, entry.model, entry.before, entry.after, result, entry.user)
        table.add_row(*cells)
    # What is written to a file may be as wide as it needs
    console(200, markup=False).print(table)
