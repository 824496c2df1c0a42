"""Rollouts and a rollback under load, counted by the clients.

``python -m benchmarks.rollout [--model NAME] [--share 0.5] [--seconds 120]`` builds versions of a
model that differ in the names of their labels only, so that a client can tell who answered and
whether rightly; measures what one worker can do; asks a share of that over REST and gRPC; and
meanwhile rolls out three versions, goes back once, and rolls out one that is broken.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import json
import shutil
import statistics
import tempfile
import time
import zipfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from benchmarks.asking import Counts, asking
from handlers.golden import FILE as GOLDEN
from handlers.integrity import RECORD
from marsmith import resolve
from marsmith.addresses import free_addresses
from marsmith.archive import file_name
from marsmith.build import build
from marsmith.operate import roll_back, roll_out
from marsmith.rollout import Options
from marsmith.samples import found
from marsmith.server import TorchServe
from marsmith.spec import load
from marsmith.steps import RolledBack
from marsmith.watch import Limits

PROJECT = Path(__file__).parents[1]

_THREADS = 8
_VERSIONS = ("1.0", "2.0", "3.0", "4.0")
_BROKEN = "5.0"


def _build(model: str, folder: Path) -> dict[str, Path]:
    """Archives whose labels say which version they are: ``2.0/star``."""
    path = PROJECT / "models" / f"{model}.yaml"
    own, built = resolve.labels(load(path), PROJECT), {}
    for version in (*_VERSIONS, _BROKEN):
        labels = [f"{version}/{label}" for label in own]
        spec = load(path, {"version": version, "labels": labels})
        built[version] = build(spec, PROJECT, folder, True, lambda _: None).path
    _break(built[_BROKEN])
    return built


def _break(path: Path) -> None:
    """Golden answers that the model does not give, with a record that fits them."""
    with zipfile.ZipFile(path) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    files[GOLDEN] = files[GOLDEN].replace(b'"score": 0.', b'"score": 0.0')
    files[GOLDEN] = files[GOLDEN].replace(b'"score": 1.0', b'"score": 0.5')
    record = json.loads(files[RECORD])
    record["sha256"][GOLDEN] = hashlib.sha256(files[GOLDEN]).hexdigest()
    files[RECORD] = json.dumps(record).encode()
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)


def _judge(expected: dict[bytes, Any]) -> Callable[[bytes, Any], tuple[str, bool]]:
    """Right: the labels of one version alone, in the order and with the scores of 1.0's answer.

    Raises ValueError, KeyError, TypeError or IndexError of what has another shape.
    """

    def judge(body: bytes, found: Any) -> tuple[str, bool]:
        version = str(found[0]["label"]).partition("/")[0]
        wanted = [(f"{version}/{label}", score) for label, score in expected[body]]
        right = all(
            one["label"] == label and abs(one["score"] - score) < 1e-3
            for one, (label, score) in zip(found, wanted, strict=True)
        )
        return version, right

    return judge


def _percentiles(times: list[float]) -> str:
    ranks = statistics.quantiles(times, n=100)
    return f"p50 {ranks[49] * 1e3:.0f} ms, p99 {ranks[98] * 1e3:.0f} ms"


def _change(server: TorchServe, built: dict[str, Path], counts: Counts, watch: float) -> None:
    """Three rollouts, one rollback, and one rollout that must take itself back."""
    options = Options(watch=Limits(seconds=watch), drain=60, load=120)

    def timed(name: str, proven: str, act: Callable[[Callable[[str], None]], None]) -> None:
        start = time.perf_counter()
        act(counts.switching(proven))
        print(f"{name}: {time.perf_counter() - start:.1f} s", flush=True)

    for version in _VERSIONS[1:]:
        act = functools.partial(roll_out, server.running, built[version], options, False)
        timed(f"rollout {version}", version, act)
    model = built["1.0"].name.rpartition("-")[0]
    back = _VERSIONS[-2]
    timed(
        f"rollback to {back}",
        back,
        lambda say: roll_back(server.running, model, options, False, say),
    )

    def broken(say: Callable[[str], None]) -> None:
        try:
            roll_out(server.running, built[_BROKEN], options, False, say)
        except RolledBack as error:
            print(f"rolled back by itself: {error}")

    timed(f"broken {_BROKEN}", "none", broken)


@click.command()
@click.option("--model", default="mobilenet_v2_shapes", show_default=True)
@click.option("--share", default=0.5, show_default=True, help="Load by what one worker can do.")
@click.option("--seconds", default=120.0, show_default=True, help="Length of the load at least.")
@click.option("--watch", default=10.0, show_default=True, help="Seconds of each watch.")
def main(model: str, share: float, seconds: float, watch: float) -> None:
    """Print what clients counted; the exit status is 1 where anything was lost or wrong."""
    with tempfile.TemporaryDirectory() as folder:
        home, away = Path(folder) / "home", Path(folder) / "away"
        (home / "model-store").mkdir(parents=True)
        away.mkdir()
        built = _build(model, away)
        first = home / "model-store" / file_name(model, "1.0")
        first.write_bytes(built["1.0"].read_bytes())
        config = {**free_addresses(), "enable_model_api": "true", "model_store": "model-store"}
        server = TorchServe(home, config_file=PROJECT / "config.properties", config=config)
        try:
            with server:
                server.wait_ready()
                raise SystemExit(_measure(server, built, model, share, seconds, watch))
        finally:
            shutil.rmtree(server.temp, ignore_errors=True)


def _measure(
    server: TorchServe,
    built: dict[str, Path],
    model: str,
    share: float,
    seconds: float,
    watch: float,
) -> int:
    samples = PROJECT / load(PROJECT / "models" / f"{model}.yaml").samples
    pictures = [path.read_bytes() for path in found(samples)]
    with server.client() as client:
        answers = {picture: client.predict(model, picture).json() for picture in pictures}
    expected = {
        picture: [(one["label"].partition("/")[2], one["score"]) for one in answer]
        for picture, answer in answers.items()
    }
    asked: dict[str, Any] = {
        "threads": _THREADS,
        "model": model,
        "judge": _judge(expected),
        "bodies": lambda thread, count: pictures[(thread + count) % len(pictures)],
    }
    with asking(server.running, "1.0", pause=0, **asked) as most:
        time.sleep(10)
    capacity = len(most.times) / 10
    pause = _THREADS / (capacity * share)
    print(f"capacity {capacity:.0f} requests/s; asked {capacity * share:.0f}/s, half over gRPC")
    with asking(server.running, "1.0", pause=pause, **asked) as steady:
        time.sleep(15)
    print(f"before: {_percentiles([took for _, took in steady.times])}")
    start = time.perf_counter()
    with asking(server.running, "1.0", pause=pause, **asked) as counts:
        _change(server, built, counts, watch)
        time.sleep(max(0.0, start + seconds - time.perf_counter()))
    spent = time.perf_counter() - start
    print(f"during: {_percentiles([took for _, took in counts.times])}")
    problems = counts.problems
    kinds = Counter(problem.partition(":")[0] for problem in problems)
    total = sum(counts.versions.values()) + len(problems)
    print(f"{total} requests in {spent:.0f} s ({total / spent:.0f}/s): {dict(counts.versions)}")
    print(
        f"{kinds['failed']} failed, {kinds['wrong']} wrong, {kinds['unproven']} by an unproven"
        f" version, {kinds['late']} by one that was replaced"
    )
    for problem in itertools.islice(problems, 5):
        print(f"  {problem}")
    return 1 if problems else 0


if __name__ == "__main__":
    main()
