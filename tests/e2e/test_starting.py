from __future__ import annotations

import fcntl
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tiny import PROJECT, kill, marsmith, pack, until, write_config

from handlers.errors import ArchiveError, ServerError
from marsmith import journal
from marsmith.client import Client
from marsmith.environment import temp_folder
from marsmith.processes import find_running, find_workers, is_alive
from marsmith.server import TorchServe


def test_start_and_stop_leave_no_process(home: Path) -> None:
    pack(home / "model-store")
    with TorchServe(home) as server:
        server.wait_ready(60)
        pids = [server.running.pid, *(worker.pid for worker in find_workers(server.temp))]
        assert len(pids) == 2
        assert _is_locked(server.temp)
        # What config.properties says of Java, of which each word is an argument of its own.
        command = Path(f"/proc/{pids[0]}/cmdline").read_text().split("\0")
        assert "-XX:TieredStopAtLevel=1" in command
        assert "-Djava.util.concurrent.ForkJoinPool.common.parallelism=32" in command
        with pytest.raises(ServerError, match=rf"runs already \(pid {pids[0]}\)"):
            TorchServe(home).start()
    assert not [pid for pid in pids if is_alive(pid)]
    until(lambda: not _is_locked(server.temp), 10)
    assert not (home / "key_file.json").exists()
    # The same again after a crash, which leaves the pid file, the tokens and unpacked archives
    server.start()
    pid = server.running.pid
    kill(pid)
    with pytest.raises(ServerError, match="TorchServe has ended"):
        server.wait_ready(60)
    server.stop()
    assert find_workers(server.temp) == []
    with server:
        server.wait_ready(60)
        assert len(list((server.temp / "models").iterdir())) == 1


def _is_locked(folder: Path) -> bool:
    """Whether somebody holds the lock that systemd-tmpfiles looks for."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def test_a_taken_port_is_named(served: TorchServe, home: Path) -> None:
    pack(home / "model-store")
    taken = {"inference_address": served.running.addresses.inference}
    server = TorchServe(home, config=taken)
    with pytest.raises(ServerError, match="Address already in use"):
        server.__enter__()
    assert find_running(server.temp) is None


def test_an_empty_store_says_what_to_do(home: Path) -> None:
    with pytest.raises(ServerError, match=r"no archives in .*: build a model first"):
        TorchServe(home).start()
    with pytest.raises(ArchiveError, match=r"no none\.mar in .*: none are known"):
        TorchServe(home, archives=["none.mar"]).start()


def test_a_start_leaves_out_what_is_damaged_or_over_and_serves_the_rest(home: Path) -> None:
    store = home / "model-store"
    for version in ("1.0", "2.0"):
        pack(store, version=version)
    pack(store, "cut")
    (store / "cut-1.0.mar").write_bytes((store / "cut-1.0.mar").read_bytes()[:-30])
    pack(store, "changed")
    whole = (store / "changed-1.0.mar").read_bytes()
    (store / "changed-1.0.mar").write_bytes(whole.replace(b"import json", b"import jsom", 1))
    journal.append(home, journal.Entry(journal.ROLLOUT, "echo", "1.0", "2.0", journal.DONE))
    done = marsmith(home, "serve", "--background", "--strict")
    assert done.returncode == 1
    assert "error: 2 archives are refused: stopped" in done.stderr
    assert find_running(temp_folder(home)) is None
    done = marsmith(home, "serve", "--background")
    assert done.returncode == 0, done.stderr
    assert "left out: cut-1.0.mar is not a readable model archive" in done.stderr
    assert "left out: changed-1.0.mar: TorchServe did not take it: " in done.stderr
    assert "their time is over: echo-1.0.mar" in done.stderr
    running = find_running(temp_folder(home))
    assert running
    with Client.of(running) as client:
        assert client.models() == ["echo"]
        assert [one["modelVersion"] for one in client.describe("echo", "all")] == ["2.0"]
        assert client.predict("echo", b"x").ok


def _shell(home: Path, commands: str) -> str:
    """Run commands in a new shell with this project linked into ``home``."""
    for name in ("marsmith", "handlers", "env.sh"):
        if not (home / name).exists():
            (home / name).symlink_to(PROJECT / name)
    if not (home / ".venv").exists():
        (home / ".venv").symlink_to(sys.prefix)
    clean = {key: value for key, value in os.environ.items() if key not in ("TEMP", "TMPDIR")}
    done = subprocess.run(
        ["sh", "-ec", commands],
        cwd=home,
        env={**clean, "PYTHONPATH": "/somewhere/else"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


def _version_within(home: Path, seconds: float) -> str:
    """The version that answers as soon as one does."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            running = find_running(temp_folder(home))
            assert running
            with Client.of(running, timeout=5) as client:
                reply = client.predict("echo", b"x")
                assert reply.ok, reply.problem()
                return str(reply.json()["version"])
        except (ServerError, AssertionError):
            if time.monotonic() > deadline:
                raise
            time.sleep(0.5)


def test_env_sh_and_the_literal_torchserve_command(home: Path) -> None:
    pack(home / "model-store")
    started = ". ./env.sh; . ./env.sh; torchserve --start --models all > start.log 2>&1"
    _shell(home, started)
    assert _version_within(home, 60) == "1.0"
    first = find_running(temp_folder(home))
    assert first
    addresses = first.addresses
    # `torchserve --stop` finds what `--start` recorded, and so does `marsmith stop`
    _shell(home, ". ./env.sh; torchserve --stop --foreground")
    assert not is_alive(first.pid)
    # The edited configuration counts, and not the first start's snapshot
    write_config(home)
    with (home / "config.properties").open("a") as config:
        config.write("max_request_size=1000\n")
    _shell(home, started)
    assert _version_within(home, 60) == "1.0"
    second = find_running(temp_folder(home))
    assert second
    assert second.addresses != addresses
    with Client.of(second) as client:
        assert client.predict("echo", b"x" * 2000).status == 413
    assert f"TorchServe (pid {second.pid}) has stopped" in marsmith(home, "stop").stdout
    assert not is_alive(second.pid)


def test_env_sh_says_what_a_plain_torchserve_does_not_check(home: Path) -> None:
    assert _shell(home, ". ./env.sh") == ""
    with (home / "config.properties").open("a") as config:
        config.write("require_signature=release.pub\n")
    said = _shell(home, ". ./env.sh; echo $TEMP")
    warning, temp = said.splitlines()
    assert warning.startswith("warning: `torchserve --start` does not check require_signature")
    assert temp == str(temp_folder(home))


def test_env_sh_elsewhere_fails_and_leaves_the_shell(tmp_path: Path) -> None:
    command = f". {PROJECT}/env.sh || echo still here"
    done = subprocess.run(
        ["sh", "-c", command], cwd=tmp_path, capture_output=True, text=True, timeout=30, check=True
    )
    assert done.stdout == "still here\n"
    assert "source env.sh in the project's folder" in done.stderr
