from __future__ import annotations

import json
import os
import shlex
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner

from handlers.errors import ServerError
from marsmith.addresses import free_addresses
from marsmith.choosing import Choice
from marsmith.client import Client
from marsmith.commands import demo, stop
from marsmith.commands.serve import _how_to_ask, _sample
from marsmith.environment import temp_folder
from marsmith.locks import alone
from marsmith.processes import PID_FILE, START_LOCK, Running
from marsmith.server import TorchServe
from marsmith.status import VersionStatus

M = VersionStatus("m", "1.0", "m-1.0.mar", True, 1, 1, 0, 100, None)


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Path]:
    (tmp_path / "config.properties").write_text("model_store=store\nmax_request_size=1\n")
    (tmp_path / "logs").mkdir()
    yield tmp_path
    shutil.rmtree(temp_folder(tmp_path))


def test_settings_are_overridden_and_the_store_is_absolute(home: Path) -> None:
    server = TorchServe(home, config={"max_request_size": "2"})
    assert server.properties == {"model_store": str(home / "store"), "max_request_size": "2"}
    assert TorchServe(home, model_store=home / "other").model_store == home / "other"


def test_no_store_says_what_to_do(home: Path) -> None:
    with pytest.raises(ServerError, match=r"no model store .*/store: build a model first"):
        TorchServe(home).start()


def test_a_setting_can_be_taken_away(home: Path) -> None:
    assert "max_request_size" not in TorchServe(home, config={"max_request_size": None}).properties


def test_the_sample_of_a_model_file_that_says_little(home: Path, tmp_path: Path) -> None:
    outside = tmp_path.parent / f"{tmp_path.name}-pictures"
    outside.mkdir()
    (outside / "1.png").touch()
    (home / "models").mkdir()
    for text, sample in (
        (f"samples: {outside}", str(outside / "1.png")),
        ("", "PICTURE"),
        ("a: [b", "PICTURE"),
        ("- 1", "PICTURE"),
    ):
        (home / "models/m.yaml").write_text(text)
        assert _sample(home, M) == sample


