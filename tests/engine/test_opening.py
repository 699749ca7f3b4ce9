"""What a start finds in a data folder: leftovers, levels, and the layout of an older format."""

from __future__ import annotations

import msgspec
from xxhash import xxh3_64_intdigest

from engine import manifest
from engine.job import run_job
from engine.manifest import Drop
from tests.engine.stores import (
    SETTINGS,
    contents,
    disk_of,
    do_job,
    fill_levels,
    flush,
    new_store,
    open_store,
)
from tests.engine.toy import SETS
from tests.sim.disk import SimDisk


def test_leftovers_of_lost_jobs_are_removed_at_the_start() -> None:
    store = new_store()
    store.apply(0, b"a1", b"x")
    flush(store)
    store.apply(0, b"a2", b"y")
    store.freeze()
    job = store.next_job(0)
    assert job is not None
    run_job(store.disk, job, SETS)
    store.disk.create("0000000000000099.sst.tmp").close()
    live = store.tables[0].name
    store = open_store(disk_of(store).kill(), SETS, SETTINGS["tiny caches"])
    names = store.disk.names()
    assert [name for name in names if ".sst" in name or ".tmp" in name] == [live]
    assert [store.get(0, row) for row in (b"a1", b"a2")] == [b"x", b"y"]
    store.freeze()
    do_job(store)
    assert job.output not in store.disk.names()


def test_levels_are_found_again_after_a_restart() -> None:
    store = new_store(SETTINGS["no caches"])
    fill_levels(store)
    expected, levels = contents(store), store.levels.names
    assert levels == store.manifest.levels
    store.close()
    store = open_store(disk_of(store).kill(), SETS, SETTINGS["no caches"])
    assert store.levels.names == levels
    assert contents(store) == expected


def test_a_folder_of_format_1_is_converted() -> None:
    """Its tables become level 0 in their order, and newer rows stay in front of older ones."""
    store = new_store(SETTINGS["one block"])
    for number in range(3):
        store.apply(0, b"a1", b"%d" % number)
        store.apply(0, b"a%d" % (5 + number), b"x")
        flush(store)
    store.drop([ord("b")])
    store.close()
    disk = disk_of(store).kill()
    current = manifest.read(disk)
    assert current is not None
    fields = [1, current.log_start, current.next_table, current.levels[0], [[9, ord("z")]], b""]
    put_manifest(disk, msgspec.msgpack.encode(fields))
    store = open_store(disk, SETS, SETTINGS["one block"])
    assert store.manifest.levels == current.levels
    assert [store.get(0, row) for row in (b"a1", b"a5", b"a7")] == [b"2", b"x", b"x"]
    assert store.manifest.drops[0] == Drop(9, ord("z"))
    written = manifest.read(store.disk)
    assert written is not None
    assert written.format_version == manifest.FORMAT_VERSION == 2


def put_manifest(disk: SimDisk, body: bytes) -> None:
    disk.remove(manifest.NAME)
    file = disk.create(manifest.NAME)
    checksum = xxh3_64_intdigest(body).to_bytes(8, "little")
    file.append(manifest.MAGIC + len(body).to_bytes(8, "little") + checksum + body)
    file.sync()
    file.close()
    disk.sync_names()
