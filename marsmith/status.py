"""What every loaded version is really doing; TorchServe's own health says Healthy of dead ones."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from handlers import bundle, golden
from handlers.bundle import Bundle
from handlers.errors import MarsmithError
from marsmith.client import Client
from marsmith.processes import Running, is_alive
from marsmith.refusals import read_refusals

Differs = Callable[[Bundle, Any, Any, float], str | None]
"""(bundle, expected, answer, tolerance) -> None where they agree, else what differs in one line."""


@dataclass(frozen=True)
class VersionStatus:
    """One version of a model; counts of workers and of requests that wait in its queue."""

    model: str
    version: str
    archive: str
    default: bool
    min_workers: int
    ready_workers: int
    pending: int
    capacity: int
    refusal: str | None

    @property
    def ready(self) -> bool:
        """Whether as many workers as asked for have loaded and live."""
        return self.ready_workers >= self.min_workers

    @property
    def failed(self) -> str | None:
        """Why no worker loads; None while they load or once they have."""
        return None if self.ready else self.refusal


def read_status(running: Running, client: Client) -> list[VersionStatus]:
    """All versions of all models of a running server; raises ServerError where it is silent."""
    refusals = read_refusals(running.home, running.started)
    return [
        VersionStatus(
            model=model,
            version=(version := found["modelVersion"]),
            archive=found["modelUrl"],
            default=version == default,
            min_workers=found["minWorkers"],
            ready_workers=sum(_is_ready(worker) for worker in found["workers"]),
            pending=found["jobQueueStatus"]["pendingRequests"],
            capacity=found["jobQueueStatus"]["remainingCapacity"],
            refusal=refusals.get((model, version)),
        )
        for model, default, found in _described(client)
    ]


def _described(client: Client) -> Iterator[tuple[str, str, Mapping[str, Any]]]:
    for model in sorted(client.models()):
        default = client.describe(model)[0]["modelVersion"]
        for found in client.describe(model, "all"):
            yield model, default, found


def _is_ready(worker: Mapping[str, Any]) -> bool:
    # TorchServe calls a worker READY for a while after it has died
    return worker["status"] == "READY" and is_alive(worker["pid"])


@dataclass(frozen=True)
class GoldenCheck:
    """How many golden requests an archive has, and what is wrong with an answer, in one line."""

    count: int
    problem: str | None

    def __str__(self) -> str:
        return self.problem or (f"{self.count} ok" if self.count else "none in the archive")


def task_difference(bundle: Bundle, expected: Any, answer: Any, tolerance: float) -> str | None:
    """What the task calls a difference: another decision, or scores moved by too much."""
    # Here, for it imports torch
    from handlers.plugins import load_task

    handler = load_task(bundle.task)()
    handler.bundle = bundle
    difference = handler.compare(expected, answer)
    if difference.same and difference.score <= tolerance:
        return None
    return f"{difference.detail}, scores moved by {difference.score:.3g} (allowed {tolerance:g})"


def check_golden(
    running: Running, client: Client, status: VersionStatus, differs: Differs = task_difference
) -> GoldenCheck:
    """Ask a version its archive's golden requests through the server, until one goes wrong."""
    count = 0
    try:
        with zipfile.ZipFile(running.model_store / status.archive) as archive:
            if golden.FILE not in archive.namelist():
                return GoldenCheck(0, None)
            model = Bundle.parse(archive.read(bundle.FILE).decode("utf-8"))
            cases = json.loads(archive.read(golden.FILE))
            for count, case in enumerate(cases, 1):
                picture = archive.read(case["picture"])
                reply = client.predict(status.model, picture, version=status.version)
                problem = (
                    differs(model, case["answer"], reply.json(), case["tolerance"])
                    if reply.ok
                    else reply.problem()
                )
                if problem:
                    return GoldenCheck(count, f"{case['picture']}: {problem}")
    except MarsmithError as error:
        return GoldenCheck(count, str(error))
    except (OSError, zipfile.BadZipFile, ValueError, KeyError, TypeError) as error:
        return GoldenCheck(count, f"{status.archive} has no golden requests to read: {error!r}")
    return GoldenCheck(count, None)
