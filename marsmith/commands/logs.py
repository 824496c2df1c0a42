"""Show the log lines of this project's server and its workers."""

from __future__ import annotations

import time
from contextlib import suppress
from pathlib import Path

import click

from handlers.errors import ServerError
from marsmith.log_lines import FILES, Chosen, Follower, by_time


@click.command()
@click.option("--follow", "-f", is_flag=True, help="Go on with new lines until Ctrl-C.")
@click.option("--model", metavar="NAME", help="Only what this model's workers say, or names it.")
@click.option("--errors", is_flag=True, help="Only warnings, errors, refusals and tracebacks.")
@click.option(
    "--lines",
    "-n",
    type=click.IntRange(min=0),
    default=100,
    show_default=True,
    help="How many lines back; 0: all.",
)
def command(follow: bool, model: str | None, errors: bool, lines: int) -> None:
    """Show the log lines of this project's server and its workers, oldest first.

    They are those of logs/ts_log.log and logs/model_log.log, in the order of their times; requests
    are in logs/access_log.log, a line for each.
    """
    logs = Path.cwd() / "logs"
    if not any((logs / name).exists() for name in FILES):
        raise ServerError(f"no logs in {logs}: `marsmith serve` writes them")
    files = [(Follower(logs / name, from_end=False), Chosen(model, errors)) for name in FILES]
    shown = by_time(_new(files))
    click.echo("".join(f"{line}\n" for line in shown[-lines or None :]), nl=False)
    if not shown and not follow:
        click.echo("no such lines", err=True)
    with suppress(KeyboardInterrupt):
        while follow:
            time.sleep(0.3)
            click.echo("".join(f"{line}\n" for line in by_time(_new(files))), nl=False)


def _new(files: list[tuple[Follower, Chosen]]) -> list[str]:
    return [line for follower, chosen in files for line in chosen.pick(follower.lines())]