def test_the_sample_of_a_model_without_a_file_is_its_archives_own(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Any other picture of the project is not of its kind."""
    (home / "samples/digits").mkdir(parents=True)
    (home / "samples/digits/0.png").touch()
    loaded = tmp_path.parent / f"{tmp_path.name}-loaded"
    (loaded / "golden").mkdir(parents=True)
    # This process stands for its worker, which runs where the archive is unpacked
    monkeypatch.chdir(loaded)
    status = replace(M, pids=(os.getpid(),))
    assert _sample(home, status) == "samples/digits/0.png"
    case = {"picture": "golden/0.png", "answer": [], "tolerance": 0.001}
    (loaded / "golden/requests.json").write_text(json.dumps([case]))
    (loaded / "golden/0.png").touch()
    assert _sample(home, status) == str(loaded / "golden/0.png")


def test_the_last_lines_are_those_that_tell_of_trouble(home: Path) -> None:
    server = TorchServe(home)
    assert server.last_lines().startswith("no output")
    console = home / "logs" / "console.log"
    console.write_text("")
    assert server.last_lines() == "it printed nothing"
    console.write_text("one\ntwo\n")
    assert server.last_lines(1) == "two"
    trouble = "x.BindException: Address already in use\n\tat x.y(Z.java)\nCaused by: q\nthe end\n"
    console.write_text(trouble)
    assert server.last_lines() == "x.BindException: Address already in use | Caused by: q"


def test_stop_without_start_leaves_other_servers_alone(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("marsmith.server.stop_running", lambda _: pytest.fail("stopped"))
    TorchServe(home).stop()


def test_a_server_that_was_stopped_is_told_from_one_that_ended(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = TorchServe(home)
    # Nothing was started yet
    assert not server.was_stopped
    server._pid = 7
    # Whoever stops it removes the pid file, and nobody else does
    assert server.was_stopped
    (server.temp / PID_FILE).write_text("7")
    assert not server.was_stopped
    for pid, stopped in ((7, False), (8, True)):
        running = Running(pid, home, home / "config.properties", 0.0)
        monkeypatch.setattr("marsmith.server.find_running", lambda _, found=running: found)
        assert server.was_stopped == stopped


def test_stop_waits_for_a_start(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(home)
    pid = home / "pid"
    monkeypatch.setattr(
        "marsmith.commands.stop.stop_running",
        lambda *_: int(pid.read_text()) if pid.exists() else None,
    )
    with ThreadPoolExecutor() as pool:
        with alone(temp_folder(home) / START_LOCK):
            stopped = pool.submit(CliRunner().invoke, stop.command)
            time.sleep(0.3)
            pid.write_text("7")
        assert stopped.result().output == "TorchServe (pid 7) has stopped\n"


@pytest.mark.parametrize(
    ("words", "drained"),
    [((), [30.0]), (("--drain-timeout", "0"), []), (("--no-drain",), [])],
)
def test_stop_drains_unless_it_is_told_not_to_wait(
    home: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], drained: list[float]
) -> None:
    monkeypatch.chdir(home)
    running = Running(7, home, home / "config.properties", 0.0)
    monkeypatch.setattr(stop, "find_running", lambda _: running)
    monkeypatch.setattr(stop, "stop_running", lambda *_: 7)
    waited: list[float] = []
    monkeypatch.setattr(stop, "drain_before_stop", lambda _, seconds, __: waited.append(seconds))
    assert CliRunner().invoke(stop.command, words).exit_code == 0
    assert waited == drained


def test_the_sample_is_of_the_models_own_folder(home: Path) -> None:
    assert _sample(home, M) == "PICTURE"
    for name in ("a/1.png", "b/2.jpg"):
        (home / "samples" / name).parent.mkdir(parents=True)
        (home / "samples" / name).touch()
    assert _sample(home, M) == "samples/a/1.png"
    (home / "models").mkdir()
    (home / "models" / "m.yaml").write_text("samples: samples/b\n")
    assert _sample(home, M) == "samples/b/2.jpg"
    (home / "models" / "m.yaml").write_text("name: m\n")
    (home / "samples/shapes").mkdir()
    (home / "samples/shapes/star.jpg").touch()
    assert _sample(home, M) == "samples/shapes/star.jpg"
    (home / "samples/shapes/star.jpg").rename(home / "samples/shapes/star.WEBP")
    assert _sample(home, M) == "samples/shapes/star.WEBP"


def test_a_demo_asks_and_draws_pictures_of_every_kind(home: Path) -> None:
    answer = SimpleNamespace(ok=True, body=b"drawn", json=lambda: [{"label": "a", "score": 1.0}])
    client: Any = SimpleNamespace(predict=lambda *_, **__: answer)
    for name in ("1.jpeg", "2.webp"):
        (home / name).touch()
    model: Any = SimpleNamespace(name="m", task="image-classification", samples=str(home))
    table = demo._predictions([model], client, client, home)
    assert list(table.columns[1].cells) == ["1.jpeg", "2.webp"]
    assert (home / "m.jpg").read_bytes() == b"drawn"


def test_of_two_starts_at_once_one_waits_and_sees_the_other(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    running: list[Running] = []
    launched: list[int] = []

    def launch(self: TorchServe, *_: object) -> None:
        # As long as a launcher takes to write its pid.
        time.sleep(0.2)
        launched.append(1)
        running.append(Running(1, home, home / "config.properties", 0.0))

    monkeypatch.setattr(TorchServe, "_launch", launch)
    monkeypatch.setattr(TorchServe, "_answers", lambda _: True)
    monkeypatch.setattr(TorchServe, "_check_ports", lambda _: None)
    monkeypatch.setattr("marsmith.server.choose", lambda *_: Choice({}, {}, []))
    monkeypatch.setattr("marsmith.server.find_running", lambda _: running[-1] if running else None)

    def start(_: int) -> str:
        try:
            TorchServe(home).start()
        except ServerError as error:
            return str(error)
        return "started"

    with ThreadPoolExecutor(2) as pool:
        said = sorted(pool.map(start, range(2)))
    assert len(launched) == 1
    assert "runs already (pid 1)" in said[0]
    assert said[1] == "started"


def test_a_port_that_somebody_has_stops_a_start_before_anything_is_launched(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(TorchServe, "_launch", lambda *_: pytest.fail("launched"))
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        free = {**free_addresses(), "grpc_management_port": str(port)}
        with pytest.raises(ServerError, match=rf"^not free: grpc_management 127\.0\.0\.1:{port} "):
            TorchServe(home, config=free).start()


def test_a_pid_file_that_a_power_cut_left_empty_is_removed(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = temp_folder(home) / PID_FILE
    file.touch()
    monkeypatch.setattr(TorchServe, "_launch", lambda *_: pytest.fail("launched"))
    with pytest.raises(ServerError, match="no model store"):
        TorchServe(home, config=free_addresses()).start()
    assert not file.exists()


def test_the_server_that_somebody_started_in_its_place_is_left_alone(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = TorchServe(home)
    server._ours, server._pid = True, 7
    other = Running(8, home, home / "config.properties", 0.0)
    monkeypatch.setattr("marsmith.server.find_running", lambda _: other)
    monkeypatch.setattr("marsmith.server.stop_running", lambda _: pytest.fail("stopped"))
    with pytest.raises(ServerError, match="TorchServe has ended"):
        assert server.running
    server.stop()


def test_why_a_server_is_not_understood_is_told(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def ping(_: Client) -> bool:
        raise ServerError("cannot reach TorchServe: certificate verify failed")

    found = Running(7, home, home / "config.properties", 0.0)
    monkeypatch.setattr("marsmith.server.find_running", lambda _: found)
    monkeypatch.setattr(Client, "of", lambda *_, **__: Client.__new__(Client))
    monkeypatch.setattr(Client, "close", lambda _: None)
    monkeypatch.setattr(Client, "ping", ping)
    server = TorchServe(home)
    with pytest.raises(ServerError, match=r"within 0\.3 s \(cannot reach .* verify failed\): "):
        server._wait(server._answers, 0.3, "does not answer")


def test_a_sample_s_path_is_one_word_of_the_shell(home: Path) -> None:
    (home / "samples").mkdir()
    (home / "samples/it's one.png").touch()
    running = Running(7, home, home / "config.properties", 0.0)
    status = VersionStatus("m", "1.0", "m-1.0.mar", True, 1, 1, 0, 9, None)
    _, line = _how_to_ask(running, [status])
    assert shlex.split(line)[1:3] == ["-T", "samples/it's one.png"]


def test_a_token_is_printed_on_a_terminal_alone(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = {name: {"key": f"{name}-secret"} for name in ("management", "inference", "API")}
    (home / "key_file.json").write_text(json.dumps(keys))
    running = Running(7, home, home / "config.properties", 0.0)
    status = VersionStatus("m", "1.0", "m-1.0.mar", True, 1, 1, 0, 9, None)
    for terminal in (True, False):
        monkeypatch.setattr("sys.stdout.isatty", lambda terminal=terminal: terminal)
        _, line = _how_to_ask(running, [status])
        assert ("inference-secret" in line) is terminal
    # The other one is a command line that finds it.
    said = subprocess.run(
        ["bash", "-c", line.replace("curl ", "printf '%s ' ", 1)],
        cwd=home,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert "-H Authorization: Bearer inference-secret -T" in said.stdout
