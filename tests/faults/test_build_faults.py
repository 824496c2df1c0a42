"""Builds that are stopped, disturbed or out of room leave the store as it was, and say why."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
from tiny import PROJECT, ending

from handlers.integrity import sha256
from marsmith.store import verify

_COMMAND, _ARCHIVE = ["build", "lenet5_digits", "--store"], "lenet5_digits-1.0.mar"
# The command line itself, in a process for each stage that has imported everything already. The
# signal comes when the stage begins, which only the build knows.
_STOPPED = """
import os, signal, sys
from marsmith import build, cli

number, stages, whole = int(sys.argv.pop(1)), sys.argv.pop(1).split(","), build.build

def run(stage):
    def stopped(spec, root, store, force, tell):
        def told(text):
            tell(text)
            if text.startswith(stage):
                os.kill(os.getpid(), number)
        return whole(spec, root, store, force, told)

    build.build = stopped
    cli.main()

for stage in stages:
    child = os.fork()
    if not child:
        run(stage)
    ended = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    print(stage, ended, *sorted(os.listdir(sys.argv[-1])), flush=True)
"""
STAGES = ("weights", "reference", "export", "parity", "archive", "smoke")


def _start(*words: str, **given: object) -> AbstractContextManager[subprocess.Popen[str]]:
    return ending([sys.executable, *words], PROJECT, stderr=subprocess.PIPE, **given)


def _run(*words: str, **given: object) -> tuple[int, str, str]:
    with _start(*words, **given) as process:
        out, err = process.communicate(timeout=120)
    return process.returncode, out, err


def _held(store: Path) -> dict[str, str]:
    return {path.name: sha256(path) if path.is_file() else "" for path in store.iterdir()}


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """A store with an archive of something else."""
    folder = tmp_path / "store"
    folder.mkdir()
    (folder / "another-1.0.mar").write_bytes(b"another")
    return folder


def test_the_stages_are_all_there_are(project: Path, tmp_path: Path) -> None:
    from marsmith import build, spec

    told: list[str] = []
    model = spec.load(project / "models/lenet5_digits.yaml")
    build.build(model, project, tmp_path, tell=told.append)
    assert [stage.split()[0] for stage in told] == list(STAGES)


def test_ctrl_c_at_every_stage(store: Path) -> None:
    before = _held(store)
    _, out, err = _run("-c", _STOPPED, "2", ",".join(STAGES), *_COMMAND, str(store))
    # 1 is the status of what was ended by Ctrl-C, and beside the store's archive nothing is left.
    assert out.splitlines() == [f"{stage} 1 another-1.0.mar" for stage in STAGES]
    assert err.split() == ["Aborted!"] * len(STAGES)
    assert _held(store) == before


def test_what_a_killed_build_left_is_removed_by_the_next(store: Path, tmp_path: Path) -> None:
    before = _held(store)
    # Nobody else removes what it leaves there.
    environ = {**os.environ, "PYTHONPATH": str(PROJECT), "TMPDIR": str(tmp_path)}
    _, out, _ = _run("-c", _STOPPED, "9", "archive", *_COMMAND, str(store), env=environ)
    assert out.startswith("archive -9 .build-")
    code, _, err = _run("-m", "marsmith", *_COMMAND, str(store))
    assert code == 0, err
    assert _held(store).keys() == {*before, _ARCHIVE}
    verify(store / _ARCHIVE)


# From the first file of the artifact to the last of the archive.
@pytest.mark.parametrize("size", [1_000, 280_000])
def test_without_room_on_the_disk(store: Path, size: int) -> None:
    """A limit on files' size stands for a full disk: both fail a write in its middle."""
    before = _held(store)

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))

    code, _, err = _run("-m", "marsmith", *_COMMAND, str(store), preexec_fn=limit)
    assert code == 1
    assert err.startswith("error: ")
    assert len(err.splitlines()) == 1, err
    assert _held(store) == before


def test_builds_at_once_of_the_same_and_of_another_model_with_its_name(store: Path) -> None:
    before = _held(store)
    words = ("-m", "marsmith", *_COMMAND, str(store))
    with (
        _start(*words) as one,
        _start(*words) as two,
        _start(*words, "--runtime", "eager") as other,
    ):
        ends = [process.communicate(timeout=240)[1] for process in (one, two, other)]
    codes = [one.returncode, two.returncode, other.returncode]
    # The same one is no conflict. Whoever came second with other bytes was told, and did not
    # replace what the first has been told is there.
    assert codes in ([0, 0, 1], [1, 1, 0]), ends
    told = ["is in the store with other bytes" in end for end in ends]
    assert told == [bool(code) for code in codes]
    assert _held(store).keys() == {*before, _ARCHIVE}
    verify(store / _ARCHIVE)
