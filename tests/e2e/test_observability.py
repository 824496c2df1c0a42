from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import requests
from prometheus_client.parser import text_string_to_metric_families as families
from tiny import PROJECT, ending, kill, marsmith, pack

from handlers import metrics as published
from handlers.bundle import Bundle
from marsmith import metrics
from marsmith.addresses import free_addresses
from marsmith.archive import pack as repack
from marsmith.archive import unpack
from marsmith.exporter import Exporter
from marsmith.processes import find_workers
from marsmith.server import TorchServe


@pytest.fixture(scope="module")
def observed(make_home: Callable[[], Path], lenet5: Path) -> Iterator[TorchServe]:
    """A TorchServe with one real model, which logs every request."""
    home = make_home()
    folder = home / "unpacked"
    unpack(lenet5, folder)
    shutil.rmtree(folder / "MAR-INF")
    bundle = Bundle.read(folder)
    bundle = replace(bundle, limits=replace(bundle.limits, log_requests=True))
    bundle.write(folder)
    repack(folder, bundle, home / "model-store" / lenet5.name)
    with TorchServe(home) as server:
        server.wait_ready(120)
        yield server


def _kinds(text: str) -> dict[str, tuple[str, set[str]]]:
    """Kind and labels of each metric of Prometheus' text that has samples."""
    return {
        # The parser takes this end off a counter's name
        found.name: (found.type, {name for one in found.samples for name in one.labels} - {"le"})
        for found in families(text)
        if found.samples
    }


def _listed(listed: tuple[metrics.Metric, ...], *more: str) -> dict[str, tuple[str, set[str]]]:
    return {one.name.removesuffix("_total"): (one.kind, {*one.labels, *more}) for one in listed}


def test_documented_metrics_are_those_of_a_live_server(
    observed: TorchServe, digits: dict[str, bytes]
) -> None:
    with observed.client() as client:
        good = client.predict("lenet5_digits", digits["3"])
        assert good.ok
        bad = client.predict("lenet5_digits", b"no picture")
        assert bad.status == 415
        deadline = time.monotonic() + 90
        # The host's figures come once a minute
        while "CPUUtilization" not in (seen := _kinds(client.metrics())):
            assert time.monotonic() < deadline
            time.sleep(0.5)
    wanted = {
        **_listed(published.METRICS, "Level", "Hostname"),
        **_listed(metrics.BACK_END, "Level", "Hostname"),
        **_listed(metrics.FRONT_END),
    }
    # No GPU here, no 5xx yet, and a metric that only TorchServe's own handlers set
    silent = {"GPUUtilization", "GPUMemoryUsed", "GPUMemoryUtilization", "HandlerTime"}
    assert seen == {
        name: kind for name, kind in wanted.items() if name not in silent | {"Requests5XX"}
    }
    shown = marsmith(observed.home, "logs", "-n", "0", "--model", "lenet5_digits").stdout
    [line] = [line for line in shown.splitlines() if good.headers["x-request-id"] in line]
    fields = json.loads(line.partition("marsmith: answered ")[2])
    assert (fields["model"], fields["version"], fields["status"]) == ("lenet5_digits", "1.0", 200)
    assert fields["milliseconds"] > 0
    log = (observed.home / "logs/model_log.log").read_text()
    assert f'marsmith: failed {{"request": "{bad.headers["x-request-id"]}"' in log
    assert "Backend received inference" not in log
    assert "[METRICS]" not in log


