"""The serving benchmark from its command line, with the contenders and loads that need no other
environment."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import uuid
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]
import pytest

from benchmarks.serving import loads, page, rows, timers
from marsmith.processes import end_all

# Everything that the benchmark starts inherits it.
OURS = "MARSMITH_TEST_OF_THE_BENCHMARK"


NAMES = ("ours/torchscript:fp32", "ceiling/torchscript:fp32")
WRK = loads.has_wrk()


@pytest.fixture(scope="module")
def sitting(project: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a sitting that has ended and left nothing running."""
    folder = tmp_path_factory.mktemp("sitting")
    options = ["--rates", "8", "--rounds", "1", "--seconds", "1", "--warm", "1", "--count", "10"]
    options += ["--warm-requests", "0", "--warm-each", "0.5"]
    for load in ("poisson", "mlperf", *["closed"] * WRK):
        options += ["--load", load]
    command = [sys.executable, "-m", "benchmarks.serving", *NAMES, *options]
    number = uuid.uuid4().hex
    try:
        done = subprocess.run(
            [*command, "--connections", "2", "--out", str(folder)],
            cwd=project,
            env={**os.environ, OURS: number},
            capture_output=True,
            text=True,
            timeout=300,
        )
        left = _left_over(number)
    finally:
        end_all(_left_over(number), 15)
    assert done.returncode == 0, done.stdout + done.stderr
    assert left == {}
    return folder


@pytest.fixture(scope="module")
def results(sitting: Path) -> Any:
    """What it has kept."""
    return json.loads((sitting / "results.json").read_text())


def _measured(results: Any, name: str, kind: str) -> list[dict[str, Any]]:
    return rows.select(results["measurements"], contender=name, kind=kind)


def test_a_short_sitting(sitting: Path, results: Any) -> None:
    for name in NAMES:
        [ready], [accuracy] = (_measured(results, name, kind) for kind in ("ready", "accuracy"))
        assert ready["seconds"] > 0
        assert accuracy["score"] == results["reference"]
        assert accuracy["unanswered"] == 0
    [asked], [ceiling] = (
        _measured(results, NAMES[0], "poisson")[-1:],
        _measured(results, NAMES[1], "closed"),
    )
    assert asked["requests"] > 0
    assert asked["failed"] == 0
    assert set(asked["usage"]["cpu"]) == {"front end", "worker"}
    assert ceiling["requests"] > 0
    assert (sitting / "throughput.png").read_bytes().startswith(b"\x89PNG")
    assert NAMES[0] in page.markdown(results)


def test_the_server_says_where_the_time_of_its_requests_went(results: Any) -> None:
    for asked in _measured(results, NAMES[0], "poisson"):
        spent = asked["spent"]
        # With the one that is asked when a load has ended.
        assert asked["requests"] <= spent["asked"] <= asked["requests"] + 1
        assert spent["asked"] == spent["batched"] >= spent["batches"] > 0
        assert all(spent[stage] > 0 for stage in timers.STAGES)
        assert spent["queue"] > 0
        # Nobody waits less than its batch.
        assert spent["whole"] > sum(spent[stage] for stage in timers.STAGES)
    assert not any(
        "spent" in one for one in results["measurements"] if one["contender"] == NAMES[1]
    )


def test_loadgen_asks_and_scores(sitting: Path, results: Any) -> None:
    found = {one["scenario"]: one for one in _measured(results, NAMES[0], "mlperf")}
    assert set(found) == {"Server", "Offline"}
    for scenario, one in found.items():
        assert one["failed"] == 0
        assert one["summary"]["Scenario"] == scenario
        assert one["summary"]["Result is"] in ("VALID", "INVALID")
        # Out of LoadGen's own log of the answers.
        assert one["score"] == results["reference"]
        assert one["unanswered"] == 0
        logs = sitting / "mlperf/ours-torchscript-fp32"
        assert (logs / f"{scenario.lower()}-performance/mlperf_log_summary.txt").is_file()


@pytest.mark.skipif(not WRK, reason="no wrk here, which closed loops are: apt-get install wrk")
def test_wrk_asks_in_a_closed_loop(results: Any) -> None:
    [asked] = _measured(results, NAMES[0], "closed")
    assert (asked["connections"], asked["failed"]) == (2, 0)
    assert asked["requests"] > 0
    assert 0 < asked["p50"] <= asked["p95"] <= asked["p99"] <= asked["max"]
    # Its rate is what a share is of.
    [_, shared] = sorted(_measured(results, NAMES[0], "poisson"), key=lambda one: one["share"] or 0)
    assert shared["rate"] == pytest.approx(0.6 * asked["requests"] / asked["seconds"])


def _left_over(number: str) -> dict[psutil.Process, list[str]]:
    """The processes that this test's benchmark has left running, with their commands."""
    found = {}
    for process in psutil.process_iter():
        # Gone, or somebody else's.
        with suppress(psutil.Error, OSError):
            if process.environ().get(OURS) == number:
                found[process] = process.cmdline()
    return found
