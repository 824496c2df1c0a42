from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from tiny import REFUSES, ending, kill, marsmith, pack

from marsmith.addresses import Tokens
from marsmith.environment import temp_folder
from marsmith.processes import find_running, find_workers, is_alive
from marsmith.server import TorchServe


def test_status_command(served: TorchServe) -> None:
    done = marsmith(served.home, "status", "--json")
    assert done.returncode == 1
    rows = {(row["model"], row["version"]): row for row in json.loads(done.stdout)}
    assert rows["refuses", "1.0"]["refusal"] == "not today"
    assert rows["echo", "10.0"]["golden"] == {
        "count": 0,
        "is_wrong": False,
        "problem": None,
        "seconds": 0.0,
    }
    table = marsmith(served.home, "status", "--no-golden").stdout
    assert "refused: not today" in table


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_serve_in_the_foreground_until_a_signal(home: Path, number: signal.Signals) -> None:
    pack(home / "model-store")
    (home / "samples").mkdir()
    (home / "samples" / "one.png").write_bytes(b"\x89PNG")
    command = [sys.executable, "-m", "marsmith", "serve"]
    with ending(command, home) as process:
        assert process.stdout
        assert process.stdout.readline() == "# echo 1.0, 1 worker\n"
        line = process.stdout.readline().strip()
        assert line.startswith("curl -H")
        # The token is in no line that is not for a terminal: the shell reads it.
        assert Tokens.read(home).inference not in line
        answer = subprocess.run(
            ["bash", "-c", f"{line} --silent --max-time 20"],
            cwd=home,
            capture_output=True,
            check=True,
            timeout=30,
        )
        assert json.loads(answer.stdout)["values"] == {"body": "\x89PNG"}
        running = find_running(temp_folder(home))
        assert running
        process.send_signal(number)
        assert process.wait(timeout=30) == 0
    assert not is_alive(running.pid)
    assert find_workers(temp_folder(home)) == []


@pytest.mark.parametrize("stopped", [True, False], ids=["stopped", "killed"])
def test_serve_fails_where_its_server_ends_by_itself_alone(home: Path, stopped: bool) -> None:
    pack(home / "model-store")
    with ending([sys.executable, "-m", "marsmith", "serve"], home) as process:
        assert process.stdout
        assert process.stdout.readline() == "# echo 1.0, 1 worker\n"
        running = find_running(temp_folder(home))
        assert running
        if stopped:
            assert marsmith(home, "stop").returncode == 0
        else:
            kill(running.pid)
        assert process.wait(timeout=30) == (0 if stopped else 1)
    assert find_workers(temp_folder(home)) == []


def test_serve_in_the_background_and_what_strict_does(home: Path) -> None:
    store = home / "model-store"
    good, bad = pack(store), pack(store, "refuses", source=REFUSES)
    done = marsmith(home, "serve", "--models", good, bad, "--strict", "--background")
    assert done.returncode == 1
    assert "refuses 1.0 does not load: not today" in done.stderr
    assert "error: 1 of 2 models do not load: stopped" in done.stderr
    assert find_running(temp_folder(home)) is None
    done = marsmith(home, "serve", "--background")
    assert done.returncode == 0, done.stderr
    assert "refuses 1.0 does not load: not today" in done.stderr
    assert "predictions/echo" in done.stdout
    assert "predictions/refuses" not in done.stdout
    assert "Workers scaled to 2" in marsmith(home, "scale", "echo", "2").stdout
    assert "2/2" in marsmith(home, "status").stdout
    # Its handler does not say which of two workers is free, which would take its responseTimeout
    assert marsmith(home, "stop", "--no-drain").returncode == 0
    assert find_workers(temp_folder(home)) == []
    assert "no TorchServe runs for this folder" in marsmith(home, "stop").stdout
