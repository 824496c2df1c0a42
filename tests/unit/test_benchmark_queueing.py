from __future__ import annotations

import statistics

import pytest

from benchmarks.queueing import Server, latencies


@pytest.mark.parametrize("share", [0.3, 0.6, 0.8])
def test_without_batches_it_waits_as_pollaczek_and_khinchine_say(share: float) -> None:
    found = latencies(Server(alone=10, full=10, batch=1), share)
    # Of a fixed service time s: a mean wait of s * share / (2 * (1 - share)).
    expected = 10 + 10 * share / (2 * (1 - share))
    assert statistics.fmean(found) == pytest.approx(expected, rel=0.03)


def test_who_waits_goes_together() -> None:
    server = Server(alone=10, full=31, batch=8, overhead=2)
    assert [server.busy(count) for count in (1, 2, 8)] == [10, 13, 31]
    found = latencies(server, 0.001, requests=2000)
    # Nearly nobody meets another.
    assert statistics.median(found) == pytest.approx(12)
    assert max(latencies(server, 0.9, requests=2000)) > 2 * 31
