from __future__ import annotations

from collections.abc import Callable

import pytest

from handlers.errors import ServerError
from marsmith.steps import RolledBack, Step, carry_out


class _Log:
    """Steps that write down what is done and undone."""

    def __init__(self) -> None:
        self.done: list[str] = []

    def step(
        self, name: str, error: BaseException | None = None, undo: BaseException | None = None
    ) -> Step:
        return Step(name, self._act(f"do {name}", error), self._act(f"undo {name}", undo))

    def _act(self, what: str, error: BaseException | None) -> Callable[[], str]:
        def act() -> str:
            self.done.append(what)
            if error:
                raise error
            return what

        return act


def test_all_steps_in_turn() -> None:
    log, said = _Log(), list[str]()
    carry_out([log.step("a"), Step("quiet", lambda: ""), log.step("b")], said.append)
    assert log.done == ["do a", "do b"]
    assert said == ["a ...", "  do a", "quiet ...", "b ...", "  do b"]


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (ServerError("too slow"), "b: too slow"),
        (KeyboardInterrupt(), "b: it was interrupted"),
        (SystemExit(1), "b: it was interrupted"),
    ],
)
def test_a_failing_step_takes_back_itself_and_those_before(
    error: BaseException, reason: str
) -> None:
    log, said = _Log(), list[str]()
    steps = [log.step("a"), log.step("b", error), log.step("c")]
    with pytest.raises(RolledBack) as raised:
        carry_out(steps, said.append)
    assert str(raised.value) == reason
    assert log.done == ["do a", "do b", "undo b", "undo a"]
    assert said[-1] == "  taken back: undo a"


def test_what_cannot_be_taken_back_is_told_and_the_rest_is() -> None:
    log = _Log()
    steps = [log.step("a"), log.step("b", ServerError("no"), ServerError("still busy"))]
    with pytest.raises(RolledBack, match=r"^b: no; not taken back: b \(still busy\)$"):
        carry_out(steps, lambda _: None)
    assert log.done[-1] == "undo a"


@pytest.mark.parametrize("signal", [KeyboardInterrupt(), SystemExit(1)])
def test_a_signal_while_it_is_taken_back_takes_back_all_the_same(signal: BaseException) -> None:
    log, signals = _Log(), [signal]

    def drain() -> str:
        log.done.append("undo b")
        if signals:
            raise signals.pop()
        return "drained"

    said = list[str]()
    steps = [log.step("a"), Step("b", lambda: "", drain), log.step("c", ServerError("no"))]
    with pytest.raises(RolledBack, match="^c: no$"):
        carry_out(steps, said.append)
    assert log.done == ["do a", "do c", "undo c", "undo b", "undo b", "undo a"]
    assert said[-2:] == ["  taken back: drained", "  taken back: undo a"]


def test_a_second_signal_leaves_the_step_that_is_taken_back() -> None:
    log = _Log()
    with pytest.raises(RolledBack, match=r"^b: no; not taken back: b \(it was interrupted\)$"):
        carry_out([log.step("a"), log.step("b", ServerError("no"), SystemExit(1))], lambda _: None)
    assert log.done == ["do a", "do b", "undo b", "undo b", "undo a"]


def test_a_signal_when_all_is_taken_back_is_no_error() -> None:
    def say(words: str) -> None:
        if "taken back" in words and not told:
            told.append(words)
            raise SystemExit(1)

    log, told = _Log(), list[str]()
    with pytest.raises(RolledBack, match="^a: no$"):
        carry_out([log.step("a", ServerError("no"))], say)
    assert log.done == ["do a", "undo a", "undo a"]


def test_a_mistake_of_ours_takes_back_and_shows_itself() -> None:
    log = _Log()
    with pytest.raises(ZeroDivisionError):
        carry_out([log.step("a"), log.step("b", ZeroDivisionError())], lambda _: None)
    assert log.done == ["do a", "do b", "undo b", "undo a"]


def test_a_listener_that_is_gone_leaves_nothing_half_done() -> None:
    def say(_: str) -> None:
        raise BrokenPipeError

    log = _Log()
    carry_out([log.step("a")], say)
    with pytest.raises(RolledBack, match="b: no"):
        carry_out([log.step("a"), log.step("b", ServerError("no"))], say)
    assert log.done == ["do a", "do a", "do b", "undo b", "undo a"]


@pytest.mark.parametrize("words", ["b ...", "  do a"])
def test_a_signal_that_comes_while_something_is_told_takes_back_too(words: str) -> None:
    """A pipe that nobody reads blocks the one who tells, until Ctrl-C or SIGTERM."""

    def say(line: str) -> None:
        if line == words:
            raise SystemExit(1)

    log = _Log()
    with pytest.raises(RolledBack, match="it was interrupted"):
        carry_out([log.step("a"), log.step("b")], say)
    assert log.done[0] == "do a"
    assert log.done[-1] == "undo a"
