"""Why workers did not load, from the logs: TorchServe itself says only "Unknown exception"."""

from __future__ import annotations

import gzip
import re
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

from handlers.errors import ServerError

Version = tuple[str, str]

_LINE = re.compile(
    r"(?P<time>\S+) \[\w+ *\] W-\d+-(?P<worker>.+)-std(?:out|err) MODEL_LOG - (?P<text>.*)"
)
_REFUSED = re.compile(r"marsmith: refused (?P<model>\S+) (?P<version>\S+): (?P<reason>.*)")
_EXCEPTION = re.compile(r"(?:\w+\.)*\w*(?:Error|Exception)\b.*")
# What TorchServe raises itself after it has swallowed the handler's own exception
_HIDDEN = ("RuntimeError: 500 - Unknown exception", "RuntimeError: 507 - System out of memory")
_DIED = "Backend worker process died."


def _lines(home: Path, since: float) -> Iterator[str]:
    """This run's lines of the model log, also of the parts that were rotated away."""
    parts = [(part.stat().st_mtime, part) for part in (home / "logs").glob("model_log*.log*")]
    for changed, part in sorted(parts):
        if changed >= since:
            opener = gzip.open if part.suffix == ".gz" else open
            with opener(part, "rt", encoding="utf-8", errors="replace") as file:
                yield from file


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
        for line in _lines(home, since):
            found = _LINE.match(line)
            if not found or _timestamp(found["time"]) < since:
                continue
            worker, text = found["worker"], found["text"].strip()
            if reason := _REFUSED.match(text):
                refused[reason["model"], reason["version"]] = reason["reason"]
            elif text == _DIED:
                model, _, version = worker.rpartition("_")
                crashed[model, version] = last.get(worker, "its worker died without a message")
            elif _EXCEPTION.fullmatch(text) and text not in _HIDDEN:
                last[worker] = text
    except OSError as error:
        raise ServerError(f"cannot read TorchServe's logs: {error}") from error
    return {**crashed, **refused}


def _timestamp(text: str) -> float:
    try:
        return datetime.fromisoformat(text.replace(",", ".")).timestamp()
    except ValueError:
        return 0.0
