"""The ring: tokens that stay, walks against a slow one, preference lists in distinct zones."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.ring import (
    TOKENS_MAX,
    TOKENS_PER_MEMBER,
    Member,
    Ring,
    distinct_zones,
    position_of,
    token_counts,
    token_of,
)
from cluster.slot import SLOT_COUNT, Slot

slots = st.integers(0, SLOT_COUNT - 1)
weights = st.lists(st.integers(1, 1000), min_size=1, max_size=50)


def members(*zones: str) -> list[Member]:
    return [Member(f"n{index}", zone=zone) for index, zone in enumerate(zones)]


def test_slots_lie_in_order_and_evenly_on_the_whole_ring() -> None:
    positions = [position_of(slot) for slot in range(SLOT_COUNT)]
    gaps = {b - a for a, b in zip(positions, [*positions[1:], 1 << 64], strict=True)}
    assert gaps == {(1 << 64) // SLOT_COUNT}
    assert positions[0] == 0


def test_tokens_are_where_they_always_were() -> None:
    """A change would move the data of every cluster."""
    assert token_of("a", 0) == 0xD7760289943C266
    assert token_of("a", 1) == 0xF25F1E41C3649EE9


@given(weights=weights)
def test_token_counts_follow_weights(weights: list[int]) -> None:
    counts = token_counts(weights)
    assert min(counts) >= 1
    total = min(TOKENS_PER_MEMBER * len(weights), TOKENS_MAX)
    for weight, count in zip(weights, counts, strict=True):
        assert count == 1 or abs(count - total * weight / sum(weights)) <= 0.5


def test_many_members_share_a_bounded_number_of_tokens() -> None:
    assert sum(token_counts([1] * 1024)) == TOKENS_MAX
    assert token_counts([7] * 5000) == [1] * 5000


def test_a_heavier_member_keeps_its_tokens() -> None:
    light = Ring([Member("a", 1), Member("b", 1)])
    heavy = Ring([Member("a", 3), Member("b", 1)])
    of_a = [
        {p for p, owner in zip(ring.positions, ring.owners, strict=True) if owner == 0}
        for ring in (light, heavy)
    ]
    assert of_a[0] < of_a[1]


@given(slot=slots)
def test_a_walk_meets_every_member_once_in_the_order_of_tokens(slot: Slot) -> None:
    ring = Ring([*members(*"aabbc"), Member("leaving", 0)])
    nearest = {
        member.id: min(
            (token - position_of(slot)) % (1 << 64)
            for token, owner in zip(ring.positions, ring.owners, strict=True)
            if ring.members[owner] is member
        )
        for member in ring.members
    }
    assert [member.id for member in ring.walk(slot)] == sorted(nearest, key=nearest.__getitem__)


def test_an_empty_ring_has_nobody_to_walk_to() -> None:
    assert list(Ring([]).walk(0)) == []
    assert Ring([]).preference(5, {"": 3}) == ()


@pytest.mark.parametrize(
    ("zones", "count", "chosen"),
    [
        ("abc", 3, "n0 n1 n2"),
        ("aabc", 3, "n0 n2 n3"),
        ("aaab", 3, "n0 n3 n1"),
        ("aaaa", 2, "n0 n1"),
        ("ab", 3, "n0 n1"),
        ("aabb", 0, ""),
    ],
)
def test_zones_are_distinct_while_zones_remain(zones: str, count: int, chosen: str) -> None:
    assert " ".join(m.id for m in distinct_zones(members(*zones), count)) == chosen


@given(slot=slots)
def test_a_preference_list_has_n_of_each_data_centre(slot: Slot) -> None:
    ring = Ring(
        [Member(f"{dc}{i}", zone=str(i % 2), data_centre=dc) for dc in "xyz" for i in range(4)]
    )
    chosen = ring.preference(slot, {"x": 3, "y": 2, "z": 0})
    assert [sum(node[0] == dc for node in chosen) for dc in "xyz"] == [3, 2, 0]
    assert {int(node[1]) % 2 for node in chosen if node[0] == "y"} == {0, 1}
    walked = [member.id for member in ring.walk(slot)]
    assert list(chosen) == sorted(chosen, key=walked.index)


def test_a_negative_weight_is_refused() -> None:
    with pytest.raises(ValueError, match="the weight of a is negative: -1"):
        Member("a", -1)
