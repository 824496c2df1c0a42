"""What a worker of PyTorch frees stays with its process."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from handlers import memory
from handlers.bundle import Bundle
from handlers.plugins import load_task

_FAULTS = """
import resource, sys
import numpy
from handlers import memory
kept = memory.keep_freed() if sys.argv[1] == "keep" else None
for turn in range(20):
    if turn == 10:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    numpy.ones(40 << 20, numpy.uint8)
print(kept, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def _faults(project: Path, word: str, **environ: str) -> tuple[str, int]:
    command = [sys.executable, "-c", _FAULTS, word]
    env = {name: value for name, value in os.environ.items() if name not in memory._CHOSEN}
    env |= {"PYTHONPATH": str(project), **environ}
    done = subprocess.run(
        command, env=env, check=True, capture_output=True, text=True, timeout=60
    ).stdout.split()
    return done[0], int(done[1])


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the setting is glibc's")
def test_large_blocks_are_not_taken_anew_from_the_system(project: Path) -> None:
    pages = 10 * (40 << 20) // os.sysconf("SC_PAGE_SIZE")
    _, before = _faults(project, "leave", MALLOC_MMAP_THRESHOLD_="131072")
    assert before >= pages // 512, "pages of two megabytes at most"
    kept, after = _faults(project, "keep")
    assert (kept, after < before / 10) == ("True", True), (before, after)
    # A setting of the environment stays.
    assert _faults(project, "keep", MALLOC_MMAP_THRESHOLD_="131072")[0] == "False"


@pytest.mark.parametrize("needs_torch", [True, False])
def test_a_worker_keeps_it_where_torch_computes(
    unpacked: Path, monkeypatch: pytest.MonkeyPatch, needs_torch: bool
) -> None:
    bundle = Bundle.read(unpacked)
    asked: list[bool] = []
    monkeypatch.setattr(memory, "keep_freed", lambda: asked.append(True))
    task = load_task(bundle.task)
    monkeypatch.setattr(task, "needs_torch", classmethod(lambda cls, bundle: needs_torch))
    task().bind(bundle, unpacked)
    assert asked == [True] * needs_torch


def test_another_c_library_is_left_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in memory._CHOSEN:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("handlers.memory.ctypes.CDLL", lambda name: object())
    assert memory.keep_freed() is False
