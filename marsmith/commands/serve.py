"""Start TorchServe with this project's archives and say how to ask it."""

from __future__ import annotations

import os
import shlex
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import click
import yaml

from handlers import golden
from handlers.errors import MarsmithError, ServerError
from marsmith.addresses import Tokens, free_addresses, read_properties
from marsmith.drain import drain_before_stop
from marsmith.durations import seconds
from marsmith.environment import CONFIG_NAME
from marsmith.exporter import Exporter
from marsmith.leaving import catch_ends
from marsmith.processes import Running
from marsmith.samples import DEFAULT, found
from marsmith.server import TorchServe
from marsmith.status import VersionStatus, unpacked
from marsmith.steps import heedless

# For a shell in the server's folder.
_READ_TOKEN = (
    'python3 -c \'import json; print(json.load(open("key_file.json"))["inference"]["key"])\''
)


@click.command()
@click.argument("archives", nargs=-1)
@click.option(
    "--models",
    "first",
    multiple=True,
    metavar="ARCHIVES...",
    help="Archives of the model store, the default version of a model first (default: all).",
)
@click.option("--strict", is_flag=True, help="Stop and fail when any model does not load.")
@click.option("--background", is_flag=True, help="Return when the models are ready.")
@click.option("--free-ports", is_flag=True, help="Ports that nobody uses, not the configured ones.")
@click.option("--model-api", is_flag=True, help="Let versions be registered, for rollouts.")
@click.option(
    "--exporter",
    metavar="HOST:PORT",
    help="Publish what `marsmith exporter` does, as long as it runs.",
)
# More than serving.startup_timeout, at which TorchServe says why.
@seconds("--timeout", 330.0, "For all to load.")
@seconds(
    "--drain-timeout",
    30.0,
    "How long Ctrl-C or SIGTERM waits for requests; 0: not at all.",
    zero=True,
)
def command(
    archives: tuple[str, ...],
    first: tuple[str, ...],
    strict: bool,
    background: bool,
    free_ports: bool,
    model_api: bool,
    exporter: str | None,
    timeout: float,
    drain_timeout: float,
) -> None:
    """Start TorchServe with this project's archives and say how to ask it.

    Loads the newest version of each model first, which makes it the default one; where versions
    were rolled out or back, the journal says which it is, and which are over and not loaded. Models
    that do not load are named with the reason and the others are served. Ctrl-C, SIGTERM or the end
    of the terminal stops everything when requests under way are answered; a second one does not
    wait for them.
    """
    catch_ends(_end)
    server = TorchServe(
        Path.cwd(),
        archives=[name for name in (*first, *archives) if name != "all"],
        config={
            **(free_addresses(read_properties(Path(CONFIG_NAME))) if free_ports else {}),
            **({"enable_model_api": "true"} if model_api else {}),
        },
    )
    if exporter and background:
        raise click.UsageError(
            "--exporter ends with this command: with --background start it apart"
        )
    with (
        _ended_by_others(background),
        _stopped(server),
        Exporter(Path.cwd(), exporter) if exporter else nullcontext() as pages,
    ):
        try:
            _report(server, strict, timeout)
            if background:
                server.leave_running()
                return
            click.echo("Ctrl-C stops it", err=True)
            while server.running:
                time.sleep(1)
        # Also while others load: a model that has loaded may be answering.
        except (SystemExit, ServerError):
            _ending.begun = True
            if pages:
                pages.say_stopping()
            if drain_timeout and (running := _ours(server)):
                _drain(running, drain_timeout)
            raise


class _WasStopped(ServerError):
    """Somebody else has stopped the server."""


@contextmanager
def _ended_by_others(background: bool) -> Iterator[None]:
    """Say that somebody has stopped the server, which is what was asked for: a service manager must
    not take it for a failure and start it again. In the background it has not come to be."""
    try:
        yield
    except _WasStopped as error:
        if background:
            raise
        heedless(partial(click.echo, err=True))(str(error))


def _ours(server: TorchServe) -> Running | None:
    """The server, unless it has ended; one that somebody has started in its place is theirs."""
    try:
        return server.running
    except ServerError:
        return None


