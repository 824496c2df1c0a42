"""Which versions a probe calls ready; with a real server in tests/e2e/test_observability.py."""

from __future__ import annotations

import json
import os
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import requests

from handlers.bundle import Bundle
from handlers.errors import ServerError
from handlers.inputs import ImageInput
from marsmith.addresses import bind_problem
from marsmith.client import Client, Reply
from marsmith.exporter import Exporter
from marsmith.readiness import Readiness, _version, read_readiness
from marsmith.status import VersionStatus


class _Client(Client):
    """A server of nothing that gives one answer, and counts how often."""

    def __init__(self, score: float) -> None:
        self._score = score
        self.asked = 0

    def models(self) -> list[str]:
        return ["m", "n"]

    def predict(self, model: str, body: Any, **_: Any) -> Reply:
        self.asked += 1
        return Reply(200, "", json.dumps([{"label": "cat", "score": self._score}]).encode())


@pytest.fixture(autouse=True)
def _loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder of an unpacked archive, in which this process stands for its worker.

    What the store has meanwhile, or has not, changes no answer.
    """
    picture = ImageInput(resize=[8, 8])
    bundle = Bundle("m", "1.0", "image-classification", "eager", "m.pt", ["cat"], picture)
    answer = [{"label": "cat", "score": 0.9}]
    case = {"picture": "golden/0.png", "answer": answer, "tolerance": 0.01}
    (tmp_path / "golden").mkdir()
    (tmp_path / "marsmith.json").write_text(json.dumps(asdict(bundle)))
    (tmp_path / "golden/requests.json").write_text(json.dumps([case]))
    (tmp_path / "golden/0.png").touch()
    monkeypatch.chdir(tmp_path)


def _read(live: int, wanted: int, refusal: str | None = None) -> Readiness:
    return _asked(_Client(0.9), live, wanted, refusal)


def _asked(client: Client, live: int = 1, wanted: int = 1, refusal: str | None = None) -> Readiness:
    pids = (os.getpid(),) * live
    status = VersionStatus("m", "1.0", "m.mar", True, wanted, live, 0, 100, refusal, pids)
    return _version(client, status)


def test_one_that_answers_is_ready_while_more_workers_load() -> None:
    assert _read(1, 1) == Readiness(True, "m 1.0 answers")
    assert _read(1, 2) == Readiness(True, "m 1.0 answers, with 1 of 2 workers")
    # As where the memory is not enough for one more: the others are needed all the more.
    found = _read(2, 3, "no memory left")
    assert found == Readiness(True, "m 1.0 answers, with 2 of 3 workers")


def test_one_without_a_worker_is_not() -> None:
    assert _read(0, 2) == Readiness(False, "m 1.0 has 0 of 2 workers")
    assert _read(0, 0) == Readiness(False, "m 1.0 has 0 of 1 workers")
    found = _read(0, 2, "not today")
    assert found == Readiness(False, "m 1.0 refuses to load: not today")


def test_an_answer_may_move_as_far_as_the_build_allows() -> None:
    client = _Client(0.901)
    assert _asked(client) == Readiness(True, "m 1.0 answers")
    assert client.asked == 1
    found = _asked(_Client(0.5))
    assert not found.ready
    assert found.reason.startswith("m 1.0 answers wrongly: golden/0.png: ")


@pytest.mark.parametrize(
    ("reply", "words"),
    [
        (Reply(503, "", b'{"message": "queue full"}'), "m 1.0: golden/0.png: 503: queue full"),
        (ServerError("no answer within 4 s"), "m 1.0: golden/0.png: no answer within 4 s"),
    ],
)
def test_no_answer_is_not_a_wrong_one(
    reply: Reply | ServerError, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def predict(*_: Any, **__: Any) -> Reply:
        if isinstance(reply, ServerError):
            raise reply
        return reply

    monkeypatch.setattr(_Client, "predict", predict)
    assert _read(1, 1) == Readiness(False, words)


def test_a_version_that_nobody_gets_by_default_is_not_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pids = (os.getpid(),)
    good = VersionStatus("m", "1.0", "m.mar", True, 1, 1, 0, 100, None, pids)
    beside = VersionStatus("m", "2.0", "m.mar", False, 1, 0, 0, 100, "not today")
    other = VersionStatus("n", "1.0", "n.mar", True, 1, 0, 0, 100, None)
    statuses = [good, beside]
    monkeypatch.setattr("marsmith.readiness.require_running", lambda _: None)
    monkeypatch.setattr("marsmith.readiness.read_status", lambda *_: statuses)
    monkeypatch.setattr(Client, "of", lambda *_, **__: nullcontext(_Client(0.9)))
    answers = Readiness(True, "m 1.0 answers")
    assert read_readiness(tmp_path, None, 1.0) == answers
    statuses.append(other)
    assert read_readiness(tmp_path, "m", 1.0) == answers
    assert read_readiness(tmp_path, None, 1.0) == Readiness(False, "n 1.0 has 0 of 1 workers")
    unknown = Readiness(False, "no model x is registered: known are m, n")
    assert read_readiness(tmp_path, "x", 1.0) == unknown


def test_who_drains_is_not_ready(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answers = Readiness(True, "m 1.0 answers")
    monkeypatch.setattr("marsmith.exporter.read_readiness", lambda *_: answers)
    with Exporter(tmp_path, "127.0.0.1:0") as exporter:
        url = f"http://127.0.0.1:{exporter.port}/ready"
        assert requests.get(url, timeout=10).text == "m 1.0 answers\n"
        exporter.say_stopping()
        found = requests.get(url, timeout=10)
        assert (found.status_code, found.text) == (503, "stopping\n")


def test_an_exporter_listens_on_ipv6(tmp_path: Path) -> None:
    if bind_problem("::1", 0):
        pytest.skip("no IPv6 here")
    with Exporter(tmp_path, "[::1]:0") as exporter:
        assert requests.get(f"http://[::1]:{exporter.port}/live", timeout=10).status_code == 503


@pytest.mark.parametrize("address", ["8083", ":8083", "127.0.0.1:none"])
def test_an_exporter_listens_nowhere_that_nobody_named(tmp_path: Path, address: str) -> None:
    with pytest.raises(ServerError, match="give a free one as HOST:PORT"):
        Exporter(tmp_path, address)
