"""Where the time of a build goes: ``python -m benchmarks.building MODEL... [--rounds N]``.

MODEL is a name of ``models/`` or a model file. Each build is a process of its own, from its start
to its end, with an empty store. The table has medians over the rounds in seconds, by the clock and
of the build process's own CPU time, which other work on the machine moves less (the clean process
of the smoke stage is not in it), and the share of the whole that is not the export, its calibration
included. In turn with each build goes a process that only loads the weights and exports, as a
script without marsmith's proof and packing would: what the whole takes longer than that is the
other figure, for no export goes without its imports. Labelled pictures of an accuracy gate count as
part of what is beyond: give a model file without ``accuracy`` to leave them out.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

PROJECT = Path(__file__).parents[1]
START = "start and imports"
END, WHOLE = "end", "whole"
BEYOND, ALONE, LONGER = "beyond the export", "an export alone", "whole beyond that"
# The clock and the CPU time of this process, as a stage begins.
Mark = tuple[str, float, float]
# Seconds by the clock, and of CPU time.
Spent = tuple[float, float]
_TIMEOUT = 1800


def main(words: Sequence[str]) -> int:
    """Build each model several times and print where the time went."""
    parser = argparse.ArgumentParser(prog="benchmarks.building", description=__doc__)
    parser.add_argument("models", nargs="+", metavar="MODEL")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--alone", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args(words)
    if given.child:
        return _build(Path(given.models[0]), given.child)
    if given.alone:
        return _export(Path(given.models[0]), given.alone)
    from marsmith.model_options import model_file

    files = {model: model_file(model, Path.cwd()) for model in given.models}
    if unknown := sorted(model for model, file in files.items() if file is None):
        parser.error(f"no model {', '.join(unknown)}: name a file of models/ or give a path")
    for model, file in files.items():
        assert file is not None
        _print(model, [_round(file.absolute()) for _ in range(given.rounds)])
    return 0


def _build(file: Path, store: Path) -> int:
    """One build in this process; a line of JSON says when each stage began."""
    from marsmith.importing import for_good
    from marsmith.leaving import leave

    # As the command does.
    with for_good():
        from marsmith.build import build
        from marsmith.spec import load

    stages: list[Mark] = []

    def tell(stage: str) -> None:
        stages.append((stage, time.time(), time.process_time()))

    build(load(file), PROJECT, store, tell=tell)
    tell("")
    print(json.dumps(stages))
    leave(0)


def _export(file: Path, folder: Path) -> int:
    """Only the artifact, in this process; a line of JSON says how much CPU time it took."""
    from marsmith.importing import for_good
    from marsmith.leaving import leave

    with for_good():
        from handlers import plugins
        from marsmith import preparing, quantise, samples
        from marsmith.exporting import artifact
        from marsmith.spec import load

    spec = load(file)
    module, bundle = preparing.prepare(spec, PROJECT, folder)
    take = preparing.reference(bundle, module).preprocess
    limit = spec.serving.max_pixels
    first = samples.files(PROJECT / spec.samples, samples.SAMPLES)[0]
    calibration = []
    if spec.precision == "int8" and spec.calibration is not None:
        files = quantise.calibration_files(spec.calibration, PROJECT)
        calibration = [np.stack([take(samples.opened(path, limit))]) for path in files]
    example = take(samples.opened(first, limit))
    halved, exact = plugins.halved(spec.task, spec.runtime, spec.precision), None
    if spec.precision != "fp32":
        # What the exporters in few bits start from.
        (folder / "exact").mkdir()
        plain = artifact(
            replace(bundle, precision="fp32"), module, example, folder / "exact", halved=halved
        )
        plain.make()
        exact = plain.request.path
    artifact(bundle, module, example, folder, calibration, exact=exact).make()
    print(json.dumps(time.process_time()))
    leave(0)


def _round(file: Path) -> dict[str, Spent]:
    """Seconds by stage of one build, that of the process around it included, and of an export."""
    stages, start, end = _timed(file, "--child")
    *stages, (_, finished, used) = stages
    marks = [(START, start, 0.0), *stages, (END, finished, used), ("", end, used)]
    spent: dict[str, Spent] = {}
    for (stage, since, cpu_since), (_, until, cpu_until) in itertools.pairwise(marks):
        clock, cpu = spent.get(stage, (0.0, 0.0))
        spent[stage] = (clock + until - since, cpu + cpu_until - cpu_since)
    used, start, end = _timed(file, "--alone")
    return {**spent, ALONE: (end - start, used)}


def _timed(file: Path, what: str) -> tuple[Any, float, float]:
    """What a process of this module printed last, and when it began and ended."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "benchmarks.building", str(file), what, folder]
        start = time.time()
        done = subprocess.run(
            command, cwd=PROJECT, timeout=_TIMEOUT, stdout=subprocess.PIPE, text=True, check=True
        )
        return json.loads(done.stdout.splitlines()[-1]), start, time.time()


def _print(model: str, rounds: Sequence[dict[str, Spent]]) -> None:
    print(f"{model}\n  {'stage':32} {'seconds':>8} {'share':>6} {'CPU s':>8} {'share':>6}")
    clock, cpu = (_rows(rounds, which) for which in (0, 1))
    for stage in clock:
        cells = (f"{rows[stage]:8.2f} {rows[stage] / rows[WHOLE]:6.0%}" for rows in (clock, cpu))
        print(f"  {stage:32} {' '.join(cells)}")


def _rows(rounds: Sequence[dict[str, Spent]], which: int) -> dict[str, float]:
    """Medians by stage, their sum, and what of that is not the export, by both measures."""
    stages = rounds[0]
    medians = {stage: statistics.median(each[stage][which] for each in rounds) for stage in stages}
    alone = medians.pop(ALONE)
    whole = sum(medians.values())
    export = sum(seconds for stage, seconds in medians.items() if stage.startswith("export"))
    sums = {WHOLE: whole, BEYOND: whole - export, ALONE: alone, LONGER: whole - alone}
    return {**medians, **sums}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
