"""SSTables: immutable files of entries in key order.

Not a set of tables: which are live, and in what order they are read, is the manifest's and the
store's affair. Nothing here caches blocks (`engine/cache.py`) or knows how a block looks inside
(`engine/block.py`).

A `TableWriter` takes increasing keys, writes to `name + ".tmp"`, and at `finish` syncs and renames.
The caller syncs the folder's names, and only then may refer to the table. A `Table` holds index,
filter and meta of a file in memory, and reads blocks: one `read` and one checksum each.

**Format**, version 1. Numbers are little endian. Checksums are xxh3_64, *seeded with the offset in
the file of what they cover*, so that right bytes in the wrong place are noticed too.

    blocks    one after the other, from offset 0
    index     see below
    filter    Bloom filter over the keys, format of `engine/bloom.py`
    meta      see `engine/table_meta.py`
    footer    72 bytes

Blocks. Each is the layout of `engine/block.py`, compressed by lz4 (the raw block format, without a
size in front) unless that gains less than 12 %. A block is compressed when its stored length in the
index differs from its raw length. Blocks hold up to `block_bytes`, or a single larger entry.

Index of `n` blocks, as columns:

    u32 [n]       stored lengths; their sums are the offsets
    u32 [n]       raw lengths
    u64 [n]       checksums of the stored bytes
    u32 [n - 1]   lengths of the separators
    ...           the separators, joined

Separator `i` is the shortest prefix of the first key of block `i + 1` that is above the last key of
block `i`. So a key is in the block whose number is how many separators are not above it. (Prefixes
rather than keys, because they stay in memory: 3 to 8 bytes instead of 20 to 100.) The checksums are
here and not with the blocks, so that reading a block needs no slicing, and an old block in the
place of a new one is noticed.

Footer, the last 72 bytes:

     0  u64   offset of the index, which is the length of all blocks
     8  u64   offset of the filter
    16  u64   offset of the meta
    24  u64   checksum of the index
    32  u64   checksum of the filter
    40  u64   checksum of the meta
    48  u32   number of blocks
    52  u32   format version
    56  u64   checksum of the bytes 0 to 55 of the footer
    64  8s    magic, "RKVTABLE"

In every version the footer ends with version, checksum and magic, and has this length.
Every byte of a file is under a checksum, or is one, or is the magic: a flipped byte anywhere is
noticed at `open` or when its block is loaded.

Shell, in that it reads and writes files; but it decides nothing about time, and the disk is handed
in. A `Table` never changes after `open`, so that threads may share it. Source: LevelDB's table
format, from which blocks, index, filter and footer come.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import accumulate, chain, count, pairwise, repeat
from operator import itemgetter
from struct import Struct
from typing import Final, Literal

from lz4.block import LZ4BlockError, compress, decompress
from xxhash import xxh3_64_intdigest

from engine.block import Block, encode_block, little_endian
from engine.bloom import BloomBuilder, BloomFilter, KeyHash, hash_of
from engine.codec import SLOT_BYTES, SLOT_MAX, Entry, Fate, Key, RecordCodec, Row
from engine.disk import Disk, File
from engine.errors import CorruptionError, EngineError, UnknownFormatError
from engine.table_meta import TableMeta, TagCount, decode_meta, encode_meta, quantiles_of

__all__ = [
    "Block",
    "Compression",
    "EntryTooLargeError",
    "Table",
    "TableMeta",
    "TableWriter",
    "TagCount",
    "hash_of",
]

Compression = Literal["lz4", "none"]

TEMPORARY_SUFFIX: Final = ".tmp"
"""What a table is called until it is finished. Files of this name are rubbish after a restart."""

FORMAT_VERSION: Final = 1
ENTRY_BYTES_MAX: Final = 1 << 30
SCAN_READ_BYTES: Final = 64 * 1024
"""How much a scan decodes at a time, unless a single block is larger: what fits the CPU's cache."""

