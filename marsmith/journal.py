"""What was done to the versions of this project's models: an append-only file of JSON lines.

It is ``state/journal.jsonl`` in the project's folder. A line is a whole entry, written at once and
made durable before the next step, so that what happened can be told after a crash.
"""

from __future__ import annotations

import fcntl
import getpass
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from handlers.errors import ServerError

FILE = Path("state/journal.jsonl")
# How an operation ended; an entry of "started" without another after it was broken off.
STARTED, DONE, ROLLED_BACK, KEPT = "started", "done", "rolled back", "done, old version kept"
# Before it changed anything, for how the server was started or what it demands.
REFUSED = "refused"
ROLLOUT, ROLLBACK, REMOVE = "rollout", "rollback", "remove"
_SWITCHED = (DONE, KEPT)


def now() -> str:
    """The time in UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def user_name() -> str:
    """Who runs this: a login name, or "#UID" where the host knows none, as in a container."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return f"#{os.getuid()}"


@dataclass(frozen=True)
class Entry:
    """One line: an operation on a model, the versions before and after, and how it went.

    ``archive`` and ``sha256`` are those of the version ``after``, ``before_archive`` and
    ``before_sha256`` those of the version ``before``, which is empty for a model's first one;
    ``default`` is the version that is the default one when another is removed; ``reason`` says why
    something was rolled back or kept.
    """

    operation: str
    model: str
    before: str
    after: str
    result: str
    archive: str = ""
    sha256: str = ""
    reason: str = ""
    before_archive: str = ""
    before_sha256: str = ""
    default: str = ""
    user: str = field(default_factory=user_name)
    time: str = field(default_factory=now)


def append(home: Path, entry: Entry) -> None:
    """Add an entry to the journal of the project in ``home``; on disk when it returns.

    Raises ServerError where the disk does not take it; the journal is then as it was.
    """
    path = home / FILE
    # In ASCII, for some characters end a line as well, and some names are no text.
    line = json.dumps(asdict(entry)) + "\n"
    try:
        path.parent.mkdir(exist_ok=True)
        with path.open("ab", buffering=0) as file:
            whole = len(_whole(path))
            try:
                # The beginning of a line whose writer was stopped is no entry
                file.truncate(whole)
                left = line.encode()
                while left:
                    left = left[file.write(left) :]
                os.fsync(file.fileno())
            except OSError:
                file.truncate(whole)
                raise
    except OSError as error:
        raise ServerError(f"cannot write the journal {path}: {error.strerror}") from error


def _whole(path: Path) -> bytes:
    """The journal's lines, without one at the end that a crash or a full disk left half."""
    content = path.read_bytes()
    return content[: content.rfind(b"\n") + 1]


def read(home: Path, model: str | None = None) -> list[Entry]:
    """All entries, or those of a model, oldest first; raises ServerError for a damaged line."""
    path = home / FILE
    try:
        lines = _whole(path).decode("utf-8").split("\n")[:-1]
    except FileNotFoundError:
        return []
    except (OSError, UnicodeError) as error:
        raise ServerError(f"cannot read the journal {path}: {error}") from error
    entries = []
    for number, line in enumerate(lines, 1):
        try:
            entries.append(Entry(**json.loads(line)))
        except (ValueError, TypeError) as error:
            raise ServerError(
                f"{path}, line {number}, is no entry of the journal ({error}): mend or remove it"
            ) from error
    return [one for one in entries if model in (None, one.model)]


def defaults(home: Path) -> dict[str, str]:
    """The version of each model that the last operation that went well made the default one.

    Where none did it is the one that the first found: what failed or was broken off is not proven.
    """
    found: dict[str, str] = {}
    for one in read(home):
        if one.operation == REMOVE:
            if one.default:
                found[one.model] = one.default
        elif one.result in _SWITCHED:
            found[one.model] = one.after
        elif one.before:
            found.setdefault(one.model, one.before)
    return found


def serving(home: Path) -> dict[tuple[str, str], bool]:
    """Whether each (model, version) that operations brought or found still serves.

    A version of a rollout that did not end well does not, for it never did; one that was kept does.
    What was refused says nothing of a version.
    """
    found: dict[tuple[str, str], bool] = {}
    for one in (each for each in ended(read(home)) if each.result != REFUSED):
        if one.before:
            found[one.model, one.before] = one.result != DONE
        if one.default:
            found[one.model, one.default] = True
        if one.after:
            new = one.model, one.after
            found[new] = one.result in _SWITCHED or found.get(new, False)
    return found


def before(home: Path, model: str, version: str) -> Entry:
    """The entry that brought the version which ``version`` replaced, the way back.

    Its ``after`` is the version to go back to; archive and sha256 are empty where that version was
    there before the journal. Raises ServerError where the journal knows no version before.
    """
    entries = [one for one in read(home, model) if one.result in _SWITCHED]
    # Not of a rollback: the way back from a version gone back to leads further back
    rollouts = [one for one in entries if (one.operation, one.after) == (ROLLOUT, version)]
    last = rollouts[-1] if rollouts else None
    if last is None or not last.before:
        raise ServerError(
            f"the journal knows no version of {model} before {version}: `marsmith history {model}`"
            " shows what it knows; `marsmith rollout ARCHIVE` makes any version the default one"
        )
    known = [one for one in entries[: entries.index(last)] if one.after == last.before]
    if known:
        return known[-1]
    return Entry("", model, "", last.before, "", last.before_archive, last.before_sha256)


def ended(entries: list[Entry]) -> list[Entry]:
    """Entries without those of a beginning whose end is there as well."""

    def is_begun(one: Entry, rest: list[Entry]) -> bool:
        following = next((other for other in rest if other.model == one.model), None)
        return one.result == STARTED and following is not None and following.result != STARTED

    return [one for at, one in enumerate(entries, 1) if not is_begun(one, entries[at:])]


@contextmanager
def exclusive(home: Path) -> Iterator[None]:
    """Hold the project's versions and workers against others who change them.

    Raises ServerError where one does, or where the lock cannot be written.
    """
    lock = home / FILE.parent / "lock"
    try:
        lock.parent.mkdir(exist_ok=True)
        file = lock.open("w")
    except OSError as error:
        raise ServerError(f"cannot write {lock}: {error.strerror}") from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ServerError(
                "another rollout, rollback, remove or scaling of this project is under way: wait"
                " until it has ended"
            ) from error
        yield
