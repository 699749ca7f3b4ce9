"""Verification finds each flipped bit, what is missing and what contradicts; and nothing in a sound folder."""

from __future__ import annotations

import random

import msgspec
import pytest

from engine import manifest, snapshot
from engine.errors import UnknownFormatError
from engine.log_format import frame_offset
from engine.store import Store
from engine.verify import LOCK_NAME, Report, verify
from tests.engine.test_snapshot import flush, inside, open_store, put, work
from tests.engine.toy import register
from tests.sim.disk import SimDisk


def filled() -> Store:
    store = open_store(SimDisk(random.Random(1)))
    for time in range(1, 3):
        put(store, time, count=40)
        flush(store)
    put(store, 9)
    store.write()
    put(store, 10)
    store.write()
    return store


@pytest.fixture
def folder() -> SimDisk:
    """A snapshot, with tables and several frames in its log."""
    store = filled()
    snapshot.take(store, "s", b"", 1000)
    found = inside(store.disk, "s")
    assert isinstance(found, SimDisk)
    return found


def stopped() -> SimDisk:
    store = filled()
    store.close()
    disk = store.disk
    assert isinstance(disk, SimDisk)
    return disk.kill()


def killed() -> SimDisk:
    disk = filled().disk
    assert isinstance(disk, SimDisk)
    return disk.kill()


def names_of(report: Report) -> set[str]:
    return {damage.name for damage in report.damages}


def test_a_snapshot_and_stopped_folders_are_sound(folder: SimDisk) -> None:
    for disk in (folder, stopped(), killed()):
        before = {name: disk.size(name) for name in disk.names()}
        report = verify(disk)
        assert report.damages == []
        assert (report.torn, report.strays) == ((), [])
        assert report.table_count == 2
        assert report.segment_count >= 1
        assert report.entry_count == 40 + 40 + 20 + 20
        assert {name: disk.size(name) for name in disk.names()} == before


def test_every_flipped_byte_is_found_with_its_file(folder: SimDisk) -> None:
    """Byte by byte: blocks, index, filter, meta and footer of tables, headers and frames, the manifest."""
    files = [name for name in folder.names() if name != snapshot.NOTE]
    assert {name.rpartition(".")[2] for name in files} == {"sst", "log", "manifest"}
    for name in files:
        for offset in range(folder.size(name)):
            folder.flip_bit(name, offset, bit=offset % 8)
            try:
                report = verify(folder)
                assert names_of(report) == {name}, (name, offset)
            except UnknownFormatError as error:
                # A table's version is under its checksum.
                raise AssertionError((name, offset)) from error
            finally:
                folder.flip_bit(name, offset, bit=offset % 8)
    assert verify(folder).is_sound


def test_damage_is_where_the_report_says(folder: SimDisk) -> None:
    (name, *_) = (name for name in folder.names() if name.endswith(".sst"))
    folder.flip_bit(name, 0)
    folder.flip_bit(name, 150)
    first, second = verify(folder).damages
    assert (first.name, first.offset) == (name, 0)
    assert 0 < second.offset <= 150
    assert str(first).startswith(f"{name} at offset 0: expected 0x")


def test_damage_in_several_files_is_all_reported(folder: SimDisk) -> None:
    damaged = [name for name in folder.names() if name.endswith((".sst", ".log"))][:3]
    for name in damaged:
        folder.flip_bit(name, 20)
    assert names_of(verify(folder)) == set(damaged)


def test_damage_in_several_segments_is_all_reported() -> None:
    store = filled()
    for number in range(3):
        put(store, 20 + number)
        snapshot.take(store, f"s{number}", b"", 1000)  # Each seals a segment.
    folder = inside(store.disk, "s2")
    assert isinstance(folder, SimDisk)
    *segments, _ = (name for name in folder.names() if name.endswith(".log"))
    assert len(segments) == 3
    for name in segments[1:]:
        folder.flip_bit(name, folder.size(name) - 1)
    assert names_of(verify(folder)) == set(segments[1:])


