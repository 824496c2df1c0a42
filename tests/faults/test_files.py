"""Files of the store and of a running server that are cut off, changed or swapped; clocks that
jump."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tiny import REFUSES, kill, pack, until

from handlers.errors import ArchiveError, IntegrityError
from marsmith.archive import read_header
from marsmith.client import Client
from marsmith.environment import temp_folder
from marsmith.processes import PID_FILE, find_running
from marsmith.server import TorchServe
from marsmith.status import VersionStatus, read_status
from marsmith.store import admit, newest_first, readable, verify


@pytest.fixture(scope="module")
def server(make_home: Callable[[], Path], lenet5: Path) -> Iterator[TorchServe]:
    """lenet5, and a model that refuses to load."""
    home = make_home()
    shutil.copy(lenet5, home / "model-store")
    pack(home / "model-store", "refuses", source=REFUSES)
    with TorchServe(home) as server:
        server.wait_ready(120)
        yield server


def _status(server: TorchServe, model: str) -> VersionStatus:
    with server.client() as client:
        [found] = [one for one in read_status(server.running, client) if one.model == model]
    return found


def _flip(path: Path, word: bytes) -> None:
    """Change one byte behind ``word``, and leave the length as it was."""
    content = bytearray(path.read_bytes())
    content[content.index(word) + len(word) + 1000] ^= 1
    path.write_bytes(content)


def test_a_clock_that_was_set_back_hides_nothing(server: TorchServe) -> None:
    pid_file = temp_folder(server.home) / PID_FILE
    # As if the server had been started in an hour from now.
    later = time.time() + 3600
    os.utime(pid_file, (later, later))
    refused = _status(server, "refuses")
    assert (refused.ready, refused.failed) == (False, "not today")
    assert _status(server, "lenet5_digits").ready
    assert find_running(temp_folder(server.home)) == server.running


def test_a_file_that_changes_under_a_running_server_is_refused_by_the_next_worker(
    server: TorchServe, digits: dict[str, bytes]
) -> None:
    with server.client() as client:
        expected = client.predict("lenet5_digits", digits["3"]).json()
    [artifact] = (server.temp / "models").glob("*/model.pt")
    whole = artifact.read_bytes()
    artifact.write_bytes(whole[: len(whole) // 2])
    kill(_status(server, "lenet5_digits").pids[0])
    until(lambda: _status(server, "lenet5_digits").failed)
    assert "model.pt" in str(_status(server, "lenet5_digits").failed)
    artifact.write_bytes(whole)
    until(lambda: _status(server, "lenet5_digits").ready)
    with Client.of(server.running) as client:
        assert client.predict("lenet5_digits", digits["3"]).json() == expected


def test_a_changed_archive_is_not_served_and_its_neighbour_is(
    home: Path, lenet5: Path, digits: dict[str, bytes]
) -> None:
    store = home / "model-store"
    shutil.copy(lenet5, store)
    pack(store)
    _flip(store / lenet5.name, b"model.pt")
    with TorchServe(home) as server:
        assert [status.model for status in server.wait_ready(60)] == ["echo"]
        assert server.refused[lenet5.name].startswith(f"{lenet5.name}: TorchServe did not take it")
        with server.client() as client:
            assert client.predict("echo", b"x").ok
            assert client.predict("lenet5_digits", digits["3"]).status == 404


@pytest.mark.parametrize("share", [0.0, 0.5, 0.999])
def test_an_archive_that_is_cut_off_is_named(lenet5: Path, tmp_path: Path, share: float) -> None:
    store = tmp_path / "store"
    store.mkdir()
    cut = tmp_path / lenet5.name
    cut.write_bytes(lenet5.read_bytes()[: int(share * lenet5.stat().st_size)])
    with pytest.raises(ArchiveError, match=lenet5.name):
        admit(cut, store)
    assert list(store.iterdir()) == []
    shutil.copy(cut, store)
    headers, reasons = readable(store)
    assert (headers, reasons.keys()) == ({}, {lenet5.name})


def test_swapped_archives_are_what_they_say_inside(lenet5: Path, tmp_path: Path) -> None:
    other = tmp_path / pack(tmp_path, version="2.0")
    mine = Path(shutil.copy(lenet5, tmp_path))
    other.rename(tmp_path / "between")
    mine.rename(other)
    (tmp_path / "between").rename(mine)
    assert (read_header(mine).name, read_header(other).name) == ("echo", "lenet5_digits")
    assert newest_first(readable(tmp_path)[0]) == [mine.name, other.name]
    verify(other)
    with pytest.raises(IntegrityError):
        verify(mine)