_MAGIC: Final = b"RKVTABLE"
_FOOTER: Final = Struct("<QQQQQQII")
_FOOTER_END: Final = Struct("<Q8s")
_FOOTER_BYTES: Final = _FOOTER.size + _FOOTER_END.size
_ids = count()
_key = itemgetter(0)
_row = itemgetter(slice(SLOT_BYTES, None))
_GAIN_MIN_PERCENT: Final = 12
_WRITE_BYTES: Final = 256 * 1024
_ENTRY_OVERHEAD_BYTES: Final = 5
"""What an entry takes in a block besides key and record: two bounds of two bytes, and flags."""


@dataclass(eq=False)
class EntryTooLargeError(EngineError):
    """A key and its record are larger than a table can hold. The caller refuses the write."""

    size_bytes: int
    size_bytes_max: int = ENTRY_BYTES_MAX

    def __str__(self) -> str:
        return f"an entry of {self.size_bytes} bytes is above the limit of {self.size_bytes_max}"


class TableWriter:
    """Writes one table. Ends with `finish` or `discard`.

    Keeps in memory one write buffer, the index, 16 bytes a key for the filter, and 8 bytes for each
    expiry. Raises what the disk raises; `NameTakenError` if a file of the temporary name is left.
    """

    def __init__(
        self,
        disk: Disk,
        name: str,
        *,
        block_bytes: int,
        compression: Compression,
        codec: RecordCodec,
        now_ms: int = 0,
    ) -> None:
        """Begin a table. Entries are counted as live as of `now_ms`; at 0 nothing has expired."""
        self._disk = disk
        self._name = name
        self._file: File = disk.create(name + TEMPORARY_SUFFIX)
        self._block_bytes = block_bytes
        self._compression = compression
        self._codec = codec
        self._now_ms = now_ms

        self._keys: list[Key] = []  # These four are the block that is being filled.
        self._flags: list[int] = []
        self._raws: list[bytes] = []
        self._pending_bytes = 0

        self._key_min: Key = b""
        self._last_key: Key = b""
        self._bloom = BloomBuilder()
        self._entry_counts: Counter[int] = Counter()
        self._live_counts: Counter[int] = Counter()
        self._raw_bytes = 0
        self._expiries_ms = array("Q")

        self._stored_lengths = array("I")
        self._raw_lengths = array("I")
        self._checksums = array("Q")
        self._separators: list[bytes] = []
        self._offset = 0
        self._unwritten: list[bytes] = []
        self._unwritten_bytes = 0

    @property
    def size_bytes(self) -> int:
        """How large the file is so far, about: what callers cut tables by."""
        return self._offset + self._pending_bytes

    def add(self, slot: int, row: Row, flags: int, raw: bytes) -> None:
        """Add an entry above all earlier ones.

        Raises EntryTooLargeError and what the disk raises.
        """
        assert 0 <= slot <= SLOT_MAX
        self.add_key(slot.to_bytes(SLOT_BYTES, "big") + row, flags, raw)

    def add_key(self, key: Key, flags: int, raw: bytes) -> None:
        """Like `add`, for those who have the key in one piece. Measured by `bench/sstable.py`."""
        assert key > self._last_key, "keys must increase"
        entry_bytes = len(key) + len(raw) + _ENTRY_OVERHEAD_BYTES
        if entry_bytes > ENTRY_BYTES_MAX:
            raise EntryTooLargeError(entry_bytes)
        if self._pending_bytes + entry_bytes > self._block_bytes and self._keys:
            self._finish_block()
            self._separators.append(_separator(self._last_key, key))
        self._keys.append(key)
        self._flags.append(flags)
        self._raws.append(raw)
        self._pending_bytes += entry_bytes
        self._last_key = key

    def finish(self, position_min: int, position_max: int) -> TableMeta:
        """Write the rest, sync and rename; the names are not synced yet.

        The positions say which part of the log the table covers.
        """
        if self._keys:
            self._finish_block()
        meta = TableMeta(
            entry_count=self._entry_counts.total(),
            live_count=self._live_counts.total(),
            raw_bytes=self._raw_bytes,
            position_min=position_min,
            position_max=position_max,
            expiring_count=len(self._expiries_ms),
            expiries_ms=quantiles_of(sorted(self._expiries_ms)),
            key_min=self._key_min,
            key_max=self._last_key,
            tags={
                tag: TagCount(count, self._live_counts[tag])
                for tag, count in sorted(self._entry_counts.items())
            },
            block_count=len(self._checksums),
            file_bytes=0,
        )
        self._write_sections([self._encode_index(), self._bloom.finish(), encode_meta(meta)])
        self._write_out()
        self._file.sync()
        self._file.close()
        self._disk.rename(self._name + TEMPORARY_SUFFIX, self._name)
        return replace(meta, file_bytes=self._offset)

    def discard(self) -> None:
        """Give the table up, and remove what was written of it."""
        self._file.close()
        self._disk.remove(self._name + TEMPORARY_SUFFIX)

    def _finish_block(self) -> None:
        keys, raws = self._keys, self._raws
        if not self._checksums:
            self._key_min = keys[0]
        self._count(keys, raws)
        self._bloom.add_all(keys)
        block = encode_block(keys, self._flags, raws)
        stored = self._compressed(block)
        self._stored_lengths.append(len(stored))
        self._raw_lengths.append(len(block))
        self._checksums.append(xxh3_64_intdigest(stored, self._offset))
        self._write(stored)
        self._keys, self._flags, self._raws, self._pending_bytes = [], [], [], 0

    def _count(self, keys: list[Key], raws: list[bytes]) -> None:
        """Count a block's entries for the meta. In bulk: a call less for each entry."""
        codec = self._codec
        tags = list(map(codec.tag, map(_row, keys)))
        self._entry_counts.update(tags)
        fates = list(map(codec.fate, map(_row, keys), raws, repeat(self._now_ms)))
        if fates.count(Fate.LIVE) < len(fates):
            pairs = zip(tags, fates, strict=True)
            tags = [tag for tag, fate in pairs if fate is Fate.LIVE]
        self._live_counts.update(tags)
        self._expiries_ms.extend(filter(None, map(codec.expires_at_ms, raws)))
        self._raw_bytes += sum(map(len, keys)) + sum(map(len, raws))

    def _compressed(self, block: bytes) -> bytes:
        if self._compression == "none":
            return block
        smaller: bytes = compress(block, store_size=False)
        return smaller if len(smaller) * 100 <= len(block) * (100 - _GAIN_MIN_PERCENT) else block

    def _encode_index(self) -> bytes:
        columns = [
            self._stored_lengths,
            self._raw_lengths,
            self._checksums,
            array("I", map(len, self._separators)),
        ]
        return b"".join([little_endian(column).tobytes() for column in columns] + self._separators)

    def _write_sections(self, sections: list[bytes]) -> None:
        offsets = list(accumulate(map(len, sections), initial=self._offset))
        checksums = list(map(xxh3_64_intdigest, sections, offsets))
        for section in sections:
            self._write(section)
        footer = _FOOTER.pack(*offsets[:3], *checksums, len(self._checksums), FORMAT_VERSION)
        self._write(footer + _FOOTER_END.pack(xxh3_64_intdigest(footer, self._offset), _MAGIC))

    def _write(self, data: bytes) -> None:
        """Append to the file, in large pieces."""
        self._offset += len(data)
        self._unwritten.append(data)
        self._unwritten_bytes += len(data)
        if self._unwritten_bytes >= _WRITE_BYTES:
            self._write_out()

    def _write_out(self) -> None:
        self._file.append(b"".join(self._unwritten))
        self._unwritten, self._unwritten_bytes = [], 0


