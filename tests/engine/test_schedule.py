"""Which job is next: one at a time, within the room that there is, and no more work than needed."""

from __future__ import annotations

from dataclasses import replace

from engine.compaction import L0_COUNT
from engine.job import run_job
from tests.engine.stores import SETTINGS, SLOT_COUNT, compact, finish, flush, new_store
from tests.engine.toy import SETS


def test_one_flush_at_a_time_and_an_abandoned_one_is_given_again() -> None:
    store = new_store()
    store.apply(0, b"a1", b"x")
    store.freeze()
    job = store.next_job(0)
    assert job is not None
    assert store.next_job(0) is None
    run_job(store.disk, job, SETS)
    store.abandon(job)
    again = store.next_job(0)
    assert again is not None
    assert again.inputs == job.inputs
    assert again.output != job.output
    finish(store, again, run_job(store.disk, again, SETS))
    assert [name for name in store.disk.names() if name.endswith(".sst")] == [again.output]
    assert store.get(0, b"a1") == b"x"


def test_no_compaction_without_room_but_a_flush_is_what_makes_room() -> None:
    store = new_store()
    for number in range(L0_COUNT):
        store.apply(0, b"a%d" % number, b"x" * number)
        store.apply(0, b"a", b"x")
        flush(store)
    size = store.table_bytes
    assert store.next_job(0, room_bytes=size - 1) is None
    store.apply(0, b"b1", b"x")
    store.freeze()
    job = store.next_job(0, room_bytes=0)
    assert job is not None
    assert job.kind == "flush"
    finish(store, job, run_job(store.disk, job, SETS))
    assert store.next_job(0, room_bytes=store.table_bytes) is not None


def test_a_table_that_overlaps_nothing_is_moved_as_it_is() -> None:
    store = new_store(SETTINGS["no caches"])
    for slot in range(SLOT_COUNT):
        store.apply(slot, b"a1", b"x" * 100)
        flush(store)
    names = {table.name for table in store.tables}
    assert set(compact(store)) == {"move"}
    assert {table.name for table in store.tables} == names
    assert store.stats.tables_moved >= 3
    assert store.stats.bytes_compacted == 0
    assert store.stats.write_amplification == 1.0
    assert [store.get(slot, b"a1") for slot in range(SLOT_COUNT)] == [b"x" * 100] * SLOT_COUNT


def test_a_compaction_has_a_budget_until_it_is_behind() -> None:
    settings = replace(SETTINGS["no caches"], compaction_bytes_per_s=1000)
    store = new_store(settings)

    def add_table() -> None:
        store.apply(0, b"a", b"x")
        store.freeze()
        job = store.next_flush(0)
        assert job is not None
        assert job.bytes_per_s == 0
        finish(store, job, run_job(store.disk, job, SETS))

    for _ in range(settings.l0_count):
        assert not store.must_hurry
        add_table()
    job = store.next_compaction(0)
    assert job is not None
    assert job.bytes_per_s == 1000
    assert not store.must_hurry
    add_table()
    assert store.must_hurry
    store.abandon(job)
    assert not store.must_hurry
    again = store.next_compaction(0)
    assert again is not None
    assert again.bytes_per_s == 0
    assert not store.must_hurry
