from __future__ import annotations

from marsmith.autoscale import Decider, Policy, Seen

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


def test_bounds_are_kept_from_outside_too() -> None:
    assert _walk(Decider(POLICY), 5, [0.05]) == [3]
    assert _walk(Decider(POLICY), 0, [0.0]) == [1]


def test_a_worker_that_is_missed_at_once_goes_later_the_next_time() -> None:
    decider = Decider(POLICY)
    assert _walk(decider, 2, [0.0, 0.0, 0.0, 0.5]) == [2, 2, 1, 2]
    assert _walk(decider, 2, [0.0] * 6) == [2, 2, 2, 2, 2, 1]


def test_waiting_by_littles_law() -> None:
    assert Seen(queue=4, rate=20).waited == 0.2
    assert Seen(queue=0, rate=0).waited == 0
    assert Seen(queue=2, rate=0).waited == float("inf")
    assert str(Seen(4, 20)) == "20.0 requests/s, 4.0 queued, wait 200 ms"
    assert str(Seen(2, 0)).endswith("nothing moves")
