"""The loads on one server that is ready, and what it uses meanwhile."""

from __future__ import annotations

import functools
import itertools
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.serving import accuracy, loads, mlperf, timers
from benchmarks.serving.contender import Server
from benchmarks.serving.pictures import Picture
from benchmarks.serving.plan import Plan
from benchmarks.serving.processes import watching
from benchmarks.serving.warming import warm
from handlers.errors import MarsmithError

_TOGETHER, _TOGETHER_CONNECTIONS = 8, 4
LONGER = 3


class Served:
    """The loads of one server in round ``number``; LoadGen's own logs go below ``logs``."""

    def __init__(
        self,
        plan: Plan,
        made: Server,
        number: int,
        sized: Callable[[str], Sequence[Picture]],
        logs: Path,
        record: Callable[..., None],
        tell: Callable[[str], None],
    ) -> None:
        self.plan, self.made, self.number, self.sized = plan, made, number, sized
        self.logs, self.record, self.tell, self.capacity = logs, record, tell, 0.0
        self.bodies = self._bodies("real", 1)

    def run(self) -> None:
        """Closed loops first: they tell the capacity that open ones are shares of."""
        plan = self.plan
        self._warm()
        if "closed" in plan.loads:
            for connections in plan.connections:
                self._closed("real", 1, connections)
        for size in ("large", "small"):
            if size in plan.loads:
                self._closed(size, 1, max(plan.connections))
        if "eight" in plan.loads:
            self._closed("real", _TOGETHER, _TOGETHER_CONNECTIONS)
        asked: list[tuple[float, float | None]] = [(rate, None) for rate in plan.rates]
        if self.capacity:
            asked = [(share * self.capacity, share) for share in plan.shares] + asked
        elif "closed" in plan.loads:
            self.tell("  it answered nothing in time, so there is no capacity to take shares of")
        if "poisson" in plan.loads:
            for rate, share in asked:
                self._poisson(rate, share)
        if "mlperf" in plan.loads and self.number == 0 and self.made.answers_pictures and asked:
            for scenario in ("Server", "Offline"):
                self._mlperf(scenario, asked[0][0])

    def _warm(self) -> None:
        """Ask all at once what is asked one by one otherwise: full batches compile and allocate."""
        with_wrk = "closed" in self.plan.loads or loads.has_wrk()
        answers, seconds = warm(self._asked_by_wrk if with_wrk else self._asked_in_turn, self.plan)
        self.record("warm", requests=answers, seconds=seconds)
        self.tell(f"  warmed up by {answers} requests in {seconds:.0f} s")
        self._settle()

    def _asked_by_wrk(self, seconds: float) -> int:
        assert self.bodies is not None
        return _good(loads.closed(self.bodies, max(self.plan.connections), seconds))

    def _asked_in_turn(self, seconds: float) -> int:
        """Without wrk, which the other loads do not need."""
        end = time.monotonic() + seconds
        for count, one in enumerate(itertools.cycle(self.sized("real"))):
            if time.monotonic() > end:
                return count
            self.made.ask(one.data)
        raise AssertionError("a cycle has no end")

    def _closed(self, size: str, together: int, connections: int) -> None:
        bodies = self.bodies if (size, together) == ("real", 1) else self._bodies(size, together)
        if bodies is None:
            self.tell(f"  {together} pictures a request: its protocol has none")
            return
        # What is answered after the end does not count: a load must be long against an answer.
        longer = LONGER if size == "large" or together > 1 else 1
        loads.closed(bodies, connections, longer * self.plan.warm_each)
        self._settle()
        found = self._watched(
            "closed",
            lambda: loads.closed(bodies, connections, longer * self.plan.seconds),
            size=size,
            per_request=together,
        )
        if (size, together) == ("real", 1):
            self.capacity = max(self.capacity, _rate(found))

    def _poisson(self, rate: float, share: float | None) -> None:
        seed = self.plan.seed + self.number
        bodies = self.bodies
        assert bodies is not None
        loads.poisson(bodies, rate, self.plan.warm_each, seed)
        self._settle()
        self._watched(
            "poisson",
            lambda: loads.poisson(bodies, rate, self.plan.seconds, seed),
            share=share,
        )

    def _mlperf(self, scenario: str, target: float) -> None:
        """Performance, watched, and then accuracy: the answers out of LoadGen's own log."""
        bodies, rate = self.bodies, target
        if scenario == "Offline":
            # What it expects decides how many samples it sends; fewer than it takes in the time
            # would make the run invalid.
            rate = 1.5 * (self.capacity or target)
        assert bodies is not None
        job = {"scenario": scenario, "rate": rate, "seconds": self.plan.seconds}
        job["latency_ms"] = self.plan.latency_ms
        found = {}
        for mode in ("performance", "accuracy"):
            folder = self.logs / f"{scenario.lower()}-{mode}"
            job |= {"mode": mode, "logs": str(folder)}
            bound = 3 * self.plan.seconds + len(bodies.files) / max(rate, 0.1)
            call = functools.partial(loads.mlperf, bodies, dict(job), bound)
            if mode == "performance":
                found = self._watched("mlperf", call, record=False)
            else:
                call()
                bodies_by_index = mlperf.read_accuracy(
                    (folder / "mlperf_log_accuracy.json").read_text()
                )
                answers = {i: self._answer(body) for i, body in bodies_by_index.items()}
                found |= accuracy.score(self.made, self.sized("real"), answers)
        self.record("mlperf", **found)
        verdict = found["summary"].get("Result is")
        self.tell(f"  mlperf {scenario}: {verdict}, accuracy {found['score']:.3f}")

    def _answer(self, body: bytes) -> Any:
        return self.made.answers(body)[0] if body else MarsmithError("no answer")

    def _watched(
        self, kind: str, load: Callable[[], dict[str, Any]], record: bool = True, **more: Any
    ) -> dict[str, Any]:
        before = self.made.timers()
        with watching(self.made.mark, self.made.role) as watch:
            found = load()
            usage = watch.close(found["client_cpu"])
        found |= {**more, "usage": asdict(usage), "load_average": os.getloadavg()[0]}
        after = self.made.timers()
        if before is not None and after is not None:
            found["spent"] = timers.spent(before, after)
        if record:
            self.record(kind, **found)
            self.tell(f"  {kind} {_words(found)}")
        self._settle()
        return found

    def _settle(self) -> None:
        """Wait until what a client has left behind is answered: servers work for who has gone."""
        self.made.wait_ready(self.sized("real")[0].data)

    def _bodies(self, size: str, together: int) -> loads.Bodies | None:
        """Requests of ``together`` pictures each; None where its protocol takes one at a time."""
        data = [one.data for one in self.sized(size)]
        groups = [
            [data[(start + i) % len(data)] for i in range(together)]
            for start in range(0, len(data), together)
        ]
        found = [self.made.request(group) for group in groups]
        requests = [request for request in found if request is not None]
        folder = self.made.folder / f"{size}-{together}"
        return loads.Bodies.write(folder, self.made.address, requests) if requests else None


def _good(found: dict[str, Any]) -> int:
    """How many requests were answered well."""
    return int(max(0, found["requests"] - found["failed"]))


def _rate(found: dict[str, Any]) -> float:
    return float(_good(found) / found["seconds"])


def _words(found: dict[str, Any]) -> str:
    """A load in a few words."""
    given = f"{found['rate']:.1f}/s" if "rate" in found else f"{found['connections']} connections"
    times = f"p50 {found['p50']:.1f}, p99 {found['p99']:.1f} ms, " if "p50" in found else ""
    return (
        f"{found.get('size', '')} x{found.get('per_request', 1)} {given}: {_rate(found):.1f} "
        f"requests/s, {times}{found['failed']} failed, "
        f"others took {found['usage']['others']:.0%}"
    )
