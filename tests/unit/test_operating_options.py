"""Options of the operating commands, from the command line to what does the work."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner

from handlers import cores
from marsmith import autoscale, cli, operate
from marsmith.autoscale import Policy
from marsmith.client import Client
from marsmith.commands import autoscale as autoscale_command
from marsmith.commands import rollback, rollout, scale
from marsmith.rollout import Options
from marsmith.watch import Limits


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What rollouts and rollbacks get; nothing runs, and signals stay as they are."""
    given: list[Any] = []
    for module in (rollout, rollback):
        monkeypatch.setattr(module, "leave_in_order", lambda: None)
        monkeypatch.setattr(module, "require_running", lambda _: None)
    for name in ("roll_out", "roll_back"):
        monkeypatch.setattr(operate, name, lambda *found: given.extend(found[1:4]))
    return given


def _run(*words: str, status: int = 0) -> str:
    done = CliRunner().invoke(cli.group, words)
    assert done.exit_code == status, done.output
    return done.output


WATCHED = ("--watch", "3", "--max-failures", "2", "--max-slowdown", "5", "--load-timeout", "7")
LIMITS = Limits(3.0, failures=2, slowdown=5.0)


def test_options_of_a_rollout(taken: list[Any], tmp_path: Path) -> None:
    (tmp_path / "a.png").touch()
    compared = ("--compare", str(tmp_path), "--max-disagreement", "5%")
    _run("rollout", "m.mar", "--keep", *WATCHED, "--drain-timeout", "9", *compared, "--grpc")
    options = Options([tmp_path / "a.png"], 0.05, load=7.0, drain=9.0, watch=LIMITS, grpc=True)
    assert taken == [Path("m.mar"), options, True]


def test_options_of_a_rollback(taken: list[Any]) -> None:
    _run("rollback", "m", *WATCHED)
    assert taken == ["m", Options(load=7.0, watch=LIMITS), False]
    del taken[:]
    _run("rollback", "m", "--keep")
    assert taken == ["m", Options(), True]


@pytest.mark.parametrize(
    ("text", "share"), [("1%", 0.01), ("0.01", 0.01), ("0", 0.0), ("100%", 1.0), ("12.5%", 0.125)]
)
def test_a_share(taken: list[Any], tmp_path: Path, text: str, share: float) -> None:
    (tmp_path / "a.png").touch()
    _run("rollout", "m.mar", "--compare", str(tmp_path), "--max-disagreement", text)
    assert taken[1].disagreement == pytest.approx(share)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("one", "'one': write a share such as 1% or 0.01"),
        ("1%%", "'1%%': write a share"),
        ("101%", "'101%' is not between 0 and 100%"),
        ("1.5", "'1.5' is not between 0 and 100%"),
        ("-1%", "'-1%' is not between"),
        ("nan", "'nan' is not between"),
    ],
)
def test_what_is_no_share(taken: list[Any], text: str, problem: str) -> None:
    assert problem in _run("rollout", "m.mar", "--max-disagreement", text, status=2)
    assert taken == []


def test_a_share_of_no_pictures_is_refused(taken: list[Any]) -> None:
    said = _run("rollout", "m.mar", "--max-disagreement", "1%", status=2)
    assert "--max-disagreement is for the pictures of --compare: name a folder" in said
    assert taken == []


