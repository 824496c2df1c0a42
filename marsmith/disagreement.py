"""A new version and the running one, asked the same pictures."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from handlers.errors import ServerError
from marsmith.client import Client, Reply
from marsmith.processes import Running
from marsmith.watch import FIRST_SERVER_ERROR

if TYPE_CHECKING:
    from handlers.bundle import Bundle
    from handlers.task import TaskHandler

_AT_ONCE = 4
_NAMED = 3


@dataclass(frozen=True)
class Compared:
    """How many pictures both versions answered, and on which they disagreed and how."""

    pictures: int
    disagreements: list[str]

    @property
    def share(self) -> float:
        """Disagreements by pictures, 0 to 1."""
        return len(self.disagreements) / self.pictures

    def __str__(self) -> str:
        some = "; ".join(self.disagreements[:_NAMED])
        count = len(self.disagreements)
        return f"{count} of {self.pictures} pictures answered otherwise" + (some and f": {some}")


def difference(handler: TaskHandler, old: Reply, new: Reply) -> str | None:
    """What the task calls another decision, or another refusal; None where both agree.

    An error of the server is no agreement, even where both versions have it.
    """
    if not (old.ok and new.ok):
        same = old.status == new.status < FIRST_SERVER_ERROR
        return None if same else f"{new.status}, {old.status} before"
    try:
        found = handler.compare(old.json(), new.json())
    # An answer of another shape
    except (ValueError, KeyError, TypeError, IndexError) as error:
        return f"answers cannot be compared: {error!r}"
    return None if found.same else found.detail


def compare(
    running: Running, bundle: Bundle, old: str, new: str, pictures: Sequence[Path]
) -> Compared:
    """Ask both versions of a model all pictures; raises ServerError where one does not answer."""
    from handlers.plugins import load_task

    handler = load_task(bundle.task)()
    handler.bundle = bundle

    def ask(path: Path) -> str | None:
        try:
            body = path.read_bytes()
        except OSError as error:
            raise ServerError(f"cannot read {path}: {error}") from error
        with Client.of(running) as client:
            replies: list[Any] = [
                client.predict(bundle.name, body, version=version) for version in (old, new)
            ]
        problem = difference(handler, *replies)
        return problem and f"{path.name}: {problem}"

    with ThreadPoolExecutor(_AT_ONCE) as pool:
        found = list(pool.map(ask, pictures))
    return Compared(len(pictures), [each for each in found if each])
