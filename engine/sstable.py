"""SSTables: immutable files of entries in key order.

Not a set of tables: which are live, and in what order they are read, is the manifest's and the
store's affair. Nothing here caches blocks (`engine/cache.py`) or knows how a block looks inside
(`engine/block.py`).

A `TableWriter` takes increasing keys, writes to `name + ".tmp"`, and at `finish` syncs and renames.
The caller syncs the folder's names, and only then may refer to the table. A `Table` holds index,
filter and meta of a file in memory, and reads blocks: one `read` and one checksum each.

**Format**, version 2. Numbers are little endian. Checksums are xxh3_64, *seeded with the offset in
the file of what they cover*, so that right bytes in the wrong place are noticed too.

    blocks        one after the other, from offset 0
    dictionary    what zstd was told beforehand, or nothing (`engine/compression.py`); its checksum
    index         see `engine/table_index.py`; its checksum
    filter        Bloom filter over the keys, see `engine/bloom.py`; its checksum
    meta          see `engine/table_meta.py`; its checksum
    footer        72 bytes, see `engine/table_footer.py`

Blocks. Each is the layout of `engine/block.py`, compressed as the footer says unless that gains too
little. A block is compressed when its stored length in the index differs from its raw length.
Blocks hold up to `block_bytes`, or a single larger entry. Their checksums are in the index and not
with them, so that reading a block needs no slicing, and an old block in the place of a new one is
noticed.

Every byte of a file is under a checksum, or is one, or is the magic: a flipped byte anywhere is
noticed at `open` or when its block is loaded. Tables of version 1 are read, and not written: they
have no dictionary section, and other ways to write index, meta and footer.

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
from itertools import chain, count, repeat
from operator import itemgetter
from struct import Struct
from typing import Final

from xxhash import xxh3_64_intdigest

from engine.block import Block, encode_block
from engine.bloom import WORD_BYTES, BloomBuilder, BloomFilter, Words
from engine.codec import COMPLETE, SLOT_BYTES, SLOT_MAX, Entry, Fate, Key, RecordCodec, Row
from engine.compression import SAMPLES_BYTES, Compression, Packer, Unpacker, train
from engine.disk import Disk, File
from engine.errors import CorruptionError, EngineError
from engine.table_footer import (
    FOOTER_BYTES,
    SECTION_END_BYTES,
    Footer,
    Section,
    decode_footer,
    encode_footer,
)
from engine.table_index import IndexBuilder, TableIndex, decode_index
from engine.table_meta import TableMeta, TagCount, decode_meta, encode_meta, quantiles_of

__all__ = [
    "Block",
    "Compression",
    "EntryTooLargeError",
    "Table",
    "TableMeta",
    "TableWriter",
    "TagCount",
]

TEMPORARY_SUFFIX: Final = ".tmp"
"""What a table is called until it is finished. Files of this name are rubbish after a restart."""

ENTRY_BYTES_MAX: Final = 1 << 30
SCAN_READ_BYTES: Final = 64 * 1024
"""How much a scan decodes at a time, unless a single block is larger: what fits the CPU's cache."""

_CHECKSUM: Final = Struct("<Q")
_first_eight = Struct(">Q").unpack_from
_ids = count()
_key = itemgetter(0)
_row = itemgetter(slice(SLOT_BYTES, None))
_WRITE_BYTES: Final = 256 * 1024
_WRITE_BACK_BYTES: Final = 1 << 20
"""So much of a table at a time goes to the disk while it is made (RocksDB: `bytes_per_sync`). All at once would keep
the disk from everybody else, reads and the commit log; and so would a sync of each part, which empties the disk's
own cache as well (5.6 ms became 2.1 at the 99th percentile of reads beside 100 MB/s of tables)."""
_ENTRY_OVERHEAD_BYTES: Final = 5
"""What an entry takes in a block besides key and record: two bounds of two bytes, and flags."""
_TABLE_OVERHEAD_BYTES: Final = 900
"""The objects of an open table: itself, its file, its index and what decompresses."""


