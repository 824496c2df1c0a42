"""What a worker tells TorchServe's metrics, and the only place that names them.

TorchServe's front end reads a metric off a line that the worker prints, with the label Level
(always "Model"), and adds Hostname. Its histograms have fixed buckets: 0.005, 0.01, 0.025, 0.05,
0.075, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10.
"""

from __future__ import annotations

import logging
import socket
import time
from dataclasses import dataclass
from typing import Literal

logger = logging.getLogger(__name__)

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
    """Prints values of one version of a model for TorchServe's front end, at its end as a context.

    All at once, for every print wakes the front end: TorchServe's own metrics cache prints each
    line by itself, with the ids of all requests in it. ``told`` is whether there is a front end.
    """

    def __init__(self, told: bool, model: str, version: str) -> None:
        self._told = told
        self._labels = {"ModelName": model, "ModelVersion": version}
        self._values: list[str] = []

    def __enter__(self) -> Publisher:
        return self

    def __exit__(self, *_: object) -> None:
        if self._told and self._values:
            # The front end takes a line for a metric by its beginning.
            end = f"|#hostname:{socket.gethostname()},{int(time.time())}"
            logger.info("\n".join(f"[METRICS]{value}{end}" for value in self._values))

    def add(self, metric: Metric, value: float, **labels: str) -> None:
        """Count, set or observe ``value``; ``labels`` are those beside model and version."""
        values = {**self._labels, **labels}
        shown = ",".join(f"{name}:{values[name]}" for name in metric.labels)
        self._values.append(
            f"{metric.name}.{metric.unit}:{round(value, 6)}|#{shown},Level:Model"
            f"|#type:{metric.kind.upper()}"
        )
