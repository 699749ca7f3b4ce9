"""SSTables: round trips, every kind of damage, and the format as documented."""

from __future__ import annotations

import gc
import itertools
import random
import struct
import tracemalloc
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any, cast

import pytest
import zstandard
from lz4.block import decompress
from xxhash import xxh3_64_intdigest

from engine import sstable
from engine.block import Block, encode_block
from engine.bloom import candidates
from engine.codec import COMPLETE, SLOT_MAX, Entry, key_of
from engine.compression import SAMPLES_BYTES
from engine.disk import Disk, RealDisk
from engine.errors import CorruptionError, DiskError, EngineError, UnknownFormatError
from engine.sstable import (
    ENTRY_BYTES_MAX,
    SCAN_READ_BYTES,
    Compression,
    EntryTooLargeError,
    Table,
    TableWriter,
)
from engine.table_meta import TableMeta, TagCount
from tests.engine.toy import RegisterCodec, register
from tests.sim.disk import SimDisk, SimFile

CODEC = RegisterCodec()


@pytest.fixture
def disk() -> SimDisk:
    return SimDisk(random.Random(1))


def write(
    disk: Disk,
    entries: list[Entry],
    *,
    name: str = "table",
    block_bytes: int = 4096,
    compression: Compression = "lz4",
    now_ms: int = 0,
) -> TableMeta:
    writer = TableWriter(
        disk, name, block_bytes=block_bytes, compression=compression, codec=CODEC, now_ms=now_ms
    )
    for key, flags, raw in entries:
        writer.add_key(key, flags, raw)
    return writer.finish(3, 17)


def made(rng: random.Random, count: int, *, value_bytes: int = 60) -> list[Entry]:
    """Return entries of a few slots, half of them compressible."""
    keys = {key_of(rng.randrange(5), rng.randbytes(4) + b":%d" % n) for n in range(count)}
    return [
        (
            key,
            rng.randrange(2),
            register(
                rng.randrange(100),
                rng.choice([bytes(value_bytes), rng.randbytes(rng.randrange(value_bytes + 1))]),
            ),
        )
        for key in sorted(keys)
    ]


def find(table: Table, key: bytes) -> tuple[int, bytes] | None:
    block_no = table.block_of(key)
    if block_no is None:
        return None
    block = table.load(block_no, cached_only=False)
    assert block is not None
    return block.find(key)


def bytes_of(disk: Disk, name: str) -> bytes:
    file = disk.open(name)
    return file.read(0, file.size)


def put_file(disk: Disk, name: str, data: bytes) -> None:
    file = disk.create(name)
    file.append(data)
    file.close()


def everything(disk: Disk, name: str) -> list[Entry]:
    """Open a table and read all of it, by single blocks and by scan."""
    table = Table.open(disk, name)
    entries: list[Entry] = []
    for block_no in range(table.block_count):
        block = table.load(block_no, cached_only=False)
        assert block is not None
        entries += block.to_list()
    assert entries == list(table.scan())
    table.close()
    return entries


@pytest.mark.parametrize("compression", ["lz4", "zstd", "none"])
@pytest.mark.parametrize("block_bytes", [1, 200, 4096, 100_000])
@pytest.mark.parametrize("count", [0, 1, 2, 700])
def test_round_trip(disk: SimDisk, count: int, block_bytes: int, compression: Compression) -> None:
    rng = random.Random(count)
    entries = made(rng, count)
    write(disk, entries, block_bytes=block_bytes, compression=compression)
    assert everything(disk, "table") == entries
    table = Table.open(disk, "table")
    for key, flags, raw in entries:
        assert table.may_contain(key)
        assert list(candidates([table], key)) == [table]
        assert find(table, key) == (flags, raw)
    absent = [entry[0] + b"!" for entry in entries] + [b"\0\0", b"\xff" * 9]
    absent += [entry[0][:-1] for entry in entries]
    known = {entry[0] for entry in entries}
    assert all(find(table, key) is None for key in absent if key not in known)


def test_an_entry_is_found_under_its_slot_and_row(disk: SimDisk) -> None:
    writer = TableWriter(disk, "table", block_bytes=4096, compression="lz4", codec=CODEC)
    writer.add(0, b"row", COMPLETE, register(1))
    writer.add(1, b"", 0, register(2))
    writer.add(SLOT_MAX, b"row", 0, register(3))
    writer.finish(0, 0)
    table = Table.open(disk, "table")
    assert find(table, b"\x00\x00row") == (COMPLETE, register(1))
    assert find(table, b"\x00\x01") == (0, register(2))
    assert find(table, b"\x40\x00row") == (0, register(3))


def test_a_scan_by_blocks_starts_at_the_block_of_its_start(disk: SimDisk) -> None:
    entries = made(random.Random(4), 200)
    write(disk, entries, block_bytes=300)
    table = Table.open(disk, "table")
    for start in [b"\0\0", *(entry[0] for entry in entries), entries[50][0] + b"\0", b"\xff\xff"]:
        found: list[Entry] = []
        block_no = table.block_of(start)
        while block_no is not None and block_no < table.block_count:
            block = table.load(block_no, cached_only=True)
            assert block is not None
            found += block.entries(start)
            block_no += 1
        assert found == [entry for entry in entries if entry[0] >= start]


def test_keys_must_increase(disk: SimDisk) -> None:
    writer = TableWriter(disk, "table", block_bytes=4096, compression="lz4", codec=CODEC)
    writer.add(1, b"b", 0, register(1))
    with pytest.raises(AssertionError):
        writer.add(1, b"b", 0, register(1))
    with pytest.raises(AssertionError):
        writer.add(0, b"c", 0, register(1))
    with pytest.raises(AssertionError):
        writer.add(SLOT_MAX + 1, b"c", 0, register(1))