OnDamage = Callable[[int, CorruptionError], None]
"""Told the number of a block that is damaged, and what is wrong with it."""


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
    expiry. With zstd also the first blocks, up to `SAMPLES_BYTES`: the dictionary is trained on
    them, and they are written after that.

    Raises what the disk raises; `NameTakenError` if a file of the temporary name is left.
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
        self._compression: Compression = compression
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
        self._complete_count = 0
        self._keys_bytes = 0
        self._raws_bytes = 0
        self._expiries_ms = array("Q")

        self._samples: list[bytes] = []
        self._samples_bytes = 0
        self._dictionary = b""
        self._packer = None if compression == "zstd" else Packer(compression)
        self._index = IndexBuilder()
        self._offset = 0
        self._unwritten: list[bytes] = []
        self._unwritten_bytes = 0
        self._unsent_bytes = 0

    @property
    def size_bytes(self) -> int:
        """How large the file is so far, about: what callers cut tables by.

        Blocks that are not compressed yet count in full: the last one, and with zstd the samples.
        """
        return self._offset + self._samples_bytes + self._pending_bytes

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
            self._index.add_border(self._last_key, key)
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
        if self._packer is None:
            self._end_sampling()
        meta = TableMeta(
            entry_count=self._entry_counts.total(),
            live_count=self._live_counts.total(),
            raw_bytes=self._keys_bytes + self._raws_bytes,
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
            block_count=len(self._index),
            file_bytes=0,
            complete_count=self._complete_count,
            key_bytes=self._keys_bytes,
        )
        self._write_sections(
            [self._dictionary, self._index.finish(), self._bloom.finish(), encode_meta(meta)]
        )
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
        keys, flags, raws = self._keys, self._flags, self._raws
        if not self._key_min:
            self._key_min = keys[0]
        self._count(keys, flags, raws)
        self._bloom.add_all(keys)
        block = encode_block(keys, flags, raws)
        self._keys, self._flags, self._raws, self._pending_bytes = [], [], [], 0
        if self._packer is not None:
            self._write_block(self._packer, block)
            return
        self._samples.append(block)
        self._samples_bytes += len(block)
        if self._samples_bytes >= SAMPLES_BYTES:
            self._end_sampling()

    def _end_sampling(self) -> None:
        """Decide on a dictionary, and write the blocks that waited for it."""
        self._dictionary = train(self._samples)
        self._packer = Packer(self._compression, self._dictionary)
        samples, self._samples, self._samples_bytes = self._samples, [], 0
        for block in samples:
            self._write_block(self._packer, block)

    def _write_block(self, packer: Packer, block: bytes) -> None:
        stored = packer.pack(block)
        self._index.add_block(len(stored), len(block), xxh3_64_intdigest(stored, self._offset))
        self._write(stored)

    def _count(self, keys: list[Key], flags: list[int], raws: list[bytes]) -> None:
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
        self._complete_count += sum(map(COMPLETE.__and__, flags))
        self._keys_bytes += sum(map(len, keys))
        self._raws_bytes += sum(map(len, raws))

    def _write_sections(self, sections: list[bytes]) -> None:
        offsets = []
        for section in sections:
            offsets.append(self._offset)
            self._write(section + _CHECKSUM.pack(xxh3_64_intdigest(section, self._offset)))
        self._write(encode_footer(self._offset, offsets, self._compression, len(self._index)))

    def _write(self, data: bytes) -> None:
        """Append to the file, in large pieces."""
        self._offset += len(data)
        self._unwritten.append(data)
        self._unwritten_bytes += len(data)
        if self._unwritten_bytes >= _WRITE_BYTES:
            self._write_out()

    def _write_out(self) -> None:
        self._file.append(b"".join(self._unwritten))
        self._unsent_bytes += self._unwritten_bytes
        self._unwritten, self._unwritten_bytes = [], 0
        if self._unsent_bytes >= _WRITE_BACK_BYTES:
            self._file.write_back()
            self._unsent_bytes = 0


