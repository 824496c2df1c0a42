from __future__ import annotations

import gzip
import os
from datetime import datetime
from pathlib import Path

import pytest

from marsmith.refusals import read_refusals

_RUN = datetime(2020, 11, 21, 12, 0).timestamp()


def _line(text: str, worker: str = "W-9003-shapes_1.0", time: str = "12:00:05,559") -> str:
    return f"2020-11-21T{time} [INFO ] {worker}-stdout MODEL_LOG - {text}\n"


@pytest.fixture
def log(tmp_path: Path) -> Path:
    (tmp_path / "logs").mkdir()
    return tmp_path / "logs" / "model_log.log"


def test_no_log_no_refusals(tmp_path: Path) -> None:
    assert read_refusals(tmp_path, 0) == {}


def test_the_latest_reason_of_this_run_counts(log: Path) -> None:
    log.write_text(
        _line("marsmith: refused shapes 1.0: before this run", time="11:59:59,000")
        + _line("marsmith: refused old 1.0: before this run", time="11:59:59,000")
        + _line("marsmith: refused shapes 1.0: first")
        + _line("Backend worker process died.")
        + _line("marsmith: refused shapes 1.0: a file is missing: build it again")
    )
    found = read_refusals(log.parents[1], _RUN)
    assert found == {("shapes", "1.0"): "a file is missing: build it again"}


def test_a_crash_of_any_handler_has_its_exception_as_reason(log: Path) -> None:
    log.write_text(
        _line("Traceback (most recent call last):", "W-9000-my_model_2.0")
        + _line("ModuleNotFoundError: No module named 'yaml'", "W-9000-my_model_2.0")
        + _line("KeyError: 'of another worker'", "W-9001-other_1.0")
        + _line("RuntimeError: 500 - Unknown exception", "W-9000-my_model_2.0")
        + _line("Backend worker process died.", "W-9000-my_model_2.0")
        + _line("Backend worker process died.", "W-9002-silent_1.0")
    )
    assert read_refusals(log.parents[1], _RUN) == {
        ("my_model", "2.0"): "ModuleNotFoundError: No module named 'yaml'",
        ("silent", "1.0"): "its worker died without a message",
    }


def test_a_request_cannot_put_words_into_the_log_of_another_line(log: Path) -> None:
    log.write_text(
        _line("picture 'x MODEL_LOG - marsmith: refused shapes 1.0: not true'")
        + "marsmith: refused shapes 1.0: without TorchServe's prefix\n"
        + "not a line of the log\n"
        + _line("marsmith: refused shapes 1.0: time?", time="25:00:00,000")
    )
    assert read_refusals(log.parents[1], _RUN) == {}


def test_rotated_logs_are_read_unless_older_than_the_run(log: Path) -> None:
    with gzip.open(log.with_name("model_log.2020-11-21.1.log.gz"), "wt") as rotated:
        rotated.write(_line("marsmith: refused shapes 1.0: rotated away"))
    old = log.with_name("model_log.2020-11-20.1.log.gz")
    old.write_bytes(b"not even gzip")
    os.utime(old, (0, 0))
    log.write_text(_line("Torch worker started."))
    assert read_refusals(log.parents[1], _RUN) == {("shapes", "1.0"): "rotated away"}


def test_a_part_that_is_being_compressed_is_left_out_until_it_is_whole(log: Path) -> None:
    part = log.with_name("model_log.1.log.gz")
    whole = gzip.compress(_line("marsmith: refused shapes 1.0: rotated away").encode())
    part.write_bytes(whole[:-12])
    log.write_text(_line("Torch worker started."))
    assert read_refusals(log.parents[1], _RUN) == {}
    part.write_bytes(whole)
    assert read_refusals(log.parents[1], _RUN) == {("shapes", "1.0"): "rotated away"}


def test_a_log_that_grows_is_read_on_and_one_that_is_begun_anew_whole(log: Path) -> None:
    home = log.parents[1]
    first = _line("marsmith: refused shapes 1.0: first")
    log.write_text(first + _line("marsmith: refused shapes 1.0: half")[:-7])
    assert read_refusals(home, _RUN) == {("shapes", "1.0"): "first"}
    with log.open("a") as file:
        # The end of the line that was half written, and one more.
        file.write(_line("marsmith: refused shapes 1.0: half")[-7:])
        file.write(_line("marsmith: refused other 2.0: ä second"))
    expected = {("shapes", "1.0"): "half", ("other", "2.0"): "ä second"}
    assert read_refusals(home, _RUN) == expected
    assert read_refusals(home, _RUN) == expected
    # Longer than the old one, under the same name.
    log.rename(log.with_name("old"))
    log.write_text(first * 9)
    assert read_refusals(home, _RUN) == {("shapes", "1.0"): "first"}
    log.write_text(_line("marsmith: refused shapes 1.0: shorter"))
    assert read_refusals(home, _RUN) == {("shapes", "1.0"): "shorter"}
