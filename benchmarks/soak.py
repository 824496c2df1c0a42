"""A server under load for a long time: what grows, what fails, and whether an answer is wrong.

``python -m benchmarks.soak [--minutes 60] [--load 0.7] [--kill-every S] [--model NAME]`` serves our
archive, measures what it can do, asks a share of that in an open loop (Poisson arrivals), compares
every answer with the one that the picture got alone, and samples memory, descriptors and threads of
the front end and the workers. ``--kill-every`` kills a worker so often and times its successor;
``--rate`` asks so many requests/s without measuring, which needs no wrk. What is beyond the limits
is said at the end, and the exit status is 1 then.
"""

from __future__ import annotations

import json
import random
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import urlsplit

import click
import psutil  # type: ignore[import-untyped]
from rich.console import Console

from benchmarks.serving import loads
from benchmarks.serving.contenders.ours import Ours
from benchmarks.serving.processes import marked
from benchmarks.serving.residents import Residents, growth
from benchmarks.serving.soaked import Kills, Limits, Soaked
from benchmarks.serving.subject import PROJECT, Subject
from handlers.errors import ServerError
from marsmith.processes import Running
from marsmith.status import read_status

_LOAD = 0.7
_CONNECTIONS = 32
_CAPACITY_SECONDS = 10.0
_SAMPLES = 400
_SETTLE_SECONDS = 30.0
_RECOVERY_SECONDS = 300.0


@contextmanager
def _killing(kills: Kills, made: Ours, running: Running) -> Iterator[None]:
    """Kill one worker every ``kills.every`` seconds (0: none) until the block ends."""
    ended = threading.Event()

    def loop() -> None:
        try:
            while kills.every and not ended.wait(kills.every):
                kills.recoveries.append(_kill_one(made, running))
        # It would end the thread, and nobody would hear that kills have stopped.
        except Exception as error:  # noqa: BLE001
            kills.problems.append(f"{type(error).__name__}: {error}")

    thread = threading.Thread(target=loop)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _kill_one(made: Ours, running: Running) -> float:
    """Kill a worker; the seconds until all lived again."""
    workers = [one for one in marked(made.mark) if made.role(one) == "worker"]
    start, killed = time.monotonic(), random.choice(workers)
    killed.kill()
    psutil.wait_procs([killed], timeout=_RECOVERY_SECONDS)
    with made.server.client() as client:
        while not all(status.ready for status in read_status(running, client)):
            if time.monotonic() - start > _RECOVERY_SECONDS:
                raise ServerError(f"no new worker in {_RECOVERY_SECONDS:g} s")
            time.sleep(0.1)
    return time.monotonic() - start


def _soak(
    made: Ours, minutes: float, load: float, rate: float | None, warm_up: float, kills: Kills
) -> Soaked:
    """Serve, measure the capacity where no rate is given, and ask."""
    pictures = [one.data for one in made.subject.pictures]
    began = time.monotonic()
    made.start()
    made.wait_ready(pictures[0])
    ready = time.monotonic() - began
    click.echo(f"ready in {ready:.1f} s")
    expected = [made.answers(made.ask(data))[0] for data in pictures]
    requests = [made.request([data]) for data in pictures]
    bodies = loads.Bodies.write(made.folder / "bodies", made.address, requests)
    capacity = None
    if rate is None:
        capacity = _capacity(bodies)
        rate = capacity * load
    else:
        _connect(made, pictures)
    seconds = 60 * minutes
    click.echo(f"asking {rate:.0f} requests/s for {minutes:g} min")
    before = _descriptors(made)
    [archive] = made.server.model_store.glob("*.mar")
    proof = {"archive": str(archive), "expected": expected}
    residents = Residents(made.mark, made.role, max(1.0, seconds / _SAMPLES))
    try:
        with _killing(kills, made, made.server.running):
            seen = loads.poisson(bodies, rate, seconds, seed=1, **proof)
    finally:
        samples = residents.close()
    grown = growth(samples, warm_up * seconds, warm_up * seconds + 2 * ready)
    idle = before, _descriptors(made)
    return Soaked(ready, capacity, rate, minutes, seen, idle, samples, grown, kills)


