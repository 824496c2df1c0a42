"""Malformed requests sent to a real server by several clients at once, and a picture among them."""

from __future__ import annotations

import json
import threading
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue
from typing import Any

import psutil
from malformed import Case

from handlers.errors import ServerError
from marsmith.client import Client, Reply
from marsmith.grpc_client import GrpcClient
from marsmith.processes import Running

MODEL = "cifar_net_shapes"
# The shipped limit of a batch: whoever waits longer has lost a worker.
TIMEOUT = 60.0


@dataclass(frozen=True)
class Neighbour:
    """A picture that is whole, and what the model answers to it."""

    picture: bytes = field(repr=False)
    answer: Any


@dataclass
class Seen:
    """What came back: statuses of malformed requests, and what must not be, in words."""

    statuses: Counter[int] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)
    neighbours: int = 0

    def judge(self, case: Case, reply: Reply) -> None:
        """Count an answer to a malformed request: a 4xx that says why, or 200 where that may be."""
        self.statuses[reply.status] += 1
        if reply.status == 200 and not case.refused:
            return
        if not 400 <= reply.status < 500 or not says_why(reply):
            self.problems.append(f"{case.name}: {reply.status} {reply.body[:300]!r}")

    def judge_neighbour(self, neighbour: Neighbour, reply: Reply) -> None:
        """Count an answer to the whole picture."""
        self.neighbours += 1
        if reply.status != 200 or reply.json() != neighbour.answer:
            self.problems.append(f"a neighbour: {reply.status} {reply.body[:300]!r}")

    def assert_clean(self, cases: int) -> None:
        """Fail unless all ``cases`` were answered as they must be."""
        found = f"{cases} cases, {dict(self.statuses)}, {self.neighbours} neighbours"
        assert not self.problems, "\n".join([found, *self.problems[:20]])
        assert sum(self.statuses.values()) == cases, found
        print(found)


def says_why(reply: Reply) -> bool:
    """Whether an error is JSON with its own status, a type and one line of moderate length."""
    fields = json.loads(reply.body)
    message = fields["message"]
    return (
        fields["code"] == reply.status
        and bool(fields["type"])
        and 10 < len(message) < 1000
        and len(reply.body) < 5000
        and "\n" not in message
    )


def flood(
    running: Running, cases: Sequence[Case], neighbour: Neighbour, *, rest: int = 6, grpc: int = 2
) -> Seen:
    """Send all ``cases`` by ``rest`` + ``grpc`` clients side by side, each asking the whole picture
    before every fourth. Headers do not exist in gRPC: its clients take the cases without any."""
    seen = Seen()
    queues: dict[type, SimpleQueue[Case]] = {Client: SimpleQueue(), GrpcClient: SimpleQueue()}
    for number, case in enumerate(cases):
        over_grpc = grpc and not case.headers and number % 4 == 0
        queues[GrpcClient if over_grpc else Client].put(case)

    def work(kind: type[Client] | type[GrpcClient]) -> None:
        count = 0
        with kind.of(running, timeout=TIMEOUT) as client:
            while True:
                try:
                    case = queues[kind].get_nowait()
                except Empty:
                    return
                try:
                    if count % 4 == 0:
                        seen.judge_neighbour(neighbour, _ask(client, neighbour.picture, {}))
                    count += 1
                    seen.judge(case, _ask(client, case.body, case.headers))
                except (ServerError, ValueError, KeyError) as error:
                    seen.problems.append(f"{case.name}: {type(error).__name__}: {error}")

    kinds = [Client] * rest + [GrpcClient] * grpc
    threads = [threading.Thread(target=work, args=(kind,)) for kind in kinds]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return seen


def _ask(client: Client | GrpcClient, body: bytes, headers: dict[str, str]) -> Reply:
    if isinstance(client, GrpcClient):
        return client.predict(MODEL, {"data": body})
    # As bytes, for text outside ASCII would not be sent at all
    sent: Any = {name: value.encode("latin-1") for name, value in headers.items()}
    return client.predict(MODEL, body, headers=sent)


def worker(client: Client) -> psutil.Process:
    """The one worker of the model."""
    (found,) = client.describe(MODEL)[0]["workers"]
    return psutil.Process(found["pid"])
