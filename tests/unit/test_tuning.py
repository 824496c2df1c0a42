"""The search for serving settings: what is measured, kept and chosen."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import threading
import time
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from tuned import HOST, MODEL, measured, point

from handlers.errors import ServerError
from marsmith import smoke, spec
from marsmith.archive import read_json
from marsmith.commands import tune
from marsmith.spec_parts import ServingSpec
from marsmith.tuning import client, fingerprint, search, serving, staging
from marsmith.tuning.points import BATCHES, DELAYS, Measured, Objective, Point, pareto
from marsmith.tuning.record import Record
from marsmith.tuning.search import Room


def test_the_front_has_what_no_other_beats() -> None:
    fast, quick, between = measured(100, 40), measured(20, 5), measured(60, 20)
    slower, same = measured(60, 21), measured(60, 20, workers=2)
    broken = Measured(point(), problem="refused")
    front = pareto([quick, slower, broken, between, fast, same])
    assert front == [fast, between, same, quick]


def test_the_objective() -> None:
    fast, quick, between = measured(100, 40), measured(20, 5), measured(60, 20)
    broken = Measured(point(workers=9), problem="refused")
    found = [quick, broken, between, fast]
    assert Objective().best(found) is fast
    assert Objective(30).best(found) is between
    assert "p99 <= 30 ms: 60 pictures/s" in Objective(30).reason(found)
    assert Objective(1).best(found) is quick
    assert "none of 3 points has p99 <= 1 ms" in Objective(1).reason(found)
    with pytest.raises(ServerError, match="9 x 2 threads.*refused"):
        Objective().best([broken])
    with pytest.raises(ServerError, match="--budget"):
        Objective().best([])


def test_of_points_that_are_nearly_as_fast_the_one_that_answers_soonest_is_taken() -> None:
    # As three points of one model were on two cores.
    found = [measured(241, 163), measured(236, 63), measured(228, 48), measured(300, 9)]
    found[3] = Measured(point(workers=9), throughput=300, p99=9, problem="refused")
    assert Objective().ranked(found) == [found[1], found[0], found[2]]
    assert Objective().reason(found) == (
        "the least p99 of the 2 of 3 points within 5% of the most (241 pictures/s): "
        "236 pictures/s, p99 63.0 ms at 60% load"
    )
    # A limit is what is wanted of p99.
    assert Objective(200).best(found) is found[0]
    alone = [measured(241, 163), measured(200, 10)]
    assert Objective().reason(alone).startswith("the most pictures per second of 2 points: 241")


@pytest.mark.parametrize("cores", [1, 2, 3, 6, 16])
def test_splits_never_ask_for_more_than_the_cores(cores: int) -> None:
    found = search.splits(cores)
    assert {(1, cores), (cores, 1)} <= set(found)
    assert len(set(found)) == len(found)
    assert all(0 < workers * threads <= cores for workers, threads in found)


def test_splits_stay_within_the_memory() -> None:
    assert search.splits(64, 5) == [(1, 64), (5, 12)]
    assert search.splits(64, 1) == [(1, 64)]


def test_one_coordinate_after_the_other_with_fewer_each_time() -> None:
    done: list[Measured] = []
    pairs = {("onnx", "fp32"): Room(9), ("eager", "bf16"): Room(9)}
    for each in search.points(pairs, 2, Objective(), done):
        # More batch and more workers pay; the delay does not.
        speed = 10 * each.batch_size + 5 * each.workers + (each.runtime == "onnx") - each.delay
        done.append(Measured(each, throughput=speed, p99=1 / speed))
    points = [one.point for one in done]
    assert len(points) == len(set(points)) == search.most(2, 2)
    first, batches, delays = points[:4], points[4:10], points[10:]
    assert {(each.batch_size, each.delay) for each in first} == {(BATCHES[0], DELAYS[0])}
    assert {(each.runtime, each.workers) for each in first} == {
        (runtime, workers) for runtime in ("onnx", "eager") for workers in (1, 2)
    }
    assert {(each.runtime, each.workers) for each in batches} == {("onnx", 2), ("eager", 2)}
    assert {each.batch_size for each in batches} == set(BATCHES[1:])
    assert delays == [point(runtime="onnx", workers=2, threads=1, batch_size=16, delay=5)]


def test_a_batch_of_one_is_not_tried_with_other_delays() -> None:
    done: list[Measured] = []
    for each in search.points({("eager", "fp32"): Room(1)}, 1, Objective(), done):
        done.append(Measured(each, throughput=1 / each.batch_size, p99=1.0))
    assert {one.point.delay for one in done} == {DELAYS[0]}


def test_a_point_that_fails_is_left_behind() -> None:
    done: list[Measured] = []
    pairs = {("eager", "fp32"): Room(1), ("onnx", "fp32"): Room(1)}
    for each in search.points(pairs, 1, Objective(), done):
        problem = "refused" if each.runtime == "onnx" else None
        done.append(Measured(each, throughput=1.0, p99=1.0, problem=problem))
    assert [one.point.runtime for one in done].count("onnx") == 1


def test_the_best_is_tried_with_the_options_that_its_runtime_leaves_to_choose() -> None:
    done: list[Measured] = []
    ways = [{"streams": "per-thread"}, {"streams": "two"}]
    pairs = {("openvino", "fp32"): Room(1, ways), ("onnx", "fp32"): Room(1, [{"other": 1}])}
    for each in search.points(pairs, 1, Objective(), done):
        speed = each.batch_size + 50 * (each.runtime == "openvino") + 9 * bool(each.options)
        done.append(Measured(each, throughput=speed, p99=1.0))
    assert len(done) == search.most(2, 1, 2)
    tried = [one.point for one in done if one.point.options]
    assert [one.options for one in tried] == ways
    assert {(one.runtime, one.batch_size, one.delay) for one in tried} == {("openvino", 16, 1)}
    assert str(tried[0]).endswith("1 ms, streams per-thread")
    best = Objective().best(done)
    assert Measured.from_json(json.loads(json.dumps(best.to_json()))) == best


def test_the_best_is_measured_again_until_the_best_has_been() -> None:
    lucky, steady, slow = measured(100, 20, workers=1), measured(98, 30, workers=2), measured(9, 9)
    found, twice = [lucky, steady, slow], set[Point]()
    again = {lucky.point: 60.0, steady.point: 34.0}
    while (one := search.unsure(found, Objective(), twice)) is not None:
        second = replace(one, p99=again[one.point], throughput=one.throughput + 2)
        found[found.index(one)] = one.averaged(second)
        twice.add(one.point)
    assert twice == {lucky.point, steady.point}
    assert [(one.throughput, one.p99) for one in found] == [(101, 40), (99, 32), (9, 9)]
    assert Objective().best(found).point == steady.point
    assert search.unsure([lucky], Objective(), set()) is None, "nothing to compare it with"
    many = [measured(100, 20 + i, delay=i) for i in range(9)]
    assert search.unsure(many, Objective(), {one.point for one in many[-search.AGAIN :]}) is None


def test_a_point_that_fails_the_second_time_has_failed() -> None:
    broken = replace(measured(0, 0), problem="refused")
    assert measured(100, 20).averaged(broken) == broken
    both = replace(measured(100, 20), requests=7).averaged(replace(measured(50, 40), requests=3))
    assert (both.throughput, both.p99, both.requests) == (75, 30, 10)


@given(cut=st.integers(0, 10_000))
def test_a_line_may_be_cut_off_anywhere(cut: int) -> None:
    keys = [{"point": {"workers": number}, "host": HOST} for number in (1, 2, 3)]
    results = [measured(number, 7).to_json() for number in (1, 2, 3)]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "results.jsonl"
        Record(path).add(keys[0], results[0])
        before = path.stat().st_size
        Record(path).add(keys[1], results[1])
        length = path.stat().st_size - before
        os.truncate(path, before + cut % (length + 1))
        again = Record(path)
        # The line's end alone may be missing.
        whole = cut % (length + 1) >= length - 1
        assert again.get(keys[1]) == (results[1] if whole else None)
        again.add(keys[2], results[2])
        kept = Record(path)
        assert (kept.get(keys[0]), kept.get(keys[2])) == (results[0], results[2])
        assert kept.get(keys[1]) == again.get(keys[1])


def test_results_are_kept_under_their_key(tmp_path: Path) -> None:
    path = tmp_path / "new/results.jsonl"
    one, other = {"point": {"workers": 1}, "host": HOST}, {"point": {"workers": 2}, "host": HOST}
    assert Record(path).get(one) is None
    Record(path).add(one, measured(5, 7).to_json())
    # As a machine that goes down leaves it.
    with path.open("a") as file:
        file.write('{"key": {"point": ')
    again = Record(path)
    again.add(other, {"throughput": 2})
    kept = Record(path)
    assert Measured.from_json(kept.get(one) or {}) == measured(5, 7)
    assert kept.get(other) == {"throughput": 2}
    assert kept.get({**one, "host": {**HOST, "cores": 4}}) is None


def test_a_point_is_served_with_room_for_its_batch_on_the_cores_of_this_host(
    tmp_path: Path,
) -> None:
    path = tmp_path / "m.yaml"
    path.write_text(MODEL.replace("queue_size: 50", "queue_size: 4"))
    model = spec.load(path, {"serving": {"cores": 999}})
    assert staging.serving_of(model, point(workers=1, threads=1, batch_size=2)).queue_size == 4
    found = staging.serving_of(model, point(workers=1, threads=1, batch_size=16))
    assert (found.queue_size, found.cores) == (16, None)


def test_every_worker_has_a_batch_and_another_one_waiting() -> None:
    for workers, size, wanted in ((1, 1, 4), (2, 4, 16), (4, 8, 64), (8, 16, 64)):
        assert serving.connections(point(workers=workers, batch_size=size)) == wanted


def test_an_archive_with_other_settings_has_the_same_artifact(
    project: Path, lenet5: Path, tmp_path: Path
) -> None:
    model = spec.load(project / "models/lenet5_digits.yaml")
    target = tmp_path / lenet5.name
    serving = staging.serving_of(model, point(workers=2, threads=1, batch_size=4, delay=3))
    staging.restage(lenet5, target, serving)
    before, after = (read_json(path, "MAR-INF/RECORD.json")["sha256"] for path in (lenet5, target))
    changed = {name for name in before if before[name] != after[name]}
    assert changed == {"marsmith.json", "model-config.yaml"}
    limits = read_json(target, "marsmith.json")["limits"]
    assert (limits["workers"], limits["threads"], limits["batch_size"]) == (2, 1, 4)
    # The record is right and the golden requests are answered, as in a worker.
    with smoke.prepared() as check:
        check(target)


def test_an_archive_with_other_options(lenet5: Path, tmp_path: Path) -> None:
    target = tmp_path / lenet5.name
    staging.restage(lenet5, target, ServingSpec(), {"method": "script"})
    record = read_json(target, "marsmith.json")
    assert record["runtime_options"] == {"method": "script"}
    assert record["provenance"]["spec"]["runtime_options"] == {"method": "script"}
    assert read_json(lenet5, "marsmith.json")["runtime_options"] == {"method": "trace"}


@pytest.mark.parametrize(
    ("architecture", "travels"),
    [("my_model.py:Net", "my_model.py"), ("./mynet:Net", "mynet/parts/labels.json")],
)
def test_a_trial_is_made_of_what_travels_of_the_source(
    project: Path, tmp_path: Path, architecture: str, travels: str
) -> None:
    shutil.copytree(project / "samples/digits", tmp_path / "samples")
    (tmp_path / "mynet/parts").mkdir(parents=True)
    names = ("net.pth", "my_model.py", "beside.py", "mynet/__init__.py", "mynet/parts/labels.json")
    for name in names:
        (tmp_path / name).touch()
    changes = {"architecture": architecture, "samples": "samples", "weights": {"file": "net.pth"}}
    model = spec.load(project / "models/lenet5_digits.yaml", changes)

    def digest() -> str:
        return fingerprint.of_pair(model, tmp_path, "eager", "fp32")

    before = digest()
    (tmp_path / "beside.py").write_text("changed")
    assert digest() == before
    (tmp_path / travels).write_text("changed")
    assert digest() != before


@pytest.mark.parametrize(
    "name", ["labels.txt", "pictures/labels.csv", "pictures/masks/3.png", "pictures/3.png"]
)
def test_a_trial_is_made_of_labels_and_truths(project: Path, tmp_path: Path, name: str) -> None:
    shutil.copytree(project / "samples/digits", tmp_path / "pictures")
    (tmp_path / "pictures/masks").mkdir()
    for each in ("labels.txt", "net.pth", "net.py", "pictures/labels.csv", "pictures/masks/3.png"):
        (tmp_path / each).touch()
    changes = {
        "architecture": "net.py:Net",
        "labels": "labels.txt",
        "samples": "pictures",
        "weights": {"file": "net.pth"},
        "accuracy": {"folder": "pictures"},
    }
    model = spec.load(project / "models/lenet5_digits.yaml", changes)
    before = fingerprint.of_pair(model, tmp_path, "eager", "fp32")
    assert fingerprint.of_pair(model, tmp_path, "eager", "fp32") == before
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fingerprint, "code_digest", lambda: b"other code")
        assert fingerprint.of_pair(model, tmp_path, "eager", "fp32") != before
    (tmp_path / name).write_text("changed")
    assert fingerprint.of_pair(model, tmp_path, "eager", "fp32") != before


def test_a_host_with_other_gpus_is_another_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    # Stands in for a host with one.
    monkeypatch.setattr(fingerprint.origin, "host", lambda: {"gpus": ["Stand-in"]})
    assert fingerprint.host()["gpus"] == ["Stand-in"]


class _Server(BaseHTTPRequestHandler):
    """Answers what the body says: a status; late where the path says so."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        time.sleep(0.2 if "late" in self.path else 0)
        self.send_response(int(body))
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"ok")

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing is printed."""


@pytest.fixture
def job(tmp_path: Path) -> Iterator[dict[str, Any]]:
    """A job for the load client, whose pictures are statuses of a server's answers."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Server)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    (tmp_path / "good").write_text("200")
    (tmp_path / "bad").write_text("503")
    yield {
        "host": "127.0.0.1",
        "port": server.server_address[1],
        "path": "/",
        "headers": {},
        "files": [str(tmp_path / "good")],
        "connections": 2,
        "warm": 0.05,
        "seconds": 0.5,
        "share": 0.5,
        "seed": 0,
    }
    server.shutdown()
    thread.join()
    server.server_close()


