"""What every loaded version is really doing; TorchServe's own health says Healthy of dead ones."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from handlers.errors import MarsmithError, ServerError
from handlers.nearest import hint
from marsmith.client import NOT_FOUND, Client, Refused, Reply
from marsmith.probe import GoldenCheck, Goldens, ask
from marsmith.processes import Running, is_alive, working_folder
from marsmith.refusals import read_refusals


@dataclass(frozen=True)
class VersionStatus:
    """One version of a model; counts of workers and of requests that wait in its queue.

    ``pids`` are those of the ready workers; ``worker_ids`` are TorchServe's own, of all, which a
    worker keeps when its process is replaced.
    """

    model: str
    version: str
    archive: str
    default: bool
    min_workers: int
    ready_workers: int
    pending: int
    capacity: int
    refusal: str | None
    pids: tuple[int, ...] = ()
    worker_ids: tuple[str, ...] = ()

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
            ready_workers=len(pids := live_workers(found)),
            pending=found["jobQueueStatus"]["pendingRequests"],
            capacity=found["jobQueueStatus"]["remainingCapacity"],
            refusal=refusals.get((model, version)),
            pids=tuple(pids),
            worker_ids=tuple(worker["id"] for worker in found["workers"]),
        )
        for model, default, found in _described(client)
    ]


def _described(client: Client) -> Iterator[tuple[str, str, Mapping[str, Any]]]:
    for model in sorted(client.models()):
        default = client.describe(model)[0]["modelVersion"]
        for found in client.describe(model, "all"):
            yield model, default, found


def live_workers(described: Mapping[str, Any]) -> list[int]:
    """The pids of loaded and living workers of one of ``Client.describe``'s versions."""
    # TorchServe calls a worker READY for a while after it has died
    return [
        worker["pid"]
        for worker in described["workers"]
        if worker["status"] == "READY" and is_alive(worker["pid"])
    ]


def find_version(
    statuses: Sequence[VersionStatus], model: str, version: str
) -> VersionStatus | None:
    """The status of one version, if it is registered."""
    return next((one for one in statuses if (one.model, one.version) == (model, version)), None)


def find_default(statuses: Sequence[VersionStatus], model: str) -> VersionStatus | None:
    """The status of a model's default version, if the model is registered."""
    return next((one for one in statuses if one.model == model and one.default), None)


def describe(client: Client, model: str, version: str | None = None) -> dict[str, Any]:
    """TorchServe's description of a version that somebody named, of the default one for None.

    Raises ServerError with the nearest names where there is no such.
    """
    try:
        return client.describe(model, version)[0]
    except Refused as error:
        if error.status != NOT_FOUND:
            raise
        raise ServerError(unregistered(client, model, version)) from error


def unregistered(client: Client, model: str, version: str | None = None) -> str:
    """What to say of a version that is not registered, or of a model without any."""
    models = client.models()
    if model not in models:
        return f"no model {model} is registered: {hint(model, models)}"
    versions = [found["modelVersion"] for found in client.describe(model, "all")]
    return f"{model} {version} is not registered: there are {', '.join(versions)}"


def check_golden(client: Client, status: VersionStatus, least: int = 1) -> GoldenCheck:
    """Ask a version its own golden requests through the server, until one goes wrong.

    ``least`` of them are asked by turns if there are fewer. They are those that its workers have
    unpacked: the store may have another archive by now, or none.
    """
    try:
        goldens = Goldens.read(unpacked(status))
    except MarsmithError as error:
        return GoldenCheck(0, str(error))

    def predict(picture: bytes) -> Reply:
        return client.predict(status.model, picture, version=status.version)

    return ask(goldens, predict, least)


def unpacked(status: VersionStatus) -> Path:
    """Where TorchServe has unpacked a version's archive, which is where it starts the workers.

    Raises ServerError where no worker lives.
    """
    for pid in status.pids:
        if folder := working_folder(pid):
            return folder
    raise ServerError(f"the workers of {status.model} {status.version} have ended")
