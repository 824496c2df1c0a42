"""Workers of a version between a least and a most number, by how long requests wait for one.

TorchServe has two numbers, too, and never moves between them by itself. The time that a request
waits is told by Little's law (J. D. C. Little, "A Proof for the Queuing Formula L = lambda W",
Operations Research, 1961) from what TorchServe tells of both REST and gRPC: mean queue length /
arrivals per second.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from handlers.errors import ServerError
from marsmith import journal
from marsmith.client import Client
from marsmith.drain import Queue, arrivals
from marsmith.processes import Running, is_alive
from marsmith.retire import scale_down
from marsmith.status import describe, live_workers

_SAMPLES = 10
_MOST_CALM = 16


@dataclass(frozen=True)
class Policy:
    """When to change the number of workers; ``up`` and ``down`` are seconds of waiting.

    One more worker at once where requests wait longer than ``up``; one less where for ``calm``
    rounds in turn they waited less than ``down``.
    """

    least: int
    most: int
    up: float = 0.1
    down: float = 0.005
    calm: int = 5


class Decider:
    """What a policy makes of one round after the other.

    A worker that is missed as soon as it is gone doubles the calm rounds before the next one goes,
    up to sixteen times, so that a steady load does not swing.
    """

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        self._calm = 0
        self._rounds_since_down: int | None = None
        self._patience = 1

    def decide(self, workers: int, waited: float) -> int:
        """The number of workers wanted, one from ``workers`` at most, but for the bounds."""
        policy = self._policy
        if self._rounds_since_down is not None:
            self._rounds_since_down += 1
        self._calm = self._calm + 1 if waited < policy.down else 0
        if not policy.least <= workers <= policy.most:
            return min(max(workers, policy.least), policy.most)
        if waited > policy.up and workers < policy.most:
            if self._rounds_since_down is not None and self._rounds_since_down <= policy.calm:
                self._patience = min(2 * self._patience, _MOST_CALM)
            return workers + 1
        if self._calm >= policy.calm * self._patience and workers > policy.least:
            self._calm = self._rounds_since_down = 0
            return workers - 1
        return workers


@dataclass(frozen=True)
class Seen:
    """One round: mean number of waiting requests, requests per second, seconds that they wait."""

    queue: float
    rate: float

    @property
    def waited(self) -> float:
        """By Little's law; endless where some wait and none came, as with no living worker."""
        if self.queue and not self.rate:
            return float("inf")
        return self.queue / self.rate if self.rate else 0.0

    def __str__(self) -> str:
        wait = self.waited
        told = f"wait {wait * 1e3:.0f} ms" if wait < float("inf") else "nothing moves"
        return f"{self.rate:.1f} requests/s, {self.queue:.1f} queued, {told}"


def look(
    queue: Queue,
    interval: float,
    *,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> Seen:
    """Watch a default version's queue for ``interval`` seconds."""
    start, before = clock(), _came(queue)
    lengths = []
    for _ in range(_SAMPLES):
        sleep(interval / _SAMPLES)
        lengths.append(queue.pending())
    return Seen(sum(lengths) / len(lengths), (_came(queue) - before) / (clock() - start))


def _came(queue: Queue) -> float:
    text = queue.client.metrics()
    return sum(arrivals(text, queue.model, name) for name in ("default", queue.version))


def step(
    running: Running, queue: Queue, decider: Decider, seen: Seen, seconds: float
) -> Iterable[str]:
    """Do what a round asks for; tells what. ``seconds`` are for a worker to load or to end.

    Not while versions change: new workers would take the cores from those that a rollout watches.
    """
    found = queue.describe()
    workers = len(found["workers"])
    wanted = decider.decide(workers, seen.waited)
    name = f"{queue.model} {queue.version}"
    yield f"{name}: {seen}, {len(live_workers(found))} of {workers} workers live"
    if wanted == workers:
        return
    yield f"{name}: {workers} -> {wanted} workers"
    try:
        with journal.exclusive(running.home):
            if wanted < workers:
                scale_down(running, queue.model, queue.version, wanted, seconds)
            else:
                queue.client.scale(queue.model, wanted, version=queue.version, timeout=seconds)
    except ServerError as error:
        # The next round sees what came of it and may try again
        yield f"{name}: not scaled: {error}"


def run(
    running: Running,
    client: Client,
    models: Sequence[str],
    policy: Policy,
    interval: float,
    go_on: Callable[[], bool],
    say: Callable[[str], None],
    seconds: float = 120.0,
    sleep: Callable[[float], None] = time.sleep,
) -> None:
    """Scale the default versions of models, each in turn watched for ``interval`` seconds.

    Raises ServerError where the server has ended.
    """
    deciders: dict[tuple[str, str], Decider] = {}
    for model in models:
        # A name that is wrong is an error at once.
        describe(client, model)
    while True:
        try:
            for model in models or client.models():
                version = client.describe(model)[0]["modelVersion"]
                queue = Queue(client, model, version)
                decider = deciders.setdefault((model, version), Decider(policy))
                for line in step(running, queue, decider, look(queue, interval), seconds):
                    say(line)
        except ServerError as error:
            # A version may go while it is watched, and a server under load answers late.
            if not is_alive(running.pid):
                raise
            say(f"this round failed: {error}")
            sleep(interval)
        if not go_on():
            return