class Table:
    """A finished table, open for reading.

    `id` is what caches know it by: no other opened table of the process ever has the same.
    `may_contain_hash` is `may_contain` for `hash_of(key)`, which several tables can share. It is
    the filter's own method, because every read calls it for every table.
    """

    __slots__ = (
        "_bloom",
        "_checksums",
        "_file",
        "_key_max",
        "_offsets",
        "_raw_lengths",
        "_separators",
        "_stored_lengths",
        "id",
        "may_contain_hash",
        "memory_bytes",
        "meta",
        "name",
    )

    def __init__(self, name: str, file: File, index: _Index, bloom: bytes, meta: TableMeta) -> None:
        """Use `Table.open`."""
        self.id = next(_ids)
        self.name = name
        self.meta = meta
        self._key_max = meta.key_max  # A look-up less in `block_of`.
        self._file = file
        self._bloom = BloomFilter(bloom)
        self.may_contain_hash: Callable[[KeyHash], bool] = self._bloom.may_contain
        self._stored_lengths = index.stored_lengths
        self._raw_lengths = index.raw_lengths
        self._checksums = index.checksums
        self._separators = index.separators
        self._offsets = array("Q", accumulate(index.stored_lengths, initial=0))
        self.memory_bytes = self._bloom.memory_bytes + index.memory_bytes + 8 * len(self._offsets)

    @classmethod
    def open(cls, disk: Disk, name: str) -> Table:
        """Open a table and check everything except its blocks.

        Raises CorruptionError, UnknownFormatError, and what the disk raises.
        """
        file = disk.open(name)
        try:
            return _read_table(file, name)
        except BaseException:
            file.close()
            raise

    def close(self) -> None:
        """Close the file. What was loaded stays usable."""
        self._file.close()

    @property
    def block_count(self) -> int:
        """How many blocks there are; they are numbered from 0."""
        return len(self._stored_lengths)

    def may_contain(self, key: Key) -> bool:
        """Return False when the key is certainly not in the table."""
        return self._bloom.may_contain(hash_of(key))

    def block_of(self, key: Key) -> int | None:
        """Return the number of the only block that can hold the key; it has at least its slot.

        It is also the block from which a scan from the key on starts. None: all keys are smaller.
        """
        if key > self._key_max:
            return None
        return bisect_right(self._separators, key)

    def load(self, block_no: int, *, cached_only: bool) -> Block | None:
        """Read, check and decode a block.

        With `cached_only` it does not wait for the disk, and returns None if it would have to.
        Raises CorruptionError and what the disk raises.
        """
        offset = self._offsets[block_no]
        length = self._stored_lengths[block_no]
        stored: bytes | None
        if cached_only:
            stored = self._file.read_cached(offset, length)
            if stored is None:
                return None
        else:
            stored = self._file.read(offset, length)
        return self._decoded(block_no, stored)

    def load_alone(self, disk: Disk, block_no: int) -> Block:
        """Read a block through a handle of its own, waiting for the disk.

        For threads: compaction may close the table's own handle meanwhile, and the number of a closed
        descriptor is soon another file's. Raises as `load` does.
        """
        file = disk.open(self.name)
        try:
            offset = self._offsets[block_no]
            return self._decoded(block_no, file.read(offset, self._stored_lengths[block_no]))
        finally:
            file.close()

    def groups(self, start_key: Key = b"", stop_key: Key | None = None) -> Iterator[list[Entry]]:
        """Yield the entries from `start_key` to before `stop_key` in lists, reading far ahead.

        For those who read much and may wait: compaction, transfers. A list is what one read gave:
        up to `SCAN_READ_BYTES` of entries, or one huge entry. Raises as `load` does.
        """
        block_no = bisect_right(self._separators, start_key)
        while block_no < self.block_count:
            end_no = self._end_of_read(block_no)
            entries = self._read_blocks(block_no, end_no)
            first, end = 0, len(entries)
            if entries[0][0] < start_key:
                first = bisect_left(entries, start_key, key=_key)
            is_last = stop_key is not None and entries[-1][0] >= stop_key
            if is_last:
                end = bisect_left(entries, stop_key, key=_key)
            if first < end:
                yield entries[first:end]
            if is_last:
                return
            block_no = end_no

    def scan(self, start_key: Key = b"", stop_key: Key | None = None) -> Iterator[Entry]:
        """Yield the entries from `start_key` to before `stop_key`, as `groups` does, one by one."""
        return chain.from_iterable(self.groups(start_key, stop_key))

    def _end_of_read(self, block_no: int) -> int:
        """Return the end of the blocks that are read together from `block_no` on."""
        budget = SCAN_READ_BYTES - self._raw_lengths[block_no]
        block_no += 1
        while block_no < self.block_count and self._raw_lengths[block_no] <= budget:
            budget -= self._raw_lengths[block_no]
            block_no += 1
        return block_no

    def _read_blocks(self, block_no: int, end_no: int) -> list[Entry]:
        start = self._offsets[block_no]
        data = self._file.read(start, self._offsets[end_no] - start)
        entries: list[Entry] = []
        for number in range(block_no, end_no):
            stored = data[self._offsets[number] - start : self._offsets[number + 1] - start]
            entries += self._decoded(number, stored).to_list()
        return entries

    def _decoded(self, block_no: int, stored: bytes) -> Block:
        """Check and decompress; hot path of every read that misses the block cache."""
        offset = self._offsets[block_no]
        checksum = xxh3_64_intdigest(stored, offset)
        if checksum != self._checksums[block_no]:
            raise CorruptionError(self.name, offset, self._checksums[block_no], checksum)
        raw_length = self._raw_lengths[block_no]
        if raw_length == len(stored):
            return Block(stored)
        try:
            return Block(decompress(stored, uncompressed_size=raw_length))
        except LZ4BlockError:  # The right checksum over nonsense: memory failed while writing.
            expected = f"lz4 of {raw_length} bytes"
            raise CorruptionError(self.name, offset, expected, "something else") from None


