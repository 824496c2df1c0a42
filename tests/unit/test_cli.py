from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from handlers import plugins
from marsmith import cli
from marsmith.environment import temp_folder

COMMANDS = sorted(
    path.stem.replace("_", "-")
    for path in (Path(cli.__file__).parent / "commands").glob("*.py")
    if path.stem != "__init__"
)


def test_help_lists_every_command_without_importing_it() -> None:
    code = (
        "import sys; from marsmith.cli import group; group(['--help'], standalone_mode=False);"
        "heavy = ('marsmith.commands.', 'torch', 'numpy');"
        "assert not [m for m in sys.modules if m.startswith(heavy)]"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    for name in COMMANDS:
        assert f"\n  {name} " in done.stdout


@pytest.mark.parametrize(
    ("name", "values"),
    [("build", ("tasks", "runtimes")), ("formats", ("runtimes",)), ("tune", ("runtimes",))],
)
def test_options_that_name_plugins_list_them(name: str, values: tuple[str, ...]) -> None:
    said = CliRunner().invoke(cli.group, [name, "--help"], terminal_width=200).output
    for kind in values:
        assert ", ".join(plugins.names(kind)) in " ".join(said.split())


@pytest.mark.parametrize(
    "module",
    [f"commands.{name}" for name in ("serve", "status", "stop", "scale", "logs", "ready")]
    # What other commands import when they begin.
    + ["operate", "retire", "autoscale", "asking"],
)
def test_what_operates_a_server_does_it_without_torch(module: str) -> None:
    """That takes a second, and ``serve`` would keep its memory as long as it runs."""
    code = f"import sys, marsmith.{module}; print('torch' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout == "False\n"


def test_a_command_that_is_none_gets_the_nearest() -> None:
    result = CliRunner().invoke(cli.group, ["predikt", "m"])
    assert result.exit_code == 2
    assert "no command predikt: did you mean predict?" in result.output


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help(name: str) -> None:
    result = CliRunner().invoke(cli.group, [name, "--help"])
    assert result.exit_code == 0, result.output
    assert f"{name} [OPTIONS]" in result.output


def test_an_unknown_command_is_named() -> None:
    result = CliRunner().invoke(cli.group, ["nope"])
    assert result.exit_code == 2
    assert "no command nope: known are autoscale, bisect, build, " in result.output


def test_an_error_is_one_line_and_status_1(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["marsmith", "status"])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    temp_folder(tmp_path).rmdir()
    assert stopped.value.code == 1
    error = capsys.readouterr().err
    assert error == f"error: no TorchServe runs for {tmp_path}: start it with `marsmith serve`\n"


def test_what_the_host_refuses_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuses() -> None:
        raise PermissionError(13, "Permission denied", "/srv/logs")

    monkeypatch.setattr(cli, "group", refuses)
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert end.value.code == 1
    assert capsys.readouterr().err == "error: /srv/logs: Permission denied\n"


def test_a_shell_that_completes_an_unknown_command_gets_nothing() -> None:
    words = {"_MARSMITH_COMPLETE": "bash_complete", "COMP_WORDS": "marsmith stat x"}
    done = CliRunner().invoke(cli.group, [], prog_name="marsmith", env={**words, "COMP_CWORD": "2"})
    assert (done.exit_code, done.output.strip(), done.exception) == (0, "", None)
