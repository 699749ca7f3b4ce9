"""SSTables: round trips, every kind of damage, and the format as documented."""

from __future__ import annotations

import random
import struct
from pathlib import Path

import pytest
from lz4.block import decompress
from xxhash import xxh3_64_intdigest

from engine.bloom import hash_of
from engine.codec import COMPLETE, SLOT_MAX, Entry, key_of
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
from tests.sim.disk import SimDisk

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


@pytest.mark.parametrize("compression", ["lz4", "none"])
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
        assert table.may_contain_hash(hash_of(key))
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
    entries = [(key + b"x" * 500, 1, raw) for key, _, raw in made(rng, 1000)]
    write(disk, entries)
    table = Table.open(disk, "table")
    assert table.block_count > 100
    assert table.memory_bytes < table.block_count * 80 + 1000 * 2


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


def small_table(disk: SimDisk) -> bytes:
    entries = made(random.Random(5), 16, value_bytes=40)
    write(disk, entries, block_bytes=300)
    return bytes_of(disk, "table")


def damage_of(disk: SimDisk, name: str) -> CorruptionError | None:
    try:
        everything(disk, name)
    except CorruptionError as error:
        return error
    return None


def test_every_flipped_byte_is_noticed(disk: SimDisk) -> None:
    data = small_table(disk)
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
    assert (caught.value.path, caught.value.version, caught.value.supported) == ("new", 7, 1)


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
    for number in range(1, 5):  # The footer and three sections.
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
    index, bloom, meta, *sums, block_count, version = struct.unpack_from("<QQQQQQII", data, base)
    assert data[-8:] == b"RKVTABLE"
    assert version == 1
    assert struct.unpack_from("<Q", data, base + 56)[0] == xxh3_64_intdigest(data[base:-16], base)
    bounds = [index, bloom, meta, base]
    for start, end, checksum in zip(bounds, bounds[1:], sums, strict=False):
        assert xxh3_64_intdigest(data[start:end], start) == checksum
    stored = struct.unpack_from(f"<{block_count}I", data, index)
    raw = struct.unpack_from(f"<{block_count}I", data, index + 4 * block_count)
    checksums = struct.unpack_from(f"<{block_count}Q", data, index + 8 * block_count)
    entries: list[Entry] = []
    offset = 0
    for length, raw_length, checksum in zip(stored, raw, checksums, strict=True):
        block = data[offset : offset + length]
        assert xxh3_64_intdigest(block, offset) == checksum
        offset += length
        if length != raw_length:
            block = decompress(block, uncompressed_size=raw_length)
        count = struct.unpack_from("<I", block)[0]
        at = struct.unpack_from(f"<{2 * count + 1}H", block, 4)
        flags = block[4 + 2 * (2 * count + 1) :]
        for i in range(count):
            record = block[at[count + i] : at[count + i + 1]]
            entries.append((block[at[i] : at[i + 1]], flags[i], record))
    assert offset == index
    assert struct.unpack_from("<Q", data, meta)[0] == len(entries)
    return entries


@pytest.mark.parametrize("compression", ["lz4", "none"])
def test_the_format_is_as_documented(disk: SimDisk, compression: Compression) -> None:
    entries = made(random.Random(3), 400)
    write(disk, entries, compression=compression)
    assert decoded_by_the_book(bytes_of(disk, "table")) == entries


def test_a_table_written_by_version_1_stays_readable(disk: SimDisk) -> None:
    put_file(disk, "old", bytes.fromhex(VERSION_1_TABLE))
    assert everything(disk, "old") == VERSION_1_ENTRIES
    write(disk, VERSION_1_ENTRIES, block_bytes=64, now_ms=1000)
    assert bytes_of(disk, "table").hex() == VERSION_1_TABLE


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


def test_blocks_that_gain_little_are_stored_raw(disk: SimDisk) -> None:
    rng = random.Random(1)
    noise = [(b"\0\1%03d" % n, 1, rng.randbytes(300)) for n in range(50)]
    noise = [(key, flags, register(1, raw)) for key, flags, raw in noise]
    plain = write(disk, noise, name="plain", compression="none")
    packed = write(disk, noise, name="packed", compression="lz4")
    assert packed.file_bytes == plain.file_bytes
    text = [(key, flags, register(1, bytes(300))) for key, flags, _ in noise]
    assert write(disk, text, name="text").file_bytes < plain.file_bytes / 5
