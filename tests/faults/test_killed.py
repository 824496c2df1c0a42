"""Workers and the server are killed under load: nothing wrong is answered, and all comes back."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from asked import under_load
from tiny import kill, marsmith

from handlers.bundle import FILE, Bundle
from handlers.integrity import sha256
from marsmith import spec
from marsmith.archive import unpack
from marsmith.build import build
from marsmith.server import TorchServe
from marsmith.status import read_status

_SECONDS, _EVERY = 60.0, 5.0
# For a moment in which others take the cores.
_SLACK_SECONDS = 20.0
_BATCH = 8
Two = tuple[TorchServe, Bundle, float]
"""A server, what its archive says, and the seconds until both workers had loaded."""


@pytest.fixture(scope="module")
def two_workers(
    make_home: Callable[[], Path], project: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Two]:
    """lenet5 in two workers."""
    home = make_home()
    serving = {"workers": 2, "threads": 1, "batch_size": _BATCH}
    model = spec.load(project / "models/lenet5_digits.yaml", {"serving": serving})
    path = build(model, project, home / "model-store", tell=lambda stage: None).path
    folder = tmp_path_factory.mktemp("unpacked")
    unpack(path, folder)
    began = time.monotonic()
    with TorchServe(home) as server:
        server.wait_ready(120)
        yield server, Bundle.parse((folder / FILE).read_text()), time.monotonic() - began


def _expected(server: TorchServe, model: str, pictures: list[bytes]) -> dict[bytes, object]:
    with server.client() as client:
        return {body: client.predict(model, body).json() for body in pictures}


def _files(folder: Path) -> dict[str, str]:
    return {str(p.relative_to(folder)): sha256(p) for p in folder.rglob("*") if p.is_file()}


def _one_after_another(server: TorchServe, seconds: float) -> int:
    """Kill a living worker every few seconds, the last one as well; how many."""
    start, kills = time.monotonic(), 0
    with server.client() as client:
        while time.monotonic() < start + seconds:
            [status] = read_status(server.running, client)
            if time.monotonic() >= start + kills * _EVERY and status.pids:
                kill(random.choice(status.pids))
                kills += 1
            time.sleep(0.1)
    return kills


def test_a_worker_killed_every_five_seconds(
    two_workers: Two, digits: dict[str, bytes], capsys: pytest.CaptureFixture[str]
) -> None:
    server, bundle, load = two_workers
    expected = _expected(server, bundle.name, list(digits.values()))
    store = _files(server.model_store)
    with under_load(server.running, bundle, expected) as seen:
        kills = _one_after_another(server, _SECONDS)
        last = time.monotonic()
        server.wait_ready(120)
    recovered = time.monotonic() - last
    assert _files(server.model_store) == store
    # What it answers when it has recovered is what it answered before.
    assert _expected(server, bundle.name, list(digits.values())) == expected
    with capsys.disabled():
        print(f"\n{kills} workers killed in {_SECONDS:g} s: {seen.words()}")
        print(
            f"  nothing was answered for {seen.longest_gap():.1f} s at most; both lived again "
            f"{recovered:.1f} s after the end; a start of both takes {load:.1f} s"
        )
    assert recovered < 2 * load + _SLACK_SECONDS
    assert kills > _SECONDS / _EVERY / 2
    assert seen.ok > 0
    assert seen.wrong == []
    assert seen.unclean == []
    # A batch that TorchServe was still gathering for a worker is lost with it, without a word.
    assert len(seen.unanswered) <= kills * _BATCH
    assert set(seen.errors) <= {500, 503, 507}


def test_a_killed_server_comes_back_with_the_store_as_it_was(
    two_workers: Two, digits: dict[str, bytes]
) -> None:
    server, bundle, _ = two_workers
    expected = _expected(server, bundle.name, list(digits.values()))
    store = _files(server.model_store)
    with under_load(server.running, bundle, expected, timeout=5) as seen:
        time.sleep(1)
        kill(server.running.pid)
        time.sleep(1)
    # Nobody listens any more, which a client is told at once.
    assert seen.unanswered
    assert (seen.wrong, seen.unclean, seen.ok > 0) == ([], [], True)
    assert marsmith(server.home, "status").stderr.startswith("error: no TorchServe runs")
    server.start()
    server.wait_ready(120)
    assert _files(server.model_store) == store
    assert _expected(server, bundle.name, list(digits.values())) == expected
