"""Snapshots: what they hold, that jobs and crashes do not hurt them, and what is refused."""

from __future__ import annotations

import random
from contextlib import closing, suppress
from pathlib import Path

import pytest

from engine import manifest, snapshot
from engine.disk import Disk, RealDisk
from engine.errors import (
    CorruptionError,
    DiskError,
    DiskFullError,
    EngineError,
    LogFailedError,
    SyncError,
)
from engine.job import run_job
from engine.snapshot import NoSuchSnapshotError, SnapshotExistsError
from engine.store import Store, StoreSettings
from engine.verify import verify
from tests.engine import stores
from tests.engine.toy import REGISTERS, register
from tests.sim.disk import PowerCut, SimDisk

SETTINGS = StoreSettings(1 << 20, 1 << 16, 1 << 16, 1 << 20, block_bytes=100, slot_count=5)
Rows = dict[bytes, bytes]


def open_store(disk: Disk) -> Store:
    return stores.open_store(disk, REGISTERS, SETTINGS)


def put(store: Store, time: int, count: int = 20) -> Rows:
    """Write rows `a0`, `a1`, ...; what they are then."""
    rows = {b"a%d" % number: register(time, b"%d" % time) for number in range(count)}
    for row, raw in rows.items():
        store.apply(3, row, raw)
    return rows


def work(store: Store) -> None:
    while (job := store.next_job(0)) is not None:
        result = run_job(store.disk, job, REGISTERS)
        prepared = store.prepare(job, result)
        store.write_manifest(prepared)
        store.install(job, result, prepared)


def flush(store: Store) -> None:
    store.freeze()
    work(store)


def rows_of(store: Store) -> Rows:
    rows: Rows = {}
    start: bytes | None = b""
    while start is not None:
        found, start = store.scan(3, start, 1000)
        rows.update(found)
    return rows


def inside(disk: Disk, name: str) -> Disk:
    return disk.folder(snapshot.FOLDER).folder(name)


def filled() -> tuple[Store, Rows]:
    """A store with rows in tables, in a frozen memtable, in the memtable, and not even written."""
    store = open_store(SimDisk(random.Random(1)))
    put(store, 1)
    flush(store)
    put(store, 2, count=15)
    store.freeze()
    put(store, 3, count=10)
    store.write()
    put(store, 4, count=5)
    expected = {b"a%d" % n: register(t, b"%d" % t) for n, t in _times().items()}
    assert rows_of(store) == expected
    return store, expected


def _times() -> dict[int, int]:
    return {n: 4 if n < 5 else 3 if n < 10 else 2 if n < 15 else 1 for n in range(20)}


def test_a_snapshot_holds_everything_applied_so_far() -> None:
    store, expected = filled()
    taken = snapshot.take(store, "s", b"state", 1000)
    put(store, 9)
    flush(store)
    assert rows_of(open_store(inside(store.disk, "s"))) == expected
    assert (taken.name, taken.taken_ms) == ("s", 1000)
    assert rows_of(store) == {row: register(9, b"9") for row in expected}


def test_a_snapshot_has_the_state_that_it_is_given_and_the_manifest_s_rest() -> None:
    store, _ = filled()
    snapshot.take(store, "s", b"state", 1000)
    copy = manifest.read(inside(store.disk, "s"))
    assert copy is not None
    assert copy.state == b"state"
    assert copy.log_start == store.manifest.log_start
    assert store.manifest.state == b""


def test_a_drop_that_is_not_flushed_holds_in_the_snapshot() -> None:
    store, _ = filled()
    work(store)
    store.drop([ord("a")])
    store.apply(3, b"a1", register(5, b"new"))
    snapshot.take(store, "s", b"", 1000)
    copy, own = manifest.read(inside(store.disk, "s")), manifest.read(store.disk)
    assert copy is not None
    assert own is not None
    assert store.manifest.drops
    assert copy.drops == own.drops  # The drop is in the log.
    assert rows_of(open_store(inside(store.disk, "s"))) == {b"a1": register(5, b"new")}


def test_jobs_that_remove_files_hurt_no_snapshot() -> None:
    store, expected = filled()
    folder_name = "s"
    snapshot.make_folder(store.disk, folder_name)
    with closing(snapshot.open_folder(store.disk, folder_name)) as folder:
        begun = snapshot.begin(store, folder, b"")
        for time in range(10, 20):  # All tables and segments are replaced meanwhile.
            put(store, time)
            flush(store)
        assert not set(begun.segments) & set(store.disk.names())
        snapshot.finish(store.log, begun, folder_name, 1000)
    assert rows_of(open_store(inside(store.disk, "s"))) == expected


