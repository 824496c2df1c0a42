from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from handlers.bundle import Bundle
from handlers.errors import ArchiveError, ServerError
from handlers.inputs import ImageInput
from marsmith.client import Client, Refused, Reply
from marsmith.commands.status import _row
from marsmith.probe import GoldenCheck, Goldens
from marsmith.processes import Running
from marsmith.status import VersionStatus, check_golden, describe, read_status

_NEVER = 2**22 + 1  # above Linux' largest pid


class _Client(Client):
    """A client of nothing: descriptions and replies are given."""

    def __init__(self, versions: list[dict[str, Any]] = [], reply: bytes = b"") -> None:  # noqa: B006
        self._versions = versions
        self._reply = reply

    def models(self) -> list[str]:
        return ["m"]

    def describe(self, model: str, version: str | None = None, **_: Any) -> list[dict[str, Any]]:
        return self._versions if version == "all" else self._versions[-1:]

    def predict(self, model: str, body: Any, **_: Any) -> Reply:
        status = 500 if b'"code"' in self._reply else 200
        return Reply(status, "application/json", self._reply)


def _described(version: str, *workers: tuple[str, int]) -> dict[str, Any]:
    return {
        "modelVersion": version,
        "modelUrl": f"m-{version}.mar",
        "minWorkers": 2,
        "workers": [{"id": "9000", "status": status, "pid": pid} for status, pid in workers],
        "jobQueueStatus": {"pendingRequests": 3, "remainingCapacity": 97},
    }


@pytest.fixture
def running(tmp_path: Path) -> Running:
    (tmp_path / "config.properties").write_text("model_store=store\n")
    (tmp_path / "logs").mkdir()
    (tmp_path / "store").mkdir()
    return Running(os.getpid(), tmp_path, tmp_path / "config.properties", 0)


def test_only_live_and_loaded_workers_count(running: Running) -> None:
    (running.home / "logs" / "model_log.log").write_text(
        "2026-11-21T12:00:00,000 [INFO ] W-9000-m_1.0-stdout MODEL_LOG - "
        "marsmith: refused m 1.0: a reason\n"
    )
    dead, alive = ("READY", _NEVER), ("READY", os.getpid())
    client = _Client(
        [
            _described("1.0", alive, dead),
            _described("2.0", alive, ("UNLOADING", os.getpid())),
            _described("10.0", alive, alive),
        ]
    )
    first, second, third = read_status(running, client)
    assert (first.ready_workers, first.ready, first.failed) == (1, False, "a reason")
    assert (second.ready_workers, second.ready, second.failed) == (1, False, None)
    assert (third.ready_workers, third.ready, third.default) == (2, True, True)
    assert (third.pending, third.capacity) == (3, 97)
    assert not first.default


def test_the_state_of_a_version_in_words() -> None:
    def state(asked: int, ready: int, refusal: str | None = None) -> str:
        one = VersionStatus("m", "1.0", "m-1.0.mar", True, asked, ready, 0, 100, refusal)
        return _row(one, None)[-1]

    assert [state(2, 2), state(2, 1), state(0, 0)] == ["ready", "loading", "no workers"]
    assert state(1, 0, "a reason") == "refused: a reason"


class _Registered(_Client):
    """TorchServe with m 1.0 and m 2.0."""

    def describe(self, model: str, version: str | None = None, **_: Any) -> list[dict[str, Any]]:
        found = [_described("1.0"), _described("2.0")]
        wanted = [one for one in found if version in (None, "all", one["modelVersion"])]
        if model != "m" or not wanted:
            raise Refused("TorchServe refuses it: 404: not found", 404)
        return wanted


@pytest.mark.parametrize(
    ("named", "words"),
    [
        (("M", None), r"^no model M is registered: did you mean m\?$"),
        (("x", "1.0"), "^no model x is registered: known are m$"),
        (("m", "3"), r"^m 3 is not registered: there are 1\.0, 2\.0$"),
    ],
)
def test_a_model_that_is_not_registered_gets_the_nearest(
    named: tuple[str, str | None], words: str
) -> None:
    assert describe(_Registered(), "m", "2.0")["modelVersion"] == "2.0"
    with pytest.raises(ServerError, match=words):
        describe(_Registered(), *named)


@pytest.fixture
def loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of an unpacked archive, in which this process stands for its worker."""
    (tmp_path / "loaded" / "golden").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "loaded")
    return tmp_path / "loaded"


def _ask(reply: bytes, *pids: int, least: int = 1) -> GoldenCheck:
    pids = pids or (os.getpid(),)
    status = VersionStatus("m", "1.0", "m-1.0.mar", True, 1, 1, 0, 100, None, pids)
    return check_golden(_Client(reply=reply), status, least)


def test_golden_answers_are_compared_as_the_task_does(loaded: Path) -> None:
    answer = [{"label": "cat", "score": 0.9}, {"label": "dog", "score": 0.1}]
    picture = ImageInput(resize=[8, 8])
    labels = ["cat", "dog"]
    bundle = Bundle("m", "1.0", "image-classification", "eager", "model.pt", labels, picture)
    case = {"picture": "golden/0.png", "answer": answer, "tolerance": 0.001}
    (loaded / "marsmith.json").write_text(json.dumps(asdict(bundle)))
    (loaded / "golden/requests.json").write_text(json.dumps([case]))
    (loaded / "golden/0.png").touch()
    assert str(_ask(json.dumps(answer).encode())) == "1 ok"
    # Of several workers each may get one, where nobody else asks
    assert str(_ask(json.dumps(answer).encode(), least=3)) == "3 ok"
    # One worker that has just ended is no reason
    assert str(_ask(json.dumps(answer).encode(), _NEVER, os.getpid())) == "1 ok"
    assert str(_ask(b"", _NEVER)) == "the workers of m 1.0 have ended"
    moved = [{"label": "cat", "score": 0.8}, {"label": "dog", "score": 0.2}]
    check = _ask(json.dumps(moved).encode())
    assert check.problem == "golden/0.png: top-1 is cat, scores moved by 0.1 (allowed 0.001)"
    check = _ask(b'{"code": 503, "message": "busy"}')
    assert check.problem == "golden/0.png: 500: busy"
    assert "is not JSON" in str(_ask(b"<html>").problem)


@pytest.mark.usefixtures("loaded")
def test_an_archive_without_golden_requests_is_no_problem() -> None:
    assert _ask(b"") == GoldenCheck(0, None)
    assert str(GoldenCheck(0, None)) == "none in the archive"


def test_golden_requests_that_cannot_be_read_are_a_problem(loaded: Path) -> None:
    (loaded / "golden/requests.json").write_text("[]")
    assert "has no golden requests to read" in str(_ask(b"").problem)
    with pytest.raises(ArchiveError, match=r"none\.mar has no golden requests to read"):
        Goldens.read(loaded / "none.mar")