@pytest.mark.parametrize("shared_bytes", [0, 1, 100, 3000])
def test_keys_that_share_prefixes(disk: SimDisk, shared_bytes: int) -> None:
    shared = b"\0\1" + b"p" * shared_bytes
    keys = {shared + bytes(4) * n for n in range(10)} | {shared + b"%d" % n for n in range(300)}
    entries = [(key, 1, register(1, key[-5:])) for key in sorted(keys)]
    write(disk, entries, block_bytes=500)
    table = Table.open(disk, "table")
    assert [find(table, key) for key, _, _ in entries] == [(f, raw) for _, f, raw in entries]
    assert everything(disk, "table") == entries


def test_separators_are_short(disk: SimDisk) -> None:
    """Long keys cost memory only as far as they are needed to tell blocks apart."""
    rng = random.Random(1)
    entries = [(key[:2] + b"\7" + key[2:] + b"x" * 500, 1, raw) for key, _, raw in made(rng, 1000)]
    write(disk, entries)
    table = Table.open(disk, "table")
    assert table.block_count > 100
    assert table.memory_bytes < table.block_count * 25 + 1000 * 2 + 3000


@pytest.mark.parametrize("seed", range(20))
def test_scan_from_and_to(disk: SimDisk, seed: int) -> None:
    rng = random.Random(seed)
    entries = made(rng, 500, value_bytes=400)
    write(disk, entries, block_bytes=rng.choice([100, 4096]))
    table = Table.open(disk, "table")
    borders = [entry[0] for entry in entries] + [b"", b"\xff" * 9, entries[7][0] + b"\0"]
    for _ in range(30):
        start, stop = rng.choice(borders), rng.choice([None, *borders])
        expected = [e for e in entries if e[0] >= start and (stop is None or e[0] < stop)]
        assert list(table.scan(start, stop)) == expected


def test_a_scan_reads_in_large_but_bounded_pieces(disk: SimDisk) -> None:
    # Zeros, so that the stored bytes are few: what counts is how much they become.
    entries = [(b"\0\1%05d" % n, 1, register(1, bytes(1000))) for n in range(1000)]
    write(disk, entries)
    groups = list(Table.open(disk, "table").groups())
    assert [entry for group in groups for entry in group] == entries
    assert len(groups) < 30
    assert all(sum(len(raw) for _, _, raw in group) <= SCAN_READ_BYTES for group in groups)


def test_huge_values_have_blocks_of_their_own(tmp_path: Path) -> None:
    disk = RealDisk(str(tmp_path / "data"))
    rng = random.Random(1)
    huge = register(1, rng.randbytes(1 << 20) * 64)
    noise = register(1, rng.randbytes(1 << 22))
    entries = [
        (b"\0\1a", 1, register(1, b"small")),
        (b"\0\1b", 1, huge),
        (b"\0\1c", 1, noise),
        (b"\0\1d", 1, register(1, b"small")),
        (b"\0\1e", 1, register(1, b"small")),
    ]
    meta = write(disk, entries)
    assert meta.block_count == 4
    table = Table.open(disk, "table")
    assert [find(table, key) for key, _, _ in entries] == [(f, raw) for _, f, raw in entries]
    assert [len(group) for group in table.groups()] == [1, 1, 1, 2]
    assert list(table.scan()) == entries
    table.close()
    disk.close()


def test_a_huge_key(disk: SimDisk) -> None:
    keys = [b"\0\1" + b"k" * 300_000 + tail for tail in (b"", b"a", b"b")]
    entries = [(key, 1, register(1)) for key in keys]
    write(disk, entries)
    assert everything(disk, "table") == entries
    table = Table.open(disk, "table")
    assert [find(table, key) for key in keys] == [(1, register(1))] * 3


class Oversized(bytes):
    """Says that it is larger than any entry may be, without being it."""

    def __len__(self) -> int:
        return ENTRY_BYTES_MAX


def test_an_entry_too_large_is_refused_and_the_table_goes_on(disk: SimDisk) -> None:
    writer = TableWriter(disk, "table", block_bytes=4096, compression="lz4", codec=CODEC)
    writer.add_key(b"\0\1a", 1, register(1))
    with pytest.raises(EntryTooLargeError, match=str(ENTRY_BYTES_MAX)):
        writer.add_key(b"\0\1b", 1, Oversized())
    writer.add_key(b"\0\1c", 1, register(1))
    writer.finish(0, 0)
    assert [key for key, _, _ in everything(disk, "table")] == [b"\0\1a", b"\0\1c"]


# -- Damage -------------------------------------------------------------------------------------


def small_table(disk: SimDisk, compression: Compression = "lz4") -> bytes:
    entries = made(random.Random(5), 16, value_bytes=40)
    write(disk, entries, block_bytes=300, compression=compression)
    return bytes_of(disk, "table")


def damage_of(disk: SimDisk, name: str) -> CorruptionError | None:
    try:
        everything(disk, name)
    except CorruptionError as error:
        return error
    return None


@pytest.mark.parametrize("compression", ["lz4", "zstd"])
def test_every_flipped_byte_is_noticed(disk: SimDisk, compression: Compression) -> None:
    data = small_table(disk, compression)
    rng = random.Random(1)
    unnoticed = []
    for offset in range(len(data)):
        for flip in (0xFF, 1 << rng.randrange(8)):
            name = f"flip-{offset}-{flip}"
            damaged = data[:offset] + bytes([data[offset] ^ flip]) + data[offset + 1 :]
            put_file(disk, name, damaged)
            error = damage_of(disk, name)
            if error is None or error.path != name or not 0 <= error.offset < len(data):
                unnoticed.append((offset, flip))
            disk.remove(name)
    assert unnoticed == []


