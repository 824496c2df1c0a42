"""Every metric there is: what handlers, TorchServe and the exporter publish.

``python -m marsmith.metrics`` writes ``marsmith/metrics.yaml``, which ``environment.py`` names to
TorchServe, and the tables of ``docs/metrics.md``. Both are of this list alone.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import yaml

from handlers.metrics import METRICS, MODEL_LABELS, Metric

CONFIG = Path(__file__).with_name("metrics.yaml")

_HOST = ("Level", "Hostname")
_OLD = ("model_name", "model_version", "hostname")
_GPU = ("Level", "DeviceId", "Hostname")

FRONT_END = (
    Metric(
        "ts_inference_requests_total",
        "counter",
        "Count",
        _OLD,
        "predictions asked for; `default` as version where the client named none",
    ),
    Metric(
        "ts_inference_latency_microseconds",
        "counter",
        "Microseconds",
        _OLD,
        "sum of the time from a prediction's arrival to its answer, queue included",
    ),
    Metric(
        "ts_queue_latency_microseconds",
        "counter",
        "Microseconds",
        _OLD,
        "sum of the time that predictions waited for a worker",
    ),
    Metric(
        "Requests2XX",
        "counter",
        "Count",
        _HOST,
        "answers of every REST interface: pings and management calls, too",
    ),
    Metric("Requests4XX", "counter", "Count", _HOST, "the same, of a client's faults"),
    Metric("Requests5XX", "counter", "Count", _HOST, "the same, of the server's faults"),
    Metric("QueueTime", "gauge", "Milliseconds", _HOST, "what the latest prediction waited"),
    Metric(
        "WorkerThreadTime",
        "gauge",
        "Milliseconds",
        _HOST,
        "what the latest batch took between front end and worker, without the handler",
    ),
    Metric(
        "WorkerLoadTime",
        "gauge",
        "Milliseconds",
        ("WorkerName", *_HOST),
        "from a worker's start until it had loaded, Python's start included",
    ),
    Metric("CPUUtilization", "gauge", "Percent", _HOST, "of the host, taken once a minute"),
    Metric("MemoryUsed", "gauge", "Megabytes", _HOST, "of the host, in MiB"),
    Metric("MemoryAvailable", "gauge", "Megabytes", _HOST, "of the host, in MiB"),
    Metric("MemoryUtilization", "gauge", "Percent", _HOST, "of the host"),
    Metric("DiskUsage", "gauge", "Gigabytes", _HOST, "of the root file system, in GiB"),
    Metric("DiskAvailable", "gauge", "Gigabytes", _HOST, "of the root file system, in GiB"),
    Metric("DiskUtilization", "gauge", "Percent", _HOST, "of the root file system"),
    Metric("GPUUtilization", "gauge", "Percent", _GPU, "of a GPU; no series without one"),
    Metric("GPUMemoryUsed", "gauge", "Megabytes", _GPU, "of a GPU; no series without one"),
    Metric("GPUMemoryUtilization", "gauge", "Percent", _GPU, "of a GPU; no series without one"),
)
BACK_END = (
    Metric("PredictionTime", "gauge", "ms", ("ModelName",), "the latest batch in the handler"),
    Metric("HandlerTime", "gauge", "ms", ("ModelName",), "never set by marsmith's handlers"),
)
UP = Metric("MarsmithUp", "gauge", "Count", (), "1 where this folder's TorchServe runs and answers")
WORKERS_WANTED = Metric(
    "MarsmithWorkersWanted", "gauge", "Count", MODEL_LABELS, "workers that a version should have"
)
WORKERS_READY = Metric(
    "MarsmithWorkersReady",
    "gauge",
    "Count",
    MODEL_LABELS,
    "workers that have loaded and whose process lives",
)
REFUSED = Metric(
    "MarsmithRefused",
    "gauge",
    "Count",
    MODEL_LABELS,
    "1 where too few workers live and one has refused to load: `marsmith status` says why",
)
DEFAULT_VERSION = Metric(
    "MarsmithDefaultVersion",
    "gauge",
    "Count",
    MODEL_LABELS,
    "1 for the version that requests without one get",
)
QUEUE_PENDING = Metric(
    "MarsmithQueuePending", "gauge", "Count", MODEL_LABELS, "requests that wait for a worker"
)
QUEUE_FREE = Metric(
    "MarsmithQueueFree",
    "gauge",
    "Count",
    MODEL_LABELS,
    "free places of the queue; at 0 TorchServe answers 503",
)
WORKERS_LOST = Metric(
    "MarsmithWorkersLost_total",
    "counter",
    "Count",
    MODEL_LABELS,
    "workers that died since the exporter first saw their version; those that were scaled away "
    "are not among them",
)
EXPORTER = (
    UP,
    WORKERS_WANTED,
    WORKERS_READY,
    WORKERS_LOST,
    REFUSED,
    DEFAULT_VERSION,
    QUEUE_PENDING,
    QUEUE_FREE,
)
_HEAD = (
    "# Written by `python -m marsmith.metrics`; TorchServe reads it (environment.py names it).\n"
)


def config() -> str:
    """The text of TorchServe's ``metrics_config``: all metrics but the exporter's."""
    workers = [
        Metric(one.name, one.kind, one.unit, (*one.labels, "Level"), one.meaning)
        for one in (*METRICS, *BACK_END)
    ]
    document = {
        "dimensions": sorted({name for one in (*FRONT_END, *workers) for name in one.labels}),
        "ts_metrics": _by_kind(FRONT_END),
        "model_metrics": _by_kind(workers),
    }
    return _HEAD + yaml.safe_dump(document, sort_keys=False, default_flow_style=None, width=100)


def _by_kind(metrics: Sequence[Metric]) -> dict[str, list[dict[str, object]]]:
    kinds: dict[str, list[dict[str, object]]] = {}
    for one in metrics:
        kinds.setdefault(one.kind, []).append(
            {"name": one.name, "unit": one.unit, "dimensions": list(one.labels)}
        )
    return kinds


def table(metrics: Sequence[Metric]) -> str:
    """A Markdown table of metrics."""
    rows = [("metric", "kind", "unit", "labels", "meaning"), ("---",) * 5]
    rows += [
        (
            f"`{one.name}`",
            one.kind,
            one.unit,
            ", ".join(f"`{label}`" for label in one.labels),
            one.meaning,
        )
        for one in metrics
    ]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


TABLES = {"handlers": METRICS, "exporter": EXPORTER, "torchserve": (*FRONT_END, *BACK_END)}


def fill(document: str) -> str:
    """A document with the tables between ``<!-- NAME -->`` and ``<!-- /NAME -->`` written anew."""
    for name, metrics in TABLES.items():
        begin, end = f"<!-- {name} -->", f"<!-- /{name} -->"
        before, _, rest = document.partition(f"{begin}\n")
        if end in rest:
            document = f"{before}{begin}\n{table(metrics)}\n{end}{rest.partition(end)[2]}"
    return document


def main(arguments: list[str]) -> int:
    """Write the configuration, and the tables of the documents named; the exit status."""
    CONFIG.write_text(config(), encoding="utf-8")
    for name in arguments:
        path = Path(name)
        path.write_text(fill(path.read_text(encoding="utf-8")), encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
