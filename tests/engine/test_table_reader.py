"""Reading tables: pages that are not in memory, the row cache, and slots that are passed over."""

from __future__ import annotations

import pytest

from engine.compaction import L0_COUNT
from engine.errors import CorruptionError
from engine.levels import AWAITED_MAX
from engine.store import NO_PINS, PageFault, Pins
from tests.engine.stores import SETTINGS, SLOT_COUNT, TAGS, disk_of, do_job, flush, new_store


def test_a_page_is_read_by_whoever_waits_and_only_then_seen() -> None:
    store = new_store()
    store.apply(0, b"a1", b"x")
    flush(store)
    disk_of(store).faults.is_cold = True
    with pytest.raises(PageFault) as caught:
        store.get(0, b"a1")
    caught.value.fetch()
    with pytest.raises(PageFault):
        store.get(0, b"a1")
    caught.value.arrive()
    assert store.get(0, b"a1") == b"x"
    assert store.stats.faults == 1  # The second time its page was known to be missing.


def test_a_page_that_is_known_to_be_missing_is_not_looked_for_until_one_arrives() -> None:
    store = new_store()
    store.apply(0, b"a1", b"x")
    flush(store)
    disk_of(store).faults.is_cold = True
    for _ in range(3):
        with pytest.raises(PageFault) as caught:
            store.get(0, b"a1")
    assert store.stats.table_reads == 1
    store.apply(0, b"a1", b"y")
    assert store.get(0, b"a1") == b"y", "a write needs no page"
    flush(store)  # The page is another table's now.
    caught.value.resolve()
    assert store.read_now(0, b"a1") == b"y"


def test_who_has_pins_looks_for_a_page_that_another_misses() -> None:
    """Otherwise two commands with a cache that keeps nothing could take turns for ever."""
    store = new_store(SETTINGS["no caches"])
    store.apply(0, b"a1", b"x")
    flush(store)
    disk_of(store).faults.is_cold = True
    pins: Pins = {}
    with pytest.raises(PageFault) as caught:
        store.get(0, b"a1")
    caught.value.resolve(pins)
    with pytest.raises(PageFault):
        store.get(0, b"a1")
    store.pinned = pins
    assert store.get(0, b"a1") == b"x"


def test_what_is_known_to_be_missing_is_bounded() -> None:
    store = new_store()
    for number in range(2 * AWAITED_MAX):
        store.apply(0, b"%05d" % number, b"x")
    flush(store)
    disk_of(store).faults.is_cold = True
    for number in range(2 * AWAITED_MAX):
        with pytest.raises(PageFault):
            store.get(0, b"%05d" % number)
    assert len(store._pages.awaited) <= AWAITED_MAX


def test_pins_show_a_page_that_no_cache_keeps_to_its_command_alone() -> None:
    store = new_store(SETTINGS["no caches"])
    store.apply(0, b"a1", b"x")
    flush(store)
    disk_of(store).faults.is_cold = True
    pins: Pins = {}
    store.pinned = pins
    with pytest.raises(PageFault) as caught:
        store.get(0, b"a1")
    caught.value.resolve(pins)
    assert store.get(0, b"a1") == b"x"
    store.pinned = NO_PINS
    with pytest.raises(PageFault):
        store.get(0, b"a1")


def test_a_table_that_was_replaced_while_a_page_was_awaited() -> None:
    """The file is gone, or its number is another's: the command asks again, and finds the new table."""
    for fetched_first in (False, True):
        store = new_store(SETTINGS["one block"])
        for number in range(L0_COUNT):
            store.apply(0, b"a1", bytes(range(97, 98 + number)))
            store.apply(0, b"b%d" % number, b"y")
            flush(store)
        disk_of(store).faults.is_cold = True
        with pytest.raises(PageFault) as caught:
            store.get(0, b"a1")
        pins: Pins = {}
        if fetched_first:
            caught.value.fetch()
        assert do_job(store).kind == "compact"
        if not fetched_first:
            caught.value.fetch()
        caught.value.arrive(pins)
        assert pins == {}
        with pytest.raises(PageFault) as again:
            store.get(0, b"a1")
        again.value.resolve()
        assert store.get(0, b"a1") == b"abcdefgh"


def test_a_damaged_page_is_an_error_and_not_a_wrong_answer() -> None:
    store = new_store()
    store.apply(0, b"a1", b"x")
    flush(store)
    disk_of(store).flip_bit(store.tables[0].name, 5)
    for read in (lambda: store.get(0, b"a1"), lambda: store.scan(0, b"", 10)):
        with pytest.raises(PageFault) as caught:
            read()
        with pytest.raises(CorruptionError):
            caught.value.resolve()


def test_a_look_up_reads_no_further_than_the_first_complete_entry() -> None:
    store = new_store(SETTINGS["no caches"])
    for raw in (b"x", b"xy"):
        store.apply(0, b"a1", raw)
        flush(store)
    assert store.get(0, b"a1") == b"xy"
    assert store.stats.table_reads == 1
    store.apply(0, b"a1", b"z", is_complete=False)
    flush(store)
    assert store.get(0, b"a1") == b"xyz"
    assert store.stats.table_reads == 3


def test_an_absent_row_is_remembered_until_it_is_written() -> None:
    store = new_store()
    store.apply(0, b"a1", b"x")
    flush(store)
    assert store.lookup(0, b"a2") is None
    reads = store.stats.table_reads
    assert store.lookup(0, b"a2") is None
    assert store.stats.table_reads == reads
    store.apply(0, b"a2", b"y", is_complete=False)
    assert store.get(0, b"a2") == b"y"


def test_an_absent_row_is_not_remembered_beyond_the_last_table() -> None:
    """A write to a store without tables has nothing to invalidate."""
    store = new_store()
    store.apply(0, b"a1", b"x")
    flush(store)
    store.drop([TAGS[0]])
    assert store.get(0, b"a1") is None
    assert store.get(0, b"b1") is None
    store.write()
    store.log.sync()
    while store.tables:
        do_job(store)
    store.apply(0, b"a1", b"y")
    store.apply(0, b"b1", b"y")
    flush(store)
    assert store.get(0, b"a1") == b"y"
    assert store.get(0, b"b1") == b"y"


def test_a_cached_row_learns_of_a_delta_when_it_is_flushed() -> None:
    store = new_store()
    store.apply(0, b"a1", b"x")
    flush(store)
    assert store.get(0, b"a1") == b"x"
    store.apply(0, b"a1", b"y", is_complete=False)
    assert store.get(0, b"a1") == b"xy"
    store.freeze()
    assert store.get(0, b"a1") == b"xy"
    do_job(store)
    assert store.get(0, b"a1") == b"xy"


def test_next_slot_passes_empty_slots_in_memory_and_in_tables() -> None:
    store = new_store()
    assert store.next_slot(0) is None
    store.apply(4, b"a1", b"x")
    flush(store)
    store.apply(2, b"a1", b"x", is_complete=False)
    store.freeze()
    store.apply(1, b"a1", b"x")
    assert [store.next_slot(slot) for slot in range(SLOT_COUNT)] == [1, 1, 2, 4, 4]
    assert [store.holds_slot(slot) for slot in (1, 2, 4)] == [True] * 3
