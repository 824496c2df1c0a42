"""Our archives, each runtime and precision that a build offers, as ``marsmith serve`` runs them."""

from __future__ import annotations

import base64
import json
import shutil
import time
from collections.abc import Sequence
from typing import Any

import psutil  # type: ignore[import-untyped]

from benchmarks.serving import timers
from benchmarks.serving.contender import Address, Request, Server
from benchmarks.serving.subject import PROJECT, Subject
from handlers.errors import ServerError
from marsmith.addresses import Tokens, bearer, free_addresses
from marsmith.client import Client
from marsmith.environment import CONFIG_NAME
from marsmith.server import TorchServe

_TELLING_SECONDS = 0.5


class Ours(Server):
    """``ours/RUNTIME:PRECISION``, with the serving settings of the model file."""

    part = "ours"
    recommended = (
        "README.md: `./build_mar.sh`, then `make serve`, with the project's config.properties and "
        "the model file's own serving settings. One picture: its bytes as the body; several: JSON "
        "with base64."
    )
    tasks = ("image-classification", "semantic-segmentation", "object-detection")
    _server: TorchServe | None = None

    @classmethod
    def variants(cls, subject: Subject) -> list[str]:
        return [f"{runtime}:{precision}" for runtime, precision in subject.offered()]

    def prepare(self) -> None:
        runtime, _, precision = self.variant.partition(":")
        archive = self.subject.archive(runtime, precision or "fp32")
        store = self.folder / "model-store"
        store.mkdir()
        shutil.copy(archive, store)

    @property
    def server(self) -> TorchServe:
        """The TorchServe of ``start``."""
        assert self._server is not None, "start comes first"
        return self._server

    def start(self) -> None:
        settings = {"model_store": "model-store", **free_addresses()}
        self._server = TorchServe(self.folder, config_file=PROJECT / CONFIG_NAME, config=settings)
        with self.marking():
            self._server.start()
        running = self._server.running
        tokens = Tokens.read(running.home)
        self.address = Address(running.addresses.inference, bearer(tokens.inference))

    def wait_ready(self, picture: bytes) -> None:
        # A request before a worker lives would wait for its whole timeout.
        for status in self.server.wait_ready(self.patience):
            if status.failed:
                raise ServerError(status.failed)
        super().wait_ready(picture)

    def close(self) -> None:
        try:
            if self._server is not None:
                self._server.stop()
                shutil.rmtree(self._server.temp, ignore_errors=True)
        finally:
            super().close()

    def timers(self) -> dict[str, float]:
        with self.server.client() as client:
            found = timers.read(client.metrics())
            # The front end reads what workers print a moment after their answers.
            while (latest := self._later(client)) != found:
                found = latest
        return found

    @staticmethod
    def _later(client: Client) -> dict[str, float]:
        time.sleep(_TELLING_SECONDS)
        return timers.read(client.metrics())

    def role(self, process: psutil.Process) -> str:
        return "front end" if process.name() == "java" else "worker"

    def request(self, pictures: Sequence[bytes]) -> Request:
        path = f"/predictions/{self.subject.spec.name}"
        if len(pictures) == 1:
            return Request(path, pictures[0])
        instances = [{"b64": base64.b64encode(one).decode("ascii")} for one in pictures]
        body = json.dumps({"instances": instances}).encode()
        return Request(path, body, "application/json")

    def answers(self, body: bytes) -> list[Any]:
        found = json.loads(body)
        several = isinstance(found, dict) and "predictions" in found
        return list(found["predictions"]) if several else [found]
