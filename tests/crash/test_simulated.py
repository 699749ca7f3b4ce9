"""The store over the simulated disk loses nothing that it acknowledged, and each planted bug that would is found.

The long form is `python -m tests.crash.simulated`. A plant changes one line's worth of the product, and has to be found
within `SEEDS_MAX` worlds: else the simulation would prove nothing about that line.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import pytest

from cluster.record import CODEC
from engine import compaction, log, log_format, manifest, snapshot
from engine import store as store_module
from engine.block import Block
from engine.disk import Disk
from engine.drop import DropIndex
from engine.errors import DiskError, SyncError
from engine.job import Job, JobResult
from engine.levels import Levels
from engine.log import CommitLog
from engine.manifest import Manifest
from engine.sstable import TEMPORARY_SUFFIX, Table, TableWriter
from engine.store import Prepared, Store
from tests.crash.simulated import World
from tests.crash.simulated_counts import Counts
from tests.engine.segments import remove_before
from tests.sim.disk import FAULT_KINDS, SimDisk, SimFile

SEEDS_MAX = 150

Plant = Callable[[pytest.MonkeyPatch], None]


def test_nothing_acknowledged_is_lost() -> None:
    counts = Counts()
    for seed in range(1000, 1040):
        World(seed, counts).run()
    print(counts)
    # What did not happen was not tested.
    assert all(counts.fired[kind] for kind in FAULT_KINDS)
    assert counts.acknowledged > 10_000
    assert counts.lost_unacknowledged > 1000
    assert min(counts.power_cuts, counts.kills, counts.full_disks) >= 50
    assert min(counts.flushes, counts.cuts_in_jobs, counts.cuts_in_starts) > 50
    assert min(counts.jobs_beside_another, counts.short_flushes) > 50
    assert min(counts.compactions, counts.snapshots_opened, counts.removals) > 20
    assert min(counts.flips_in_tables, counts.flips_in_log, counts.flips_in_manifest) > 5
    assert counts.damaged_tails > 5
    assert min(counts.refused_starts_for_damage, counts.refused_reads_for_damage) > 5
    assert counts.levels_max > 2


def test_the_same_seed_gives_the_same_world() -> None:
    first, second = Counts(), Counts()
    World(17, first).run()
    World(17, second).run()
    assert first == second


@pytest.mark.parametrize("seed", [20071, 50027])
def test_worlds_that_found_something(seed: int) -> None:
    """The end of the log was lost with what had come back before damage was accepted; a drop had a part in a flush."""
    World(seed).run()


def without_sync(patch: pytest.MonkeyPatch, suffix: str) -> None:
    """Files of this kind are never forced to the disk."""
    original = SimFile.sync

    def sync(self: SimFile) -> None:
        if not self.name.endswith(suffix):
            original(self)

    patch.setattr(SimFile, "sync", sync)


def log_that_is_not_synced(patch: pytest.MonkeyPatch) -> None:
    without_sync(patch, ".log")


def table_that_is_not_synced(patch: pytest.MonkeyPatch) -> None:
    without_sync(patch, TEMPORARY_SUFFIX)
    # The manifest has the same suffix while it is written, and is not what is meant here.
    write = manifest.write

    def write_and_sync(disk: Disk, content: Manifest) -> None:
        with pytest.MonkeyPatch.context() as inner:
            inner.setattr(SimFile, "sync", lambda self: self._disk.change(self._sync))
            write(disk, content)

    patch.setattr(manifest, "write", write_and_sync)


def manifest_that_is_not_synced(patch: pytest.MonkeyPatch) -> None:
    without_sync(patch, manifest.NAME + TEMPORARY_SUFFIX)


def log_without_folder_sync(patch: pytest.MonkeyPatch) -> None:
    original = CommitLog.sync

    def sync(self: CommitLog) -> int:
        self._has_new_names = False
        return original(self)

    patch.setattr(CommitLog, "sync", sync)


def without_name_sync(disk: SimDisk, operate: Callable[[], None]) -> None:
    with pytest.MonkeyPatch.context() as inner:
        inner.setattr(SimDisk, "sync_names", lambda self: None)
        operate()


def manifest_without_folder_sync(patch: pytest.MonkeyPatch) -> None:
    write = manifest.write
    patch.setattr(
        manifest,
        "write",
        lambda disk, content: without_name_sync(disk, lambda: write(disk, content)),
    )


def table_name_that_is_not_synced_first(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(
        Store, "write_manifest", lambda self, prepared: write_manifest_without_names(self, prepared)
    )


def write_manifest_without_names(store: Store, prepared: Prepared) -> None:
    from engine.sstable import Table

    prepared.tables += [Table.open(store.disk, name) for name in prepared.made]
    manifest.write(store.disk, prepared.manifest)


def log_removed_before_the_manifest(patch: pytest.MonkeyPatch) -> None:
    original = Store.write_manifest

    def write_manifest(self: Store, prepared: Prepared) -> None:
        remove_before(self.log, prepared.manifest.log_start)
        original(self, prepared)

    patch.setattr(Store, "write_manifest", write_manifest)


def tables_removed_before_the_manifest(patch: pytest.MonkeyPatch) -> None:
    original = Store.write_manifest

    def write_manifest(self: Store, prepared: Prepared) -> None:
        for table in self.tables:
            if table.name not in prepared.manifest.tables:
                self.disk.remove(table.name)
        original(self, prepared)

    patch.setattr(Store, "write_manifest", write_manifest)


def manifest_that_knows_drops_before_the_log(patch: pytest.MonkeyPatch) -> None:
    def manifest_with(
        self: Store, log_start: int, names: list[list[str]], state: bytes
    ) -> Manifest:
        drops = list(self.manifest.drops)
        return Manifest(
            manifest.FORMAT_VERSION, log_start, self._schedule.next_table, names, drops, state
        )

    patch.setattr(Store, "_manifest_with", manifest_with)


def compaction_that_believes_drops_before_the_log(patch: pytest.MonkeyPatch) -> None:
    original = Store.next_job

    def next_job(self: Store, *args: Any) -> Job | None:
        job = original(self, *args)
        if job is not None:
            job.drops = list(self.manifest.drops)
        return job

    patch.setattr(Store, "next_job", next_job)


def log_that_forgets_what_found_no_room(patch: pytest.MonkeyPatch) -> None:
    original = CommitLog.write_frame

    def write_frame(self: CommitLog) -> int:
        try:
            return original(self)
        except DiskError:
            self.pieces.clear()
            raise

    patch.setattr(CommitLog, "write_frame", write_frame)


def table_names_that_are_used_again(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Store, "_take_table_numbers", lambda self, current: None)


def deletion_that_is_forgotten(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(type(CODEC), "stub", lambda self, raw: b"\x01" + raw[1:25] + b"back again")


def drops_that_are_forgotten(patch: pytest.MonkeyPatch) -> None:
    def retire(self: Store) -> None:
        self.manifest.drops = []

    patch.setattr(Store, "_retire_drops", retire)


def tables_without_checksums(patch: pytest.MonkeyPatch) -> None:
    def decoded(self: Table, number: int, stored: bytes) -> Block:
        raw_length = self._raw_lengths[number]
        return Block(stored if raw_length == len(stored) else self._unpack(stored, raw_length))

    patch.setattr(Table, "decode", decoded)


def log_without_checksums(patch: pytest.MonkeyPatch) -> None:
    for module in (log, log_format):
        patch.setattr(module, "xxh3_64_intdigest", lambda data, seed=0: 0)


def failed_sync_that_is_tried_again(patch: pytest.MonkeyPatch) -> None:
    original = CommitLog.sync

    def sync(self: CommitLog) -> int:
        try:
            return original(self)
        except SyncError:
            self.failure = None
            return original(self)

    patch.setattr(CommitLog, "sync", sync)


def table_whose_failed_write_is_ignored(patch: pytest.MonkeyPatch) -> None:
    original = TableWriter._write_out

    def write_out(self: TableWriter) -> None:
        with contextlib.suppress(DiskError):
            original(self)

    patch.setattr(TableWriter, "_write_out", write_out)


def table_that_is_not_finished(patch: pytest.MonkeyPatch) -> None:
    """A start takes what a job left half done for what it was to become."""
    original = manifest.read

    def read(disk: Disk) -> Manifest | None:
        current = original(disk)
        if current is not None:
            left = [name for name in disk.names() if name.endswith(".sst" + TEMPORARY_SUFFIX)]
            for name in left:
                whole = name.removesuffix(TEMPORARY_SUFFIX)
                disk.rename(name, whole)
                current.levels[0].insert(0, whole)
        return current

    patch.setattr(manifest, "read", read)


def everything_is_at_the_bottom(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(compaction._State, "is_bottom", lambda self, inputs, level: True)


def flush_that_is_always_at_the_bottom(patch: pytest.MonkeyPatch) -> None:
    original = Store.next_job

    def next_job(self: Store, *args: Any) -> Job | None:
        job = original(self, *args)
        if job is not None and job.kind == "flush":
            job.is_bottom = True
        return job

    patch.setattr(Store, "next_job", next_job)


def oldest_table_first(patch: pytest.MonkeyPatch) -> None:
    original = Levels.__init__

    def init(self: Levels, levels: Any) -> None:
        original(self, levels)
        self._newest = self._newest[::-1]

    patch.setattr(Levels, "__init__", init)


def drop_without_position(patch: pytest.MonkeyPatch) -> None:
    def hides(self: DropIndex, slot: int, tag: int, position_max: int) -> bool:
        return bool({tag, manifest.ALL_TAGS} & self.of_slot(slot).keys())

    patch.setattr(DropIndex, "hides", hides)


def move_that_forgets_its_tables(patch: pytest.MonkeyPatch) -> None:
    original = Levels.names_after

    def names_after(self: Levels, job: Job, result: JobResult) -> list[list[str]]:
        names = original(self, job, result)
        if job.kind == "move":
            names = [[name for name in level if name not in job.inputs] for level in names]
        return names

    patch.setattr(Levels, "names_after", names_after)


def removal_without_manifest(patch: pytest.MonkeyPatch) -> None:
    original = Store.write_manifest

    def write_manifest(self: Store, prepared: Prepared) -> None:
        if prepared.made:
            original(self, prepared)

    patch.setattr(Store, "write_manifest", write_manifest)


def snapshot_whose_log_is_not_synced(patch: pytest.MonkeyPatch) -> None:
    original = snapshot.finish

    def finish(*args: Any) -> snapshot.Snapshot:
        with pytest.MonkeyPatch.context() as inner:
            inner.setattr(CommitLog, "sync", lambda self: self.position)
            inner.setattr(snapshot, "_sync_file", lambda folder, name: None)
            return original(*args)

    patch.setattr(snapshot, "finish", finish)


def drops_that_nothing_vouches_for(patch: pytest.MonkeyPatch) -> None:
    """A start believes a log that ends before what jobs have carried out."""
    patch.setattr(store_module, "vouched", lambda current, tables: 0)


def drops_that_only_tables_vouch_for(patch: pytest.MonkeyPatch) -> None:
    """What took a whole table leaves none."""
    patch.setattr(Store, "_carried_out_by", lambda self, job: 0)


@pytest.mark.parametrize(
    "plant",
    [
        log_that_is_not_synced,
        log_without_folder_sync,
        table_that_is_not_synced,
        table_name_that_is_not_synced_first,
        manifest_that_is_not_synced,
        manifest_without_folder_sync,
        log_removed_before_the_manifest,
        tables_removed_before_the_manifest,
        manifest_that_knows_drops_before_the_log,
        compaction_that_believes_drops_before_the_log,
        log_that_forgets_what_found_no_room,
        table_names_that_are_used_again,
        deletion_that_is_forgotten,
        drops_that_are_forgotten,
        tables_without_checksums,
        log_without_checksums,
        failed_sync_that_is_tried_again,
        table_whose_failed_write_is_ignored,
        table_that_is_not_finished,
        everything_is_at_the_bottom,
        flush_that_is_always_at_the_bottom,
        oldest_table_first,
        drop_without_position,
        move_that_forgets_its_tables,
        removal_without_manifest,
        snapshot_whose_log_is_not_synced,
        drops_that_nothing_vouches_for,
        drops_that_only_tables_vouch_for,
    ],
)
def test_a_planted_bug_is_found(plant: Plant, monkeypatch: pytest.MonkeyPatch) -> None:
    plant(monkeypatch)
    for seed in range(SEEDS_MAX):
        try:
            World(seed).run()
        except Exception as found:  # Bytes that no checksum stopped do anything.
            print(f"{plant.__name__}: found in the world of seed {seed}: {found!r}")
            return
    pytest.fail(f"not found in {SEEDS_MAX} worlds")
