"""Ask a running model pictures: a table, JSON lines, or the answers drawn."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn
from rich.table import Table

from handlers.errors import MarsmithError, ServerError
from marsmith import terminal
from marsmith.asking import Asked, Asker, find_pictures, in_order
from marsmith.client import Client
from marsmith.durations import seconds
from marsmith.processes import Running, require_running
from marsmith.status import describe


@click.command()
@click.argument("model")
@click.argument("pictures", nargs=-1, required=True, metavar="PICTURE...")
@click.option("--version", help="The version to ask; the default version if not given.")
@click.option("--json", "as_json", is_flag=True, help="A line of JSON for each picture.")
@click.option(
    "--draw",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="FOLDER",
    help="Save each picture with its answer drawn on it.",
)
@click.option(
    "--jobs", default=4, show_default=True, type=click.IntRange(1, 64), help="Asked at once."
)
@seconds("--timeout", 60.0, "For each request.")
@click.pass_context
def command(
    ctx: click.Context,
    model: str,
    pictures: tuple[str, ...],
    version: str | None,
    as_json: bool,
    draw: Path | None,
    jobs: int,
    timeout: float,
) -> None:
    """Ask MODEL each PICTURE: a file, a folder, or a pattern such as 'photos/**/*.jpg'.

    A picture that fails does not stop the others; the exit status is 1 then.
    """
    running = require_running(Path.cwd())
    paths = find_pictures(pictures)
    _check(running, model, version)
    targets = _targets(draw, paths) if draw else {}
    asker = Asker(lambda: Client.of(running, timeout=timeout), model, version)
    try:
        found = list(_ask(asker, paths, targets, jobs))
    finally:
        asker.close()
    if as_json:
        for one in found:
            click.echo(json.dumps(_fields(one), ensure_ascii=False))
    else:
        terminal.console().print(_table(found, _summary(running, model, version)))
        for one in found:
            if one.problem:
                click.echo(f"{one.path}: {one.problem}", err=True)
    failed = sum(one.problem is not None for one in found)
    if failed:
        click.echo(f"{failed} of {len(found)} pictures failed", err=True)
        ctx.exit(1)


def _check(running: Running, model: str, version: str | None) -> None:
    """Say at once, and once, that there is no such model or nobody to answer."""
    with Client.of(running) as client:
        found = describe(client, model, version)
    if not found["workers"]:
        raise ServerError(f"{model} {found['modelVersion']} has no workers: `marsmith scale` it")


def _ask(asker: Asker, paths: list[Path], targets: dict[Path, Path], jobs: int) -> Iterator[Asked]:
    def work(path: Path) -> Asked:
        asked = asker.ask(path)
        return _draw(asker, asked, targets[path]) if targets and not asked.problem else asked

    bar = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    # On the error stream, and on a terminal only: what is printed may be piped
    console = Console(stderr=True)
    with Progress(*bar, console=console, transient=True, disable=not console.is_terminal) as shown:
        yield from shown.track(in_order(work, paths, jobs), total=len(paths))


def _draw(asker: Asker, asked: Asked, target: Path) -> Asked:
    drawn = asker.ask(asked.path, "image/png")
    if drawn.problem or drawn.reply is None:
        return Asked(asked.path, asked.reply, f"not drawn: {drawn.problem}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(drawn.reply.body)
    except OSError as error:
        return Asked(asked.path, asked.reply, f"not drawn: {target}: {error.strerror}")
    return asked


def _targets(folder: Path, paths: list[Path]) -> dict[Path, Path]:
    """A PNG for each picture; pictures of one name in several folders keep their folders."""
    names = [path.name for path in paths]
    if len(set(names)) == len(names):
        return {path: folder / f"{path.name}.png" for path in paths}
    anchors = {path: path.resolve().relative_to(path.resolve().anchor) for path in paths}
    return {path: folder / f"{inner}.png" for path, inner in anchors.items()}


def _fields(one: Asked) -> dict[str, Any]:
    fields: dict[str, Any] = {"picture": str(one.path)}
    if one.problem or one.reply is None:
        return {**fields, "status": one.reply.status if one.reply else 0, "error": one.problem}
    return {**fields, "status": one.reply.status, "answer": one.reply.json()}


def _table(found: list[Asked], summary: Any) -> Table:
    table = Table("picture", "answer")
    for one in found:
        failed = one.problem or one.reply is None
        answer = "[red]failed[/]" if failed else summary(one.reply.json() if one.reply else None)
        table.add_row(escape(str(one.path)), answer)
    return table


def _summary(running: Running, model: str, version: str | None) -> Any:
    """The task's own few words for an answer; an answer's JSON where the archive has no task."""
    with Client.of(running) as client:
        archive = running.model_store / client.describe(model, version)[0]["modelUrl"]
    try:
        from marsmith.archive import read_json

        task = read_json(archive, "marsmith.json")["task"]
        from handlers.plugins import load_task

        return lambda answer: escape(load_task(task).summary(answer))
    except MarsmithError:
        return lambda answer: escape(json.dumps(answer, ensure_ascii=False))