def test_a_segment_that_the_log_forgot_meanwhile_is_durable_in_the_snapshot() -> None:
    for seed in range(20):
        store, expected = filled()
        disk = store.disk
        assert isinstance(disk, SimDisk)
        disk._platter.rng.seed(seed)
        snapshot.make_folder(disk, "s")
        folder = snapshot.open_folder(disk, "s")
        begun = snapshot.begin(store, folder, b"")
        flush(store)  # Its tables replace the segments, which were never synced.
        snapshot.finish(store.log, begun, "s", 1000)
        assert rows_of(open_store(inside(disk.crash(), "s"))) == expected


def test_a_sync_of_the_log_that_fails_meanwhile_fails_the_snapshot() -> None:
    """The kernel shows the bytes that it lost, and a later sync of them succeeds."""
    store, _ = filled()
    disk = store.disk
    assert isinstance(disk, SimDisk)
    snapshot.make_folder(disk, "s")
    folder = snapshot.open_folder(disk, "s")
    begun = snapshot.begin(store, folder, b"")
    disk.faults.sync_error_in = 1
    with pytest.raises(SyncError):
        store.log.sync()
    with pytest.raises(LogFailedError):
        snapshot.finish(store.log, begun, "s", 1000)
    assert snapshot.snapshots_of(disk) == []


def test_the_log_goes_on_and_can_be_recovered() -> None:
    store, _ = filled()
    for number in range(3):
        snapshot.take(store, f"s{number}", b"", 1000)
        put(store, 10 + number)
        store.write()
    expected = rows_of(store)
    store.log.sync()
    disk = store.disk
    assert isinstance(disk, SimDisk)
    assert rows_of(open_store(disk.crash())) == expected


def test_an_empty_store_has_an_empty_snapshot() -> None:
    store = open_store(SimDisk(random.Random(1)))
    snapshot.take(store, "s", b"", 1000)
    assert rows_of(open_store(inside(store.disk, "s"))) == {}


@pytest.mark.parametrize("seed", range(300))
def test_after_a_power_cut_a_snapshot_is_whole_or_unfinished(seed: int) -> None:
    rng = random.Random(seed)
    store, expected = filled()
    disk = store.disk
    assert isinstance(disk, SimDisk)
    disk._platter.rng.seed(seed)
    disk.faults.power_cut_in = rng.randrange(1, 30)
    is_taken = False
    try:
        snapshot.take(store, "s", b"", 1000)
        is_taken = True
    except PowerCut:
        pass
    disk = disk.crash()
    names = [each.name for each in snapshot.snapshots_of(disk)]
    assert names == ["s"] or not is_taken
    if names:
        assert verify(inside(disk, "s")).is_sound
        assert rows_of(open_store(inside(disk, "s"))) == expected
    else:
        store = open_store(disk)
        expected = rows_of(store)
        snapshot.take(store, "s", b"", 2000)  # What is left of the first one is no hindrance.
        assert rows_of(open_store(inside(disk, "s"))) == expected


def test_a_finished_snapshot_survives_a_power_cut_of_a_store_that_never_synced() -> None:
    for seed in range(20):
        store, expected = filled()
        disk = store.disk
        assert isinstance(disk, SimDisk)
        disk._platter.rng.seed(seed)
        snapshot.take(store, "s", b"", 1000)
        assert rows_of(open_store(inside(disk.crash(), "s"))) == expected


def test_damage_at_the_end_of_its_log_is_never_taken_for_a_torn_write() -> None:
    store, _ = filled()
    snapshot.take(store, "s", b"", 1000)
    folder = inside(store.disk, "s")
    assert isinstance(folder, SimDisk)
    segments = [name for name in folder.names() if name.endswith(".log")]
    folder.flip_bit(segments[-2], folder.size(segments[-2]) - 1)
    with pytest.raises(CorruptionError):
        open_store(folder)


