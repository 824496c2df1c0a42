"""Metrics that TorchServe cannot give: is it up, and how many workers really live?

Values are read at each scrape. ``GET /metrics`` is Prometheus' text, ``GET /ready`` what ``marsmith
ready`` says, with 200 or 503, and ``GET /live`` the same of TorchServe's own ``/ping``, which wants
a token that an orchestrator's probe cannot know.
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from prometheus_client import CollectorRegistry, make_wsgi_app
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.exposition import ThreadingWSGIServer
from prometheus_client.registry import Collector

from handlers.errors import MarsmithError, ServerError
from handlers.metrics import Metric
from marsmith import metrics
from marsmith.addresses import split
from marsmith.client import Client
from marsmith.losses import Losses
from marsmith.processes import require_running
from marsmith.readiness import Readiness, read_liveness, read_readiness
from marsmith.status import VersionStatus, read_status

_VALUES: dict[Metric, Callable[[VersionStatus], float]] = {
    metrics.WORKERS_WANTED: lambda one: one.min_workers,
    metrics.WORKERS_READY: lambda one: one.ready_workers,
    metrics.REFUSED: lambda one: bool(one.failed),
    metrics.DEFAULT_VERSION: lambda one: one.default,
    metrics.QUEUE_PENDING: lambda one: one.pending,
    metrics.QUEUE_FREE: lambda one: one.capacity,
}
Family = CounterMetricFamily | GaugeMetricFamily
Page = Callable[[dict[str, Any], Any], Iterable[bytes]]
"""A WSGI application."""

# Whoever asks more often gets the same answer: probes must not become a load.
_FRESH_SECONDS = 2.0
# For each call to TorchServe
_SECONDS = 5.0


class StatusCollector(Collector):
    """The status of a folder's TorchServe; ``seconds`` are for each call of a scrape."""

    def __init__(self, home: Path, seconds: float = _SECONDS) -> None:
        self._home = home
        self._seconds = seconds
        self._losses = Losses()
        self._lock = threading.Lock()

    def describe(self) -> Iterable[Family]:
        """The metrics without values, so that registering them asks no server."""
        return [_family(one) for one in metrics.EXPORTER]

    def collect(self) -> Iterator[Family]:
        """``MarsmithUp``, and the rest where the server answers."""
        with self._lock:
            statuses = self._read()
            lost = dict(self._losses.lost)
        up = _family(metrics.UP)
        up.add_metric([], statuses is not None)
        yield up
        for metric, value in _VALUES.items():
            family = _family(metric)
            for one in statuses or ():
                family.add_metric([one.model, one.version], value(one))
            yield family
        family = _family(metrics.WORKERS_LOST)
        for version, count in lost.items():
            family.add_metric(version, count)
        yield family

    def _read(self) -> list[VersionStatus] | None:
        try:
            running = require_running(self._home)
            with Client.of(running, timeout=self._seconds) as client:
                found = read_status(running, client)
        except MarsmithError:
            # That is what MarsmithUp 0 says
            return None
        self._losses.see(running.pid, found)
        return found


class ProbePage:
    """Answers a probe, at most one at a time, and the same for two seconds."""

    def __init__(self, read: Callable[[], Readiness]) -> None:
        self._read = read
        self._lock = threading.Lock()
        self._last = Readiness(False, "not asked yet")
        self._until = 0.0

    def __call__(self, environ: dict[str, Any], start_response: Any) -> list[bytes]:
        """A WSGI application: 200 or 503, and the line."""
        with self._lock:
            if time.monotonic() > self._until:
                self._last = self._read()
                self._until = time.monotonic() + _FRESH_SECONDS
            found = self._last
        status = "200 OK" if found.ready else "503 Service Unavailable"
        start_response(status, [("Content-Type", "text/plain; charset=utf-8")])
        return [f"{found.reason}\n".encode()]


class Exporter:
    """An HTTP server at ``address`` ("host:port") for the server of a folder; a context manager."""

    def __init__(self, home: Path, address: str) -> None:
        registry = CollectorRegistry()
        registry.register(StatusCollector(home))
        self._pages: dict[str, Page] = {
            "/metrics": make_wsgi_app(registry),
            "/ready": ProbePage(lambda: read_readiness(home, None, _SECONDS)),
            "/live": ProbePage(lambda: read_liveness(home, _SECONDS)),
        }

        def application(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
            if page := self._pages.get(environ["PATH_INFO"]):
                return page(environ, start_response)
            start_response("404 Not Found", [("Content-Type", "text/plain; charset=utf-8")])
            return [b"ask /metrics, /ready or /live\n"]

        self._server = _listen(address, application)
        self.port = self._server.server_port
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)

    def say_stopping(self) -> None:
        """Let ``/ready`` say 503 from now on, so that a load balancer sends nothing more."""
        self._pages["/ready"] = ProbePage(lambda: Readiness(False, "stopping"))

    def __enter__(self) -> Exporter:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


def _listen(address: str, application: Any) -> WSGIServer:
    host, port = split(address)
    try:
        if not host:
            # To Python that means every interface.
            raise ValueError("no host")
        kind = _OverIPv6 if ":" in host else ThreadingWSGIServer
        return make_server(host, int(port), application, kind, _Quiet)
    except (OSError, ValueError, OverflowError) as error:
        raise ServerError(
            f"cannot listen at {address!r} ({error}): give a free one as HOST:PORT"
        ) from error


class _OverIPv6(ThreadingWSGIServer):
    address_family = socket.AF_INET6


class _Quiet(WSGIRequestHandler):
    # A silent client must not hold a thread for ever
    timeout = 10.0

    def log_message(self, *_: object) -> None:
        """A line per scrape is of no use."""


def _family(metric: Metric) -> Family:
    kind = CounterMetricFamily if metric.kind == "counter" else GaugeMetricFamily
    return kind(metric.name, metric.meaning, labels=metric.labels)
