"""The manifest both ways, damaged anywhere, of another version, and cut off while it was written."""

from __future__ import annotations

import random

import msgspec
import pytest
from xxhash import xxh3_64_intdigest

from engine import manifest
from engine.damage import Damage
from engine.errors import CorruptionError, DiskError, SyncError, UnknownFormatError
from engine.manifest import ALL_TAGS, FORMAT_VERSION, MAGIC, NAME, Drop, Manifest
from tests.sim.disk import PowerCut, SimDisk

LEVELS = [["d.sst", "c.sst"], [], ["a.sst", "b.sst"]]
DROPS = [Drop(9, 3), Drop(10, 255), Drop(11, ALL_TAGS, 5, 6)]
DAMAGES = [Damage(b"a", b"b", 4, "c.sst", 1, "r")]
FULL = Manifest(FORMAT_VERSION, 12, 7, LEVELS, DROPS, b"state", DAMAGES, 14)
EMPTY = Manifest(FORMAT_VERSION, 0, 0, [[]], [], b"")
TEMPORARY = "manifest.tmp"


def new_disk(seed: int = 1) -> SimDisk:
    return SimDisk(random.Random(seed))


def put(disk: SimDisk, name: str, data: bytes) -> None:
    if name in disk.names():
        disk.remove(name)
    file = disk.create(name)
    file.append(data)
    file.sync()
    file.close()
    disk.sync_names()


def bytes_of(disk: SimDisk, name: str = NAME) -> bytes:
    file = disk.open(name)
    return file.read(0, file.size)


def written(current: Manifest) -> bytes:
    disk = new_disk()
    manifest.write(disk, current)
    return bytes_of(disk)


def framed(body: bytes) -> bytes:
    checksum = xxh3_64_intdigest(body).to_bytes(8, "little")
    return MAGIC + len(body).to_bytes(8, "little") + checksum + body


@pytest.mark.parametrize("current", [FULL, EMPTY], ids=["full", "empty"])
def test_what_is_written_is_read(current: Manifest) -> None:
    disk = new_disk()
    manifest.write(disk, current)
    assert manifest.read(disk) == current
    assert disk.names() == [NAME]


def test_a_new_one_replaces_the_old_one() -> None:
    disk = new_disk()
    manifest.write(disk, FULL)
    manifest.write(disk, EMPTY)
    assert manifest.read(disk) == EMPTY


def test_the_bytes_of_version_1_become_level_0() -> None:
    body = bytes.fromhex("96010c0792a5") + b"b.sst" + b"\xa5a.sst" + bytes.fromhex("91920903")
    body += bytes.fromhex("c401") + b"s"
    disk = new_disk()
    put(disk, NAME, framed(body))
    expected = Manifest(2, 12, 7, [["b.sst", "a.sst"]], [Drop(9, 3)], b"s")
    assert manifest.read(disk) == expected
    assert manifest.read(disk).drops == [Drop(9, 3, 0, 16384)]  # type: ignore[union-attr]
    assert bytes_of(disk) == framed(body)
    manifest.write(disk, expected)
    assert manifest.read(disk) == expected


def test_the_bytes_of_version_2_are_still_read() -> None:
    body = bytes.fromhex("96020c0792") + b"\x91\xa5b.sst" + b"\x91\xa5a.sst"
    body += bytes.fromhex("91940903 05 06") + bytes.fromhex("c401") + b"s"
    disk = new_disk()
    put(disk, NAME, framed(body))
    expected = Manifest(2, 12, 7, [["b.sst"], ["a.sst"]], [Drop(9, 3, 5, 6)], b"s")
    assert manifest.read(disk) == expected
    expected.damages = DAMAGES
    body = b"\x97" + body[1:] + bytes.fromhex("91 96 c40161 c40162 04") + b"\xa5c.sst\x01\xa1r"
    put(disk, NAME, framed(body))
    assert manifest.read(disk) == expected
    expected.vouched = 14
    body = b"\x98" + body[1:] + b"\x0e"
    assert written(expected) == framed(body)
    put(disk, NAME, framed(body))
    assert manifest.read(disk) == expected
    assert expected.tables == ["b.sst", "a.sst"]


