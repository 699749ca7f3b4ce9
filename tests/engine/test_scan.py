"""Scans of a slot: what a page costs, and that a scan that lives on is not disturbed by anything."""

from __future__ import annotations

import random

import pytest

from engine.job import run_job
from engine.levels import PageFault
from engine.memtable import ORDERS_MAX, Memtable
from engine.scan import PAGE_ROWS
from engine.store import Store, StoreSettings
from tests.engine.stores import disk_of, flush, open_store
from tests.engine.toy import SETS
from tests.sim.disk import SimDisk

SETTINGS = StoreSettings(
    1 << 30, 0, 1 << 20, 1 << 30, block_bytes=400, slot_count=4, table_bytes=1500, l0_count=3
)


def new_store(settings: StoreSettings = SETTINGS) -> Store:
    return open_store(SimDisk(random.Random(1)), SETS, settings)


def row(number: int) -> bytes:
    return b"a%06d" % number


def fill(store: Store, numbers: list[int], raw: bytes, slot: int = 1) -> None:
    for number in numbers:
        store.apply(slot, row(number), raw)


def compact(store: Store) -> int:
    count = 0
    store.log.sync()
    while (job := store.next_job(0)) is not None:
        result = run_job(store.disk, job, SETS)
        prepared = store.prepare(job, result)
        store.write_manifest(prepared)
        store.install(job, result, prepared)
        count += 1
    return count


def all_pages(store: Store, slot: int, limit: int) -> list[tuple[bytes, bytes]]:
    rows: list[tuple[bytes, bytes]] = []
    start: bytes | None = b""
    while start is not None:
        page, start = store.scan(slot, start, limit)
        assert len(page) <= limit
        assert len(page) == limit or start is None
        rows += page
    return rows


class CountedRow(bytes):
    """A row that counts how often it is compared."""

    comparisons = 0
    __slots__ = ()
    __hash__ = bytes.__hash__

    def __lt__(self, other: bytes) -> bool:
        CountedRow.comparisons += 1
        return bytes(self) < bytes(other)

    def __eq__(self, other: object) -> bool:
        return bytes.__eq__(self, other)


def test_a_page_of_a_large_slot_in_memory_costs_about_a_page() -> None:
    store = new_store()
    numbers = list(range(20_000))
    random.Random(1).shuffle(numbers)
    for number in numbers:
        store.active[1][CountedRow(row(number))] = b"x"
    store.scan(1, b"", 10)
    CountedRow.comparisons = 0
    assert len(all_pages(store, 1, 100)) == 20_000
    # 200 pages: each finds its place by bisection.
    assert CountedRow.comparisons < 200 * 40
    # One more row between them: it is found, and nothing is sorted anew.
    store.active[1][CountedRow(row(5) + b"x")] = b"x"
    CountedRow.comparisons = 0
    assert store.scan(1, row(5), 2)[0][1][0] == row(5) + b"x"
    assert CountedRow.comparisons < 100


@pytest.mark.parametrize("seed", range(20))
def test_the_order_that_is_kept_stays_right_whatever_happens(seed: int) -> None:
    rng = random.Random(seed)
    memtable = Memtable(ORDERS_MAX + 3, 0)
    for _ in range(60):
        slot = rng.randrange(ORDERS_MAX + 3)
        rows = memtable.slots[slot]
        for _ in range(rng.choice([0, 1, 5, 300])):
            memtable.put(slot, row(rng.randrange(3000)), b"x")
        for gone in rng.sample(sorted(rows), min(len(rows), rng.choice([0, 1, 3]))):
            memtable.remove(slot, gone)
            if rng.random() < 0.5:
                memtable.put(slot, gone, b"y")
        if rng.random() < 0.05:
            memtable.drop(None, SETS, range(slot, slot + 1))
        start, limit = row(rng.randrange(3000)), rng.choice([1, 10, 10_000])
        expected = sorted(item for item in memtable.slots[slot].items() if item[0] >= start)[:limit]
        assert memtable.rows_from(slot, start, limit) == expected
    assert len(memtable._orders) <= ORDERS_MAX


