"""The one place that imports TorchServe's ``base_handler``.

That module imports OpenVINO, ONNX Runtime, Torch-TensorRT and PyTorch/XLA only to see whether they
are installed, and torch whatever the runtime, which costs a worker seconds and hundreds of
megabytes; and it switches float32 matrix products to TF32 on NVIDIA Ampere and later. All of that
is undone here, a request's bytes are read without copies, and a line that each batch prints is not.
"""

from __future__ import annotations

import logging
import socket
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from types import ModuleType, SimpleNamespace
from typing import Any

from handlers import torch_on_demand

_NAME = "ts.torch_handler.base_handler"
_PROBED = ("onnxruntime", "openvino", "openvino.torch", "torch_tensorrt", "torch_xla")


def _hidden() -> dict[str, Any]:
    """Nothing in the place of what is probed and that nobody has imported yet."""
    return {name: None for name in _PROBED if name not in sys.modules}


@contextmanager
def _in_place(modules: Mapping[str, Any]) -> Iterator[None]:
    """What ``import`` finds instead; where that is None, it fails."""
    kept = {name: sys.modules[name] for name in modules if name in sys.modules}
    sys.modules.update(modules)
    try:
        yield
    finally:
        for name in modules:
            del sys.modules[name]
        sys.modules.update(kept)


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


def _import_beside_torch() -> None:
    import torch

    precision = torch.get_float32_matmul_precision()
    with _in_place(_hidden()), _quiet(_NAME):
        import_module(_NAME)
    torch.set_float32_matmul_precision(precision)


def _import_without_torch() -> None:
    # What is asked of torch while it is imported, as on a host without a GPU.
    profiler: Any = ModuleType("torch.profiler")
    profiler.ProfilerActivity = profiler.profile = profiler.record_function = None
    torch: Any = ModuleType("torch")
    # Of which it asks whether there is a torch.compile; torch need not be installed.
    torch.__version__, torch.profiler = "2.3", profiler
    torch.cuda = SimpleNamespace(is_available=lambda: False)
    stand_ins = {"torch": torch, "torch.profiler": profiler}
    with _in_place(_hidden() | stand_ins), _quiet(_NAME):
        import_module(_NAME)
    for name, module in list(sys.modules.items()):
        if name.startswith("ts.") and getattr(module, "torch", None) is torch:
            module.torch = torch_on_demand  # type: ignore[attr-defined]


if torch_on_demand.loaded():
    _import_beside_torch()
else:
    _import_without_torch()

from ts.torch_handler.base_handler import BaseHandler  # noqa: E402


def _receive(conn: socket.socket, length: int) -> bytearray:
    """``length`` bytes of the front end, read into their place.

    Theirs asks for all that is missing again and again, and gets a new buffer of that size for
    each piece that has come: of a picture of 110 KB 30 instead of 7 microseconds.
    """
    data = bytearray(length)
    place, have = memoryview(data), 0
    while have < length:
        came = conn.recv_into(place[have:], 0, socket.MSG_WAITALL)
        if not came:
            logging.info("Frontend disconnected.")
            sys.exit(0)
        have += came
    return data


def _worth_reading(record: logging.LogRecord) -> bool:
    """Whether it is not the line of every batch, for which the front end would wake."""
    return record.msg != "Backend received inference at: %d"


# A worker has imported it before any handler; elsewhere nobody asks, and it would import torch.
if (protocol := sys.modules.get("ts.protocol.otf_message_handler")) is not None:
    protocol._retrieve_buffer = _receive  # type: ignore[attr-defined]
    logging.getLogger().addFilter(_worth_reading)

__all__ = ["BaseHandler"]
