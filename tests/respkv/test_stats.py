"""Rates and peaks."""

from __future__ import annotations

import pytest

from respkv.stats import SAMPLES_MAX, Rate, Stats


def test_a_rate_is_that_of_the_last_samples() -> None:
    rate = Rate()
    assert rate.per_second == 0
    rate.add(0.0, 0)
    assert rate.per_second == 0
    for step in range(1, 100):
        rate.add(step / 10, step * 50 if step < 50 else 2450 + (step - 49) * 10)
    assert rate.per_second == pytest.approx(100)


def test_an_old_burst_is_forgotten() -> None:
    rate = Rate()
    rate.add(0.0, 0)
    rate.add(0.1, 100_000)
    for step in range(SAMPLES_MAX):
        rate.add(1 + step / 10, 100_000)
    assert rate.per_second == 0


def test_a_total_that_was_reset_begins_anew() -> None:
    rate = Rate()
    rate.add(0.0, 1000)
    rate.add(1.0, 0)
    rate.add(2.0, 10)
    assert rate.per_second == pytest.approx(10)


def test_samples_are_due_ten_times_a_second() -> None:
    stats = Stats(1000)
    assert stats.is_due(5.0)
    stats.sample(5.0, 1, 2, 3)
    assert not stats.is_due(5.05)
    assert stats.is_due(5.11)


def test_the_peak_stays() -> None:
    stats = Stats(1000)
    assert stats.see_memory(900) == 1000
    assert stats.see_memory(1500) == 1500
    assert stats.see_memory(1200) == 1500