def test_pages_over_tables_read_about_what_they_show() -> None:
    store = new_store()
    fill(store, list(range(0, 3000, 2)), b"old")
    flush(store)
    fill(store, list(range(0, 3000, 3)), b"new")
    flush(store)
    fill(store, list(range(0, 3000, 500)), b"top")
    reads = store.stats.table_reads
    page, after = store.scan(1, row(1000), 5)
    assert [int(found[1:]) for found, _ in page] == [1000, 1002, 1004, 1005, 1006]
    assert [raw for _, raw in page] == [b"top", b"new", b"old", b"new", b"old"]
    assert after == row(1008)
    assert store.stats.table_reads - reads <= 4


@pytest.mark.parametrize("limit", [1, 7, 63, 64, 1000])
def test_pages_are_full_until_the_last_one(limit: int) -> None:
    store = new_store()
    fill(store, list(range(0, 700, 2)), b"a")
    fill(store, [1], b"a", slot=2)
    flush(store)
    fill(store, list(range(0, 700, 3)), b"b")
    flush(store)
    fill(store, list(range(0, 700, 5)), b"c")
    expected = [
        (row(n), b"c" if n % 5 == 0 else b"b" if n % 3 == 0 else b"a")
        for n in range(700)
        if n % 2 == 0 or n % 3 == 0 or n % 5 == 0
    ]
    assert all_pages(store, 1, limit) == expected
    assert compact(store) == 0
    flush(store)
    assert compact(store) > 0
    assert len(store.levels.levels[1]) > 2
    assert all_pages(store, 1, limit) == expected
    assert all_pages(store, 2, limit) == [(row(1), b"a")]


def test_a_snapshot_shows_a_slot_as_it_was() -> None:
    store = new_store()
    fill(store, list(range(100)), b"t")
    flush(store)
    fill(store, list(range(0, 100, 2)), b"f")
    store.freeze()
    fill(store, list(range(0, 100, 4)), b"m")
    store.apply(1, row(1), b"d", is_complete=False)
    expected = list(store.scan(1, b"", 1000)[0])
    scan = store.snapshot_scan(1)
    found = scan.page(10)
    fill(store, list(range(0, 100, 3)), b"later")
    fill(store, [500], b"later")
    store.drop_slots(1, 1)
    flush(store)
    flush(store) if store.frozen else None
    compact(store)
    fill(store, [7], b"new")
    while rows := scan.page(7):
        found += rows
    assert found == expected
    assert [raw for _, raw in found[:3]] == [b"m", b"dt", b"f"]
    assert all_pages(store, 1, 100) == [(row(7), b"new")]


def test_tables_that_a_snapshot_reads_stay_until_it_is_closed() -> None:
    store = new_store()
    for number in range(3):
        fill(store, list(range(number, 300, 2)), b"x" * 20)
        flush(store)
    held = {table.name for table in store.tables}
    expected = all_pages(store, 1, 1000)
    one, two = store.snapshot_scan(1), store.snapshot_scan(1)
    assert compact(store) > 0
    assert not held & {table.name for table in store.tables}
    assert held <= set(store.disk.names())
    disk_of(store).faults.is_cold = True
    found = []
    while True:
        try:
            rows = one.page(20)
        except PageFault as fault:
            fault.fetch()
            fault.arrive()
            continue
        if not rows:
            break
        found += rows
    assert found == expected
    assert held <= set(store.disk.names())
    with two:
        assert len(list(two)) == len(expected)
    assert not held & set(store.disk.names())
    two.close()
    assert two.page(5) == []


def test_a_snapshot_needs_no_cache_to_get_on() -> None:
    store = new_store(StoreSettings(1 << 30, 0, 0, 1 << 30, block_bytes=100, slot_count=4))
    for number in range(3):
        fill(store, list(range(number, 200, 2)), b"x" * 20)
        flush(store)
    expected = all_pages(store, 1, 1000)
    disk_of(store).faults.is_cold = True
    with store.snapshot_scan(1) as scan:
        assert list(scan) == expected
    # And reads each block once.
    blocks = sum(table.block_count for table in store.tables)
    assert store.stats.faults == blocks


def test_a_snapshot_of_an_empty_slot_holds_nothing() -> None:
    store = new_store()
    fill(store, [1], b"x")
    flush(store)
    scan = store.snapshot_scan(3)
    assert scan.page(PAGE_ROWS) == []
    assert store.snapshot_scan(1).page(1) == [(row(1), b"x")]
