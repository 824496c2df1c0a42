"""Results as JSON lines, so that a search that was ended goes on where it stood."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


class Record:
    """The results in one file, each under a key of JSON values; a later line replaces an earlier.

    A line that was cut off when the machine went down is left out, and its point measured again:
    no part of a line is JSON. Later lines may follow it.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._found: dict[str, dict[str, Any]] = {}
        text = path.read_text(encoding="utf-8") if path.exists() else ""
        for line in text.splitlines():
            try:
                entry = json.loads(line)
            except json.JSONDecodeError:
                continue
            self._found[_text(entry["key"])] = entry["result"]

    def get(self, key: dict[str, Any]) -> dict[str, Any] | None:
        """The result under a key, or None."""
        return self._found.get(_text(key))

    def add(self, key: dict[str, Any], result: dict[str, Any]) -> None:
        """Keep a result; it is in the file when this returns."""
        self._found[_text(key)] = result
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.open("a+", encoding="utf-8") as file:
            file.seek(max(0, file.tell() - 1))
            cut = file.read() not in ("", "\n")
            file.write("\n" * cut + json.dumps({"key": key, "result": result}) + "\n")


def _text(key: dict[str, Any]) -> str:
    return json.dumps(key, sort_keys=True)
