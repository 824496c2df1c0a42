from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from handlers import hold
from handlers.errors import ServerError
from marsmith import retire
from marsmith.client import Client
from marsmith.drain import Queue, QueueFull
from marsmith.processes import Running


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return tmp_path


def test_nobody_waits_unasked(folder: Path) -> None:
    hold.asked(folder, os.getpid() + 1).touch()
    hold.wait_if_asked()
    assert hold.asked(folder, os.getpid() + 1).exists()


def test_who_is_asked_says_so_and_waits_until_the_file_is_gone(folder: Path) -> None:
    hold.asked(folder, os.getpid()).touch()
    worker = threading.Thread(target=hold.wait_if_asked)
    worker.start()
    waiting = hold.held(folder, os.getpid())
    deadline = time.monotonic() + 120
    while not waiting.exists():
        assert time.monotonic() < deadline
        time.sleep(0.001)
    assert not hold.asked(folder, os.getpid()).exists()
    assert worker.is_alive()
    waiting.unlink()
    worker.join(timeout=120)
    assert not worker.is_alive()


def test_nobody_waits_for_ever(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hold, "SECONDS", 0.05)
    hold.asked(folder, os.getpid()).touch()
    hold.wait_if_asked()
    assert list(folder.iterdir()) == []


def test_files_of_others_count_for_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hold.asked(folder, os.getpid()).touch()
    monkeypatch.setattr("os.getuid", lambda: -1)
    hold.wait_if_asked()
    assert hold.asked(folder, os.getpid()).exists()


def test_a_full_queue_has_room_later(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: Queue, __: float | None = None) -> int:
        raise QueueFull("the queue of m 1.0 is full")

    monkeypatch.setattr(Client, "of", lambda *_, **__: Client.__new__(Client))
    monkeypatch.setattr(Client, "close", lambda _: None)
    monkeypatch.setattr(Queue, "ask_worker", full)
    queue, running = Queue(Client.__new__(Client), "m", "1.0"), Running(1, Path(), Path(), 0.0)
    left = iter(range(5))
    retire._ask_until(running, queue, lambda: next(left, None) is None, 60.0)
    with pytest.raises(ServerError, match=r"became free within 0\.1 s: its queue is too long"):
        retire._ask_until(running, queue, lambda: False, 0.1)


@pytest.mark.parametrize(("left", "least"), [(0.2, 2 * hold.SECONDS), (900.0, 890.0)])
def test_a_call_waits_as_long_as_there_is_time(
    left: float, least: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits: list[float] = []

    def connect(_: Running, *, timeout: float) -> Client:
        waits.append(timeout)
        return Client.__new__(Client)

    monkeypatch.setattr(Client, "of", connect)
    monkeypatch.setattr(Client, "close", lambda _: None)
    monkeypatch.setattr(Queue, "ask_worker", lambda *_: 7)
    queue, running = Queue(Client.__new__(Client), "m", "1.0"), Running(1, Path(), Path(), 0.0)
    retire._ask_until(running, queue, lambda: bool(waits), left)
    assert waits[0] >= least


def test_what_an_earlier_try_left_is_no_worker_that_waits(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hold.held(folder, 7).touch()
    waits: list[bool] = []
    monkeypatch.setattr(retire, "temp_folder", lambda _: folder)
    monkeypatch.setattr(retire, "_ask_until", lambda _, __, done, ___: waits.append(done()))
    queue, running = Queue(Client.__new__(Client), "m", "1.0"), Running(1, folder, folder, 0.0)
    with retire._held(running, queue, 7, 1.0):
        assert hold.asked(folder, 7).exists()
    assert waits == [False]
    assert list(folder.iterdir()) == []

    def silent(*_: Any) -> None:
        raise ServerError("its queue is too long")

    monkeypatch.setattr(retire, "_ask_until", silent)
    with pytest.raises(ServerError, match="too long"), retire._held(running, queue, 7, 1.0):
        pytest.fail("nobody waits")
    assert list(folder.iterdir()) == [], "a later worker of that number would wait"


def test_only_a_living_worker_is_made_to_wait_and_it_has_ended_on_return(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    mine, dead = os.getpid(), 2**22 + 1
    done: list[str] = []

    class _Server(Client):
        def __init__(self) -> None:
            self.pids = [mine, os.getppid(), dead]

        @classmethod
        def of(cls, running: Running, *, timeout: float = 30.0) -> Client:
            return cls()

        def close(self) -> None:
            pass

        def describe(self, *_: Any, **__: Any) -> list[dict[str, Any]]:
            return [{"workers": [{"status": "READY", "pid": pid} for pid in self.pids]}]

        def scale(self, model: str, min_worker: int, *_: Any, **__: Any) -> str:
            done.append(f"end {self.pids.pop()}")
            alive.extend([True, True])
            return ""

    @contextmanager
    def held(running: Running, queue: Queue, pid: int, seconds: float) -> Iterator[None]:
        done.append(f"hold {pid}")
        yield

    alive: list[bool] = []
    monkeypatch.setattr(retire, "_held", held)
    monkeypatch.setattr(retire, "is_alive", lambda _: alive.pop() if alive else False)
    retire.scale_down(Running(1, Path(), Path(), 0.0), "m", "1.0", 1, 5.0, _Server)
    assert done == [f"end {dead}", f"hold {os.getppid()}", f"end {os.getppid()}"]
    assert alive == [], "the processes had not ended"
