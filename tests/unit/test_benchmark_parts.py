"""Pictures, names, bodies, processes and logs of benchmarks/serving."""

from __future__ import annotations

import io
import json
import operator
import os
import subprocess
import sys
import uuid
from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from email import message_from_bytes
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import psutil  # type: ignore[import-untyped]
import pytest
from PIL import Image

from benchmarks.serving import accuracy, multipart, rows, session
from benchmarks.serving.choice import chosen, families
from benchmarks.serving.contender import Local
from benchmarks.serving.contenders.fastapi import FastApi
from benchmarks.serving.mlperf import read_accuracy, read_summary
from benchmarks.serving.pictures import Picture, labelled, resized
from benchmarks.serving.plan import Plan
from benchmarks.serving.processes import MARK, end_marked, marked, watching
from benchmarks.serving.subject import Subject
from benchmarks.serving.warming import warm
from handlers.bundle import Bundle
from handlers.errors import BuildError, MarsmithError, SpecError
from handlers.inputs import ImageInput
from handlers.tasks.image_classification import ImageClassification
from marsmith import quantise


def _jpeg(width: int = 64, height: int = 48) -> bytes:
    file = io.BytesIO()
    pixels = np.linspace(0, 255, width * height * 3).reshape(height, width, 3)
    Image.fromarray(pixels.astype(np.uint8)).save(file, "JPEG")
    return file.getvalue()


def test_labelled_pictures_are_those_of_the_task_spread_over_the_names(tmp_path: Path) -> None:
    for name in ("a.jpg", "b.jpg", "c.JPEG"):
        (tmp_path / name).write_bytes(_jpeg())
    task = ImageClassification()
    task.bundle = Bundle("m", "1", "t", "r", "a", ["cat", "dog"], ImageInput())
    with pytest.raises(SpecError, match="no labelled pictures"):
        labelled(tmp_path, task)
    (tmp_path / "labels.csv").write_text("file,label\na.jpg,dog\nb.jpg,0\nc.JPEG,dog\n")
    found = labelled(tmp_path, task)
    assert [(one.name, one.truth) for one in found] == [("a.jpg", 1), ("b.jpg", 0), ("c.JPEG", 1)]
    assert [one.name for one in labelled(tmp_path, task, 2)] == ["a.jpg", "b.jpg"]


def test_what_int8_was_calibrated_with_is_asked_and_not_scored(tmp_path: Path) -> None:
    for name, size in (("a.jpg", 20), ("b.jpg", 30), ("c.jpg", 40)):
        (tmp_path / name).write_bytes(_jpeg(size, size))
    (tmp_path / "labels.csv").write_text("file,label\na.jpg,dog\nb.jpg,cat\nc.jpg,dog\n")
    task = ImageClassification()
    task.bundle = Bundle("m", "1", "t", "r", "a", ["cat", "dog"], ImageInput())
    taken = quantise.digests([tmp_path / "a.jpg"])
    found = labelled(tmp_path, task, calibrated=taken)
    assert [one.scored for one in found] == [False, True, True]
    assert [one.scored for one in resized(found, "small")] == [False, True, True]

    def top_1(answers: Sequence[int], truths: Sequence[int]) -> float:
        return sum(map(operator.eq, answers, truths)) / len(truths)

    made: Any = SimpleNamespace(score=top_1)
    reached = accuracy.score(made, found, {0: 0, 1: 0, 2: MarsmithError("none")})
    assert (reached["score"], reached["scored"], reached["unanswered"]) == (0.5, 2, 1)
    everything = quantise.digests(sorted(tmp_path.glob("*.jpg")))
    with pytest.raises(SpecError, match="calibrated with every picture"):
        labelled(tmp_path, task, calibrated=everything)


def test_photographs_have_12_megapixels_and_are_seeded() -> None:
    pictures = [Picture("wide", _jpeg(), 1), Picture("tall", _jpeg(48, 64), 2)]
    large = {one.truth: one for one in resized(pictures, "large")}
    sizes = {truth: Image.open(io.BytesIO(one.data)).size for truth, one in large.items()}
    assert sizes == {1: (4032, 3024), 2: (3024, 4032)}
    assert all(len(one.data) > 1_500_000 for one in large.values())
    assert large[1].data == {one.truth: one for one in resized(pictures, "large")}[1].data


def test_thumbnails_keep_their_shape_and_real_ones_their_bytes() -> None:
    pictures = [Picture("one", _jpeg(640, 480), 1)]
    [small] = resized(pictures, "small")
    assert Image.open(io.BytesIO(small.data)).size == (160, 120)
    assert resized(pictures, "real") == pictures


@pytest.fixture(scope="module")
def subject() -> Subject:
    """The default model with two rendered pictures."""
    return Subject.load("mobilenet_v2_shapes", count=2)