def _report(server: TorchServe, strict: bool, timeout: float) -> None:
    """Wait for the models and say what came of each; raises ServerError for too little."""
    click.echo("TorchServe has started, its models are loading", err=True)
    statuses = server.wait_ready(timeout)
    failed = [status for status in statuses if status.failed]
    for reason in server.refused.values():
        click.secho(f"left out: {reason}", err=True, fg="red")
    if server.ended:
        click.echo(
            f"not loaded, for the journal says that their time is over: {', '.join(server.ended)};"
            " `marsmith rollout` brings one back",
            err=True,
        )
    for status in failed:
        reason = f"{status.model} {status.version} does not load: {status.failed}"
        click.secho(reason, err=True, fg="red")
    if len(failed) == len(statuses) or (strict and failed):
        raise ServerError(f"{len(failed)} of {len(statuses)} models do not load: stopped")
    if strict and server.refused:
        raise ServerError(f"{len(server.refused)} archives are refused: stopped")
    click.echo("\n".join(_how_to_ask(server.running, statuses)))


@dataclass
class _Ending:
    """How far the stopping is, without locks: a signal may come in the middle of anything."""

    begun: bool = False
    hurried: bool = False
    draining: bool = False


_ending = _Ending()


def _end(*_: object) -> None:
    if _ending.begun:
        # It ends the draining, and must not leave the stopping half done
        _hurry()
        return
    _ending.begun = True
    # Not click.echo: the signal may have come in the middle of one. The terminal may be gone.
    with suppress(OSError):
        os.write(2, b"stopping TorchServe\n")
    sys.exit(0)


def _hurry() -> None:
    _ending.hurried = True
    # Only then, and once: an exception gets out of a call that waits for a busy worker
    if _ending.draining:
        _ending.draining = False
        raise KeyboardInterrupt


@contextmanager
def _stopped(server: TorchServe) -> Iterator[None]:
    """Start the server and stop it on exit, which no signal breaks off."""
    try:
        server.start()
        yield
    except ServerError as error:
        if server.was_stopped:
            raise _WasStopped("TorchServe was stopped") from error
        raise
    finally:
        _ending.begun = True
        server.stop()


def _drain(running: Running, seconds: float) -> None:
    """Wait for requests under way, until a second signal; says what will be lost."""
    tell = heedless(partial(click.echo, err=True))
    try:
        try:
            _ending.draining = True
            # It may have come before
            if _ending.hurried:
                _hurry()
            drain_before_stop(running, seconds, tell)
        finally:
            _ending.draining = False
    except KeyboardInterrupt:
        tell("stopping at once: requests under way are lost")


def _how_to_ask(running: Running, statuses: Iterable[VersionStatus]) -> Iterator[str]:
    key = Tokens.read(running.home).inference
    if key and not sys.stdout.isatty():
        # What is printed elsewhere is kept, as in a journal, where the token would lie open.
        token = f'-H "Authorization: Bearer $({_READ_TOKEN})" '
    else:
        token = f"-H 'Authorization: Bearer {key}' " if key else ""
    for status in statuses:
        if status.default and not status.failed:
            url = f"{running.addresses.inference}/predictions/{status.model}"
            plural = "" if status.ready_workers == 1 else "s"
            yield f"# {status.model} {status.version}, {status.ready_workers} worker{plural}"
            sample = shlex.quote(_sample(running.home, status))
            # -T and not -d, which would call the picture a form
            yield f"curl {token}-T {sample} {url}"


def _sample(home: Path, status: VersionStatus) -> str:
    """A picture of the folder that the model's file names, or else a golden one of the archive, as
    the server has unpacked it, or any below ``samples``."""
    folder = _folder(home, status.model)
    pictures = found(folder, deep=True) if folder else []
    pictures = pictures or _golden(status) or found(home / "samples", deep=True)
    if not pictures:
        return "PICTURE"
    inside = pictures[0].is_relative_to(home)
    return str(pictures[0].relative_to(home) if inside else pictures[0])


def _golden(status: VersionStatus) -> list[Path]:
    with suppress(MarsmithError):
        folder = unpacked(status)
        return [folder / case.picture for case in golden.read(folder)]
    return []


def _folder(home: Path, model: str) -> Path | None:
    """The folder of samples that the model's file names; None where it has no file."""
    file = home / "models" / f"{model}.yaml"
    try:
        named = yaml.safe_load(file.read_text(encoding="utf-8"))
    # It may be gone, or half written: the archive serves without it.
    except (OSError, ValueError, yaml.YAMLError):
        return None
    return home / str(named.get("samples", DEFAULT)) if isinstance(named, dict) else None
