from __future__ import annotations

import subprocess
import sys

SCRIPT = """
import atexit, concurrent.futures, threading
from marsmith.leaving import leave
atexit.register(print, "registered")
concurrent.futures.ThreadPoolExecutor(1).submit(threading.Event().wait)
print("said", end=" ")
leave(3)
"""


def test_what_was_said_and_registered_gets_out_and_nothing_is_waited_for() -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stdout, done.stderr) == (3, "said registered\n", "")


def test_a_reader_that_has_seen_enough_is_no_error() -> None:
    script = (
        "import sys; from marsmith.leaving import leave; sys.stdin.read(); print('x'); leave(3)"
    )
    with subprocess.Popen(
        # -E: with PYTHONUNBUFFERED nothing would be left to flush.
        [sys.executable, "-E", "-c", script],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        process.stdin.close()
        assert process.stderr.read() == ""
        assert process.wait(60) == 3
