"""Backups and restores: what is copied, kept, refused, and gone on with after any interruption."""

from __future__ import annotations

import contextlib
import random

import pytest

from cluster.record import STRING
from cluster.replica import Replica
from cluster.replica_state import state_of_copy
from cluster.slot import row_of, slot_of
from engine import manifest, snapshot
from engine.disk import Disk
from engine.job import run_job
from engine.store import StoreSettings
from engine.verify import verify
from respkv.tools.copy import CopyError, DamagedError, backup, restore, size_of
from tests.sim.disk import PowerCut, SimDisk

SETTINGS = StoreSettings(1 << 30, 1 << 20, 1 << 20, 1 << 30, block_bytes=256)
ACTOR = 5
NOW_MS = 1_700_000_000_000


def new_replica(actor: int = ACTOR) -> Replica:
    return Replica.open(SimDisk(random.Random(1)), SETTINGS, actor)


def put(replica: Replica, first: int, count: int) -> None:
    for number in range(first, first + count):
        key = b"key%d" % number
        effects = {row_of(0, key): (slot_of(key), STRING, 0, b"value %d" % number)}
        replica.write(effects, NOW_MS)
    replica.store.write()


def flush(replica: Replica) -> None:
    store = replica.store
    store.freeze()
    job = store.next_job(NOW_MS)
    assert job is not None
    result = run_job(store.disk, job, store.codec)
    prepared = store.prepare(job, result)
    store.write_manifest(prepared)
    store.install(job, result, prepared)


def snapshot_of(replica: Replica, name: str) -> SimDisk:
    store = replica.store
    snapshot.take(store, name, state_of_copy(store.manifest.state), NOW_MS)
    folder = store.disk.folder("snapshots").folder(name)
    assert isinstance(folder, SimDisk)
    return folder


def filled() -> tuple[Replica, SimDisk]:
    replica = new_replica()
    put(replica, 0, 50)
    flush(replica)
    put(replica, 50, 50)
    return replica, snapshot_of(replica, "s")


def empty(seed: int = 2) -> SimDisk:
    return SimDisk(random.Random(seed), path="/copy")


def nothing(count: int) -> None:
    """Hears of progress."""


def holds(disk: Disk, count: int) -> bool:
    """Whether a node on the folder has exactly the first keys."""
    replica = Replica.open(disk, SETTINGS, 1000)
    found = []
    for number in range(count + 1):
        key = b"key%d" % number
        found.append(replica.store.read_now(slot_of(key), row_of(0, key)) is not None)
    replica.store.close()
    disk.close()
    return found == [True] * count + [False]


def test_a_backup_of_a_snapshot_is_whole_and_verified() -> None:
    _, source = filled()
    target = empty()
    copied = backup(source, target, nothing)
    assert (copied.kept_count, copied.entry_count) == (0, 100)
    assert set(target.names()) == set(source.names())
    assert verify(target).is_sound
    assert holds(target, 100)


def test_progress_comes_to_twice_the_size() -> None:
    _, source = filled()
    steps: list[int] = []
    backup(source, empty(), steps.append)
    # Read once, checked once; the note has no checksum.
    assert sum(steps) == 2 * size_of(source) + source.size(snapshot.NOTE)


@pytest.mark.parametrize("is_clean", [True, False])
def test_a_stopped_folder_is_backed_up_too(is_clean: bool) -> None:
    replica, _ = filled()
    if is_clean:
        replica.store.close()
    disk = replica.store.disk
    assert isinstance(disk, SimDisk)
    target = empty()
    backup(disk.kill(), target, nothing)
    assert holds(target, 100)


def test_a_backup_that_a_power_cut_interrupted_is_gone_on_with() -> None:
    interrupted = 0
    for at in [*range(1, 40)] * 4:
        _, source = filled()
        target = empty(at + interrupted)
        target.faults.power_cut_in = at
        try:
            backup(source, target, nothing)
        except PowerCut:
            interrupted += 1
        target = target.crash()
        if manifest.NAME in target.names():
            assert verify(target).is_sound
        backup(source, target, nothing)
        assert holds(target, 100)
    assert interrupted > 40


