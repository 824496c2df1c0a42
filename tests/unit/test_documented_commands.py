"""Every command line that README.md and docs/ show is one that marsmith takes."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from marsmith import cli
from marsmith.commands import build
from marsmith.spec import ModelSpec

PROJECT = Path(__file__).parents[2]
PAGES = [PROJECT / "README.md", *sorted((PROJECT / "docs").glob("*.md"))]
_SHOWN = re.compile(r"^(?:\$ |    )?(marsmith|\./build_mar\.sh) (.+)$", re.MULTILINE)


def _lines() -> list[tuple[str, str]]:
    """Pages' names with what they show, in the form of ``marsmith COMMAND ...``."""
    found = []
    for page in PAGES:
        text = re.sub(r"\\\n\s*", " ", page.read_text("utf-8"))
        for program, words in _SHOWN.findall(text):
            command = "" if program == "marsmith" else "build "
            found.append((page.name, command + re.sub(r"\s#.*", "", words).strip()))
    return found


LINES = _lines()
OWN = [line for _, line in LINES if "--name" in line]


@pytest.mark.parametrize(("page", "line"), LINES)
def test_a_shown_line_is_taken(page: str, line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(PROJECT)
    name, *arguments = shlex.split(line)
    context = click.Context(cli.group)
    command = cli.group.get_command(context, name)
    assert command, (page, name)
    arguments = ["2" if each == "N" else each for each in arguments]
    command.make_context(name, arguments)


@pytest.mark.parametrize("line", OWN)
def test_a_shown_model_of_ones_own_is_one_that_would_be_built(
    line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("cats.pth", "net.pth", "my_model.py", "model.onnx", "model.pt"):
        (tmp_path / name).touch()
    (tmp_path / "labels.txt").write_text("cat\ndog\n")
    monkeypatch.chdir(PROJECT)
    monkeypatch.setenv("MARSMITH_CALLER", str(tmp_path))
    built: list[ModelSpec] = []
    monkeypatch.setattr(build, "_build", lambda spec, *_: built.append(spec))
    done = CliRunner().invoke(cli.group, shlex.split(line))
    assert done.exit_code == 0, (done.output, done.exception)
    [spec] = built
    assert f"--name {spec.name} " in line


def test_every_page_that_shows_commands_is_read() -> None:
    assert len(OWN) >= 6
    assert {page for page, _ in LINES} >= {
        *("README.md", "own-models.md", "operating.md", "looking.md"),
        *("precision.md", "security.md", "tuning.md"),
    }


def test_every_command_is_shown_on_some_page() -> None:
    words = "\n".join(page.read_text("utf-8") for page in PAGES)
    commands = cli.group.list_commands(click.Context(cli.group))
    assert len(commands) > 20
    # build is shown as build_mar.sh, demo as make demo.
    missing = [name for name in commands if f"marsmith {name}" not in words]
    assert set(missing) <= {"build", "demo"}
