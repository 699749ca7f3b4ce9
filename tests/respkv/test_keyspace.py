"""Counts of keys: what INFO is told, within its time, and what is counted again."""

from __future__ import annotations

import random

import pytest

from cluster.record import DELETION, HAS_EXPIRY, MANY, STRING, Record, Version, encode
from cluster.slot import SLOT_COUNT, slot_of
from respkv.keyspace import Counts, Tally, View, counts, encode_effect, is_live, next_slot, type_of
from tests.respkv.commands.harness import START_MS, Server


def never() -> bool:
    return False


def always() -> bool:
    return True


def version(type_: int, counter: int, *, expire_at_ms: int = 0) -> Version:
    return Version((1, counter), counter, type_, b"v", expire_at_ms)


@pytest.mark.parametrize(
    ("record", "is_alive"),
    [
        (Record((version(STRING, 1),), ((1, 1),)), True),
        (Record((version(STRING, 1, expire_at_ms=100),), ((1, 1),)), False),
        (Record((version(STRING, 1, expire_at_ms=101),), ((1, 1),)), True),
        (Record((version(DELETION, 1),), ((1, 1),)), False),
        (Record((version(STRING, 2), version(DELETION, 1)), ((1, 2),)), True),
        (Record((version(STRING, 2, expire_at_ms=100), version(STRING, 1)), ((1, 2),)), True),
        (Record((version(STRING, 2, expire_at_ms=100), version(DELETION, 1)), ((1, 2),)), False),
        (Record((), ((1, 2),)), False),
    ],
)
def test_is_live(record: Record, is_alive: bool) -> None:
    raw = encode(record)
    assert is_live(raw, 100) is is_alive
    assert is_live(raw, 100) == (record.winner(100) is not None)
    if is_alive:
        assert type_of(raw, 100) == STRING


def test_some_records_of_that_test_take_the_long_form() -> None:
    assert encode(Record((version(STRING, 2), version(DELETION, 1)), ((1, 2),)))[0] == MANY


def test_a_buffered_write_looks_like_a_record() -> None:
    raw = encode_effect((7, STRING, 500, b"v"))
    assert raw[0] == STRING | HAS_EXPIRY
    assert is_live(raw, 499)
    assert not is_live(raw, 500)
    assert not is_live(encode_effect((7, DELETION, 0, b"")), 0)


def test_counts_for_info() -> None:
    server = Server()
    server.play("SET a v ; SET b v PX 1000 ; SET c v PX 3000 ; SELECT 2 ; SET d v")
    known = server.context.counts
    found = counts(known, START_MS, never)
    assert found == {0: Tally(3, 2, 2 * START_MS + 4000), 2: Tally(1, 0, 0)}
    assert found[0].mean_ttl_ms(START_MS) == 2000
    assert found[2].mean_ttl_ms(START_MS) == 0
    found = counts(known, START_MS + 1000, never)
    assert found[0] == Tally(2, 1, START_MS + 3000)
    assert Tally(1, 1, START_MS).mean_ttl_ms(START_MS + 5) == 0


def test_counting_for_info_ends_with_its_time_and_goes_on_where_it_ended() -> None:
    server = Server()
    keys = sorted((b"key:%d" % number for number in range(3000)), key=slot_of)
    for key in keys:
        server.run(b"SET", key, b"v")
    known = server.context.counts
    seen: list[int] = []
    while not seen or seen[-1] < 3000:
        # Slots at the beginning that change all the time do not keep the others from their turn.
        for key in keys[:100]:
            server.run(b"SET", key, b"w")
        found = counts(known, START_MS, always)
        seen.append(found[0].keys if found else 0)
        assert len(seen) < 1000
    assert seen[0] < 300
    assert len(seen) > 20
    assert sorted(seen) == seen


def test_counting_for_info_does_not_wait_for_pages() -> None:
    server = Server()
    for number in range(200):
        server.run(b"SET", b"key:%d" % number, b"v")
    server.evict()
    server.run(b"SET", b"{tag}new", b"v")
    known = Counts(server.replica)
    found = counts(known, START_MS, never)
    assert server.faults == 0
    assert server.replica.store.stats.faults < 100  # It does not try each of the slots in vain.
    assert 190 <= found[0].keys <= 201  # The tables say how many entries they have.
    # What was counted is remembered when its pages have gone.
    assert server.run(b"DBSIZE") == 201
    assert server.faults > 0
    assert counts(server.context.counts, START_MS, never)[0].keys == 201


def test_only_what_changed_is_counted_again() -> None:
    server = Server()
    for number in range(100):
        server.run(b"SET", b"key:%d" % number, b"v")
    assert server.run(b"DBSIZE") == 100
    known = server.context.counts
    assert known.dirty(START_MS) == []
    server.run(b"SET", b"key:1", b"w")
    server.run(b"GET", b"key:2")
    assert len(known.dirty(START_MS)) == 1
    server.run(b"SET", b"key:2", b"w", b"PX", b"100")
    assert server.run(b"DBSIZE") == 100
    assert known.dirty(START_MS + 99) == []
    assert len(known.dirty(START_MS + 100)) == 1


def test_a_slot_lacks_a_database_only_while_that_is_certain() -> None:
    server = Server()
    server.context.bind(server.session, START_MS)  # type: ignore[arg-type]
    server.run(b"SET", b"k", b"v")
    slot = server.context.locate(b"k")[0]
    known = server.context.counts
    assert not known.lacks(slot, 0)
    assert not known.lacks(slot, 1)
    server.run(b"DBSIZE")
    assert not known.lacks(slot, 0)
    assert known.lacks(slot, 1)
    assert known.slots_of(0) == {slot: 1}
    server.play("SELECT 1 ; SET k v")
    assert not known.lacks(slot, 1)


def test_slots_that_lack_a_database_are_passed_by() -> None:
    server = Server()
    for number in range(500):
        server.run(b"SET", b"key:%d" % number, b"v")
    server.play("SELECT 1 ; SET a v ; SET b v")
    server.evict()
    slots = sorted((slot_of(b"a"), slot_of(b"b")))
    view = View(server.context)
    server.run(b"DBSIZE")
    fetched = server.replica.store.stats.table_reads
    assert view.next_slot(0) == slots[0]
    assert view.next_slot(slots[0] + 1) == slots[1]
    assert view.next_slot(slots[1] + 1) is None
    assert server.replica.store.stats.table_reads == fetched


@pytest.mark.parametrize("seed", range(4))
def test_next_slot_finds_what_is_in_memory_and_in_tables(seed: int) -> None:
    rng = random.Random(seed)
    server = Server(seed)
    occupied = set()
    for _ in range(4):
        for _ in range(rng.randrange(40)):
            key = b"key:%d" % rng.randrange(10_000)
            server.run(b"SET", key, b"v")
            occupied.add(slot_of(key))
        if rng.random() < 0.7:
            server.evict()
            server.disk.faults.is_cold = False
    for slot in [0, SLOT_COUNT - 1, *occupied, *(slot + 1 for slot in occupied)]:
        expected = min((other for other in occupied if other >= slot), default=None)
        assert next_slot(server.replica.store, slot) == expected, (seed, slot)


def test_a_view_is_of_its_command_whatever_the_context_becomes() -> None:
    server = Server()
    server.run(b"SET", b"k", b"v", b"PX", b"100")
    server.context.bind(server.session, START_MS)  # type: ignore[arg-type]
    view = View(server.context)
    server.session.db = 5
    server.context.bind(server.session, START_MS + 1000)  # type: ignore[arg-type]
    assert view.get(b"k") is not None
    assert server.context.peek(b"k") is None