def test_fewer_workers_at_most_than_at_least_are_refused_before_one_is_ended(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(scale, "require_running", lambda _: pytest.fail("it went to the server"))
    assert "--most 1 is less than WORKERS, 2" in _run("scale", "m", "2", "--most", "1", status=2)


def test_no_workers_over_grpc_are_refused_before_one_is_ended(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(scale, "require_running", lambda _: pytest.fail("it went to the server"))
    assert "no workers: leave --grpc out" in _run("scale", "m", "0", "--grpc", status=2)


@pytest.mark.parametrize(
    ("words", "warning"),
    [
        (("2",), ""),
        (("0",), "warning: m 1.0 has no workers now: its requests wait without an answer"),
        (("3",), "warning: m 1.0 has 3 workers for 2 cores, for which their threads fight"),
        # TorchServe starts no more by itself.
        (("1", "--most", "3"), ""),
    ],
)
def test_numbers_of_workers_that_are_warned_of(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, words: tuple[str, ...], warning: str
) -> None:
    monkeypatch.setattr(scale, "leave_in_order", lambda: None)
    monkeypatch.setattr(scale, "require_running", lambda _: SimpleNamespace(home=tmp_path))
    monkeypatch.setattr(scale, "scale_down", lambda *_: None)
    monkeypatch.setattr(cores, "usable", lambda: 2)
    monkeypatch.setattr(Client, "of", lambda _: Client.__new__(Client))
    monkeypatch.setattr(Client, "close", lambda _: None)
    monkeypatch.setattr(Client, "describe", lambda *_: [{"modelVersion": "1.0"}])
    monkeypatch.setattr(Client, "scale", lambda *_, **__: "scaled")
    said = _run("scale", "m", *words)
    assert said.startswith("scaled\n")
    assert warning in said if warning else "warning" not in said


@pytest.fixture
def rounds(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What ``autoscale`` gets: policy, interval, and whether it goes on."""
    given: list[Any] = []
    server = SimpleNamespace(addresses=None, home=Path("/nowhere"))
    monkeypatch.setattr(autoscale_command, "require_running", lambda _: server)
    monkeypatch.setattr(autoscale_command, "leave_in_order", lambda _: None)
    monkeypatch.setattr(Client, "of", lambda _: Client.__new__(Client))
    monkeypatch.setattr(Client, "close", lambda _: None)

    def run(_: Any, __: Any, models: Any, policy: Any, interval: float, more: Any, ___: Any) -> Any:
        given.extend([models, policy, interval, [more() for _ in range(3)]])

    monkeypatch.setattr(autoscale, "run", run)
    return given


def test_options_of_autoscale(rounds: list[Any]) -> None:
    words = ("--up", "50", "--down", "2", "--calm", "3", "--min", "2", "--max", "4")
    _run("autoscale", "m", "n", *words, "--interval", "0.5", "--rounds", "3")
    policy = Policy(2, 4, up=0.05, down=0.002, calm=3)
    assert rounds == [("m", "n"), policy, 0.5, [True, True, False]]


@pytest.mark.parametrize(("seconds", "more"), [("0", False), ("100", True)])
def test_autoscale_ends_in_time(rounds: list[Any], seconds: str, more: bool) -> None:
    _run("autoscale", "--seconds", seconds)
    assert rounds == [(), Policy(1, 2), 5.0, [more] * 3]


@pytest.mark.parametrize(
    "words",
    [
        *(("predict", "m", "x.png", "--timeout"), ("ready", "--timeout"), ("status", "--timeout")),
        *(
            ("scale", "m", "1", "--timeout"),
            ("serve", "--timeout"),
            ("autoscale", "m", "--interval"),
        ),
        *(("autoscale", "m", "--seconds"), ("rollout", "m.mar", "--load-timeout")),
        *(("rollback", "m", "--max-slowdown"), ("remove", "m", "1.0", "--drain-timeout")),
        *(("stop", "--drain-timeout"), ("rollout", "m.mar", "--watch")),
        *(("serve", "--drain-timeout"), ("rollback", "m", "--max-failures")),
        *(("stop", "--patience"), ("autoscale", "m", "--up"), ("autoscale", "m", "--down")),
    ],
)
def test_no_time_is_negative(words: tuple[str, ...]) -> None:
    assert re.search(r"-1(\.0)? is not in the range x>", _run(*words, "-1", status=2))


def test_no_number_of_lines_is_negative() -> None:
    assert "-5 is not in the range x>=0" in _run("logs", "--lines", "-5", status=2)


@pytest.mark.parametrize(
    "words", [("predict", "m", "x.png", "--timeout"), ("autoscale", "m", "--interval")]
)
def test_no_time_at_all_asks_nobody(words: tuple[str, ...]) -> None:
    assert "0.0 is not in the range x>0" in _run(*words, "0", status=2)
