"""Project folders for servers of tests; tests/e2e and tests/faults share these fixtures."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from tiny import write_config

from marsmith.environment import temp_folder
from marsmith.processes import stop_running
from marsmith.server import TorchServe


@pytest.fixture(scope="session")
def make_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[], Path]]:
    """Make project folders with free ports and an empty model store; their servers are ended."""
    # One that does not end leaves none of the others.
    with ExitStack() as ends:

        def make() -> Path:
            home = tmp_path_factory.mktemp("home")
            ends.callback(leave, home)
            (home / "model-store").mkdir()
            write_config(home)
            return home

        yield make


def leave(home: Path) -> None:
    """End the server of a project folder, and remove its temp folder."""
    stop_running(temp_folder(home))
    shutil.rmtree(temp_folder(home))


@pytest.fixture
def home(make_home: Callable[[], Path]) -> Path:
    """A project folder of this test's own."""
    return make_home()


def build(project: Path, store: Path, *words: str, timeout: float = 300) -> None:
    """Build into a store by the real command line."""
    command = [sys.executable, "-m", "marsmith", "build", *words, "--store", str(store)]
    done = subprocess.run(command, cwd=project, capture_output=True, text=True, timeout=timeout)
    assert done.returncode == 0, done.stdout + done.stderr


@contextmanager
def serving(home: Path, store: Path | None = None) -> Iterator[TorchServe]:
    """A TorchServe of all archives of a store (default: the folder's), none of which refuses."""
    with TorchServe(home, model_store=store) as server:
        for status in server.wait_ready(300):
            assert status.failed is None
        yield server
