"""``marsmith tune`` from its command line: interrupted, taken up again, written, built by."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path

import psutil  # type: ignore[import-untyped]
import pytest
from tiny import PROJECT, ending

from handlers.bundle import Bundle
from marsmith import archive, host_profile, spec
from marsmith.archive import read_json
from marsmith.processes import is_alive

PARTS = ("config.properties", "weights", "samples", "training")
MODEL = "lenet5_digits"
LIMIT = 240.0


@pytest.fixture
def place(project: Path, tmp_path: Path) -> Path:
    """A project folder with results and a model file of its own."""
    for name in PARTS:
        (tmp_path / name).symlink_to(project / name)
    (tmp_path / "models").mkdir()
    shutil.copy(project / f"models/{MODEL}.yaml", tmp_path / "models")
    return tmp_path


def _started(
    place: Path, *words: str, environ: Mapping[str, str] | None = None
) -> AbstractContextManager[subprocess.Popen[str]]:
    command = [sys.executable, "-m", "marsmith", *words]
    env = {**os.environ, "PYTHONPATH": str(PROJECT), **(environ or {})}
    return ending(command, place, 2 * LIMIT, stderr=subprocess.PIPE, env=env)


def test_interrupted_and_taken_up_again(place: Path) -> None:
    file, results = place / f"models/{MODEL}.yaml", place / f"build/tune/{MODEL}.jsonl"
    before = file.read_text()
    words = ["tune", MODEL, "--runtime", "eager", "--precision", "fp32"]
    words += ["--seconds-per-point", "0.3"]
    with _started(place, *words, "--write") as first:
        deadline = time.monotonic() + LIMIT
        while first.poll() is None and (
            not results.exists() or '"point"' not in results.read_text()
        ):
            assert time.monotonic() < deadline, "no point was measured"
            time.sleep(0.05)
        first.send_signal(signal.SIGINT)
        table, told = first.communicate()
    assert first.returncode == 130, table + told
    assert "-> eager fp32, " in table
    assert "interrupted: nothing is written" in told
    assert file.read_text() == before

    kept = results.read_text()
    # No time for another point: all comes from the results kept.
    options = [
        "--budget",
        "0.0001",
        "--json",
        "--write",
        "--profile",
        "host.yaml",
        "--plot",
        "p.png",
    ]
    with _started(place, *words, *options) as again:
        text, told = again.communicate()
    assert again.returncode == 0, told
    assert results.read_text() == kept
    found = json.loads(text)
    assert not found["complete"]
    assert [one["problem"] for one in found["points"]] == [None] * (len(kept.splitlines()) - 1)
    assert all(one["throughput"] > 0 and one["p99"] > 0 for one in found["points"])
    assert (place / "p.png").read_bytes().startswith(b"\x89PNG")
    chosen = found["chosen"]
    written = spec.load(file)
    assert (written.runtime, written.serving.workers) == ("eager", chosen["workers"])
    assert f"written into models/{MODEL}.yaml: eager fp32" in told

    file.write_text(before)
    with _started(place, "build", MODEL, "--profile", "host.yaml", "--store", "store") as build:
        _, told = build.communicate()
    assert build.returncode == 0, told
    limits = read_json(place / f"store/{MODEL}-1.0.mar", "marsmith.json")["limits"]
    assert {key: limits[key] for key in ("workers", "threads", "batch_size")} == {
        key: chosen[key] for key in ("workers", "threads", "batch_size")
    }


def test_interrupted_while_it_builds(place: Path) -> None:
    temporary, store = place / "tmp", place / f"build/tune/{MODEL}/eager-fp32"
    temporary.mkdir()
    words = ["tune", MODEL, "--runtime", "eager", "--precision", "fp32", "--write"]
    before = (place / f"models/{MODEL}.yaml").read_text()
    with _started(place, *words, environ={"TMPDIR": str(temporary)}) as tune:
        deadline = time.monotonic() + LIMIT
        # The build has a folder in the store, and a process beside it that gets ready.
        while not list(store.glob(".build-*")) or not list(temporary.glob("marsmith-smoke-*")):
            assert tune.poll() is None, tune.communicate()
            assert time.monotonic() < deadline, "no build began"
            time.sleep(0.05)
        begun = psutil.Process(tune.pid).children(recursive=True)
        assert begun
        tune.send_signal(signal.SIGINT)
        table, told = tune.communicate()
    assert tune.returncode == 130, table + told
    assert "interrupted: nothing is written" in told
    assert (place / f"models/{MODEL}.yaml").read_text() == before
    assert [one.pid for one in begun if is_alive(one.pid)] == []
    assert list(store.glob(".build-*")) == []
    assert list(temporary.iterdir()) == []


def test_an_archive_is_tuned_with_the_artifact_that_it_has(place: Path, lenet5: Path) -> None:
    # An artifact for one picture and one core leave one point.
    folder, path = place / "unpacked", place / "theirs.mar"
    archive.unpack(lenet5, folder)
    shutil.rmtree(folder / "MAR-INF")
    bundle = Bundle.read(folder)
    single = replace(bundle, limits=replace(bundle.limits, batch_size=1), artifact_batch=1)
    single.write(folder)
    archive.pack(folder, single, path)
    shutil.rmtree(place / "models")
    core = str(min(os.sched_getaffinity(0)))
    words = ["tune", path.name, "--seconds-per-point", "0.3", "--json", "--profile", "host.yaml"]
    command = ["taskset", "-c", core, sys.executable, "-m", "marsmith", *words]
    with ending(command, place, 2 * LIMIT, stderr=subprocess.PIPE) as tuned:
        text, told = tuned.communicate()
    assert tuned.returncode == 0, told
    found = json.loads(text)
    [only] = found["points"]
    assert only["problem"] is None
    assert only["throughput"] > 0
    assert found["complete"]
    assert found["trials"] == []
    assert "other runtimes and precisions, and batches above 1" in found["untried"]
    keys = host_profile.overrides(place / "host.yaml", MODEL)
    assert (keys["runtime"], keys["serving"]["batch_size"]) == (bundle.runtime, 1)
