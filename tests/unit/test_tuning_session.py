"""A search with stand-ins for builds and servers: whose turn comes, for how long, who is served."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from handlers.errors import ExportError
from marsmith import spec, trials
from marsmith.archive import file_name
from marsmith.trials import Trial
from marsmith.tuning import serving, show
from marsmith.tuning import session as searching
from marsmith.tuning.points import Measured, Objective, Point
from marsmith.tuning.search import Pair
from marsmith.tuning.session import Session

MODEL = "lenet5_digits"
EAGER, TORCHSCRIPT = ("eager", "fp32"), ("torchscript", "fp32")
ONNX, OPENVINO, HALF = ("onnx", "fp32"), ("openvino", "fp32"), ("openvino", "fp16")


@dataclass
class Bench:
    """What a build and a point give and take, on a clock of its own.

    ``speeds`` and ``spans`` are pictures per second and build seconds of each pair, ``given`` how
    long its build might have taken; a pair without a speed fails. ``served`` are the points.
    """

    root: Path
    now: float = 1000.0
    speeds: Mapping[Pair, float] = field(default_factory=dict)
    spans: Mapping[Pair, float] = field(default_factory=dict)
    given: dict[Pair, float] = field(default_factory=dict)
    served: list[Point] = field(default_factory=list)

    def build(
        self,
        model: spec.ModelSpec,
        root: Path,
        store: Path,
        chosen: Sequence[Pair],
        tell: Callable[[str], object],
        seconds: float,
    ) -> Iterator[Trial]:
        """In place of ``trials.run``."""
        [pair] = chosen
        self.given[pair] = seconds
        span = self.spans.get(pair, 0.0)
        self.now += min(span, seconds)
        if span > seconds or pair not in self.speeds:
            yield Trial(*pair, problem="it took too long" if span > seconds else "it is broken")
            return
        archive = store / "-".join(pair) / file_name(model.name, model.version)
        archive.parent.mkdir(parents=True, exist_ok=True)
        archive.write_text(" ".join(pair))
        yield Trial(*pair, throughput=self.speeds[pair], resident_bytes=10**6)

    def serve(
        self, archive: Path, model: spec.ModelSpec, root: Path, point: Point, load: serving.Load
    ) -> Measured:
        """In place of ``serving.measure``."""
        assert archive.read_text() == f"{point.runtime} {point.precision}"
        self.served.append(point)
        return Measured(point, throughput=1.0, p99=1.0)

    def search(self, pairs: Sequence[Pair], budget: float = 3600.0) -> Session:
        """A search that has ended."""
        session = Session(
            spec=spec.load(self.root / f"models/{MODEL}.yaml", {"runtime": "eager"}),
            root=self.root,
            load=serving.Load([], 1.0),
            objective=Objective(),
            budget=budget,
            tell=lambda words: None,
            advance=lambda done, most: None,
        )
        session.run(pairs)
        return session

    def pairs_served(self) -> set[Pair]:
        return {(point.runtime, point.precision) for point in self.served}


@pytest.fixture
def bench(project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    """In a project folder whose results are its own."""
    for name in ("weights", "samples", "training", "models"):
        (tmp_path / name).symlink_to(project / name)
    made = Bench(tmp_path)
    monkeypatch.setattr(trials, "run", made.build)
    monkeypatch.setattr(serving, "measure", made.serve)
    monkeypatch.setattr(searching, "time", SimpleNamespace(monotonic=lambda: made.now))
    return made


def test_the_three_fastest_that_work_are_served(bench: Bench) -> None:
    bench.speeds = {EAGER: 10, ONNX: 40, OPENVINO: 20, HALF: 30}
    session = bench.search([EAGER, TORCHSCRIPT, ONNX, OPENVINO, HALF])
    assert bench.pairs_served() == {ONNX, HALF, OPENVINO}
    assert session.complete
    assert session.skipped == []
    # The fastest first, and last what failed.
    order = [(trial.runtime, trial.precision) for trial in session.tried]
    assert order == [ONNX, HALF, OPENVINO, EAGER, TORCHSCRIPT]


def test_where_fewer_work_all_of_them_are_served(bench: Bench) -> None:
    bench.speeds = {EAGER: 10, ONNX: 40}
    bench.search([EAGER, TORCHSCRIPT, ONNX])
    assert bench.pairs_served() == {EAGER, ONNX}


def test_builds_have_their_share_of_the_budget_and_what_it_left_out_is_named(bench: Bench) -> None:
    bench.speeds = {EAGER: 10, ONNX: 40, OPENVINO: 20, HALF: 30, TORCHSCRIPT: 5}
    bench.spans = {EAGER: 10, ONNX: 20, OPENVINO: 31}
    session = bench.search([TORCHSCRIPT, HALF, OPENVINO, EAGER, ONNX], budget=100)
    # The model file's own first, which may take all; the likely ones next. Once there is something
    # to serve, 40 of 100 seconds are kept for that.
    assert bench.given == {EAGER: 100, HALF: 50, OPENVINO: 50, ONNX: 19}
    assert session.skipped == [ONNX, TORCHSCRIPT]
    assert bench.pairs_served() == {EAGER, HALF, OPENVINO}
    assert session.complete


def test_until_something_works_builds_have_all_of_the_budget(bench: Bench) -> None:
    bench.speeds = {OPENVINO: 20}
    bench.spans = {EAGER: 30, ONNX: 40, OPENVINO: 20}
    session = bench.search([EAGER, ONNX, OPENVINO], budget=100)
    assert bench.given == {EAGER: 100, ONNX: 70, OPENVINO: 30}
    # What failed of itself was tried.
    assert session.skipped == []
    assert [trial.problem for trial in session.tried] == [None, "it is broken", "it is broken"]
    assert bench.pairs_served() == {OPENVINO}


def test_pairs_that_were_left_out_are_shown(bench: Bench) -> None:
    bench.speeds, bench.spans = {EAGER: 10}, {EAGER: 60}
    session = bench.search([EAGER, ONNX, HALF], budget=100)
    file = io.StringIO()
    show.print_tables(Console(file=file, width=200), session)
    words = "not tried for want of time (--budget): onnx fp32, openvino fp16"
    assert words in file.getvalue().splitlines()
    assert show.to_json(session)["skipped"] == [ONNX, HALF]


def test_a_pair_that_was_left_out_has_its_turn_when_the_search_goes_on(bench: Bench) -> None:
    bench.speeds, bench.spans = {EAGER: 10, ONNX: 40}, {EAGER: 60, ONNX: 30}
    assert bench.search([EAGER, ONNX], budget=100).skipped == [ONNX]
    bench.given.clear()
    again = bench.search([EAGER, ONNX], budget=100)
    # What was built is not built anew, and its seconds are the other's.
    assert bench.given == {ONNX: 60}
    assert again.skipped == []
    assert bench.pairs_served() == {EAGER, ONNX}


def test_an_archive_that_is_another_by_now_is_built_anew(bench: Bench) -> None:
    bench.speeds = {EAGER: 10, ONNX: 40}
    bench.search([EAGER, ONNX])
    bench.given.clear()
    [kept] = (bench.root / searching.FOLDER).rglob("onnx-fp32/*.mar")
    kept.write_text("of another build")
    bench.search([EAGER, ONNX])
    assert list(bench.given) == [ONNX]


def test_a_gpu_has_few_workers(bench: Bench) -> None:
    bench.speeds = {EAGER: 10}
    session = bench.search([EAGER])
    assert session._room(EAGER, 1, "cuda").workers == 4
    assert session._room(EAGER, 1, "cpu").workers > 4


def test_the_options_that_are_tried_are_those_that_a_point_has_not_yet(bench: Bench) -> None:
    bench.speeds = {EAGER: 10}
    assert bench.search([EAGER])._options(OPENVINO) == [{"streams": "per-thread"}]


@pytest.mark.parametrize(
    ("spans", "words"),
    [
        ({EAGER: 101.0}, "no archive was built in this time: give more with --budget MINUTES"),
        ({}, "no runtime can serve this model: eager: it is broken; onnx: it is broken"),
    ],
)
def test_where_nothing_works_the_search_says_whether_time_would_help(
    bench: Bench, spans: dict[Pair, Any], words: str
) -> None:
    bench.spans = spans
    with pytest.raises(ExportError, match=f"^{words}$"):
        bench.search([EAGER, ONNX], budget=100)
    assert bench.served == []
