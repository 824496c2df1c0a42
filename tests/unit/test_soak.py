"""What a soak calls growth, and when it calls an answer wrong; the load itself is a benchmark."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.serving.poisson import _judge
from benchmarks.serving.residents import Sample, growth


def _samples(pid: int, first: float, sizes: list[int]) -> list[Sample]:
    return [
        Sample(first + 10 * number, "worker", pid, size, 6, 4) for number, size in enumerate(sizes)
    ]


def test_growth_is_that_of_the_last_fifth_against_the_first_after_the_warm_up() -> None:
    # Ten samples of warming up, and one that stands out, are no growth.
    sizes = [*range(10), *([100] * 10), *([100] * 9), 500, *([100] * 10), *([103] * 10)]
    [found] = growth(_samples(7, 0, sizes), warm_up=100)
    assert (found.pid, found.rss, found.samples) == (7, (100, 103), 40)
    assert found.share == pytest.approx(0.03)
    assert found.descriptors == (6, 6)


def test_a_process_that_starts_later_warms_up_itself() -> None:
    late = _samples(8, 1000, [1] * 10 + [50] * 20)
    [found] = growth(late, warm_up=100)
    assert found.rss == (50, 50)
    # Too short to say anything of.
    assert growth(_samples(9, 1000, [1] * 12), warm_up=100) == []


def test_an_answer_is_judged_as_its_task_judges(lenet5: Path) -> None:
    answer = [{"label": "3", "score": 0.9}, {"label": "5", "score": 0.1}]
    right = _judge({"archive": str(lenet5), "expected": [answer]})
    assert right(0, json.dumps(answer).encode())
    assert right(0, b'[{"label":"3","score":0.9004},{"label":"5","score":0.0996}]')
    assert not right(0, b'[{"label":"3","score":0.8},{"label":"5","score":0.2}]')
    assert not right(0, b'[{"label":"5","score":0.9},{"label":"3","score":0.1}]')
    assert not right(0, b"[]")
    assert not right(0, b"{}")
    assert not right(0, b"no JSON")
    assert _judge({})(0, b"anything")