class Table:
    """A finished table, open for reading.

    `id` is what caches know it by: no other opened table of the process ever has the same.
    `words` are those of its filter, for `engine.bloom.candidates`: every read asks every table.
    """

    __slots__ = (
        "_bloom",
        "_checksums",
        "_file",
        "_has_tails",
        "_heads",
        "_index",
        "_key_max",
        "_offsets",
        "_raw_lengths",
        "_unpack",
        "compression",
        "dictionary_bytes",
        "id",
        "memory_bytes",
        "meta",
        "name",
        "words",
    )

    def __init__(self, name: str, file: File, parts: _Parts) -> None:
        """Use `Table.open`."""
        self.id = next(_ids)
        self.name = name
        self.meta = parts.meta
        self.compression: Compression = parts.compression
        self.dictionary_bytes = parts.unpacker.dictionary_bytes
        self._file = file
        self._bloom = parts.bloom
        self.words: Words = parts.bloom.words
        self._index = parts.index
        self._unpack = parts.unpacker.unpack
        self._key_max = parts.meta.key_max  # These are for `block_of` and `load`: a look-up less.
        self._heads = parts.index.heads
        self._has_tails = parts.index.has_tails
        self._offsets = parts.index.offsets
        self._raw_lengths = parts.index.raw_lengths
        self._checksums = parts.index.checksums
        self.memory_bytes = parts.memory_bytes + _TABLE_OVERHEAD_BYTES

    @property
    def index_bytes(self) -> int:
        """How much of `memory_bytes` is the index."""
        return self._index.memory_bytes

    @classmethod
    def open(cls, disk: Disk, name: str) -> Table:
        """Open a table and check everything except its blocks.

        Raises CorruptionError, UnknownFormatError, and what the disk raises.
        """
        file = disk.open(name)
        try:
            return cls(name, file, _read_parts(file, name))
        except BaseException:
            file.close()
            raise

    def close(self) -> None:
        """Close the file. What was loaded stays usable."""
        self._file.close()

    @property
    def block_count(self) -> int:
        """How many blocks there are; they are numbered from 0."""
        return len(self._checksums)

    @property
    def stored_bytes(self) -> int:
        """How many bytes the blocks have in the file."""
        return self._offsets[-1]

    def may_contain(self, key: Key) -> bool:
        """Return False when the key is certainly not in the table."""
        return self._bloom.may_contain(key)

    def block_of(self, key: Key) -> int | None:
        """Return the number of the only block that can hold the key; it has at least its slot.

        It is also the block from which a scan from the key on starts. None: all keys are smaller.
        """
        if key > self._key_max:
            return None
        # What `TableIndex.block_of` does, without its calls: measured by `bench/sstable.py`.
        if len(key) < 8:
            return self._index.block_of(key)
        number = bisect_right(self._heads, _first_eight(key)[0] | 255)
        return self._index.by_tail(key, number) if self._has_tails else number

    def slot_range(self, slot: int) -> range:
        """Return the numbers of the blocks that can hold keys of the slot."""
        low, high = (number.to_bytes(SLOT_BYTES, "big") for number in (slot, slot + 1))
        if low > self._key_max or high <= self.meta.key_min:
            return range(0)
        return self._index.blocks_between(low, high)

    def slot_bytes(self, slot: int) -> int:
        """Return the bytes in the file of the blocks that can hold keys of the slot.

        At most two of them are shared with other slots, and count in full for each.
        """
        numbers = self.slot_range(slot)
        return self._offsets[numbers.stop] - self._offsets[numbers.start]

    def load(self, block_no: int, *, cached_only: bool) -> Block | None:
        """Read, check and decode a block.

        With `cached_only` it does not wait for the disk, and returns None if it would have to.
        Raises CorruptionError and what the disk raises.
        """
        offset, length = self.extent(block_no)
        stored: bytes | None
        if cached_only:
            stored = self._file.read_cached(offset, length)
            if stored is None:
                return None
        else:
            stored = self._file.read(offset, length)
        return self.decode(block_no, stored)

    def extent(self, block_no: int) -> tuple[int, int]:
        """Return offset and length of a block in the file: for those who read it through another handle.

        Threads do: compaction may close the table's own handle meanwhile, and the number of a closed
        descriptor is soon another file's.
        """
        offset = self._offsets[block_no]
        return offset, self._offsets[block_no + 1] - offset

    def groups(
        self,
        start_key: Key = b"",
        stop_key: Key | None = None,
        *,
        on_damage: OnDamage | None = None,
    ) -> Iterator[list[Entry]]:
        """Yield the entries from `start_key` to before `stop_key` in lists, reading far ahead.

        For those who read much and may wait: compaction, transfers. A list is what one read gave:
        up to `SCAN_READ_BYTES` of entries, or one huge entry. Raises as `load` does; with
        `on_damage`, which is told a block's number and what is wrong, damaged blocks are left out.
        """
        block_no = self._index.block_of(start_key)
        while block_no < self.block_count:
            end_no = self._end_of_read(block_no)
            entries = self._read_blocks(block_no, end_no, on_damage)
            if not entries:  # All damaged.
                block_no = end_no
                continue
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

    def verify(
        self,
        on_block: Callable[[int], object] = lambda block_no: None,
        on_damage: Callable[[CorruptionError], object] | None = None,
    ) -> None:
        """Read the whole file, and check all that it says: for those who may wait.

        Checked are sections and blocks with their checksums, the order and number of keys, and that
        index, filter and meta agree with the blocks. `on_block` hears of each block that was read,
        right or not. What the kernel holds in memory is read from there.

        Raises as `load` does. With `on_damage` that hears of each CorruptionError, and none is
        raised.
        """
        is_damaged = False

        def tell(error: CorruptionError) -> None:
            nonlocal is_damaged
            if on_damage is None:
                raise error
            is_damaged = True
            on_damage(error)

        try:
            _read_parts(self._file, self.name)
        except CorruptionError as error:
            tell(error)
        totals = _Totals()
        for block_no in range(self.block_count):
            try:
                totals.add(self._verified(block_no, totals.last_key))
            except CorruptionError as error:
                tell(error)
            on_block(block_no)
        if not is_damaged and not totals.agree(self.meta):
            said, found = f"what its meta says ({self.meta})", repr(totals)
            tell(CorruptionError(self.name, self.stored_bytes, said, found))

    def _verified(self, block_no: int, last_key: Key) -> list[Entry]:
        """Read a block, and check its entries against each other, index and filter."""
        offset = self._offsets[block_no]
        block = self.load(block_no, cached_only=False)
        assert block is not None
        defect = block.defect()
        if defect is not None:
            raise CorruptionError(self.name, offset, "a block", defect)
        entries = block.to_list()
        first, last = entries[0][0], entries[-1][0]
        if first <= last_key or (block_no == 0 and first != self.meta.key_min):
            raise CorruptionError(self.name, offset, f"a key above {last_key!r}", repr(first))
        if self.block_of(first) != block_no or self.block_of(last) != block_no:
            raise CorruptionError(self.name, offset, "the keys of this block", "those of another")
        for key, _, _ in entries:
            if not self.may_contain(key):
                raise CorruptionError(self.name, offset, "keys of the filter", repr(key))
        return entries

    def _end_of_read(self, block_no: int) -> int:
        """Return the end of the blocks that are read together from `block_no` on."""
        budget = SCAN_READ_BYTES - self._raw_lengths[block_no]
        block_no += 1
        while block_no < self.block_count and self._raw_lengths[block_no] <= budget:
            budget -= self._raw_lengths[block_no]
            block_no += 1
        return block_no

    def _read_blocks(
        self, block_no: int, end_no: int, on_damage: OnDamage | None = None
    ) -> list[Entry]:
        start = self._offsets[block_no]
        data = self._file.read(start, self._offsets[end_no] - start)
        entries: list[Entry] = []
        for number in range(block_no, end_no):
            stored = data[self._offsets[number] - start : self._offsets[number + 1] - start]
            try:
                entries += self.decode(number, stored).to_list()
            except CorruptionError as error:
                if on_damage is None:
                    raise
                on_damage(number, error)
        return entries

    def keys_of(self, block_no: int) -> tuple[Key, Key]:
        """Bounds of the keys that a block can hold, inclusive: no smaller ones and no larger ones."""
        low = self._index.separator(block_no - 1) if block_no else self.meta.key_min
        is_last = block_no == self.block_count - 1
        return low, self.meta.key_max if is_last else self._index.separator(block_no)

    def decode(self, block_no: int, stored: bytes) -> Block:
        """Check and decompress what stands at `extent(block_no)`: hot path of every read that misses the block cache.

        Raises CorruptionError.
        """
        offset = self._offsets[block_no]
        checksum = xxh3_64_intdigest(stored, offset)
        if checksum != self._checksums[block_no]:
            raise CorruptionError(self.name, offset, self._checksums[block_no], checksum)
        raw_length = self._raw_lengths[block_no]
        try:
            if raw_length == len(stored):
                return Block(stored)
            return Block(self._unpack(stored, raw_length))
        except (ValueError, IndexError) as error:
            # The right checksum over nonsense: memory failed while writing.
            expected = f"{self.compression} of {raw_length} bytes"
            raise CorruptionError(self.name, offset, expected, str(error)) from None


