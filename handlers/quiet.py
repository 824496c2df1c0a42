"""What exporters and compilers log, warn of and print that is no defect."""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout

_PACKAGES = ("torch", "torchao", "onnxscript", "nncf")


@contextmanager
def quiet() -> Iterator[None]:
    """Errors alone get through from torch and its exporters; parity tells what else matters.

    Other loggers are left as they are: a request may fail in another thread, and says so there.
    """
    known = [
        name for name in logging.root.manager.loggerDict if name.partition(".")[0] in _PACKAGES
    ]
    loggers = {logging.getLogger(name) for name in (*_PACKAGES, *known)}
    levels = {logger: logger.level for logger in loggers}
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in levels.items():
            logger.setLevel(level)
