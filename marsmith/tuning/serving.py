"""Serve one point with a TorchServe of its own, and load it."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from handlers.errors import ServerError
from marsmith.addresses import Tokens, bearer, free_addresses
from marsmith.archive import file_name
from marsmith.environment import CONFIG_NAME, SIGNATURE_SETTING
from marsmith.leaving import failure
from marsmith.server import TorchServe
from marsmith.spec import ModelSpec
from marsmith.tuning import client
from marsmith.tuning.points import LOAD, Measured, Point
from marsmith.tuning.staging import restage, serving_of

# A fresh Java front end is slower.
_WARM_SECONDS = 2.0
_FEWEST, _MOST = 4, 64


@dataclass(frozen=True)
class Load:
    """What a point is loaded with: picture files, and the seconds of each of the two loops."""

    pictures: Sequence[Path]
    seconds: float
    seed: int = 0


def measure(archive: Path, spec: ModelSpec, root: Path, point: Point, load: Load) -> Measured:
    """The figures of a point, or its problem; ``archive`` has its runtime and precision."""
    # Below /tmp whatever TMPDIR says, as TorchServe's own temp folder is.
    with tempfile.TemporaryDirectory(prefix="marsmith-tune-", dir="/tmp") as temporary:
        home = Path(temporary)
        store = home / "model-store"
        store.mkdir()
        target = store / file_name(spec.name, spec.version)
        restage(archive, target, serving_of(spec, point), point.options)
        server = TorchServe(home, config_file=root / CONFIG_NAME, config=_settings())
        try:
            with server:
                for status in server.wait_ready(spec.serving.startup_timeout):
                    if status.failed:
                        raise ServerError(status.failed)
                found = _asked(server, spec.name, point, load, home)
        except ServerError as error:
            return Measured(point, problem=str(error))
        finally:
            shutil.rmtree(server.temp, ignore_errors=True)
    if found["failed"]:
        problem = f"{found['failed']} requests failed, first: {found['first_failure']}"
        return Measured(point, problem=problem)
    names = ("throughput", "p50", "p99", "requests", "late_p99", "client_cpu")
    if "p99" not in found:
        return Measured(point, problem=f"no request came to an answer within {load.seconds:g} s")
    return Measured(point, **{name: found[name] for name in names})


def connections(point: Point) -> int:
    """So many clients that each worker has a full batch while another one waits."""
    return max(_FEWEST, min(_MOST, 2 * point.workers * point.batch_size))


def _settings() -> dict[str, str | None]:
    # What was built and changed here a moment ago is nobody's to sign.
    return {"model_store": "model-store", SIGNATURE_SETTING: None, **free_addresses()}


def _asked(server: TorchServe, model: str, point: Point, load: Load, home: Path) -> dict[str, Any]:
    running = server.running
    address = urlsplit(running.addresses.inference)
    job = {
        "host": address.hostname,
        "port": address.port,
        "path": f"/predictions/{model}",
        "headers": {
            "Content-Type": "application/octet-stream",
            **bearer(Tokens.read(running.home).inference),
        },
        "files": [str(path.absolute()) for path in load.pictures],
        "connections": connections(point),
        "warm": min(_WARM_SECONDS, load.seconds),
        "seconds": load.seconds,
        "share": LOAD,
        "seed": load.seed,
    }
    file = home / "job.json"
    file.touch(mode=0o600)
    file.write_text(json.dumps(job), encoding="utf-8")
    command = [sys.executable, "-m", client.__name__, str(file)]
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=3 * (load.seconds + client.TIMEOUT) + _WARM_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise ServerError(f"the load did not end: {error}") from error
    if done.returncode:
        raise ServerError(f"the load client failed: {failure(done.returncode, done.stderr)}")
    found: dict[str, Any] = json.loads(done.stdout)
    return found
