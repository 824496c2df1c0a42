"""The ``marsmith`` command: every file in ``marsmith/commands`` is a subcommand of its name.

Such a file has a module-level ``command`` (a ``click.Command``) and a docstring whose first line is
the help. Only the file of the command that runs is imported.
"""

from __future__ import annotations

import ast
import importlib
import signal
import sys
from pathlib import Path

import click

from handlers import plugins
from handlers.errors import MarsmithError
from handlers.nearest import hint
from marsmith import __version__
from marsmith.leaving import leave

_FOLDER = Path(__file__).parent / "commands"


class Commands(click.Group):
    """A group that finds its commands by their file names."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The names of all commands, sorted."""
        files = _FOLDER.glob("[a-z]*.py")
        return sorted(file.stem.replace("_", "-") for file in files)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import one command; None where there is no such file."""
        if cmd_name not in self.list_commands(ctx):
            return None
        module = importlib.import_module(f"marsmith.commands.{cmd_name.replace('-', '_')}")
        command: click.Command = module.command
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """As click does, but with the nearest names for a command that there is not."""
        known = self.list_commands(ctx)
        # A shell that completes a line asks for no command to run.
        wanted = not (ctx.resilient_parsing or args[0].startswith("-"))
        if wanted and args[0] not in known:
            ctx.fail(f"no command {args[0]}: {hint(args[0], known)}")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands by their files' docstrings, without importing any."""
        rows = [(name, _first_line(name)) for name in self.list_commands(ctx)]
        with formatter.section("Commands"):
            formatter.write_dl(rows)


def _first_line(name: str) -> str:
    source = (_FOLDER / f"{name.replace('-', '_')}.py").read_text(encoding="utf-8")
    return (ast.get_docstring(ast.parse(source)) or "").partition("\n")[0]


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__)
def group() -> None:
    """Turn PyTorch models into TorchServe archives that answer like them, and run them well."""


def main() -> None:
    """Run the command line; an error is one line and status 1.

    Only what the pipeline itself does not expect is shown with its traceback.
    """
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        # A script starts its background jobs deaf to it, and some commands end by nothing else.
        signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with plugins.blamed():
            group()
    except MarsmithError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(1) from None
    except OSError as error:
        # A folder without rights, a full disk: of the host, and no mistake of ours.
        if error.filename is None:
            raise
        print(f"error: {error.filename}: {error.strerror}", file=sys.stderr)
        raise SystemExit(1) from None


def run() -> None:
    """``main`` in a process of its own, which ends with it."""
    try:
        main()
    except SystemExit as end:
        if not isinstance(end.code, (int, type(None))):
            raise
        leave(end.code or 0)
