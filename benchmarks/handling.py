"""Where an archive's handler spends its CPU time, without a server around it.

``python -m benchmarks.handling FILE.mar --pictures DIR [--batch 8] [--rounds N] [--functions N]``
prints a table: CPU milliseconds a picture of each stage, the least of the rounds over all pictures,
for a picture alone and in batches. ``rest`` is the handler's own work between the stages. With
``--functions`` follow the functions that take most, by cProfile, whose own cost is in them.
"""

from __future__ import annotations

import argparse
import cProfile
import pstats
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

from benchmarks.serving.inprocess import Handler
from benchmarks.serving.timers import STAGES
from handlers import task
from handlers.stages import Stages
from marsmith import samples
from marsmith.archive import unpack


class _Cpu(Stages):
    """Of CPU time, by all threads of the process; told to ``spent`` and not published."""

    now = staticmethod(time.process_time)
    spent: dict[str, float]

    def publish(self, *_: Any) -> None:
        for name, seconds in self.seconds.items():
            self.spent[name] = self.spent.get(name, 0.0) + seconds


def main(words: list[str]) -> int:
    """Print the table, and the functions where they are asked for."""
    parser = argparse.ArgumentParser(prog="benchmarks.handling", description=__doc__)
    parser.add_argument("archive", type=Path, metavar="FILE.mar")
    parser.add_argument("--pictures", type=Path, required=True, metavar="DIR")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--functions", type=int, default=0, metavar="N")
    given = parser.parse_args(words)
    bodies = [path.read_bytes() for path in samples.found(given.pictures)]
    if not bodies:
        parser.error(f"no pictures in {given.pictures}: give a folder that has some")
    with tempfile.TemporaryDirectory() as folder:
        unpack(given.archive, Path(folder) / "model")
        handler = Handler(Path(folder) / "model")
        print(f"| pictures a batch | {' | '.join(STAGES)} | rest | all |")
        print("|---" * (len(STAGES) + 3) + "|")
        for size in sorted({1, given.batch}):
            rounds = [_round(handler, bodies, size) for _ in range(given.rounds)]
            least = min(rounds, key=lambda spent: spent["all"])
            cells = [f"{1e3 * least[name] / len(bodies):.2f}" for name in (*STAGES, "rest", "all")]
            print(f"| {size} | {' | '.join(cells)} |")
        if given.functions:
            _functions(handler, bodies, given.batch, given.functions)
    return 0


def _round(handler: Handler, bodies: list[bytes], size: int) -> dict[str, float]:
    """CPU seconds of each stage for all pictures, of what lies between them, and of all."""
    with _counted() as spent:
        start = time.process_time()
        _answer(handler, bodies, size)
        whole = time.process_time() - start
    rest = whole - sum(spent.values())
    return {**dict.fromkeys(STAGES, 0.0), **spent, "rest": rest, "all": whole}


@contextmanager
def _counted() -> Iterator[dict[str, float]]:
    _Cpu.spent = {}
    with mock.patch.object(task, "Stages", _Cpu):
        yield _Cpu.spent


def _answer(handler: Handler, bodies: list[bytes], size: int) -> None:
    for start in range(0, len(bodies), size):
        handler.answer(bodies[start : start + size])


def _functions(handler: Handler, bodies: list[bytes], size: int, count: int) -> None:
    profile = cProfile.Profile(time.process_time)
    with _counted():
        profile.runcall(_answer, handler, bodies, size)
    pstats.Stats(profile).sort_stats("tottime").print_stats(count)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
