"""One server for all malformed requests, and what each test must leave as it was."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from flood import MODEL, Neighbour, worker

from marsmith import build, spec
from marsmith.client import Client
from marsmith.server import TorchServe

MB = 1 << 20
# Measured: 60 MB; after a batch of the largest pictures the allocator keeps 0.9 GB, or 1.7 where
# other work delays threads that decode side by side, and no more after any number of them.
GROWN = 2300 * MB


@pytest.fixture(scope="session")
def one_worker(make_home: Callable[[], Path], project: Path) -> Iterator[TorchServe]:
    """A real TorchServe with one worker of one model, as they are shipped."""
    home = make_home()
    model = spec.load(project / f"models/{MODEL}.yaml")
    assert model.serving.batch_size == 8
    build.build(model, project, home / "model-store", tell=lambda stage: None)
    with TorchServe(home) as server:
        server.wait_ready(120)
        yield server


@pytest.fixture
def asker(one_worker: TorchServe) -> Iterator[Client]:
    with one_worker.client() as asker:
        yield asker


@pytest.fixture
def neighbour(asker: Client, project: Path) -> Neighbour:
    """A picture with a known right answer."""
    picture = (project / "samples/shapes/star.jpg").read_bytes()
    answer = asker.predict(MODEL, picture).json()
    assert answer[0]["label"] == "star"
    return Neighbour(picture, answer)


@pytest.fixture
def survivor(
    one_worker: TorchServe, asker: Client, neighbour: Neighbour
) -> Iterator[psutil.Process]:
    """The worker, which must be the same after a test, not much larger, and no batch failed."""
    process = worker(asker)
    before = process.memory_info().rss
    yield process
    assert worker(asker).pid == process.pid
    assert process.memory_info().rss < before + GROWN
    log = (one_worker.home / "logs/model_log.log").read_text(errors="replace")
    assert "Invoking custom service failed" not in log
    assert asker.predict(MODEL, neighbour.picture).json() == neighbour.answer
