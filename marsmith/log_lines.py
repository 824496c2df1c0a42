"""TorchServe's log files, read while they grow and rotate."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TextIO

from handlers.errors import ServerError

FILES = ("ts_log.log", "model_log.log")
_LINE = re.compile(r"(?P<time>\d{4}-\d\d-\d\dT\S+) \[(?P<level>\w+) *\] (?P<thread>\S+) ")
_WORKER = re.compile(r"W-\d+-(?P<model>.+)_[^_]+-std(?:out|err)")
_TROUBLE = ("WARN", "ERROR", "FATAL")
_SAID = re.compile(
    r"marsmith: (?:refused|warning)|Traceback \(most recent|\b\w*(?:Error|Exception)\b"
)


class Follower:
    """A file's new lines at each call, also when it is renamed away or emptied and begun anew;
    ``opened`` counts how often it was."""

    def __init__(self, path: Path, *, from_end: bool) -> None:
        self._path = path
        self._rest = ""
        self.opened = 0
        self._file: TextIO | None = None
        self._file = self._open()
        if self._file and from_end:
            self._file.seek(0, os.SEEK_END)

    def _open(self) -> TextIO | None:
        try:
            file = self._path.open(encoding="utf-8", errors="replace")
            self.opened += 1
            return file
        except FileNotFoundError:
            # Not written yet, or between two files
            return None
        except OSError as error:
            raise ServerError(f"cannot read TorchServe's log: {error}") from error

    def lines(self) -> list[str]:
        """Whole lines written since the last call, without their ends."""
        text = self._rest
        if self._file:
            text += self._file.read()
            if self._is_new(self._file):
                # What was written between reading and renaming
                text += self._file.read()
                text += "" if text.endswith("\n") or not text else "\n"
                self.close()
        if not self._file:
            self._file = self._open()
            text += self._file.read() if self._file else ""
        *whole, self._rest = text.split("\n")
        return whole

    def _is_new(self, file: TextIO) -> bool:
        """Whether the path is another file now, or this one was emptied."""
        try:
            here, now = os.fstat(file.fileno()), self._path.stat()
            return now.st_ino != here.st_ino or now.st_size < os.lseek(
                file.fileno(), 0, os.SEEK_CUR
            )
        except FileNotFoundError:
            return True

    def __del__(self) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        if self._file:
            self._file.close()
            self._file = None


@dataclass
class Chosen:
    """Which lines to show: of a model's workers or that name it, and only those of trouble.

    Lines that continue one (a Java stack) go with it; a Python traceback is shown whole.
    """

    model: str | None = None
    errors: bool = False
    _last: bool = False
    _tracebacks: set[str] = field(default_factory=set)

    def pick(self, lines: Iterable[str]) -> Iterator[str]:
        """Those of a file's next lines that are to be shown."""
        for line in lines:
            if found := _LINE.match(line):
                self._last = self._is_wanted(line, found)
            if self._last:
                yield line

    def _is_wanted(self, line: str, found: re.Match[str]) -> bool:
        text = line[found.end() :]
        return self._is_of_model(found["thread"], text) and (
            not self.errors or self._is_trouble(found, text)
        )

    def _is_of_model(self, thread: str, text: str) -> bool:
        if self.model is None:
            return True
        if worker := _WORKER.fullmatch(thread):
            return worker["model"] == self.model
        return bool(re.search(rf"(?<![\w.-]){re.escape(self.model)}(?:_\d[\w.]*)?(?![\w-])", text))

    def _is_trouble(self, found: re.Match[str], text: str) -> bool:
        said = text.partition(" - ")[2]
        thread = found["thread"]
        if said.startswith("Traceback (most recent"):
            self._tracebacks.add(thread)
        inside = thread in self._tracebacks
        if inside and not said.startswith((" ", "Traceback")):
            self._tracebacks.discard(thread)
        return inside or found["level"] in _TROUBLE or bool(_SAID.search(said))


def by_time(records: Iterable[str]) -> list[str]:
    """Lines of several files in the order of their times; those without one stay with the last."""
    keyed, last = [], ""
    for line in records:
        if found := _LINE.match(line):
            last = found["time"]
        keyed.append((last, line))
    return [line for _, line in sorted(keyed, key=lambda item: item[0])]
