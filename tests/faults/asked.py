"""Clients that ask over REST all the time and sort what they get."""

from __future__ import annotations

import functools
import itertools
import json
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from benchmarks.asking import at_work
from handlers.bundle import Bundle
from handlers.errors import ServerError
from marsmith.client import Client, Reply
from marsmith.probe import task_difference
from marsmith.processes import Running


@dataclass
class Seen:
    """What clients got: ``ok`` right answers, errors by status, and what must not be.

    ``unanswered`` requests got nothing within the client's timeout, or lost their connection;
    ``unclean`` errors are not TorchServe's or our JSON; ``answered`` are the times of
    right answers (``time.monotonic``).
    """

    bundle: Bundle
    expected: Mapping[bytes, Any]
    errors: Counter[int] = field(default_factory=Counter)
    unanswered: list[str] = field(default_factory=list)
    unclean: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    answered: list[float] = field(default_factory=list)

    def ask(self, client: Client, body: bytes) -> None:
        """Ask once, and sort the answer."""
        try:
            reply = client.predict(self.bundle.name, body)
        except ServerError as error:
            self.unanswered.append(str(error))
            return
        if not reply.ok:
            self.errors[reply.status] += 1
            if not is_clean(reply):
                self.unclean.append(f"{reply.status}: {reply.body[:200]!r}")
        elif problem := task_difference(self.bundle, self.expected[body], reply.json(), 1e-3):
            self.wrong.append(problem)
        else:
            self.answered.append(time.monotonic())

    @property
    def ok(self) -> int:
        """How many right answers there were."""
        return len(self.answered)

    def longest_gap(self) -> float:
        """Seconds between two right answers, the most."""
        return max(b - a for a, b in itertools.pairwise(sorted(self.answered)))

    def words(self) -> str:
        """The counts in one line."""
        clean = sum(self.errors.values()) - len(self.unclean)
        return (
            f"{self.ok} ok, {clean} clean errors {dict(self.errors)}, {len(self.unanswered)} "
            f"unanswered, {len(self.unclean)} unclean, {len(self.wrong)} wrong"
        )


def is_clean(reply: Reply) -> bool:
    """Whether an error says in JSON what it is."""
    try:
        body = json.loads(reply.body)
    except ValueError:
        return False
    return body.get("code") == reply.status and bool(body.get("type")) and bool(body.get("message"))


@contextmanager
def under_load(
    running: Running,
    bundle: Bundle,
    expected: Mapping[bytes, Any],
    *,
    threads: int = 4,
    pause: float = 0.02,
    timeout: float = 30.0,
) -> Iterator[Seen]:
    """A closed loop of ``threads`` clients, each ``pause`` seconds after its last answer."""
    seen, stop = Seen(bundle, expected), threading.Event()
    bodies: Sequence[bytes] = list(expected)

    def loop(number: int) -> None:
        with Client.of(running, timeout=timeout) as client:
            for count in itertools.count(number):
                if stop.wait(pause):
                    return
                seen.ask(client, bodies[count % len(bodies)])

    with at_work([functools.partial(loop, number) for number in range(threads)], stop):
        yield seen
