"""What happened to one batch: seconds of each stage, and how many requests failed with what."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from handlers.metrics import BATCH_PICTURES, BATCH_REQUESTS, ERRORS, STAGE_SECONDS, Publisher


class Stages:
    """A clock of one batch's stages; what is timed twice is summed.

    ``failed`` counts requests by status, ``answered`` are the places in the batch of the others.
    """

    now = staticmethod(time.perf_counter)

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.failed: Counter[int] = Counter()
        self.answered: list[int] = []

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        start = self.now()
        try:
            yield
        finally:
            spent = self.now() - start
            self.seconds[name] = self.seconds.get(name, 0.0) + spent

    def publish(self, to: Publisher, requests: int, pictures: int) -> None:
        """Publish a batch of so many requests and readable pictures; a batch of none, nothing."""
        if not requests:
            return
        for name, seconds in self.seconds.items():
            to.add(STAGE_SECONDS, seconds, Stage=name)
        for status, count in self.failed.items():
            to.add(ERRORS, count, Status=str(status))
        to.add(BATCH_REQUESTS, requests)
        if pictures:
            to.add(BATCH_PICTURES, pictures)
