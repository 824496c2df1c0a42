"""Archives without a model, folders to serve them from, and what tests do with both."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil

from marsmith.addresses import free_addresses
from marsmith.environment import CONFIG_NAME
from marsmith.processes import is_alive

PROJECT = Path(__file__).parents[2]

# Answers with what it got. It stands for any handler, so it is not made of this project's parts.
ECHO = """
import json, os

def handle(rows, context):
    if rows is None:
        return None
    answers = []
    for index, row in enumerate(rows):
        context.set_response_content_type(index, "application/json")
        kinds = {key: type(value).__name__ for key, value in row.items()}
        if row.get("data") == b"broken":
            context.set_response_status(422, "Unprocessable Entity", index)
            answers.append(b'{"code":422,"type":"BrokenPicture","message":"broken"}')
            continue
        values = {k: v.decode("latin-1") if isinstance(v, bytearray) else v for k, v in row.items()}
        answers.append(json.dumps({
            "version": context.manifest["model"]["modelVersion"], "kinds": kinds, "values": values,
            "secret": os.environ.get("MY_SECRET_KEY"), "threads": os.environ.get("MY_THREADS"),
        }).encode())
    return answers
"""
REFUSES = """
import logging

def handle(rows, context):
    model = context.manifest["model"]
    logging.error("marsmith: refused %s %s: not today", model["modelName"], model["modelVersion"])
    raise RuntimeError("not today")
"""


def pack(
    store: Path,
    name: str = "echo",
    version: str = "1.0",
    source: str = ECHO,
    extra: Mapping[str, str | bytes] | None = None,
) -> str:
    """Write a small archive with one worker; its file name."""
    manifest = {
        "runtime": "python",
        "model": {
            "modelName": name,
            "modelVersion": version,
            "handler": "tiny_handler",
            "configFile": "model-config.yaml",
        },
    }
    config = "minWorkers: 1\nmaxWorkers: 2\nbatchSize: 2\nmaxBatchDelay: 5\nresponseTimeout: 20\n"
    # Once a worker that never loads is given up, /ping says so of the whole server
    config += "maxRetryTimeoutInSec: 3600\n"
    with zipfile.ZipFile(store / f"{name}-{version}.mar", "w") as archive:
        archive.writestr("MAR-INF/MANIFEST.json", json.dumps(manifest))
        archive.writestr("model-config.yaml", config)
        archive.writestr("tiny_handler.py", source)
        for file, content in (extra or {}).items():
            archive.writestr(file, content)
    return f"{name}-{version}.mar"


def write_config(home: Path) -> None:
    """This project's configuration with free ports, for the last value of a name counts."""
    free = "".join(f"{name}={value}\n" for name, value in free_addresses().items())
    (home / CONFIG_NAME).write_text((PROJECT / CONFIG_NAME).read_text() + free)


def kill(pid: int) -> None:
    """End a process by force, and wait until it is gone."""
    psutil.Process(pid).kill()
    until(lambda: not is_alive(pid), 30)


def until(true: Callable[[], object], seconds: float = 120.0) -> None:
    """Wait for it; fails where it does not come true in time."""
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, f"it did not happen in {seconds:g} s"
        time.sleep(0.05)


@contextmanager
def ending(
    command: Sequence[str], home: Path, seconds: float = 300.0, **given: Any
) -> Iterator[subprocess.Popen[str]]:
    """Run a command in ``home`` until the block ends, ``seconds`` at most: its pipes end with it,
    so that nobody reads or waits for ever."""
    given.setdefault("env", {**os.environ, "PYTHONPATH": str(PROJECT)})
    with subprocess.Popen(
        command, cwd=home, stdout=subprocess.PIPE, text=True, start_new_session=True, **given
    ) as process:
        limit = threading.Timer(seconds, _end, [process])
        limit.start()
        try:
            yield process
        finally:
            limit.cancel()
            _end(process)


def _end(process: subprocess.Popen[str]) -> None:
    """End a process and its children as Ctrl-C does, and by force what takes too long."""
    for number in (signal.SIGINT, signal.SIGKILL):
        if process.poll() is None:
            os.killpg(process.pid, number)
            with suppress(subprocess.TimeoutExpired):
                process.wait(40)


def marsmith(home: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run ``marsmith`` as if it were installed, in the project folder ``home``."""
    return subprocess.run(
        [sys.executable, "-m", "marsmith", *arguments],
        cwd=home,
        env={**os.environ, "PYTHONPATH": str(PROJECT)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