def test_every_truncation_is_noticed_at_open(disk: SimDisk) -> None:
    data = small_table(disk)
    for length in range(len(data)):
        put_file(disk, f"cut-{length}", data[:length])
        with pytest.raises(CorruptionError):
            Table.open(disk, f"cut-{length}")
        disk.remove(f"cut-{length}")


@pytest.mark.parametrize("change", [b"\0", b"RKVTABLE", bytes(512)])
def test_bytes_before_or_after_are_noticed_at_open(disk: SimDisk, change: bytes) -> None:
    data = small_table(disk)
    for name, longer in (("after", data + change), ("before", change + data)):
        put_file(disk, name, longer)
        with pytest.raises(CorruptionError):
            Table.open(disk, name)


def test_zeros_and_another_tables_end_are_noticed(disk: SimDisk) -> None:
    data = small_table(disk)
    for start in range(0, len(data), 64):
        zeroed = data[:start] + bytes(len(data[start : start + 64])) + data[start + 64 :]
        put_file(disk, f"zero-{start}", zeroed)
        with pytest.raises(CorruptionError):
            everything(disk, f"zero-{start}")


def test_right_blocks_in_the_wrong_place_are_noticed(disk: SimDisk) -> None:
    entries = [(b"\0\1%d" % n, 1, register(n, b"value %d" % n)) for n in range(4)]
    write(disk, entries, block_bytes=1, compression="none")
    data = bytes_of(disk, "table")
    size = struct.unpack_from("<Q", data, len(data) - 72)[0] // 4
    put_file(disk, "swapped", data[size : 2 * size] + data[:size] + data[2 * size :])
    with pytest.raises(CorruptionError) as caught:
        everything(disk, "swapped")
    assert caught.value.offset == 0
    # An intact block is still served.
    table = Table.open(disk, "swapped")
    assert find(table, b"\0\0012") == (1, register(2, b"value 2"))
    with pytest.raises(CorruptionError):
        list(table.scan())


def test_another_version_is_not_called_damage(disk: SimDisk) -> None:
    data = small_table(disk)
    footer = data[-72:-20] + struct.pack("<I", 7)
    checksum = xxh3_64_intdigest(footer, len(data) - 72)
    put_file(disk, "new", data[:-72] + footer + struct.pack("<Q", checksum) + data[-8:])
    with pytest.raises(UnknownFormatError) as caught:
        Table.open(disk, "new")
    assert (caught.value.path, caught.value.version, caught.value.supported) == ("new", 7, 2)


def with_nonsense(data: bytes, section: int, change: Callable[[bytearray], None]) -> bytes:
    """Return a table of which a section was changed, with all checksums right."""
    base = len(data) - 72
    starts = struct.unpack_from("<QQQQ", data, base)
    start, end = starts[section], [*starts, base][section + 1] - 8
    content = bytearray(data[start:end])
    change(content)
    assert len(content) == end - start
    checksum = struct.pack("<Q", xxh3_64_intdigest(bytes(content), start))
    return data[:start] + bytes(content) + checksum + data[end + 8 :]


@pytest.mark.parametrize("compression", ["lz4", "zstd", "none"])
@pytest.mark.parametrize("claim", [1 << 20, 1 << 30, (1 << 30) + 65, (1 << 32) - 1])
def test_a_block_that_claims_much_is_damaged_and_takes_no_memory(
    disk: SimDisk, compression: Compression, claim: int
) -> None:
    data = small_table(disk, compression)
    block_count = struct.unpack_from("<I", data, len(data) - 24)[0]

    def claim_much(index: bytearray) -> None:
        index[4 * block_count : 4 * block_count + 4] = struct.pack("<I", claim)

    put_file(disk, "greedy", with_nonsense(data, 1, claim_much))
    tracemalloc.start()
    try:
        error = damage_of(disk, "greedy")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert error is not None
    assert peak < 1 << 20


@pytest.mark.parametrize(("section", "noticed_min"), [(1, 200), (3, 30)])
def test_sections_that_say_nonsense_are_damage(
    disk: SimDisk, section: int, noticed_min: int
) -> None:
    """It is noticed or does no harm; there is no error of another kind."""
    data = small_table(disk)
    rng = random.Random(section)

    def garble(content: bytearray) -> None:
        content[rng.randrange(len(content))] ^= rng.randrange(1, 256)

    found = 0
    for _ in range(300):
        put_file(disk, "garbled", with_nonsense(data, section, garble))
        try:
            Table.open(disk, "garbled").verify()
        except CorruptionError:
            found += 1
        disk.remove("garbled")
    # What nothing else in the file says, such as positions and expiries, cannot be checked.
    assert found > noticed_min


# -- Compression --------------------------------------------------------------------------------


def documents(count: int) -> list[Entry]:
    """Return records like small documents, which have much in common."""
    rng = random.Random(count)
    keys = sorted({key_of(rng.randrange(64), rng.randbytes(5)) for _ in range(count)})
    return [
        (
            key,
            COMPLETE,
            register(
                1,
                b'{"user_id":%d,"name":"%b","city":"%b","is_active":true,"balance":%d}'
                % (
                    rng.randrange(10**6),
                    rng.choice([b"alice", b"bob", b"carol"]),
                    rng.choice([b"Berlin", b"Paris", b"Lisbon"]),
                    rng.randrange(10**4),
                ),
            ),
        )
        for key in keys
    ]


