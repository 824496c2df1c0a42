"""Why workers did not load, from the logs: TorchServe itself says only "Unknown exception"."""

from __future__ import annotations

import functools
import gzip
import re
import threading
import zlib
from collections.abc import Iterable, Iterator
from contextlib import suppress
from datetime import datetime
from pathlib import Path

from handlers.errors import ServerError
from marsmith.log_lines import Follower

Version = tuple[str, str]
# Time, worker and words.
Said = tuple[float, str, str]

_LINE = re.compile(
    r"(?P<time>\S+) \[\w+ *\] W-\d+-(?P<worker>.+)-std(?:out|err) MODEL_LOG - (?P<text>.*)"
)
_REFUSED = re.compile(r"marsmith: refused (?P<model>\S+) (?P<version>\S+): (?P<reason>.*)")
_EXCEPTION = re.compile(r"(?:\w+\.)*\w*(?:Error|Exception)\b.*")
# What TorchServe raises itself after it has swallowed the handler's own exception
_HIDDEN = ("RuntimeError: 500 - Unknown exception", "RuntimeError: 507 - System out of memory")
_DIED = "Backend worker process died."


def _said(home: Path, since: float) -> Iterator[Said]:
    """What workers said in this run, also in the parts of the log that were rotated away."""
    parts = []
    for part in (home / "logs").glob("model_log*.log*"):
        # A rotation renames them meanwhile.
        with suppress(FileNotFoundError):
            found = part.stat()
            parts.append((found.st_mtime_ns, found.st_size, part))
    for changed, size, part in sorted(parts):
        if changed < since * 1e9:
            continue
        # One that is being compressed ends in the middle, and is whole at the next look.
        with suppress(FileNotFoundError, EOFError, zlib.error, gzip.BadGzipFile):
            packed = part.suffix == ".gz"
            yield from _rotated(part, changed, size) if packed else _LIVE.read(part)


@functools.lru_cache(maxsize=16)
def _rotated(part: Path, changed: int, size: int) -> tuple[Said, ...]:
    """A part that does not change any more: status is asked for every few seconds."""
    return tuple(_read(part))


def _read(part: Path) -> Iterator[Said]:
    with gzip.open(part, "rt", encoding="utf-8", errors="replace") as file:
        yield from _told(file)


class _Live:
    """What was said in files that still grow: each is read on from where it ended, for a rollout
    asks several times a second."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._known: dict[Path, tuple[Follower, list[Said]]] = {}

    def read(self, part: Path) -> list[Said]:
        """All that matters of a file's whole lines; of what it had before it was begun anew at most
        what came since the last call, which stands in another part as well."""
        with self._lock:
            if part not in self._known:
                self._known[part] = Follower(part, from_end=False), []
            follower, found = self._known[part]
            before = follower.opened
            fresh = [*_told(follower.lines())]
            found[:] = fresh if follower.opened != before else [*found, *fresh]
            return found.copy()


_LIVE = _Live()


def _told(lines: Iterable[str]) -> Iterator[Said]:
    for line in lines:
        found = _LINE.match(line)
        text = found["text"].strip() if found else ""
        if found and (
            _REFUSED.match(text)
            or text == _DIED
            or (_EXCEPTION.fullmatch(text) and text not in _HIDDEN)
        ):
            yield _timestamp(found["time"]), found["worker"], text


def read_refusals(home: Path, since: float) -> dict[Version, str]:
    """The latest reason why a worker of each (model, version) did not load, without the rest.

    ``home`` is the server's working folder, ``since`` the start of its run (seconds since 1970).
    A handler of ours logs ``marsmith: refused <model> <version>: <reason>``; of any other handler
    the reason is the last exception before its worker died. A version that loads in a later try
    keeps its entry here: whoever asks looks at the workers first.
    """
    refused: dict[Version, str] = {}
    last: dict[str, str] = {}
    crashed: dict[Version, str] = {}
    try:
        for moment, worker, text in _said(home, since):
            if moment < since:
                continue
            if reason := _REFUSED.match(text):
                refused[reason["model"], reason["version"]] = reason["reason"]
            elif text == _DIED:
                model, _, version = worker.rpartition("_")
                crashed[model, version] = last.get(worker, "its worker died without a message")
            else:
                last[worker] = text
    except OSError as error:
        raise ServerError(f"cannot read TorchServe's logs: {error}") from error
    return {**crashed, **refused}


def _timestamp(text: str) -> float:
    try:
        return datetime.fromisoformat(text.replace(",", ".")).timestamp()
    except ValueError:
        return 0.0
