"""Loads on a server: each starts a client process and returns what it saw.

Latencies are in milliseconds. ``requests`` are those that have ended, ``failed`` those of them that
were not answered well; wrk counts a connection that broke among the latter alone. ``client_cpu``
are the client's own CPU seconds.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.serving.contender import Address, Request
from benchmarks.serving.subject import PROJECT
from handlers.errors import ServerError

_LUA = Path(__file__).with_name("rotate.lua")
# A client that has not ended so long after its load is stuck.
_GRACE_SECONDS = 90.0
_TIMEOUT_SECONDS = 30


@dataclass(frozen=True)
class Bodies:
    """Requests in files: what a client process is told."""

    url: str
    path: str
    headers: dict[str, str]
    files: list[str]

    @classmethod
    def write(cls, folder: Path, address: Address, requests: Sequence[Request]) -> Bodies:
        """Write the bodies of requests that share a path and a content type into a new folder."""
        folder.mkdir(parents=True)
        files = []
        for number, request in enumerate(requests):
            file = folder / f"{number:05}"
            file.write_bytes(request.body)
            files.append(str(file))
        headers = {**address.headers, "Content-Type": requests[0].content_type}
        return cls(address.url, requests[0].path, headers, files)


def has_wrk() -> bool:
    """Whether ``closed`` can run."""
    return shutil.which("wrk") is not None


def closed(bodies: Bodies, connections: int, seconds: float) -> dict[str, Any]:
    """``wrk``: each connection sends its next request as soon as it has its answer."""
    wrk = shutil.which("wrk")
    if wrk is None:
        raise ServerError("wrk is not installed: `apt-get install wrk`, or leave out --load closed")
    table = Path(bodies.files[0]).parent / "requests.txt"
    headers = [f"{name}: {value}" for name, value in bodies.headers.items()]
    lines = [bodies.path, str(len(headers)), *headers, *bodies.files]
    table.write_text("\n".join(lines) + "\n")
    # It gives each thread an equal number.
    threads = 1 if connections % 2 else 2
    command = [wrk, "-t", str(threads), "-c", str(connections), "-d", f"{max(1, round(seconds))}s"]
    command += ["--timeout", f"{_TIMEOUT_SECONDS}s", "--latency", "-s", str(_LUA), bodies.url]
    text, cpu = _client([*command, "--", str(table)], seconds)
    found: dict[str, Any] = json.loads(text.strip().splitlines()[-1])
    if not found["requests"]:
        # Its zeros would be the best latencies of all.
        found = {key: found[key] for key in ("requests", "seconds", "failed")}
    return {"connections": connections, **found, "client_cpu": cpu}


def poisson(bodies: Bodies, rate: float, seconds: float, seed: int, **proof: Any) -> dict[str, Any]:
    """Poisson arrivals that wait for nobody; see ``benchmarks.serving.poisson``.

    ``proof`` are an ``archive`` and the ``expected`` answers, or nothing.
    """
    job = {**asdict(bodies), "rate": rate, "seconds": seconds, "seed": seed, **proof}
    return _module("poisson", job, seconds)


def mlperf(bodies: Bodies, job: dict[str, Any], seconds: float) -> dict[str, Any]:
    """MLPerf LoadGen; see ``benchmarks.serving.mlperf``."""
    return _module("mlperf", {**asdict(bodies), **job}, seconds)


def _module(name: str, job: dict[str, Any], seconds: float) -> dict[str, Any]:
    file = Path(job["files"][0]).parent / f"{name}.json"
    file.write_text(json.dumps(job))
    command = [sys.executable, "-m", f"benchmarks.serving.{name}", str(file)]
    text, cpu = _client(command, seconds)
    found: dict[str, Any] = json.loads(text.strip().splitlines()[-1])
    return {**found, "client_cpu": cpu}


def _client(command: list[str], seconds: float) -> tuple[str, float]:
    """The output of a client process and its CPU seconds; raises ServerError."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    environ = {**os.environ, "PYTHONPATH": str(PROJECT)}
    try:
        done = subprocess.run(
            command,
            env=environ,
            capture_output=True,
            text=True,
            timeout=seconds + _GRACE_SECONDS,
        )
    except subprocess.TimeoutExpired as error:
        raise ServerError(f"{Path(command[0]).name} did not end: {error}") from error
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        words = (done.stderr or done.stdout).strip().splitlines()[-3:]
        raise ServerError(f"the load generator failed: {' '.join(words)}")
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return done.stdout, cpu