def test_a_manifest_is_never_there_without_its_files() -> None:
    _, source = filled()
    found = set()
    for seed in range(200):
        target = empty(seed)
        target.faults.power_cut_in = 20 + seed % 7  # The last steps.
        with contextlib.suppress(PowerCut):
            backup(source, target, nothing)
        target = target.crash()
        found.add(manifest.NAME in target.names())
        if manifest.NAME in target.names():
            assert verify(target).is_sound
    assert found == {True, False}


def test_files_that_are_there_are_kept_and_damaged_ones_are_not() -> None:
    _, source = filled()
    target = empty()
    total = backup(source, target, nothing).file_count
    assert backup(source, target, nothing).kept_count == total
    target.flip_bit(next(name for name in target.names() if name.endswith(".sst")), 9)
    assert backup(source, target, nothing).kept_count == total - 1
    assert verify(target).is_sound


def test_a_backup_is_brought_up_to_date() -> None:
    replica, source = filled()
    target = empty()
    backup(source, target, nothing)
    put(replica, 100, 20)
    flush(replica)
    newer = snapshot_of(replica, "newer")
    assert backup(newer, target, nothing).kept_count > 0
    assert set(target.names()) == set(newer.names())
    assert holds(target, 120)


def test_another_node_s_backup_is_not_overwritten() -> None:
    _, source = filled()
    target = empty()
    backup(source, target, nothing)
    other = new_replica(actor=6)
    put(other, 0, 1)
    with pytest.raises(CopyError, match="another node"):
        backup(snapshot_of(other, "s"), target, nothing)
    assert holds(target, 100)


@pytest.mark.parametrize(("name", "text"), [("lock", "data folder of a node"), ("photo", "photo")])
def test_a_folder_with_something_else_is_refused(name: str, text: str) -> None:
    _, source = filled()
    target = empty()
    target.create(name)
    with pytest.raises(CopyError, match=text):
        backup(source, target, nothing)
    assert target.names() == [name]


def test_a_damaged_source_gives_no_backup_and_says_where() -> None:
    _, source = filled()
    name = next(name for name in source.names() if name.endswith(".sst"))
    source.flip_bit(name, 9)
    target = empty()
    with pytest.raises(DamagedError) as caught:
        backup(source, target, nothing)
    assert [damage.name for damage in caught.value.damages] == [name]
    assert manifest.NAME not in target.names()


def test_what_has_no_manifest_is_no_source() -> None:
    _, source = filled()
    source.remove(manifest.NAME)
    with pytest.raises(CopyError, match="unfinished"):
        backup(source, empty(), nothing)


def test_a_restored_node_is_a_new_actor_that_knows_the_old_one() -> None:
    _, source = filled()
    first, second = empty(), empty(3)
    backup(source, first, nothing)
    restore(first, second, nothing)
    replica = Replica.open(second, SETTINGS, 1000)
    assert replica.actor == 1000
    assert sum(replica.clocks.columns[ACTOR]) == 100
    assert snapshot.NOTE not in second.names()


def test_a_restore_of_a_stopped_folder_is_a_new_actor_too() -> None:
    replica, _ = filled()
    replica.store.close()
    disk = replica.store.disk
    assert isinstance(disk, SimDisk)
    target = empty()
    restore(disk.kill(), target, nothing)
    assert Replica.open(target, SETTINGS, 1000).actor == 1000


@pytest.mark.parametrize("name", ["lock", "manifest", "photo", "00000000000000099999.log"])
def test_a_restore_needs_an_empty_folder(name: str) -> None:
    _, source = filled()
    target = empty()
    target.create(name)
    with pytest.raises(CopyError, match=f"not empty .{name}"):
        restore(source, target, nothing)
    assert target.names() == [name]


def test_an_interrupted_restore_cannot_be_started_on_and_is_gone_on_with() -> None:
    for at in range(1, 30):
        _, source = filled()
        target = empty(at)
        target.faults.power_cut_in = at
        with contextlib.suppress(PowerCut):
            restore(source, target, nothing)
        target = target.crash()
        if manifest.NAME not in target.names():
            restore(source, target, nothing)
        assert holds(target, 100)


def test_a_full_disk_gives_no_restore() -> None:
    _, source = filled()
    target = empty()
    target.faults.capacity_bytes = size_of(source) // 2
    with pytest.raises(Exception, match="No space left"):
        restore(source, target, nothing)
    target.faults.capacity_bytes = None
    restore(source, target, nothing)
    assert holds(target, 100)
