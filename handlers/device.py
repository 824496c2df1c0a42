"""Where a worker runs, and with how many threads."""

from __future__ import annotations

import os

import torch

from handlers.bundle import Limits
from handlers.errors import RuntimeUnavailable


def choose(wanted: str, gpu_id: int | None) -> str:
    """The torch device of this worker: TorchServe gives each worker its ``gpu_id``.

    A GPU that the model's spec demands and that is not there raises RuntimeUnavailable.
    """
    if wanted == "cpu":
        return "cpu"
    if gpu_id is not None and torch.cuda.is_available():
        return f"cuda:{gpu_id}"
    if wanted == "gpu":
        raise RuntimeUnavailable(
            "the model's spec demands a GPU (serving.device: gpu) and this worker has none "
            f"(torch.cuda.is_available() is {torch.cuda.is_available()}, gpu_id is {gpu_id}): "
            "serve it on a host with an NVIDIA driver, or build it with serving.device: auto"
        )
    return "cpu"


def threads(limits: Limits) -> int:
    """Native threads of one worker: as the spec says, or an equal share of the host's cores."""
    cores = len(os.sched_getaffinity(0))
    return limits.threads or max(1, cores // limits.workers)
