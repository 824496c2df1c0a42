"""Find the first layer at which two runtimes of a model part."""

from __future__ import annotations

import json
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import click

from handlers.errors import SpecError
from marsmith import terminal
from marsmith.model_options import EAGER
from marsmith.uncut import print_uncut
from marsmith.unused import only_with

if TYPE_CHECKING:
    from marsmith.bisecting import Report, Row
    from marsmith.subject import Subject

# Rows shown before and after the first layer that parts.
AROUND = 4
_WORDS = ("", "layer", "shape", "note")
_HEADINGS = (*_WORDS[:3], "largest value", "difference", "relative", _WORDS[3])


@click.command()
@click.argument("first")
@click.argument("second")
@click.option("--picture", type=click.Path(path_type=Path), help="Default: a golden one.")
@click.option(
    "--tolerance", type=click.FloatRange(0), default=1e-3, show_default=True, help="Relative."
)
@click.option("--weights", type=click.Path(path_type=Path), help="Eager's state_dict.")
@click.option("--all", "everything", is_flag=True, help="Show every layer.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object with every layer.")
@click.pass_context
def command(
    ctx: click.Context,
    first: str,
    second: str,
    picture: Path | None,
    tolerance: float,
    weights: Path | None,
    everything: bool,
    as_json: bool,
) -> None:
    """Compare two archives (.mar) of a model layer by layer; one of them may be "eager".

    An archive is a path or a file of the store.

    eager is the PyTorch network that the other was exported from, with its weights out of this
    project, or --weights. A difference is relative to the largest value of its layer; lower
    precisions need a larger --tolerance. The exit status is 1 where the two part.
    """
    from marsmith import subject

    names = (first, second)
    archives = [name for name in names if name != EAGER]
    if not archives or not all(name.endswith(subject.ARCHIVE) for name in archives):
        raise SpecError(f"bisect {first} {second}: give two archives (.mar), or one and eager")
    if EAGER not in names:
        only_with(EAGER, {"--weights": weights})
    with ExitStack() as stack:
        found = {name: stack.enter_context(subject.find(name)) for name in archives}
        report = _report([found.get(name) for name in names], picture, weights, tolerance)
    if as_json:
        click.echo(json.dumps(report.to_json(), indent=1))
    else:
        _print(report, names, everything)
    if report.first:
        ctx.exit(1)


def _report(
    sides: list[Subject | None], picture: Path | None, weights: Path | None, tolerance: float
) -> Report:
    """Compare the sides, of which eager is None."""
    import numpy as np

    from marsmith import bisecting

    handlers = [None if side is None else bisecting.handler_of(side) for side in sides]
    subjects = [side for side in sides if side is not None]
    if len({repr(side.input) for side in subjects}) > 1:
        raise SpecError("the two archives take different inputs: they are not of one model")
    given = next(handler for handler in handlers if handler is not None)
    images = np.stack([given.preprocess(subjects[0].image(picture))])
    layers = [
        bisecting.module_layers(subjects[0], weights, images)
        if handler is None
        else bisecting.archive_layers(handler, images)
        for handler in handlers
    ]
    return bisecting.compare(layers[0], layers[1], tolerance)


def _print(report: Report, names: tuple[str, str], everything: bool) -> None:
    console = terminal.console()
    rows, place = report.rows, None
    if report.first is not None:
        place = rows.index(report.first)
    start, end = 0, len(rows)
    if not everything:
        middle = len(rows) - 1 if place is None else place
        start, end = max(0, middle - AROUND), min(len(rows), middle + AROUND + 1)
    shown = rows[start:end]
    cells = [_cells(row, report.first) for row in shown]
    apart = [number for number, row in enumerate(shown) if row.parts]
    title = f"{names[0]} against {names[1]}"
    print_uncut(console, title, _HEADINGS, cells, left=_WORDS, marked=apart)
    if end - start < len(rows):
        console.print(f"{len(rows) - end + start} more layers: --all shows them")
    if report.first is None:
        worst = max(rows, key=lambda row: row.relative)
        console.print(
            f"[green]agree everywhere[/]: {len(rows)} layers and outputs, at most "
            f"{worst.relative:.1e} apart (at {worst.layer}; allowed {report.tolerance:g})",
            soft_wrap=True,
        )
        return
    console.print(
        f"[red]part at {report.first.layer}[/], of which {names[1]} may have folded: "
        f"{', '.join(report.suspects)}",
        soft_wrap=True,
    )


def _cells(row: Row, first: Row | None) -> list[str]:
    shape = " x ".join(map(str, row.shape[1:]))
    figures = [f"{value:.2e}" for value in (row.scale, row.absolute, row.relative)]
    return [">" if row is first else "", row.layer, shape, *figures, row.note]
