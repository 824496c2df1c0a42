"""No answer may be larger than TorchServe takes: it would end the worker."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import pytest

from handlers import answer_size
from handlers.errors import LoadError, TooLarge


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


def test_without_a_configuration_it_is_torchserves_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TS_CONFIG_FILE", str(tmp_path / "none"))
    assert answer_size.limit() == answer_size.DEFAULT
    monkeypatch.delenv("TS_CONFIG_FILE")
    assert answer_size.limit() == answer_size.DEFAULT


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
