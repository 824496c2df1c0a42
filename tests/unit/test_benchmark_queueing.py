from __future__ import annotations

import math
import statistics

import pytest

from benchmarks.queueing import Server, latencies


@pytest.mark.parametrize("share", [0.3, 0.6, 0.8])
def test_without_batches_it_waits_as_pollaczek_and_khinchine_say(share: float) -> None:
    found = latencies(Server(alone=10, full=10, batch=1), share)
    # Of a fixed service time s: a mean wait of s * share / (2 * (1 - share)).
    expected = 10 + 10 * share / (2 * (1 - share))
    assert statistics.fmean(found) == pytest.approx(expected, rel=0.03)


def _crommelin(servers: int, share: float) -> float:
    """The mean wait of M/D/c in service times (C. D. Crommelin 1932)."""

    def more(count: int, mean: float) -> float:
        """The chance of at least ``count`` events where ``mean`` are expected."""
        logs = (k * math.log(mean) - mean - math.lgamma(k + 1) for k in range(count))
        return max(0.0, 1 - math.fsum(map(math.exp, logs)))

    return sum(
        more(i * servers, i * servers * share) - more(i * servers + 1, i * servers * share) / share
        for i in range(1, 60)
    )


@pytest.mark.parametrize(("servers", "share"), [(2, 0.6), (4, 0.8)])
def test_several_servers_wait_as_crommelin_says(servers: int, share: float) -> None:
    assert _crommelin(1, 0.6) == pytest.approx(0.6 / (2 * (1 - 0.6)), rel=1e-3)
    found = latencies(Server(alone=10, full=10, batch=1, count=servers), share)
    wait = statistics.fmean(found) - 10
    assert wait == pytest.approx(10 * _crommelin(servers, share), rel=0.05)


def test_who_waits_goes_together() -> None:
    server = Server(alone=10, full=31, batch=8, overhead=2)
    assert [server.busy(count) for count in (1, 2, 8)] == [10, 13, 31]
    found = latencies(server, 0.001, requests=2000)
    # Nearly nobody meets another.
    assert statistics.median(found) == pytest.approx(12)
    assert max(latencies(server, 0.9, requests=2000)) > 2 * 31