def test_zstd_and_a_dictionary_make_tables_smaller(disk: SimDisk) -> None:
    entries = documents(20_000)
    sizes = {}
    for compression in ("none", "lz4", "zstd"):
        sizes[compression] = write(
            disk, entries, name=compression, compression=compression
        ).file_bytes
        assert everything(disk, compression) == entries
    assert sizes["zstd"] < 0.75 * sizes["lz4"] < 0.75 * sizes["none"]
    table = Table.open(disk, "zstd")
    assert 1024 < table.dictionary_bytes <= 16 * 1024
    assert table.memory_bytes > Table.open(disk, "lz4").memory_bytes + table.dictionary_bytes


def test_more_blocks_than_samples(disk: SimDisk) -> None:
    """The first blocks wait for the dictionary, and the others do not."""
    writer = TableWriter(disk, "table", block_bytes=4096, compression="zstd", codec=CODEC)
    entries = documents(25_000)
    pending_bytes = 0
    sizes = []
    for entry in entries:
        writer.add_key(*entry)
        sizes.append(writer.size_bytes)
        pending_bytes += len(entry[0]) + len(entry[2])
    assert pending_bytes > 2 * SAMPLES_BYTES
    assert SAMPLES_BYTES <= max(sizes) <= SAMPLES_BYTES + 8192
    meta = writer.finish(0, 0)
    assert 0.9 * meta.file_bytes < sizes[-1] + 25_000 * 1.3 + 24 * meta.block_count
    assert everything(disk, "table") == entries


def test_a_table_is_the_same_each_time(disk: SimDisk) -> None:
    write(disk, documents(3000), name="a", compression="zstd")
    write(disk, documents(3000), name="b", compression="zstd")
    assert bytes_of(disk, "a") == bytes_of(disk, "b")


def test_noise_gets_no_dictionary(disk: SimDisk) -> None:
    rng = random.Random(1)
    noise = [(b"\0\1%05d" % n, 1, register(1, rng.randbytes(300))) for n in range(1000)]
    plain = write(disk, noise, name="plain", compression="none")
    packed = write(disk, noise, name="packed", compression="zstd")
    assert Table.open(disk, "packed").dictionary_bytes == 0
    assert packed.file_bytes == plain.file_bytes


def test_threads_load_blocks_of_zstd_at_the_same_time(tmp_path: Path) -> None:
    """zstandard's objects crash the process when two threads use them at once."""
    disk = RealDisk(str(tmp_path / "data"))
    tables = []
    for name in ("a", "b", "c"):
        write(disk, documents(3000), name=name, compression="zstd")
        tables.append(Table.open(disk, name))
    write(disk, documents(300), name="without", compression="zstd")
    tables.append(Table.open(disk, "without"))
    expected = [list(table.scan()) for table in tables]

    def read_all(seed: int) -> int:
        rng = random.Random(seed)
        for _ in range(10):
            number = rng.randrange(len(tables))
            table = tables[number]
            entries: list[Entry] = []
            for block_no in range(table.block_count):
                block = (
                    table.load(block_no, cached_only=False)
                    if rng.random() < 0.7
                    else load_beside(disk, table, block_no)
                )
                assert block is not None
                entries += block.to_list()
            assert entries == expected[number]
        return 1

    with ThreadPoolExecutor(6) as pool:
        assert sum(pool.map(read_all, range(12))) == 12
    for table in tables:
        table.close()
    disk.close()


def load_beside(disk: Disk, table: Table, block_no: int) -> Block:
    """Through a handle of its own."""
    with closing(disk.open(table.name)) as file:
        return table.decode(block_no, file.read(*table.extent(block_no)))


# -- Slots --------------------------------------------------------------------------------------


@pytest.mark.parametrize("block_bytes", [1, 150, 1000, 100_000])
def test_the_blocks_of_a_slot(disk: SimDisk, block_bytes: int) -> None:
    rng = random.Random(block_bytes)
    slots = [1, 2, 3, 7, 250, 255, 256, 600, 16383, SLOT_MAX]
    keys = {
        key_of(rng.choice(slots), rng.choice([b"", b"\0", rng.randbytes(3), b"p" * 20]) + b"%d" % n)
        for n in range(300)
    } | {key_of(255, b""), key_of(256, b"")}
    entries = [(key, 1, register(1, rng.randbytes(20))) for key in sorted(keys)]
    write(disk, entries, block_bytes=block_bytes, compression="none")
    table = Table.open(disk, "table")
    blocks = [table.load(number, cached_only=False) for number in range(table.block_count)]
    for slot in [*slots, 0, 4, 251, 599, 1000, 16382]:
        prefix = key_of(slot, b"")
        holding = [
            number
            for number, block in enumerate(blocks)
            if block is not None and any(key.startswith(prefix) for key, _, _ in block.entries())
        ]
        numbers = table.slot_range(slot)
        assert set(holding) <= set(numbers)
        # One more at the start, where the border between two slots may lie in either block.
        assert len(numbers) <= len(holding) + 1
        assert (table.slot_bytes(slot) == 0) == (len(numbers) == 0)
    assert table.slot_bytes(0) == 0
    assert sum(table.slot_bytes(slot) for slot in slots) >= table.stored_bytes
    if block_bytes == 1:
        assert table.slot_bytes(600) < table.stored_bytes / 5


def test_an_empty_table_has_no_slot(disk: SimDisk) -> None:
    write(disk, [])
    table = Table.open(disk, "table")
    assert table.slot_range(5) == range(0)
    assert (table.slot_bytes(0), table.slot_bytes(SLOT_MAX), table.stored_bytes) == (0, 0, 0)


# -- Verification -------------------------------------------------------------------------------


