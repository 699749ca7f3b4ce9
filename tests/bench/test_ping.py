"""Percentiles of latencies."""

import pytest

from bench.ping import Latency, percentile


@pytest.mark.parametrize(
    ("share", "value"), [(0.0, 1), (0.5, 50), (0.501, 51), (0.99, 99), (1.0, 100)]
)
def test_percentile_is_the_nearest_rank(share: float, value: int) -> None:
    assert percentile(list(range(100, 0, -1)), share) == value


def test_percentile_of_one_value_is_that_value() -> None:
    assert [percentile([7.0], share) for share in (0.0, 0.5, 0.99)] == [7.0, 7.0, 7.0]


def test_latency_is_in_milliseconds() -> None:
    latency = Latency.of([0.001] * 98 + [0.002, 0.5])
    assert (latency.count, latency.p50_ms, latency.p99_ms, latency.most_ms) == (
        100,
        1.0,
        2.0,
        500.0,
    )
