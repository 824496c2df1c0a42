"""The serving benchmark from its command line, with the two contenders that need nothing else."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import uuid
from contextlib import suppress
from pathlib import Path

import psutil  # type: ignore[import-untyped]

from benchmarks.serving import page
from marsmith.processes import end_all

# Everything that the benchmark starts inherits it.
OURS = "MARSMITH_TEST_OF_THE_BENCHMARK"


def test_a_short_sitting(project: Path, tmp_path: Path) -> None:
    names = ["ours/torchscript:fp32", "ceiling/torchscript:fp32"]
    # Without a closed loop, which needs wrk.
    options = ["--load", "poisson", "--rates", "8", "--rounds", "1", "--seconds", "1"]
    command = [sys.executable, "-m", "benchmarks.serving", *names, *options, "--count", "10"]
    number = uuid.uuid4().hex
    try:
        done = subprocess.run(
            [*command, "--out", str(tmp_path)],
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
    results = json.loads((tmp_path / "results.json").read_text())
    kinds = {(one["contender"], one["kind"]): one for one in results["measurements"]}
    assert set(kinds) == {
        *((name, kind) for name in names for kind in ("ready", "accuracy")),
        (names[0], "poisson"),
        (names[1], "closed"),
    }
    for name in names:
        assert kinds[name, "accuracy"]["score"] == results["reference"]
        assert kinds[name, "accuracy"]["unanswered"] == 0
    asked = kinds[names[0], "poisson"]
    assert asked["requests"] > 0
    assert asked["failed"] == 0
    assert set(asked["usage"]["cpu"]) == {"front end", "worker"}
    assert kinds[names[1], "closed"]["requests"] > 0
    assert (tmp_path / "throughput.png").read_bytes().startswith(b"\x89PNG")
    assert names[0] in page.markdown(results)


def _left_over(number: str) -> dict[psutil.Process, list[str]]:
    """The processes that this test's benchmark has left running, with their commands."""
    found = {}
    for process in psutil.process_iter():
        # Gone, or somebody else's.
        with suppress(psutil.Error, OSError):
            if process.environ().get(OURS) == number:
                found[process] = process.cmdline()
    return found