def test_a_name_is_used_once_until_it_is_dropped() -> None:
    store, _ = filled()
    snapshot.take(store, "s", b"", 1000)
    with pytest.raises(SnapshotExistsError, match="/sim/snapshots/s"):
        snapshot.take(store, "s", b"", 1000)
    assert [each.name for each in snapshot.snapshots_of(store.disk)] == ["s"]
    assert snapshot.drop(store.disk, "s").taken_ms == 1000
    assert snapshot.snapshots_of(store.disk) == []
    with pytest.raises(NoSuchSnapshotError):
        snapshot.drop(store.disk, "s")
    snapshot.take(store, "s", b"", 2000)
    assert [each.taken_ms for each in snapshot.snapshots_of(store.disk)] == [2000]


def test_nothing_to_drop_in_a_folder_that_has_no_snapshots() -> None:
    with pytest.raises(NoSuchSnapshotError):
        snapshot.drop(SimDisk(random.Random(1)), "s")


@pytest.mark.parametrize("seed", range(100))
def test_after_a_power_cut_a_dropped_snapshot_is_whole_or_gone(seed: int) -> None:
    store, _ = filled()
    snapshot.take(store, "s", b"", 1000)
    disk = store.disk
    assert isinstance(disk, SimDisk)
    disk._platter.rng.seed(seed)
    disk.faults.power_cut_in = 1 + seed % 12
    with suppress(PowerCut):
        snapshot.drop(disk, "s")
    disk = disk.crash()
    for each in snapshot.snapshots_of(disk):
        assert verify(inside(disk, each.name)).is_sound


def test_no_room_leaves_no_snapshot_and_a_store_that_goes_on() -> None:
    for spare in range(0, 400, 20):
        store, expected = filled()
        disk = store.disk
        assert isinstance(disk, SimDisk)
        store.write()
        disk.faults.capacity_bytes = (1 << 40) - disk.free_bytes() + spare
        try:
            snapshot.take(store, "s", b"", 1000)
        except DiskFullError:
            assert snapshot.snapshots_of(disk) == []
            assert disk.folder("snapshots").folder("s").names() == []
        disk.faults.capacity_bytes = None
        put(store, 9)
        store.write()
        assert rows_of(store) == {row: register(9, b"9") for row in expected}


def test_a_failed_sync_finishes_no_snapshot() -> None:
    failures: set[type[EngineError]] = set()
    for count in range(1, 12):
        store, _ = filled()
        disk = store.disk
        assert isinstance(disk, SimDisk)
        disk.faults.sync_error_in = count
        try:
            snapshot.take(store, "s", b"", 1000)
        except (SyncError, LogFailedError, DiskError) as error:
            failures.add(type(error))
            disk.faults.sync_error_in = None
            assert snapshot.snapshots_of(disk) == []
        else:
            break
    assert failures
    assert count > 5


def test_a_log_that_failed_is_not_linked() -> None:
    store, _ = filled()
    disk = store.disk
    assert isinstance(disk, SimDisk)
    store.write()
    disk.faults.sync_error_in = 1
    with pytest.raises(SyncError):
        store.log.sync()
    with pytest.raises(LogFailedError):
        snapshot.take(store, "s", b"", 1000)
    assert snapshot.snapshots_of(disk) == []


def test_on_a_real_disk_the_files_are_hard_links(tmp_path: Path) -> None:
    disk = RealDisk(str(tmp_path / "data"))
    store = open_store(disk)
    put(store, 1)
    flush(store)
    expected = put(store, 2)
    taken = snapshot.take(store, "s", b"", 1000)
    folder = tmp_path / "data" / "snapshots" / "s"
    (table,) = folder.glob("*.sst")
    assert table.samefile(tmp_path / "data" / table.name)
    assert taken.file_bytes == sum(
        path.stat().st_size
        for path in folder.iterdir()
        if path.name not in ("snapshot", "manifest")
    )
    put(store, 3)
    flush(store)
    assert rows_of(open_store(inside(disk, "s"))) == expected
    store.close()


@pytest.mark.parametrize("seed", range(30))
def test_a_cut_while_one_is_given_up_leaves_all_of_it_or_none(seed: int) -> None:
    """Its manifest may be there already, if only the confirmation of its name failed."""
    store, expected = filled()
    disk = store.disk
    assert isinstance(disk, SimDisk)
    disk._platter.rng.seed(seed)
    snapshot.take(store, "s", b"", 1000)
    folder = snapshot.open_folder(disk, "s")
    disk.faults.power_cut_in = 1 + seed % 15
    with suppress(PowerCut):
        snapshot.clear(folder)
    after = disk.crash()
    if snapshot.snapshots_of(after):
        assert rows_of(open_store(inside(after, "s"))) == expected
