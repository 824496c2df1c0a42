"""The one place that imports torchvision, without all of torch's compiler.

``torchvision.ops.roi_align`` imports ``torch._dynamo`` for one function, which costs a worker more
than a second and 145 MB, whether it compiles anything or not.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import Any

from handlers.nearest import hint


def torchvision() -> Any:
    """The package ``torchvision``; its operators and models are there when it returns."""
    if "torchvision" in sys.modules or "torch._dynamo" in sys.modules:
        return import_module("torchvision")
    package, utils = ModuleType("torch._dynamo"), ModuleType("torch._dynamo.utils")
    package.utils = utils  # type: ignore[attr-defined]
    utils.is_compile_supported = _is_compile_supported  # type: ignore[attr-defined]
    stands_in = {each.__name__: each for each in (package, utils)}
    sys.modules.update(stands_in)
    try:
        return import_module("torchvision")
    finally:
        for name in stands_in:
            del sys.modules[name]


def nearest(name: str) -> str:
    """For a message: those most like a name that torchvision has not."""
    return hint(name, torchvision().models.list_models(), ["those of ./build_mar.sh --list"])


def _is_compile_supported(device_type: str) -> bool:
    """torch's own, imported when somebody asks."""
    from torch._dynamo.utils import is_compile_supported

    return bool(is_compile_supported(device_type))
