"""Golden requests asked through a running server: does a version answer as it was built to?"""

from __future__ import annotations

import time
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path
from typing import Any, NamedTuple

from handlers import bundle, golden
from handlers.bundle import Bundle
from handlers.errors import ArchiveError, LoadError, ServerError
from handlers.golden import Golden
from handlers.plugins import load_task
from marsmith.client import Reply

Predict = Callable[[bytes], Reply]
"""A picture's bytes -> the reply of the version that is probed; raises ServerError."""


@dataclass(frozen=True)
class GoldenCheck:
    """How many golden requests were asked, what is wrong with an answer, in one line, and how long
    one takes at the server, in seconds (their mean; 0 where none was answered). ``is_wrong``: the
    problem is an answer, and not that there is none.
    """

    count: int
    problem: str | None
    seconds: float = 0.0
    is_wrong: bool = False

    def __str__(self) -> str:
        return self.problem or (f"{self.count} ok" if self.count else "none in the archive")


class Case(NamedTuple):
    """One golden request with its picture's bytes."""

    request: Golden
    picture: bytes


@dataclass(frozen=True)
class Goldens:
    """An archive's golden requests, and what its model is; no cases and no bundle if it has none"""

    bundle: Bundle | None
    cases: tuple[Case, ...]

    @classmethod
    def read(cls, path: Path) -> Goldens:
        """The golden requests of an archive, or of the folder that has one unpacked.

        Raises ArchiveError.
        """
        try:
            if path.is_dir():
                return cls._of(path)
            with zipfile.ZipFile(path) as archive:
                return cls._of(zipfile.Path(archive))
        except (OSError, zipfile.BadZipFile, ValueError, KeyError, LoadError) as error:
            raise ArchiveError(f"{path.name} has no golden requests to read: {error!r}") from error

    @classmethod
    def _of(cls, root: Path | zipfile.Path) -> Goldens:
        if not (root / golden.FILE).exists():
            return cls(None, ())
        requests = golden.parse((root / golden.FILE).read_bytes())
        return cls(
            Bundle.parse((root / bundle.FILE).read_text(encoding="utf-8")),
            tuple(Case(request, (root / request.picture).read_bytes()) for request in requests),
        )


def task_difference(model: Bundle, expected: Any, answer: Any, tolerance: float) -> str | None:
    """What the task of a bundle calls a difference, as ``golden.difference``."""
    handler = load_task(model.task)()
    handler.bundle = model
    return golden.difference(handler, expected, answer, tolerance)


def ask(goldens: Goldens, predict: Predict, least: int = 1) -> GoldenCheck:
    """Ask golden requests, ``least`` of them by turns if there are fewer, until one goes wrong."""
    if goldens.bundle is None:
        return GoldenCheck(0, None)
    spent, answered = 0.0, False

    def timed(picture: bytes) -> Reply:
        nonlocal spent, answered
        start, answered = time.perf_counter(), False
        reply = predict(picture)
        spent += time.perf_counter() - start
        answered = reply.ok
        return reply

    wanted = max(least, len(goldens.cases))
    for count, case in enumerate(islice(cycle(goldens.cases), wanted), 1):
        if problem := _problem(goldens.bundle, case, timed):
            said = f"{case.request.picture}: {problem}"
            return GoldenCheck(count, said, spent / count, is_wrong=answered)
    return GoldenCheck(wanted, None, spent / wanted)


def _problem(model: Bundle, case: Case, predict: Predict) -> str | None:
    try:
        reply = predict(case.picture)
        if not reply.ok:
            return reply.problem()
        return task_difference(model, case.request.answer, reply.json(), case.request.tolerance)
    except (ServerError, LoadError) as error:
        return str(error)
    # An answer of another shape than the task's
    except (ValueError, KeyError, TypeError, IndexError) as error:
        return f"the answer is not one of task {model.task}: {error!r}"
