"""What the other Python servers share: their environment, their model and how they are started."""

from __future__ import annotations

import json
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]

from benchmarks.serving.contender import Address, Server
from benchmarks.serving.subject import Subject
from handlers.errors import BuildError
from marsmith.addresses import free_ports

APPS = Path(__file__).parent / "peers"


class Peer(Server):
    """``NAME/torch``, or ``NAME/openvino:PRECISION`` with the file out of our archive of that name.

    So ``openvino:int8+tensor`` is the one that was calibrated with the input's ``backend: tensor``;
    its own preprocessing stays that of its documentation.
    Each has a worker for each core with one thread (OMP_NUM_THREADS=1): with more they would fight
    for the cores. None logs its requests.
    """

    part = "peers"

    @classmethod
    def variants(cls, subject: Subject) -> list[str]:
        ours = [
            f"openvino:{precision}" for name, precision in subject.offered() if name == "openvino"
        ]
        # The most exact and the most reduced tell serving and runtime apart; others are there by
        # their names.
        return list(dict.fromkeys(["torch", *ours[:1], *ours[-1:]]))

    def prepare(self) -> None:
        runtime, _, archive = self.variant.partition(":")
        precision, *changes = (archive or "fp32").split("+")
        if runtime == "torch" and not archive:
            self._model = self.subject.describe(self.folder)
        elif runtime == "openvino" and not any("=" in change for change in changes):
            file = str(self.subject.openvino(self.folder, archive or "fp32"))
            self._model = self.subject.describe(self.folder, openvino=file, precision=precision)
        else:
            raise BuildError(
                f"{self.variant!r}: accepted are torch and openvino:PRECISION, with +tensor where "
                "our archive's input has that backend; serving settings are our server's"
            )

    @abstractmethod
    def command(self, port: int) -> Sequence[object]:
        """What starts it on this port of the loopback interface."""

    def settings(self) -> Mapping[str, str]:
        """More of its environment variables."""
        return {}

    def start(self) -> None:
        [port] = free_ports(1)
        self.address = Address(f"http://127.0.0.1:{port}")
        environ = {
            "BENCH_MODEL": str(self._model),
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": str(APPS),
            "HOME": str(self.folder),
            **self.settings(),
        }
        self.process = self.launch(self.command(port), environ)

    def role(self, process: psutil.Process) -> str:
        assert self.process is not None
        return "main" if process.pid == self.process.pid else "worker"

    def answers(self, body: bytes) -> list[Any]:
        return list(json.loads(body))
