"""The memtable against a dict of joined states, and its weight against what it holds."""

from __future__ import annotations

import random

import pytest

from engine.memtable import ENTRY_OVERHEAD_BYTES, Memtable
from tests.engine.toy import RegisterCodec, SetCodec, register

CODEC = SetCodec()


def weight_of(memtable: Memtable) -> int:
    entries = [item for rows in memtable.slots for item in rows.items()]
    entries += [(row, raw) for (_, row), raw in memtable.deltas.items()]
    return sum(len(row) + len(raw) + ENTRY_OVERHEAD_BYTES for row, raw in entries)


def test_put_says_whether_the_row_is_new() -> None:
    memtable = Memtable(4, base_position=77)
    assert memtable.base_position == 77
    assert memtable.put(1, b"row", b"a")
    assert not memtable.put(1, b"row", b"bcd")
    assert memtable.put(2, b"row", b"")
    assert memtable.slots == [{}, {b"row": b"bcd"}, {b"row": b""}, {}]
    assert memtable.entry_count == 2


def test_a_delta_over_a_complete_entry_is_joined_into_it() -> None:
    memtable = Memtable(1, 0)
    memtable.put(0, b"row", b"ac")
    memtable.join(0, b"row", b"b", CODEC)
    assert memtable.slots[0] == {b"row": b"abc"}
    assert memtable.deltas == {}


def test_a_delta_over_nothing_stands_apart_until_a_complete_entry_comes() -> None:
    memtable = Memtable(1, 0)
    memtable.join(0, b"row", b"a", CODEC)
    memtable.join(0, b"row", b"b", CODEC)
    assert memtable.slots[0] == {}
    assert memtable.deltas == {(0, b"row"): b"ab"}
    assert memtable.entry_count == 1
    assert memtable.put(0, b"row", b"abc")
    assert memtable.deltas == {}
    assert memtable.weight_bytes == weight_of(memtable)


def test_the_join_is_given_the_newer_state_first() -> None:
    class Order(SetCodec):
        def join(self, newer: bytes, older: bytes) -> bytes:
            return newer + b">" + older

    memtable = Memtable(1, 0)
    memtable.join(0, b"d", b"1", Order())
    memtable.join(0, b"d", b"2", Order())
    memtable.put(0, b"c", b"1")
    memtable.join(0, b"c", b"2", Order())
    assert memtable.deltas[0, b"d"] == memtable.slots[0][b"c"] == b"2>1"


def test_entries_of_a_slot_in_order_from_a_row_on() -> None:
    memtable = Memtable(2, 0)
    for row in (b"d", b"a", b"c"):
        memtable.put(0, row, b"x")
    memtable.join(0, b"b", b"y", CODEC)
    memtable.join(1, b"b", b"z", CODEC)
    everything = [
        (b"a", b"x", True),
        (b"b", b"y", False),
        (b"c", b"x", True),
        (b"d", b"x", True),
    ]
    assert list(memtable.entries_of(0, b"")) == everything
    assert list(memtable.entries_of(0, b"b")) == everything[1:]
    assert list(memtable.entries_of(0, b"b\0")) == everything[2:]
    assert list(memtable.entries_of(1, b"")) == [(b"b", b"z", False)]


def test_remove_gives_the_memory_back() -> None:
    memtable = Memtable(1, 0)
    memtable.put(0, b"row", b"value")
    memtable.remove(0, b"row")
    assert memtable.slots == [{}]
    assert memtable.weight_bytes == 0


def test_drop_removes_the_keyspaces_and_no_others() -> None:
    memtable = Memtable(2, 0)
    codec = RegisterCodec()  # The keyspace is the first byte of the row.
    for slot in range(2):
        for row in (b"a1", b"b1", b"c1"):
            memtable.put(slot, row, register(1))
            memtable.join(slot, row + b"delta", register(1), codec)
    memtable.drop(frozenset(b"ac"), codec)
    assert memtable.slots == [{b"b1": register(1)}] * 2
    assert memtable.deltas == {(slot, b"b1delta"): register(1) for slot in range(2)}
    assert memtable.weight_bytes == weight_of(memtable)
    memtable.drop(frozenset(b"b"), codec)
    assert (memtable.entry_count, memtable.weight_bytes) == (0, 0)


@pytest.mark.parametrize("seed", range(50))
def test_against_a_dict(seed: int) -> None:
    rng = random.Random(seed)
    memtable = Memtable(3, 0)
    model: dict[tuple[int, bytes], bytes] = {}
    complete: set[tuple[int, bytes]] = set()
    for _ in range(300):
        key = slot, row = rng.randrange(3), b"%c%d" % (rng.randrange(4), rng.randrange(5))
        raw = rng.randbytes(rng.randrange(4))
        kind = rng.random()
        if kind < 0.4:
            model[key] = CODEC.join(raw, model.get(key, b""))
            memtable.put(slot, row, model[key])
            complete.add(key)
        elif kind < 0.9:
            model[key] = CODEC.join(raw, model.get(key, raw))
            memtable.join(slot, row, raw, CODEC)
        elif kind < 0.95 and key in complete:
            memtable.remove(slot, row)
            complete.remove(key)
            del model[key]
        elif kind > 0.98:
            tag = rng.randrange(4)
            memtable.drop(frozenset({tag}), CODEC)
            model = {key: raw for key, raw in model.items() if key[1][0] != tag}
            complete &= model.keys()
        for slot in range(3):
            expected = [(k[1], raw, k in complete) for k, raw in model.items() if k[0] == slot]
            found = [(r, CODEC.join(raw, b""), c) for r, raw, c in memtable.entries_of(slot, b"")]
            assert found == sorted((r, CODEC.join(raw, b""), c) for r, raw, c in expected)
        assert memtable.weight_bytes == weight_of(memtable)
        assert memtable.entry_count == len(model)


@pytest.mark.parametrize("slots", [range(4), range(3), range(1, 2)])
def test_what_is_dropped_whole_is_given_back_and_weighs_nothing(slots: range) -> None:
    memtable = Memtable(4, 0)
    for slot in range(4):
        for number in range(10 * slot + 1):
            memtable.put(slot, b"row%d" % number, b"raw" * number)
        memtable.join(slot, b"delta", b"d", CODEC)
    before = [dict(rows) for rows in memtable.slots]
    active = memtable.slots
    given_back = memtable.drop(None, CODEC, slots)
    assert given_back == [before[slot] for slot in slots]
    assert memtable.slots is active
    assert memtable.slots == [{} if slot in slots else before[slot] for slot in range(4)]
    assert sorted(slot for slot, _ in memtable.deltas) == [s for s in range(4) if s not in slots]
    assert memtable.weight_bytes == weight_of(memtable)
