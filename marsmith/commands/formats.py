"""Compare a model's runtimes and precisions on this host."""

from __future__ import annotations

import json
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from marsmith.model_options import (
    caller,
    check_pictures,
    check_precisions,
    chosen_options,
    input_options,
    model_options,
    overrides,
)


@click.command()
@click.argument("model")
@chosen_options
@model_options
@input_options
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("--plot", type=click.Path(path_type=Path), help="Save speed against accuracy as PNG.")
@click.option(
    "--keep",
    type=click.Path(path_type=Path),
    help="Folder to keep the archives in, as compared: for one worker.",
)
def command(
    model: str,
    runtimes: tuple[str, ...],
    precisions: tuple[str, ...],
    as_json: bool,
    plot: Path | None,
    keep: Path | None,
    **given: Any,
) -> None:
    """Compare a model's runtimes and precisions on this host.

    Every pair is built, proven, loaded in a clean process and timed, one after the other, with
    all cores and batches of 8, whatever workers and batches the model is served with. A pair that
    does not work says why, and Ctrl-C shows what was found so far. int8 needs --calibrate and
    --evaluate, or the model file's own; a detector on some runtimes --resize H,W.
    """
    from marsmith import named, terminal, trial_tables, trials

    if plot is not None:
        trial_tables.new_figure()
    here = caller()
    say = partial(click.echo, err=True)
    spec = trials.alone(named.load(model, here, overrides(given, here), say))
    check_pictures(spec, given)
    chosen = trials.pairs(spec, precisions, runtimes)
    check_precisions(given, (precision for _, precision in chosen))
    console = Console(stderr=True, highlight=False)
    with tempfile.TemporaryDirectory() as temporary, console.status(spec.name) as status:
        tried: list[trials.Trial] = []
        tell = terminal.telling(console, status.update)
        run = trials.run(spec, Path.cwd(), keep or Path(temporary), chosen, tell)
        try:
            for trial in run:
                tried.append(trial)
        except KeyboardInterrupt:
            console.print(f"interrupted after {len(tried)} of {len(chosen)}")
    if as_json:
        print(json.dumps(trial_tables.to_json(spec, tried), indent=1))
    else:
        trial_tables.print_table(terminal.console(), spec, tried)
    if plot is not None:
        trial_tables.plot(spec, tried, plot)
        console.print(f"plot {plot}")
    if len(tried) < len(chosen):
        sys.exit(130)
