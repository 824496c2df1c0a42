from __future__ import annotations

import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest


def _lines(caplog: pytest.LogCaptureFixture, prefix: str) -> list[dict[str, Any]]:
    lines = [line for line in caplog.messages if line.startswith(prefix)]
    assert not [line for line in lines if "\n" in line]
    return [json.loads(line.removeprefix(prefix)) for line in lines]


def _failed(caplog: pytest.LogCaptureFixture) -> list[dict[str, Any]]:
    return _lines(caplog, "marsmith: failed ")


def _answered(caplog: pytest.LogCaptureFixture) -> list[dict[str, Any]]:
    return _lines(caplog, "marsmith: answered ")


def test_a_failed_request_is_one_line_with_its_id(
    worker: Any, digits: dict[str, bytes], caplog: pytest.LogCaptureFixture
) -> None:
    forged = b"text\nmarsmith: refused lenet5_digits 1.0: forged"
    picture = digits["3"]
    replies = worker.ask(
        ({"data": picture}, {}), ({"data": forged}, {}), ({"data": picture, "top_k": b"x"}, {})
    )
    assert [reply.status for reply in replies] == [200, 415, 400]
    assert _answered(caplog) == []
    first, second = _failed(caplog)
    assert {key: first[key] for key in ("request", "model", "version", "status", "error")} == {
        "request": "1",
        "model": "lenet5_digits",
        "version": "1.0",
        "status": 415,
        "error": "UnsupportedPicture",
    }
    assert first["message"] == replies[1].json()["message"]
    assert (second["request"], second["status"]) == ("2", 400)
    assert "trace" not in first


def test_where_it_is_wanted_an_answered_request_is_one_line_with_its_id(
    unpacked: Path,
    load_worker: Any,
    digits: dict[str, bytes],
    caplog: pytest.LogCaptureFixture,
) -> None:
    worker = load_worker(unpacked)
    limits = replace(worker.handler.bundle.limits, log_requests=True)
    worker.handler.bundle = replace(worker.handler.bundle, limits=limits)
    picture = {"data": digits["3"]}
    worker.ask((picture, {}), ({"data": b"text"}, {}), ({}, {"describe": "True"}), (picture, {}))
    lines = _answered(caplog)
    spent = {line.pop("milliseconds") for line in lines}
    assert lines == [
        {"request": number, "model": "lenet5_digits", "version": "1.0", "status": 200, "batch": 3}
        for number in ("0", "3")
    ]
    assert len(spent) == 1
    assert 0 < spent.pop() < 60_000
    assert [line["request"] for line in _failed(caplog)] == ["1"]


def test_a_library_that_quiets_the_root_logger_does_not_silence_failures(
    worker: Any, caplog: pytest.LogCaptureFixture
) -> None:
    logging.getLogger().setLevel(logging.ERROR)
    (reply,) = worker.ask(({"data": b"text"}, {}))
    assert reply.status == 415
    assert [line["status"] for line in _failed(caplog)] == [415]


def test_a_fault_of_the_server_is_logged_with_its_trace_and_not_told(
    unpacked: Path,
    load_worker: Any,
    digits: dict[str, bytes],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    worker = load_worker(unpacked)

    def model(images: np.ndarray) -> Any:
        raise ValueError("inside")

    monkeypatch.setattr(worker.handler, "model", model)
    (reply,) = worker.ask(({"data": digits["3"]}, {}))
    assert reply.status == 500
    assert b"inside" not in reply.body
    monkeypatch.undo()
    monkeypatch.setattr(type(worker.handler), "postprocess", lambda *_: 1 / 0)
    (reply,) = worker.ask(({"data": digits["3"]}, {}))
    assert reply.status == 500
    model_failed, step_failed = _failed(caplog)
    assert model_failed["trace"].endswith("ValueError: inside\n")
    assert step_failed["trace"].endswith("ZeroDivisionError: division by zero\n")
