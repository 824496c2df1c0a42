"""Where the time of a build goes: ``python -m benchmarks.building MODEL... [--rounds N]``.

MODEL is a name of ``models/`` or a model file. Each build is a process of its own, from its start
to its end, with an empty store. The table has medians over the rounds in seconds, and the share of
the whole that is not the export, its calibration included. Labelled pictures of an accuracy gate
count as part of what is beyond: give a model file without ``accuracy`` to leave them out.
"""

from __future__ import annotations

import itertools
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

PROJECT = Path(__file__).parents[1]
START = "start and imports"
_TIMEOUT = 1800


def main(words: Sequence[str]) -> int:
    """Build each model several times and print where the time went."""
    if words[:1] == ["--child"]:
        _build(Path(words[1]), Path(words[2]))
        return 0
    rounds, models = 3, list(words)
    if "--rounds" in models:
        at = models.index("--rounds")
        rounds = int(models[at + 1])
        del models[at : at + 2]
    for model in models:
        file = Path(model) if model.endswith((".yaml", ".yml")) else Path(f"models/{model}.yaml")
        _print(model, [_round(file.absolute()) for _ in range(rounds)])
    return 0


def _build(file: Path, store: Path) -> None:
    """One build in this process; a line of JSON says when each stage began."""
    from marsmith.build import build
    from marsmith.leaving import leave
    from marsmith.spec import load

    stages: list[tuple[str, float]] = []
    build(load(file), PROJECT, store, tell=lambda stage: stages.append((stage, time.time())))
    print(json.dumps(stages))
    leave(0)


def _round(file: Path) -> dict[str, float]:
    """Seconds by stage of one build, that of the process around it included."""
    with tempfile.TemporaryDirectory() as store:
        command = [sys.executable, "-m", "benchmarks.building", "--child", str(file), store]
        start = time.time()
        done = subprocess.run(
            command, cwd=PROJECT, timeout=_TIMEOUT, stdout=subprocess.PIPE, text=True, check=True
        )
        end = time.time()
    marks = [(START, start), *json.loads(done.stdout.splitlines()[-1]), ("", end)]
    spent: dict[str, float] = {}
    for (stage, since), (_, until) in itertools.pairwise(marks):
        spent[stage] = spent.get(stage, 0) + until - since
    return spent


def _print(model: str, rounds: Sequence[dict[str, float]]) -> None:
    medians = {stage: statistics.median(each[stage] for each in rounds) for stage in rounds[0]}
    whole = sum(medians.values())
    export = sum(seconds for stage, seconds in medians.items() if stage.startswith("export"))
    rows = {**medians, "whole": whole, "beyond the export": whole - export}
    print(f"{model}\n  {'stage':32} {'seconds':>8} {'share':>6}")
    for stage, seconds in rows.items():
        print(f"  {stage:32} {seconds:8.2f} {seconds / whole:6.0%}")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
