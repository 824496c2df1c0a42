from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from handlers.errors import ServerError
from marsmith.client import Reply
from marsmith.probe import GoldenCheck
from marsmith.watch import Failures, Limits, Watched, median_time, watch

GOOD = GoldenCheck(2, None)


def _watch(limits: Limits, usual: float = 0.0, probe_seconds: float = 0.0, **given: Any) -> Watched:
    """Watch in time that passes only by sleeping and probing."""
    now = [0.0]

    def pass_by(seconds: float) -> None:
        now[0] += seconds

    def probe() -> GoldenCheck:
        pass_by(probe_seconds)
        check: GoldenCheck = given.get("check", GOOD)
        return replace(check, seconds=probe_seconds / check.count)

    return watch(
        limits,
        probe,
        given.get("trouble", lambda: None),
        given.get("failures", lambda: 0),
        usual,
        clock=lambda: now[0],
        sleep=pass_by,
    )


def test_what_was_seen_is_told() -> None:
    seen = _watch(Limits(seconds=1, interval=0.25), probe_seconds=0.25)
    assert seen == Watched(6, 0, 0.125)
    assert str(seen).startswith("6 golden requests answered rightly (median 125 ms), 0 requests")


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ({"check": GoldenCheck(1, "a.png: 503: busy")}, "answered wrongly .*a.png: 503: busy"),
        ({"trouble": lambda: "a worker died"}, "a worker died while it was watched"),
        ({"failures": lambda: 3}, r"3 requests of clients failed .*\(allowed 2\)"),
        ({"usual": 0.1, "probe_seconds": 1.2}, r"take 600 ms, 100 ms before \(allowed 3 times"),
    ],
)
def test_each_trouble_ends_it(given: dict[str, Any], problem: str) -> None:
    with pytest.raises(ServerError, match=problem):
        _watch(Limits(seconds=1, failures=2), **given)


def test_what_is_allowed_passes() -> None:
    seen = _watch(Limits(seconds=1, failures=2), failures=lambda: 2, usual=0.1, probe_seconds=0.6)
    assert seen.failures == 2


def _line(request: str, code: int, time: str = "04:13:05,000", milliseconds: int = 5) -> str:
    """A line of the access log: when it was answered, and how long after it came."""
    return f'2026-11-21T{time} - /127.0.0.1:4 "{request} HTTP/1.1" {code} {milliseconds}\n'


def _failures(path: Path, *lines: str) -> int:
    """Failures of version 2.0 by what is written after the switch at 04:13:00."""
    path.write_text(_line("POST /predictions/m", 503))
    failures = Failures(path, "m", "2.0")
    with path.open("a") as log:
        log.write(_line("POST /predictions/m", 503))
        log.flush()
        failures.begin()
        log.write(_line("GET /ping", 200, "04:13:00,000", 0))
        log.writelines(lines)
    return failures.read()


def test_failures_are_those_of_the_version_since_the_switch(tmp_path: Path) -> None:
    found = _failures(
        tmp_path / "access_log.log",
        _line("POST /predictions/m", 500),
        _line("POST /predictions/m/2.0", 503),
        _line("POST /predictions/m?top_k=1", 507),
        _line("POST /predictions/m", 422),
        _line("POST /predictions/m2", 500),
        # Of clients who name another version, whose failures these are
        _line("POST /predictions/m/1.0", 503),
        _line("POST /predictions/m/1.0?top_k=1", 500),
        _line("POST /predictions/m/2.0.1", 500),
        _line("POST /predictions/m/2x0", 500),
        _line("GET /models/m", 500),
    )
    assert found == 3


@pytest.mark.parametrize(
    ("path", "count"),
    [
        ("/predictions/m/2.0/any/path", 1),
        ("/explanations/m", 1),
        ("/v1/models/m:predict", 1),
        ("/v2/models/m/infer?a=b", 1),
        ("/models/m/invoke", 1),
        ("/m/predict", 1),
        ("/m/2.0/predict", 1),
        ("/invocations?a=b&model_name=m", 1),
        ("/predictions/m/1.0/any/path", 0),
        ("/m/1.0/predict", 0),
        ("/v2/models/m2/infer", 0),
        ("/invocations?model_name=m2", 0),
    ],
)
def test_failures_by_all_paths_of_torchserve(tmp_path: Path, path: str, count: int) -> None:
    assert _failures(tmp_path / "access_log.log", _line(f"POST {path}", 503)) == count


def test_what_came_before_the_switch_is_the_old_versions(tmp_path: Path) -> None:
    found = _failures(
        tmp_path / "access_log.log",
        _line("POST /predictions/m", 500, "04:13:01,000", 1001),
        _line("POST /predictions/m", 500, "04:14:00,000", 60_050),
        _line("POST /predictions/m", 500, "04:14:00,000", 59_950),
    )
    assert found == 1


def test_without_an_access_log_nothing_is_taken_for_granted(tmp_path: Path) -> None:
    with pytest.raises(ServerError, match=r"no .*/access_log.log to read failures from"):
        Failures(tmp_path / "access_log.log", "m", "2.0")


def test_an_answer_that_is_an_error_is_no_measure_of_time() -> None:
    assert median_time([b"x"], lambda _: Reply(200, "", b"{}")) > 0
    assert median_time([], lambda _: Reply(503, "", b"")) == 0
    with pytest.raises(ServerError, match="503: busy"):
        median_time([b"x"], lambda _: Reply(503, "", b'{"message": "busy"}'))
