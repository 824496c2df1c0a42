"""The last stage of a build: TorchServe's own loader opens the archive in a clean process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from handlers.errors import SmokeError
from marsmith.archive import STAND_IN, stage_stand_in, unpack
from marsmith.leaving import failure

TIMEOUT = 600
_SMOKE = Path(__file__).with_name("smoke_worker.py")
_LOAD = Path(__file__).with_name("load_worker.py")


@contextmanager
def prepared(needs_torch: bool = True) -> Iterator[Callable[[Path], None]]:
    """A clean process that gets ready beside the build, to load an archive as a worker does.

    It imports torch meanwhile if the archive's runtime ``needs_torch``. What this gives loads the
    archive at a path there and lets it answer, once; it raises SmokeError with the reason.
    """
    with _clean(_SMOKE, needs_torch=needs_torch) as load:

        def check(path: Path) -> None:
            load(path)

        yield check


def measured(path: Path, batch: int | None = None) -> dict[str, Any]:
    """What ``load_worker`` finds of the archive at ``path`` in a clean process; raises SmokeError.

    With ``batch`` it times the model as well, of one picture and of so many.
    """
    with _clean(_LOAD, *([] if batch is None else [str(batch)])) as load:
        found: dict[str, Any] = json.loads(load(path).splitlines()[-1])
        return found


@contextmanager
def _clean(script: Path, *words: str, needs_torch: bool = True) -> Iterator[Callable[[Path], str]]:
    """What this gives says what ``script`` prints in a clean process, given the folder of the
    unpacked archive and ``words``, after a line on its standard input.

    Nothing of ours can be imported there but what the archive carries. Raises SmokeError.
    """
    with tempfile.TemporaryDirectory(prefix="marsmith-smoke-") as folder:
        if not needs_torch:
            # The process begins before it is known what the archive brings.
            stage_stand_in(Path(folder))
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
            (Path(folder) / STAND_IN).unlink(missing_ok=True)
            unpack(path, Path(folder))
            try:
                out, err = process.communicate("\n", timeout=TIMEOUT)
            except subprocess.TimeoutExpired as error:
                raise SmokeError(f"the archive did not load within {TIMEOUT} s") from error
            if process.returncode != 0:
                reason = _reason(process.returncode, out + err)
                raise SmokeError(f"the archive does not load in a clean process: {reason}")
            return out

        with process:
            try:
                yield load
            finally:
                process.kill()


def _reason(status: int, output: str) -> str:
    refused = [line for line in output.splitlines() if "marsmith: refused" in line]
    return refused[-1] if refused else failure(status, output)
