"""One version of a model replaced by another in a running TorchServe, or nothing changed."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

from handlers.errors import MarsmithError, ServerError
from marsmith import signing
from marsmith.addresses import read_properties
from marsmith.archive import Header
from marsmith.client import Client, Refused, Reply
from marsmith.disagreement import compare
from marsmith.drain import drain_version, remove_version
from marsmith.environment import CONFIG_NAME, SIGNATURE_SETTING
from marsmith.grpc_client import GrpcClient
from marsmith.losses import Losses
from marsmith.probe import GoldenCheck, Goldens, ask
from marsmith.processes import Running
from marsmith.status import VersionStatus, find_version, read_status
from marsmith.steps import Step
from marsmith.watch import ACCESS_LOG, Failures, Limits, median_time, watch

# For TorchServe to unpack an archive after who asked for it has given up, or was told to
_LATE_SECONDS = 60.0
_NO_PICTURE = b"<html>not a picture</html>"


@dataclass(frozen=True)
class Options:
    """How a version is brought in; times in seconds, ``disagreement`` a share from 0 to 1.

    ``pictures`` are compared with the running version; none: nothing is compared. With ``grpc``
    TorchServe is managed over gRPC, not over REST.
    """

    pictures: Sequence[Path] = ()
    disagreement: float = 0.01
    load: float = 300.0
    drain: float = 120.0
    watch: Limits = field(default_factory=Limits)
    grpc: bool = False


class Change:
    """A model's default version changed from ``old`` (None: there is none) to that of an archive.

    ``archive`` is a bare file name of the store, where it lies once the steps are taken, and
    ``new`` what it says it is. Every method is a step or its way back, and tells what it did.
    """

    def __init__(
        self,
        running: Running,
        clients: tuple[Client, GrpcClient],
        archive: str,
        new: Header,
        old: VersionStatus | None,
        options: Options,
    ) -> None:
        self._running, self._options = running, options
        self.archive, self.old = archive, old
        self._client, self._grpc = clients
        self.model, self.version = new.name, new.version
        self._usual = 0.0
        self._since = running
        # Whether a call of register got no answer
        self._unanswered = False
        self._losses = Losses()

    @cached_property
    def _goldens(self) -> Goldens:
        return Goldens.read(self._running.model_store / self.archive)

    def steps(self, registered: bool = False) -> list[Step]:
        """All steps up to the switch and the watch after it."""
        new = f"{self.model} {self.version}"
        steps = [
            Step(f"register {self.archive}", self.register, self.unregister),
            Step(f"wait for the workers of {new}", self.load),
            Step("ask its golden requests", self.prove),
            Step("ask it over gRPC, and something that is no picture", self.smoke),
        ]
        if registered:
            del steps[0]
        if self._options.pictures and self.old:
            steps.append(Step(f"compare it with {self.old.version}", self.compare))
        steps.append(Step(f"make {self.version} the default version", self.switch, self.restore))
        seconds = self._options.watch.seconds
        return [*steps, Step(f"watch it for {seconds:g} s", self.watch)]

    def status(self) -> VersionStatus | None:
        """What TorchServe says of the new version; None if it is not registered."""
        return find_version(read_status(self._since, self._client), self.model, self.version)

    def register(self) -> str:
        self._check_signature()
        # An earlier try of the same version may have left its refusal in the log
        self._since = replace(self._running, started=time.time())
        self._unanswered = True
        try:
            told = self._client.register(self.archive, timeout=self._options.load)
        except Refused:
            self._unanswered = False
            raise
        self._unanswered = False
        return told

    def _check_signature(self) -> None:
        """As the server's start demanded it, and as the next one will."""
        home = self._running.home
        found = [read_properties(self._running.config)]
        if (home / CONFIG_NAME).exists():
            found.append(read_properties(home / CONFIG_NAME))
        for demanded in {one.get(SIGNATURE_SETTING): one for one in found}.values():
            signing.admit(self._running.model_store / self.archive, demanded, home)

    def unregister(self) -> str:
        if not self._is_registered():
            return ""
        lost = ""
        # Alone it is the default version, and nobody else could answer
        if self.old and self._options.drain:
            try:
                drain_version(self._client, self.model, self.version, self._options.drain)
            except ServerError as error:
                # A version that hangs is never drained, and must not stay for that
                lost = f", and what it still had is lost: {error}"
        return self._client.unregister(self.model, self.version) + lost

    def _is_registered(self) -> bool:
        deadline = time.monotonic() + _LATE_SECONDS
        while self.status() is None:
            if not self._unanswered:
                return False
            # TorchServe goes on with a call that nobody waits for any more
            if time.monotonic() > deadline:
                raise ServerError(
                    f"not known whether {self.model} {self.version} is registered later: see"
                    " `marsmith status`"
                )
            time.sleep(0.2)
        return True

    def load(self) -> str:
        deadline = time.monotonic() + self._options.load
        while True:
            status = self.status()
            if status is None:
                raise ServerError(f"{self.model} {self.version} is not registered any more")
            if status.ready:
                self._lost(status)
                return self._match(status)
            if status.failed:
                raise ServerError(f"it does not load: {status.failed}")
            if time.monotonic() > deadline:
                raise ServerError(f"its workers do not load within {self._options.load:g} s")
            time.sleep(0.2)

    def _match(self, status: VersionStatus) -> str:
        """As many workers as the old version has: it may have been scaled since it was built."""
        wanted = max(status.min_workers, self.old.min_workers if self.old else 1, 1)
        if wanted > status.ready_workers:
            seconds = self._options.load
            self._client.scale(self.model, wanted, version=self.version, timeout=seconds)
        return f"{wanted} of {wanted} workers live"

    def prove(self) -> str:
        if not self._goldens.cases:
            raise ServerError(f"{self.archive} has no golden requests to prove it by")
        return _right(ask(self._goldens, self._new))

    def smoke(self) -> str:
        told = _right(ask(self._goldens, self._new_grpc))
        for reply in (self._new(_NO_PICTURE), self._new_grpc(_NO_PICTURE)):
            if not 400 <= reply.status < 500:
                raise ServerError(f"what is no picture is answered with {reply.status}, not 4xx")
        return f"{told}, and what is no picture is refused ({reply.status})"

    def compare(self) -> str:
        assert self.old
        assert self._goldens.bundle
        found = compare(
            self._running,
            self._goldens.bundle,
            self.old.version,
            self.version,
            self._options.pictures,
        )
        if found.share > self._options.disagreement:
            raise ServerError(f"{found} (allowed {self._options.disagreement:.3%})")
        return str(found)

    def switch(self) -> str:
        told = self._measure_old() if self.old else ""
        # Before, for without that log nothing is switched
        self._failures = Failures(self._running.home / ACCESS_LOG, self.model, self.version)
        switched = self._client.set_default(self.model, self.version)
        # What comes from now on is this version's; the call writes the line that says when that is
        self._failures.begin()
        self._client.ping()
        return switched + told

    def _measure_old(self) -> str:
        """How long the old version takes; a dead or damaged one must not be kept for that."""
        assert self.old
        try:
            goldens = Goldens.read(self._running.model_store / self.old.archive)
            ask_old = self._version(self.old.version)
            self._usual = median_time([case.picture for case in goldens.cases], ask_old)
        except MarsmithError as error:
            return f"; how long {self.old.version} takes is not known: {error}"
        return ""

    def restore(self) -> str:
        if not self.old:
            return ""
        return self._client.set_default(self.model, self.old.version)

    def watch(self) -> str:
        failures = self._failures.read
        return str(watch(self._options.watch, self._probe, self._trouble, failures, self._usual))

    def remove_old(self) -> str:
        """Drain and unregister the version before; raises ServerError, with nothing lost."""
        assert self.old
        return remove_version(self._client, self.model, self.old.version, self._options.drain)

    def _probe(self) -> GoldenCheck:
        # As a client who names no version, which is whom the switch concerns
        return ask(self._goldens, self._version(None))

    def _trouble(self) -> str | None:
        status = self.status()
        if status is None or not status.default:
            return "it was taken from being the default version by somebody else"
        if self._lost(status):
            return "a worker died"
        check = ask(self._goldens, lambda data: self._grpc.predict(self.model, {"data": data}))
        return check.problem and f"golden request answered wrongly over gRPC: {check.problem}"

    def _lost(self, status: VersionStatus) -> int:
        """How many workers died since this was first asked; one that still loads is none."""
        self._losses.see(self._running.pid, [status])
        return self._losses.lost[self.model, self.version]

    def _new(self, picture: bytes) -> Reply:
        return self._version(self.version)(picture)

    def _new_grpc(self, picture: bytes) -> Reply:
        return self._grpc.predict(self.model, {"data": picture}, version=self.version)

    def _version(self, version: str | None) -> Callable[[bytes], Reply]:
        return lambda picture: self._client.predict(self.model, picture, version=version)


def _right(check: GoldenCheck) -> str:
    if check.problem:
        raise ServerError(f"golden request answered wrongly: {check.problem}")
    return f"golden requests: {check}"
