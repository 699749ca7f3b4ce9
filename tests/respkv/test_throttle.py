"""Delays after ticks that wrote, stops until the store has room, and the time that both took."""

from __future__ import annotations

from respkv.throttle import Throttle


def test_a_delay_begins_with_what_was_written_and_ends_in_time() -> None:
    throttle = Throttle()
    assert not throttle.update(1.0, is_stopped=False)
    throttle.wrote(100, 0.5, 1.0)
    assert throttle.update(1.0, is_stopped=False)
    assert throttle.wakes_at_s() == 1.5
    throttle.wrote(100, 0.5, 1.4)  # A tick that only read.
    assert throttle.update(1.4, is_stopped=False)
    assert not throttle.update(1.5, is_stopped=False)
    assert throttle.wakes_at_s() == float("inf")
    assert (throttle.delayed_s, throttle.stopped_s) == (0.5, 0.0)


def test_a_stop_lasts_until_it_is_over_and_is_counted_apart() -> None:
    throttle = Throttle()
    throttle.wrote(1, 0.5, 10.0)
    assert throttle.update(10.0, is_stopped=True)
    assert throttle.wakes_at_s() == float("inf")
    assert throttle.update(12.0, is_stopped=True)
    assert not throttle.update(13.0, is_stopped=False)
    assert (throttle.delayed_s, throttle.stopped_s) == (0.0, 3.0)


def test_a_stop_that_ends_within_a_delay_leaves_the_delay() -> None:
    throttle = Throttle()
    throttle.update(1.0, is_stopped=True)
    throttle.wrote(1, 5.0, 1.0)
    assert throttle.update(2.0, is_stopped=False)
    assert throttle.wakes_at_s() == 6.0
    assert not throttle.update(7.0, is_stopped=False)
    assert (throttle.delayed_s, throttle.stopped_s) == (5.0, 1.0)
