"""How well a contender answers the labelled pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from benchmarks.serving.contender import Contender, Local, Server
from benchmarks.serving.pictures import Picture
from handlers.errors import MarsmithError

_THREADS = 4


def ask(made: Contender, pictures: Sequence[Picture]) -> dict[str, Any]:
    """Ask every picture once, a few at a time, and score the answers."""
    if isinstance(made, Local):
        return score(made, pictures, dict(enumerate(made.all_answers([p.data for p in pictures]))))
    assert isinstance(made, Server)

    def one(picture: Picture) -> Any:
        try:
            [answer] = made.answers(made.ask(picture.data))
        except MarsmithError as error:
            return error
        return answer

    with ThreadPoolExecutor(_THREADS) as pool:
        return score(made, pictures, dict(enumerate(pool.map(one, pictures))))


def score(
    made: Contender, pictures: Sequence[Picture], answers: Mapping[int, Any]
) -> dict[str, Any]:
    """The metric of answers by the index of their picture, errors among them, which are counted.

    ``score`` is that of the pictures that are scored, the other counts are of all.
    """
    good = {i: each for i, each in answers.items() if not isinstance(each, MarsmithError)}
    bad = [str(each) for each in answers.values() if isinstance(each, MarsmithError)]
    found: dict[str, Any] = {"pictures": len(pictures), "unanswered": len(pictures) - len(good)}
    if bad:
        found["problem"] = bad[0][:200]
    scored = sum(one.scored for one in pictures)
    found["scored"] = scored
    order = sorted(i for i in good if pictures[i].scored)
    truths = [pictures[i].truth for i in order]
    reached = made.score([good[i] for i in order], truths) if order else 0.0
    # An unanswered picture is a wrong one.
    found["score"] = reached * len(order) / scored
    return found
