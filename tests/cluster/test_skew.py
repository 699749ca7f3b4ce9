"""Clocks compared: samples, the median, verdicts; and that nobody is judged by what says nothing."""

from __future__ import annotations

from random import Random

import pytest

from cluster.member_event import ClockBack, ClockOff
from cluster.skew import BACK_SHARE, SAMPLE_AGE_MAX_MS, SAMPLE_COUNT, PeerClocks

WALL_MS = 1_000_000.0  # This node's calendar at 0 of its clock that never goes back.


def clocks(*offsets_ms: float, bound_ms: int = 1000, now_ms: float = 0.0) -> PeerClocks:
    """Node a, and peers b, c, ... whose calendars are so far ahead of a's."""
    found = PeerClocks("a", bound_ms, WALL_MS)
    for name, offset_ms in zip("bcdefgh", offsets_ms, strict=False):
        sample(found, name, offset_ms, now_ms=now_ms)
    return found


def sample(
    found: PeerClocks, name: str, offset_ms: float, *, trip_ms: float = 2.0, now_ms: float = 0.0
) -> None:
    """The message took half of the trip, so that the offset is found exactly."""
    wall_ms = WALL_MS + now_ms + offset_ms - trip_ms / 2
    found.add(name, wall_ms=wall_ms, trip_ms=trip_ms, now_ms=now_ms)


@pytest.mark.parametrize(
    ("offsets_ms", "mine_ms"),
    [
        ((), 0),
        ((0, 0), 0),
        ((5000, 0), 0),  # One peer is off, and does not move the median.
        ((5000, 5000), -5000),  # Both others agree: it is this node.
        ((5000,), -2500),  # Of two nobody can say which.
        ((300, 100, -100, -300), 0),
        ((-4000, -4010, -3990, 7), 3990),
    ],
)
def test_the_offset_is_the_distance_from_the_median_of_all(
    offsets_ms: tuple[float, ...], mine_ms: int
) -> None:
    assert clocks(*offsets_ms).offset_ms("a") == mine_ms


def test_half_the_round_trip_is_the_largest_error() -> None:
    rng = Random("trips")
    for _ in range(200):
        there, back = rng.uniform(0, 400), rng.uniform(0, 400)
        found = PeerClocks("a", 1000, WALL_MS)
        # It was sent `back` before it came, by a calendar that is 70 ms ahead.
        found.add("b", wall_ms=WALL_MS + 500 - back + 70, trip_ms=there + back, now_ms=500)
        offset_ms = found._aheads()["b"] - WALL_MS
        assert abs(offset_ms - 70) <= (there + back) / 2


def test_the_sample_with_the_shortest_trip_counts() -> None:
    found = clocks()
    for trip_ms, offset_ms in ((800, 90), (4, 10), (300, -70)):
        sample(found, "b", offset_ms, trip_ms=trip_ms)
        sample(found, "c", offset_ms, trip_ms=trip_ms)
    assert found.offset_ms("a") == -10


def test_a_trip_longer_than_the_bound_says_nothing() -> None:
    found = clocks()
    sample(found, "b", 9000, trip_ms=1001)
    assert found.offset_ms("b") is None
    sample(found, "b", 9000, trip_ms=1000)
    assert found.offset_ms("b") == 4500


def test_a_jump_of_a_peer_is_seen_after_few_samples() -> None:
    found = clocks(0, 0)
    for i in range(SAMPLE_COUNT):
        assert found.offset_ms("b") == 0
        sample(found, "b", 9000, trip_ms=50, now_ms=i)
    assert found.offset_ms("b") == 9000


def test_a_jump_of_ones_own_clock_is_seen_at_once() -> None:
    found = clocks(0, 0)
    assert found.judge(1000, WALL_MS + 1000) == []
    assert found.judge(2000, WALL_MS + 2000 + 7000) == [ClockOff("a", 7000)]
    assert found.judge(3000, WALL_MS + 3000) == [ClockBack("a", 0)]


def test_a_verdict_is_told_once_and_taken_back_well_within_the_bound() -> None:
    found = clocks(0, 0)

    def judge(ahead_ms: float) -> list[ClockOff | ClockBack]:
        return found.judge(10, WALL_MS + 10 + ahead_ms)

    assert judge(1000) == []
    assert judge(1001) == [ClockOff("a", 1001)]
    assert judge(1500) == []
    assert judge(1000 * BACK_SHARE + 1) == []
    assert "a" in found.off
    assert judge(1000 * BACK_SHARE) == [ClockBack("a", 750)]
    assert judge(1000 * BACK_SHARE + 1) == []
    assert not found.off


def test_two_clocks_that_differ_are_both_off() -> None:
    found = clocks(2002)
    assert found.judge(0, WALL_MS) == [ClockOff("a", -1001), ClockOff("b", 1001)]
    assert clocks(2000).judge(0, WALL_MS) == []


def test_isolation_does_not_make_a_bad_clock_a_good_one() -> None:
    found = clocks(5000, 5000)
    assert found.judge(0, WALL_MS) == [ClockOff("a", -5000)]
    later_ms = SAMPLE_AGE_MAX_MS + 1
    assert found.judge(later_ms, WALL_MS + later_ms) == []
    assert found.offset_ms("b") is None
    assert list(found.off) == ["a"]
    # Nor do the verdicts about others stay when nothing is known of them.
    found = clocks(5000, 0)
    found.judge(0, WALL_MS)
    assert list(found.off) == ["b"]
    found.judge(later_ms, WALL_MS + later_ms)
    assert list(found.off) == []


def test_what_is_forgotten_is_not_compared() -> None:
    found = clocks(5000, 5000, 0)
    found.forget("b")
    found.forget("nobody")
    assert found.offset_ms("b") is None
    assert found.offset_ms("a") == 0
