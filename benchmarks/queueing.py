"""What waiting in a queue alone does to latency: the bound of any server that takes batches.

``python -m benchmarks.queueing --alone 9 --full 40 [--batch 8] [--servers 1] [--overhead 3]
[--share 0.6]`` simulates Poisson arrivals at a share of the capacity of full batches, and servers
(workers) of which none is idle while somebody waits: one takes all who wait, at most a batch, and
is busy for a time that grows evenly from that of one picture to that of a full batch. Times are in
milliseconds, those of servers that are busy at once; ``--overhead`` is what a request takes beside
the network and holds nobody else up.
"""

from __future__ import annotations

import heapq
import random
from dataclasses import dataclass

import click
import numpy as np

REQUESTS = 200_000


@dataclass(frozen=True)
class Server:
    """Milliseconds for one picture ``alone``, for a ``full`` batch of ``batch``, and beside it.

    ``count`` of them share one queue.
    """

    alone: float
    full: float
    batch: int = 8
    overhead: float = 0.0
    count: int = 1

    @property
    def capacity(self) -> float:
        """Requests per second of all in full batches."""
        return 1000 * self.count * self.batch / self.full

    def busy(self, pictures: int) -> float:
        """Milliseconds for a batch of so many pictures."""
        if self.batch == 1:
            return self.alone
        each = (self.full - self.alone) / (self.batch - 1)
        return self.alone + each * (pictures - 1)


def latencies(server: Server, share: float, requests: int = REQUESTS, seed: int = 0) -> list[float]:
    """Milliseconds from arrival to answer, in the order of arrival; ``share`` is below 1."""
    chance = random.Random(seed)
    now, arrivals = 0.0, []
    for _ in range(requests):
        now += chance.expovariate(share * server.capacity / 1000)
        arrivals.append(now)
    found: list[float] = []
    free = [0.0] * server.count
    while len(found) < requests:
        first = len(found)
        start, last = max(free[0], arrivals[first]), first + 1
        while last < min(requests, first + server.batch) and arrivals[last] <= start:
            last += 1
        end = start + server.busy(last - first)
        heapq.heapreplace(free, end)
        found += [end - arrival + server.overhead for arrival in arrivals[first:last]]
    return found


@click.command()
@click.option("--alone", type=float, required=True, help="ms of the network for one picture.")
@click.option("--full", type=float, required=True, help="ms of the network for a full batch.")
@click.option("--batch", default=8, show_default=True)
@click.option("--servers", type=click.IntRange(1), default=1, show_default=True, help="Workers.")
@click.option("--overhead", default=0.0, show_default=True, help="ms a request takes beside it.")
@click.option("--share", default=0.6, show_default=True, help="Of the capacity of full batches.")
def main(
    alone: float, full: float, batch: int, servers: int, overhead: float, share: float
) -> None:
    """Print the latencies of ideal servers, and the 99th percentile over that of a lone request."""
    server = Server(alone, full, batch, overhead, servers)
    p50, p99 = np.percentile(latencies(server, share), (50, 99))
    lone = alone + overhead
    click.echo(
        f"{share * server.capacity:.0f} of {server.capacity:.0f} requests/s: p50 {p50:.1f} ms, "
        f"p99 {p99:.1f} ms, {p99 / lone:.1f} times that of a lone request ({lone:.1f} ms)"
    )


if __name__ == "__main__":
    main()
