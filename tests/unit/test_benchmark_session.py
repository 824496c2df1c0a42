"""A sitting of benchmarks/serving with contenders that stand in: their order, and its end."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, ClassVar

import pytest
from click.testing import CliRunner

from benchmarks.serving import __main__ as command
from benchmarks.serving import choice, loads, rows, session
from benchmarks.serving.contender import Address, Contender, Local, Request, Server
from benchmarks.serving.plan import Plan
from benchmarks.serving.served import Served
from benchmarks.serving.subject import Subject
from handlers.errors import ServerError

MODEL = "mobilenet_v2_shapes"


class _Standing(Local):
    """Answers rightly; its processes, which do nothing, are started and ended as a server's are.

    ``interrupted`` names the variant that a signal reaches, and the step in which it does.
    """

    part = "tests"
    recommended = "nobody"
    begun: ClassVar[dict[str, subprocess.Popen[Any]]] = {}
    folders: ClassVar[list[Path]] = []
    interrupted: ClassVar[tuple[str, str, signal.Signals] | None] = None
    process: subprocess.Popen[Any] | None = None

    @classmethod
    def variants(cls, subject: Subject) -> list[str]:
        return ["a", "b", "c"]

    def _reach(self, step: str) -> None:
        if self.interrupted and self.interrupted[:2] == (self.variant, step):
            os.kill(os.getpid(), self.interrupted[2])
            raise AssertionError("no signal has come")

    def prepare(self) -> None:
        self.folders.append(self.folder)

    def start(self) -> None:
        self.process = self.launch([sys.executable, "-c", "import time; time.sleep(600)"])
        self.begun[self.variant] = self.process
        self._reach("start")

    def close(self) -> None:
        super().close()
        if self.process is not None:
            self.process.wait(60)

    def all_answers(self, pictures: Sequence[bytes]) -> list[Any]:
        labels = self.subject.handler.bundle.labels
        return [[{"label": labels[one.truth], "score": 1.0}] for one in self.subject.pictures]

    def run(self, pictures: Sequence[bytes], seconds: float) -> tuple[int, float]:
        self._reach("run")
        return len(pictures), 1.0


def sit(variant: str, step: str, number: str, out: str) -> None:
    """A sitting of the command, in a process that a signal may end: of what it left, JSON."""

    def families() -> dict[str, type[Contender]]:
        return {"standing": _Standing}

    for module in (choice, session, command):
        module.families = families  # type: ignore[attr-defined]
    _Standing.interrupted = (variant, step, signal.Signals(int(number)))
    try:
        command.main(["standing", "--model", MODEL, "--count", "2", "--quick", "--out", out])
    except SystemExit as end:
        left = {
            "status": end.code,
            "ended": {name: one.returncode is not None for name, one in _Standing.begun.items()},
            "folders": [str(folder) for folder in _Standing.folders if folder.exists()],
        }
        print(json.dumps(left))
    finally:
        for process in _Standing.begun.values():
            process.kill()
            process.wait(60)


@pytest.fixture(scope="module")
def subject() -> Subject:
    """The default model with two rendered pictures."""
    return Subject.load(MODEL, count=2)


class _Brief(_Standing):
    """Without processes, of which the order asks nothing."""

    def start(self) -> None:
        if self.variant == "b":
            raise ServerError("b never starts")


def test_rounds_are_interleaved_and_every_other_one_is_reversed(
    subject: Subject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session, "families", lambda: {"brief": _Brief})
    found: list[dict[str, Any]] = []
    names = ["brief/a", "brief/b", "brief/c"]
    plan = Plan(rounds=3, warm_requests=0)
    session.Session(subject, names, plan, tmp_path, found.append, lambda words: None).run()
    ended = [one for one in found if one["kind"] in ("closed", "failed")]
    # One that fails has its place in each round all the same.
    assert [(one["round"], one["contender"][-1], one["kind"]) for one in ended] == [
        *((0, "a", "closed"), (0, "b", "failed"), (0, "c", "closed")),
        *((1, "c", "closed"), (1, "b", "failed"), (1, "a", "closed")),
        *((2, "a", "closed"), (2, "b", "failed"), (2, "c", "closed")),
    ]


@pytest.mark.parametrize(
    ("number", "step"),
    [(signal.SIGINT, "start"), (signal.SIGINT, "run"), (signal.SIGTERM, "run")],
)
def test_a_signal_ends_every_server_and_keeps_what_was_measured(
    number: signal.Signals, step: str, tmp_path: Path
) -> None:
    words = ["b", step, str(int(number)), str(tmp_path)]
    # In a process of its own: a signal that this one takes ends its tests.
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            f"import sys; import {__name__} as it; it.sit(*sys.argv[1:])",
            *words,
        ],
        cwd=Path(__file__).parents[2],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    *_, said, last = done.stdout.splitlines()
    assert said == "stopped: all servers have been ended"
    # The third never began, the others' processes have ended, and their folders are gone.
    assert json.loads(last) == {"status": 130, "ended": {"a": True, "b": True}, "folders": []}
    kept = json.loads((tmp_path / "results.json").read_text())["measurements"]
    [closed] = rows.select(kept, kind="closed")
    assert (closed["contender"], closed["requests"]) == ("standing/a", 2)
    # It was ready and answered before its load, and nobody calls its end a failure.
    assert [one["kind"] for one in rows.select(kept, contender="standing/b")] == (
        ["ready", "accuracy"] if step == "run" else []
    )
    # What there is, is shown as at the end of a whole sitting.
    assert "standing/a" in (tmp_path / "tables.txt").read_text()
    assert (tmp_path / "throughput.png").read_bytes().startswith(b"\x89PNG")


class _Serving(Server):
    """Notes what it is asked; no process."""

    part, recommended = "tests", "nobody"
    address = Address("http://127.0.0.1:9")

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self.noted: list[str] = []

    @classmethod
    def variants(cls, subject: Subject) -> list[str]:
        return ["a"]

    def prepare(self) -> None: ...

    def start(self) -> None: ...

    def request(self, pictures: Sequence[bytes]) -> Request:
        return Request("/", pictures[0])

    def answers(self, body: bytes) -> list[Any]:
        return []

    def ask(self, picture: bytes, seconds: float | None = None) -> bytes:
        self.noted.append("asked")
        return b""


def test_no_load_begins_while_the_server_works_for_the_one_before(
    subject: Subject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = _Serving("a", subject, 1.0)

    def closed(bodies: loads.Bodies, connections: int, seconds: float) -> dict[str, Any]:
        made.noted.append("loaded")
        some = {"requests": 10, "failed": 4, "seconds": 1.0, "client_cpu": 0.0}
        return {"connections": connections, **some}

    monkeypatch.setattr(loads, "closed", closed)
    plan = Plan(loads=("closed",), connections=(1, 8), warm=1.0, warm_requests=6)
    kept: list[dict[str, Any]] = []

    def record(kind: str, **figures: Any) -> None:
        kept.append({"kind": kind, **figures})

    pictures = list(subject.pictures)
    with closing(made):
        Served(plan, made, 0, lambda size: pictures, tmp_path, record, lambda words: None).run()
    # Warming up, and for each number of connections a load to warm up and one that counts.
    assert made.noted == ["loaded", "asked"] * 5
    # Those that failed have warmed nothing.
    assert kept[0] == {"kind": "warm", "requests": 6, "seconds": 1.0}


@pytest.mark.parametrize(
    ("words", "needed"),
    [
        ("--load closed --rates 5", "--rates needs --load mlperf or poisson as well"),
        ("--load closed --shares 0.5", "--shares needs --load mlperf or poisson as well"),
        ("--load poisson --rates 5 --shares 0.5", "--shares needs --load closed as well"),
        ("--load closed --latency-ms 50", "--latency-ms needs --load mlperf as well"),
    ],
)
def test_settings_of_loads_that_are_not_asked_for_are_refused(words: str, needed: str) -> None:
    done = CliRunner().invoke(command.main, ["--count", "2", *words.split()])
    assert (done.exit_code, done.output.strip()) == (1, f"error: {needed}")
