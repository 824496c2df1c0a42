"""The end of a process: at once, though it has loaded torch, or in order on a signal; and what is
said of one that has ended."""

from __future__ import annotations

import atexit
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any, NoReturn

_CLEAR_SECONDS = 20.0


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


def catch_ends(end: Callable[[int, FrameType | None], None]) -> None:
    """Let ``end`` handle Ctrl-C, SIGTERM and the end of a terminal, which may end under nohup."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if number != signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, end)


def leave_in_order(status: int = 1) -> None:
    """Let SIGTERM and the end of a terminal, like Ctrl-C, take back what was done.

    They raise SystemExit with ``status``. A second signal does not disturb that, and under nohup a
    terminal may end.
    """
    left = False

    def end(*_: object) -> None:
        nonlocal left
        # The handler stays: Python complains of one that goes while a second signal is on its way.
        if not left:
            left = True
            sys.exit(status)

    catch_ends(end)


def ended(status: int) -> str:
    """How a process of such a ``returncode`` has ended, in words."""
    if status >= 0:
        return f"exit status {status}"
    names = {each.value: each.name for each in signal.Signals}
    # The kernel ends so what takes more memory than there is, and the process itself says nothing.
    hint = ": out of memory?" if -status == signal.SIGKILL else ""
    return f"ended by signal {-status} ({names.get(-status, 'without a name')}{hint})"


def failure(status: int, output: str) -> str:
    """Why a process failed that has not said so itself: how it ended, and its last line."""
    last = output.strip().rpartition("\n")[2]
    return f"{ended(status)}, " + (f"its last line: {last}" if last else "and it said nothing")


@contextmanager
def clearing(process: subprocess.Popen[Any]) -> Iterator[None]:
    """Wait for a process within; interrupted, or out of time, it may clear away what it began."""
    try:
        yield
    except (KeyboardInterrupt, subprocess.TimeoutExpired):
        process.send_signal(signal.SIGINT)
        with suppress(subprocess.TimeoutExpired):
            process.communicate(timeout=_CLEAR_SECONDS)
        raise
    finally:
        process.kill()
