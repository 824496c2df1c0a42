from __future__ import annotations

import json
from typing import Any

import pytest

from handlers.bundle import Bundle
from handlers.inputs import ImageInput
from handlers.task import TaskHandler
from handlers.tasks.image_classification import ImageClassification
from marsmith.client import Reply
from marsmith.disagreement import Compared, difference


@pytest.fixture
def handler() -> TaskHandler:
    handler = ImageClassification()
    labels = ["cat", "dog"]
    handler.bundle = Bundle(
        "m", "1.0", "image-classification", "eager", "model.pt", labels, ImageInput(resize=[8, 8])
    )
    return handler


def _reply(cat: float | None = None, status: int = 200, body: Any = None) -> Reply:
    if cat is not None:
        scores = {"cat": cat, "dog": 1 - cat}
        best = sorted(scores, key=lambda label: -scores[label])
        body = [{"label": label, "score": scores[label]} for label in best]
    return Reply(status, "application/json", json.dumps(body).encode())


def test_the_same_decision_is_no_difference(handler: TaskHandler) -> None:
    assert difference(handler, _reply(0.9), _reply(0.6)) is None
    assert difference(handler, _reply(0.9), _reply(0.4)) == "top-1 is dog, expected cat"


def test_refusals_are_compared_too(handler: TaskHandler) -> None:
    refused, failed = _reply(status=422), _reply(status=500)
    assert difference(handler, refused, refused) is None
    assert difference(handler, refused, failed) == "500, 422 before"
    assert difference(handler, _reply(0.9), failed) == "500, 200 before"
    # Neither was answered, so nothing is known of the new version
    assert difference(handler, failed, failed) == "500, 500 before"


def test_an_answer_of_another_shape_is_a_difference(handler: TaskHandler) -> None:
    for body in ({"boxes": []}, [], None, [{"label": "cat"}]):
        found = difference(handler, _reply(0.9), _reply(body=body))
        assert str(found).startswith("answers cannot be compared: "), body


def test_a_task_that_cannot_compare_what_came_is_a_difference(handler: TaskHandler) -> None:
    handler.compare = lambda *_: [][0]  # type: ignore[method-assign]
    found = difference(handler, _reply(0.9), _reply(0.9))
    assert str(found).startswith("answers cannot be compared: IndexError")


def test_what_is_told() -> None:
    some = Compared(200, ["a.png: top-1 is dog", "b.png: x", "c.png: y", "d.png: z"])
    assert some.share == 0.02
    assert str(some) == (
        "4 of 200 pictures answered otherwise: a.png: top-1 is dog; b.png: x; c.png: y"
    )
    assert str(Compared(3, [])) == "0 of 3 pictures answered otherwise"
