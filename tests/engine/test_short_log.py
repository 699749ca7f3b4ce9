"""Short logs: a flush of one makes the table that a flush of the log would make, and nothing hangs on it."""

from __future__ import annotations

import random

import pytest

from engine.job import run_job
from engine.log_format import SHORT_SUFFIX
from engine.short_log import FRAME_BYTES_MIN
from engine.store import Store, StoreSettings
from tests.engine.stores import SLOT_COUNT, TAGS, disk_of, finish, new_store, open_store
from tests.engine.toy import SETS


def filled(seed: int, *, row_bytes: int = 10) -> Store:
    """A store with a frozen memtable: complete entries and deltas, most rows many times, and some dropped."""
    rng = random.Random(seed)
    store = new_store(StoreSettings(1 << 30, 20_000, 1 << 20, 1 << 30, slot_count=SLOT_COUNT))
    for _ in range(300):
        row = bytes([rng.choice(TAGS), rng.randrange(20)]) * row_bytes
        store.apply(
            rng.randrange(SLOT_COUNT),
            row,
            bytes([rng.randrange(50)]),
            is_complete=rng.random() < 0.7,
        )
        if rng.random() < 0.02:
            store.drop([rng.choice(TAGS)])
        if rng.random() < 0.2:
            store.write()
    store.freeze()
    return store


def shorten(store: Store) -> None:
    while store.shorten(0.0):
        pass


def flushed(store: Store) -> list[object]:
    """What the table of the next flush has."""
    job = store.next_flush(0)
    assert job is not None
    result = run_job(store.disk, job, SETS)
    finish(store, job, result)
    return [entry for table in store.tables for entry in table.scan()]


@pytest.mark.parametrize("row_bytes", [10, 3000])
@pytest.mark.parametrize("seed", range(10))
def test_it_makes_the_table_that_the_log_makes(seed: int, row_bytes: int) -> None:
    short, whole = filled(seed, row_bytes=row_bytes), filled(seed, row_bytes=row_bytes)
    shorten(short)
    [name] = [name for name in disk_of(short).names() if name.endswith(SHORT_SUFFIX)]
    assert (disk_of(short).size(name) > FRAME_BYTES_MIN) == (row_bytes > 1000)
    entries = flushed(short)
    assert entries == flushed(whole)
    assert entries
    assert disk_of(short).names() == disk_of(whole).names()


def test_a_log_that_is_hardly_longer_is_read_itself() -> None:
    store = filled(1)
    assert not store.shorten(1000.0)
    job = store.next_flush(0)
    assert job is not None
    assert not any(name.endswith(SHORT_SUFFIX) for name in (*job.inputs, *disk_of(store).names()))


def test_one_that_is_not_complete_is_not_used() -> None:
    store = filled(1, row_bytes=3000)
    assert store.shorten(0.0)
    assert store.shorten(0.0)
    whole = filled(1, row_bytes=3000)
    assert flushed(store) == flushed(whole)
    assert disk_of(store).names() == disk_of(whole).names()


@pytest.mark.parametrize("frames", [0, 2, 100])
def test_what_is_dropped_meanwhile_is_in_the_table(frames: int) -> None:
    """Its marker is not durable: a power cut may bring it back."""
    store = filled(1, row_bytes=3000)
    for _ in range(frames):
        store.shorten(0.0)
    store.drop(list(TAGS))
    store.write()
    shorten(store)
    assert flushed(store) == flushed(filled(1, row_bytes=3000))
    assert not any(store.scan(slot, b"", 100)[0] for slot in range(SLOT_COUNT))


def test_a_flush_that_fails_is_repeated_from_the_log() -> None:
    store = filled(1)
    shorten(store)
    job = store.next_flush(0)
    assert job is not None
    assert job.inputs[0].endswith(SHORT_SUFFIX)
    store.leavings.is_cleared_by_owner = True  # Later: but the disk may be full.
    store.abandon(job)
    shorten(store)
    assert not any(name.endswith(SHORT_SUFFIX) for name in disk_of(store).names())
    assert flushed(store) == flushed(filled(1))


@pytest.mark.parametrize("at", range(4))
def test_on_a_full_disk_the_flush_reads_the_log(at: int) -> None:
    store = filled(1, row_bytes=3000)
    disk = disk_of(store)
    for _ in range(at):
        store.shorten(0.0)
    disk.faults.capacity_bytes = 0
    shorten(store)
    disk.faults.capacity_bytes = None
    is_complete = any(name.endswith(SHORT_SUFFIX) for name in disk.names())
    job = store.next_flush(0)
    assert job is not None
    assert job.inputs[0].endswith(SHORT_SUFFIX) == is_complete
    store.abandon(job)
    assert flushed(store) == flushed(filled(1, row_bytes=3000))


def test_what_a_power_cut_leaves_of_one_is_removed() -> None:
    store = filled(1, row_bytes=3000)
    store.log.sync()
    assert store.shorten(0.0)
    disk = disk_of(store).kill()
    assert any(name.endswith(SHORT_SUFFIX) for name in disk.names())
    again = open_store(disk, SETS, store.settings)
    assert not any(name.endswith(SHORT_SUFFIX) for name in disk_of(again).names())
