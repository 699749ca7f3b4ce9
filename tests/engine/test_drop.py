"""Drops: their markers both ways, and what they hide, against the list of them."""

from __future__ import annotations

import random

import pytest

from engine.drop import (
    DropIndex,
    Marker,
    Replacements,
    hidden_count,
    hiding,
    is_hidden,
    vouched,
    with_marker,
)
from engine.manifest import ALL_TAGS, FORMAT_VERSION, Drop, Manifest
from engine.table_meta import TableMeta, TagCount

BASE = 100


def table(
    tags: dict[int, int], slots: tuple[int, int] = (0, 9), position_max: int = 5
) -> TableMeta:
    return TableMeta(
        entry_count=sum(tags.values()),
        live_count=0,
        raw_bytes=0,
        position_min=0,
        position_max=position_max,
        expiring_count=0,
        expiries_ms=(),
        key_min=slots[0].to_bytes(2, "big") + b"k",
        key_max=slots[1].to_bytes(2, "big") + b"k",
        tags={tag: TagCount(count, count) for tag, count in tags.items()},
        block_count=1,
        file_bytes=0,
    )


@pytest.mark.parametrize(
    ("marker", "row", "raw"),
    [
        (Marker(frozenset(b"ab")), b"", b"ab"),  # As format 1 wrote it.
        (Marker(frozenset([0])), b"", b"\0"),
        (Marker(None, 5, 5), b"\0\5\0\5", b""),
        (Marker(None, 258, 16384), b"\1\2\x40\0", b""),
        (Marker(frozenset([7]), 1, 2), b"\0\1\0\2", b"\7"),
    ],
)
def test_markers_both_ways(marker: Marker, row: bytes, raw: bytes) -> None:
    assert marker.encode() == (row, raw)
    assert Marker.decode(row, raw) == marker


def test_what_a_marker_covers() -> None:
    assert Marker(frozenset([1])).covers(16384, 1)
    assert not Marker(frozenset([1])).covers(5, 2)
    slots = Marker(None, 3, 4)
    assert [slots.covers(slot, 9) for slot in range(2, 6)] == [False, True, True, False]
    assert slots.drops(8) == [Drop(8, ALL_TAGS, 3, 4)]
    assert Marker(frozenset([2, 1])).drops(8) == [Drop(8, 1), Drop(8, 2)]


@pytest.mark.parametrize("seed", range(60))
def test_a_list_made_of_markers_hides_what_the_markers_say(seed: int) -> None:
    """Whatever was joined or replaced: for tables up to the memtable's beginning, which are all there are."""
    rng = random.Random(seed)
    old = [Drop(rng.randrange(BASE), rng.choice([1, 2, ALL_TAGS]), 2, 5) for _ in range(3)]
    drops = list(old)
    markers = []
    for position in range(BASE + 1, BASE + 1 + rng.randrange(8)):
        low = rng.randrange(10)
        marker = rng.choice(
            [
                Marker(frozenset(rng.sample([1, 2, 3], 2))),
                Marker(None, low, min(9, low + rng.randrange(3))),
                Marker(frozenset([rng.choice([1, 2])]), low, min(9, low + rng.randrange(3))),
            ]
        )
        markers.append(marker)
        drops = with_marker(drops, marker, position, BASE)
    index = DropIndex(drops)
    for slot in range(10):
        for tag in (1, 2, 3):
            for position_max in (0, 50, BASE):
                said = any(marker.covers(slot, tag) for marker in markers) or any(
                    d.tag in (tag, ALL_TAGS) and d.slot_min <= slot <= d.slot_max
                    for d in old
                    if position_max < d.position
                )
                assert index.hides(slot, tag, position_max) == said
            # What is flushed of this memtable ends above the last marker.
            assert not index.hides(slot, tag, BASE + 10)
    assert [drop for drop in drops if drop.position <= BASE] == old


def test_releasing_slots_one_by_one_takes_one_drop() -> None:
    drops: list[Drop] = []
    for number, slot in enumerate([5, 6, 7, 4, 9, 8, 2]):
        drops = with_marker(drops, Marker(None, slot, slot), BASE + 1 + number, BASE)
    assert drops == [Drop(BASE + 6, ALL_TAGS, 4, 9), Drop(BASE + 7, ALL_TAGS, 2, 2)]
    # In the next memtable's time tables may lie between: nothing is joined.
    after = with_marker(drops, Marker(None, 3, 3), 300, 200)
    assert after == [*drops, Drop(300, ALL_TAGS, 3, 3)]


