"""A version watched while it answers everybody: golden requests, workers, failures, time taken."""

from __future__ import annotations

import re
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

from handlers.errors import ServerError
from marsmith.log_lines import Follower
from marsmith.probe import GoldenCheck, Predict

ACCESS_LOG = Path("logs/access_log.log")
# When it was answered, and the milliseconds since it came
_LINE = re.compile(
    r"(?P<time>\d{4}-\d\d-\d\dT[\d:,]+) - "
    r'\S+ "\S+ (?P<path>\S+) [^"]*" (?P<code>\d+) (?P<taken>\d+)'
)
# What one probe may vary by on a busy host
_GRACE_SECONDS = 0.1
FIRST_SERVER_ERROR = 500
_BASELINE = 5


@dataclass(frozen=True)
class Limits:
    """What a version may do while it is watched.

    ``failures`` are answers of 500 and above to any client over REST; ``slowdown`` is how many
    times as long as the version before a golden request may take, by their medians.
    """

    seconds: float = 20.0
    interval: float = 0.5
    failures: int = 0
    slowdown: float = 3.0


class Failures:
    """Answers of 500 and above to requests that came since ``begin``, by TorchServe's access log.

    Of a model, to requests that name no version or this one: what another version does to those who
    name it is not this one's. The log has one line for a request over REST, written when it is
    answered. Its lines of gRPC name no model. Raises ServerError where there is no such log.
    """

    def __init__(self, log: Path, model: str, version: str) -> None:
        if not log.exists():
            raise ServerError(
                f"no {log} to read failures from: start the server with `marsmith serve` or after"
                " `. ./env.sh`, which name the logging that writes it"
            )
        self._log = Follower(log, from_end=True)
        self._path = _paths(re.escape(model), re.escape(version))
        self._count = 0
        self._begun: datetime | None = None

    def begin(self) -> None:
        """Count from the log's next line on, by its time: the log's clock may be another zone's."""
        self._log.lines()

    def read(self) -> int:
        """How many there were."""
        for found in filter(None, map(_LINE.fullmatch, self._log.lines())):
            answered = datetime.fromisoformat(found["time"])
            self._begun = self._begun or answered
            # A request that came before is the version's before, however late that one fails
            is_new = answered - timedelta(milliseconds=int(found["taken"])) >= self._begun
            is_failure = int(found["code"]) >= FIRST_SERVER_ERROR
            self._count += is_new and is_failure and bool(self._path.fullmatch(found["path"]))
        return self._count


def _paths(model: str, version: str) -> re.Pattern[str]:
    """Where TorchServe 0.12 takes requests for a model's version or its default one."""
    path = "|".join(
        (
            rf"(?:predictions|explanations)/{model}(?:/(?:{version}(?:/[^?]*)?)?)?",
            rf"{model}(?:/{version})?/predict",
            rf"models/{model}/invoke",
            rf"v1/models/{model}:(?:predict|explain)",
            rf"v2/models/{model}/(?:infer|explain)",
            rf"invocations\?(?:.*&)?model_name={model}(?:&.*)?",
        )
    )
    return re.compile(rf"/(?:{path})(?:\?.*)?")


@dataclass(frozen=True)
class Watched:
    """What was seen: golden requests asked, failures of clients, and the median time in seconds."""

    probes: int
    failures: int
    seconds: float

    def __str__(self) -> str:
        return (
            f"{self.probes} golden requests answered rightly (median {self.seconds * 1e3:.0f} ms),"
            f" {self.failures} requests of clients failed"
        )


def median_time(pictures: Sequence[bytes], predict: Predict) -> float:
    """Median seconds that pictures take, one after the other; 0 where there are none.

    Raises ServerError where one is not answered: an error takes no time that says anything.
    """
    times = []
    for index in range(_BASELINE * bool(pictures)):
        start = time.perf_counter()
        reply = predict(pictures[index % len(pictures)])
        if not reply.ok:
            raise ServerError(reply.problem())
        times.append(time.perf_counter() - start)
    return statistics.median(times) if times else 0.0


def watch(
    limits: Limits,
    probe: Callable[[], GoldenCheck],
    trouble: Callable[[], str | None],
    failures: Callable[[], int],
    usual: float,
    *,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> Watched:
    """Watch for ``limits.seconds``; raises ServerError with what went wrong as soon as it does.

    The time of probes is compared with ``usual``, the median time (seconds) of the same golden
    requests before, 0 for not known; ``trouble`` tells of anything else that is wrong.
    """
    end = clock() + limits.seconds
    count, times = 0, []
    while True:
        check = probe()
        times.append(check.seconds)
        count += check.count
        if check.problem:
            raise ServerError(f"golden request answered wrongly while watched: {check.problem}")
        if problem := trouble():
            raise ServerError(f"{problem} while it was watched")
        failed = failures()
        if failed > limits.failures:
            raise ServerError(
                f"{failed} requests of clients failed while it was watched (allowed"
                f" {limits.failures})"
            )
        if clock() >= end:
            break
        sleep(limits.interval)
    median = statistics.median(times)
    if usual and median > usual * limits.slowdown + _GRACE_SECONDS:
        raise ServerError(
            f"golden requests take {median * 1e3:.0f} ms, {usual * 1e3:.0f} ms before (allowed"
            f" {limits.slowdown:g} times as long)"
        )
    return Watched(count, failed, median)
