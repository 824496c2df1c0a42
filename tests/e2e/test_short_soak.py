"""``benchmarks.soak`` from its command line: 20 seconds, in which workers are killed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path


def test_a_short_soak_with_workers_killed(project: Path, tmp_path: Path) -> None:
    # A rate that any machine can do, and no wrk. Java's heap does not settle in so short a time.
    words = ["--minutes", "0.35", "--rate", "10", "--workers", "2", "--kill-every", "5"]
    words += ["--runtime", "torchscript:fp32", "--pictures", "40"]
    words += ["--max-growth", "0.5", "--slack", "30"]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.soak", *words, "--out", str(tmp_path / "soak.json")],
        cwd=project,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((tmp_path / "soak.json").read_text())
    assert found["problems"] == []
    assert found["asked"]["requests"] > 0
    assert found["asked"]["wrong"] == 0
    assert len(found["kills"]["recoveries"]) >= 1
    assert "front end" in {one["role"] for one in found["growth"]}
    before, after = found["idle"]
    assert before.keys() == after.keys() == {"front end", "worker"}
