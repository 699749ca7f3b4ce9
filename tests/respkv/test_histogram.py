"""Histograms: bounds are right wherever the buckets' width changes, and percentiles are near the exact ones."""

from __future__ import annotations

import random

import pytest

from respkv.histogram import FINE_COUNT, FINE_SHIFT, Histogram


@pytest.mark.parametrize(
    "elapsed_ns",
    [0, 1, 255, 256, 65_535, 65_536, 65_537, 131_071, 131_072, 10**6, 10**9, 2**40 + 1],
)
def test_a_call_is_below_its_bound_and_near_it(elapsed_ns: int) -> None:
    histogram = Histogram()
    histogram.add(elapsed_ns)
    [(bound_ns, count)] = histogram.buckets()
    assert count == histogram.count == 1
    assert elapsed_ns < bound_ns <= max(elapsed_ns + 256, elapsed_ns * 17 // 16 + 1)


def test_what_the_runner_writes_itself_counts() -> None:
    histogram = Histogram()
    histogram.fine[300 >> FINE_SHIFT] += 1
    with pytest.raises(IndexError):
        histogram.fine[FINE_COUNT << FINE_SHIFT >> FINE_SHIFT] += 1
    assert histogram.buckets() == [(512, 1)]


def test_percentiles_are_near_the_exact_ones() -> None:
    rng = random.Random(5)
    times = sorted(int(rng.lognormvariate(9, 2)) for _ in range(5000))
    histogram = Histogram()
    for time in times:
        histogram.add(time)
    for percent, found_us in zip(
        (50, 99, 99.9), histogram.percentiles_us((50, 99, 99.9)), strict=True
    ):
        exact_ns = times[-(-len(times) * int(percent * 10) // 1000) - 1]
        assert exact_ns < found_us * 1000 <= max(exact_ns + 256, exact_ns * 17 / 16 + 1)


def test_percentiles_of_one_call_are_that_call() -> None:
    histogram = Histogram()
    histogram.add(1000)
    assert histogram.percentiles_us((50, 99, 99.9)) == [1.024] * 3


def test_powers_are_cumulative_and_have_redis_labels() -> None:
    histogram = Histogram()
    for elapsed_ns in (10, 1023, 1024, 5000, 30_000, 60_000, 130_000, 1_000_000):
        histogram.add(elapsed_ns)
    assert histogram.by_powers_us() == {1: 2, 2: 3, 8: 4, 33: 5, 66: 6, 132: 7, 1056: 8}


def test_calls_that_were_timed_together_count_each() -> None:
    histogram = Histogram()
    histogram.add(300, 5)
    histogram.add(100_000, 3)
    assert [count for _, count in histogram.buckets()] == [5, 3]


def test_clear_forgets_in_place() -> None:
    histogram = Histogram()
    fine = histogram.fine
    histogram.add(10)
    histogram.add(10**6)
    histogram.clear()
    assert histogram.count == 0
    assert histogram.fine is fine