@dataclass(slots=True)
class _Totals:
    """What `verify` has counted."""

    entry_count: int = 0
    complete_count: int = 0
    key_bytes: int = 0
    raw_bytes: int = 0
    last_key: Key = b""

    def add(self, entries: list[Entry]) -> None:
        self.entry_count += len(entries)
        self.complete_count += sum(flags & COMPLETE for _, flags, _ in entries)
        key_bytes = sum(len(key) for key, _, _ in entries)
        self.key_bytes += key_bytes
        self.raw_bytes += key_bytes + sum(len(raw) for _, _, raw in entries)
        self.last_key = entries[-1][0]

    def agree(self, meta: TableMeta) -> bool:
        return (
            (self.entry_count, self.raw_bytes) == (meta.entry_count, meta.raw_bytes)
            and self.last_key == meta.key_max
            and meta.complete_count in (self.complete_count, None)
            and meta.key_bytes in (self.key_bytes, None)
        )


@dataclass(frozen=True, slots=True)
class _Parts:
    """The sections of a table, decoded."""

    compression: Compression
    unpacker: Unpacker
    index: TableIndex
    bloom: BloomFilter
    meta: TableMeta

    @property
    def memory_bytes(self) -> int:
        """How much memory they take, about."""
        parts = (self.unpacker, self.index, self.bloom, self.meta)
        return sum(part.memory_bytes for part in parts)


