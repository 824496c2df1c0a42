"""What a rollout does of signals: the first one ends it in order, others disturb nothing then."""

from __future__ import annotations

import subprocess
import sys

import pytest

SCRIPT = """
import signal, sys
from marsmith.leaving import leave_in_order
{before}
leave_in_order()
numbers = {{{names}}}
try:
    # All at once, as soon as they are let through.
    signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
    for number in numbers:
        signal.raise_signal(number)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, numbers)
    print("it goes on")
except SystemExit as end:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.raise_signal(number)
    print("taken back", end.code)
"""
# Whatever this process came with.
USUAL = "signal.signal(signal.SIGHUP, signal.SIG_DFL)"
NOHUP = "signal.signal(signal.SIGHUP, signal.SIG_IGN)"


@pytest.mark.parametrize(
    ("names", "before", "said"),
    [
        ("SIGINT", USUAL, "taken back 1"),
        ("SIGTERM", USUAL, "taken back 1"),
        ("SIGHUP", USUAL, "taken back 1"),
        ("SIGINT SIGTERM SIGHUP", USUAL, "taken back 1"),
        ("SIGTERM", NOHUP, "taken back 1"),
        # Under nohup a terminal may end.
        ("SIGHUP", NOHUP, "it goes on"),
    ],
)
def test_a_signal_ends_it_once_and_in_order(names: str, before: str, said: str) -> None:
    numbers = ", ".join(f"signal.{name}" for name in names.split())
    script = SCRIPT.format(names=numbers, before=before)
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{said}\n", "")
