"""Buckets and windows."""

import random

from bench.openloop_histogram import WINDOW_TICKS, Recorder, bound_of, merged, percentile_ms


def test_a_bound_is_never_below_and_at_most_a_thirtysecond_above() -> None:
    for latency_us in [*range(5000), 10**6, 10**6 + 1, 2**20, 2**20 + 1, 10**9]:
        bound = bound_of(latency_us)
        assert latency_us <= bound <= latency_us * (1 + 1 / 32) + 1e-9
        assert bound_of(bound) == bound


def test_percentiles_are_those_of_the_sorted_values() -> None:
    rng = random.Random(1)
    values = sorted(int(rng.expovariate(1 / 3000)) for _ in range(2001))
    recorder = Recorder(1)
    for value in values:
        recorder.add(0, value, 1)
    for share, exact in [(0.5, values[1000]), (0.99, values[1980]), (1.0, values[-1])]:
        found = percentile_ms(recorder.windows[0], share)
        assert found is not None
        assert exact <= found * 1000 <= exact * 1.04 + 1


def test_nothing_has_no_percentile() -> None:
    assert percentile_ms({}, 0.5) is None


def test_a_latency_belongs_to_the_window_in_which_it_was_due() -> None:
    recorder = Recorder(2)
    recorder.add(WINDOW_TICKS - 1, 7, 3)
    recorder.add(WINDOW_TICKS, 9, 2)
    recorder.add(WINDOW_TICKS, 9, 1)
    assert recorder.windows == [{7: 3}, {9: 3}]


def test_merging_adds_up() -> None:
    assert merged([{1: 2, 3: 4}, {3: 1}, {}]) == {1: 2, 3: 5}
