"""``python -m benchmarks.serving.poisson JOB.json``: an open loop with Poisson arrivals.

A request is sent when its time has come, whether or not earlier ones have been answered, and its
latency counts from that time: a server that stalls is charged for everybody who would have come.
The client is one asyncio process (aiohttp), whose own lateness and CPU time are told.
Where the job has an ``archive`` and the answers ``expected`` of its bodies, every answer is judged.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import aiohttp

from marsmith.arrivals import percentile, poisson_arrivals
from marsmith.probe import Goldens, task_difference

_TIMEOUT_SECONDS = 30.0
# How far scores may move with the other pictures of a batch.
_TOLERANCE = 1e-3

Judge = Callable[[int, bytes], bool]
"""(number of the body, an answer) -> whether it is right."""


async def run(job: dict[str, Any]) -> dict[str, Any]:
    """Send the job's requests and wait for the last answer."""
    bodies = [Path(file).read_bytes() for file in job["files"]]
    arrivals = poisson_arrivals(job["rate"], job["seconds"], job["seed"])
    latencies: list[float] = []
    late: list[float] = []
    errors: Counter[str] = Counter()
    judge = _judge(job)
    wrong = 0
    timeout = aiohttp.ClientTimeout(total=_TIMEOUT_SECONDS)
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(
        headers=job["headers"], timeout=timeout, connector=connector
    ) as session:
        start, cpu = time.monotonic(), time.process_time()

        async def send(number: int, due: float) -> None:
            nonlocal wrong
            late.append(time.monotonic() - start - due)
            try:
                body = bodies[number % len(bodies)]
                async with session.post(job["url"] + job["path"], data=body) as reply:
                    answer = await reply.read()
                    took = time.monotonic() - start - due
                    if reply.status >= 400:
                        # Refused at once is not answered fast.
                        errors[str(reply.status)] += 1
                    else:
                        latencies.append(took)
                        wrong += not judge(number % len(bodies), answer)
            except (aiohttp.ClientError, TimeoutError) as error:
                errors[type(error).__name__] += 1

        async with asyncio.TaskGroup() as group:
            for number, due in enumerate(arrivals):
                await asyncio.sleep(max(0.0, start + due - time.monotonic()))
                group.create_task(send(number, due))
        passed, cpu = time.monotonic() - start, time.process_time() - cpu
    found = summary(job["rate"], latencies, late, errors.total(), passed)
    # Without its start, which takes longer than many a load.
    return {**found, "errors": dict(errors), "wrong": wrong, "loop_cpu": cpu}


def _judge(job: dict[str, Any]) -> Judge:
    """What the task calls the same answer; everything, where the job expects nothing."""
    if "expected" not in job:
        return lambda number, answer: True
    bundle = Goldens.read(Path(job["archive"])).bundle
    assert bundle is not None, "every archive that a build makes has golden requests"

    def right(number: int, answer: bytes) -> bool:
        try:
            found = json.loads(answer)
            return task_difference(bundle, job["expected"][number], found, _TOLERANCE) is None
        # Another shape than the task's is a wrong answer, too.
        except (ValueError, KeyError, TypeError, IndexError):
            return False

    return right


def summary(
    rate: float, latencies: list[float], late: list[float], failed: int, seconds: float
) -> dict[str, Any]:
    """Seconds as milliseconds, in the words of ``loads``.

    ``latencies`` are those of answers alone, ``late`` is how late it sent each request itself.
    """
    found: dict[str, Any] = {"rate": rate, "requests": len(latencies) + failed, "failed": failed}
    found["seconds"] = seconds
    if latencies:
        found["mean"] = 1e3 * sum(latencies) / len(latencies)
        for name, share in (("p50", 0.5), ("p95", 0.95), ("p99", 0.99), ("max", 1.0)):
            found[name] = 1e3 * percentile(latencies, share)
    if late:
        found["late_p99"] = 1e3 * percentile(late, 0.99)
    return found


def main() -> None:
    """Run the job and print a JSON line."""
    job = json.loads(Path(sys.argv[1]).read_text())
    print(json.dumps(asyncio.run(run(job))))


if __name__ == "__main__":
    main()
