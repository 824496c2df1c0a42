from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from handlers.errors import ServerError
from marsmith.environment import temp_folder
from marsmith.processes import (
    PID_FILE,
    end_all,
    find_running,
    find_workers,
    is_alive,
    require_running,
    stop_running,
)

_SLEEP = "import time; time.sleep(60)"


def test_is_alive_knows_a_zombie() -> None:
    assert is_alive(os.getpid())
    # What TorchServe says of a worker that starts.
    assert not is_alive(-1)
    with subprocess.Popen([sys.executable, "-c", ""]) as child:
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        assert psutil.pid_exists(child.pid)
        assert not is_alive(child.pid)


@pytest.mark.parametrize("content", [None, "", "no number", "{mine}", "999999999"])
def test_a_pid_file_that_names_no_torchserve_is_none(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / PID_FILE).write_text(content.format(mine=os.getpid()))
    assert find_running(tmp_path) is None
    assert stop_running(tmp_path) is None
    assert not (tmp_path / PID_FILE).exists()


def test_what_looks_like_torchserve_is_found_and_ended(tmp_path: Path) -> None:
    temp = f"-Djava.io.tmpdir={tmp_path}"
    names = [temp, "org.pytorch.serve.ModelServer", "-f", "config.properties"]
    worker = [sys.executable, "-c", _SLEEP, "--sock-name", f"{tmp_path}/.ts.sock.9000"]
    with (
        subprocess.Popen([sys.executable, "-c", _SLEEP, *names], cwd=tmp_path) as server,
        subprocess.Popen(worker) as orphan,
        subprocess.Popen([*worker[:-1], "/tmp/other/.ts.sock.9000"]) as other,
    ):
        (tmp_path / PID_FILE).write_text(str(server.pid))
        (tmp_path / "config.properties").write_text("model_store=store\ngrpc_inference_port=1\n")
        running = find_running(tmp_path)
        assert running
        assert (running.pid, running.home) == (server.pid, tmp_path)
        assert running.model_store == tmp_path / "store"
        assert running.addresses.grpc_inference == "127.0.0.1:1"
        assert [process.pid for process in find_workers(tmp_path)] == [orphan.pid]
        assert stop_running(tmp_path) == server.pid
        assert not is_alive(server.pid)
        assert not is_alive(orphan.pid)
        assert is_alive(other.pid)
        other.kill()


def test_the_server_of_another_folder_with_our_old_pid_is_not_ours(tmp_path: Path) -> None:
    names = ["-Djava.io.tmpdir=/tmp/another", "org.pytorch.serve.ModelServer"]
    with subprocess.Popen([sys.executable, "-c", _SLEEP, *names], cwd=tmp_path) as other:
        (tmp_path / PID_FILE).write_text(str(other.pid))
        assert find_running(tmp_path) is None
        assert stop_running(tmp_path) is None
        assert is_alive(other.pid)
        other.kill()


def test_what_does_not_end_when_asked_is_ended_by_force() -> None:
    stubborn = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(1, flush=True);"
    with subprocess.Popen(
        [sys.executable, "-c", stubborn + _SLEEP], stdout=subprocess.PIPE
    ) as child:
        assert child.stdout
        child.stdout.readline()
        end_all([psutil.Process(child.pid)], 0.2)
        assert child.wait() == -signal.SIGKILL


def test_none_running_says_how_to_start(tmp_path: Path) -> None:
    with pytest.raises(ServerError, match="start it with `marsmith serve`"):
        require_running(tmp_path)
    temp_folder(tmp_path).rmdir()
