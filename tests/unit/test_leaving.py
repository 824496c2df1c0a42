from __future__ import annotations

import signal
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from handlers.errors import SmokeError
from marsmith import smoke, spec, trials
from marsmith.leaving import ended, failure

KILLED = "ended by signal 9 (SIGKILL: out of memory?)"
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


def test_how_a_process_has_ended_is_told_in_words() -> None:
    assert ended(3) == "exit status 3"
    assert ended(-signal.SIGKILL) == KILLED
    assert ended(-signal.SIGSEGV) == "ended by signal 11 (SIGSEGV)"
    # Between the two real-time ones that Python has names for.
    assert ended(-40) == "ended by signal 40 (without a name)"
    assert (
        failure(1, "Traceback\nValueError: no\n") == "exit status 1, its last line: ValueError: no"
    )
    assert failure(-9, " \n") == f"{KILLED}, and it said nothing"


_DIES = """
import os, signal, sys
sys.stdin.readline()
print("libtorch is ready", file=sys.stderr, flush=True)
{end}
"""


@pytest.mark.parametrize(
    ("end", "words"),
    [
        ("os.kill(os.getpid(), signal.SIGKILL)", f"{KILLED}, its last line: libtorch is ready"),
        ("os._exit(7)", "exit status 7, its last line: libtorch is ready"),
        ("print('marsmith: refused m 1.0: no'); sys.exit(1)", "marsmith: refused m 1.0: no"),
    ],
)
def test_a_clean_process_that_dies_is_not_taken_at_its_last_line(
    end: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script, archive = tmp_path / "dies.py", tmp_path / "m.mar"
    script.write_text(_DIES.format(end=end))
    zipfile.ZipFile(archive, "w").close()
    monkeypatch.setattr(smoke, "_LOAD", script)
    with pytest.raises(SmokeError) as caught:
        smoke.measured(archive)
    assert str(caught.value) == f"the archive does not load in a clean process: {words}"


@pytest.mark.parametrize(
    ("status", "said", "problem"),
    [
        (-9, "m: weights ...\n", f"{KILLED}, its last line: m: weights ..."),
        (-9, "", f"{KILLED}, and it said nothing"),
        (1, "m: weights ...\nerror: no weights at w.pth\n", "no weights at w.pth"),
        (1, "Traceback\nValueError: no\n", "exit status 1, its last line: ValueError: no"),
    ],
)
def test_a_trial_says_how_its_build_has_ended(
    status: int,
    said: str,
    problem: str,
    project: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    done = subprocess.CompletedProcess([], status, "", said)
    monkeypatch.setattr(trials, "_run", lambda *_: done)
    model = spec.load(project / "models/lenet5_digits.yaml")
    (trial,) = trials.run(model, project, tmp_path, [("eager", "fp32")], lambda _: None)
    assert trial.problem == problem