def _capacity(bodies: loads.Bodies) -> float:
    """What the server can do, in requests/s."""
    found = loads.closed(bodies, _CONNECTIONS, _CAPACITY_SECONDS)
    capacity = float((found["requests"] - found["failed"]) / found["seconds"])
    click.echo(f"capacity {capacity:.0f} requests/s")
    return capacity


def _connect(made: Ours, pictures: Sequence[bytes]) -> None:
    """Ask side by side as the capacity's clients do: the front end opens what it keeps for them."""
    with ThreadPoolExecutor(_CONNECTIONS) as pool:
        list(pool.map(made.ask, pictures))


def _descriptors(made: Ours) -> dict[str, int]:
    """Open descriptors by role, when the front end has seen that its clients have gone."""
    deadline = time.monotonic() + _SETTLE_SECONDS
    port = urlsplit(made.address.url).port
    while time.monotonic() < deadline and any(
        _connections(process, port) for process in marked(made.mark)
    ):
        time.sleep(0.5)
    counts: Counter[str] = Counter()
    for process in marked(made.mark):
        # One that ends now costs no result of an hour.
        with suppress(psutil.Error, OSError):
            counts[made.role(process)] += process.num_fds()
    return dict(counts)


def _connections(process: psutil.Process, port: int | None) -> int:
    """How many clients a process has at a port, also those that have gone unnoticed."""
    with suppress(psutil.Error, OSError):
        open_ones = [one for one in process.net_connections("tcp") if one.raddr]
        return sum(one.laddr.port == port for one in open_ones)
    return 0


@click.command()
@click.option("--minutes", default=60.0, show_default=True)
@click.option("--load", type=float, help=f"Share of the capacity.  [default: {_LOAD}]")
@click.option("--rate", type=float, help="Requests/s, instead of a share of the capacity.")
@click.option("--kill-every", default=0.0, help="Kill a worker every so many seconds; 0: never.")
@click.option("--model", default="mobilenet_v2_shapes", show_default=True)
@click.option("--runtime", default="openvino:fp32", show_default=True)
@click.option("--workers", default=1, show_default=True)
@click.option("--pictures", default=200, show_default=True, help="How many differ.")
@click.option("--warm-up", default=0.1, show_default=True, help="Share of the time not judged.")
@click.option(
    "--max-growth",
    default=0.02,
    show_default=True,
    help="Share by which memory may grow; below half an hour Java's heap has not settled.",
)
@click.option(
    "--max-failed",
    default=0.001,
    show_default=True,
    help="Share of requests that may fail, beside those that a killed worker had.",
)
@click.option(
    "--max-descriptors",
    default=4,
    show_default=True,
    help="How many more may be open in the end when no client is connected.",
)
@click.option(
    "--slack",
    default=10.0,
    show_default=True,
    help="Seconds that workers may take to live again beside twice what a start takes.",
)
@click.option(
    "--out", default="build/soak.json", show_default=True, type=click.Path(path_type=Path)
)
def main(
    minutes: float,
    load: float | None,
    rate: float | None,
    kill_every: float,
    model: str,
    runtime: str,
    workers: int,
    pictures: int,
    warm_up: float,
    max_growth: float,
    max_failed: float,
    max_descriptors: int,
    slack: float,
    out: Path,
) -> None:
    """Print what grew and what failed; the exit status is 1 where that is beyond the limits."""
    if rate is not None and load is not None:
        raise click.UsageError("--rate takes the place of --load: give one of them")
    subject = Subject.load(model, count=pictures, serving={"workers": workers})
    batch = subject.spec.serving.batch_size
    limits = Limits(max_growth, max_failed, max_descriptors, slack, batch)
    made = Ours(runtime, subject, patience=180)
    try:
        made.prepare()
        found = _soak(made, minutes, load or _LOAD, rate, warm_up, Kills(kill_every))
    finally:
        made.close()
    problems = list(found.problems(limits))
    target = PROJECT / out
    target.parent.mkdir(parents=True, exist_ok=True)
    written = {**found.to_json(), "warm_up": warm_up, "problems": problems}
    target.write_text(json.dumps(written, indent=1) + "\n", encoding="utf-8")
    Console().print(found.table(warm_up))
    for line in found.words():
        click.echo(line)
    for problem in problems:
        click.echo(f"beyond its limit: {problem}")
    click.echo(f"samples and figures: {out}")
    raise SystemExit(1 if problems else 0)


if __name__ == "__main__":
    main()
