"""Tables and the page of benchmarks/serving, from measurements written here."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from benchmarks.serving import page, plots, rows, tables, timers
from benchmarks.serving.machine import describe
from benchmarks.serving.plan import Plan
from benchmarks.serving.stats import Spread
from handlers.errors import SpecError

INSTALLED, TUNED = "torchserve/installed", "torchserve/tuned"


def _closed(name: str, number: int, rate: float, **more: Any) -> dict[str, Any]:
    usage = {
        "cpu": {"front end": 1.0, "worker": 9.0},
        "pss": {},
        "rss": {"worker": 300_000_000},
        "peak_pss": 500_000_000,
        "others": 0.1,
    }
    load = {"requests": int(10 * rate), "seconds": 10.0, "failed": 0, "connections": 8}
    latency = {"p50": 10.0, "p95": 30.0, "p99": 40.0}
    kind = {"contender": name, "round": number, "kind": "closed", "size": "real", "per_request": 1}
    return {**kind, **load, **latency, "usage": usage, **more}


@pytest.fixture
def measurements() -> list[dict[str, Any]]:
    """Two rounds of three contenders; the second round was half as fast for all."""
    found: list[dict[str, Any]] = []
    for number, speed in ((0, 1.0), (1, 0.5)):
        for name, rate in (("ours/a:fp32", 300.0), (TUNED, 100.0), (INSTALLED, 10.0)):
            found.append({"contender": name, "round": number, "kind": "ready", "seconds": 4.0})
            found.append(_closed(name, number, rate * speed))
            found.append(_closed(name, number, rate * speed / 2, connections=1))
    scores = {"ours/a:fp32": 0.840, TUNED: 0.845, INSTALLED: 0.5}
    for name, score in scores.items():
        found.append({"contender": name, "round": 0, "kind": "accuracy", "score": score})
    return found


def _row(measurements: list[dict[str, Any]], name: str, reference: float = 0.845) -> rows.Row:
    [row] = [row for row in rows.rows(measurements, reference) if row.contender == name]
    return row


def test_a_row_takes_the_connections_that_gave_most(measurements: list[dict[str, Any]]) -> None:
    row = _row(measurements, "ours/a:fp32")
    assert row.connections == 8
    assert row.rate == Spread(225.0, 150.0, 300.0)
    assert row.latency == (10.0, 30.0, 40.0)
    assert row.ready == Spread(4.0, 4.0, 4.0)


def test_pictures_that_were_not_answered_when_they_were_scored_have_failed() -> None:
    kinds = {"kind": "accuracy", "score": 0.9, "unanswered": 2, "contender": TUNED, "round": 0}
    found = [kinds, _closed(TUNED, 0, 100.0, failed=3)]
    assert _row(found, TUNED).failed == 5


def test_a_lone_request_takes_the_time_through_the_answers_of_one_connection() -> None:
    # Results of earlier sittings have wrk's mean, with requests in it that were never sent.
    alone = {"requests": 349, "seconds": 10.0, "mean": 46.8, "connections": 1}
    row = _row([_closed("ours/a:fp32", 0, 0.0, **alone)], "ours/a:fp32")
    assert row.lone == pytest.approx(28.65, abs=0.01)
    # An error status is no answer, and of no answers there is no time.
    failed = _closed("ours/a:fp32", 0, 0.0, **alone | {"failed": 249})
    assert _row([failed], "ours/a:fp32").lone == 100.0
    assert _row([_closed("ours/a:fp32", 0, 0.0, connections=1)], "ours/a:fp32").lone is None


def test_ratios_are_to_stock_within_the_round(measurements: list[dict[str, Any]]) -> None:
    row = _row(measurements, "ours/a:fp32")
    assert row.ratios == {
        "stock as installed": Spread(30.0, 30.0, 30.0),
        "stock at its best": Spread(3.0, 3.0, 3.0),
    }


def test_the_best_tuning_is_the_fastest_one(measurements: list[dict[str, Any]]) -> None:
    faster = f"{TUNED}-torchscript"
    more = [*measurements, _closed(faster, 0, 200.0), _closed(faster, 1, 100.0)]
    assert rows.baselines(more)["stock at its best"] == faster
    assert _row(more, "ours/a:fp32").ratios["stock at its best"].median == 1.5


def test_a_faster_wrong_answer_is_not_the_best_tuning(measurements: list[dict[str, Any]]) -> None:
    faster = f"{TUNED}-batch"
    more = [*measurements, _closed(faster, 0, 200.0), _closed(faster, 1, 100.0)]
    more.append({"contender": faster, "round": 0, "kind": "accuracy", "score": 0.83})
    assert rows.baselines(more, 0.845)["stock at its best"] == TUNED
    assert _row(more, "ours/a:fp32").ratios["stock at its best"].median == 3.0
    # Where all are wrong, one of them is what there is.
    assert rows.baselines(more, 0.99)["stock at its best"] == faster
    # And without a reference, the best contender is it.
    assert rows.baselines(more)["stock at its best"] == TUNED


def test_without_stock_ratios_are_to_the_first(measurements: list[dict[str, Any]]) -> None:
    own = [one for one in measurements if one["contender"].startswith("ours")]
    assert rows.baselines(own) == {"ours/a:fp32": "ours/a:fp32"}
    assert rows.baselines([]) == {}


def test_cpu_is_for_each_picture(measurements: list[dict[str, Any]]) -> None:
    # 9 s for 3000 and for 1500 pictures.
    assert _row(measurements, "ours/a:fp32").cpu["worker"] == pytest.approx((3 + 6) / 2)


def test_memory_is_that_of_a_worker_too(measurements: list[dict[str, Any]]) -> None:
    # Two workers of 400 MB each that share 100, and one of 500.
    two = {"rss": {"front end": 9e8, "worker": 4e8}, "each_pss": {"worker": 3.5e8}, "peak_pss": 7e8}
    one = {"rss": {"worker": 5e8}, "each_pss": {"worker": 5e8}, "peak_pss": 5e8}
    for each in measurements:
        if "usage" in each:
            each["usage"] |= one if each["contender"].startswith("ours") else two
    head, *lines = tables.main_table(measurements, None)
    places = [head.index(name) for name in ("PSS MB", "worker RSS MB", "worker PSS MB")]
    found = {line[0]: [line[place] for place in places] for line in lines}
    assert found["ours/a:fp32"] == ["500", "500", "500"]
    assert found[TUNED] == ["700", "400", "350"]


def test_results_of_earlier_sittings_have_a_table(measurements: list[dict[str, Any]]) -> None:
    head, line, *_ = tables.main_table(measurements, None)
    assert (line[head.index("worker RSS MB")], line[head.index("worker PSS MB")]) == ("300", "")


def test_several_pictures_a_request_count_singly() -> None:
    [rate] = rows.rates([_closed("ours/a:fp32", 0, 10.0, per_request=8, failed=50)]).values()
    assert rate == (100 - 50) * 8 / 10


def test_one_picture_of_200_may_be_wrong_and_not_two(measurements: list[dict[str, Any]]) -> None:
    assert not _row(measurements, "ours/a:fp32").wrong
    assert _row(measurements, INSTALLED).wrong
    assert _row(measurements, "ours/a:fp32", reference=0.850).wrong
    [line] = [line for line in tables.main_table(measurements, 0.845) if line[0] == INSTALLED]
    assert line[1] == "0.500 WRONG"


def test_the_worst_round_is_judged(measurements: list[dict[str, Any]]) -> None:
    for score in (0.5, 0.840):
        one = {"contender": "ours/a:fp32", "round": 1, "kind": "accuracy", "score": score}
        measurements.append(one)
    row = _row(measurements, "ours/a:fp32")
    assert (row.score, row.wrong) == (0.5, True)


def test_a_contender_that_failed_says_why(measurements: list[dict[str, Any]]) -> None:
    reason = {"kind": "failed", "reason": "no .venv-bench-ray: make it"}
    found = [*measurements, {"contender": "ray/torch", "round": 0, **reason}]
    assert tables.main_table(found, None)[-1][0] == "ray/torch"
    assert tables.main_table(found, None)[-1][-1] == "did not run"
    assert tables.trouble_table(found)[1:] == [["ray/torch", "1", reason["reason"]]]


def test_ours_is_compared_with_each_other_contender(measurements: list[dict[str, Any]]) -> None:
    # In one round of the two only.
    found = [*measurements, _closed("ray/torch", 1, 50.0)]
    head, *lines = tables.against_table(found)
    assert head == ["ours / other", "ours/a:fp32"]
    assert lines == [[TUNED, "3.00"], [INSTALLED, "30.00"], ["ray/torch", "3.00"]]


def test_contenders_are_compared_under_the_same_load(measurements: list[dict[str, Any]]) -> None:
    # Stock as installed stalls under eight clients in the first round; the ceiling has no clients.
    for one in measurements:
        if (one["contender"], one.get("connections"), one["round"]) == (INSTALLED, 8, 0):
            one["requests"] = 30
    found = [*measurements, _closed("ceiling/a:fp32", 0, 400.0, connections=0)]
    found.append(_closed("ray/torch", 1, 50.0))
    head, *lines = tables.connections_table(found)
    assert head[:3] == ["contender", "pictures/s at 1", "pictures/s at 8"]
    assert head[3:] == ["x stock as installed at 1", "x stock as installed at 8"]
    rates = ["112.5 (75.0..150.0)", "225.0 (150.0..300.0)"]
    assert lines[0] == ["ours/a:fp32", *rates, "30.00", "65.00 (30.00..100.00)"]
    assert [line[0] for line in lines] == ["ours/a:fp32", TUNED, INSTALLED, "ray/torch"]
    assert lines[-1] == ["ray/torch", "", "50.0", "", "10.00"]


def test_one_number_of_connections_needs_no_table_of_them() -> None:
    assert len(tables.connections_table([_closed("a", 0, 50.0), _closed("b", 0, 60.0)])) == 1


def test_open_loops_are_told_against_a_lone_request(measurements: list[dict[str, Any]]) -> None:
    load = {"kind": "poisson", "rate": 60.0, "share": 0.6, "late_p99": 1.0, "failed": 0}
    latency = {"p50": 6.0, "p95": 9.0, "p99": 25.0}
    found = [*measurements, {"contender": "ours/a:fp32", "round": 0, **load, **latency}]
    [_, line] = tables.poisson_table(found)
    assert line == ["ours/a:fp32", "60.0", "0.60", "6.0", "9.0", "25.0", "2.5", "1.0", "0"]


def test_open_loops_tell_what_failed_in_all_rounds_those_without_an_answer_too() -> None:
    load = {"contender": "a", "kind": "poisson", "rate": 60.0, "share": None, "late_p99": 1.0}
    latency = {"p50": 6.0, "p95": 9.0, "p99": 25.0}
    some = {**load, "round": 0, "requests": 600, "failed": 50, **latency}
    none = {**load, "round": 1, "requests": 600, "failed": 600}
    head, line = tables.poisson_table([some, none])
    assert (head[-1], line[3:]) == ("failed", ["6.0", "9.0", "25.0", "", "1.0", "650"])
    [_, line] = tables.poisson_table([none])
    assert line[3:] == ["", "", "", "", "1.0", "600"]


_SCRAPE = """\
# TYPE ts_inference_requests_total counter
ts_inference_requests_total{{model_name="m",model_version="default",hostname="h",}} {asked}
# TYPE ts_queue_latency_microseconds counter
ts_queue_latency_microseconds{{model_name="m",model_version="default",hostname="h",}} {queue}
# TYPE ts_inference_latency_microseconds counter
ts_inference_latency_microseconds{{model_name="m",model_version="default",hostname="h",}} {whole}
# TYPE MarsmithBatchRequests histogram
MarsmithBatchRequests_bucket{{ModelName="m",ModelVersion="1.0",le="+Inf",}} {batches}
MarsmithBatchRequests_count{{ModelName="m",ModelVersion="1.0",}} {batches}
MarsmithBatchRequests_sum{{ModelName="m",ModelVersion="1.0",}} {asked}
# TYPE MarsmithStageSeconds histogram
MarsmithStageSeconds_count{{ModelName="m",ModelVersion="1.0",Stage="decode",}} {batches}
MarsmithStageSeconds_sum{{ModelName="m",ModelVersion="1.0",Stage="decode",}} 0.5
MarsmithStageSeconds_count{{ModelName="m",ModelVersion="1.0",Stage="inference",}} {batches}
MarsmithStageSeconds_sum{{ModelName="m",ModelVersion="1.0",Stage="inference",}} {inference}
"""


def test_where_the_time_goes_is_told_by_the_servers_own_timers() -> None:
    before = timers.read(_SCRAPE.format(asked=1, queue=9e5, whole=1e6, batches=1, inference=1.0))
    after = timers.read(
        _SCRAPE.format(asked=9, queue=9.4e5, whole=1.4e6, batches=3, inference=1.06)
    )
    told = {**_closed("ours/a:fp32", 0, 40.0), "spent": timers.spent(before, after)}
    # 8 requests in 2 batches: 40 ms of waiting, 60 ms of inference, 400 ms in all.
    cells = ["ours/a:fp32", "closed, 8", "4.0", "5.0", "0.0", "0.0", "30.0", "0.0", "0.0"]
    assert timers.table([told])[1:] == [[*cells, "15.0", "50.0"]]
    # Results of earlier sittings, and of others, have none.
    without = [_closed(TUNED, 0, 40.0), {**told, "spent": timers.spent(after, after)}]
    assert len(timers.table(without)) == 1


def test_loadgens_verdict_comes_with_what_was_not_met() -> None:
    told = {
        "Result is": "INVALID",
        "Min duration satisfied": "Yes",
        "Early stopping satisfied": "NO",
        "Completed samples per second": 22.5,
        "99.00 percentile latency (ns)": 99_200_000.0,
    }
    run = {"contender": "ours/a:fp32", "round": 0, "kind": "mlperf", "scenario": "Server"}
    [_, line] = tables.mlperf_table([{**run, "summary": told, "score": 0.84, "failed": 0}])
    assert line[1:] == ["Server", "22.5", "99.2", "INVALID: Early stopping", "0.840", "0"]


def test_other_sizes_are_compared_with_the_same_size(measurements: list[dict[str, Any]]) -> None:
    large = [
        _closed("ours/a:fp32", 0, 40.0, size="large"),
        _closed(TUNED, 0, 10.0, size="large"),
    ]
    lines = tables.size_table([*measurements, *large])
    assert ["large", "ours/a:fp32", "40.0", "", "4.00"] in lines


def test_stock_at_its_best_is_chosen_within_each_size(
    measurements: list[dict[str, Any]],
) -> None:
    # Slower with pictures as they are, and faster with photographs.
    other = f"{TUNED}-compile"
    large = {"ours/a:fp32": 40.0, TUNED: 10.0, other: 20.0}
    found = [*measurements, _closed(other, 0, 50.0)]
    found += [_closed(name, 0, rate, size="large") for name, rate in large.items()]
    found += [_closed("ours/a:fp32", 0, 5.0, per_request=8)]
    head, *lines = tables.size_table(found)
    assert head[3:] == ["x stock as installed", "x stock at its best"]
    ratios = {(line[0], line[1]): line[-1] for line in lines}
    assert ratios == {
        ("large", "ours/a:fp32"): "2.00",
        ("large", TUNED): "0.50",
        ("large", other): "1.00",
        # No stock takes several pictures a request.
        ("eight a request", "ours/a:fp32"): "",
    }


@pytest.fixture
def results(measurements: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "started": "2026-01-01T00:00:00+00:00",
        "command": "python -m benchmarks.serving ours --pictures /home/me/pictures",
        "subject": {"model": "m", "pictures": 200, "kilobytes": 107},
        "plan": asdict(Plan(rounds=2, seconds=10.0)),
        "machine": describe(),
        "recommended": {"ours/a:fp32": "our README", TUNED: "its guide", INSTALLED: "its guide"},
        "versions": {"marsmith": {"torch": "2.15.0"}},
        "reference": 0.845,
        "measurements": measurements,
    }


def test_the_page_gets_the_tables_between_its_marks(
    results: dict[str, Any], tmp_path: Path
) -> None:
    target, file = tmp_path / "page.md", tmp_path / "results.json"
    target.write_text(f"# Head\n\n{page.BEGIN}\n\nold figures\n\n{page.END}\n\nTail\n")
    file.write_text(json.dumps(results))
    page.write([file], target)
    text = target.read_text()
    assert text.startswith("# Head\n")
    assert text.endswith(f"{page.END}\n\nTail\n")
    assert "old figures" not in text
    assert "### Figures 1: m, closed, Poisson, 32 connections\n" in text
    assert "serving ours --pictures pictures\n" in text
    assert "others took at most 10% of the cores" in text
    assert "| ours/a:fp32 | 0.840 | 225.0 (150.0..300.0) | 30.00 | 3.00 | 8 |" in text
    assert "- **ours**: our README\n- **torchserve**: its guide\n" in text
    assert "![throughput](images/performance/throughput.png)\n" in text
    assert (tmp_path / "images/performance/throughput.png").read_bytes().startswith(b"\x89PNG")
    page.write([file], target)
    assert target.read_text() == text


def test_a_page_without_marks_is_left_alone(results: dict[str, Any], tmp_path: Path) -> None:
    target, file = tmp_path / "page.md", tmp_path / "results.json"
    target.write_text("# Head\n")
    file.write_text(json.dumps(results))
    with pytest.raises(SpecError, match="must have the lines"):
        page.write([file], target)


def test_the_page_in_the_repository_has_its_marks(project: Path) -> None:
    text = (project / "docs/performance-figures.md").read_text("utf-8")
    assert text.index(page.BEGIN) < text.index(page.END)


def test_plots_are_drawn(results: dict[str, Any], tmp_path: Path) -> None:
    made = plots.draw(results, tmp_path)
    assert [path.name for path in made] == ["throughput.png", "latency.png"]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in made)


def test_open_loops_need_a_rate() -> None:
    with pytest.raises(SpecError, match="--rates"):
        Plan(loads=("poisson",))
    assert Plan(loads=("poisson",), rates=(10.0,)).rates == (10.0,)
