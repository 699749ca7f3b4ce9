"""Stores of few slots for tests, with jobs that are done at once."""

from __future__ import annotations

import random

from engine.codec import RecordCodec
from engine.disk import Disk
from engine.job import Job, JobResult, run_job
from engine.memtable import ENTRY_OVERHEAD_BYTES, Memtable
from engine.store import Store, StoreSettings
from tests.engine.toy import SETS
from tests.sim.disk import SimDisk

SLOT_COUNT = 5
TAGS = b"abc"
Place = tuple[int, bytes]
"""Slot and row."""

SETTINGS = {
    "no caches": StoreSettings(
        600,
        0,
        0,
        1 << 20,
        block_bytes=64,
        slot_count=SLOT_COUNT,
        table_bytes=400,
        level_1_bytes=700,
        l0_count=3,
    ),
    "tiny caches": StoreSettings(
        1500,
        3000,
        20_000,
        1 << 20,
        block_bytes=100,
        compression="none",
        slot_count=SLOT_COUNT,
        table_bytes=700,
        level_1_bytes=900,
        l0_count=4,
    ),
    "short logs": StoreSettings(
        1 << 20, 1 << 20, 1 << 20, 800, block_bytes=200, slot_count=SLOT_COUNT
    ),
    "one block": StoreSettings(4000, 20_000, 1 << 20, 1 << 20, slot_count=SLOT_COUNT),
}


def open_store(disk: Disk, codec: RecordCodec, settings: StoreSettings) -> Store:
    return Store.open(
        disk,
        codec,
        settings,
        initial_state=b"",
        observe=lambda slot, row, raw: None,
        restore=lambda state: None,
    )


def new_store(settings: StoreSettings = SETTINGS["tiny caches"]) -> Store:
    return open_store(SimDisk(random.Random(1)), SETS, settings)


def disk_of(store: Store) -> SimDisk:
    assert isinstance(store.disk, SimDisk)
    return store.disk


def do_job(store: Store, now_ms: int = 0) -> Job:
    """What the store wants done, at once."""
    job = store.next_job(now_ms)
    assert job is not None
    finish(store, job, run_job(store.disk, job, store.codec))
    return job


def finish(store: Store, job: Job, result: JobResult) -> None:
    prepared = store.prepare(job, result)
    store.write_manifest(prepared)
    store.install(job, result, prepared)


def flush(store: Store) -> None:
    store.freeze()
    assert do_job(store).kind == "flush"


def fill_levels(store: Store) -> None:
    """Tables on three levels, with several versions of most rows."""
    rng = random.Random(3)
    for _ in range(30):
        for _ in range(20):
            number = rng.randrange(60)
            store.apply(number % SLOT_COUNT, b"a%02d" % number, rng.randbytes(30))
        flush(store)
        compact(store)
    assert sum(map(bool, store.levels.levels)) >= 2


def compact(store: Store) -> list[str]:
    store.log.sync()
    kinds = []
    while (job := store.next_job(0)) is not None:
        finish(store, job, run_job(store.disk, job, store.codec))
        kinds.append(job.kind)
    return kinds


def contents(store: Store) -> dict[Place, bytes]:
    return {
        (slot, row): raw
        for slot in range(SLOT_COUNT)
        for row, raw in store.scan(slot, b"", 1000)[0]
    }


def weight_of(memtable: Memtable) -> int:
    entries = [item for rows in memtable.slots for item in rows.items()]
    entries += [(row, raw) for (_, row), raw in memtable.deltas.items()]
    return sum(len(row) + len(raw) + ENTRY_OVERHEAD_BYTES for row, raw in entries)


def forget_pages(store: Store) -> None:
    """Empty the caches: the next reads of tables go to their files."""
    store.rows.clear()
    bytes_max = store.blocks.bytes_max
    store.blocks.resize(0)
    store.blocks.resize(bytes_max)
