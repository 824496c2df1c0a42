"""What rollouts and ``serve`` do of signals: the first ends them in order, which others let be."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

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


SERVE = """
import signal, sys
from handlers.errors import ServerError
from marsmith import cli
from marsmith.commands import serve
{before}
signals = {signals}

def at(place):
    print(place, end=" ")
    for name in signals.get(place, ()):
        signal.raise_signal(getattr(signal, name))

class Server:
    running, was_stopped = True, {stopped}
    def __init__(self, *_, **__): pass
    def start(self): at("start")
    def stop(self): at("stop"); print("stopped", flush=True)

class Exporter:
    def __init__(self, *_): pass
    def __enter__(self): return self
    def __exit__(self, *_): pass
    def say_stopping(self): print("unready", end=" ")

def report(*_):
    at("report")
    raise ServerError("no model loads")

serve.TorchServe, serve.Exporter, serve._report = Server, Exporter, report
serve.drain_before_stop = lambda *_: at("drain")
sys.argv[1:] = ["serve", "--exporter", ":0"]
cli.main()
"""
FAILED = "start report unready drain stop stopped"


@pytest.mark.parametrize(
    ("signals", "before", "said", "status"),
    [
        ({}, USUAL, FAILED, 1),
        ({"stop": ["SIGTERM"]}, USUAL, FAILED, 1),
        ({"drain": ["SIGINT"], "stop": ["SIGINT", "SIGINT"]}, USUAL, FAILED, 1),
        ({"start": ["SIGTERM"], "stop": ["SIGTERM"]}, USUAL, "start stop stopped", 0),
        ({"report": ["SIGHUP"], "stop": ["SIGHUP"]}, USUAL, FAILED, 0),
        ({"report": ["SIGHUP"]}, NOHUP, FAILED, 1),
    ],
)
def test_no_signal_breaks_off_the_stopping(
    signals: dict[str, list[str]], before: str, said: str, status: int
) -> None:
    script = SERVE.format(signals=signals, before=before, stopped=False)
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stdout) == (status, f"{said}\n")
    assert ("no model loads" in done.stderr) == bool(status)


STARTING = "Server.start = lambda self: (at('start'), report())"


@pytest.mark.parametrize(
    ("before", "said"), [("", FAILED), (STARTING, "start report stop stopped")]
)
def test_serve_does_not_fail_where_somebody_has_stopped_its_server(before: str, said: str) -> None:
    script = SERVE.format(signals={}, before=USUAL, stopped=True)
    script = script.replace("serve.TorchServe, ", f"{before}\nserve.TorchServe, ", 1)
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stdout) == (0, f"{said}\n")
    assert done.stderr == "TorchServe was stopped\n"


SCALING = """
import contextlib, signal, sys
from pathlib import Path
from marsmith import autoscale as rounds, cli
from marsmith.client import Client
from marsmith.commands import {command}

def work(*_):
    try:
        signal.raise_signal(signal.SIG{name})
        print("it goes on")
    finally:
        signal.raise_signal(signal.SIG{name})
        print("the worker goes on")

class Server:
    describe = lambda *_: [{{"modelVersion": "1.0"}}]

{command}.require_running = lambda _: type("R", (), {{"home": Path({home!r})}})
Client.of = lambda *_: contextlib.nullcontext(Server())
rounds.run = {command}.scale_down = work
sys.argv[1:] = {words}
cli.main()
"""


@pytest.mark.parametrize("name", ["INT", "TERM"])
@pytest.mark.parametrize(("words", "status"), [(["autoscale"], 0), (["scale", "m", "1"], 1)])
def test_a_scaling_that_is_told_to_end_lets_its_worker_go(
    tmp_path: Path, words: list[str], status: int, name: str
) -> None:
    script = SCALING.format(command=words[0], words=words, name=name, home=str(tmp_path))
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stdout) == (status, "the worker goes on\n"), done.stderr
    assert ("stopped; the workers stay as they are" in done.stderr) == (status == 0)


def test_an_autoscale_whose_terminal_is_gone_ends_as_well(tmp_path: Path) -> None:
    script = SCALING.format(
        command="autoscale", words=["autoscale"], name="TERM", home=str(tmp_path)
    )
    with Path("/dev/full").open("w") as gone:
        done = subprocess.run(
            [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=gone, timeout=60
        )
    assert (done.returncode, done.stdout) == (0, b"the worker goes on\n")
