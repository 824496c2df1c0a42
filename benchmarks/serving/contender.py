"""The contract of a contender: one file in ``contenders/``, found by its name.

A contender is asked for as ``file/variant``, such as ``ours/openvino:fp32``.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import psutil  # type: ignore[import-untyped]
import requests

from benchmarks.serving.processes import MARK, end_marked
from benchmarks.serving.subject import PROJECT, Subject
from handlers.errors import ServerError

_POLL_SECONDS = 0.1
# An answer that takes longer while it starts is asked for anew: some servers lose early requests.
_ASK_SECONDS = 60.0
_TROUBLE = ("ERROR", "Error", "Exception", "Traceback")


@dataclass(frozen=True)
class Request:
    """A POST: path below the address, body, and its content type."""

    path: str
    body: bytes
    content_type: str = "application/octet-stream"


@dataclass(frozen=True)
class Address:
    """Where a server listens, and the headers that every request needs."""

    url: str
    headers: Mapping[str, str] = field(default_factory=dict)


class Contender(ABC):
    """Something that answers pictures. What it starts carries its mark.

    ``part`` is the group that the command line knows it by, ``recommended`` which documentation was
    followed and how, ``tasks`` what it can serve, ``environment`` the name of the virtual
    environment ``.venv-bench-NAME`` that it runs in (None: this one).
    """

    part: ClassVar[str]
    recommended: ClassVar[str]
    tasks: ClassVar[tuple[str, ...]] = ("image-classification",)
    environment: ClassVar[str | None] = None
    # Whether its answers say anything: what does nothing is no wrong answer.
    answers_pictures: ClassVar[bool] = True

    def __init__(self, variant: str, subject: Subject, patience: float) -> None:
        """``patience`` is how many seconds it may take to be ready."""
        self.variant, self.subject, self.patience = variant, subject, patience
        self.mark = uuid.uuid4().hex
        # Below /tmp whatever TMPDIR says: sockets of servers need a short path.
        self.folder = Path(tempfile.mkdtemp(prefix="bench-", dir="/tmp"))

    @classmethod
    @abstractmethod
    def variants(cls, subject: Subject) -> list[str]:
        """The variants that take part where the command line names none."""

    @abstractmethod
    def prepare(self) -> None:
        """Make what is served; not timed."""

    @abstractmethod
    def start(self) -> None:
        """Start it; ``close`` ends what was started."""

    def close(self) -> None:
        """End every process that carries the mark, and remove the folder."""
        end_marked(self.mark)
        shutil.rmtree(self.folder, ignore_errors=True)

    def role(self, process: psutil.Process) -> str:
        """What a process of this contender is for."""
        return "server"

    def score(self, answers: Sequence[Any], truths: Sequence[Any]) -> float:
        """The task's metric of answers as ours are."""
        return self.subject.score(answers, truths)

    @classmethod
    def interpreter(cls) -> Path:
        """Python of its environment; raises ServerError where that is not made."""
        if cls.environment is None:
            return Path(sys.executable)
        python = PROJECT / f".venv-bench-{cls.environment}/bin/python"
        if not python.exists():
            raise ServerError(f"no {python.parents[1].name}: make it with `make bench-peers`")
        return python

    @contextmanager
    def marking(self) -> Any:
        """What is started inside inherits the mark."""
        os.environ[MARK] = self.mark
        try:
            yield
        finally:
            del os.environ[MARK]

    def launch(
        self, command: Sequence[object], environ: Mapping[str, str] | None = None, **given: Any
    ) -> subprocess.Popen[Any]:
        """Start a process with the mark, in a session of its own; its output goes to ``log``.

        A session, so that Ctrl-C reaches only the harness, which ends everything in order.
        """
        kept = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "OMP_WAIT_POLICY")}
        with (self.folder / "log").open("ab") as log:
            return subprocess.Popen(
                [str(word) for word in command],
                cwd=self.folder,
                env={**kept, "TMPDIR": str(self.folder), **(environ or {}), MARK: self.mark},
                stdin=given.pop("stdin", subprocess.DEVNULL),
                stdout=given.pop("stdout", log),
                stderr=log,
                start_new_session=True,
                **given,
            )

    def last_words(self) -> str:
        """The latest lines of its output that tell of trouble, or else its latest ones."""
        log = self.folder / "log"
        text = log.read_text("utf-8", "replace") if log.exists() else ""
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        trouble = [line for line in lines if any(word in line for word in _TROUBLE)]
        return " | ".join((trouble or lines)[-5:])[-600:] or "it printed nothing"


class Server(Contender):
    """A contender that listens for HTTP."""

    address: Address
    process: subprocess.Popen[Any] | None = None

    @abstractmethod
    def request(self, pictures: Sequence[bytes]) -> Request | None:
        """One request with these pictures; None where its protocol takes one picture at a time."""

    @abstractmethod
    def answers(self, body: bytes) -> list[Any]:
        """The answers of a response in the form that ours have, one for each picture."""

    def timers(self) -> dict[str, float] | None:
        """Its own timers as ``timers.read`` has them; None where it has no such ones."""
        return None

    def ask(self, picture: bytes, seconds: float | None = None) -> bytes:
        """The body of a successful answer within so many seconds; raises ServerError."""
        request = self.request([picture])
        assert request is not None, "every server takes one picture"
        try:
            reply = requests.post(
                self.address.url + request.path,
                data=request.body,
                headers={**self.address.headers, "content-type": request.content_type},
                timeout=seconds or self.patience,
            )
        except requests.RequestException as error:
            raise ServerError(f"no answer: {error}") from error
        if reply.status_code != 200:
            raise ServerError(f"{reply.status_code}: {reply.text[:200]}")
        return reply.content

    def wait_ready(self, picture: bytes) -> None:
        """Wait for the first right answer; raises ServerError with its last words."""
        deadline, why = time.monotonic() + self.patience, ""
        while time.monotonic() < deadline:
            if self.process is not None and self.process.poll() is not None:
                raise ServerError(f"it has ended ({self.process.poll()}): {self.last_words()}")
            try:
                self.ask(picture, min(_ASK_SECONDS, max(1.0, deadline - time.monotonic())))
            except ServerError as error:
                why = str(error)
                time.sleep(_POLL_SECONDS)
            else:
                return
        raise ServerError(f"not ready in {self.patience:g} s ({why}): {self.last_words()}")


class Local(Contender):
    """A contender without a server, which is measured where it runs."""

    @abstractmethod
    def all_answers(self, pictures: Sequence[bytes]) -> list[Any]:
        """Answers in the form that ours have."""

    @abstractmethod
    def run(self, pictures: Sequence[bytes], seconds: float) -> tuple[int, float]:
        """How many pictures in about so many seconds, and pictures per second."""
