"""Workers that hang, raise, leak or do not load, and more requests than a model can answer."""

from __future__ import annotations

import resource
import statistics
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest
from asked import Seen, is_clean, under_load
from tiny import kill, until
from troubled import HANG, LEAK, RAISE, SLOW, SLOW_SECONDS, build_troubled, grey

from handlers.bundle import FILE, Bundle
from marsmith.archive import unpack
from marsmith.environment import temp_folder
from marsmith.processes import find_workers, is_alive
from marsmith.server import TorchServe
from marsmith.status import VersionStatus, read_status

_TIMEOUT, _QUEUE, _BATCH = 3, 8, 4
# Times what is documented an accepted request may wait, on a machine that others use as well.
_GENEROUS = 10


@pytest.fixture(scope="module")
def flag(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """While this file is there, the network cannot be made."""
    with pytest.MonkeyPatch.context() as patch:
        path = tmp_path_factory.mktemp("flag") / "trouble"
        patch.setenv("MARSMITH_TEST_TROUBLE", str(path))
        yield path


@pytest.fixture(scope="module")
def server(
    make_home: Callable[[], Path],
    project: Path,
    flag: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[TorchServe]:
    """One worker of the troubled model."""
    home = make_home()
    serving = {"response_timeout": _TIMEOUT, "queue_size": _QUEUE, "batch_size": _BATCH}
    folder = tmp_path_factory.mktemp("troubled")
    build_troubled(folder, project, home / "model-store", **serving)
    with TorchServe(home) as server:
        server.wait_ready(120)
        yield server


@pytest.fixture
def bundle(server: TorchServe, tmp_path: Path) -> Bundle:
    [archive] = server.model_store.glob("*.mar")
    unpack(archive, tmp_path / "unpacked")
    return Bundle.parse((tmp_path / "unpacked" / FILE).read_text())


@pytest.fixture
def expected(server: TorchServe, digits: dict[str, bytes]) -> dict[bytes, object]:
    """Right answers to the digits; the model is well when a test starts."""
    server.wait_ready(120)
    with server.client() as client:
        return {body: client.predict("troubled", body).json() for body in digits.values()}


def _status(server: TorchServe) -> VersionStatus:
    with server.client() as client:
        [status] = read_status(server.running, client)
    return status


def _no_harm(seen: Seen) -> None:
    assert (seen.wrong, seen.unclean, seen.ok > 0) == ([], [], True)


def test_a_worker_that_hangs_is_replaced(
    server: TorchServe, bundle: Bundle, expected: dict[bytes, object]
) -> None:
    [worker] = _status(server).pids
    with (
        under_load(server.running, bundle, expected, threads=2, timeout=60) as seen,
        server.client(timeout=60) as client,
    ):
        reply = client.predict("troubled", grey(HANG))
        assert (reply.status, is_clean(reply)) == (500, True)
        until(lambda: _status(server).ready)
    _no_harm(seen)
    assert not is_alive(worker)
    assert seen.unanswered == []


def test_a_picture_that_raises_fails_alone(
    server: TorchServe, bundle: Bundle, expected: dict[bytes, object]
) -> None:
    [worker] = _status(server).pids
    with (
        under_load(server.running, bundle, expected) as seen,
        server.client() as client,
    ):
        replies = [client.predict("troubled", grey(RAISE)) for _ in range(10)]
    assert {(reply.status, is_clean(reply)) for reply in replies} == {(500, True)}
    assert {reply.json()["type"] for reply in replies} == {"InferenceError"}
    _no_harm(seen)
    assert (seen.errors, seen.unanswered) == ({}, [])
    assert _status(server).pids == (worker,)


def test_a_worker_that_leaks_answers_until_there_is_no_memory_and_says_so(
    server: TorchServe, bundle: Bundle, expected: dict[bytes, object]
) -> None:
    [worker] = _status(server).pids
    # As a service manager limits it: systemd's MemoryMax, or the limit of a container.
    size = psutil.Process(worker).memory_info().vms + (1 << 30)
    resource.prlimit(worker, resource.RLIMIT_AS, (size, size))
    with (
        under_load(server.running, bundle, expected) as seen,
        server.client() as client,
    ):
        replies = [client.predict("troubled", grey(LEAK)) for _ in range(8)]
    assert replies[0].ok
    assert replies[-1].status >= 500
    assert all(reply.ok or is_clean(reply) for reply in replies)
    _no_harm(seen)
    assert seen.unanswered == []
    # What a limit on memory does that is kept by a signal.
    if is_alive(worker):
        kill(worker)
    server.wait_ready(120)
    with server.client() as client:
        assert {body: client.predict("troubled", body).json() for body in expected} == expected


def test_a_worker_that_does_not_load_says_why_and_is_tried_again(
    server: TorchServe, expected: dict[bytes, object], flag: Path
) -> None:
    flag.touch()
    try:
        kill(_status(server).pids[0])
        until(lambda: _status(server).failed)
        assert "the weights' disk is away" in str(_status(server).failed)
    finally:
        flag.unlink()
    until(lambda: _status(server).ready)
    with server.client() as client:
        assert {body: client.predict("troubled", body).json() for body in expected} == expected


def _lone_batches(server: TorchServe, picture: bytes) -> list[float]:
    """Seconds of batches of one picture, for which nothing else waits."""
    seconds = []
    with server.client() as client:
        for _ in range(5):
            start = time.monotonic()
            assert client.predict("troubled", picture).ok
            seconds.append(time.monotonic() - start)
    return seconds


def test_twice_as_many_requests_as_can_be_answered(
    server: TorchServe, expected: dict[bytes, object], capsys: pytest.CaptureFixture[str]
) -> None:
    rate, seconds = 2 * _BATCH / SLOW_SECONDS, 5.0
    slow, waiting, found = grey(SLOW), [], []
    lone = _lone_batches(server, slow)
    start = time.monotonic()

    def ask(due: float) -> None:
        time.sleep(max(0.0, start + due - time.monotonic()))
        sent = time.monotonic()
        with server.client(timeout=30) as client:
            reply = client.predict("troubled", slow)
        found.append((reply, time.monotonic() - sent))

    # As many as there are requests: fewer would wait for each other instead of in the queue.
    with ThreadPoolExecutor(count := int(rate * seconds)) as pool:
        asked = [pool.submit(ask, number / rate) for number in range(count)]
        while time.monotonic() < start + seconds:
            waiting.append(_status(server).pending)
            time.sleep(0.2)
        # Nothing was left without an answer.
        for each in asked:
            each.result()
    took: dict[int, list[float]] = defaultdict(list)
    for reply, passed in found:
        took[reply.status].append(passed)
    words = [f"{len(took[code])} of {code} within {max(took[code]):.2f} s" for code in took]
    # The queue by the rate of full batches, and one batch.
    longest = max(lone + _lone_batches(server, slow)) * (_QUEUE / _BATCH + 1)
    with capsys.disabled():
        print(f"\nasked {rate:g}/s, can {rate / 2:g}/s: {', '.join(words)}")
        print(f"  by what lone batches take none should wait longer than {longest:.2f} s")
    assert took.keys() == {200, 503}
    # What is documented, and far more than a busy machine adds to nine of ten.
    assert statistics.quantiles(took[200], n=10)[-1] < _GENEROUS * longest
    # What is refused is told at once, and not when its turn would have come.
    assert statistics.median(took[503]) < statistics.median(took[200])
    assert all(is_clean(reply) for reply, _ in found if reply.status == 503)
    assert max(waiting) <= _QUEUE
    assert len({reply.body for reply, _ in found if reply.ok}) == 1
    with server.client() as client:
        assert {body: client.predict("troubled", body).json() for body in expected} == expected


def test_no_worker_outlives_a_killed_server_into_the_next(server: TorchServe) -> None:
    def hang() -> None:
        with server.client(timeout=60) as client, pytest.raises(RuntimeError):
            client.predict("troubled", grey(HANG))

    thread = threading.Thread(target=hang)
    thread.start()
    time.sleep(1)
    kill(server.running.pid)
    thread.join()
    left = [one.pid for one in find_workers(temp_folder(server.home))]
    server.start()
    assert left
    assert not any(is_alive(pid) for pid in left)
    server.wait_ready(120)
