"""What was replaced, or left by a lost job, goes off the disk: at once, later, or at the next start."""

from __future__ import annotations

from engine.compaction import L0_COUNT
from engine.job import run_job
from tests.engine.stores import (
    SETTINGS,
    compact,
    contents,
    disk_of,
    do_job,
    flush,
    new_store,
    open_store,
)
from tests.engine.toy import SETS


def test_an_owner_may_clear_away_later() -> None:
    store = new_store()
    store.leavings.is_cleared_by_owner = True
    disk = disk_of(store)
    for number in range(L0_COUNT):
        store.apply(0, b"a1", bytes(range(97, 98 + number)))
        flush(store)
    assert len([name for name in disk.names() if name.endswith(".log")]) == L0_COUNT + 1
    store.leavings.clear_away()
    before = set(disk.names())
    assert do_job(store).kind == "compact"
    assert store.leavings.has_files
    live = {table.name for table in store.tables}
    assert before - {"lock"} <= set(disk.names())
    assert store.get(0, b"a1") == b"abcdefgh"
    store.leavings.clear_away()
    assert not store.leavings.has_files
    assert {name for name in disk.names() if name.endswith(".sst")} == live


def test_what_was_not_cleared_away_is_removed_at_the_next_start() -> None:
    store = new_store()
    store.leavings.is_cleared_by_owner = True
    disk = disk_of(store)
    for number in range(L0_COUNT):
        store.apply(0, b"a1", bytes(range(97, 98 + number)))
        flush(store)
    assert do_job(store).kind == "compact"
    assert store.leavings.has_files
    again = open_store(disk.kill(), SETS, SETTINGS["tiny caches"])
    names = disk_of(again).names()
    assert [name for name in names if name.endswith(".sst")] == [t.name for t in again.tables]
    assert again.read_now(0, b"a1") == b"abcdefgh"
    again.apply(0, b"b", b"x")
    flush(again)
    assert len([name for name in disk_of(again).names() if name.endswith(".log")]) == 1


def test_abandoning_a_job_of_several_tables_leaves_none_of_them() -> None:
    store = new_store(SETTINGS["no caches"])
    for number in range(3):
        for row in range(20):
            store.apply(0, b"a%02d" % row, bytes(range(number, 100 + number)))
        flush(store)
    expected = contents(store)
    job = store.next_job(0)
    assert job is not None
    assert len(run_job(store.disk, job, SETS).tables) > 2
    store.disk.create(f"{job.output[:-4]}-9.sst.tmp").close()
    store.abandon(job)
    assert compact(store)
    tables = {name for name in store.disk.names() if ".sst" in name}
    assert tables == {table.name for table in store.tables}
    assert contents(store) == expected
