from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

import pytest
from proven import answer, asking, pack_proven
from tiny import ending, marsmith

from handlers.errors import ServerError
from marsmith.addresses import Addresses, read_properties
from marsmith.autoscale import Policy, run
from marsmith.client import Client
from marsmith.commands.status import _check
from marsmith.drain import Queue, silent_workers
from marsmith.environment import temp_folder
from marsmith.processes import find_running, find_workers, is_alive
from marsmith.server import TorchServe
from marsmith.status import check_golden, read_status


@pytest.fixture(scope="module")
def slow(tmp_path_factory: pytest.TempPathFactory, make_home: object) -> Iterator[TorchServe]:
    """A model whose every request takes a while."""
    assert callable(make_home)
    home = make_home()
    pack_proven(home / "model-store", "1.0", seconds=0.05)
    with TorchServe(home) as server:
        server.wait_ready(60)
        yield server


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    for name in ("a.png", "b.jpg", "sub/a.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(name.encode())
    return tmp_path


def test_predict_prints_json_and_draws(slow: TorchServe, pictures: Path) -> None:
    out = pictures / "out"
    done = marsmith(slow.home, "predict", "m", str(pictures), "--json", "--draw", str(out))
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert [row["picture"] for row in rows] == [
        str(pictures / name) for name in ("a.png", "b.jpg", "sub/a.png")
    ]
    assert rows[1]["answer"] == answer("1.0", b"b.jpg")
    drawn = [path.read_bytes() for path in out.rglob("*.png") if path.is_file()]
    assert drawn == [b"\x89PNG1.0"] * 3


def _connections(server: TorchServe, begin: int) -> int:
    """From how many connections predictions came since the access log had ``begin`` bytes."""
    said = (server.home / "logs/access_log.log").read_bytes()[begin:].decode()
    return len(set(re.findall(r"- /([\d.]+:\d+) \"POST /predictions/m ", said)))


def test_predict_asks_as_many_at_once_as_it_is_told_and_shows_how_far_it_is(
    slow: TorchServe, pictures: Path
) -> None:
    for jobs in (1, 3):
        begin = (slow.home / "logs/access_log.log").stat().st_size
        terminal, end = os.openpty()
        command = [sys.executable, "-m", "marsmith", "predict", "m", str(pictures), "--json"]
        with ending([*command, "--jobs", str(jobs)], slow.home, stderr=end) as process:
            os.close(end)
            shown = _read_terminal(terminal)
            assert process.stdout
            lines = process.stdout.read().splitlines()
            assert process.wait(timeout=60) == 0
        assert [json.loads(line)["status"] for line in lines] == [200] * 3
        assert "3/3" in shown
        assert _connections(slow, begin) == jobs


def _read_terminal(terminal: int) -> str:
    """All that a command writes to its terminal until it ends."""
    shown = b""
    # Linux says so where nobody has the other end any more
    with suppress(OSError), os.fdopen(terminal, "rb", buffering=0) as file:
        while part := file.read(4096):
            shown += part
    return shown.decode()


def test_predict_goes_on_after_a_failure(slow: TorchServe, pictures: Path) -> None:
    (pictures / "b.jpg").write_bytes(b"<html>")
    done = marsmith(slow.home, "predict", "m", str(pictures / "*.*"), "--version", "1.0")
    assert done.returncode == 1
    # The task's own summary
    assert "1.0 0.750" in done.stdout
    assert "failed" in done.stdout
    assert done.stderr.splitlines() == [
        f"{pictures / 'b.jpg'}: 415: no picture",
        "1 of 2 pictures failed",
    ]
    done = marsmith(slow.home, "predict", "m", str(pictures), "--version", "9.9")
    assert done.returncode == 1
    assert done.stderr == "error: m 9.9 is not registered: there are 1.0\n"


def test_workers_come_and_go_with_the_load(slow: TorchServe) -> None:
    lines: list[str] = []
    policy = Policy(least=1, most=2, up=0.02, down=0.01, calm=1)

    def until(wanted: int) -> Callable[[], bool]:
        deadline = time.monotonic() + 120

        def more() -> bool:
            assert time.monotonic() < deadline, lines
            return len(client.describe("m")[0]["workers"]) != wanted

        return more

    with slow.client(timeout=60) as client:
        with asking(slow.running, "1.0", threads=8, pause=0) as counts:
            run(slow.running, client, ["m"], policy, 0.5, until(2), lines.append)
        assert counts.problems == []
        with asking(slow.running, "1.0", threads=1, pause=0.1) as counts:
            run(slow.running, client, ["m"], policy, 0.5, until(1), lines.append)
        assert counts.problems == []
    assert "m 1.0: 1 -> 2 workers" in lines
    assert "m 1.0: 2 -> 1 workers" in lines


def test_a_worker_that_hangs_is_not_taken_for_one_that_answers(slow: TorchServe) -> None:
    with slow.client(timeout=60) as client:
        client.scale("m", 2, timeout=60)
    slow.wait_ready(60)
    with slow.client(timeout=1) as client:
        [status] = read_status(slow.running, client)
        queue = Queue(client, "m", "1.0")
        assert silent_workers(queue, 20) == set()
        os.kill(status.pids[0], signal.SIGSTOP)
        try:
            with suppress(ServerError):
                while client.predict("m", b"kept").ok:
                    pass
            # It has one request, so that the other answers what else is asked
            assert check_golden(client, status).problem is None
            assert _check(client, status, 2).problem == (
                f"no answer within 2 s by the workers with pids {status.pids[0]}"
            )
        finally:
            os.kill(status.pids[0], signal.SIGCONT)
    with slow.client(timeout=60) as client:
        client.scale("m", 1, timeout=60)


def test_autoscale_command(slow: TorchServe) -> None:
    asked = ("autoscale", "m", "--max", "2", "--interval", "0.2", "--rounds", "2")
    done = marsmith(slow.home, *asked)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("m 1.0: 0.0 requests/s, 0.0 queued, wait 0 ms, 1 of 1") == 2
    done = marsmith(slow.home, "autoscale", "--min", "3", "--max", "2")
    assert done.stderr == "error: --max 2 is less than --min 3\n"


@pytest.mark.parametrize("over", [(), ("--grpc",)])
def test_scale_takes_two_numbers(slow: TorchServe, over: tuple[str, ...]) -> None:
    with slow.client() as client:
        client.scale("m", 1)
        done = marsmith(slow.home, "scale", "m", "1", "--most", "2", *over)
        assert done.returncode == 0, done.stderr
        [found] = client.describe("m")
        assert (found["minWorkers"], found["maxWorkers"]) == (1, 2)


def test_logs_command(slow: TorchServe) -> None:
    everything = marsmith(slow.home, "logs", "--lines", "0").stdout.splitlines()
    assert any("MODEL_LOG" in line for line in everything)
    assert any("org.pytorch.serve" in line for line in everything)
    assert marsmith(slow.home, "logs", "-n", "2").stdout.splitlines() == everything[-2:]
    assert marsmith(slow.home, "logs", "--model", "none").stdout == ""
    said = "2099-01-01T00:00:00,000 [{}] W-9000-m_1.0-stdout MODEL_LOG - {}\n"
    trouble = said.format("INFO ", "marsmith: refused m 1.0: why") + said.format("WARN ", "odd")
    with (slow.home / "logs" / "model_log.log").open("a") as log:
        log.write(trouble + said.format("INFO ", "all is well"))
    assert marsmith(slow.home, "logs", "--errors", "-n", "2").stdout == trouble


def test_logs_are_followed(slow: TorchServe) -> None:
    command = [sys.executable, "-m", "marsmith", "logs", "--follow", "-n", "0", "--model", "m"]
    with ending(command, slow.home) as process:
        assert process.stdout
        first = process.stdout.readline()
        log = slow.home / "logs" / "model_log.log"
        line = "2099-01-01T00:00:00,000 [INFO ] W-9000-m_1.0-stdout MODEL_LOG - followed"
        with log.open("a") as file:
            file.write(f"{line}\n")
        assert first
        assert any(shown == f"{line}\n" for shown in process.stdout)
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=10) == 0


