"""The last stage of a build: TorchServe's own loader opens the archive in a clean process."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from handlers.errors import SmokeError
from marsmith.archive import unpack

TIMEOUT = 600
_WORKER = Path(__file__).with_name("smoke_worker.py")


@contextmanager
def prepared() -> Iterator[Callable[[Path], None]]:
    """A clean process that gets ready beside the build, to load an archive as a worker does.

    What this gives loads the archive at a path there and lets it answer, once; it raises SmokeError
    with the reason.
    """
    with _clean(_WORKER) as load:

        def check(path: Path) -> None:
            load(path)

        yield check


def run(path: Path, script: Path, *words: str) -> str:
    """What ``script`` prints in a clean process, given the folder of the unpacked archive ``path``
    and ``words``, after a line on its standard input.

    Nothing of ours can be imported there but what the archive carries. Raises SmokeError.
    """
    with _clean(script, *words) as load:
        return load(path)


@contextmanager
def _clean(script: Path, *words: str) -> Iterator[Callable[[Path], str]]:
    with tempfile.TemporaryDirectory(prefix="marsmith-smoke-") as folder:
        environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
        process = subprocess.Popen(
            # -P: the script's own folder, which is the pipeline, stays off the path.
            [sys.executable, "-P", str(script), folder, *words],
            cwd=folder,
            env={**environment, "PYTHONPATH": folder, "PYTHONDONTWRITEBYTECODE": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

        def load(path: Path) -> str:
            unpack(path, Path(folder))
            try:
                out, err = process.communicate("\n", timeout=TIMEOUT)
            except subprocess.TimeoutExpired as error:
                raise SmokeError(f"the archive did not load within {TIMEOUT} s") from error
            if process.returncode != 0:
                raise SmokeError(
                    f"the archive does not load in a clean process: {_reason(out + err)}"
                )
            return out

        with process:
            try:
                yield load
            finally:
                process.kill()


def _reason(output: str) -> str:
    lines = output.strip().splitlines() or ["no output"]
    refused = [line for line in lines if "marsmith: refused" in line]
    return (refused or lines)[-1]
