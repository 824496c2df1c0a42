"""The ceiling: our handler on all cores without any server, a process with one thread for each."""

from __future__ import annotations

import json
import select
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

from benchmarks.serving.contender import Local
from benchmarks.serving.subject import PROJECT, Subject
from handlers.errors import ServerError


class Ceiling(Local):
    """``ceiling/RUNTIME:PRECISION``: decode, preprocess, model and answer, in full batches."""

    part = "ceilings"
    recommended = (
        "No server: each core has a process with one native thread that hands full batches of "
        "encoded pictures to the handler of our archive."
    )
    tasks = ("image-classification", "semantic-segmentation", "object-detection")
    _children: Sequence[subprocess.Popen[str]] = ()

    @classmethod
    def variants(cls, subject: Subject) -> list[str]:
        return [f"{runtime}:{precision}" for runtime, precision in subject.offered()]

    def prepare(self) -> None:
        runtime, _, precision = self.variant.partition(":")
        cores = self.subject.cores
        self._archive = self.subject.unpacked(
            self.folder, runtime, precision or "fp32", workers=cores, threads=1
        )

    def start(self) -> None:
        command = [sys.executable, "-m", "benchmarks.serving.inprocess", self._archive]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        environ = {"PYTHONPATH": str(PROJECT), "OMP_WAIT_POLICY": "PASSIVE"}
        self._children = [self.launch(command, environ, **pipes) for _ in range(self.subject.cores)]
        for child in self._children:
            self._read(child, self.patience)

    def close(self) -> None:
        super().close()
        for child in self._children:
            # Its pipes would stay open until the garbage collector comes.
            with child:
                pass

    def all_answers(self, pictures: Sequence[bytes]) -> list[Any]:
        job = {"files": self._files(pictures), "seconds": 0}
        return list(self._ask(self._children[:1], job)[0]["answers"])

    def run(self, pictures: Sequence[bytes], seconds: float) -> tuple[int, float]:
        job = {"files": self._files(pictures), "seconds": seconds}
        done = self._ask(self._children, job)
        return (
            sum(each["pictures"] for each in done),
            float(sum(each["pictures"] / each["seconds"] for each in done)),
        )

    def _files(self, pictures: Sequence[bytes]) -> list[str]:
        paths = [self.folder / f"picture{number}" for number in range(len(pictures))]
        for path, data in zip(paths, pictures, strict=True):
            path.write_bytes(data)
        return [str(path) for path in paths]

    def _ask(self, children: Sequence[subprocess.Popen[str]], job: Any) -> list[dict[str, Any]]:
        for child in children:
            assert child.stdin is not None
            child.stdin.write(json.dumps(job) + "\n")
            child.stdin.flush()
        return [self._read(child, job["seconds"] + self.patience) for child in children]

    def _read(self, child: subprocess.Popen[str], seconds: float) -> dict[str, Any]:
        assert child.stdout is not None
        if not select.select([child.stdout], [], [], seconds)[0]:
            raise ServerError(f"no answer of the process without a server in {seconds:g} s")
        line = child.stdout.readline()
        if not line.startswith("{"):
            raise ServerError(f"the process without a server failed: {line} {self.last_words()}")
        found: dict[str, Any] = json.loads(line)
        return found