@pytest.mark.parametrize("compression", ["lz4", "zstd", "none"])
@pytest.mark.parametrize("count", [0, 1, 500])
def test_a_right_table_is_verified(disk: SimDisk, compression: Compression, count: int) -> None:
    write(disk, made(random.Random(2), count), compression=compression, block_bytes=500)
    table = Table.open(disk, "table")
    seen: list[int] = []
    table.verify(seen.append)
    assert seen == list(range(table.block_count))


def test_verification_notices_every_byte_that_changed_after_opening(disk: SimDisk) -> None:
    data = small_table(disk)
    rng = random.Random(1)
    for offset in rng.sample(range(len(data)), 150):
        put_file(disk, "rots", data)
        table = Table.open(disk, "rots")
        damaged = data[:offset] + bytes([data[offset] ^ 16]) + data[offset + 1 :]
        disk.remove("rots")
        put_file(disk, "rots", damaged)
        table._file = disk.open("rots")  # As if the disk had changed under it.
        disk.remove("rots")
        with pytest.raises(CorruptionError) as caught:
            table.verify()
        assert caught.value.path == "rots"
        assert 0 <= caught.value.offset < len(data)


def test_verification_can_go_on_after_damage(disk: SimDisk) -> None:
    entries = [(b"\0\1%d" % n, 1, register(n, b"value %d" % n)) for n in range(8)]
    write(disk, entries, block_bytes=1, compression="none")
    data = bytearray(bytes_of(disk, "table"))
    length = struct.unpack_from("<Q", data, len(data) - 72)[0] // 8
    for number in (2, 5):
        data[number * length] ^= 1
    put_file(disk, "damaged", bytes(data))
    errors: list[CorruptionError] = []
    seen: list[int] = []
    Table.open(disk, "damaged").verify(seen.append, errors.append)
    assert [error.offset for error in errors] == [2 * length, 5 * length]
    assert seen == list(range(8))