@pytest.mark.parametrize("ending", [".sst", ".log"])
def test_a_missing_file_is_found(folder: SimDisk, ending: str) -> None:
    name = next(name for name in folder.names() if name.endswith(ending))
    folder.remove(name)
    assert names_of(verify(folder)) == {name}


def test_a_folder_without_a_manifest_is_damaged(folder: SimDisk) -> None:
    folder.remove(manifest.NAME)
    assert names_of(verify(folder)) == {manifest.NAME}
    assert names_of(verify(SimDisk(random.Random(1)))) == {manifest.NAME}


def test_a_torn_end_is_no_damage_and_is_told() -> None:
    disk = killed()
    last = max(name for name in disk.names() if name.endswith(".log"))
    file = disk.open_append(last)
    file.truncate(file.size - 3)
    report = verify(disk)
    assert report.is_sound
    (torn,) = report.torn
    assert torn.name == last
    assert torn.offset + torn.bytes_count == file.size


@pytest.mark.parametrize("has_more", [False, True])
def test_an_end_of_the_log_with_what_was_carried_out_is_never_taken_for_torn(
    has_more: bool,
) -> None:
    """A drop of some rows, or of all; after it stands what nobody vouches for."""
    store = open_store(SimDisk(random.Random(1)))
    put(store, 1)
    if has_more:
        store.apply(3, b"b", register(1, b"kept"))
    flush(store)
    marker = store.log.position
    store.drop([ord("a")])
    store.write()
    store.log.sync()
    work(store)
    assert bool(store.tables) == has_more
    assert isinstance(store.disk, SimDisk)
    disk = store.disk.kill()
    name, base = store.log.segment.name, store.log.segment.base
    offset = frame_offset(base, marker)
    damaged = disk.flip_bit(name, offset + 30)
    (found,) = verify(disk).damages
    assert (found.name, found.offset) == (name, offset)
    damaged.heal()
    assert verify(disk).is_sound
    lost = disk.lose(name)
    (found,) = verify(disk).damages
    assert (found.name, found.offset) == (name, 0)
    assert found.what.startswith("expected the log up to position ")
    lost.heal()
    file = disk.open_append(name)
    file.append(b"torn")
    report = verify(disk)
    assert report.is_sound
    assert [torn.bytes_count for torn in report.torn] == [4]


def test_a_snapshot_that_a_node_was_started_on_may_have_a_torn_end(folder: SimDisk) -> None:
    last = max(name for name in folder.names() if name.endswith(".log"))
    folder.flip_bit(last, 0)
    assert names_of(verify(folder)) == {last}
    folder.create(LOCK_NAME)
    report = verify(folder)
    assert report.is_sound
    assert [torn.name for torn in report.torn] == [last]


def test_leftovers_are_told(folder: SimDisk) -> None:
    folder.create("0000000000000099.sst")
    folder.create("0000000000000098.sst.tmp")
    report = verify(folder)
    assert report.is_sound
    assert report.strays == ["0000000000000098.sst.tmp", "0000000000000099.sst"]


def test_tables_that_contradict_each_other_are_found(folder: SimDisk) -> None:
    current = manifest.read(folder)
    assert current is not None
    newest, older = current.tables
    turned = msgspec.structs.replace(current, levels=[[older, newest]])
    report = verify(folder, current=turned)
    assert names_of(report) == {older}
    assert "overlap" in report.damages[0].what


def test_tables_of_a_deeper_level_do_not_overlap(folder: SimDisk) -> None:
    current = manifest.read(folder)
    assert current is not None
    newest, older = current.tables
    for levels, is_sound in (([[newest], [older]], True), ([[], [newest, older]], False)):
        report = verify(folder, current=msgspec.structs.replace(current, levels=levels))
        assert report.is_sound == is_sound


def test_progress_comes_to_the_size_of_the_files(folder: SimDisk) -> None:
    told: dict[str, int] = {}

    def tell(name: str, count: int) -> None:
        told[name] = told.get(name, 0) + count

    verify(folder, is_cold=True, told=tell)
    assert told == {
        name: folder.size(name) for name in folder.names() if name.endswith((".sst", ".log"))
    }