def _ask_behind(server: TorchServe, seconds: float, into: list[object]) -> threading.Thread:
    """One request that is under way when this returns."""

    def ask() -> None:
        with server.client() as client:
            into.append(client.predict("m", b"x").json())

    thread = threading.Thread(target=ask)
    thread.start()
    time.sleep(seconds)
    return thread


def test_stop_waits_for_requests(home: Path) -> None:
    pack_proven(home / "model-store", "1.0", seconds=1.0)
    server = TorchServe(home)
    answers: list[object] = []
    with server:
        server.wait_ready(60)
        threads = [_ask_behind(server, 0.1, answers) for _ in range(4)]
        done = marsmith(home, "stop")
        assert done.returncode == 0
        assert done.stderr == ""
        for thread in threads:
            thread.join()
    assert answers == [answer("1.0", b"x")] * 4
    assert find_running(temp_folder(home)) is None


@pytest.mark.parametrize(
    ("words", "signals", "said"),
    [
        (("--drain-timeout", "60"), 2, "stopping at once: requests under way are lost"),
        (("--drain-timeout", "1"), 1, "stopping all the same: not drained within 1 s: 0 requests"),
    ],
)
def test_serve_does_not_wait_longer_than_it_is_told(
    home: Path, words: tuple[str, ...], signals: int, said: str
) -> None:
    pack_proven(home / "model-store", "1.0", seconds=15.0)
    command = [sys.executable, "-m", "marsmith", "serve", *words]
    with ending(command, home, stderr=subprocess.PIPE) as process, ThreadPoolExecutor() as pool:
        assert process.stdout
        assert process.stderr
        assert process.stdout.readline() == "# m 1.0, 1 worker\n"
        under_way = pool.submit(_outcome, TorchServe(home))
        time.sleep(0.5)
        for number in range(signals):
            process.send_signal(signal.SIGTERM)
            while number == 0 and process.stderr.readline() != "stopping TorchServe\n":
                pass
            # Until it waits for the worker
            time.sleep(1.0)
        assert said in process.stderr.read()
        assert process.wait(timeout=60) == 0
        assert under_way.result().startswith("cannot reach TorchServe")
    assert find_running(temp_folder(home)) is None


