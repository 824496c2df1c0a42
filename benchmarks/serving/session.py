"""One sitting: contenders in turn, round by round, each started anew and measured under its loads.

Every figure goes into a list of measurements, dicts with the keys contender, round and kind:
"ready", "warm", "accuracy", "closed", "poisson", "mlperf" or "failed".
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from time import monotonic
from typing import Any

from benchmarks.serving import accuracy
from benchmarks.serving.choice import families
from benchmarks.serving.contender import Local, Server
from benchmarks.serving.pictures import Picture, resized
from benchmarks.serving.plan import Plan
from benchmarks.serving.processes import watching
from benchmarks.serving.served import LONGER, Served
from benchmarks.serving.subject import Subject
from benchmarks.serving.warming import warm
from handlers.errors import MarsmithError, ServerError

Measurement = dict[str, Any]


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
        self._warn()
        for number in range(self.plan.rounds):
            for name in self.names if number % 2 == 0 else reversed(self.names):
                self.tell(f"round {number + 1} of {self.plan.rounds}: {name}")
                started = monotonic()
                record = functools.partial(self._record, name, number)
                try:
                    self._one(name, number, record)
                # A contender may fail in ways of its own; it is told, and the others are measured.
                except Exception as error:  # noqa: BLE001
                    kind = "" if isinstance(error, MarsmithError) else f"{type(error).__name__}: "
                    record("failed", reason=kind + " ".join(str(error).split()))
                    self.tell(f"  failed: {kind}{error}")
                self.tell(f"  {monotonic() - started:.0f} s in all")

    def _warn(self) -> None:
        """Tell at once, and not after an hour of others, which contenders have no environment."""
        for name in self.names:
            try:
                families()[name.partition("/")[0]].interpreter()
            except ServerError as error:
                self.tell(f"{name} will not run: {error}")

    def _record(self, name: str, number: int, kind: str, **figures: Any) -> None:
        self.keep({"contender": name, "round": number, "kind": kind, **figures})

    def _one(self, name: str, number: int, record: Callable[..., None]) -> None:
        family, _, variant = name.partition("/")
        made = families()[family](variant, self.subject, self.plan.patience)
        try:
            made.interpreter()
            made.prepare()
            before = monotonic()
            made.start()
            if isinstance(made, Server):
                made.wait_ready(self.subject.pictures[0].data)
            record("ready", seconds=monotonic() - before)
            if made.answers_pictures:
                record("accuracy", **accuracy.ask(made, self.subject.pictures))
            if isinstance(made, Server):
                logs = self.folder / "mlperf" / name.replace("/", "-").replace(":", "-")
                Served(self.plan, made, number, self.sized, logs, record, self.tell).run()
            elif isinstance(made, Local):
                self._local(made, record)
        finally:
            made.close()

    def _local(self, made: Local, record: Callable[..., None]) -> None:
        for size in ("real", *(size for size in ("large", "small") if size in self.plan.loads)):
            data = [one.data for one in self.sized(size)]
            # As long as servers get.
            seconds = self.plan.seconds * (LONGER if size == "large" else 1)
            if size == "real":
                answers, spent = warm(functools.partial(_answered, made, data), self.plan)
                record("warm", requests=answers, seconds=spent)
            made.run(data, self.plan.warm_each)
            with watching(made.mark, made.role) as watch:
                pictures, rate = made.run(data, seconds)
                usage = watch.close(0.0)
            # All that the processor worked for, with the batches that ended later.
            figures: dict[str, Any] = {"requests": pictures, "failed": 0}
            figures |= {"seconds": pictures / rate, "connections": 0, "per_request": 1}
            record("closed", size=size, **figures, usage=asdict(usage))
            self.tell(f"  {size}: {rate:.1f} pictures/s")


def _answered(made: Local, pictures: Sequence[bytes], seconds: float) -> int:
    return made.run(pictures, seconds)[0]
