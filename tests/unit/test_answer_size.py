"""No answer may be larger than TorchServe takes: it would end the worker."""

from __future__ import annotations

import base64
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from handlers import answer_size
from handlers.bundle import Bundle
from handlers.errors import LoadError, TooLarge
from handlers.plugins import load_task


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("max_response_size=100\n", 100),
        ("max_request_size=7\n max_response_size : 100 \nmax_response_size=200", 200),
        ("# max_response_size=100\n", answer_size.DEFAULT),
        ("", answer_size.DEFAULT),
    ],
)
def test_the_limit_is_that_of_the_configuration(
    text: str, expected: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "config.properties").write_text(text)
    monkeypatch.setenv("TS_CONFIG_FILE", str(tmp_path / "config.properties"))
    assert answer_size.limit() == expected


def test_a_limit_that_is_no_number_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "config.properties"
    file.write_text("max_response_size=32 MB\n")
    monkeypatch.setenv("TS_CONFIG_FILE", str(file))
    with pytest.raises(LoadError, match=rf"max_response_size .* {file} .*'32 MB'.* write a number"):
        answer_size.limit()


def test_without_a_configuration_it_is_torchserves_own_and_the_log_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "config.properties").touch()
    monkeypatch.setenv("TS_CONFIG_FILE", str(tmp_path / "config.properties"))
    assert answer_size.limit() == answer_size.DEFAULT
    assert caplog.messages == []
    monkeypatch.setenv("TS_CONFIG_FILE", str(tmp_path / "none"))
    assert answer_size.limit() == answer_size.DEFAULT
    monkeypatch.delenv("TS_CONFIG_FILE")
    assert answer_size.limit() == answer_size.DEFAULT
    missing, unset = caplog.messages
    assert missing.startswith(f"marsmith: warning: TS_CONFIG_FILE is no file ({tmp_path / 'none'})")
    assert unset.startswith("marsmith: warning: TS_CONFIG_FILE is not set")
    assert "more than TorchServe's own 6553500 bytes are refused" in unset


@pytest.mark.parametrize("said", ["", "max_response_size=300\n"])
def test_a_worker_says_once_that_it_assumes_its_limit_and_a_build_says_nothing(
    said: str,
    unpacked: Path,
    tmp_path: Path,
    load_worker: Callable[[Path], Any],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.delenv("TS_CONFIG_FILE", raising=False)
    if said:
        (tmp_path / "config.properties").write_text(said)
        monkeypatch.setenv("TS_CONFIG_FILE", str(tmp_path / "config.properties"))
    bundle = Bundle.read(unpacked)
    load_task(bundle.task)().bind(bundle, unpacked)
    assert caplog.messages == []
    assert load_worker(unpacked).handler.answer_limit == (300 if said else answer_size.DEFAULT)
    told = [line for line in caplog.messages if "max_response_size is not known" in line]
    assert len(told) == (0 if said else 1)


def test_an_answer_may_have_all_that_is_taken() -> None:
    assert answer_size.check(b"12345", 5) == b"12345"
    with pytest.raises(TooLarge, match="the answer has 6 bytes"):
        answer_size.check(b"123456", 5)


def test_a_larger_answer_fails_alone(
    worker: Any, digits: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker.handler, "answer_limit", 200)
    sent = {"b64": base64.b64encode(digits["3"]).decode()}
    good, many, drawn = worker.ask(
        ({"body": digits["3"]}, {}),
        ({"body": {"instances": [sent] * 9}}, {}),
        ({"body": digits["3"]}, {"accept": "image/png"}),
    )
    assert good.status == 200
    for bad in (many, drawn):
        assert (bad.status, bad.json()["max_response_size"]) == (413, 200)
        assert bad.media_type == "application/json"
        assert "bytes, the server's max_response_size is 200" in bad.json()["message"]
