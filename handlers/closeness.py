"""How close two answers to one picture must be, by the precision they were computed in."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Closeness:
    """What may differ without being another answer.

    ``outputs`` is the largest absolute difference of a continuous output from eager's fp32;
    ``answers`` the largest move of a score where outputs cannot be compared one by one (boxes,
    masks); ``golden`` the largest move of a golden request's score from the build host's, as
    kernels of other processors round in another order; ``overlap`` the IoU from which two boxes are
    the same; ``changed`` the share of a mask's pixels that may get another class, and ``iou`` the
    least IoU of a class in two masks, without which a small one could be lost unseen; ``features``
    the largest difference of a feature map, as a share of its largest value, where a detector's
    first half is exported alone (None: any, for few bits move single values far).
    """

    outputs: float = 1e-4
    answers: float = 1e-3
    golden: float = 1e-3
    overlap: float = 0.99
    changed: float = 0.001
    iou: float = 0.9
    features: float | None = 1e-3


# int8's outputs are only kept from being another model's: its gate is the metric
# (``marsmith.accuracy``).
DEFAULTS = {
    "fp32": Closeness(),
    "fp16": Closeness(0.01, 0.02, 0.02, 0.95, 0.005, 0.8, None),
    "bf16": Closeness(0.1, 0.1, 0.1, 0.9, 0.02, 0.5, None),
    "int8": Closeness(0.4, 0.3, 0.2, 0.6, 0.1, 0.2, None),
}
