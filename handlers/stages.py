"""Where the time of a batch goes: seconds of each stage, as histograms of TorchServe's metrics."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

NAMES = ("decode", "preprocess", "inference", "postprocess", "encode")
SECONDS = "MarsmithStageSeconds"
BATCH = "MarsmithBatchPictures"


class Stages:
    """A clock of one batch's stages; what is timed twice is summed."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            spent = time.perf_counter() - start
            self.seconds[name] = self.seconds.get(name, 0.0) + spent

    def publish(self, metrics: Any, version: str, pictures: int) -> None:
        """Hand the seconds of each stage, and the batch's pictures, to TorchServe's metrics cache.

        The labels are the model's name (TorchServe's own), its version and the stage.
        """
        from ts.metrics.dimension import Dimension
        from ts.metrics.metric_type_enum import MetricTypes

        model = Dimension("ModelName", metrics.model_name)
        labels = [model, Dimension("ModelVersion", version)]
        kind = MetricTypes.HISTOGRAM
        for name, seconds in self.seconds.items():
            stage = [*labels, Dimension("Stage", name)]
            metrics.add_metric(
                SECONDS, round(seconds, 6), "Seconds", dimensions=stage, metric_type=kind
            )
        metrics.add_metric(BATCH, pictures, "Count", dimensions=labels, metric_type=kind)