def test_a_new_folder_has_none() -> None:
    assert manifest.read(new_disk()) is None


@pytest.mark.parametrize("name", ["00000000000000000000.log", "0000000000000000.sst"])
def test_a_folder_with_data_and_no_manifest_has_lost_it(name: str) -> None:
    disk = new_disk()
    put(disk, name, b"")
    with pytest.raises(CorruptionError) as caught:
        manifest.read(disk)
    assert caught.value.path == "/sim/manifest"


def test_every_flipped_bit_is_found() -> None:
    disk = new_disk()
    manifest.write(disk, FULL)
    for offset in range(len(bytes_of(disk))):
        for bit in range(8):
            disk.flip_bit(NAME, offset, bit)
            with pytest.raises(CorruptionError):
                manifest.read(disk)
            disk.flip_bit(NAME, offset, bit)
    assert manifest.read(disk) == FULL


def test_every_cut_and_anything_appended_is_found() -> None:
    data = written(FULL)
    for damaged in [data[:length] for length in range(len(data))] + [data + b"\0", data + data]:
        disk = new_disk()
        put(disk, NAME, damaged)
        with pytest.raises(CorruptionError):
            manifest.read(disk)


@pytest.mark.parametrize("version", [0, 3, 4, 1 << 40])
def test_another_format_version_is_refused_and_not_touched(version: int) -> None:
    """Whatever its layout is: only the version stands at its place."""
    disk = new_disk()
    data = framed(msgspec.msgpack.encode([version, {"an": "unknown"}, ["layout"]]))
    put(disk, NAME, data)
    with pytest.raises(UnknownFormatError) as caught:
        manifest.read(disk)
    assert (caught.value.version, caught.value.supported) == (version, FORMAT_VERSION)
    assert bytes_of(disk) == data


@pytest.mark.parametrize("left", [b"", b"RKVMANI1 and then nothing", written(EMPTY)])
def test_a_temporary_file_left_over_is_not_read_and_not_in_the_way(left: bytes) -> None:
    disk = new_disk()
    put(disk, TEMPORARY, left)
    assert manifest.read(disk) is None
    manifest.write(disk, FULL)
    put(disk, TEMPORARY, left)
    assert manifest.read(disk) == FULL
    manifest.write(disk, EMPTY)
    assert manifest.read(disk) == EMPTY
    assert disk.names() == [NAME]


@pytest.mark.parametrize("fault", ["write_error_in", "sync_error_in"])
def test_after_a_failed_write_the_old_one_holds_and_the_next_write_succeeds(fault: str) -> None:
    disk = new_disk()
    manifest.write(disk, FULL)
    setattr(disk.faults, fault, 1)
    with pytest.raises(DiskError):
        manifest.write(disk, EMPTY)
    assert manifest.read(disk) == FULL
    manifest.write(disk, EMPTY)
    assert manifest.read(disk) == EMPTY


def test_a_failed_sync_of_names_is_an_error() -> None:
    disk = new_disk()
    disk.faults.sync_error_in = 2  # The first is the file's.
    with pytest.raises(SyncError):
        manifest.write(disk, FULL)


@pytest.mark.parametrize("seed", range(40))
def test_a_power_cut_leaves_the_old_one_or_the_new_one(seed: int) -> None:
    for operations in range(1, 7):
        disk = new_disk(seed)
        manifest.write(disk, FULL)
        disk.faults.power_cut_in = operations
        is_cut = False
        try:
            manifest.write(disk, EMPTY)
        except PowerCut:
            is_cut = True
        after = disk.crash()
        found = manifest.read(after)
        assert found == EMPTY or (is_cut and found == FULL)
        manifest.write(after, EMPTY)
        assert manifest.read(after.crash()) == EMPTY
