"""Steps of a rollout that a real server hardly fails on demand; the rest is in tests/e2e."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from handlers.errors import ServerError
from marsmith import journal, operate
from marsmith.archive import Header
from marsmith.client import Client, Reply
from marsmith.grpc_client import GrpcClient
from marsmith.processes import Running
from marsmith.rollout import Change, Options
from marsmith.status import VersionStatus


class _Server(Client):
    """A server of nothing: versions with their number of workers, and replies, are given."""

    def __init__(self, workers: dict[str, int], status: int = 415) -> None:
        self.workers, self.status, self.default = workers, status, "1.0"
        self.done: list[str] = []

    def models(self) -> list[str]:
        return ["m"]

    def describe(self, model: str, version: str | None = None, **_: Any) -> list[dict[str, Any]]:
        names = list(self.workers) if version == "all" else [version or self.default]
        return [
            {
                "modelVersion": name,
                "modelUrl": f"m-{name}.mar",
                "minWorkers": 1,
                "workers": [{"status": "READY", "pid": os.getpid()}] * self.workers[name],
                "jobQueueStatus": {"pendingRequests": 0, "remainingCapacity": 100},
            }
            for name in names
        ]

    def register(self, url: str, **_: Any) -> str:
        self.done.append(f"register {url}")
        return "registered"

    def unregister(self, model: str, version: str) -> str:
        del self.workers[version]
        return "unregistered"

    def scale(self, model: str, min_worker: int, *_: Any, **given: Any) -> str:
        self.done.append(f"scale {given['version']} {min_worker}")
        return ""

    def set_default(self, model: str, version: str) -> str:
        self.done.append(f"default {version}")
        return "switched"

    def predict(self, model: str, body: Any, **_: Any) -> Reply:
        return Reply(self.status, "", b"{}")


class _Grpc(GrpcClient):
    def __init__(self) -> None:
        pass

    def predict(self, *_: Any, **__: Any) -> Reply:
        return Reply(200, "", b"{}")


def _change(folder: Path, server: _Server, old_workers: int = 1, load: float = 0.0) -> Change:
    (folder / "logs").mkdir(exist_ok=True)
    (folder / "logs/access_log.log").touch()
    config = folder / "config.properties"
    config.write_text("model_store=.\n")
    running = Running(os.getpid(), folder, config, 0)
    old = VersionStatus("m", "1.0", "m-1.0.mar", True, old_workers, old_workers, 0, 100, None)
    options = Options(load=load)
    return Change(running, (server, _Grpc()), "m-2.0.mar", Header("m", "2.0"), old, options)


def test_it_gets_as_many_workers_as_the_old_version(tmp_path: Path) -> None:
    server = _Server({"1.0": 3, "2.0": 1})
    assert _change(tmp_path, server, old_workers=3).load() == "3 of 3 workers live"
    assert server.done == ["scale 2.0 3"]


def test_workers_that_do_not_load_in_time(tmp_path: Path) -> None:
    with pytest.raises(ServerError, match="its workers do not load within 0 s"):
        _change(tmp_path, _Server({"1.0": 1, "2.0": 0})).load()
    with pytest.raises(ServerError, match=r"m 2\.0 is not registered any more"):
        _change(tmp_path, _Server({"1.0": 1})).load()


def test_an_old_version_that_cannot_be_measured_is_no_reason_to_keep_it(tmp_path: Path) -> None:
    server = _Server({"1.0": 0, "2.0": 1})
    told = _change(tmp_path, server).switch()
    assert told.startswith("switched; how long 1.0 takes is not known: m-1.0.mar has no golden")
    assert server.done == ["default 2.0"]


def test_who_answers_what_is_no_picture_is_not_accepted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("marsmith.rollout.Goldens.read", lambda _: None)
    monkeypatch.setattr("marsmith.rollout.ask", lambda *_: type("Good", (), {"problem": None})())
    with pytest.raises(ServerError, match="what is no picture is answered with 200, not 4xx"):
        _change(tmp_path, _Server({"1.0": 1, "2.0": 1}, status=415)).smoke()
    with pytest.raises(ServerError, match="answered with 503, not 4xx"):
        _change(tmp_path, _Server({"1.0": 1, "2.0": 1}, status=503)).smoke()


def test_somebody_else_changes_the_default_meanwhile(tmp_path: Path) -> None:
    change = _change(tmp_path, _Server({"1.0": 1, "2.0": 1}))
    assert "by somebody else" in str(change._trouble())


def test_steps(tmp_path: Path) -> None:
    change = _change(tmp_path, _Server({"1.0": 1}))
    names = [step.name for step in change.steps()]
    assert names[0] == "register m-2.0.mar"
    assert names[-2:] == ["make 2.0 the default version", "watch it for 20 s"]
    assert [step.name for step in change.steps(registered=True)] == names[1:]


def test_a_version_beside_the_default_one_comes_back_where_a_rollout_fails(tmp_path: Path) -> None:
    server = _Server({"1.0": 1, "0.9": 1})
    running = _change(tmp_path, server)._running
    beside = VersionStatus("m", "0.9", "m-0.9.mar", False, 1, 1, 0, 100, None)
    step = operate._removal(running, server, beside, Options(drain=0.0))
    assert step.undo
    assert step.undo() == ""
    server.unregister("m", "0.9")
    assert step.undo() == "registered"
    assert server.done == ["register m-0.9.mar"]


def test_a_signal_after_the_switch_is_in_the_journal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    change = _change(tmp_path, _Server({"1.0": 1, "2.0": 1}))

    def interrupted(_: Path) -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr(operate.integrity, "sha256", interrupted)
    with pytest.raises(ServerError, match=r"2\.0 is the default .* but 1\.0 stays registered"):
        operate._carry_out(change._running, change, [], journal.ROLLOUT, False, print)
    last = journal.read(tmp_path)[-1]
    assert (last.result, last.archive) == (journal.KEPT, "m-2.0.mar")
    assert last.reason == "it was interrupted"
    assert journal.defaults(tmp_path) == {"m": "2.0"}
