"""Clients that ask all the time and count: failed, wrong, and answered by a version that may not.

That is one that is not proven yet, or one that is not the default version any more.
"""

from __future__ import annotations

import functools
import itertools
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from handlers.errors import MarsmithError
from marsmith.client import Client, Reply
from marsmith.grpc_client import GrpcClient
from marsmith.processes import Running

Judge = Callable[[bytes, Any], tuple[str, bool]]
"""(what was asked, the answer) -> the version that answered, and whether it answered rightly."""


@dataclass
class Counts:
    """What clients saw: right answers by version, problems in words, and (start, seconds) each."""

    judge: Judge
    # Versions that may answer; the operator adds one when it is proven.
    proven: set[str]
    # Since when (of perf_counter) which one alone may answer what is asked
    alone: tuple[float, str] | None = None
    versions: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)
    times: list[tuple[float, float]] = field(default_factory=list)

    def switching(self, version: str) -> Callable[[str], None]:
        """Listens to a rollout: from when on its version may answer, and from when on no other.

        Not for one that fails once it is the default version, which tells of its way back too late.
        """

        def say(line: str) -> None:
            if line.startswith("make "):
                self.proven.add(version)
                self.alone = None
            if line.startswith("watch "):
                self.alone = time.perf_counter(), version

        return say

    def ask(self, predict: Callable[[], Reply], body: bytes) -> None:
        """Ask once, and count."""
        start = time.perf_counter()
        try:
            reply = predict()
            if not reply.ok:
                self.problems.append(f"failed: {reply.problem()}")
                return
            found = reply.json()
        except MarsmithError as error:
            self.problems.append(f"failed: {error}")
            return
        wrong = f"wrong: {reply.body[:200]!r} to {body[:50]!r}"
        try:
            version, right = self.judge(body, found)
        # Another shape than the model's is a wrong answer, too.
        except (ValueError, KeyError, TypeError, IndexError):
            self.problems.append(wrong)
            return
        self.times.append((start, time.perf_counter() - start))
        since, alone = self.alone or (start, version)
        if version not in self.proven:
            self.problems.append(f"unproven: {version}")
        elif start > since and version != alone:
            self.problems.append(f"late: {version}, {start - since:.3f} s after {alone}")
        elif not right:
            self.problems.append(wrong)
        else:
            self.versions[version] += 1


@contextmanager
def asking(
    running: Running,
    proven: str,
    *,
    threads: int = 4,
    pause: float = 0.01,
    model: str = "m",
    bodies: Callable[[int, int], bytes] = lambda thread, count: f"{thread} {count}".encode(),
    judge: Judge,
) -> Iterator[Counts]:
    """Ask the default version, with every other of ``threads`` over REST and the rest over gRPC.

    Each starts a request every ``pause`` seconds, or as soon as the one before is answered, where
    that takes longer. Every reply counts until the block ends and the last request is answered.
    """
    counts, stop = Counts(judge, {proven}), threading.Event()

    def loop(kind: type[Client] | type[GrpcClient], number: int) -> None:
        due = time.perf_counter() + pause * number / threads
        with kind.of(running, timeout=30) as client:
            for count in itertools.count():
                body = bodies(number, count)
                sent: Any = body if isinstance(client, Client) else {"data": body}
                stop.wait(max(0.0, due - time.perf_counter()))
                due = max(due + pause, time.perf_counter())
                counts.ask(functools.partial(client.predict, model, sent), body)
                if stop.is_set():
                    return

    loops = [
        functools.partial(loop, (Client, GrpcClient)[number % 2], number)
        for number in range(threads)
    ]
    with at_work(loops, stop):
        yield counts


@contextmanager
def at_work(loops: Sequence[Callable[[], None]], stop: threading.Event) -> Iterator[None]:
    """Run each loop in a thread; at the end ``stop`` is set, and they are waited for."""
    pool = [threading.Thread(target=loop) for loop in loops]
    for thread in pool:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        for thread in pool:
            thread.join()
