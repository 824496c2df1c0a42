"""Whether anything is still queued or under way, which TorchServe loses when it is told to end.

TorchServe tells how many requests wait in a version's queue, and nothing of those in its workers.
A worker takes its next request only when it has answered the one before. So once the queue is
empty, a describe call that a worker answers proves that it holds nothing older, and when every
worker has answered one, nothing older is under way.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from handlers.errors import MarsmithError, ServerError
from marsmith.addresses import bind_problem, hosts, read_properties
from marsmith.client import NOT_FOUND, Client, Refused
from marsmith.processes import Running
from marsmith.status import live_workers

# For a request that the front end has accepted but not queued yet.
QUIET_SECONDS = 0.5
_PAUSE_SECONDS = 0.1
_SHORTEST_SECONDS = 0.1
# Only the front end's words tell: of a worker that cannot be described the status is 503 as well
_FULL = "has no worker to serve describe request"
_REQUESTS = re.compile(r"^ts_inference_requests_total\{(.*)\} (\S+)", re.MULTILINE)
_LABEL = re.compile(r'(\w+)="([^"]*)"')


def arrivals(metrics: str, model: str | None = None, version: str | None = None) -> float:
    """Predictions that came so far over REST and gRPC, of all models or of one version.

    TorchServe counts what names no version under the version "default".
    """
    total = 0.0
    for labels, value in _REQUESTS.findall(metrics):
        found = dict(_LABEL.findall(labels))
        if model is None or (found["model_name"], found["model_version"]) == (model, version):
            total += float(value)
    return total


class InVain(ServerError):
    """Requests wait for a version that has no workers, and gets none by itself."""


class QueueFull(ServerError):
    """No worker has got a describe call, for it found no room in the version's queue."""


@dataclass(frozen=True)
class Queue:
    """One version of a model as an operator sees it from outside."""

    client: Client
    model: str
    version: str

    def describe(self) -> dict[str, Any]:
        """TorchServe's description of this version."""
        return self.client.describe(self.model, self.version)[0]

    def pending(self) -> int:
        """How many requests wait in the queue."""
        return int(self.describe()["jobQueueStatus"]["pendingRequests"])

    def ask_worker(self, seconds: float | None = None) -> int | None:
        """The pid of a worker that has answered a describe call; None where it does not tell.

        Raises QueueFull, or ServerError where none has within ``seconds`` (default: those of the
        client) or the version is gone.
        """
        try:
            found = self.client.describe(
                self.model, self.version, customized=True, timeout=seconds
            )[0]
        except Refused as error:
            if _FULL in str(error):
                raise QueueFull(f"the queue of {self.model} {self.version} is full") from error
            if error.status == NOT_FOUND:
                raise
            # A handler that cannot be described has answered as well
            return None
        told = found.get("customizedMetadata")
        return told.get("worker") if isinstance(told, dict) else None

    def arrivals(self) -> float:
        """Predictions so far that name this version."""
        return arrivals(self.client.metrics(), self.model, self.version)


Clock = Callable[[], float]


def passed(queue: Queue, deadline: float, clock: Clock, sleep: Callable[[float], None]) -> bool:
    """Whether every live worker has answered what was queued before this call.

    Several workers whose handler does not say which of them it is cannot be told apart: TorchServe
    itself gives up on a request after its responseTimeout. Raises ServerError where that is more
    than what is left until ``deadline``.
    """
    described = queue.describe()
    left = set(live_workers(described))
    alone = len(left) == 1
    while left:
        try:
            pid = queue.ask_worker(max(deadline - clock(), _SHORTEST_SECONDS))
        except ServerError as error:
            if clock() >= deadline:
                return False
            if not isinstance(error, QueueFull):
                raise
            sleep(_PAUSE_SECONDS)
            continue
        if alone:
            return True
        if pid is None:
            seconds = described["responseTimeout"]
            if clock() + seconds > deadline:
                raise ServerError(
                    f"not known to be drained: workers of {queue.model} {queue.version} do not say"
                    f" when they are free, which takes {seconds} s, its responseTimeout, at most"
                )
            sleep(seconds)
            return True
        left.discard(pid)
        left.intersection_update(live_workers(queue.describe()))
        if clock() > deadline:
            return not left
    return True


