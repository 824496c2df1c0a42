"""Which versions a probe calls ready; with a real server in tests/e2e/test_observability.py."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import pytest

from marsmith.client import Client, Reply
from marsmith.processes import Running
from marsmith.readiness import Readiness, _version
from marsmith.status import VersionStatus


class _Client(Client):
    """A server of nothing that gives one answer."""

    def __init__(self, answer: Any) -> None:
        self._answer = answer

    def predict(self, model: str, body: Any, **_: Any) -> Reply:
        return Reply(200, "", json.dumps(self._answer).encode())


@pytest.fixture
def running(tmp_path: Path) -> Running:
    with zipfile.ZipFile(tmp_path / "m.mar", "w") as archive:
        case = {"picture": "golden/0.png", "answer": [1], "tolerance": 0}
        archive.writestr("golden/requests.json", json.dumps([case]))
        archive.writestr("golden/0.png", b"")
    (tmp_path / "config.properties").write_text("model_store=.\n")
    return Running(1, tmp_path, tmp_path / "config.properties", 0.0)


def _read(running: Running, live: int, wanted: int, refusal: str | None = None) -> Readiness:
    status = VersionStatus("m", "1.0", "m.mar", True, wanted, live, 0, 100, refusal)
    return _version(running, _Client([1]), status)


def test_one_that_answers_is_ready_while_more_workers_load(running: Running) -> None:
    assert _read(running, 1, 1) == Readiness(True, "m 1.0 answers")
    assert _read(running, 1, 2) == Readiness(True, "m 1.0 answers, with 1 of 2 workers")
    # As where the memory is not enough for one more: the others are needed all the more.
    found = _read(running, 2, 3, "no memory left")
    assert found == Readiness(True, "m 1.0 answers, with 2 of 3 workers")


def test_one_without_a_worker_is_not(running: Running) -> None:
    assert _read(running, 0, 2) == Readiness(False, "m 1.0 has 0 of 2 workers")
    assert _read(running, 0, 0) == Readiness(False, "m 1.0 has 0 of 1 workers")
    found = _read(running, 0, 2, "not today")
    assert found == Readiness(False, "m 1.0 refuses to load: not today")
