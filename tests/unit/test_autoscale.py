from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from handlers.errors import ServerError
from marsmith import autoscale, journal
from marsmith.autoscale import Decider, Policy, Seen
from marsmith.drain import Queue
from marsmith.processes import Running

POLICY = Policy(least=1, most=3, up=0.1, down=0.005, calm=3)


def _walk(decider: Decider, workers: int, waits: list[float]) -> list[int]:
    """Workers after each round, where every wish is granted."""
    path = []
    for wait in waits:
        workers = decider.decide(workers, wait)
        path.append(workers)
    return path


def test_up_at_once_and_no_further_than_most() -> None:
    assert _walk(Decider(POLICY), 1, [0.05, 0.2, 0.2, 0.2]) == [1, 2, 3, 3]


def test_down_after_calm_rounds_and_no_further_than_least() -> None:
    assert _walk(Decider(POLICY), 3, [0.0] * 9) == [3, 3, 2, 2, 2, 1, 1, 1, 1]
    assert _walk(Decider(POLICY), 2, [0.0, 0.0, 0.05, 0.0, 0.0, 0.0]) == [2, 2, 2, 2, 2, 1]


def test_with_no_wait_to_go_below_no_worker_goes() -> None:
    assert _walk(Decider(replace(POLICY, down=0.0)), 3, [0.0] * 9) == [3] * 9


def test_bounds_are_kept_from_outside_too() -> None:
    assert _walk(Decider(POLICY), 5, [0.05]) == [3]
    assert _walk(Decider(POLICY), 0, [0.0]) == [1]


def test_a_worker_that_is_missed_at_once_goes_later_the_next_time() -> None:
    decider = Decider(POLICY)
    assert _walk(decider, 2, [0.0, 0.0, 0.0, 0.5]) == [2, 2, 1, 2]
    assert _walk(decider, 2, [0.0] * 6) == [2, 2, 2, 2, 2, 1]
    for rounds, after in ((3, [2] * 5 + [1]), (4, [2, 2, 1, 1, 1, 1])):
        decider = Decider(POLICY)
        assert _walk(decider, 2, [0.0] * 3 + [0.05] * (rounds - 1) + [0.5])[-1] == 2
        assert _walk(decider, 2, [0.0] * 6) == after, rounds


def test_patience_has_an_end() -> None:
    decider = Decider(POLICY)
    rounds = []
    for _ in range(7):
        rounds.append(1)
        while decider.decide(2, 0.0) == 2:
            rounds[-1] += 1
        assert decider.decide(1, 0.5) == 2
    assert rounds == [3, 6, 12, 24, 48, 48, 48]


def test_waiting_by_littles_law() -> None:
    assert Seen(queue=4, rate=20).waited == 0.2
    assert Seen(queue=0, rate=0).waited == 0
    assert Seen(queue=2, rate=0).waited == float("inf")
    assert str(Seen(4, 20)) == "20.0 requests/s, 4.0 queued, wait 200 ms"
    assert str(Seen(2, 0)).endswith("nothing moves")


class _Client:
    """Says what a server says of one model; the second look at it fails."""

    def __init__(self) -> None:
        self.asked = 0

    def describe(self, model: str, version: str | None = None) -> list[dict[str, Any]]:
        self.asked += 1
        if self.asked == 2:
            raise ServerError("404: no such version")
        if model != "m":
            raise ServerError(f"no model {model}")
        worker = {"id": "9000", "status": "READY", "pid": os.getpid()}
        job = {"remainingCapacity": 5, "pendingRequests": 0}
        return [{"modelVersion": "1.0", "workers": [worker], "jobQueueStatus": job}]

    def metrics(self) -> str:
        return ""


def _run(client: Any, pid: int, models: list[str], rounds: int) -> list[str]:
    said: list[str] = []
    left = iter(range(rounds))
    running = Running(pid, Path(), Path(), 0.0)
    autoscale.run(
        running,
        client,
        models,
        Policy(1, 2),
        0.0,
        lambda: next(left, None) is not None,
        said.append,
        sleep=lambda _: None,
    )
    return said


def test_a_round_that_fails_is_told_and_is_not_the_end() -> None:
    said = _run(_Client(), os.getpid(), ["m"], 1)
    assert said[0] == "this round failed: 404: no such version"
    assert said[1].startswith("m 1.0: ")


def test_a_new_default_version_is_decided_of_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    used: list[Decider] = []

    class _Told(Decider):
        def decide(self, workers: int, waited: float) -> int:
            used.append(self)
            return super().decide(workers, waited)

    class _Switched(_Client):
        def describe(self, model: str, version: str | None = None) -> list[dict[str, Any]]:
            [found] = super().describe(model, version)
            return [found | {"modelVersion": version or ("1.0" if len(used) < 2 else "2.0")}]

    monkeypatch.setattr(autoscale, "Decider", _Told)
    client = _Switched()
    client.asked = 2
    said = _run(client, os.getpid(), ["m"], 3)
    assert [line[:5] for line in said] == ["m 1.0"] * 2 + ["m 2.0"] * 2
    assert used[0] is used[1] is not used[2]
    assert used[2] is used[3]


def test_no_worker_comes_while_versions_change(tmp_path: Path) -> None:
    client: Any = _Client()
    queue, running = Queue(client, "m", "1.0"), Running(os.getpid(), tmp_path, tmp_path, 0.0)
    busy = Seen(queue=4, rate=4)
    with journal.exclusive(tmp_path):
        said = list(autoscale.step(running, queue, Decider(POLICY), busy, 1.0))
    assert said[1:] == [
        "m 1.0: 1 -> 2 workers",
        "m 1.0: not scaled: another rollout, rollback, remove or scaling of this project is under"
        " way: wait until it has ended",
    ]


def test_a_server_that_has_ended_is_the_end() -> None:
    with pytest.raises(ServerError, match="404"):
        _run(_Client(), -1, ["m"], 1)


def test_a_wrong_name_is_an_error_at_once() -> None:
    with pytest.raises(ServerError, match="no model x"):
        _run(_Client(), os.getpid(), ["x"], 9)
