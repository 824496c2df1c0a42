"""Command line options of what changes a default version, and that for management over gRPC."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from marsmith.durations import POSITIVE, seconds

if TYPE_CHECKING:
    from marsmith.rollout import Options

grpc_option = click.option(
    "--grpc", "over_grpc", is_flag=True, help="Manage TorchServe over gRPC, not over REST."
)
_WATCHING = (
    click.option("--keep", is_flag=True, help="Leave the old version registered beside the new."),
    seconds(
        "--watch",
        20.0,
        "How long to watch the new default version before the old one goes.",
        zero=True,
    ),
    click.option(
        "--max-failures",
        type=click.IntRange(min=0),
        default=0,
        show_default=True,
        help="Failed requests of clients (5xx over REST) that the watch allows.",
    ),
    click.option(
        "--max-slowdown",
        type=POSITIVE,
        default=3.0,
        show_default=True,
        metavar="TIMES",
        help="How much longer than before a golden request may take.",
    ),
    seconds("--load-timeout", 300.0, "For loading."),
    seconds(
        "--drain-timeout",
        120.0,
        "How long requests of the version that goes are waited for; 0: they are lost.",
        zero=True,
    ),
    grpc_option,
)


def watching(command: Any) -> Any:
    """Options of every command that changes a default version."""
    for option in reversed(_WATCHING):
        command = option(command)
    return command


def read_options(given: dict[str, Any], **more: Any) -> Options:
    """What a rollout is told by those of the command line, and by ``more``."""
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