def _read_parts(file: File, name: str) -> _Parts:
    """Read and check everything but the blocks. Raises as `Table.open` does."""
    offset = file.size - FOOTER_BYTES
    footer = decode_footer(file.read(max(0, offset), FOOTER_BYTES), offset, name)
    sections = [_read_section(file, name, section) for section in footer.sections]
    try:
        return _decode_parts(footer, sections, file.size)
    except ValueError as error:  # The right checksum over nonsense: memory failed while writing.
        start = footer.sections[0].start
        raise CorruptionError(name, start, "the sections of a table", str(error)) from None


def _read_section(file: File, name: str, section: Section) -> bytes:
    start = section.start
    data = file.read(start, section.end - start)
    if section.checksum is not None:
        expected = section.checksum
    elif len(data) < SECTION_END_BYTES:
        raise CorruptionError(name, start, "a section with its checksum", f"{len(data)} bytes")
    else:
        (expected,) = _CHECKSUM.unpack_from(data, len(data) - SECTION_END_BYTES)
        data = data[:-SECTION_END_BYTES]
    actual = xxh3_64_intdigest(data, start)
    if actual != expected:
        raise CorruptionError(name, start, expected, actual)
    return data


def _decode_parts(footer: Footer, sections: list[bytes], file_bytes: int) -> _Parts:
    """Raises ValueError where they do not say what they should."""
    dictionary, index_data, bloom_data, meta_data = sections
    index = decode_index(index_data, footer.block_count, footer.version)
    if index.offsets[-1] != footer.sections[0].start:
        raise ValueError(f"an index of {index.offsets[-1]} bytes")
    if not bloom_data or len(bloom_data) % WORD_BYTES:
        raise ValueError(f"a filter of {len(bloom_data)} bytes")
    meta = decode_meta(meta_data, footer.block_count, file_bytes, footer.version)
    unpacker = Unpacker(footer.compression, dictionary)
    return _Parts(footer.compression, unpacker, index, BloomFilter(bloom_data), meta)
