"""Find a model's runtime, precision and serving settings on this host."""

from __future__ import annotations

import json
import re
import signal
import sys
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from handlers.errors import SpecError
from marsmith.model_options import (
    as_option,
    caller,
    check_pictures,
    check_precisions,
    chosen_options,
    input_options,
    input_said,
    model_file,
    model_options,
    overrides,
)
from marsmith.terminal import console, telling

if TYPE_CHECKING:
    from marsmith.spec import ModelSpec
    from marsmith.tuning.session import Session

_PICTURES = 200
Settings = Callable[["ModelSpec"], dict[str, Any]]
"""What every session has, whatever is tuned."""
_INTERRUPTED = 130


def _milliseconds(context: click.Context, option: click.Parameter, text: str | None) -> Any:
    if text is None:
        return None
    match = re.fullmatch(r"(\d+(?:\.\d+)?)(ms|s)?", text)
    if match is None or float(match[1]) <= 0:
        raise click.BadParameter(f"{text!r}: write a time above 0 such as 50ms or 0.2s")
    return float(match[1]) * (1000 if match[2] == "s" else 1)


@click.command()
@click.argument("model")
@click.option("--pictures", type=click.Path(path_type=Path), help="To ask. Default: the samples.")
@click.option("--max-p99", callback=_milliseconds, help="Such as 50ms. Default: throughput first.")
@click.option(
    "--seconds-per-point",
    type=click.FloatRange(0.1),
    default=5.0,
    show_default=True,
    help="Of each of two loops: closed for throughput, Poisson for p99.",
)
@click.option(
    "--budget",
    type=click.FloatRange(0, min_open=True),
    default=20.0,
    show_default=True,
    help="Minutes; nothing is begun after them.",
)
@chosen_options
@model_options
@input_options
@click.option("--write", is_flag=True, help="Write the choice into the model's file.")
@click.option("--profile", type=click.Path(path_type=Path), help="Write it into a host's profile.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("--plot", type=click.Path(path_type=Path), help="Save throughput against p99 as PNG.")
def command(
    model: str,
    pictures: Path | None,
    max_p99: float | None,
    seconds_per_point: float,
    budget: float,
    runtimes: tuple[str, ...],
    precisions: tuple[str, ...],
    write: bool,
    profile: Path | None,
    as_json: bool,
    plot: Path | None,
    **given: Any,
) -> None:
    """Find a model's runtime, precision, workers, threads, batch size and delay on this host.

    Every pair of runtime and precision is built and proven; the fastest three are served by a
    TorchServe and loaded. Results are kept in build/tune: the same command goes on after Ctrl-C.
    int8 needs --calibrate and --evaluate, or the model file's own. Of an archive (.mar) the serving
    settings are tuned, with the artifact that it has.
    """
    from marsmith import samples, trial_tables
    from marsmith.subject import ARCHIVE
    from marsmith.tuning.points import Objective
    from marsmith.tuning.serving import Load

    if plot is not None:
        trial_tables.new_figure()
    if (write or profile is not None) and not model.endswith(ARCHIVE):
        _check_written(given)
    here = caller()
    told = Console(stderr=True, highlight=False)
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn()
    progress = Progress(*columns, TimeElapsedColumn(), console=told, transient=True)
    bar = progress.add_task(model, total=None)

    def settings(spec: ModelSpec) -> dict[str, Any]:
        folder, option = Path(spec.samples), samples.SAMPLES
        if pictures:
            folder, option = here / pictures, "--pictures"
        return {
            "spec": spec,
            "root": Path.cwd(),
            "load": Load(samples.files(folder, option)[:_PICTURES], seconds_per_point),
            "objective": Objective(max_p99),
            "budget": 60 * budget,
            "tell": telling(told, lambda words: progress.update(bar, description=words)),
            "advance": lambda done, most: progress.update(bar, completed=done, total=most),
        }

    with ExitStack() as stack:
        session, search, file = (
            _of_archive(stack, Path(model), settings, runtimes, precisions, write, given)
            if model.endswith(ARCHIVE)
            else _of_model(model, here, settings, runtimes, precisions, write, given)
        )
        with progress:
            interrupted = _run(search)
    _show(session, as_json, here / plot if plot else None, told)
    if interrupted:
        told.print("interrupted: nothing is written")
        sys.exit(_INTERRUPTED)
    if write or profile is not None:
        _write(session, file if write else None, here / profile if profile else None, told)


def _check_written(given: dict[str, Any]) -> None:
    """Raise SpecError for options that the choice depends on, and that are not written with it."""
    if said := input_said(given):
        raise SpecError(
            f"{', '.join(map(as_option, said))}: --write and --profile keep nothing of the input, "
            "and what is chosen here needs this one: write it into the model's file (input:), and "
            "tune that"
        )


def _of_model(
    name: str,
    here: Path,
    settings: Settings,
    runtimes: tuple[str, ...],
    precisions: tuple[str, ...],
    write: bool,
    given: dict[str, Any],
) -> tuple[Session, Callable[[], None], Path | None]:
    """The session of a model, its search, and its file, which torchvision's own need not have."""
    from marsmith import named, trials
    from marsmith.tuning.session import Session

    say = partial(click.echo, err=True)
    spec, file = named.load(name, here, overrides(given, here), say), model_file(name, here)
    if write and file is None:
        raise SpecError(f"--write: {name} is torchvision's and has no file here: --profile FILE")
    check_pictures(spec, given)
    pairs = trials.pairs(spec, precisions, runtimes)
    check_precisions(given, (precision for _, precision in pairs))
    session = Session(**settings(spec))
    return session, partial(session.run, pairs), file


def _of_archive(
    stack: ExitStack,
    path: Path,
    settings: Settings,
    runtimes: tuple[str, ...],
    precisions: tuple[str, ...],
    write: bool,
    given: dict[str, Any],
) -> tuple[Session, Callable[[], None], None]:
    """The session of an archive, which lies unpacked as long as the stack is open."""
    from marsmith.subject import find
    from marsmith.tuning.given import ArchiveSession

    useless = {"runtime": runtimes or None, "precision": precisions or None, **given}
    useless["write"] = write or None
    named = [f"--{key.replace('_', '-')}" for key, value in useless.items() if value is not None]
    if named:
        raise SpecError(
            f"{', '.join(named)}: {path.name} has its artifact and no model file; leave that out, "
            "or give the model, its name or YAML file (the result of an archive: --profile FILE)"
        )
    found = stack.enter_context(find(str(path)))
    session = ArchiveSession(**settings(found.spec), of=found)
    return session, session.search, None


def _run(search: Callable[[], None]) -> bool:
    """Whether the search was ended by Ctrl-C or SIGTERM."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        search()
    except KeyboardInterrupt:
        return True
    finally:
        signal.signal(signal.SIGTERM, before)
    return False


def _show(session: Session, as_json: bool, plot: Path | None, told: Console) -> None:
    from marsmith.tuning import show

    if as_json:
        print(json.dumps(show.to_json(session), indent=1))
    else:
        show.print_tables(console(), session)
    if plot is not None and any(one.problem is None for one in session.measured):
        title = f"{session.spec.name} {session.spec.version}"
        show.plot(title, session.measured, session.objective, plot)
        told.print(f"plot {plot}")


def _write(session: Session, file: Path | None, profile: Path | None, told: Console) -> None:
    from marsmith.tuning import fingerprint, writing

    host = fingerprint.host()
    best = session.objective.best(session.measured)
    keys = writing.changes(session.spec, best.point, host["cores"])
    if file is not None:
        writing.to_model_file(file, keys)
        told.print(f"written into {file}: {best.point}")
    if profile is not None:
        writing.to_profile(profile, session.spec.name, keys, host)
        told.print(f"written into {profile}: {best.point}")