def test_contenders_are_chosen_by_part_file_name_and_pattern(subject: Subject) -> None:
    assert chosen(["ours/eager:fp32", "stock"], subject)[:2] == [
        "ours/eager:fp32",
        "torchserve/installed",
    ]
    assert chosen(["*/torchscript:fp32"], subject) == [
        "ceiling/torchscript:fp32",
        "ours/torchscript:fp32",
    ]
    assert "ray/torch" in chosen(["peers"], subject)
    # A variant that does not take part by itself.
    assert chosen(["ours/openvino:fp32+tensor"], subject) == ["ours/openvino:fp32+tensor"]
    with pytest.raises(SpecError, match="parts are ceilings, ours, peers, stock"):
        chosen(["yours"], subject)


def test_peers_run_the_file_of_our_archive_of_the_same_name(
    subject: Subject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def openvino(self: Subject, folder: Path, precision: str) -> Path:
        asked.append(precision)
        return folder / f"{precision}.xml"

    monkeypatch.setattr(Subject, "openvino", openvino)
    for variant, file, precision in (
        ("openvino:int8", "int8.xml", "int8"),
        ("openvino:int8+tensor", "int8+tensor.xml", "int8"),
        ("openvino", "fp32.xml", "fp32"),
    ):
        with closing(FastApi(variant, subject, 1)) as made:
            made.prepare()
            told = json.loads((made.folder / "model.json").read_text())
            assert (Path(told["openvino"]).name, told["precision"]) == (file, precision)
    assert asked == ["int8", "int8+tensor", "fp32"]
    for variant in ("openvino:int8+tensor+workers=2", "torch:int8", "onnx:fp32"):
        refused = pytest.raises(BuildError, match="serving settings are our server's")
        with closing(FastApi(variant, subject, 1)) as made, refused:
            made.prepare()


def test_peers_take_part_with_the_most_exact_and_the_most_reduced(
    subject: Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    offered = [("eager", "fp32"), *(("openvino", each) for each in ("fp32", "bf16", "int8"))]
    monkeypatch.setattr(Subject, "offered", lambda self: offered)
    names = ["fastapi/torch", "fastapi/openvino:fp32", "fastapi/openvino:int8"]
    assert chosen(["fastapi"], subject) == names
    monkeypatch.setattr(Subject, "offered", lambda self: offered[:2])
    assert chosen(["fastapi"], subject) == names[:2]


def test_a_variant_may_have_settings_of_its_own(subject: Subject) -> None:
    fields = subject._fields("openvino", "fp32+tensor+workers=2+threads=1", {})
    assert (fields["precision"], fields["input"]["backend"]) == ("fp32", "tensor")
    assert (fields["serving"]["workers"], fields["serving"]["threads"]) == (2, 1)
    assert "backend" not in subject._fields("openvino", "fp32+workers=2", {}).get("input", {})
    # The model file is for two cores, and the ceiling takes all there are.
    fields = replace(subject, cores=8)._fields("openvino", "fp32", {"workers": 8, "threads": 1})
    assert fields["serving"]["workers"] == 8
    with pytest.raises(SpecError, match="'workers=two': write KEY=NUMBER"):
        subject._fields("openvino", "fp32+workers=two", {})


BATCHED = ("tuned-batch", "tuned-compile-batch", "tuned-batch-malloc")
TUNED = (
    "tuned",
    "tuned-torchscript",
    "tuned-compile",
    "tuned-malloc",
    "tuned-compile-malloc",
    *BATCHED,
)


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        ("mobilenet_v2_shapes", set(TUNED)),
        ("lraspp_shapes", {"tuned", "tuned-compile", "tuned-malloc"}),
        ("ssdlite_shapes", {"tuned", "tuned-compile", "tuned-malloc"}),
    ],
)
def test_all_ways_to_tune_stock_take_part(model: str, expected: set[str]) -> None:
    names = chosen(["stock"], Subject.load(model, count=1))
    assert {f"torchserve/{variant}" for variant in expected} <= set(names)


def test_every_contender_says_what_it_follows() -> None:
    assert all(len(one.recommended) > 40 for one in families().values())


class _Forgetful(Local):
    """Answers rightly the first time that it is started, and never again."""

    part = "tests"
    started = 0

    @classmethod
    def variants(cls, subject: Subject) -> list[str]:
        return ["one"]

    def prepare(self) -> None:
        """There is nothing to make."""

    def start(self) -> None:
        type(self).started += 1

    def all_answers(self, pictures: Sequence[bytes]) -> list[Any]:
        labels = self.subject.handler.bundle.labels
        step = self.started - 1
        return [
            [{"label": labels[(one.truth + step) % len(labels)], "score": 1.0}]
            for one in self.subject.pictures
        ]

    def run(self, pictures: Sequence[bytes], seconds: float) -> tuple[int, float]:
        return len(pictures), 1.0