def silent_workers(
    queue: Queue,
    seconds: float,
    clock: Clock = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> set[int]:
    """The pids of live workers of which none has answered a call within ``seconds``.

    Who hangs takes a call and keeps it, or none at all. Workers whose handler does not say which
    of them it is cannot be told apart: nobody is silent then.
    """
    left = set(live_workers(queue.describe()))
    deadline = clock() + seconds
    while left and clock() < deadline:
        try:
            pid = queue.ask_worker(max(deadline - clock(), _SHORTEST_SECONDS))
        except ServerError:
            # One that hangs has kept this call; another may still answer the next
            sleep(_PAUSE_SECONDS)
            continue
        if pid is None:
            return set()
        left.discard(pid)
        left.intersection_update(live_workers(queue.describe()))
        sleep(_PAUSE_SECONDS if left else 0)
    return left


def drain(
    queues: Sequence[Queue],
    arrived: Callable[[], float],
    seconds: float,
    *,
    clock: Clock = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> None:
    """Wait until nothing is queued or under way and, by ``arrived``, nothing comes any more.

    Raises ServerError after ``seconds``, and when all else is drained where requests wait for a
    version that was scaled to no workers: they wait for ever.
    """
    deadline = clock() + seconds
    lost = {queue: count for queue in queues if (count := _waiting_in_vain(queue))}
    queues = [queue for queue in queues if queue not in lost]
    while True:
        before = arrived()
        sleep(QUIET_SECONDS)
        waiting = sum(queue.pending() for queue in queues)
        if (
            not waiting
            and all(passed(queue, deadline, clock, sleep) for queue in queues)
            and not sum(queue.pending() for queue in queues)
            and arrived() == before
        ):
            break
        if clock() >= deadline:
            came = int(arrived() - before)
            raise ServerError(
                f"not drained within {seconds:g} s: {waiting} requests wait, {came} came in the"
                f" last {QUIET_SECONDS:g} s, and others may be under way"
            )
        sleep(_PAUSE_SECONDS)
    if lost:
        names = ", ".join(f"{queue.model} {queue.version}" for queue in lost)
        raise InVain(
            f"not drained: {sum(lost.values())} requests wait for {names}, which was scaled to no "
            "workers"
        )


def _waiting_in_vain(queue: Queue) -> int:
    """How many requests wait for a version that was scaled to no workers."""
    found = queue.describe()
    none = not found["minWorkers"] and not found["workers"]
    return int(found["jobQueueStatus"]["pendingRequests"]) if none else 0


def drain_version(client: Client, model: str, version: str, seconds: float) -> None:
    """Drain a version that is not the default one; raises ServerError."""
    queue = Queue(client, model, version)
    try:
        drain([queue], queue.arrivals, seconds)
    except InVain as error:
        advice = "`marsmith scale` it, or give them up with --drain-timeout 0"
        raise ServerError(f"{model} {version} is {error}: {advice}") from error
    except ServerError as error:
        raise ServerError(f"{model} {version} is {error}") from error


def remove_version(client: Client, model: str, version: str, seconds: float) -> str:
    """Drain a version that is not the default one, then unregister it; raises ServerError.

    With no ``seconds`` it is not drained.
    """
    if seconds:
        drain_version(client, model, version, seconds)
    return client.unregister(model, version)


def drain_server(client: Client, seconds: float) -> None:
    """Drain all versions of all models; raises ServerError where requests keep coming."""
    queues = [
        Queue(client, model, found["modelVersion"])
        for model in client.models()
        for found in client.describe(model, "all")
    ]
    drain(queues, lambda: arrivals(client.metrics()), seconds)


def drain_before_stop(running: Running, seconds: float, tell: Callable[[str], None]) -> None:
    """Drain a server that is to be stopped; where that fails ``tell`` gets the reason in a line."""
    try:
        if not _listens(running):
            url = running.addresses.inference
            tell(f"nothing to wait for: {url} takes no connections yet, or no more")
            return
        with Client.of(running) as client:
            drain_server(client, seconds)
    except MarsmithError as error:
        tell(f"stopping all the same: {error}")


def _listens(running: Running) -> bool:
    """Whether somebody has the port of predictions; True where they come over a socket's file."""
    place = hosts(read_properties(running.config)).get("inference")
    return place is None or bind_problem(place[0], place[1]) is not None
