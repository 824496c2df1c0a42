"""Does a real Prometheus see what the dashboard shows, and does an alert fire on a killed worker?

    python deploy/check.py

builds one small archive, starts TorchServe, the exporter and Prometheus (the system's package) on
free ports of the loopback interface with this folder's files, sends requests, asks every query of
the dashboard, kills the worker and waits for the alert. It prints what it saw and exits with 1
where a query has no data or no alert fires. Everything it started is ended.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import requests
import yaml

from marsmith import build, spec
from marsmith.addresses import free_addresses
from marsmith.client import Client
from marsmith.exporter import Exporter
from marsmith.server import TorchServe
from marsmith.status import read_status

PROJECT = Path(__file__).parents[1]
DASHBOARD = PROJECT / "deploy/grafana/marsmith.json"
MODEL = "lenet5_digits"
ALERT = "MarsmithWorkerLost"
# What Grafana would fill in; rates need two scrapes
VARIABLES = {"$server": ".*", "$model": ".*", "$__rate_interval": "30s"}


@dataclass(frozen=True)
class Prometheus:
    """The HTTP interface of a running Prometheus."""

    url: str

    def query(self, expression: str) -> list[dict[str, Any]]:
        """The samples of an instant query; raises requests.HTTPError for one that is wrong."""
        found = self._get("query", query=expression)["result"]
        return list(found)

    def firing(self) -> set[str]:
        """The names of the alerts that fire."""
        alerts = self._get("alerts")["alerts"]
        return {alert["labels"]["alertname"] for alert in alerts if alert["state"] == "firing"}

    def ready(self) -> bool:
        """Whether it answers queries."""
        try:
            return requests.get(f"{self.url}/-/ready", timeout=5).ok
        except requests.ConnectionError:
            return False

    def _get(self, page: str, **parameters: str) -> Any:
        reply = requests.get(f"{self.url}/api/v1/{page}", params=parameters, timeout=10)
        reply.raise_for_status()
        return reply.json()["data"]


def queries() -> list[tuple[str, str]]:
    """(panel, expression) of the dashboard, with its variables filled in."""
    found = []
    for panel in json.loads(DASHBOARD.read_text(encoding="utf-8"))["panels"]:
        for target in panel.get("targets", ()):
            expression = target["expr"]
            for name, value in VARIABLES.items():
                expression = expression.replace(name, value)
            found.append((panel["title"], expression))
    return found


@contextmanager
def prometheus(folder: Path, targets: list[str]) -> Iterator[Prometheus]:
    """Run Prometheus on a free port with this project's files, scraping ``targets`` every second.

    Only targets and intervals differ from ``deploy/prometheus/prometheus.yml``.
    """
    source = PROJECT / "deploy/prometheus"
    config = yaml.safe_load((source / "prometheus.yml").read_text(encoding="utf-8"))
    config["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    config["scrape_configs"][0]["static_configs"][0]["targets"] = targets
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config), encoding="utf-8")
    shutil.copy(source / "alerts.yml", folder)
    address = free_addresses()["metrics_address"]
    command = [
        "prometheus",
        f"--config.file={folder}/prometheus.yml",
        f"--storage.tsdb.path={folder}/data",
        f"--web.listen-address={address.removeprefix('http://')}",
    ]
    with (folder / "log").open("wb") as log, subprocess.Popen(command, stderr=log) as process:
        try:
            server = Prometheus(address)
            wait(lambda: process.poll() is not None or server.ready(), 30)
            if process.poll() is not None:
                raise SystemExit(f"prometheus ended: {(folder / 'log').read_text()[-2000:]}")
            yield server
        finally:
            process.terminate()
            process.wait(timeout=30)


def wait(done: Any, seconds: float) -> bool:
    """Whether ``done()`` was true within some seconds."""
    deadline = time.monotonic() + seconds
    while not done():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.3)
    return True


def ask(client: Client, seconds: float) -> None:
    """Send good and bad requests for a while."""
    picture = (PROJECT / "samples/digits/3.png").read_bytes()
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        assert client.predict(MODEL, picture).ok
        assert client.predict(MODEL, b"no picture").status == 415
        time.sleep(0.1)


def check(server: TorchServe, exporter: Exporter, folder: Path) -> Iterator[tuple[bool, str]]:
    """What was looked at: whether it is as it should be, and a line about it."""
    metrics = server.running.addresses.metrics.removeprefix("http://")
    targets = [metrics, f"127.0.0.1:{exporter.port}"]
    with prometheus(folder, targets) as seen, server.client() as client:
        ask(client, 5)
        # Host figures come once a minute, the first soon after the start
        empty = {expression for _, expression in queries()}
        counts = dict.fromkeys(empty, 0)

        def complete() -> bool:
            ask(client, 0.5)
            for expression in list(empty):
                counts[expression] = len(seen.query(expression))
                if counts[expression]:
                    empty.remove(expression)
            return not empty

        wait(complete, 70)
        for panel, expression in queries():
            yield expression not in empty, f"{counts[expression]:2} series  {panel}: {expression}"
        yield not seen.firing(), f"fires before: {sorted(seen.firing()) or 'nothing'}"
        worker = read_status(server.running, client)[0].pids[0]
        start = time.monotonic()
        psutil.Process(worker).kill()
        fired = wait(lambda: ALERT in seen.firing(), 60)
        after = time.monotonic() - start
        yield (
            fired,
            f"worker {worker} killed; {ALERT} fires after {after:.1f} s"
            if fired
            else (f"worker {worker} killed; no {ALERT} in {after:.0f} s: {sorted(seen.firing())}"),
        )


def main() -> int:
    """Build, start, check, end; the exit status."""
    if not shutil.which("prometheus"):
        raise SystemExit("no prometheus: `apt-get install prometheus`, or set PATH to it")
    with tempfile.TemporaryDirectory(prefix="marsmith-check-") as name:
        home = Path(name)
        model = spec.load(PROJECT / f"models/{MODEL}.yaml")
        build.build(model, PROJECT, home / "model-store", tell=lambda stage: None)
        source = PROJECT / "config.properties"
        server = TorchServe(home, config=free_addresses(), config_file=source)
        try:
            with server, Exporter(home, "127.0.0.1:0") as exporter:
                server.wait_ready(120)
                results = []
                for good, line in check(server, exporter, home):
                    print("ok  " if good else "FAIL", line, flush=True)
                    results.append(good)
        finally:
            shutil.rmtree(server.temp, ignore_errors=True)
    return 0 if all(results) else 1


if __name__ == "__main__":
    sys.exit(main())
