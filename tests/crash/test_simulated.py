"""The store over the simulated disk loses nothing that it acknowledged, and each planted bug that would is found.

The long form is `python -m tests.crash.simulated`. A plant changes one line's worth of the product, and has to be found
within `SEEDS_MAX` worlds: else the simulation would prove nothing about that line.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from cluster.record import CODEC
from engine import manifest
from engine.compaction import TIER_COUNT
from engine.disk import Disk
from engine.errors import DiskError, EngineError
from engine.job import Job
from engine.log import CommitLog
from engine.manifest import Manifest
from engine.sstable import TEMPORARY_SUFFIX
from engine.store import Prepared, Store
from tests.crash.simulated import Counts, World
from tests.sim.disk import SimDisk, SimFile

SEEDS_MAX = 150

Plant = Callable[[pytest.MonkeyPatch], None]


@pytest.mark.parametrize("first_seed", [1000, 2000, 3000, 4000])
def test_nothing_acknowledged_is_lost(first_seed: int) -> None:
    counts = Counts()
    for seed in range(first_seed, first_seed + 6):
        World(seed, counts).run()
    # What did not happen was not tested.
    assert counts.acknowledged > 1000
    assert counts.lost_unacknowledged > 100
    assert min(counts.power_cuts, counts.kills, counts.full_disks) >= 10
    assert min(counts.flushes, counts.cuts_in_jobs, counts.cuts_in_starts) > 10
    assert counts.compactions > TIER_COUNT


def test_the_same_seed_gives_the_same_world() -> None:
    first, second = Counts(), Counts()
    World(17, first).run()
    World(17, second).run()
    assert first == second


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
        self.log.remove_before(prepared.manifest.log_start)
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
    def manifest_with(self: Store, log_start: int, names: list[str], state: bytes) -> Manifest:
        drops = list(self.manifest.drops)
        return Manifest(manifest.FORMAT_VERSION, log_start, self._next_table, names, drops, state)

    patch.setattr(Store, "_manifest_with", manifest_with)


def compaction_that_believes_drops_before_the_log(patch: pytest.MonkeyPatch) -> None:
    original = Store._make_job

    def make_job(self: Store, kind: str, inputs: list[str], start: int, end: int) -> Job:
        job = original(self, kind, inputs, start, end)
        job.drops = list(self.manifest.drops)
        return job

    patch.setattr(Store, "_make_job", make_job)


def log_that_forgets_what_found_no_room(patch: pytest.MonkeyPatch) -> None:
    original = CommitLog.write

    def write(self: CommitLog) -> int:
        try:
            return original(self)
        except DiskError:
            self.pieces.clear()
            raise

    patch.setattr(CommitLog, "write", write)


def table_names_that_are_used_again(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Store, "_take_table_numbers", lambda self, current: None)


def deletion_that_is_forgotten(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(type(CODEC), "stub", lambda self, raw: b"\x01" + raw[1:25] + b"back again")


def drops_that_are_forgotten(patch: pytest.MonkeyPatch) -> None:
    def retire(self: Store) -> None:
        self.manifest.drops = []

    patch.setattr(Store, "_retire_drops", retire)


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
    ],
)
def test_a_planted_bug_is_found(plant: Plant, monkeypatch: pytest.MonkeyPatch) -> None:
    plant(monkeypatch)
    for seed in range(SEEDS_MAX):
        try:
            World(seed).run()
        except (AssertionError, EngineError) as found:
            print(f"{plant.__name__}: found in the world of seed {seed}: {found}")
            return
    pytest.fail(f"not found in {SEEDS_MAX} worlds")
