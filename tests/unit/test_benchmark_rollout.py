"""How the clients of benchmarks/rollout.py judge and count what they are answered."""

from __future__ import annotations

import json

import pytest

from benchmarks.rollout import Counts, _judge
from marsmith.client import Reply

LABELS = [("star", 0.9), ("ring", 0.1)]


def _counted(answer: bytes) -> Counts:
    counts = Counts(_judge({b"picture": LABELS}), {"2.0"})
    counts.ask(lambda: Reply(200, "", answer), b"picture")
    return counts


def _answer(labels: list[tuple[str, float | None]]) -> bytes:
    return json.dumps([{"label": label, "score": score} for label, score in labels]).encode()


def test_an_answer_of_one_version_is_that_versions() -> None:
    counts = _counted(_answer([("2.0/star", 0.9002), ("2.0/ring", 0.0998)]))
    assert (counts.versions, counts.problems) == ({"2.0": 1}, [])


@pytest.mark.parametrize(
    "answer",
    [
        _answer([("2.0/star", 0.9), ("1.0/ring", 0.1)]),
        _answer([("2.0/star", 0.8), ("2.0/ring", 0.2)]),
        _answer([("2.0/star", 0.9)]),
        _answer([("2.0/star", None), ("2.0/ring", 0.1)]),
        b'{"code": 500}',
        b"[]",
        b"null",
    ],
)
def test_what_no_version_answers_is_wrong(answer: bytes) -> None:
    counts = _counted(answer)
    [problem] = counts.problems
    assert problem.startswith(f"wrong: {answer!r}"[:60])
    assert not counts.versions
