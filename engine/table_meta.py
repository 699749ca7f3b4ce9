"""The meta of a table: what can be said of it without reading its blocks.

Not the footer, which finds it and says the format's version: see `engine/sstable.py`. The section's
checksum is in the footer too.

**Format**, version 2, numbers little endian:

    u64   entries
    u64   entries that were live when the table was written
    u64   bytes of keys and raw records
    i64   smallest log position that the table covers
    i64   largest log position that the table covers
    u64   entries that expire
    u64   complete entries; the others are deltas
    u64   bytes of keys
    u32   q, the number of quantiles: as many as entries that expire, at most 65
    u32   tags that occur
    u32   length of the smallest key
    u32   length of the largest key
    ...   smallest key, largest key
    ...   u64 [q], quantiles of the expiries, Unix time in ms, increasing
    ...   for each tag, increasing: u8 tag, u64 entries, u64 entries that were live

Quantile `j` is the expiry at rank `j * (expiring - 1) // (q - 1)` when they are sorted: the first
is the earliest and the last is the latest.

In version 1 the complete entries and the bytes of keys are not there.

Core: pure and synchronous.
"""

from __future__ import annotations

from array import array
from bisect import bisect_right
from dataclasses import dataclass
from struct import Struct
from typing import Final

from engine.block import little_endian
from engine.codec import Key

_META: Final = Struct("<QQQqqQQQIIII")
_META_1: Final = Struct("<QQQqqQIIII")
_TAG: Final = Struct("<BQQ")
_QUANTILES_MAX: Final = 65
_MEMORY_OVERHEAD_BYTES: Final = 500
_NUMBER_BYTES: Final = 40
_TAG_BYTES: Final = 150


@dataclass(frozen=True, slots=True)
class TagCount:
    """How many entries of a tag a table holds."""

    entry_count: int
    live_count: int


@dataclass(frozen=True, slots=True)
class TableMeta:
    """What is known of a table without reading its blocks.

    `live_count` is as of writing: entries expire, and newer tables may hide them. The keys are
    empty in an empty table. `expiries_ms` are quantiles, from the earliest to the latest expiry.
    `raw_bytes` are keys and records. A table of version 1 does not say how many entries are
    complete, nor how much of its bytes are keys.
    """

    entry_count: int
    live_count: int
    raw_bytes: int
    position_min: int
    position_max: int
    expiring_count: int
    expiries_ms: tuple[int, ...]
    key_min: Key
    key_max: Key
    tags: dict[int, TagCount]
    block_count: int
    file_bytes: int
    complete_count: int | None = None
    key_bytes: int | None = None

    @property
    def delta_count(self) -> int | None:
        """How many entries are deltas over older ones."""
        return None if self.complete_count is None else self.entry_count - self.complete_count

    @property
    def value_bytes(self) -> int | None:
        """How many bytes the raw records have."""
        return None if self.key_bytes is None else self.raw_bytes - self.key_bytes

    @property
    def memory_bytes(self) -> int:
        """How much memory this takes, about."""
        keys_bytes = len(self.key_min) + len(self.key_max)
        numbers_bytes = _NUMBER_BYTES * len(self.expiries_ms) + _TAG_BYTES * len(self.tags)
        return _MEMORY_OVERHEAD_BYTES + keys_bytes + numbers_bytes

    def expired_count(self, now_ms: int) -> int:
        """Return how many entries have expired, at least: exact for few, else within 1/64."""
        passed = bisect_right(self.expiries_ms, now_ms)
        if passed == 0:
            return 0
        return _quantile_rank(passed - 1, len(self.expiries_ms), self.expiring_count) + 1


def encode_meta(meta: TableMeta) -> bytes:
    """Return the section. `block_count` and `file_bytes` are not in it."""
    assert meta.complete_count is not None
    assert meta.key_bytes is not None
    head = _META.pack(
        meta.entry_count,
        meta.live_count,
        meta.raw_bytes,
        meta.position_min,
        meta.position_max,
        meta.expiring_count,
        meta.complete_count,
        meta.key_bytes,
        len(meta.expiries_ms),
        len(meta.tags),
        len(meta.key_min),
        len(meta.key_max),
    )
    expiries = little_endian(array("Q", meta.expiries_ms)).tobytes()
    tags = [_TAG.pack(tag, of.entry_count, of.live_count) for tag, of in meta.tags.items()]
    return b"".join([head, meta.key_min, meta.key_max, expiries, *tags])


def decode_meta(data: bytes, block_count: int, file_bytes: int, version: int) -> TableMeta:
    """Read the section; the caller has checked its checksum.

    Raises ValueError where it does not say what it should.
    """
    head = _META if version > 1 else _META_1
    if len(data) < head.size:
        raise ValueError("a meta section that ends early")
    *numbers, quantile_count, tag_count, min_bytes, max_bytes = head.unpack_from(data)
    entry_count, live_count, raw_bytes, position_min, position_max, expiring_count = numbers[:6]
    complete_count, key_bytes = numbers[6:] or (None, None)
    key_max_start = head.size + min_bytes
    expiries_start = key_max_start + max_bytes
    tags_start = expiries_start + 8 * quantile_count
    if tags_start + _TAG.size * tag_count != len(data):
        raise ValueError("a meta section of another length")
    expiries = array("Q", data[expiries_start:tags_start])
    return TableMeta(
        entry_count=entry_count,
        live_count=live_count,
        raw_bytes=raw_bytes,
        position_min=position_min,
        position_max=position_max,
        expiring_count=expiring_count,
        expiries_ms=tuple(little_endian(expiries)),
        key_min=data[head.size : key_max_start],
        key_max=data[key_max_start:expiries_start],
        tags={
            tag: TagCount(entries, live)
            for tag, entries, live in _TAG.iter_unpack(data[tags_start:])
        },
        block_count=block_count,
        file_bytes=file_bytes,
        complete_count=complete_count,
        key_bytes=key_bytes,
    )


def quantiles_of(increasing: list[int]) -> tuple[int, ...]:
    """Return at most 65 of these numbers, evenly spaced, the first and the last among them."""
    count = min(len(increasing), _QUANTILES_MAX)
    return tuple(increasing[_quantile_rank(j, count, len(increasing))] for j in range(count))


def _quantile_rank(j: int, quantile_count: int, count: int) -> int:
    """Return the rank among `count` that quantile `j` stands for."""
    return 0 if quantile_count == 1 else j * (count - 1) // (quantile_count - 1)