def test_dropping_a_keyspace_again_replaces_the_earlier_drop() -> None:
    drops = with_marker([], Marker(frozenset([1, 2])), BASE + 1, BASE)
    drops = with_marker(drops, Marker(frozenset([2])), BASE + 2, BASE)
    assert drops == [Drop(BASE + 1, 1), Drop(BASE + 2, 2)]
    assert with_marker(drops, Marker(None, 0, 16384 - 1), BASE + 3, BASE)[:2] == drops
    # Not a drop of more keyspaces by one of fewer.
    drops = with_marker([Drop(BASE + 1, ALL_TAGS, 3, 4)], Marker(frozenset([1])), BASE + 2, BASE)
    assert drops == [Drop(BASE + 1, ALL_TAGS, 3, 4), Drop(BASE + 2, 1)]


def test_what_is_hidden_of_a_table() -> None:
    tags = {1: 60, 2: 40}
    assert hidden_count(table(tags), [Drop(6, 1)]) == 60
    assert hidden_count(table(tags), [Drop(6, 1), Drop(7, 1), Drop(6, 9)]) == 60
    assert hidden_count(table(tags), [Drop(6, 1), Drop(6, ALL_TAGS, 0, 4)]) == 80
    assert hidden_count(table(tags), [Drop(5, 1)]) == 0
    assert hidden_count(table(tags, (3, 3)), [Drop(6, ALL_TAGS, 4, 9)]) == 0
    assert hidden_count(table(tags, (0, 9999)), [Drop(6, ALL_TAGS, 4, 4)]) == 1
    assert is_hidden(table(tags), [Drop(6, 1), Drop(6, 2)])
    assert is_hidden(table(tags, (3, 4)), [Drop(6, ALL_TAGS, 3, 4)])
    assert not is_hidden(table(tags), [Drop(6, 1), Drop(5, 2)])
    assert not is_hidden(table(tags, (3, 5)), [Drop(6, ALL_TAGS, 3, 4), Drop(7, ALL_TAGS, 4, 5)])
    assert not is_hidden(table(tags), [])


def test_the_drops_that_hide_nothing() -> None:
    tables = [table({1: 1}, (3, 5), 5), table({2: 1}, (7, 9), 8)]
    needed = [Drop(6, 1), Drop(9, 2), Drop(9, ALL_TAGS, 9, 9), Drop(6, ALL_TAGS, 0, 3)]
    others = [Drop(5, 1), Drop(8, 2), Drop(9, 3), Drop(9, ALL_TAGS, 6, 6), Drop(6, 1, 7, 9)]
    assert hiding(needed + others, tables) == needed


def test_what_a_later_drop_has_taken_in_is_durable_with_that_one_only() -> None:
    replacements = Replacements()
    drops = [Drop(10, 1), Drop(50, 2)]
    assert replacements.durable(drops, 49, 0) == [Drop(10, 1)]
    replacements.note({Drop(8, 2), Drop(30, 2)}, 50, 20)
    # A crash may bring that of 8 back, and the output of a job must not say more than that.
    assert replacements.durable(drops, 49, 0) == []
    assert replacements.durable(drops, 49, 10) == [Drop(10, 1)], "the manifest has it"
    assert replacements.durable(drops, 50, 0) == drops
    replacements.note({Drop(50, 2)}, 60, 50)
    assert replacements.durable(drops, 55, 0) == [Drop(10, 1)]


def test_a_manifest_and_its_tables_vouch_for_the_last_drop_that_was_carried_out() -> None:
    current = Manifest(FORMAT_VERSION, 0, 0, [[]], [], b"")
    assert vouched(current, []) == 0
    tables = [table({1: 1}, position_max=7), table({1: 1}, position_max=9)]
    assert vouched(current, tables) == 9
    current.vouched = 8
    assert [vouched(current, each) for each in (tables, tables[:1], [])] == [9, 8, 8]
