"""Placement and its table: the promises of a claim, over histories of joins and leaves; its bytes."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import pytest
from blake3 import blake3
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from cluster.claim import (
    DIGEST_BYTES,
    Claim,
    ClaimFormatError,
    Move,
    Overload,
    decode,
    diff,
    moved_count,
    violations,
)
from cluster.placement import claim
from cluster.quota import EXCESS_MAX, fair_primaries, fair_shares, replica_quota, rounded
from cluster.ring import Member
from cluster.slot import SLOT_COUNT

ROOT = Path(__file__).parent.parent.parent
THREE = {"": 3}

few = settings(max_examples=8, deadline=None, suppress_health_check=list(HealthCheck))


def cluster(*zones: str, weights: Sequence[int] = (1,)) -> list[Member]:
    """A member for each zone, named n00, n01, ..., with the weights in turn."""
    return [
        Member(f"n{index:02}", weights[index % len(weights)], zone)
        for index, zone in enumerate(zones)
    ]


def flat(count: int, weights: Sequence[int] = (1,)) -> list[Member]:
    return cluster(*[""] * count, weights=weights)


def check(made: Claim, members: Sequence[Member], n_by_dc: Mapping[str, int]) -> None:
    """What holds for every claim, however its zones lie."""
    for name, n in n_by_dc.items():
        inside = [m for m in members if m.data_centre == name and m.weight]
        length = min(n, len(inside))
        if not length:
            assert name not in made.tables
            continue
        ids = {member.id for member in inside}
        for row in set(made.tables[name]):
            assert len(row) == length
            assert len(set(row)) == length
            assert ids.issuperset(row)
        replicas, primaries = made.replica_counts(name), made.primary_counts(name)
        weights = [member.weight for member in inside]
        shares = zip(inside, fair_shares(weights, length), fair_primaries(weights), strict=True)
        for member, replica_share, primary_share in shares:
            assert replicas[member.id] <= max(replica_share * EXCESS_MAX, replica_share + 1)
            assert primaries[member.id] <= max(primary_share * EXCESS_MAX, primary_share + 1)
    for found in violations(made, members, n_by_dc):
        assert found == replace(found, short=(), strangers=(), replicas=(), primaries=())


def test_an_even_cluster_is_even_to_the_slot() -> None:
    made = claim(flat(5), THREE)
    check(made, flat(5), THREE)
    replicas, primaries = made.replica_counts(""), made.primary_counts("")
    assert max(replicas.values()) - min(replicas.values()) <= 1
    assert max(primaries.values()) - min(primaries.values()) <= 1
    assert violations(made, flat(5), THREE) == []


@pytest.mark.parametrize(("count", "n"), list(itertools.product(range(1, 6), range(1, 5))))
def test_small_clusters_exhaustively(count: int, n: int) -> None:
    """Every small size and N, in no, even and uneven zones: a join, then a leave of the first."""
    for zones in ("", "abc", "aab"):
        names = [zones[i % len(zones)] if zones else "" for i in range(count + 1)]
        members = cluster(*names)
        before = claim(members[:-1], {"": n})
        check(before, members[:-1], {"": n})
        joined = claim(members, {"": n}, before)
        check(joined, members, {"": n})
        left = claim(members[1:], {"": n}, joined)
        check(left, members[1:], {"": n})


member_lists = st.lists(
    st.tuples(st.sampled_from([1, 1, 1, 2, 3, 8]), st.sampled_from("abcd")), min_size=1, max_size=12
)


@few
@example(kinds=[(8, "a"), (1, "b"), (1, "b"), (1, "c")], n=3, gone=0)
@given(kinds=member_lists, n=st.integers(1, 5), gone=st.integers(0, 11))
def test_any_layout_keeps_the_promises(kinds: list[tuple[int, str]], n: int, gone: int) -> None:
    members = [Member(f"n{i:02}", weight, zone) for i, (weight, zone) in enumerate(kinds)]
    made = claim(members, {"": n})
    check(made, members, {"": n})
    fewer = [m for m in members if m.id != f"n{gone:02}"]
    left = claim(fewer, {"": n}, made)
    check(left, fewer, {"": n})
    back = claim(members, {"": n}, left)
    check(back, members, {"": n})


@pytest.mark.parametrize("zones", ["", "abc", "abcd"])
@pytest.mark.parametrize("weights", [(1,), (1, 2, 4)])
@pytest.mark.parametrize("count", [4, 9, 24])
def test_joins_and_leaves_move_little(count: int, weights: Sequence[int], zones: str) -> None:
    names = [zones[i % len(zones)] if zones else "" for i in range(count + 1)]
    if count == 4 or (zones == "abc" and (count == 9 or weights != (1,))):
        names = [""] * (count + 1)  # These zones cannot be even: repairing them moves more.
    members = cluster(*names, weights=weights)
    before = claim(members[:-1], THREE)
    joined = claim(members, THREE, before)
    newcomer = joined.replica_counts("")[members[-1].id]
    assert moved_count(diff(before, joined)) <= 1.15 * newcomer
    left = claim(members[1:], THREE, joined)
    leaver = joined.replica_counts("")[members[0].id]
    assert moved_count(diff(joined, left)) <= 1.15 * leaver


def test_a_weight_change_moves_what_the_weight_says() -> None:
    members = flat(6)
    before = claim(members, THREE)
    heavier = [replace(members[0], weight=2), *members[1:]]
    after = claim(heavier, THREE, before)
    check(after, heavier, THREE)
    gained = after.replica_counts("")["n00"] - before.replica_counts("")["n00"]
    assert gained > 4000
    assert moved_count(diff(before, after)) <= 1.15 * gained


def test_the_same_members_move_nothing() -> None:
    members = cluster(*"abcabcab", weights=(1, 3))
    made = claim(members, THREE)
    assert claim(members, THREE, made) == made


def test_others_keep_their_lists_when_a_node_leaves() -> None:
    members = flat(10)
    before = claim(members, THREE)
    after = claim(members[1:], THREE, before)
    for move in diff(before, after):
        if "n00" not in before.preference(move.slot):
            assert not move.gained
        elif move.gained:
            assert move.lost == ("n00",)


def test_weight_zero_owns_nothing_and_is_given_no_tokens() -> None:
    members = flat(4)
    before = claim(members, THREE)
    leaving = [replace(members[0], weight=0), *members[1:]]
    after = claim(leaving, THREE, before)
    assert after.owned("n00") == ()
    assert after == claim(members[1:], THREE, before)


def test_n_larger_than_the_cluster_lists_every_node() -> None:
    made = claim(flat(2), {"": 5})
    assert {tuple(sorted(row)) for row in made.tables[""]} == {("n00", "n01")}
    assert violations(made, flat(2), {"": 5}) == []


def test_n_can_grow_and_shrink_and_moves_only_the_difference() -> None:
    members = flat(7)
    three = claim(members, THREE)
    five = claim(members, {"": 5}, three)
    check(five, members, {"": 5})
    assert moved_count(diff(three, five)) == 2 * SLOT_COUNT
    again = claim(members, THREE, five)
    check(again, members, THREE)
    assert moved_count(diff(five, again)) <= 0.05 * SLOT_COUNT


def test_zones_are_distinct_where_they_can_be() -> None:
    members = cluster(*"aaabbbccc")
    made = claim(members, THREE)
    zone_of = {member.id: member.zone for member in members}
    assert {len({zone_of[node] for node in row}) for row in made.tables[""]} == {3}
    # The same with one more zone, and without one of the nodes.
    more = [*members, Member("x", zone="d")]
    assert violations(claim(more, THREE, made), more, THREE) == []


def test_a_lone_node_in_a_new_zone_is_no_replica_of_everything() -> None:
    members = cluster(*"aaaaabbbbb")
    before = claim(members, THREE)
    assert violations(before, members, THREE) == []
    more = [*members, Member("lone", zone="c")]
    made = claim(more, THREE, before)
    check(made, more, THREE)
    fair = fair_shares([1] * 11, 3)[0]
    assert fair / EXCESS_MAX - 1 <= made.replica_counts("")["lone"] <= fair * EXCESS_MAX + 1
    (found,) = violations(made, more, THREE)
    # Every slot without it lies in two zones only, and that is said.
    assert set(found.crowded) == set(range(SLOT_COUNT)) - set(made.owned("lone"))
    # It degrades no further: both old zones are in every list.
    zone_of = {member.id: member.zone for member in more}
    assert all({zone_of[n] for n in row} >= {"a", "b"} for row in made.tables[""])


def test_a_change_of_zones_is_repaired() -> None:
    members = cluster(*"aabbcc")
    before = claim(members, THREE)
    swapped = [replace(m, zone="abcabc"[i]) for i, m in enumerate(members)]
    assert violations(before, swapped, THREE)[0].crowded
    after = claim(swapped, THREE, before)
    check(after, swapped, THREE)
    assert violations(after, swapped, THREE) == []


def test_data_centres_are_placed_apart() -> None:
    members = [Member(f"{dc}{i}", data_centre=dc) for dc in ("east", "west") for i in range(4)]
    ns = {"west": 2, "east": 3, "nowhere": 3}
    made = claim(members, ns)
    check(made, members, ns)
    assert list(made.tables) == ["east", "west"]
    assert len(made.preference(77)) == 5
    assert made.preference(77) == made.preference(77, "east") + made.preference(77, "west")
    assert made.preference(77, "nowhere") == ()
    fewer = [m for m in members if m.id != "west0"]
    after = claim(fewer, ns, made)
    assert {move.data_centre for move in diff(made, after)} == {"west"}


def test_runs_of_slots_stay_long() -> None:
    """CLUSTER SLOTS: about a run per token, and a history of changes does not shatter it."""
    members = flat(12)
    made = claim(members[:6], THREE)
    for count in range(7, 13):
        made = claim(members[:count], THREE, made)
    for count in range(1, 7):
        made = claim(members[count:], THREE, made)
    runs = list(made.runs(""))
    assert len(runs) < 600
    assert [first for first, _, _ in runs[1:]] == [last + 1 for _, last, _ in runs[:-1]]
    assert (runs[0][0], runs[-1][1]) == (0, SLOT_COUNT - 1)


def test_the_order_of_members_does_not_matter() -> None:
    members = cluster(*"abcabca", weights=(1, 2))
    assert claim(members[::-1], THREE).digest == claim(members, THREE).digest


@pytest.mark.parametrize("seed", ["0", "1"])
def test_every_process_computes_the_same(seed: str) -> None:
    program = (
        "from tests.cluster.test_claim import *\n"
        "a = claim(cluster(*'abcabcab', weights=(1, 3)), THREE)\n"
        "print(claim(cluster(*'abcabcabca', weights=(1, 3))[1:], THREE, a).digest.hex())"
    )
    answer = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONHASHSEED": seed},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    before = claim(cluster(*"abcabcab", weights=(1, 3)), THREE)
    here = claim(cluster(*"abcabcabca", weights=(1, 3))[1:], THREE, before)
    assert answer.stdout.strip() == here.digest.hex()


# The table.


def table(*lists: Sequence[str]) -> Claim:
    """A claim with these lists in turn."""
    return Claim({"": tuple(tuple(lists[slot % len(lists)]) for slot in range(SLOT_COUNT))})


def test_what_a_node_owns() -> None:
    made = table("ab", "bc")
    assert made.owned("a") == tuple(range(0, SLOT_COUNT, 2))
    assert made.owned("b") == tuple(range(SLOT_COUNT))
    assert made.owned("z") == ()
    assert made.primary_counts("") == {"a": SLOT_COUNT // 2, "b": SLOT_COUNT // 2}


def test_a_diff_tells_copies_from_reordering() -> None:
    moves = diff(table("ab", "ab", "ab", "ab"), table("ab", "ba", "ac", "dc"))
    assert moves[:3] == [
        Move(1, "", (), ()),
        Move(2, "", ("c",), ("b",)),
        Move(3, "", ("d", "c"), ("a", "b")),
    ]
    assert moved_count(moves) == 3 * SLOT_COUNT // 4


def test_violations_name_what_is_wrong() -> None:
    members = [Member("a", zone="x"), Member("b", zone="x"), Member("c", zone="y")]
    (found,) = violations(table("ab", "ab", "ac", "az"), members, {"": 2})
    assert found.crowded[:4] == (0, 1, 3, 4)
    assert found.short == tuple(range(3, SLOT_COUNT, 4))
    assert found.strangers == ("z",)
    fair = SLOT_COUNT * 2 / 3
    assert found.replicas == (Overload("a", SLOT_COUNT, fair),)
    assert found.primaries == (Overload("a", SLOT_COUNT, SLOT_COUNT / 3),)


def test_a_data_centre_without_a_table_is_short_everywhere() -> None:
    (found,) = violations(Claim({}), [Member("a")], {"": 1})
    assert len(found.short) == SLOT_COUNT


@few
@given(
    count=st.integers(1, 9),
    n=st.integers(1, 4),
    names=st.lists(st.text(max_size=4), min_size=1, max_size=3, unique=True),
)
def test_a_claim_gives_itself_back(count: int, n: int, names: list[str]) -> None:
    members = [Member(f"é{dc}{i}", data_centre=dc) for dc in names for i in range(count)]
    made = claim(members, dict.fromkeys(names, n))
    read = decode(made.encoded)
    assert read == made
    assert read.encoded == made.encoded
    assert decode(Claim({}).encoded) == Claim({})


def test_equal_lists_are_one_tuple() -> None:
    for made in (claim(flat(5), THREE), decode(claim(flat(5), THREE).encoded)):
        assert len({id(row) for row in made.tables[""]}) == len(set(made.tables[""]))


def test_damage_is_noticed_wherever_it_is() -> None:
    data = table("ab", "c").encoded[:200]
    whole = claim(flat(3), THREE).encoded
    for cut in (0, 1, 15, 16, 17, len(whole) - 1):
        with pytest.raises(ClaimFormatError):
            decode(whole[:cut])
    for place in range(len(whole)):
        with pytest.raises(ClaimFormatError, match="digest"):
            decode(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
    with pytest.raises(ClaimFormatError):
        decode(data)


def sealed(body: bytes) -> bytes:
    return body + blake3(body).digest(DIGEST_BYTES)


@pytest.mark.parametrize(
    ("body", "what"),
    [
        (b"\2\0", "format version 2, and only 1 is known"),
        (b"\1", "it ends too early"),
        (b"\1\0\0", "bytes follow its end"),
        (b"\1\x81\x02", "257 where at most 256 may stand"),
        (b"\1\xff\xff\xff\xff\xff\1", "a number is too long"),
        (b"\1\1\5a", "5 where at most 1 may stand"),
        (b"\1\1\1\xff\1\1a\0", "a name is not UTF-8"),
        (b"\1\1\0\1\1a\0", "it has 0 slots of 16384"),
        (b"\1\1\0\1\1a\1\x81\x80\1\1\0", "16385 where at most 16384 may stand"),
        (b"\1\1\0\1\1a\1\x80\x80\1\2\0\0", "2 where at most 1 may stand"),
        (b"\1\1\0\2\1a\1b\1\x80\x80\1\2\0\0", "a node stands twice in a list"),
        (b"\1\1\0\1\1a\1\x80\x80\1\1\1", "1 where at most 0 may stand"),
    ],
)
def test_malformed_claims_are_refused(body: bytes, what: str) -> None:
    with pytest.raises(ClaimFormatError, match=what):
        decode(sealed(body))


# Quotas.


@given(
    weights=st.lists(st.integers(1, 100), min_size=1, max_size=12),
    n=st.integers(1, 12),
    zones=st.lists(st.integers(0, 3), min_size=12, max_size=12),
)
def test_quotas_add_up_and_stay_near_the_fair_share(
    weights: list[int], n: int, zones: list[int]
) -> None:
    n = min(n, len(weights))
    zones = [sorted(set(zones[: len(weights)])).index(z) for z in zones[: len(weights)]]
    shares = fair_shares(weights, n)
    assert sum(shares) == n * SLOT_COUNT
    assert max(shares) <= SLOT_COUNT
    quota = replica_quota(weights, zones, n, [0] * len(weights))
    assert sum(quota.replicas) == n * SLOT_COUNT
    assert all(0 <= q <= SLOT_COUNT for q in quota.replicas)
    assert all(q <= max(s * EXCESS_MAX, s + 1) for q, s in zip(quota.replicas, shares, strict=True))
    assert sum(quota.zone_least) <= n <= sum(quota.zone_most)


def test_what_a_heavy_node_cannot_take_goes_to_the_others_by_weight() -> None:
    assert fair_shares([10, 2, 1, 1], 2, 100) == [100, 50, 25, 25]


def test_rounding_leaves_the_odd_slot_where_it_is() -> None:
    thirds = [Fraction(10, 3)] * 3
    assert rounded(thirds, 10, [0, 0, 0]) == [4, 3, 3]
    assert rounded(thirds, 10, [3, 3, 4]) == [3, 3, 4]
