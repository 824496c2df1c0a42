"""``python -m marsmith.tuning.client JOB.json``: a closed loop, then an open one at a share of it.

A process of its own, so that nothing else takes its interpreter; threads with a connection each.
The pictures are sent as their bytes. In the open loop a latency counts from the time when its
request was due, so that a server that stalls is charged for everybody who would have come.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Callable
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from marsmith.arrivals import percentile, poisson_arrivals

TIMEOUT = 30.0
# More than wait at once at any share of the capacity that a queue survives.
_OPEN_CONNECTIONS = 64
_STACK_BYTES = 256 * 1024


class Target:
    """Where requests go, and what they carry."""

    def __init__(self, job: dict[str, Any]) -> None:
        self.host, self.port = job["host"], int(job["port"])
        self.path, self.headers = job["path"], job["headers"]
        self.bodies = [Path(file).read_bytes() for file in job["files"]]


class Connection:
    """One kept connection, opened again after a failure."""

    def __init__(self, target: Target) -> None:
        self._target = target
        self._http = HTTPConnection(target.host, target.port, timeout=TIMEOUT)

    def ask(self, number: int) -> str | None:
        """Send a picture and read the answer; None, or what went wrong."""
        bodies = self._target.bodies
        try:
            self._http.request(
                "POST", self._target.path, bodies[number % len(bodies)], self._target.headers
            )
            reply = self._http.getresponse()
            body = reply.read()
        except (OSError, HTTPException) as error:
            self._http.close()
            return f"{type(error).__name__}: {error}"
        return None if reply.status < 400 else f"{reply.status}: {body[:200]!r}"

    def close(self) -> None:
        """Close it."""
        self._http.close()


def closed(target: Target, connections: int, seconds: float) -> tuple[int, list[str]]:
    """Answers within ``seconds`` where each connection sends its next request at once; failures."""
    deadline = time.monotonic() + seconds
    answered = [0] * connections
    failures: list[str] = []

    def loop(mine: int) -> None:
        connection, number = Connection(target), mine
        while time.monotonic() < deadline:
            problem = connection.ask(number)
            number += connections
            if problem is not None:
                failures.append(problem)
                break
            answered[mine] += time.monotonic() <= deadline
        connection.close()

    _run([_thread(loop, mine) for mine in range(connections)])
    return sum(answered), failures


def opened(
    target: Target, rate: float, seconds: float, seed: int
) -> tuple[list[float], list[float], list[str]]:
    """Latencies and latenesses in seconds under Poisson arrivals, and failures."""
    due: SimpleQueue[tuple[int, float] | None] = SimpleQueue()
    latencies: list[float] = []
    late: list[float] = []
    failures: list[str] = []

    def loop() -> None:
        connection = Connection(target)
        while (one := due.get()) is not None:
            number, moment = one
            late.append(time.monotonic() - moment)
            problem = connection.ask(number)
            latencies.append(time.monotonic() - moment)
            if problem is not None:
                failures.append(problem)
        connection.close()

    def send() -> None:
        start = time.monotonic()
        for number, after in enumerate(poisson_arrivals(rate, seconds, seed)):
            time.sleep(max(0.0, start + after - time.monotonic()))
            due.put((number, start + after))
        for _ in range(_OPEN_CONNECTIONS):
            due.put(None)

    workers = [_thread(loop) for _ in range(_OPEN_CONNECTIONS)]
    _run([*workers, _thread(send)])
    return latencies, late, failures


def _thread(target: Callable[..., None], *arguments: int) -> threading.Thread:
    # Ctrl-C does not wait for answers.
    return threading.Thread(target=target, args=arguments, daemon=True)


def _run(threads: list[threading.Thread]) -> None:
    for each in threads:
        each.start()
    for each in threads:
        each.join()


def measure(job: dict[str, Any]) -> dict[str, Any]:
    """Warm up, then both loops: requests per second, milliseconds, and the first failure."""
    target, connections = Target(job), job["connections"]
    _, failures = closed(target, connections, job["warm"])
    before = time.process_time()
    answered, more = closed(target, connections, job["seconds"])
    failures += more
    rate = answered / job["seconds"]
    found: dict[str, Any] = {"throughput": rate, "connections": connections}
    latencies: list[float] = []
    if answered and not failures:
        latencies, late, more = opened(target, job["share"] * rate, job["seconds"], job["seed"])
        failures += more
    if latencies:
        found |= {
            "p50": 1e3 * percentile(latencies, 0.5),
            "p99": 1e3 * percentile(latencies, 0.99),
            "late_p99": 1e3 * percentile(late, 0.99),
        }
    cpu = time.process_time() - before
    found["requests"] = len(latencies)
    found["client_cpu"] = 1e3 * cpu / max(1, answered + len(latencies))
    return {**found, "failed": len(failures), "first_failure": next(iter(failures), "")}


def main() -> None:
    """Run the job and print a JSON line."""
    threading.stack_size(_STACK_BYTES)
    print(json.dumps(measure(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))))


if __name__ == "__main__":
    main()
