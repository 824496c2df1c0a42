"""A server under load for a long time: what grows, what fails, and whether an answer is wrong.

``python -m benchmarks.soak [--minutes 60] [--load 0.7] [--kill-every S] [--model NAME]`` serves our
archive, measures what it can do, asks a share of that in an open loop (Poisson arrivals), compares
every answer with the one that the picture got alone, and samples memory, descriptors and threads of
the front end and the workers. ``--kill-every`` kills a worker so often and times its successor.
"""

from __future__ import annotations

import json
import random
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import click
import psutil
from rich.console import Console
from rich.table import Table

from benchmarks.serving import loads
from benchmarks.serving.contenders.ours import Ours
from benchmarks.serving.machine import describe
from benchmarks.serving.processes import marked
from benchmarks.serving.residents import Growth, Residents, Sample, growth
from benchmarks.serving.subject import PROJECT, Subject
from handlers.errors import ServerError
from marsmith.processes import Running, is_alive
from marsmith.status import read_status

_CONNECTIONS = 32
_CAPACITY_SECONDS = 10.0
_SAMPLES = 400
_SETTLE_SECONDS = 5.0
_RECOVERY_SECONDS = 300.0


@dataclass
class Kills:
    """Workers that were killed: seconds until all workers lived again, for each."""

    every: float
    recoveries: list[float] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    @contextmanager
    def going_on(self, made: Ours, running: Running) -> Iterator[None]:
        """Kill one worker every ``every`` seconds (0: none) until the block ends."""
        ended = threading.Event()

        def loop() -> None:
            try:
                while self.every and not ended.wait(self.every):
                    self.recoveries.append(self._one(made, running))
            # It would end the thread, and nobody would hear that kills have stopped.
            except Exception as error:  # noqa: BLE001
                self.problems.append(f"{type(error).__name__}: {error}")

        thread = threading.Thread(target=loop)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()

    def _one(self, made: Ours, running: Running) -> float:
        workers = [one for one in marked(made.mark) if made.role(one) == "worker"]
        start, killed = time.monotonic(), random.choice(workers)
        killed.kill()
        while is_alive(killed.pid):
            time.sleep(0.01)
        with made.server.client() as client:
            while not all(status.ready for status in read_status(running, client)):
                if time.monotonic() - start > _RECOVERY_SECONDS:
                    raise ServerError(f"no new worker in {_RECOVERY_SECONDS:g} s")
                time.sleep(0.1)
        return time.monotonic() - start


@dataclass(frozen=True)
class Soaked:
    """What a soak found. ``ready`` are the seconds of a start, ``capacity`` requests/s."""

    ready: float
    capacity: float
    load: float
    minutes: float
    asked: dict[str, Any]
    # Descriptors by role before and after, when no client is connected: a connection is one, too.
    idle: tuple[dict[str, int], dict[str, int]]
    samples: list[Sample]
    growth: list[Growth]

    def to_json(self) -> dict[str, Any]:
        """The same as JSON values."""
        grown = [{**asdict(one), "share": one.share} for one in self.growth]
        return {**asdict(self), "growth": grown, "machine": describe()}


def _soak(made: Ours, minutes: float, load: float, warm_up: float, kills: Kills) -> Soaked:
    """Serve, measure the capacity, and ask."""
    pictures = [one.data for one in made.subject.pictures]
    began = time.monotonic()
    made.start()
    made.wait_ready(pictures[0])
    ready = time.monotonic() - began
    expected = [made.answers(made.ask(data))[0] for data in pictures]
    requests = [made.request([data]) for data in pictures]
    bodies = loads.Bodies.write(made.folder / "bodies", made.address, requests)
    found = loads.closed(bodies, _CONNECTIONS, _CAPACITY_SECONDS)
    capacity = (found["requests"] - found["failed"]) / found["seconds"]
    seconds = 60 * minutes
    click.echo(
        f"ready in {ready:.1f} s; capacity {capacity:.0f} requests/s; "
        f"asking {capacity * load:.0f}/s for {minutes:g} min"
    )
    before = _descriptors(made)
    [archive] = made.server.model_store.glob("*.mar")
    proof = {"archive": str(archive), "expected": expected}
    residents = Residents(made.mark, made.role, max(1.0, seconds / _SAMPLES))
    try:
        with kills.going_on(made, made.server.running):
            seen = loads.poisson(bodies, capacity * load, seconds, seed=1, **proof)
    finally:
        samples = residents.close()
    grown = growth(samples, warm_up * seconds)
    idle = before, _descriptors(made)
    return Soaked(ready, capacity, load, minutes, seen, idle, samples, grown)