@dataclass(slots=True)
class _Index:
    """The index of a table, decoded."""

    stored_lengths: array[int]
    raw_lengths: array[int]
    checksums: array[int]
    separators: tuple[bytes, ...]

    @property
    def memory_bytes(self) -> int:
        """How much memory the index takes, about."""
        separators_bytes = sum(map(len, self.separators)) + 41 * len(self.separators)
        return separators_bytes + 16 * len(self.stored_lengths)


def _read_table(file: File, name: str) -> Table:
    footer_offset = file.size - _FOOTER_BYTES
    if footer_offset < 0:
        raise CorruptionError(name, 0, f"at least {_FOOTER_BYTES} bytes", f"{file.size}")
    data = file.read(footer_offset, _FOOTER_BYTES)
    *fields, block_count, version = _FOOTER.unpack_from(data)
    expected, magic = _FOOTER_END.unpack_from(data, _FOOTER.size)
    if magic != _MAGIC:
        raise CorruptionError(name, footer_offset, repr(_MAGIC), repr(magic))
    actual = xxh3_64_intdigest(data[: _FOOTER.size], footer_offset)
    if actual != expected:
        raise CorruptionError(name, footer_offset, expected, actual)
    if version != FORMAT_VERSION:
        raise UnknownFormatError(name, version, FORMAT_VERSION)
    starts, ends, checksums = fields[:3], [*fields[1:3], footer_offset], fields[3:]
    sections = [
        _read_section(file, name, start, end - start, checksum)
        for start, end, checksum in zip(starts, ends, checksums, strict=True)
    ]
    index = _decode_index(sections[0], block_count)
    meta = decode_meta(sections[2], block_count, file.size)
    return Table(name, file, index, sections[1], meta)


def _read_section(file: File, name: str, start: int, length: int, expected: int) -> bytes:
    data = file.read(start, length)
    actual = xxh3_64_intdigest(data, start)
    if actual != expected:
        raise CorruptionError(name, start, expected, actual)
    return data


def _decode_index(data: bytes, block_count: int) -> _Index:
    columns: list[array[int]] = []
    start = 0
    for code, length in zip("IIQI", [block_count] * 3 + [max(0, block_count - 1)], strict=True):
        column = array(code)
        end = start + column.itemsize * length
        column.frombytes(data[start:end])
        columns.append(little_endian(column))
        start = end
    bounds = list(accumulate(columns[3], initial=start))
    separators = tuple(data[a:b] for a, b in pairwise(bounds))
    return _Index(columns[0], columns[1], columns[2], separators)


def _separator(low: Key, high: Key) -> bytes:
    """Return the shortest prefix of `high` that is above `low`; `low` is below `high`."""
    # By big integers, because keys may be megabytes, and a loop would take a second over them.
    shared = min(len(low), len(high))
    difference = int.from_bytes(low[:shared], "big") ^ int.from_bytes(high[:shared], "big")
    same_bytes = shared - (difference.bit_length() + 7) // 8
    return high[: same_bytes + 1]
