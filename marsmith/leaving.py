"""The end of a process: at once, though it has loaded torch, or in order on a signal."""

from __future__ import annotations

import atexit
import logging
import os
import signal
import sys
from contextlib import suppress
from typing import NoReturn


def leave(status: int) -> NoReturn:
    """End the process now: what was registered for its end is run, and threads are not waited for.

    Freeing the modules of torch and OpenVINO one by one takes two or three seconds.
    """
    atexit._run_exitfuncs()
    logging.shutdown()
    for stream in (sys.stdout, sys.stderr):
        # Whoever reads the output may have seen enough, as `head` has.
        with suppress(BrokenPipeError):
            stream.flush()
    os._exit(status)


def leave_in_order() -> None:
    """Let SIGTERM and the end of a terminal, like Ctrl-C, take back what was done.

    A second signal does not disturb that, and under nohup a terminal may end.
    """
    numbers = [signal.SIGINT, signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        numbers.append(signal.SIGHUP)

    left = False

    def end(*_: object) -> None:
        nonlocal left
        # The handler stays: Python complains of one that goes while a second signal is on its way.
        if not left:
            left = True
            sys.exit(1)

    for number in numbers:
        signal.signal(number, end)
