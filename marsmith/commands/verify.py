"""Prove an archive again: its files, its golden requests, its answers against eager's."""

from __future__ import annotations

import json
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console

from handlers.errors import RuntimeUnavailable, SpecError
from marsmith.client import Client
from marsmith.model_options import EAGER, caller
from marsmith.processes import require_running
from marsmith.unused import only_with

if TYPE_CHECKING:
    from handlers.task import TaskHandler

ITSELF = "itself"
_LISTED = 10


@click.command()
@click.argument("archive", type=click.Path(path_type=Path))
@click.option("--images", type=click.Path(path_type=Path), help="Default: the model's samples.")
@click.option("--against", help="eager (default where there is one), itself, another archive.")
@click.option("--served", is_flag=True, help="Ask this project's running server, as well.")
@click.option("--weights", type=click.Path(path_type=Path), help="Those the archive was made of.")
@click.option("--max-drop", type=float, help="Largest loss of the metric. Default: as at build.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(
    archive: Path,
    images: Path | None,
    against: str | None,
    served: bool,
    weights: Path | None,
    max_drop: float | None,
    as_json: bool,
) -> None:
    """Prove ARCHIVE, a path or a file of the store, again on this host: its files, its golden
    requests and its answers.

    Outputs are compared with eager's at several batch sizes, as at build, of an artifact that
    others exported, or against itself, with its own to single pictures. With --images the metric is
    measured, too: against the folder's labels, or where it has none against the answers of the
    reference. Exits with 1 where anything is wrong.
    """
    from marsmith import foreign, samples, store, verification

    here, root = caller(), Path.cwd()
    if max_drop is not None and images is None:
        raise SpecError("--max-drop needs --images DIR, the pictures to measure on")
    if max_drop is not None and not 0 <= max_drop <= 1:
        raise SpecError(f"--max-drop {max_drop:g}: write a share from 0 to 1, 0.01 for one point")
    with tempfile.TemporaryDirectory(prefix="marsmith-verify-") as temporary:
        folder, other = Path(temporary) / "archive", Path(temporary) / "other"
        task = _opened(store.locate(archive, here), folder)
        against = against or (EAGER if task.bundle.foreign is None else ITSELF)
        alone = against == ITSELF
        if against != EAGER:
            only_with(EAGER, {"--weights": weights, "--max-drop": max_drop if alone else None})
        if alone:
            name, reference = "itself, one by one", foreign.alone(task)
        elif against == EAGER:
            file = None if weights is None else here / weights
            name, reference = EAGER, _eager(task, archive, folder, file)
        else:
            name, reference = against, _opened(store.locate(Path(against), here), other)
        files = (
            verification.sample_files(task, root, folder)
            if images is None
            else samples.files(here / images, "--images", deep=True)
        )
        verdicts = [verification.compare(task, reference, files, name)]
        if images is not None:
            verdicts[0] = verification.measured(
                verdicts[0],
                task,
                None if alone else reference,
                here / images,
                max_drop,
                folder,
                other if other.is_dir() else None,
            )
        if served:
            running = require_running(Path.cwd())
            verdicts += verification.served(task, lambda: Client.of(running, timeout=60), files)
    if as_json:
        print(json.dumps([verdict.to_json() for verdict in verdicts], indent=1))
    else:
        _show(archive.name, verdicts)
    sys.exit(0 if all(verdict.passed for verdict in verdicts) else 1)


def _opened(path: Path, folder: Path) -> TaskHandler:
    """The handler of an archive, unpacked into ``folder``; raises ArchiveError or LoadError."""
    from marsmith import archive, verification

    archive.check_torch(path)
    archive.unpack(path, folder)
    return verification.opened(folder)


def _eager(task: TaskHandler, archive: Path, folder: Path, file: Path | None) -> TaskHandler:
    """Eager of an unpacked archive, which alone needs PyTorch; raises RuntimeUnavailable."""
    if find_spec("torch") is None:
        raise RuntimeUnavailable(
            "eager needs PyTorch, which is not installed here: install requirements.txt, or "
            "compare with another archive (--against OTHER.mar), or the archive's answers in "
            "batches with its own to single pictures (--against itself)"
        )
    from marsmith import subject, verification

    return verification.eager(task, subject.of_archive(archive, folder), file)


def _show(name: str, verdicts: list[Any]) -> None:
    console = Console(highlight=False)
    console.print(f"{name}: files and golden requests are as built")
    for verdict in verdicts:
        color, word = ("green", "agrees") if verdict.passed else ("red", "DIFFERS")
        console.print(
            f"[{color}]{word}[/] with {verdict.against}: {verdict.same} of {verdict.pictures} "
            f"decisions the same, scores within {verdict.largest_move:.1e}",
            soft_wrap=True,
        )
        if verdict.parity is not None:
            console.print(f"  {verdict.parity.words(verdict.against)}", soft_wrap=True)
        if verdict.accuracy is not None:
            console.print(f"  {verdict.accuracy}", soft_wrap=True)
        far = "moved far" if verdict.metric_decides else "wrong"
        for lines, word in ((verdict.wrong, "wrong"), (verdict.moved, far)):
            for line in lines[:_LISTED]:
                console.print(f"  {word}: {line}", markup=False, soft_wrap=True)
            if len(lines) > _LISTED:
                console.print(f"  and {len(lines) - _LISTED} more")
