from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from handlers.errors import ServerError
from marsmith.addresses import free_ports
from marsmith.client import Client, Refused
from marsmith.drain import (
    QUIET_SECONDS,
    InVain,
    Queue,
    QueueFull,
    arrivals,
    drain,
    drain_before_stop,
    drain_version,
    passed,
    remove_version,
    silent_workers,
)
from marsmith.processes import Running

_NEVER = 2**22 + 1  # above Linux' largest pid


def test_a_server_that_takes_no_connections_has_nothing_to_drain(tmp_path: Path) -> None:
    (port,) = free_ports(1)
    config = tmp_path / "config.properties"
    config.write_text(f"inference_address=http://127.0.0.1:{port}\n")
    told: list[str] = []
    drain_before_stop(Running(1, tmp_path, config, 0.0), 30.0, told.append)
    [words] = told
    assert words.startswith(f"nothing to wait for: http://127.0.0.1:{port} takes no connections")


class _Time:
    """Time that passes only by sleeping."""

    def __init__(self) -> None:
        self.now = 0.0

    def clock(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


class _Queue(Queue):
    """A version of nothing: lengths of its queue and who answers are given, the last for ever."""

    def __init__(self, lengths: list[int], told: list[int | None], *pids: int) -> None:
        super().__init__(Client.__new__(Client), "m", "1.0")
        object.__setattr__(self, "_lengths", lengths)
        object.__setattr__(self, "_told", told)
        object.__setattr__(self, "_pids", pids)

    def describe(self) -> dict[str, Any]:
        lengths: list[int] = object.__getattribute__(self, "_lengths")
        pids: tuple[int, ...] = object.__getattribute__(self, "_pids")
        return {
            "jobQueueStatus": {"pendingRequests": lengths[0]},
            "minWorkers": 1,
            "workers": [{"status": "READY", "pid": pid} for pid in pids],
            "responseTimeout": 20,
        }

    def pending(self) -> int:
        lengths: list[int] = object.__getattribute__(self, "_lengths")
        return lengths.pop(0) if len(lengths) > 1 else lengths[0]

    def ask_worker(self, seconds: float | None = None) -> int | None:
        told: list[int | None] = object.__getattribute__(self, "_told")
        return told.pop(0)


def _drain(queue: Queue, came: list[float], seconds: float = 30.0, **given: Any) -> float:
    """Seconds that draining takes."""
    time = _Time()
    drain(
        [queue],
        lambda: came.pop(0) if len(came) > 1 else came[0],
        seconds,
        clock=time.clock,
        sleep=time.sleep,
        **given,
    )
    return time.now


def test_an_idle_version_is_drained_when_its_worker_has_answered() -> None:
    told: list[int | None] = [None]
    assert _drain(_Queue([0], told, os.getpid()), [7]) == QUIET_SECONDS
    assert told == []


def test_a_dead_worker_holds_nothing() -> None:
    assert _drain(_Queue([0], [], _NEVER), [7]) == QUIET_SECONDS

    class _Dying(_Queue):
        def ask_worker(self, seconds: float | None = None) -> int | None:
            object.__setattr__(self, "_pids", (os.getpid(), _NEVER))
            return super().ask_worker(seconds)

    dying = _Dying([0], [os.getpid()], os.getpid(), os.getppid())
    assert _drain(dying, [7]) == QUIET_SECONDS


def test_the_last_answer_counts_however_late_it_comes() -> None:
    time = _Time()

    class _Slow(_Queue):
        def ask_worker(self, seconds: float | None = None) -> int | None:
            time.sleep(0.6)
            return super().ask_worker(seconds)

    pids = [os.getpid(), os.getppid()]
    for told, all_answered in (([*pids], True), ([pids[0]] * 2, False)):
        deadline = time.now + 1.0
        queue = _Slow([0], told, *pids)
        assert passed(queue, deadline, time.clock, time.sleep) is all_answered


def test_every_worker_must_answer() -> None:
    told: list[int | None] = [os.getpid(), os.getpid(), os.getppid()]
    assert _drain(_Queue([0], told, os.getpid(), os.getppid()), [7]) == QUIET_SECONDS
    assert told == []


def test_workers_that_do_not_tell_who_they_are_get_their_response_timeout() -> None:
    assert _drain(_Queue([0], [None], os.getpid(), os.getppid()), [7]) == QUIET_SECONDS + 20


def test_that_response_timeout_must_fit_in() -> None:
    with pytest.raises(ServerError, match=r"workers of m 1.0 do not say when they are free"):
        _drain(_Queue([0], [None], os.getpid(), os.getppid()), [7], 10)


def _silent(told: list[int | None], *pids: int) -> set[int]:
    time = _Time()
    return silent_workers(_Queue([0], told, *pids), 1.0, time.clock, time.sleep)


def test_a_worker_that_never_answers_is_silent() -> None:
    mine, other = os.getpid(), os.getppid()
    assert _silent([mine, mine, other], mine, other) == set()
    assert _silent([mine] * 20, mine, other) == {other}
    # Dead ones are no longer asked for, and who does not say who it is cannot be told
    assert _silent([mine], mine, _NEVER) == set()
    assert _silent([None], mine, other) == set()


def test_it_waits_for_the_queue_and_until_nothing_comes() -> None:
    told: list[int | None] = [None] * 9
    assert _drain(_Queue([3, 1, 0, 0], told, os.getpid()), [7]) > 2 * QUIET_SECONDS
    assert _drain(_Queue([0], told, os.getpid()), [7, 8, 8, 9, 9, 9]) > 2 * QUIET_SECONDS
    # Queued while the worker was asked
    assert _drain(_Queue([0, 1, 0], told, os.getpid()), [7]) > 2 * QUIET_SECONDS


class _ScaledToNone(_Queue):
    def describe(self) -> dict[str, Any]:
        return {**super().describe(), "minWorkers": 0, "workers": []}


def test_requests_of_a_version_scaled_to_none_are_not_waited_for() -> None:
    time, idle = _Time(), _Queue([0], [os.getpid()], os.getpid())
    with pytest.raises(ServerError, match="^not drained: 3 requests wait for m 1.0, which was sc"):
        drain([_ScaledToNone([3], []), idle], lambda: 0.0, 60, clock=time.clock, sleep=time.sleep)
    assert time.now < 5
    drain([_ScaledToNone([0], [])], lambda: 0.0, 60, clock=time.clock, sleep=time.sleep)


def test_who_removes_a_version_without_workers_is_told_how(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("marsmith.drain.Queue", lambda *given: _ScaledToNone([2], []))
    monkeypatch.setattr(Queue, "arrivals", lambda self: 7.0)
    with pytest.raises(ServerError, match="to no workers: .* give them up with --drain-timeout 0"):
        drain_version(Client.__new__(Client), "m", "1.0", 30.0)
    # Whoever stops the server gives them up already.
    with pytest.raises(InVain) as told:
        drain([_ScaledToNone([2], [])], lambda: 7.0, 30.0)
    assert str(told.value).endswith("to no workers")


def test_it_is_bounded() -> None:
    with pytest.raises(ServerError, match=r"not drained within 5 s: 3 requests wait"):
        _drain(_Queue([3], [], os.getpid()), [7], 5)


def test_a_busy_worker_is_not_waited_for_longer_than_told() -> None:
    time = _Time()

    class _Busy(_Queue):
        def ask_worker(self, seconds: float | None = None) -> int | None:
            assert seconds is not None
            time.sleep(seconds)
            raise ServerError("no answer")

    with pytest.raises(ServerError, match=r"not drained within 5 s: 0 requests wait.*under way"):
        drain([_Busy([0], [], os.getpid())], lambda: 7, 5, clock=time.clock, sleep=time.sleep)
    assert time.now == 5


def test_with_no_time_to_drain_a_version_goes_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    class _Removing(Client):
        def __init__(self) -> None:
            pass

        def unregister(self, model: str, version: str, timeout: float | None = None) -> str:
            return f"{model} {version} unregistered"

    drained: list[float] = []
    monkeypatch.setattr("marsmith.drain.drain_version", lambda *given: drained.append(given[-1]))
    for seconds in (0.0, 2.0):
        assert remove_version(_Removing(), "m", "1.0", seconds) == "m 1.0 unregistered"
    assert drained == [2.0]


class _Refusing(Client):
    """A version with a worker; its customized description fails as told, and then is answered."""

    def __init__(self, *refusals: tuple[int, str]) -> None:
        self._refusals = list(refusals)

    def describe(self, *_: Any, customized: bool = False, **__: Any) -> list[dict[str, Any]]:
        if customized and self._refusals:
            status, message = self._refusals.pop(0)
            raise Refused(f"TorchServe refuses it: {status}: {message}", status)
        workers = [{"status": "READY", "pid": os.getpid()}]
        return [{"workers": workers, "customizedMetadata": {"worker": os.getpid()}}]


# As TorchServe says it over REST and over gRPC
_FULL = 'Model "m" has no worker to serve describe request. Please use scale workers API to add'


@pytest.mark.parametrize("status", [503, 500])
def test_a_full_queue_is_no_answer_of_a_worker(status: int) -> None:
    time = _Time()
    full = (status, _FULL)
    assert passed(Queue(_Refusing(full, full), "m", "1.0"), 1.0, time.clock, time.sleep)
    assert time.now > 0
    queue = Queue(_Refusing(*[full] * 99), "m", "1.0")
    assert not passed(queue, 1.0, time.clock, time.sleep)
    assert silent_workers(queue, 1.0, time.clock, time.sleep) == {os.getpid()}
    with pytest.raises(QueueFull, match=r"the queue of m 1\.0 is full"):
        queue.ask_worker()


def test_a_worker_that_cannot_be_described_has_answered_and_a_version_that_is_gone_has_not() -> (
    None
):
    assert Queue(_Refusing((503, "Prediction failed")), "m", "1.0").ask_worker() is None
    with pytest.raises(Refused, match="404: gone"):
        Queue(_Refusing((404, "gone")), "m", "1.0").ask_worker()


def test_arrivals_of_prometheus_text() -> None:
    text = (
        "# HELP ts_inference_requests_total Torchserve prometheus metric\n"
        'ts_inference_requests_total{model_name="m",model_version="default",hostname="h",} 12.0\n'
        'ts_inference_requests_total{model_name="m",model_version="1.0",hostname="h",} 3.0\n'
        'ts_inference_requests_total{model_name="n",model_version="1.0",hostname="h",} 1.0E3\n'
        'ts_inference_latency_microseconds{model_name="m",model_version="1.0",hostname="h",} 9.0\n'
    )
    assert arrivals(text) == 1015
    assert arrivals(text, "m", "1.0") == 3
    assert arrivals(text, "m", "2.0") == 0
