"""The expiry index against a dict of earliest seconds."""

from __future__ import annotations

import random
from itertools import islice

import pytest

from cluster.expiry import ExpiryIndex

Found = list[tuple[int, bytes]]


def second_of(ms: int) -> int:
    return (ms + 999) // 1000


def test_a_row_is_due_once_and_not_before_its_time() -> None:
    index = ExpiryIndex()
    index.add(7, b"row", 1500)
    assert list(index.due(1999)) == []
    assert list(index.due(2000)) == [(7, b"row")]
    assert list(index.due(9999)) == []
    assert len(index) == 0


def test_times_are_rounded_up_so_that_nothing_is_due_too_early() -> None:
    for ms, due_ms in [(1, 1000), (999, 1000), (1000, 1000), (1001, 2000)]:
        index = ExpiryIndex()
        index.add(0, b"row", ms)
        assert list(index.due(due_ms - 1)) == []
        assert list(index.due(due_ms)) == [(0, b"row")]


def test_a_row_moved_later_is_looked_at_at_its_earliest_time_and_costs_one_entry() -> None:
    index = ExpiryIndex()
    for ms in range(1000, 1_001_000, 1000):
        index.add(0, b"row", ms)
        index.add(0, b"row", 1000)
    assert len(index) == sum(map(len, index._rows.values())) == 1
    assert list(index.due(1000)) == [(0, b"row")]
    assert list(index.due(10_000_000)) == []


def test_a_row_moved_earlier_is_due_then_and_not_again() -> None:
    index = ExpiryIndex()
    index.add(0, b"row", 9000)
    index.add(0, b"row", 2000)
    assert list(index.due(2000)) == [(0, b"row")]
    assert list(index.due(9000)) == []


def test_a_row_put_back_is_due_once_more() -> None:
    index = ExpiryIndex()
    index.add(0, b"row", 9000)
    index.add(0, b"row", 2000)
    assert list(index.due(2000)) == [(0, b"row")]
    index.add(0, b"row", 9000)  # Where its first entry still lies.
    assert list(index.due(9000)) == [(0, b"row")]
    assert len(index) == 0


def test_who_stops_in_the_middle_goes_on_there() -> None:
    index = ExpiryIndex()
    rows = {b"%d" % number for number in range(10)}
    for row in rows:
        index.add(0, row, 1000)
    first = [row for _, row in islice(index.due(1000), 4)]
    assert len(index) == 6
    index.add(0, b"late", 1000)
    rest = [row for _, row in index.due(1000)]
    assert len(first) == 4
    assert sorted(first + rest) == sorted(rows | {b"late"})


def test_clear_forgets_everything() -> None:
    index = ExpiryIndex()
    index.add(0, b"row", 1000)
    index.clear()
    assert len(index) == 0
    assert list(index.due(10_000)) == []
    index.add(0, b"row", 2000)
    assert list(index.due(2000)) == [(0, b"row")]


@pytest.mark.parametrize("seed", range(30))
def test_against_a_dict(seed: int) -> None:
    rng = random.Random(seed)
    index = ExpiryIndex()
    model: dict[bytes, int] = {}
    now_ms = 0
    for _ in range(600):
        row = b"%d" % rng.randrange(40)
        if rng.random() < 0.7:
            at_ms = now_ms + rng.randrange(1, 20_000)
            index.add(0, row, at_ms)
            model[row] = min(model.get(row, 1 << 60), second_of(at_ms))
        else:
            now_ms += rng.randrange(4000)
            expected = {row for row, second in model.items() if second * 1000 <= now_ms}
            found = [row for _, row in islice(index.due(now_ms), rng.choice([1, 3, 1000]))]
            assert len(set(found)) == len(found)
            assert set(found) <= expected
            assert len(found) in (1, 3) or set(found) == expected
            for row in found:
                del model[row]
        assert len(index) == len(model)
