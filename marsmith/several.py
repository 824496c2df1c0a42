"""Builds of several models, each in a process of its own, and the table that closes them."""

from __future__ import annotations

import json
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from handlers import plugins
from handlers.errors import MarsmithError
from marsmith.leaving import clearing, ended
from marsmith.uncut import Problems, print_uncut

if TYPE_CHECKING:
    from marsmith.spec import ModelSpec

_HEADINGS = ("model", "version", "runtime", "MB", "parity", "seconds")


def build_each(command: Sequence[str], specs: Mapping[str, ModelSpec]) -> Iterator[dict[str, Any]]:
    """Run ``command``, a ``marsmith build`` with its options, once for each name of ``specs``.

    Yields what ``Built.to_json`` tells of it, or model, version, seconds and ``problem``, the
    reason why it failed. Ctrl-C ends the build under way, and no other begins.
    """
    for name, spec in specs.items():
        with tempfile.TemporaryDirectory() as folder:
            report, start = Path(folder) / "report.json", time.perf_counter()
            begun = subprocess.Popen([*command, f"--report={report}", name])
            with begun as process, clearing(process):
                status = process.wait()
            seconds = round(time.perf_counter() - start, 1)
            found = {"model": spec.name, "version": spec.version, "seconds": seconds}
            if status:
                # Of one that was killed, or that no error of ours has ended.
                found["problem"] = f"{ended(status)}; what it said stands above"
            yield found | (json.loads(report.read_text("utf-8")) if report.exists() else {})


@contextmanager
def reporting(report: Path | None, spec: ModelSpec, as_json: bool) -> Iterator[None]:
    """Write why the build within fails to where ``build_each`` reads it; without such a place it is
    printed where JSON is wanted."""
    try:
        with plugins.blamed():
            yield
    except MarsmithError as error:
        told = {"model": spec.name, "version": spec.version, "problem": str(error)}
        if report:
            report.write_text(json.dumps(told), "utf-8")
        elif as_json:
            print(json.dumps(told))
        raise


def print_table(console: Console, built: Sequence[Mapping[str, Any]], seconds: float) -> None:
    """One row for each that ``build_each`` yields; below it the first lines of all reasons.

    ``seconds`` is how long all of them took.
    """
    problems = Problems()
    rows = [_row(found, problems) for found in built]
    failed = {number for number, found in enumerate(built) if "problem" in found}
    title = f"{len(built) - len(failed)} of {len(built)} models built in {seconds:.1f} s"
    print_uncut(console, title, _HEADINGS, rows, left=_HEADINGS[:3], marked=failed)
    problems.print(console)


def _row(found: Mapping[str, Any], problems: Problems) -> list[str]:
    name, took = [found["model"], found["version"]], f"{found['seconds']:.1f}"
    if "problem" in found:
        return [*name, problems.mark(found["problem"].partition("\n")[0]), "", "", took]
    parity = found["parity"]
    # None where outputs are not compared one by one.
    worst = parity["largest_difference"]
    worst = parity["largest_score_difference"] if worst is None else worst
    runtime = f"{found['runtime']} {found['precision']}"
    return [*name, runtime, f"{found['bytes'] / 1e6:.1f}", f"{worst:.1e}", took]
