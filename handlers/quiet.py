"""What exporters and compilers log, warn of and print that is no defect."""

from __future__ import annotations

import io
import logging
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, redirect_stdout

_PACKAGES = ("torch", "torchao", "onnxscript", "nncf")


class Overlapping:
    """A change of the whole process while any thread is inside: the first one makes it, and the
    last one takes it back.

    If each did both, one that leaves last would bring back what another had changed before it.
    """

    def __init__(self, change: Callable[[], AbstractContextManager[None]]) -> None:
        self._change, self._changed = change, ExitStack()
        self._lock, self._inside = threading.Lock(), 0

    def __enter__(self) -> None:
        with self._lock:
            if not self._inside:
                self._changed.enter_context(self._change())
            self._inside += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._inside -= 1
            if not self._inside:
                self._changed.close()


def quiet() -> AbstractContextManager[None]:
    """Errors alone get through from torch and its exporters; parity tells what else matters.

    Other loggers are left as they are: a request may fail in another thread, and says so there.
    """
    return _quiet


@contextmanager
def _hidden() -> Iterator[None]:
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


_quiet = Overlapping(_hidden)
