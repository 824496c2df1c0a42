"""Replace a running model's version by an archive's, proven, and lose no request."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from marsmith.leaving import leave_in_order
from marsmith.processes import require_running
from marsmith.rollout_options import read_options, watching


def _share(_: click.Context, __: click.Parameter, text: str | None) -> float | None:
    if text is None:
        return None
    number = text.removesuffix("%")
    try:
        share = float(number) / (100 if text.endswith("%") else 1)
    except ValueError as error:
        raise click.BadParameter(f"{text!r}: write a share such as 1% or 0.01") from error
    if not 0 <= share <= 1:
        raise click.BadParameter(f"{text!r} is not between 0 and 100%")
    return share


@click.command()
@click.argument("archive", type=click.Path(path_type=Path))
@click.option(
    "--compare",
    "pictures",
    type=click.Path(exists=True, path_type=Path),
    help="Folder of pictures to ask both versions.",
)
@click.option(
    "--max-disagreement",
    callback=_share,
    help="Share of those pictures that may be decided otherwise.  [default: 1%]",
)
@watching
def command(
    archive: Path, pictures: Path | None, max_disagreement: float | None, keep: bool, **given: Any
) -> None:
    """Replace a running model's version by that of ARCHIVE, a path or a file of the store.

    The new version is registered beside the old one and must answer its golden requests through the
    server before it becomes the default. It is watched, then the old one is drained and removed. A
    step that fails takes back all before it. The server must run with the model API on: `marsmith
    serve --model-api`.
    """
    from marsmith.asking import find_pictures
    from marsmith.operate import roll_out

    compared: dict[str, Any] = {}
    if pictures:
        compared["pictures"] = find_pictures([str(pictures)])
    if max_disagreement is not None:
        if not pictures:
            raise click.UsageError(
                "--max-disagreement is for the pictures of --compare: name a folder there"
            )
        compared["disagreement"] = max_disagreement
    leave_in_order()
    options = read_options(given, **compared)
    roll_out(require_running(Path.cwd()), archive, options, keep, click.echo)
    click.echo("done")