def test_exporter_and_ready_see_a_killed_worker(observed: TorchServe) -> None:
    def lost(text: str) -> float:
        found = {one.name: one for one in families(text)}
        return float(found["MarsmithWorkersLost"].samples[0].value)

    with Exporter(observed.home, "127.0.0.1:0") as exporter:
        base = f"http://127.0.0.1:{exporter.port}"

        def page(name: str) -> requests.Response:
            return requests.get(f"{base}/{name}", timeout=30)

        before = page("metrics").text
        assert _kinds(before) == _listed(metrics.EXPORTER)
        assert lost(before) == 0
        ready = page("ready")
        assert (ready.status_code, ready.text) == (200, "lenet5_digits 1.0 answers\n")
        assert page("live").status_code == 200
        assert page("nothing").status_code == 404
        done = marsmith(observed.home, "ready")
        assert (done.returncode, done.stdout) == (0, "ready: lenet5_digits 1.0 answers\n")
        (worker,) = find_workers(observed.temp)
        kill(worker.pid)
        done = marsmith(observed.home, "ready", "lenet5_digits")
        reason = "not ready: lenet5_digits 1.0 has 0 of 1 workers\n"
        assert (done.returncode, done.stdout) == (1, reason)
        observed.wait_ready(60)
        assert lost(page("metrics").text) == 1
    done = marsmith(observed.home, "ready", "nothing")
    reason = "not ready: no model nothing is registered: known are lenet5_digits\n"
    assert (done.returncode, done.stdout) == (1, reason)


def test_nothing_is_ready_without_a_server(home: Path) -> None:
    absent = f"no TorchServe runs for {home}: start it with `marsmith serve`"
    with Exporter(home, "127.0.0.1:0") as exporter:
        base = f"http://127.0.0.1:{exporter.port}"
        assert _kinds(requests.get(f"{base}/metrics", timeout=30).text) == {
            "MarsmithUp": ("gauge", set())
        }
        for name in ("ready", "live"):
            found = requests.get(f"{base}/{name}", timeout=30)
            assert (found.status_code, found.text) == (503, f"{absent}\n")
    done = marsmith(home, "ready")
    assert (done.returncode, done.stdout) == (1, f"not ready: {absent}\n")


def test_ready_says_why_a_model_refuses_and_what_has_no_golden_request(
    served: TorchServe,
) -> None:
    done = marsmith(served.home, "ready")
    assert (done.returncode, done.stdout) == (
        1,
        "not ready: refuses 1.0 refuses to load: not today\n",
    )
    done = marsmith(served.home, "ready", "echo")
    assert (done.returncode, done.stdout) == (
        0,
        "ready: echo 10.0 has 1 of 1 workers (no golden request to ask)\n",
    )


def test_exporter_as_long_as_serve(home: Path) -> None:
    pack(home / "model-store")
    address = free_addresses()["metrics_address"]
    command = [sys.executable, "-m", "marsmith", "serve", "--exporter", address.partition("//")[2]]
    with ending(command, home) as process:
        assert process.stdout
        assert process.stdout.readline() == "# echo 1.0, 1 worker\n"
        assert "MarsmithUp 1.0" in requests.get(f"{address}/metrics", timeout=30).text
        process.terminate()
        assert process.wait(timeout=60) == 0
    with pytest.raises(requests.ConnectionError):
        requests.get(f"{address}/metrics", timeout=30)


def test_an_exporter_that_cannot_be_is_refused(home: Path) -> None:
    pack(home / "model-store")
    done = marsmith(home, "serve", "--background", "--exporter", "127.0.0.1:0")
    assert done.returncode == 2
    assert "start it apart" in done.stderr
    done = marsmith(home, "exporter", "--address", "127.0.0.1:http")
    assert done.returncode == 1
    assert "give a free one as HOST:PORT" in done.stderr


@pytest.mark.skipif(
    not shutil.which("prometheus"),
    reason="no prometheus here, and nothing else evaluates PromQL: apt-get install prometheus",
)
def test_a_real_prometheus_sees_the_dashboard_and_the_killed_worker() -> None:
    done = subprocess.run(
        [sys.executable, str(PROJECT / "deploy/check.py")],
        cwd=PROJECT,
        env={**os.environ, "PYTHONPATH": str(PROJECT)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "MarsmithWorkerLost fires after" in done.stdout
