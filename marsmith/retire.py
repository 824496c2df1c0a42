"""Fewer workers without a lost request: a worker is ended while it holds none.

TorchServe ends the last worker of a version at once: the requests in it are answered with 500,
asked again of another worker, or both. So that worker is made to wait on a describe call first,
which is a batch of its own (see ``handlers.hold``).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from handlers import hold
from handlers.errors import ServerError
from marsmith.client import Client
from marsmith.drain import Queue, QueueFull
from marsmith.environment import temp_folder
from marsmith.processes import Running, is_alive
from marsmith.status import live_workers

CANNOT = "the handlers in this archive cannot make a worker wait before it is ended: build it again"


def scale_down(
    running: Running,
    model: str,
    version: str,
    workers: int,
    seconds: float,
    kind: type[Client] = Client,
) -> None:
    """End workers of a version until ``workers`` are left, each while it holds no request.

    Raises ServerError where that takes more than ``seconds`` for one of them, and ``CANNOT`` where
    its archive was built without ``handlers.hold``.
    """
    with kind.of(running, timeout=seconds) as client:
        queue = Queue(client, model, version)
        while len(found := queue.describe()["workers"]) > workers:
            # TorchServe ends the last of them
            last = int(found[-1]["pid"])
            if last not in live_workers({"workers": found}):
                _end(client, queue, len(found) - 1, last, seconds)
                continue
            with _held(running, queue, last, seconds):
                _end(client, queue, len(found) - 1, last, seconds)


def _end(client: Client, queue: Queue, left: int, pid: int, seconds: float) -> None:
    problem = ""
    try:
        client.scale(queue.model, left, version=queue.version)
    except ServerError as error:
        # TorchServe may stumble over its own threads there after it has done what was asked
        problem = str(error)
    deadline = time.monotonic() + seconds
    while is_alive(pid) or len(queue.describe()["workers"]) > left:
        if time.monotonic() > deadline:
            raise ServerError(
                f"worker {pid} of {queue.model} {queue.version} does not end: {problem}"
            )
        time.sleep(0.05)


@contextmanager
def _held(running: Running, queue: Queue, pid: int, seconds: float) -> Iterator[None]:
    """Enter when a worker waits, holding nothing but a describe call of ours."""
    folder = temp_folder(running.home)
    asked, held = hold.asked(folder, pid), hold.held(folder, pid)
    # Left by somebody who was killed, it would say that a worker waits that does not
    held.unlink(missing_ok=True)
    asked.touch(mode=0o600)
    try:
        _ask_until(running, queue, held.exists, seconds)
        yield
    finally:
        asked.unlink(missing_ok=True)
        held.unlink(missing_ok=True)


def _ask_until(running: Running, queue: Queue, done: Callable[[], bool], seconds: float) -> None:
    """Send describe calls, one after the other, until one is being held."""
    deadline = time.monotonic() + seconds
    while not done():
        # It waits its turn behind all requests in the queue.
        asking = _Asking(running, queue, max(2 * hold.SECONDS, deadline - time.monotonic()))
        asking.start()
        while asking.is_alive() and not done() and time.monotonic() < deadline:
            time.sleep(0.005)
        if done():
            return
        if time.monotonic() >= deadline:
            raise ServerError(
                f"no worker of {queue.model} {queue.version} to be ended became free within"
                f" {seconds:g} s: its queue is too long"
            )
        asking.check()
        time.sleep(0.01)


class _Asking(threading.Thread):
    """One describe call, which the worker that is to end holds back."""

    def __init__(self, running: Running, queue: Queue, seconds: float) -> None:
        # Its answer may never come, for TorchServe ends the worker meanwhile
        super().__init__(daemon=True)
        self._running = running
        self._queue = queue
        self._seconds = seconds
        self._worker: int | None = None
        self._problem: ServerError | None = None

    def run(self) -> None:
        try:
            with Client.of(self._running, timeout=self._seconds) as client:
                other = Queue(client, self._queue.model, self._queue.version)
                self._worker = other.ask_worker()
        except ServerError as error:
            self._problem = error

    def check(self) -> None:
        """Raise what went wrong with a call that was answered; a full queue may have room later."""
        if isinstance(self._problem, QueueFull):
            return
        if self._problem:
            raise self._problem
        if self._worker is None:
            raise ServerError(f"{self._queue.model} {self._queue.version}: {CANNOT}")
