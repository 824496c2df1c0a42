"""A real TorchServe for tests: own folder, temp folder and ports, and always ended by its pid."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from homes import build, home, make_home
from tiny import REFUSES, pack

from marsmith.server import TorchServe

__all__ = ["home", "make_home"]


@pytest.fixture(scope="session")
def served(make_home: Callable[[], Path]) -> Iterator[TorchServe]:
    """One TorchServe for all tests that only ask: echo in three versions, and one that refuses."""
    home = make_home()
    store = home / "model-store"
    for version in ("1.0", "2.0", "10.0"):
        pack(store, version=version)
    pack(store, "refuses", source=REFUSES)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MY_SECRET_KEY", "hidden")
        patch.setenv("MY_THREADS", "passed on")
        server = TorchServe(home)
        server.start()
    with server:
        server.wait_ready(120)
        yield server


@pytest.fixture(scope="session")
def archives(project: Path, shared: Callable[[str, Callable[[Path], None]], Path]) -> Path:
    """A store with the default archives, built once by the real command line."""
    return shared("archives", lambda store: build(project, store, timeout=900))
