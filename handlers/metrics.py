"""What a worker tells TorchServe's metrics, and the only place that names them.

TorchServe's front end reads a metric off a line that the worker prints, and adds the label Level
(always "Model") and Hostname. Its histograms have fixed buckets: 0.005, 0.01, 0.025, 0.05, 0.075,
0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

MODEL_LABELS = ("ModelName", "ModelVersion")


@dataclass(frozen=True)
class Metric:
    """A metric's name, kind, unit, labels beside those of every kind, and what it means."""

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    unit: str
    labels: tuple[str, ...]
    meaning: str


STAGE_SECONDS = Metric(
    "MarsmithStageSeconds",
    "histogram",
    "Seconds",
    (*MODEL_LABELS, "Stage"),
    "time of a batch in decode, preprocess, inference, postprocess or encode",
)
BATCH_PICTURES = Metric(
    "MarsmithBatchPictures",
    "histogram",
    "Count",
    MODEL_LABELS,
    "pictures of a batch that could be read",
)
BATCH_REQUESTS = Metric(
    "MarsmithBatchRequests", "histogram", "Count", MODEL_LABELS, "requests of a batch"
)
ERRORS = Metric(
    "MarsmithErrors",
    "counter",
    "Count",
    (*MODEL_LABELS, "Status"),
    "requests that the handler answered with an error, by HTTP status (400, 406, 413, 415, 422, "
    "500); over gRPC, too, where the status is only in the body",
)
LOADS = Metric(
    "MarsmithLoads",
    "counter",
    "Count",
    MODEL_LABELS,
    "workers that have loaded, those that replace a dead one included",
)
LOAD_SECONDS = Metric(
    "MarsmithLoadSeconds",
    "gauge",
    "Seconds",
    MODEL_LABELS,
    "the latest load of the artifact with its golden requests, without Python's own start",
)
GOLDEN_OK = Metric(
    "MarsmithGoldenOk",
    "gauge",
    "Count",
    MODEL_LABELS,
    "1 where the latest load answered its golden requests as at build, 0 where it did not",
)
METRICS = (STAGE_SECONDS, BATCH_PICTURES, BATCH_REQUESTS, ERRORS, LOADS, LOAD_SECONDS, GOLDEN_OK)


class Publisher:
    """Hands values of one version of a model to TorchServe's metrics cache.

    ``cache`` is ``context.metrics``; None, as in a process without TorchServe, publishes nothing.
    """

    def __init__(self, cache: Any, model: str, version: str) -> None:
        self._cache = cache
        self._labels = {"ModelName": model, "ModelVersion": version}

    def add(self, metric: Metric, value: float, **labels: str) -> None:
        """Count, set or observe ``value``; ``labels`` are those beside model and version."""
        if self._cache is None:
            return
        from ts.metrics.dimension import Dimension
        from ts.metrics.metric_type_enum import MetricTypes

        values = {**self._labels, **labels}
        self._cache.add_metric(
            metric.name,
            round(value, 6),
            metric.unit,
            dimensions=[Dimension(name, values[name]) for name in metric.labels],
            metric_type=MetricTypes(metric.kind),
        )
