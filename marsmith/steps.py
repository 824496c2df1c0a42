"""Steps that are all taken or all taken back."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass

from handlers.errors import MarsmithError, ServerError

Say = Callable[[str], None]


@dataclass(frozen=True)
class Step:
    """One step: what it is called, what it does (and tells), and how it is taken back.

    ``undo`` is called for a step that failed as well, and again where a signal ended it, so it must
    bear that nothing was done yet, and that it was taken back already.
    """

    name: str
    do: Callable[[], str]
    undo: Callable[[], str] | None = None


class RolledBack(ServerError):
    """A step failed and those before it were taken back; the message says why and what is left."""


def carry_out(steps: Sequence[Step], say: Say) -> None:
    """Take steps in turn; raises RolledBack where one fails, after undoing them from the last on.

    Ctrl-C and a signal that raises SystemExit roll back as well.
    """
    tell = heedless(say)
    taken, name = list[Step](), "begin"
    # Around all, for a signal may come while something is told, too.
    try:
        for step in steps:
            taken.append(step)
            name = step.name
            tell(f"{name} ...")
            if told := step.do():
                tell(f"  {told}")
    except (MarsmithError, OSError) as error:
        _fail(taken, f"{name}: {error}", tell, error)
    except (KeyboardInterrupt, SystemExit) as error:
        _fail(taken, f"{name}: it was interrupted", tell, error)
    except BaseException:
        _undo(taken, tell)
        raise


def heedless(say: Say) -> Say:
    """``say`` for work that must go on: a listener may be gone, or the disk of a log full."""

    def tell(words: str) -> None:
        with suppress(OSError):
            say(words)

    return tell


def _fail(taken: Sequence[Step], reason: str, say: Say, error: BaseException) -> None:
    left = _undo(taken, say)
    problem = f"; not taken back: {'; '.join(left)}" if left else ""
    raise RolledBack(f"{reason}{problem}") from error


def _undo(taken: Sequence[Step], say: Say) -> list[str]:
    """Take steps back; what could not be.

    A step during which Ctrl-C or a signal comes is taken back again, once: a second one leaves it.
    """
    rest, left = [step for step in taken if step.undo], list[str]()
    interrupted = list[Step]()
    while rest:
        try:
            while rest:
                if problem := _take_back(rest[-1], say):
                    left.append(problem)
                rest.pop()
        except (KeyboardInterrupt, SystemExit):
            again = rest[-1:] == interrupted
            interrupted = rest[-1:]
            if rest and again:
                left.append(f"{rest.pop().name} (it was interrupted)")
    return left


def _take_back(step: Step, say: Say) -> str:
    """Take one step back; what could not be, or nothing."""
    assert step.undo
    try:
        if told := step.undo():
            say(f"  taken back: {told}")
    except (MarsmithError, OSError) as error:
        return f"{step.name} ({error})"
    return ""
