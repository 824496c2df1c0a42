"""The end of a process that has loaded torch."""

from __future__ import annotations

import atexit
import logging
import os
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