@pytest.mark.parametrize(
    "lie",
    [
        {"keys": [b"\0\1A", b"\0\1m", b"\0\1z"]},
        {"keys": [b"\0\1a", b"\0\1m", b"\0\1y"]},
        {"keys": [b"\0\1a", b"\0\1M", b"\0\1z"]},
        {"keys": [b"\0\1a", b"\0\1a", b"\0\1z"]},
        {"keys": [b"\0\1a", b"\0\1n", b"\0\1z"]},  # Only the filter knows better.
        {"keys": [b"\0\1a", b"\0\1z"]},
        {"keys": [b"\0\1a", b"\0\1m", b"\0\1z"], "flags": [0, 1, 1]},
        {"keys": [b"\0\1a", b"\0\1m", b"\0\1z"], "raw": b"longer"},
        {"raw_block": b"\2\0\0\0 nothing like a block"},
        {"raw_block": b"\0\0\0\0\7\0"},
    ],
    ids=lambda lie: " ".join(map(str, lie.values())),
)
def test_verification_notices_what_checksums_cannot(
    disk: SimDisk, lie: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The writer's memory failed: the file is whole, and does not say what it should."""

    def lying(keys: Sequence[bytes], flags: Sequence[int], raws: Sequence[bytes]) -> bytes:
        if "raw_block" in lie:
            return cast(bytes, lie["raw_block"])
        keys = lie["keys"]
        raws = [lie.get("raw", b"") + raw for raw in raws]
        return encode_block(keys, lie.get("flags", [1, 1, 1])[: len(keys)], raws[: len(keys)])

    monkeypatch.setattr(sstable, "encode_block", lying)
    write(disk, [(b"\0\1" + letter, 1, register(1)) for letter in (b"a", b"m", b"z")])
    with pytest.raises(CorruptionError):
        Table.open(disk, "table").verify()


def test_verification_notices_an_index_that_leads_elsewhere(disk: SimDisk) -> None:
    """Each block is right, and its keys are not found."""
    entries = [(b"\0\1%d" % n, 1, register(n)) for n in range(4)]
    write(disk, entries, block_bytes=1, compression="none")
    data = bytes_of(disk, "table")

    def lead_elsewhere(index: bytearray) -> None:
        index[64:72] = (int.from_bytes(index[64:72], "little") + 256).to_bytes(8, "little")

    put_file(disk, "astray", with_nonsense(data, 1, lead_elsewhere))
    table = Table.open(disk, "astray")
    assert list(table.scan()) == entries
    assert find(table, b"\0\0011") is None
    with pytest.raises(CorruptionError, match="those of another"):
        table.verify()


def test_an_index_that_does_not_end_where_the_blocks_do_is_damage(disk: SimDisk) -> None:
    def lengthen(index: bytearray) -> None:
        index[0] += 1

    put_file(disk, "longer", with_nonsense(small_table(disk), 1, lengthen))
    with pytest.raises(CorruptionError, match="an index of"):
        Table.open(disk, "longer")


# -- Memory -------------------------------------------------------------------------------------


def memory_of(disk: Disk, name: str) -> tuple[Table, int]:
    """Open a table, and say what that took: the least of some times, since other threads take memory too."""
    measured = []
    for _ in range(5):
        Table.open(disk, name).close()
        gc.collect()
        tracemalloc.start()
        try:
            before = tracemalloc.get_traced_memory()[0]
            table = Table.open(disk, name)
            gc.collect()
            measured.append(tracemalloc.get_traced_memory()[0] - before)
        finally:
            tracemalloc.stop()
        table.close()
    return Table.open(disk, name), min(measured)


@pytest.mark.parametrize("compression", ["lz4", "zstd"])
@pytest.mark.parametrize("infix", [b"", b"a prefix of many keys"])
@pytest.mark.parametrize("count", [0, 10, 3000, 12_000])
def test_an_open_table_takes_the_memory_that_it_says(
    tmp_path: Path, count: int, infix: bytes, compression: Compression
) -> None:
    disk = RealDisk(str(tmp_path / "data"))
    entries = [
        (key[:2] + b"\7" + infix + key[2:], flags, raw) for key, flags, raw in documents(count)
    ]
    write(disk, entries, block_bytes=300, compression=compression)
    table, measured = memory_of(disk, "table")
    # libzstd's own memory is not traced.
    said = table.memory_bytes - (27 * 1024 if table.dictionary_bytes else 0)
    assert 0.9 * said - 1500 < measured < 1.02 * said
    table.close()
    disk.close()


def test_an_index_takes_24_bytes_a_block(tmp_path: Path) -> None:
    disk = RealDisk(str(tmp_path / "data"))
    write(disk, [(key, flags, raw) for key, flags, raw in documents(12_000)], block_bytes=1)
    table, measured = memory_of(disk, "table")
    assert table.block_count == 12_000
    bloom_bytes = 12_000 * 10 / 8 * 1.3
    tags_bytes = 256 * 150
    assert measured - bloom_bytes - tags_bytes < 24.5 * table.block_count
    table.close()
    disk.close()


# -- Files --------------------------------------------------------------------------------------


def test_the_name_appears_when_the_table_is_finished(disk: SimDisk) -> None:
    writer = TableWriter(disk, "table", block_bytes=4096, compression="lz4", codec=CODEC)
    writer.add_key(b"\0\1a", 1, register(1))
    assert disk.names() == ["table.tmp"]
    writer.finish(0, 0)
    assert disk.names() == ["table"]


def test_a_discarded_table_leaves_nothing(disk: SimDisk) -> None:
    writer = TableWriter(disk, "table", block_bytes=1, compression="lz4", codec=CODEC)
    for entry in made(random.Random(1), 100):
        writer.add_key(*entry)
    writer.discard()
    assert disk.names() == []


@pytest.mark.parametrize("seed", range(10))
def test_a_finished_table_survives_a_power_cut_once_the_names_are_synced(seed: int) -> None:
    disk = SimDisk(random.Random(seed))
    entries = made(random.Random(seed), 300)
    write(disk, entries)
    disk.sync_names()
    assert everything(disk.crash(), "table") == entries


def test_what_the_kernel_does_not_hold_is_none(disk: SimDisk) -> None:
    write(disk, made(random.Random(1), 10))
    table = Table.open(disk, "table")
    assert table.load(0, cached_only=True) is not None
    disk.faults.is_cold = True
    assert table.load(0, cached_only=True) is None
    assert table.load(0, cached_only=False) is not None


def test_disk_errors_pass_through(disk: SimDisk) -> None:
    write(disk, made(random.Random(1), 10))
    table = Table.open(disk, "table")
    disk.faults.read_error_in = 1
    with pytest.raises(DiskError):
        table.load(0, cached_only=False)
    for number in range(1, 6):  # The footer and four sections.
        disk.faults.read_error_in = number
        with pytest.raises(DiskError):
            Table.open(disk, "table")
    disk.faults.read_error_in = None
    writer = TableWriter(disk, "other", block_bytes=4096, compression="lz4", codec=CODEC)
    writer.add_key(b"\0\1a", 1, register(1))
    disk.faults.sync_error_in = 1
    with pytest.raises(EngineError):
        writer.finish(0, 0)
    assert "other" not in disk.names()


def test_open_tables_have_ids_of_their_own(disk: SimDisk) -> None:
    write(disk, [])
    assert len({Table.open(disk, "table").id for _ in range(5)}) == 5


# -- Meta ---------------------------------------------------------------------------------------


def test_meta_of_an_empty_table(disk: SimDisk) -> None:
    meta = write(disk, [])
    assert Table.open(disk, "table").meta == meta
    assert (meta.entry_count, meta.block_count, meta.key_min, meta.key_max) == (0, 0, b"", b"")
    assert meta.expired_count(1 << 60) == 0
    assert meta.tags == {}


def test_meta_says_what_is_in_the_table(disk: SimDisk) -> None:
    entries = [
        (b"\0\1\x05a", 1, register(1, b"live")),
        (b"\0\1\x05b", 1, register(1, dead=True)),
        (b"\0\1\x07a", 1, register(1, b"live", expires_at_ms=2000)),
        (b"\0\1\x07b", 1, register(1, b"expired", expires_at_ms=500)),
        (b"\0\2\x05c", 0, register(1, b"live", expires_at_ms=3000)),
    ]
    meta = write(disk, entries, block_bytes=60, now_ms=1000)
    assert meta.block_count > 2
    assert meta == Table.open(disk, "table").meta
    assert meta.file_bytes == disk.size("table")
    assert (meta.entry_count, meta.live_count) == (5, 3)
    assert meta.raw_bytes == sum(len(key) + len(raw) for key, _, raw in entries)
    assert meta.key_bytes == sum(len(key) for key, _, _ in entries)
    assert meta.value_bytes == sum(len(raw) for _, _, raw in entries)
    assert (meta.complete_count, meta.delta_count) == (4, 1)
    assert (meta.position_min, meta.position_max) == (3, 17)
    assert (meta.key_min, meta.key_max) == (b"\0\1\x05a", b"\0\2\x05c")
    assert meta.tags == {5: TagCount(3, 2), 7: TagCount(2, 1)}
    assert meta.expiring_count == 3
    assert meta.expiries_ms == (500, 2000, 3000)
    counts = {0: 0, 499: 0, 500: 1, 1999: 1, 2000: 2, 2999: 2, 3000: 3, 9999: 3}
    assert {now_ms: meta.expired_count(now_ms) for now_ms in counts} == counts


@pytest.mark.parametrize("count", [1, 2, 64, 65, 66, 1000])
def test_expired_entries_are_counted_nearly(disk: SimDisk, count: int) -> None:
    rng = random.Random(count)
    expiries = [rng.randrange(1, 10_000) ** 2 for _ in range(count)]
    entries = [
        (b"\0\1%05d" % number, 1, register(1, expires_at_ms=at))
        for number, at in enumerate(expiries)
    ]
    meta = write(disk, entries)
    assert meta.expired_count(min(expiries) - 1) == 0
    assert meta.expired_count(max(expiries)) == count
    for now_ms in rng.sample(range(10_000**2), 50):
        exact = sum(at <= now_ms for at in expiries)
        assert exact - count // 64 - (count > 65) <= meta.expired_count(now_ms) <= exact
        if count <= 65:
            assert meta.expired_count(now_ms) == exact


def test_size_bytes_tells_where_to_cut(disk: SimDisk) -> None:
    writer = TableWriter(disk, "table", block_bytes=300, compression="none", codec=CODEC)
    sizes = [writer.size_bytes]
    for entry in made(random.Random(1), 100):
        writer.add_key(*entry)
        sizes.append(writer.size_bytes)
    assert sizes == sorted(sizes)
    writer.finish(0, 0)
    blocks_bytes = struct.unpack_from("<Q", bytes_of(disk, "table"), disk.size("table") - 72)[0]
    assert 0.8 * blocks_bytes < sizes[-1] <= blocks_bytes


# -- Format -------------------------------------------------------------------------------------


def decoded_by_the_book(data: bytes) -> list[Entry]:
    """Read a table as the docstrings describe it, with nothing of the engine."""
    base = len(data) - 72
    *starts, kind, zero, block_count, version = struct.unpack_from("<QQQQQQII", data, base)
    assert data[-8:] == b"RKVTABLE"
    assert (zero, version) == (0, 2)
    assert struct.unpack_from("<Q", data, base + 56)[0] == xxh3_64_intdigest(data[base:-16], base)
    sections = []
    for start, end in itertools.pairwise([*starts, base]):
        sections.append(data[start : end - 8])
        assert struct.unpack_from("<Q", data, end - 8)[0] == xxh3_64_intdigest(sections[-1], start)
    dictionary, index, _, meta = sections
    known = zstandard.ZstdCompressionDict(dictionary) if dictionary else None
    raws: list[int] = list(struct.unpack_from(f"<{block_count}I", index, 4 * block_count))
    checksums = struct.unpack_from(f"<{block_count}Q", index, 8 * block_count)
    borders = borders_by_the_book(index, block_count)
    entries: list[Entry] = []
    offset = 0
    lengths = struct.unpack_from(f"<{block_count}I", index)
    for number, (length, raw_length) in enumerate(zip(lengths, raws, strict=True)):
        block = data[offset : offset + length]
        assert xxh3_64_intdigest(block, offset) == checksums[number]
        offset += length
        if length != raw_length:
            if kind == 1:
                block = decompress(block, uncompressed_size=raw_length)
            else:
                assert kind == 2
                block = zstandard.ZstdDecompressor(dict_data=known).decompress(block)
        count = struct.unpack_from("<I", block)[0]
        at = struct.unpack_from(f"<{2 * count + 1}H", block, 4)
        flags = block[4 + 2 * (2 * count + 1) :]
        for i in range(count):
            record = block[at[count + i] : at[count + i + 1]]
            key = block[at[i] : at[i + 1]]
            assert (borders[number - 1] if number else b"") <= key < [*borders, b"\xff"][number]
            entries.append((key, flags[i], record))
    assert offset == starts[0]
    assert struct.unpack_from("<Q", meta)[0] == len(entries)
    complete, keys = struct.unpack_from("<QQ", meta, 48)
    assert complete == sum(flags & 1 for _, flags, _ in entries)
    assert keys == sum(len(key) for key, _, _ in entries)
    return entries


def borders_by_the_book(index: bytes, block_count: int) -> list[bytes]:
    """Return the separators: heads, and tails of those that are longer than seven bytes."""
    at = 16 * block_count
    heads = [index[i : i + 8][::-1] for i in range(at, at + 8 * (block_count - 1), 8)]
    at += 8 * (block_count - 1)
    tails_bytes = struct.unpack_from(f"<{block_count - 1}I", index, at)
    at += 4 * (block_count - 1)
    borders = []
    for head, tail_bytes in zip(heads, tails_bytes, strict=True):
        assert (tail_bytes > 0) == (head[7] == 255)
        borders.append(head[: min(7, head[7])] + index[at : at + tail_bytes])
        at += tail_bytes
    assert at == len(index)
    return borders


@pytest.mark.parametrize("compression", ["lz4", "zstd", "none"])
@pytest.mark.parametrize("shared", [b"", b"a long prefix of all keys"])
def test_the_format_is_as_documented(
    disk: SimDisk, compression: Compression, shared: bytes
) -> None:
    entries = [(b"\0\1" + shared + key, f, raw) for key, f, raw in made(random.Random(3), 1500)]
    write(disk, entries, compression=compression)
    assert decoded_by_the_book(bytes_of(disk, "table")) == entries


def test_a_table_with_a_dictionary_is_as_documented(disk: SimDisk) -> None:
    entries = documents(2000)
    write(disk, entries, compression="zstd")
    assert Table.open(disk, "table").dictionary_bytes > 0
    assert decoded_by_the_book(bytes_of(disk, "table")) == entries


def test_a_table_written_by_version_1_stays_readable(disk: SimDisk) -> None:
    put_file(disk, "old", bytes.fromhex(VERSION_1_TABLE))
    assert everything(disk, "old") == VERSION_1_ENTRIES
    table = Table.open(disk, "old")
    assert [find(table, key) for key, _, _ in VERSION_1_ENTRIES] == [
        (flags, raw) for _, flags, raw in VERSION_1_ENTRIES
    ]
    assert table.compression == "lz4"
    assert (table.meta.entry_count, table.meta.complete_count) == (3, None)
    table.verify()


def test_every_flipped_byte_of_a_table_of_version_1_is_noticed(disk: SimDisk) -> None:
    data = bytes.fromhex(VERSION_1_TABLE)
    for offset in range(len(data)):
        put_file(disk, "flip", data[:offset] + bytes([data[offset] ^ 4]) + data[offset + 1 :])
        assert damage_of(disk, "flip") is not None
        disk.remove("flip")


def test_a_table_written_by_version_2_stays_as_it_is(disk: SimDisk) -> None:
    write(disk, VERSION_1_ENTRIES, block_bytes=64, now_ms=1000)
    assert bytes_of(disk, "table").hex() == VERSION_2_TABLE


VERSION_1_ENTRIES: list[Entry] = [
    (b"\0\1\x05a", 1, register(1, b"first")),
    (b"\0\1\x05b", 0, register(2, expires_at_ms=500)),
    (b"\x40\0\x07c", 1, register(3, b"z" * 200)),
]
VERSION_1_TABLE = (
    "020000001000140018002e003f000100000105610001056200000000000000010000000000000000006669"
    "727374000000000000000200000000000001f400f201010000000b000f00e8000140000763000100120307"
    "004f0000007a0100af507a7a7a7a7a3f000000260000003f000000e800000045d1185c1a58248b75b7ceb8"
    "f9aa062f010000004010000000000000000000000000000000000000000400000000000020000000000000"
    "00000000000040000000000000080000000000004000000000000000000000000000000000400000000000"
    "00000080000000000000000080000000000000000000000000000000000000000000880000000000000000"
    "00000000000008000000000000000000000200000100000000000000000000004000000000000000120000"
    "00000000000200000000000000000000000000000000000000000000000300000000000000020000000000"
    "00000c01000000000000030000000000000011000000000000000100000000000000010000000200000004"
    "000000040000000001056140000763f4010000000000000502000000000000000100000000000000070100"
    "000000000000010000000000000065000000000000008a000000000000004a010000000000008b8721cfd4"
    "4a15f99fbcbd945cefbc7be93acf90cf41d0fa0200000001000000c25e7fc8ad2b4da7524b565441424c45"
)
VERSION_2_TABLE = (
    "020000001000140018002e003f000100000105610001056200000000000000010000000000000000006669"
    "727374000000000000000200000000000001f400f201010000000b000f00e8000140000763000100120307"
    "004f0000007a0100af507a7a7a7a7a82d4aec5751237c83f000000260000003f000000e800000045d1185c"
    "1a58248b75b7ceb8f9aa062f010000000000004000000000968bf22709237f421000000000000000000000"
    "00000000000000000004000000000000200000000000000000000000004000000000000008000000000000"
    "40000000000000000000000000000000004000000000000000008000000000000000008000000000000000"
    "00000000000000000000000000008800000000000000000000000000000800000000000000000000020000"
    "01000000000000000000000040000000000000001200000000000000020000000000000000000000000000"
    "0000000000000000004b9a3a69aa5d76ff030000000000000002000000000000000c010000000000000300"
    "0000000000001100000000000000010000000000000002000000000000000c000000000000000100000002"
    "00000004000000040000000001056140000763f40100000000000005020000000000000001000000000000"
    "000701000000000000000100000000000000a6fb4c5e5d4345cd65000000000000006d00000000000000a1"
    "0000000000000069010000000000000100000000000000000000000000000002000000020000000db5ee36"
    "1b653cb4524b565441424c45"
)


def test_blocks_that_gain_little_are_stored_raw(disk: SimDisk) -> None:
    rng = random.Random(1)
    noise = [(b"\0\1%03d" % n, 1, rng.randbytes(300)) for n in range(50)]
    noise = [(key, flags, register(1, raw)) for key, flags, raw in noise]
    plain = write(disk, noise, name="plain", compression="none")
    packed = write(disk, noise, name="packed", compression="lz4")
    assert packed.file_bytes == plain.file_bytes
    text = [(key, flags, register(1, bytes(300))) for key, flags, _ in noise]
    assert write(disk, text, name="text").file_bytes < plain.file_bytes / 5


def test_a_table_goes_to_the_disk_evenly_while_it_is_made(
    disk: SimDisk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All at once would keep the disk from everybody else."""
    monkeypatch.setattr(sstable, "_WRITE_BYTES", 1000)
    monkeypatch.setattr(sstable, "_WRITE_BACK_BYTES", 20_000)
    unsent = [0]
    syncs = []

    def append(self: SimFile, data: bytes, original: Any = SimFile.append) -> None:
        original(self, data)
        unsent.append(unsent[-1] + len(data))

    def write_back(self: SimFile, original: Any = SimFile.write_back) -> None:
        original(self)
        unsent.append(0)

    def sync(self: SimFile, original: Any = SimFile.sync) -> None:
        original(self)
        syncs.append(self.size)

    monkeypatch.setattr(SimFile, "append", append)
    monkeypatch.setattr(SimFile, "write_back", write_back)
    monkeypatch.setattr(SimFile, "sync", sync)
    meta = write(disk, made(random.Random(1), 2000), compression="none", block_bytes=500)
    assert unsent.count(0) > 5
    assert 20_000 <= max(unsent) < 22_000
    assert syncs == [meta.file_bytes]  # Once, when all is there.
