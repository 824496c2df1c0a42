from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from handlers import metrics as published
from handlers.metrics import Publisher
from handlers.stages import Stages
from marsmith import metrics
from marsmith.losses import Losses
from marsmith.status import VersionStatus

ALL = (*metrics.FRONT_END, *metrics.BACK_END, *published.METRICS, *metrics.EXPORTER)
DEPLOY = Path(__file__).parents[2] / "deploy"


def test_what_is_written_is_what_the_list_says(project: Path) -> None:
    command = "write it anew: python -m marsmith.metrics docs/metrics.md"
    assert metrics.CONFIG.read_text() == metrics.config(), command
    document = (project / "docs/metrics.md").read_text()
    assert metrics.fill(document) == document, command
    assert all(f"\n| `{one.name}` |" in document for one in ALL)


def _expressions() -> list[str]:
    rules = yaml.safe_load((DEPLOY / "prometheus/alerts.yml").read_text())
    found = [rule["expr"] for group in rules["groups"] for rule in group["rules"]]
    panels = json.loads((DEPLOY / "grafana/marsmith.json").read_text())["panels"]
    return found + [target["expr"] for panel in panels for target in panel.get("targets", ())]


def test_dashboard_and_rules_name_metrics_and_labels_that_exist() -> None:
    series = {one.name: one for one in ALL}
    for one in ALL:
        if one.kind == "histogram":
            series |= {f"{one.name}_{part}": one for part in ("sum", "count", "bucket")}
    expressions = _expressions()
    assert len(expressions) > 30
    for expression in expressions:
        # A metric's name, and the labels that it is chosen by
        found = re.findall(r"\b([A-Z]\w+|ts_\w+)(?=[{\[ )]|$)(?:\{([^}]*)\})?", expression)
        labels = {"ModelName", "ModelVersion", "Stage", "Status"}
        names = [(name, chosen) for name, chosen in found if name not in labels]
        assert names, expression
        for name, chosen in names:
            assert name in series, expression
            for label in re.findall(r"(\w+)=", chosen):
                assert label in {*series[name].labels, "server"}, expression


def test_every_rule_is_played_through() -> None:
    rules = yaml.safe_load((DEPLOY / "prometheus/alerts.yml").read_text())
    played = (DEPLOY / "prometheus/alerts_test.yml").read_text()
    names = [rule["alert"] for group in rules["groups"] for rule in group["rules"]]
    assert [name for name in names if f'"{name}"' not in played] == []


@pytest.mark.skipif(
    not shutil.which("promtool"),
    reason="no promtool here, and nothing else plays rules: apt-get install prometheus",
)
def test_promtool_accepts_the_rules_and_plays_them_through() -> None:
    for arguments in (("check", "config", "prometheus.yml"), ("test", "rules", "alerts_test.yml")):
        done = subprocess.run(
            ["promtool", *arguments],
            cwd=DEPLOY / "prometheus",
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr


def _lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What TorchServe's front end would read off the one print, without host and time."""
    (text,) = caplog.messages or [""]
    caplog.clear()
    lines = [line.partition("|#hostname:")[0] for line in text.splitlines()]
    assert all(line.startswith("[METRICS]") for line in lines)
    return [line.removeprefix("[METRICS]") for line in lines]


def test_what_a_batch_publishes(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    clock = Stages()
    with clock("decode"):
        pass
    clock.failed[415] += 2
    with Publisher(True, "m", "1.0") as publisher:
        clock.publish(publisher, requests=3, pictures=1)
    decode = round(clock.seconds["decode"], 6)
    labels, level = "|#ModelName:m,ModelVersion:1.0", ",Level:Model|#type:"
    assert _lines(caplog) == [
        f"MarsmithStageSeconds.Seconds:{decode}{labels},Stage:decode{level}HISTOGRAM",
        f"MarsmithErrors.Count:2{labels},Status:415{level}COUNTER",
        f"MarsmithBatchRequests.Count:3{labels}{level}HISTOGRAM",
        f"MarsmithBatchPictures.Count:1{labels}{level}HISTOGRAM",
    ]
    with Publisher(True, "m", "1.0") as publisher:
        publisher.add(published.STAGE_SECONDS, 0.0000123, Stage="encode")
    assert "Seconds:1.2e-05|" in _lines(caplog)[0], "to the microsecond"
    # A describe call is no request, and without a front end nobody reads.
    with Publisher(True, "m", "1.0") as publisher:
        clock.publish(publisher, requests=0, pictures=0)
    with Publisher(False, "m", "1.0") as publisher:
        clock.publish(publisher, requests=3, pictures=1)
    assert _lines(caplog) == []


def test_what_is_published_are_the_lines_of_torchserve_s_own_cache(
    caplog: pytest.LogCaptureFixture,
) -> None:
    from ts.metrics.dimension import Dimension
    from ts.metrics.metric_cache_yaml_impl import MetricsCacheYamlImpl
    from ts.metrics.metric_type_enum import MetricTypes

    caplog.set_level("INFO")
    cache = MetricsCacheYamlImpl(str(metrics.CONFIG))
    cache.initialize_cache()
    cache.set_request_ids("id")
    caplog.clear()
    values = {"ModelName": "m", "ModelVersion": "1.0", "Stage": "decode", "Status": "415"}
    for metric in published.METRICS:
        labels = [Dimension(name, values[name]) for name in metric.labels]
        kind = MetricTypes(metric.kind)
        cache.add_metric(metric.name, 0.25, metric.unit, dimensions=labels, metric_type=kind)
        [theirs] = caplog.messages
        caplog.clear()
        with Publisher(True, "m", "1.0") as publisher:
            publisher.add(metric, 0.25, **{name: values[name] for name in metric.labels[2:]})
        [ours] = caplog.messages
        caplog.clear()
        # But for the time, whose second may have passed, and the requests' ids, which nobody reads.
        assert ours.rpartition(",")[0] == theirs.removesuffix(",id").rpartition(",")[0]


def _status(
    pids: tuple[int, ...], wanted: int, version: str = "1.0", first: int = 9000
) -> VersionStatus:
    ids = tuple(str(first + each) for each in range(wanted))
    return VersionStatus("m", version, "m.mar", True, wanted, len(pids), 0, 9, None, pids, ids)


def test_lost_workers_are_those_that_nobody_scaled_away() -> None:
    losses = Losses()
    losses.see(1, [_status((10, 11), 2)])
    assert losses.lost == {("m", "1.0"): 0}
    losses.see(1, [_status((10, 12), 2)])
    assert losses.lost["m", "1.0"] == 1, "replaced between two scrapes"
    losses.see(1, [_status((10,), 1)])
    assert losses.lost["m", "1.0"] == 1, "scaled away"
    losses.see(1, [_status((), 1)])
    losses.see(1, [_status((13,), 1)])
    assert losses.lost["m", "1.0"] == 2
    losses.see(1, [_status((15,), 1, first=9002)])
    assert losses.lost["m", "1.0"] == 2, "registered anew"
    losses.see(1, [_status((14,), 1, "2.0")])
    assert losses.lost == {("m", "1.0"): 2, ("m", "2.0"): 0}, "a removed version loses nothing"
    losses.see(2, [_status((20,), 1, "2.0")])
    assert losses.lost["m", "2.0"] == 0, "another server's workers"
    losses.see(2, [_status((21, 22, 23), 3, "2.0")])
    assert losses.lost["m", "2.0"] == 1, "died while more were asked for"