def test_the_client_counts_answers_and_latencies(job: dict[str, Any]) -> None:
    found = client.measure(job)
    assert found["failed"] == 0
    assert found["throughput"] > 0
    assert 0 < found["p50"] <= found["p99"]
    # The open loop has its share: a Poisson count within seven of its standard deviations.
    expected = found["throughput"] * job["share"] * job["seconds"]
    assert abs(found["requests"] - expected) <= 7 * expected**0.5
    json.dumps(found)


def test_the_client_tells_of_failures(job: dict[str, Any]) -> None:
    bad = job["files"][0].replace("good", "bad")
    found = client.measure({**job, "files": [bad]})
    assert found["failed"] > 0
    assert found["first_failure"].startswith("503: ")
    assert found["requests"] == 0
    # Of two connections one fails: the rest would be no measure of the point.
    some = client.measure({**job, "files": [*job["files"], bad], "warm": 0.0})
    assert (some["failed"], some["requests"]) == (1, 0)
    assert some["throughput"] > 0


def test_answers_after_the_time_are_not_counted(job: dict[str, Any]) -> None:
    target = client.Target({**job, "path": "/late"})
    assert client.closed(target, 2, 0.05) == (0, [])


def test_options_that_would_be_ignored_are_refused(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(project)

    def problem(*words: str) -> str:
        done = CliRunner().invoke(tune.command, ["lenet5_digits", *words])
        assert done.exit_code
        return str(done.exception) + done.output

    assert "needs --evaluate" in problem("--calibrate", "samples/digits")
    assert "accuracy.folder" in problem("--max-drop", "0.01")
    assert "--pictures: there is no folder" in problem("--pictures", "none")
    assert "no runtime 'nothing': accepted are aotinductor" in problem("--runtime", "nothing")
    assert "int8 needs --calibrate" in problem("--precision", "int8")
    assert "such as 50ms" in problem("--max-p99", "fast")
    assert "such as 50ms" in problem("--max-p99", "0ms")


def test_an_archive_leaves_its_artifact_as_it_is(
    project: Path, lenet5: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(project)

    def problem(path: Path, *words: str) -> str:
        done = CliRunner().invoke(tune.command, [str(path), *words])
        assert done.exit_code
        return str(done.exception) + done.output

    for words in (
        ("--write",),
        ("--runtime", "onnx"),
        ("--precision", "fp16"),
        ("--max-drop", "0"),
    ):
        text = problem(lenet5, *words)
        assert text.startswith(f"{words[0]}: {lenet5.name} has its artifact and no model file")
        assert "--profile FILE" in text
    assert f"no archive at {tmp_path / 'none.mar'}, nor in" in problem(tmp_path / "none.mar")
    damaged = tmp_path / "damaged.mar"
    with zipfile.ZipFile(lenet5) as before, zipfile.ZipFile(damaged, "w") as after:
        for name in before.namelist():
            after.writestr(name, before.read(name) + b" " * (name == "model-config.yaml"))
    assert "damaged.mar does not load: " in problem(damaged)
