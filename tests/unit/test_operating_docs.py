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


def test_every_command_is_shown_on_some_page(project: Path) -> None:
    pages = [project / "README.md", *sorted((project / "docs").glob("*.md"))]
    words = "\n".join(page.read_text("utf-8") for page in pages)
    commands = cli.group.list_commands(click.Context(cli.group))
    assert len(commands) > 20
    # build is shown as build_mar.sh, demo as make demo.
    missing = [name for name in commands if f"marsmith {name}" not in words]
    assert set(missing) <= {"build", "demo"}
