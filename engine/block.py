"""Blocks: a few KiB of entries in key order, searched without being taken apart.

Not the frame on disk: compression, checksums and offsets of blocks belong to `engine/sstable.py`.
What is described here is the block once it is read and decompressed; the cache holds it like this.

**Layout**, version 1, all numbers little endian, `n` entries:

    u32             n, and bit 31: *wide*
    u16 [2n + 1]    bounds (u32 in a wide block), offsets from the start of the block
    u8  [n]         flags of the entries
    ...             all keys, joined
    ...             all raw records, joined

    key i           bounds[i]     .. bounds[i + 1]
    record i        bounds[n + i] .. bounds[n + i + 1]

One row of bounds serves both, because the first record begins where the last key ends. Blocks of
64 KiB or more are wide. Keys are unique and increasing.

**Search.** The keys are one run of bytes, so `bytes.find`, a loop in C, finds the place, and the
bounds say whether a key begins and ends there: 0.6 to 1.0 µs among 40 to 80 entries. Bisecting with
a Python function takes 1.6 µs. A dict answers in 0.05 µs, but takes 6 to 12 µs to make and many
times the memory; that only pays for blocks that are hit hundreds of times, and the row cache has
the rows of those. Where the bytes of the key also occur inside another key or across two, the first
place found may be wrong, and the search falls back to bisection. So it is never more than one pass
and a bisection.

Core: pure and synchronous; a `Block` never changes and may be shared between threads.
"""

from __future__ import annotations

import sys
from array import array
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from itertools import accumulate, islice, pairwise
from operator import ge, gt
from typing import Final

from engine.codec import Entry, Key

_HEADER_BYTES: Final = 4
_WIDE: Final = 1 << 31
_NARROW_BYTES_MAX: Final = 0xFFFF

_MEMORY_OVERHEAD_BYTES: Final = 250
"""The objects around the data: block, bytes header, array header, integers."""


def little_endian(numbers: array[int]) -> array[int]:
    """Return the numbers in the byte order of files, or back: the array itself on most machines."""
    if sys.byteorder == "big":
        numbers = numbers[:]
        numbers.byteswap()
    return numbers


def encode_block(keys: Sequence[Key], flags: Sequence[int], raws: Sequence[bytes]) -> bytes:
    """Return the block of these entries. The keys increase; the three are equally long."""
    count = len(keys)
    content_bytes = sum(map(len, keys)) + sum(map(len, raws)) + count
    code, start = "H", _HEADER_BYTES + 2 * (2 * count + 1)
    if start + content_bytes > _NARROW_BYTES_MAX:
        code, start = "I", _HEADER_BYTES + 4 * (2 * count + 1)
    lengths = [*map(len, keys), *map(len, raws)]
    bounds = array(code, accumulate(lengths, initial=start + count))
    header = count | (_WIDE if code == "I" else 0)
    return b"".join(
        [header.to_bytes(4, "little"), little_endian(bounds).tobytes(), bytes(flags), *keys, *raws]
    )


class Block:
    """One decoded block. Nothing is copied out of it before it is asked for."""

    __slots__ = ("_bounds", "_count", "_data", "_flags_offset", "_keys_end", "_keys_start")

    def __init__(self, data: bytes) -> None:
        """Take the bytes that `encode_block` made; the caller has checked their checksum.

        Raises ValueError or IndexError for some bytes that are no block, not for all: see `defect`.
        """
        header = int.from_bytes(data[:_HEADER_BYTES], "little")
        if header & _WIDE:
            count = header ^ _WIDE
            flags_offset = _HEADER_BYTES + 4 * (2 * count + 1)
            bounds = array("I", data[_HEADER_BYTES:flags_offset])
        else:
            count = header
            flags_offset = _HEADER_BYTES + 2 * (2 * count + 1)
            bounds = array("H", data[_HEADER_BYTES:flags_offset])
        self._data = data
        self._bounds = little_endian(bounds)
        self._count = count
        self._flags_offset = flags_offset
        self._keys_start = flags_offset + count
        self._keys_end = self._bounds[count]

    def __len__(self) -> int:
        return self._count

    @property
    def weight_bytes(self) -> int:
        """How much memory the block takes: what caches count."""
        bounds = self._bounds
        return len(self._data) + len(bounds) * bounds.itemsize + _MEMORY_OVERHEAD_BYTES

    def find(self, key: Key) -> tuple[int, bytes] | None:
        """Return flags and raw record of the key, or None. The key is not empty.

        Hot path: every read from a table. Measured by `bench/sstable.py`.
        """
        data = self._data
        place = data.find(key, self._keys_start, self._keys_end)
        if place < 0:
            return None
        bounds = self._bounds
        count = self._count
        index = bisect_left(bounds, place, 0, count)
        if bounds[index] != place or bounds[index + 1] != place + len(key):
            index = self._index_of(key)
            if index == count or data[bounds[index] : bounds[index + 1]] != key:
                return None
        record = count + index
        return data[self._flags_offset + index], data[bounds[record] : bounds[record + 1]]

    def entries(self, start_key: Key = b"") -> Iterator[Entry]:
        """Yield the entries from `start_key` on, made one by one."""
        data = self._data
        bounds = self._bounds
        count = self._count
        for index in range(self._index_of(start_key), count):
            yield (
                data[bounds[index] : bounds[index + 1]],
                data[self._flags_offset + index],
                data[bounds[count + index] : bounds[count + index + 1]],
            )

    def to_list(self) -> list[Entry]:
        """Return all entries at once: the fastest way to all of them (0.2 µs an entry)."""
        data = self._data
        count = self._count
        bounds = self._bounds.tolist()
        pieces = [data[start:end] for start, end in pairwise(bounds)]
        flags = data[self._flags_offset : self._flags_offset + count]
        return list(zip(pieces[:count], flags, pieces[count:], strict=True))

    def defect(self) -> str | None:
        """Say what is wrong with the layout; None if nothing is. Takes about as long as `to_list`.

        For those who doubt what a right checksum covers: the other methods take it as it is.
        """
        count = self._count
        bounds = self._bounds.tolist()
        if len(bounds) != 2 * count + 1 or count == 0:
            return f"a block with {len(bounds)} bounds for {count} entries"
        if bounds[0] != self._keys_start or bounds[-1] != len(self._data):
            return f"a block of {len(self._data)} bytes with bounds {bounds[0]} to {bounds[-1]}"
        if any(map(gt, bounds, islice(bounds, 1, None))):
            return "a block with bounds that decrease"
        keys = [self._data[start:end] for start, end in pairwise(bounds[: count + 1])]
        if any(map(ge, keys, islice(keys, 1, None))):
            return "a block with keys out of order"
        return None

    def _index_of(self, key: Key) -> int:
        """Return the number of entries with smaller keys."""
        data = self._data
        bounds = self._bounds
        return bisect_left(
            range(self._count), key, key=lambda index: data[bounds[index] : bounds[index + 1]]
        )
