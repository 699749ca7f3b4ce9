"""Bugs that the model test and the simulated disk found in the engine, each in its smallest form."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from engine import snapshot
from engine.errors import EngineError, SyncError
from engine.job import run_job
from engine.store import Store
from tests.engine.stores import open_store
from tests.model.configuration import CONFIGURATIONS
from tests.model.record import CODEC, Record
from tests.sim.disk import SimDisk

SETTINGS = replace(CONFIGURATIONS["large"].settings, l0_count=9)
SEEDS = range(20)


def opened(disk: SimDisk) -> Store:
    return open_store(disk, CODEC, SETTINGS)


def put(store: Store, row: bytes, time: int) -> None:
    record = Record(time, is_dead=False, value=b"value")
    store.apply(0, row, record.encode())


def work(store: Store, disk: SimDisk) -> str | None:
    """Do the next job, if there is one, and say of which kind it was."""
    job = store.next_job(0)
    if job is None:
        return None
    result = run_job(disk.again(), job, CODEC)
    prepared = store.prepare(job, result)
    store.write_manifest(prepared)
    store.install(job, result, prepared)
    return job.kind


def test_a_durable_drop_is_not_forgotten_for_a_later_one_that_a_power_cut_takes() -> None:
    for seed in SEEDS:
        disk = SimDisk(random.Random(seed))
        store = opened(disk)
        for tag in (0, 1, 2):
            put(store, bytes([tag]), time=tag + 1)
        store.write()
        store.freeze()
        assert work(store, disk) == "flush"
        store.drop([0, 1])
        store.write()
        store.log.sync()
        disk = disk.kill()
        store = opened(disk)  # Now the drop has the position of its frame's end.
        store.drop([0])
        store.write()
        work(store, disk)
        store = opened(disk.crash())
        assert store.read_now(0, b"\0") is None, f"seed {seed}"


def test_a_failed_sync_of_a_snapshot_is_one_of_the_log() -> None:
    for seed in SEEDS:
        disk = SimDisk(random.Random(seed))
        store = opened(disk)
        put(store, b"\0row", time=1)
        store.write()
        snapshot.make_folder(disk, "first")
        folder = snapshot.open_folder(disk, "first")
        begun = snapshot.begin(store, folder, b"")
        disk.faults.sync_error_in = 1
        with pytest.raises(SyncError):
            snapshot.finish(store.log, begun, "first", 0)
        try:
            store.log.sync()
        except EngineError:  # The node leaves service: nothing was acknowledged.
            continue
        store = opened(disk.crash())
        assert store.read_now(0, b"\0row") is not None, f"seed {seed}"
