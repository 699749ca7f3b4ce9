"""How fast a compaction may read."""

from __future__ import annotations

from engine.pace import BURST_S, Pace


def read(pace: Pace, groups: int, group_bytes: int, now_s: float, *, work_s: float = 0.0) -> float:
    """Read groups, each of which takes `work_s`, and rest as told. Returns when that ended."""
    for _ in range(groups):
        now_s += work_s
        now_s += pace.rest_s(group_bytes, now_s)
    return now_s


def test_the_budget_is_kept() -> None:
    assert abs(read(Pace(1000, 5.0), 100, 50, 5.0) - 10.0) < 0.01
    # Also if the work takes a part of the time.
    assert abs(read(Pace(1000, 5.0), 100, 50, 5.0, work_s=0.04) - 10.0) < 0.1


def test_who_is_slower_than_the_budget_never_rests() -> None:
    pace = Pace(1000, 5.0)
    assert abs(read(pace, 100, 50, 5.0, work_s=0.06) - 11.0) < 0.01
    assert not any(pace.rest_s(50, 11.0 + 0.06 * number) for number in range(1, 100))


def test_what_was_not_read_in_time_is_caught_up_with_for_a_moment_only() -> None:
    pace = Pace(1000, 0.0)
    now_s = 100.0
    read_at_once = 0
    while not pace.rest_s(10, now_s):
        read_at_once += 10
    assert abs(read_at_once - 1000 * BURST_S) <= 10


def test_without_a_budget_or_when_it_is_lifted_there_is_no_rest() -> None:
    assert Pace(0, 0.0).rest_s(1 << 40, 0.0) == 0.0
    pace = Pace(1, 0.0)
    assert pace.rest_s(1000, 0.0) == 1000.0
    pace.lift()
    assert pace.rest_s(1000, 0.0) == 0.0