def _outcome(server: TorchServe) -> str:
    """What comes of one request."""
    try:
        with server.client() as client:
            return str(client.predict("m", b"x").json())
    except ServerError as error:
        return str(error)


def test_stop_does_not_wait_longer_than_it_is_told(home: Path) -> None:
    pack_proven(home / "model-store", "1.0", seconds=15.0)
    done = marsmith(home, "serve", "--background", "--free-ports")
    assert done.returncode == 0, done.stderr
    running = find_running(temp_folder(home))
    assert running
    configured = Addresses.of(read_properties(home / "config.properties"))
    assert not set(asdict(running.addresses).values()) & {*asdict(configured).values()} - {False}
    assert f"{running.addresses.inference}/predictions/m" in done.stdout
    with ThreadPoolExecutor() as pool:
        under_way = pool.submit(_outcome, TorchServe(home))
        time.sleep(0.5)
        done = marsmith(home, "stop", "--drain-timeout", "1")
        assert (done.returncode, done.stdout) == (
            0,
            f"TorchServe (pid {running.pid}) has stopped\n",
        )
        assert "stopping all the same: not drained within 1 s: 0 requests wait" in done.stderr
        assert under_way.result().startswith("cannot reach TorchServe")
    done = marsmith(home, "serve", "--background")
    assert done.returncode == 0, done.stderr
    running = find_running(temp_folder(home))
    assert running
    assert running.addresses == configured
    # It cannot hear that it is to end
    os.kill(running.pid, signal.SIGSTOP)
    done = marsmith(home, "stop", "--no-drain", "--patience", "1")
    assert done.returncode == 0, done.stderr
    assert not is_alive(running.pid)
    assert find_workers(temp_folder(home)) == []


def test_serve_waits_for_requests_at_a_signal(home: Path) -> None:
    pack_proven(home / "model-store", "1.0", seconds=1.0)
    command = [sys.executable, "-m", "marsmith", "serve", "--model-api"]
    answers: list[object] = []
    with ending(command, home) as process:
        assert process.stdout
        assert process.stdout.readline() == "# m 1.0, 1 worker\n"
        running = find_running(temp_folder(home))
        assert running
        thread = _ask_behind(TorchServe(home), 0.2, answers)
        try:
            with Client.of(running) as client, pytest.raises(ServerError, match=r"409: .*already"):
                client.register("m-1.0.mar")
        finally:
            process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=40) == 0
        thread.join()
    assert answers == [answer("1.0", b"x")]
    assert not is_alive(running.pid)