def _descriptors(made: Ours) -> dict[str, int]:
    """Open descriptors by role, when the front end has seen that its clients have gone."""
    time.sleep(_SETTLE_SECONDS)
    counts: Counter[str] = Counter()
    for process in marked(made.mark):
        # One that ends now costs no result of an hour.
        with suppress(psutil.Error):
            counts[made.role(process)] += process.num_fds()
    return dict(counts)


def _table(grown: list[Growth], warm_up: float) -> Table:
    title = f"median of the last fifth against the first, without the first {warm_up:.0%}"
    table = Table("process", "pid", "memory MB", "growth", "descriptors", "threads", title=title)
    for one in grown:
        memory = " -> ".join(f"{size / 1e6:.1f}" for size in one.rss)
        counts = (" -> ".join(f"{n:g}" for n in each) for each in (one.descriptors, one.threads))
        table.add_row(one.role, str(one.pid), memory, f"{one.share:+.1%}", *counts)
    return table


def _words(found: Soaked, kills: Kills) -> Iterator[str]:
    asked = found.asked
    yield (
        f"{asked['requests']} requests in {asked['seconds']:.0f} s: {asked['failed']} failed "
        f"{asked['errors'] or ''}, {asked['wrong']} wrong; p50 {asked['p50']:.0f}, "
        f"p99 {asked['p99']:.0f}, max {asked['max']:.0f} ms"
    )
    before, after = found.idle
    counts = (f"{role} {before[role]} -> {after.get(role, 0)}" for role in sorted(before))
    yield f"descriptors with no client connected: {', '.join(counts)}"
    if times := sorted(kills.recoveries):
        middle = times[len(times) // 2]
        yield (
            f"{len(times)} workers killed: all lived again after {middle:.1f} s (median), "
            f"{times[-1]:.1f} s at most; a start takes {found.ready:.1f} s"
        )
    yield from kills.problems


@click.command()
@click.option("--minutes", default=60.0, show_default=True)
@click.option("--load", default=0.7, show_default=True, help="Share of the capacity.")
@click.option("--kill-every", default=0.0, help="Kill a worker every so many seconds; 0: never.")
@click.option("--model", default="mobilenet_v2_shapes", show_default=True)
@click.option("--runtime", default="openvino:fp32", show_default=True)
@click.option("--workers", default=1, show_default=True)
@click.option("--warm-up", default=0.1, show_default=True, help="Share of the time not judged.")
@click.option(
    "--out", default="build/soak.json", show_default=True, type=click.Path(path_type=Path)
)
def main(
    minutes: float,
    load: float,
    kill_every: float,
    model: str,
    runtime: str,
    workers: int,
    warm_up: float,
    out: Path,
) -> None:
    """Print what grew and what failed; the exit status is 1 where an answer was wrong."""
    subject = Subject.load(model, serving={"workers": workers})
    made, kills = Ours(runtime, subject, patience=180), Kills(kill_every)
    try:
        made.prepare()
        found = _soak(made, minutes, load, warm_up, kills)
    finally:
        made.close()
    target = PROJECT / out
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(
        json.dumps({**found.to_json(), "warm_up": warm_up, "kills": asdict(kills)}, indent=1)
        + "\n",
        encoding="utf-8",
    )
    Console().print(_table(found.growth, warm_up))
    for line in _words(found, kills):
        click.echo(line)
    click.echo(f"samples and figures: {out}")
    raise SystemExit(1 if found.asked["wrong"] or kills.problems else 0)


if __name__ == "__main__":
    main()
