"""Ray Serve."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import psutil  # type: ignore[import-untyped]

from benchmarks.serving.contender import Request
from benchmarks.serving.peer import APPS, Peer


class RayServe(Peer):
    """One picture a request, as its bytes."""

    recommended = (
        "Ray Serve, its ResNet-50 example (a deployment with num_cpus 1 a replica, the picture in "
        "the starlette request) and 'Dynamic Request Batching' (@serve.batch, 8 within 10 ms) with "
        "a replica for each core and OMP_NUM_THREADS as 'Performance Tuning' has it; no dashboard."
    )
    environment = "ray"

    def command(self, port: int) -> Sequence[object]:
        return [self.interpreter(), APPS / "ray_app.py", str(port), self.folder / "r"]

    def settings(self) -> Mapping[str, str]:
        return {"RAY_USAGE_STATS_ENABLED": "0", "RAY_DEDUP_LOGS": "0"}

    def role(self, process: psutil.Process) -> str:
        title = " ".join(process.cmdline())
        if "ServeReplica" in title:
            return "worker"
        return "front end" if "ProxyActor" in title or "haproxy" in title else "ray"

    def request(self, pictures: Sequence[bytes]) -> Request | None:
        return Request("/", pictures[0]) if len(pictures) == 1 else None

    def answers(self, body: bytes) -> list[Any]:
        return [json.loads(body)]
