"""Find the first layer at which two runtimes of a model part."""

from __future__ import annotations

import json
from collections.abc import Iterator
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
    precisions need a larger --tolerance. The exit status is 1 where the two part, and where a
    layer of either has values that are not finite.
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
    if not report.agree:
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
    rows = report.rows
    start, end = 0, len(rows)
    if not everything:
        # Around what is worth looking at, or the last ones.
        middle = rows.index(report.first or next(iter(report.not_finite), rows[-1]))
        start, end = max(0, middle - AROUND), min(len(rows), middle + AROUND + 1)
    shown = rows[start:end]
    cells = [_cells(row, report.first) for row in shown]
    apart = [number for number, row in enumerate(shown) if row.parts]
    title = f"{names[0]} against {names[1]}"
    print_uncut(console, title, _HEADINGS, cells, left=_WORDS, marked=apart)
    if end - start < len(rows):
        console.print(f"{len(rows) - end + start} more layers: --all shows them")
    for line in _verdict(report, names[1]):
        console.print(line, soft_wrap=True)


def _verdict(report: Report, second: str) -> Iterator[str]:
    """What came of it, a line for each thing to say; ``second`` is the name of the other."""
    if report.not_finite:
        row, count = report.not_finite[0], len(report.not_finite)
        one, other = row.not_finite
        yield (
            f"[red]not finite[/] in {count} of {len(report.rows)} layers and outputs, first in "
            f"{row.layer} ({one} values against {other}): NaN and infinity agree with nothing; "
            "look at the weights and the picture"
        )
    if report.first is not None:
        yield (
            f"[red]part at {report.first.layer}[/], of which {second} may have folded: "
            f"{', '.join(report.suspects)}"
        )
    elif report.agree:
        worst = max(report.rows, key=lambda row: row.relative)
        yield (
            f"[green]agree everywhere[/]: {len(report.rows)} layers and outputs, at most "
            f"{worst.relative:.1e} apart (at {worst.layer}; allowed {report.tolerance:g})"
        )


def _cells(row: Row, first: Row | None) -> list[str]:
    shape = " x ".join(map(str, row.shape[1:]))
    figures = [f"{value:.2e}" for value in (row.scale, row.absolute, row.relative)]
    return [">" if row is first else "", row.layer, shape, *figures, row.note]
