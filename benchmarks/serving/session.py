"""One sitting: contenders in turn, round by round, each started anew and measured under its loads.

Every figure goes into a list of measurements, dicts with the keys contender, round and kind:
"ready", "accuracy", "closed", "poisson", "mlperf" or "failed".
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from time import monotonic
from typing import Any

from benchmarks.serving import loads, mlperf
from benchmarks.serving.contender import Contender, Local, Server, families
from benchmarks.serving.pictures import Picture, resized
from benchmarks.serving.processes import watching
from benchmarks.serving.subject import Subject
from handlers.errors import MarsmithError, SpecError

Measurement = dict[str, Any]
_TOGETHER, _TOGETHER_CONNECTIONS = 8, 4
# What is asked before anything counts: caches, lazy compilation, threads.
_WARM_SECONDS = 1.0


@dataclass(frozen=True)
class Plan:
    """What is measured. ``loads`` are of closed, poisson, mlperf, eight and the sizes large, small.

    ``seconds`` of each load, ``shares`` of a contender's own capacity that Poisson arrivals ask
    for, ``rates`` that all contenders are asked for, ``patience`` in seconds until ready.
    """

    rounds: int = 3
    seconds: float = 5.0
    connections: tuple[int, ...] = (1, 8, 32)
    loads: tuple[str, ...] = ("closed", "poisson")
    shares: tuple[float, ...] = (0.6,)
    rates: tuple[float, ...] = ()
    latency_ms: float = 100.0
    patience: float = 120.0
    seed: int = 1

    def __post_init__(self) -> None:
        open_loops = {"poisson", "mlperf"} & set(self.loads)
        if open_loops and "closed" not in self.loads and not self.rates:
            raise SpecError(
                f"--load {min(open_loops)} needs a rate: give --rates, or --load closed as well, "
                "which tells the capacity that --shares are of"
            )


class Session:
    """Runs a plan; ``keep`` is called with each measurement as it comes, ``tell`` with words."""

    def __init__(
        self,
        subject: Subject,
        names: Sequence[str],
        plan: Plan,
        folder: Path,
        keep: Callable[[Measurement], None],
        tell: Callable[[str], None],
    ) -> None:
        self.subject, self.names, self.plan, self.folder = subject, names, plan, folder
        self.keep, self.tell = keep, tell
        self._sizes: dict[str, list[Picture]] = {}

    def sized(self, size: str) -> list[Picture]:
        """The subject's pictures in a size, made once."""
        if size not in self._sizes:
            self._sizes[size] = resized(self.subject.pictures, size)
        return self._sizes[size]

    def run(self) -> None:
        """All rounds; every other one in the opposite order, so that a drift hits nobody alone."""
        for number in range(self.plan.rounds):
            for name in self.names if number % 2 == 0 else reversed(self.names):
                self.tell(f"round {number + 1} of {self.plan.rounds}: {name}")
                started = monotonic()
                record = functools.partial(self._record, name, number)
                try:
                    self._one(name, number, record)
                except (MarsmithError, OSError) as error:
                    record("failed", reason=" ".join(str(error).split()))
                    self.tell(f"  failed: {error}")
                self.tell(f"  {monotonic() - started:.0f} s in all")

    def _record(self, name: str, number: int, kind: str, **figures: Any) -> None:
        self.keep({"contender": name, "round": number, "kind": kind, **figures})

    def _one(self, name: str, number: int, record: Callable[..., None]) -> None:
        family, _, variant = name.partition("/")
        made = families()[family](variant, self.subject, self.plan.patience)
        try:
            made.python  # noqa: B018  # its environment is there
            made.prepare()
            before = monotonic()
            made.start()
            if isinstance(made, Server):
                made.wait_ready(self.subject.pictures[0].data)
            record("ready", seconds=monotonic() - before)
            if number == 0 and made.answers_pictures:
                self._accuracy(made, record)
            if isinstance(made, Server):
                _Served(self, made, name, number, record).run()
            elif isinstance(made, Local):
                self._local(made, record)
        finally:
            made.close()

    def _accuracy(self, made: Contender, record: Callable[..., None]) -> None:
        pictures = self.subject.pictures
        if isinstance(made, Local):
            answers = made.all_answers([one.data for one in pictures])
            record("accuracy", **_scored(made, pictures, dict(enumerate(answers))))
            return
        assert isinstance(made, Server)

        def ask(picture: Picture) -> Any:
            try:
                [answer] = made.answers(made.ask(picture.data))
            except MarsmithError as error:
                return error
            return answer

        with ThreadPoolExecutor(4) as pool:
            found = dict(enumerate(pool.map(ask, pictures)))
        record("accuracy", **_scored(made, pictures, found))

    def _local(self, made: Local, record: Callable[..., None]) -> None:
        for size in ("real", *(size for size in ("large", "small") if size in self.plan.loads)):
            data = [one.data for one in self.sized(size)]
            made.run(data, _WARM_SECONDS)
            with watching(made.mark, made.role) as watch:
                rate = made.run(data, self.plan.seconds)
                usage = watch.close(0.0)
            figures: dict[str, Any] = {"requests": round(rate * self.plan.seconds), "failed": 0}
            figures |= {"seconds": self.plan.seconds, "connections": 0, "per_request": 1}
            record("closed", size=size, **figures, usage=asdict(usage))
            self.tell(f"  {size}: {rate:.1f} pictures/s")


