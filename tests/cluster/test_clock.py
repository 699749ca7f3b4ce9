"""Slot clocks against the obvious model, a set of dots; the hybrid clock never goes back."""

from __future__ import annotations

import itertools
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.clock import Dot, HybridClock, SlotClock

dots = st.tuples(st.integers(1, 3), st.integers(1, 6))
seen_sets = st.frozensets(dots, max_size=12)
SMALL = [(actor, counter) for actor in (1, 2) for counter in (1, 2, 3)]


def clock_of(seen: frozenset[Dot]) -> SlotClock:
    clock = SlotClock()
    for dot in sorted(seen, reverse=True):  # The order that leaves the most gaps.
        clock.add(dot)
    return clock


def state_of(clock: SlotClock) -> tuple[dict[int, int], set[Dot]]:
    return clock.base, clock.beyond


def joined(a: SlotClock, b: SlotClock) -> SlotClock:
    clock = SlotClock(dict(a.base), set(a.beyond))
    clock.join(b)
    return clock


def obvious(seen: frozenset[Dot]) -> tuple[dict[int, int], set[Dot]]:
    """The one normal form of a set of dots."""
    base = {}
    for actor in {actor for actor, _ in seen}:
        upto = next(n for n in itertools.count() if (actor, n + 1) not in seen)
        if upto:
            base[actor] = upto
    return base, {dot for dot in seen if dot[1] > base.get(dot[0], 0)}


def subsets() -> list[frozenset[Dot]]:
    return [
        frozenset(part)
        for size in range(len(SMALL) + 1)
        for part in itertools.combinations(SMALL, size)
    ]


def test_a_clock_is_the_normal_form_of_what_it_saw_in_any_order() -> None:
    for seen in subsets():
        for order in (sorted(seen), sorted(seen, reverse=True), list(seen) * 2):
            clock = SlotClock()
            for dot in order:
                clock.add(dot)
            assert state_of(clock) == obvious(seen)
            assert [dot for dot in SMALL if clock.covers(dot)] == sorted(seen)


def test_join_is_the_union_for_all_small_pairs() -> None:
    for a, b in itertools.product(subsets(), repeat=2):
        assert state_of(joined(clock_of(a), clock_of(b))) == obvious(a | b)


@given(a=seen_sets, b=seen_sets, c=seen_sets)
def test_join_is_associative_commutative_and_idempotent(
    a: frozenset[Dot], b: frozenset[Dot], c: frozenset[Dot]
) -> None:
    x, y, z = clock_of(a), clock_of(b), clock_of(c)
    assert joined(x, joined(y, z)) == joined(joined(x, y), z)
    assert joined(x, y) == joined(y, x)
    assert joined(x, x) == x
    assert state_of(joined(x, y)) == obvious(a | b)


def test_join_leaves_the_other_clock_alone() -> None:
    other = clock_of(frozenset({(1, 1), (1, 3)}))
    mine = SlotClock()
    mine.join(other)
    mine.add((1, 2))
    assert state_of(other) == ({1: 1}, {(1, 3)})
    assert state_of(mine) == ({1: 3}, set())


def test_a_gap_closes_when_the_missing_dot_comes() -> None:
    clock = SlotClock()
    for counter in (5, 3, 1):
        clock.add((7, counter))
    assert state_of(clock) == ({7: 1}, {(7, 3), (7, 5)})
    clock.add((7, 2))
    assert state_of(clock) == ({7: 3}, {(7, 5)})
    clock.add((7, 4))
    assert state_of(clock) == ({7: 5}, set())


def test_a_gap_closes_when_the_other_base_reaches_it() -> None:
    mine = clock_of(frozenset({(1, 4), (1, 5)}))
    mine.join(SlotClock({1: 3}))
    assert state_of(mine) == ({1: 5}, set())


@pytest.mark.parametrize("seed", range(20))
def test_the_hybrid_clock_only_goes_up_and_stays_past_all_it_saw(seed: int) -> None:
    rng = random.Random(seed)
    clock = HybridClock()
    highest = 0
    now_ms = 1_000_000
    for _ in range(500):
        now_ms += rng.choice([0, 0, 0, 1, 50, -20])
        if rng.random() < 0.2:
            seen = (now_ms + rng.randrange(-100, 100)) << 16 | rng.randrange(1 << 16)
            clock.observe(seen)
            highest = max(highest, seen)
        minted = clock.mint(now_ms)
        assert minted > highest
        assert minted >> 16 >= now_ms
        highest = minted


def test_the_hybrid_clock_follows_real_time_when_it_is_behind() -> None:
    clock = HybridClock()
    assert clock.mint(1000) == 1000 << 16
    assert clock.mint(1000) == (1000 << 16) + 1
    assert clock.mint(999) == (1000 << 16) + 2
    assert clock.mint(1001) == 1001 << 16
    clock.observe(5)
    assert clock.last == 1001 << 16
