"""Pictures of files and folders, asked a few at a time."""

from __future__ import annotations

import glob
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from handlers.errors import MarsmithError, ServerError
from handlers.formats import SUFFIXES
from marsmith import samples
from marsmith.client import Client, Reply

T = TypeVar("T")


def find_pictures(named: Sequence[str]) -> list[Path]:
    """The files that were named, the pictures below named folders, what patterns such as ** match.

    A file need not be there: it fails when it is read. Raises ServerError for a folder without
    pictures and a pattern that matches none: a typing mistake must not pass in silence.
    """
    found: list[Path] = []
    for name in named:
        path = Path(name)
        if path.is_dir():
            files = samples.found(path, deep=True)
        elif path.exists() or not glob.has_magic(name):
            files = [path]
        else:
            files = [one for one in map(Path, glob.glob(name, recursive=True)) if one.is_file()]
        if not files:
            kinds = ", ".join(SUFFIXES)
            raise ServerError(
                f"{name} names no picture: give a file, a folder with {kinds}, or a"
                " pattern that matches"
            )
        found += sorted(files)
    return list(dict.fromkeys(found))


@dataclass(frozen=True)
class Asked:
    """A picture and its reply, or why there is none."""

    path: Path
    reply: Reply | None
    problem: str | None


class Asker:
    """Asks pictures of one version of a model, each thread with a client of its own."""

    def __init__(self, make: Callable[[], Client], model: str, version: str | None) -> None:
        self._make, self._model, self._version = make, model, version
        self._mine = threading.local()
        self._clients: list[Client] = []

    def ask(self, path: Path, accept: str | None = None) -> Asked:
        """One picture's answer; what goes wrong with it is in the result."""
        try:
            body = path.read_bytes()
        except OSError as error:
            return Asked(path, None, f"cannot be read: {error.strerror}")
        try:
            reply = self._client().predict(self._model, body, version=self._version, accept=accept)
            if reply.ok and accept is None:
                reply.json()
        except MarsmithError as error:
            return Asked(path, None, str(error))
        return Asked(path, reply, None if reply.ok else reply.problem())

    def _client(self) -> Client:
        if not hasattr(self._mine, "client"):
            self._mine.client = self._make()
            self._clients.append(self._mine.client)
        client: Client = self._mine.client
        return client

    def close(self) -> None:
        """Close all clients."""
        for client in self._clients:
            client.close()


def in_order(work: Callable[[Path], T], paths: Sequence[Path], jobs: int) -> Iterator[T]:
    """What ``work`` gives for each path, in their order, with ``jobs`` under way at once."""
    with ThreadPoolExecutor(jobs) as pool:
        yield from pool.map(work, paths)
