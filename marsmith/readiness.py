"""Whether clients get right answers now; TorchServe's ``/ping`` says Healthy of dead workers."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from handlers.errors import MarsmithError
from marsmith.client import Client
from marsmith.processes import require_running
from marsmith.status import VersionStatus, check_golden, read_status, unregistered


@dataclass(frozen=True)
class Readiness:
    """Whether all that was asked about is ready, and why, in one line."""

    ready: bool
    reason: str


def read_readiness(home: Path, model: str | None, seconds: float) -> Readiness:
    """The readiness of the default version of one model, or of every model, of a folder's server.

    Ready is a version that has a living worker and answers its golden requests over the way that
    clients take; how many workers it lacks is told, and is no reason to send it no more requests.
    ``seconds`` are for each call. Raises nothing of its own: a server that is
    silent is not ready.
    """
    try:
        running = require_running(home)
        with Client.of(running, timeout=seconds) as client:
            chosen = [one for one in read_status(running, client) if one.default]
            if model is not None:
                chosen = [one for one in chosen if one.model == model]
            if not chosen:
                missing = "no model is loaded" if model is None else unregistered(client, model)
                return Readiness(False, missing)
            answers = [_version(client, one) for one in chosen]
    except MarsmithError as error:
        return Readiness(False, str(error))
    wrong = [answer.reason for answer in answers if not answer.ready]
    return Readiness(not wrong, "; ".join(wrong or [answer.reason for answer in answers]))


def read_liveness(home: Path, seconds: float) -> Readiness:
    """Whether a folder's TorchServe answers its own ``/ping``, whatever its workers do."""
    try:
        running = require_running(home)
        with Client.of(running, timeout=seconds) as client:
            return Readiness(client.ping(), "what TorchServe's /ping says")
    except MarsmithError as error:
        return Readiness(False, str(error))


def _version(client: Client, status: VersionStatus) -> Readiness:
    name = f"{status.model} {status.version}"
    # With no worker a request would wait in vain
    if not status.ready_workers:
        refused = status.failed and f"{name} refuses to load: {status.failed}"
        return Readiness(False, refused or f"{name} has 0 of {max(1, status.min_workers)} workers")
    workers = f"{status.ready_workers} of {status.min_workers} workers"
    answers = f"{name} answers" + ("" if status.ready else f", with {workers}")
    check = check_golden(client, status)
    if check.problem:
        how = " answers wrongly" if check.is_wrong else ""
        return Readiness(False, f"{name}{how}: {check.problem}")
    unproven = f"{name} has {workers} (no golden request to ask)"
    return Readiness(True, answers if check.count else unproven)
