"""Every command line that docs/operating.md shows is one that marsmith takes."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import click
import pytest

from marsmith import cli

PAGE = (Path(__file__).parents[2] / "docs/operating.md").read_text("utf-8")
LINES = re.findall(r"^(?:\$|   ) marsmith ([^#\n]+)", PAGE, re.MULTILINE)


@pytest.mark.parametrize("line", LINES)
def test_a_shown_line_is_taken(line: str, project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(project)
    name, *arguments = shlex.split(line)
    context = click.Context(cli.group)
    command = cli.group.get_command(context, name)
    assert command, name
    arguments = ["2" if each == "N" else each for each in arguments]
    command.make_context(name, arguments)


def test_every_command_that_operates_is_shown() -> None:
    shown = {line.split()[0] for line in LINES}
    assert set(cli.group.list_commands(click.Context(cli.group))) - shown == {"build", "demo"}