class _Served:
    """The loads of one server in one round."""

    def __init__(
        self, session: Session, made: Server, name: str, number: int, record: Callable[..., None]
    ) -> None:
        self.session, self.made, self.name, self.number = session, made, name, number
        self.plan, self.record, self.capacity = session.plan, record, 0.0
        self.bodies = self._bodies("real", 1)

    def run(self) -> None:
        """Closed loops first: they tell the capacity that open ones are shares of."""
        plan = self.plan
        if "closed" in plan.loads:
            self._warm()
            for connections in plan.connections:
                self._closed("real", 1, connections)
        for size in ("large", "small"):
            if size in plan.loads:
                self._closed(size, 1, max(plan.connections))
        if "eight" in plan.loads:
            self._closed("real", _TOGETHER, _TOGETHER_CONNECTIONS)
        shares = [share * self.capacity for share in plan.shares if self.capacity]
        if "poisson" in plan.loads:
            for rate in (*shares, *plan.rates):
                self._poisson(rate)
        if "mlperf" in plan.loads and self.number == 0 and self.made.answers_pictures:
            for scenario in ("Server", "Offline"):
                self._mlperf(scenario, (*shares, *plan.rates)[0])

    def _warm(self) -> None:
        """Ask all at once what is asked one by one otherwise: full batches compile and allocate."""
        assert self.bodies is not None
        loads.closed(self.bodies, max(self.plan.connections), _WARM_SECONDS)
        self._settle()

    def _closed(self, size: str, together: int, connections: int) -> None:
        bodies = self.bodies if (size, together) == ("real", 1) else self._bodies(size, together)
        if bodies is None:
            self.session.tell(f"  {together} pictures a request: its protocol has none")
            return
        found = self._watched(
            "closed",
            lambda: loads.closed(bodies, connections, self.plan.seconds),
            size=size,
            per_request=together,
        )
        if (size, together) == ("real", 1):
            self.capacity = max(self.capacity, _rate(found))

    def _poisson(self, rate: float) -> None:
        seed = self.plan.seed + self.number
        bodies = self.bodies
        assert bodies is not None
        self._watched(
            "poisson",
            lambda: loads.poisson(bodies, rate, self.plan.seconds, seed),
            share=rate / self.capacity if self.capacity else None,
        )

    def _mlperf(self, scenario: str, target: float) -> None:
        """Performance, watched, and then accuracy: the answers out of LoadGen's own log."""
        logs = self.session.folder / "mlperf" / self.name.replace("/", "-").replace(":", "-")
        bodies, rate = self.bodies, target
        if scenario == "Offline":
            # What it expects decides how many samples it sends.
            rate = self.capacity or target
        assert bodies is not None
        job = {"scenario": scenario, "rate": rate, "seconds": self.plan.seconds}
        job["latency_ms"] = self.plan.latency_ms
        found = {}
        for mode in ("performance", "accuracy"):
            folder = logs / f"{scenario.lower()}-{mode}"
            job |= {"mode": mode, "logs": str(folder)}
            # Offline asks for a tenth more than it expects to be answered in the time.
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
                found |= _scored(self.made, self.session.subject.pictures, answers)
        self.record("mlperf", **found)
        verdict = found["summary"].get("Result is")
        self.session.tell(f"  mlperf {scenario}: {verdict}, accuracy {found['score']:.3f}")

    def _answer(self, body: bytes) -> Any:
        return self.made.answers(body)[0] if body else MarsmithError("no answer")

    def _watched(
        self, kind: str, load: Callable[[], dict[str, Any]], record: bool = True, **more: Any
    ) -> dict[str, Any]:
        with watching(self.made.mark, self.made.role) as watch:
            found = load()
            usage = watch.close(found["client_cpu"])
        found |= {**more, "usage": asdict(usage), "load_average": os.getloadavg()[0]}
        if record:
            self.record(kind, **found)
            self.session.tell(f"  {kind} {_words(found)}")
        self._settle()
        return found

    def _settle(self) -> None:
        """Wait until what a client has left behind is answered."""
        self.made.ask(self.session.subject.pictures[0].data, self.plan.patience)

    def _bodies(self, size: str, together: int) -> loads.Bodies | None:
        """Requests of ``together`` pictures each; None where its protocol takes one at a time."""
        data = [one.data for one in self.session.sized(size)]
        groups = [
            [data[(start + i) % len(data)] for i in range(together)]
            for start in range(0, len(data), together)
        ]
        found = [self.made.request(group) for group in groups]
        requests = [request for request in found if request is not None]
        folder = self.made.folder / f"{size}-{together}"
        return loads.Bodies.write(folder, self.made.address, requests) if requests else None


def _scored(
    made: Contender, pictures: Sequence[Picture], answers: dict[int, Any]
) -> dict[str, Any]:
    """The metric over what was answered; what was not is counted."""
    good = {i: each for i, each in answers.items() if not isinstance(each, MarsmithError)}
    bad = [str(each) for each in answers.values() if isinstance(each, MarsmithError)]
    found: dict[str, Any] = {"pictures": len(pictures), "unanswered": len(pictures) - len(good)}
    if bad:
        found["problem"] = bad[0][:200]
    order = sorted(good)
    truths = [pictures[i].truth for i in order]
    score = made.score([good[i] for i in order], truths) if good else 0.0
    # An unanswered picture is a wrong one.
    found["score"] = score * len(good) / len(pictures)
    return found


def _rate(found: dict[str, Any]) -> float:
    return float(max(0.0, (found["requests"] - found["failed"]) / found["seconds"]))


def _words(found: dict[str, Any]) -> str:
    """A load in a few words."""
    given = f"{found['rate']:.1f}/s" if "rate" in found else f"{found['connections']} connections"
    return (
        f"{found.get('size', '')} x{found.get('per_request', 1)} {given}: {_rate(found):.1f} "
        f"requests/s, p50 {found.get('p50', 0):.1f}, p99 {found.get('p99', 0):.1f} ms, "
        f"{found['failed']} failed, others took {found['usage']['others']:.0%}"
    )
