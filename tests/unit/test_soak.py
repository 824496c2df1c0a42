"""What a soak calls growth, a wrong answer and too much; the load itself is a benchmark."""

from __future__ import annotations

import json
import re
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from benchmarks.serving.poisson import _judge
from benchmarks.serving.residents import Growth, Sample, growth
from benchmarks.serving.soaked import Kills, Limits, Soaked
from benchmarks.soak import main


def _samples(pid: int, first: float, sizes: list[int]) -> list[Sample]:
    return [
        Sample(first + 10 * number, "worker", pid, size, 6, 4) for number, size in enumerate(sizes)
    ]


def test_growth_is_that_of_the_last_fifth_against_the_first_after_the_warm_up() -> None:
    # Ten samples of warming up, and one that stands out, are no growth.
    sizes = [*range(10), *([100] * 10), *([100] * 9), 500, *([100] * 10), *([103] * 10)]
    [found] = growth(_samples(7, 0, sizes), warm_up=100, late=100)
    assert (found.pid, found.rss, found.samples) == (7, (100, 103), 40)
    assert found.share == pytest.approx(0.03)
    assert found.descriptors == (6, 6)


def test_a_process_that_starts_later_warms_up_itself() -> None:
    late = _samples(8, 1000, [1] * 20 + [50] * 20)
    [found] = growth(late, warm_up=100, late=200)
    assert found.rss == (50, 50)
    # Too short to say anything of.
    assert growth(_samples(9, 1000, [1] * 12), warm_up=100, late=100) == []


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


LIMITS = Limits(growth=0.02, failed=0.001, descriptors=4, slack=10, batch=8)
WELL = Soaked(
    ready=5,
    capacity=100,
    rate=70,
    minutes=60,
    asked={"requests": 100_000, "failed": 50, "errors": {"503": 50}, "wrong": 0},
    idle=({"front end": 62, "worker": 6}, {"front end": 64, "worker": 6}),
    samples=[],
    growth=[
        Growth("front end", 1, 40, (100, 101), (62, 62), (40, 40)),
        Growth("worker", 2, 40, (100, 90), (6, 6), (3, 3)),
    ],
    kills=Kills(0),
)


def _asked(**errors: int) -> dict[str, Any]:
    failed = sum(errors.values())
    return {**WELL.asked, "failed": failed, "errors": errors}


def test_a_soak_within_its_limits_has_no_problem() -> None:
    assert list(WELL.problems(LIMITS)) == []
    killed = replace(WELL, kills=Kills(60, [8.0, 19.0]))
    lost = _asked(**{"503": 80, "500": 20, "507": 5, "TimeoutError": 8})
    assert list(replace(killed, asked=lost).problems(LIMITS)) == []


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        ({"asked": {**WELL.asked, "wrong": 1}}, "1 answers were wrong"),
        ({"asked": _asked(**{"503": 200})}, "200 of 100000 requests failed, more than 0.1%"),
        ({"asked": _asked(**{"500": 1})}, "statuses that nothing explains: {'500': 1}"),
        ({"asked": _asked(TimeoutError=1)}, "requests without an answer: {'TimeoutError': 1}"),
        (
            {"asked": _asked(TimeoutError=17), "kills": Kills(60, [5.0])},
            "without an answer: {'TimeoutError': 17}, with 1 workers killed",
        ),
        (
            {"growth": [*WELL.growth, Growth("worker", 3, 40, (100, 103), (6, 6), (3, 3))]},
            "memory of the worker 3 grew by 3.0%, more than 2.0%",
        ),
        ({"growth": WELL.growth[1:]}, "too few samples to say what grew"),
        (
            {"idle": (WELL.idle[0], {"front end": 67, "worker": 6})},
            "descriptors of the front end without clients: 62 -> 67",
        ),
        ({"kills": Kills(60)}, "no worker was killed"),
        ({"kills": Kills(60, [9.0, 20.5])}, "lived again after 20.5 s, later than 20.0 s"),
        ({"kills": Kills(60, [9.0], ["ServerError: no new worker"])}, "no new worker"),
    ],
)
def test_what_is_beyond_a_limit_is_a_problem(changed: dict[str, Any], why: str) -> None:
    [problem] = replace(WELL, **changed).problems(LIMITS)
    assert why in problem


def test_a_soak_without_an_answer_tells_no_latencies() -> None:
    asked = {**_asked(**{"503": 100_000}), "seconds": 60.0}
    told, idle = replace(WELL, asked=asked).words()
    assert told == "100000 requests in 60 s: 100000 failed {'503': 100000}, 0 wrong"
    assert idle.startswith("descriptors")


def test_a_rate_and_a_load_are_refused_together() -> None:
    done = CliRunner().invoke(main, ["--rate", "5", "--load", "0.5"])
    assert done.exit_code == 2
    assert "--rate takes the place of --load" in done.output


def test_every_long_run_of_the_documentation_names_its_command(project: Path) -> None:
    text = (project / "docs/reliability.md").read_text()
    part = text.split("## Long runs")[1].split("\n## ")[0]
    rows = [line for line in part.splitlines() if line.startswith("|")][2:]
    commands = [re.findall(r"`(--minutes[^`]*)`", row.split("|")[2]) for row in rows]
    assert rows
    assert [len(found) for found in commands] == [1] * len(rows)
    named = [words for [words] in commands] + re.findall(r"benchmarks\.soak (--[^`\n]+)", part)
    for words in named:
        # Click refuses what is no option, and what is no number.
        main.make_context("soak", shlex.split(words))
