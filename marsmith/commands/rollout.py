"""Replace a running model's version by an archive's, proven, and lose no request."""

from __future__ import annotations

import signal
import sys
from pathlib import Path
from typing import Any

import click

from marsmith.processes import require_running

grpc_option = click.option(
    "--grpc", "over_grpc", is_flag=True, help="Manage TorchServe over gRPC, not over REST."
)
_WATCHING = (
    click.option("--keep", is_flag=True, help="Leave the old version registered beside the new."),
    click.option(
        "--watch",
        default=20.0,
        show_default=True,
        metavar="SECONDS",
        help="How long to watch the new default version before the old one goes.",
    ),
    click.option(
        "--max-failures",
        default=0,
        show_default=True,
        help="Failed requests of clients (5xx over REST) that the watch allows.",
    ),
    click.option(
        "--max-slowdown",
        default=3.0,
        show_default=True,
        metavar="TIMES",
        help="How much longer than before a golden request may take.",
    ),
    click.option(
        "--load-timeout", default=300.0, show_default=True, metavar="SECONDS", help="For loading."
    ),
    click.option(
        "--drain-timeout",
        default=120.0,
        show_default=True,
        metavar="SECONDS",
        help="How long requests of the version that goes are waited for; 0: they are lost.",
    ),
    grpc_option,
)


def watching(command: Any) -> Any:
    """Options of every command that changes a default version."""
    for option in reversed(_WATCHING):
        command = option(command)
    return command


def read_options(given: dict[str, Any], **more: Any) -> Any:
    """``marsmith.rollout.Options`` of those of the command line."""
    from marsmith.rollout import Options
    from marsmith.watch import Limits

    limits = Limits(given["watch"], failures=given["max_failures"], slowdown=given["max_slowdown"])
    return Options(
        load=given["load_timeout"],
        drain=given["drain_timeout"],
        watch=limits,
        grpc=given["over_grpc"],
        **more,
    )


def leave_in_order() -> None:
    """Let SIGTERM and the end of a terminal, like Ctrl-C, take back what was done.

    A second signal does not disturb that, and under nohup a terminal may end.
    """
    numbers = [signal.SIGINT, signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        numbers.append(signal.SIGHUP)

    left = False

    def leave(*_: object) -> None:
        nonlocal left
        # The handler stays: Python complains of one that goes while a second signal is on its way.
        if not left:
            left = True
            sys.exit(1)

    for number in numbers:
        signal.signal(number, leave)


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
