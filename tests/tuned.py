"""Points that tuning tries, what is measured of them, and a model file that it writes to."""

from __future__ import annotations

from typing import Any

from marsmith.tuning.points import Measured, Point

OPTIONS = (
    *("version", "runtime", "precision", "method", "profile", "weights", "samples"),
    *("calibrate", "calibrate_count", "evaluate", "keep_fp32", "max_drop"),
)
HOST = {"cpu": "a processor", "cores": 2}


def point(**changes: Any) -> Point:
    """A point of eager with one worker; ``changes`` replace what it has."""
    plain = {"workers": 1, "threads": 2, "batch_size": 8, "delay": 1}
    return Point(**{"runtime": "eager", "precision": "fp32", **plain, **changes})


def measured(throughput: float, p99: float, **changes: Any) -> Measured:
    """Such a point, with requests/s and milliseconds."""
    return Measured(point(**changes), throughput=throughput, p99=p99)


MODEL = """\
# A model of the shop.
name: "m"  # its name
task: image-classification
architecture: torchvision:resnet18
weights: {torchvision: IMAGENET1K_V1}
runtime_options:
  method: trace  # scripts are slower
# How it is served:
serving: {queue_size: 50, batch_size: 4}  # tuned by hand
version: '2.0'
"""
