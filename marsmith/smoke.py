"""The last stage of a build: TorchServe's own loader opens the archive in a clean process."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from handlers.errors import SmokeError
from marsmith.archive import unpack

TIMEOUT = 600
_WORKER = Path(__file__).with_name("smoke_worker.py")


def check(path: Path) -> None:
    """Load ``path`` as a worker does and let it answer; raises SmokeError with the reason."""
    run(path, _WORKER)


def run(path: Path, script: Path, *words: str) -> str:
    """What ``script`` prints in a clean process, given the folder of the unpacked archive ``path``
    and ``words``.

    Nothing of ours can be imported there but what the archive carries. Raises SmokeError.
    """
    with tempfile.TemporaryDirectory(prefix="marsmith-smoke-") as folder:
        unpack(path, Path(folder))
        environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
        try:
            done = subprocess.run(
                # -P: the script's own folder, which is the pipeline, stays off the path.
                [sys.executable, "-P", str(script), folder, *words],
                cwd=folder,
                env={**environment, "PYTHONPATH": folder, "PYTHONDONTWRITEBYTECODE": "1"},
                capture_output=True,
                text=True,
                timeout=TIMEOUT,
            )
        except subprocess.TimeoutExpired as error:
            raise SmokeError(f"the archive did not load within {TIMEOUT} s") from error
    if done.returncode != 0:
        lines = (done.stdout + done.stderr).strip().splitlines() or ["no output"]
        refused = [line for line in lines if "marsmith: refused" in line]
        raise SmokeError(f"the archive does not load in a clean process: {(refused or lines)[-1]}")
    return done.stdout
