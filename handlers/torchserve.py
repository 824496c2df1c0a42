"""The one place that imports TorchServe's ``base_handler``.

That module imports OpenVINO, ONNX Runtime, Torch-TensorRT and PyTorch/XLA only to see whether they
are installed, which costs a worker seconds and hundreds of megabytes for runtimes it does not use,
and switches float32 matrix products to TF32 on NVIDIA Ampere and later. Both are undone here.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch

_PROBED = ("onnxruntime", "openvino", "openvino.torch", "torch_tensorrt", "torch_xla")


@contextmanager
def _hidden(modules: tuple[str, ...]) -> Iterator[None]:
    """Make ``import`` fail for the given modules that nobody has imported yet."""
    absent = [name for name in modules if name not in sys.modules]
    for name in absent:
        sys.modules[name] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        for name in absent:
            del sys.modules[name]


@contextmanager
def _quiet(logger: str) -> Iterator[None]:
    """Hide the warnings that a masked package is missing: it may well be there."""
    log = logging.getLogger(logger)
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(level)


_precision = torch.get_float32_matmul_precision()
with _hidden(_PROBED), _quiet("ts.torch_handler.base_handler"):
    from ts.torch_handler.base_handler import BaseHandler
torch.set_float32_matmul_precision(_precision)

__all__ = ["BaseHandler"]
