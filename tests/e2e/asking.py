"""Clients that ask all the time and count: failed, wrong, and answered by an unproven version."""

from __future__ import annotations

import itertools
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from proven import answer

from handlers.errors import MarsmithError
from marsmith.client import Client
from marsmith.grpc_client import GrpcClient
from marsmith.processes import Running


@dataclass
class Counts:
    """What clients saw; ``versions`` by who answered, ``problems`` in words."""

    versions: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)
    # Versions that may answer; the operator adds one when it is proven.
    proven: set[str] = field(default_factory=set)

    def note(self, body: bytes, reply: Any) -> None:
        """Count one reply."""
        if not reply.ok:
            self.problems.append(f"failed: {reply.problem()}")
            return
        version = reply.json()[0]["label"]
        if version not in self.proven:
            self.problems.append(f"unproven: {version}")
        elif reply.json() != answer(version, body):
            self.problems.append(f"wrong: {reply.json()}")
        else:
            self.versions[version] += 1


@contextmanager
def asking(
    running: Running, proven: str, threads: int = 4, pause: float = 0.01, model: str = "m"
) -> Iterator[Counts]:
    """Ask the default version over REST and gRPC from as many threads each as half of ``threads``.

    Every reply counts until the block ends and the last request is answered.
    """
    counts, stop = Counts(proven={proven}), threading.Event()

    def loop(kind: type[Client] | type[GrpcClient], number: int) -> None:
        with kind.of(running, timeout=30) as client:
            for count in itertools.count():
                body = f"{kind.__name__} {number} {count}".encode()
                sent: Any = body if isinstance(client, Client) else {"data": body}
                try:
                    counts.note(body, client.predict(model, sent))
                except MarsmithError as error:
                    counts.problems.append(f"failed: {error}")
                if stop.is_set():
                    return
                time.sleep(pause)

    kinds = [(Client, GrpcClient)[index % 2] for index in range(threads)]
    pool = [threading.Thread(target=loop, args=pair) for pair in zip(kinds, range(threads))]  # noqa: B905
    for thread in pool:
        thread.start()
    try:
        yield counts
    finally:
        stop.set()
        for thread in pool:
            thread.join()
