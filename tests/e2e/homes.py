"""Project folders for servers of tests; tests/e2e and tests/faults share these fixtures."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tiny import write_config

from marsmith.environment import temp_folder
from marsmith.processes import stop_running


@pytest.fixture(scope="session")
def make_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[], Path]]:
    """Make project folders with free ports and an empty model store; their servers are ended."""
    homes = []

    def make() -> Path:
        home = tmp_path_factory.mktemp("home")
        homes.append(home)
        (home / "model-store").mkdir()
        write_config(home)
        return home

    yield make
    for home in homes:
        stop_running(temp_folder(home))
        shutil.rmtree(temp_folder(home))


@pytest.fixture
def home(make_home: Callable[[], Path]) -> Path:
    """A project folder of this test's own."""
    return make_home()