def test_each_round_is_asked_for_right_answers(
    subject: Subject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session, "families", lambda: {"forgetful": _Forgetful})
    found: list[dict[str, Any]] = []
    plan = Plan(rounds=2, loads=("closed",))
    session.Session(subject, ["forgetful/one"], plan, tmp_path, found.append, print).run()
    assert [one["score"] for one in rows.select(found, kind="accuracy")] == [1.0, 0.0]


@pytest.mark.parametrize(
    ("rate", "requests", "seconds"),
    # Of a fast one so many answers; of one that is slow, or stuck, so many seconds.
    [(500, 15_000, 30), (10_000, 50_000, 5), (100, 6000, 60), (0, 0, 60)],
)
def test_warming_up_ends_by_answers_or_for_the_slow_by_time(
    rate: int, requests: int, seconds: float
) -> None:
    plan = Plan(warm=5, warm_requests=15_000, warm_most=60)
    assert warm(lambda span: round(rate * span), plan) == (requests, seconds)


def test_warming_up_may_be_by_seconds_alone() -> None:
    assert warm(lambda span: round(span), Plan(warm=2, warm_requests=0)) == (2, 2)


def test_a_form_is_multipart() -> None:
    head = f"Content-Type: {multipart.CONTENT_TYPE}\r\n\r\n".encode()
    parts = message_from_bytes(head + multipart.encode("files", [b"one\r\n--", b"two"]))
    found = [part.get_payload(decode=True) for part in parts.get_payload()]  # type: ignore[union-attr]
    assert found == [b"one\r\n--", b"two"]


def test_marked_processes_are_found_measured_and_ended() -> None:
    mark = uuid.uuid4().hex
    # Its child is in a session of its own, as that of a server that turns into a daemon.
    code = (
        "import subprocess, sys, time\n"
        "if sys.argv[1] == 'parent':\n"
        "    subprocess.Popen([sys.executable, *sys.orig_argv[1:-1], 'child'],"
        " start_new_session=True)\n"
        "    print('started', flush=True)\n"
        "    while True: pass\n"
        "time.sleep(600)\n"
    )
    command = [sys.executable, "-c", code, "parent"]
    environ = {**os.environ, MARK: mark}
    with subprocess.Popen(command, env=environ, stdout=subprocess.PIPE) as parent:
        try:
            assert parent.stdout is not None
            parent.stdout.readline()

            def role(process: psutil.Process) -> str:
                return "parent" if process.pid == parent.pid else "child"

            with watching(mark, role) as watch:
                busy = psutil.Process(parent.pid)
                while sum(busy.cpu_times()[:2]) < 0.3:
                    pass
                usage = watch.close(0.0)
            assert set(usage.cpu) == {"parent", "child"}
            assert usage.cpu["parent"] > usage.cpu["child"]
            # One process each.
            assert usage.each_pss == usage.pss
            assert usage.peak_pss == pytest.approx(sum(usage.pss.values()), rel=0.2)
        finally:
            end_marked(mark)
    assert marked(mark) == []


def test_loadgens_own_files_are_read() -> None:
    text = (
        "SUT name : PySUT\nScenario : Server\nMode     : PerformanceOnly\n"
        "Completed samples per second    : 59.53\nResult is : VALID\n"
        "99.00 percentile latency (ns)   : 31236789\n"
    )
    found = read_summary(text)
    assert found["Completed samples per second"] == 59.53
    assert found["Result is"] == "VALID"
    assert found["99.00 percentile latency (ns)"] == 31236789
    log = '[\n{"seq_id" : 0, "qsl_idx" : 3, "data" : "5B5D"},\n'
    log += '{"seq_id" : 1, "qsl_idx" : 0, "data" : ""}]'
    assert read_accuracy(log) == {3: b"[]", 0: b""}


def test_what_cannot_run_is_told_before_the_others_are_measured(
    subject: Subject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("benchmarks.serving.contender.PROJECT", tmp_path)
    told: list[str] = []
    names = ["ours/eager:fp32", "fastapi/torch"]
    plan = Plan(rounds=1, seconds=0.1)
    sitting = session.Session(subject, names, plan, tmp_path, lambda one: None, told.append)
    # Only what comes before the first contender.
    monkeypatch.setattr(sitting, "_one", lambda *given: None)
    sitting.run()
    missing = "no .venv-bench-fastapi: make it with `make bench-peers`"
    assert told[:2] == [f"fastapi/torch will not run: {missing}", "round 1 of 1: ours/eager:fp32"]
