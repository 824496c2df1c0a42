"""The arithmetic of benchmarks/serving."""

from __future__ import annotations

from itertools import pairwise
from statistics import mean

import pytest

from benchmarks.serving.poisson import summary
from benchmarks.serving.stats import Spread, ratio
from marsmith.arrivals import percentile, poisson_arrivals


def test_a_percentile_is_the_least_value_that_enough_values_do_not_exceed() -> None:
    values = [float(value) for value in range(100, 0, -1)]
    assert [percentile(values, share) for share in (0.5, 0.95, 0.99, 1.0)] == [50, 95, 99, 100]
    assert percentile([7.0], 0.5) == 7
    # 99 of 100 values are below the one that stands out, so the 99th percentile is not it.
    assert percentile([1.0] * 99 + [1000.0], 0.99) == 1
    assert percentile([1.0] * 98 + [1000.0] * 2, 0.99) == 1000


def test_a_spread_is_the_median_with_the_extremes() -> None:
    assert Spread.of([3.0, 1.0, 10.0]) == Spread(3.0, 1.0, 10.0)
    assert Spread.of([2.0, 4.0]) == Spread(3.0, 2.0, 4.0)


def test_ratios_are_taken_within_each_round() -> None:
    # The second round was slow for both: each of the ratios is 2, that of the medians is not.
    assert ratio({0: 10.0, 1: 4.0, 2: 20.0}, {0: 5.0, 1: 2.0, 2: 10.0}) == Spread(2.0, 2.0, 2.0)
    assert ratio({0: 10.0, 2: 8.0}, {1: 5.0, 2: 4.0}) == Spread(2.0, 2.0, 2.0)


def test_there_is_no_ratio_without_a_common_round_or_to_nothing() -> None:
    assert ratio({0: 1.0}, {1: 1.0}) is None
    assert ratio({0: 1.0}, {0: 0.0}) is None
    assert ratio({}, {}) is None


def test_arrivals_are_seeded_ordered_and_as_frequent_as_asked() -> None:
    times = poisson_arrivals(50.0, 100.0, seed=1)
    assert times == poisson_arrivals(50.0, 100.0, seed=1) != poisson_arrivals(50.0, 100.0, seed=2)
    assert times == sorted(times)
    assert times[0] > 0
    assert times[-1] < 100
    # 5000 are expected with a standard deviation of 71.
    assert 4700 < len(times) < 5300


def test_gaps_between_arrivals_are_exponential() -> None:
    times = poisson_arrivals(10.0, 2000.0, seed=3)
    gaps = [later - earlier for earlier, later in pairwise(times)]
    average = mean(gaps)
    assert average == pytest.approx(0.1, rel=0.03)
    # An exponential distribution's standard deviation is its mean; even gaps would have none.
    assert mean((gap - average) ** 2 for gap in gaps) ** 0.5 == pytest.approx(0.1, rel=0.05)


def test_a_rate_must_be_above_zero() -> None:
    with pytest.raises(ValueError, match="above 0"):
        poisson_arrivals(0.0, 1.0, seed=1)


def test_an_open_loop_is_told_in_milliseconds() -> None:
    found = summary(20.0, [0.010, 0.020, 0.030, 0.200], [0.0, 0.001, 0.002, 0.003], 1, 0.5)
    # All that were sent, and those of them that failed.
    assert (found["requests"], found["failed"]) == (5, 1)
    assert found["mean"] == pytest.approx(65)
    assert [found[key] for key in ("p50", "p99", "late_p99")] == pytest.approx([20, 200, 3])


def test_an_open_loop_without_answers_has_no_latencies() -> None:
    assert summary(1.0, [], [], 0, 0.5) == {"rate": 1.0, "requests": 0, "failed": 0, "seconds": 0.5}
    refused = summary(1.0, [], [0.002], 1, 0.5)
    assert refused.pop("late_p99") == 2.0
    assert refused == {"rate": 1.0, "requests": 1, "failed": 1, "seconds": 0.5}
