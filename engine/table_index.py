"""The index of a table: where each block lies, and which block a key would be in.

Not the blocks, and not where in the file the index lies: see `engine/sstable.py`.

*Separator* `i` is the shortest prefix of the first key of block `i + 1` that is above the last key
of block `i`. So a key is in the block whose number is how many separators are not above it. Such a
prefix is mostly shorter than eight bytes, and an index of millions of them must be small, so there
are no objects of them. Each is a number of eight bytes, its *head*, and only what does not fit into
the head is kept as bytes, its *tail*:

    head    its first seven bytes, padded by zeros, big endian, and then its length, or 255 if it is
            longer than seven bytes
    tail    what is longer than seven bytes: all bytes from the eighth on

Keys have heads and tails too. Heads are in the order of what they are heads of, and equal ones below
255 mean equal bytes; equal ones of 255 leave it to the tails. (Two rows have the same first seven
bytes when they are elements of one collection, and seldom else: see the order of keys.)

So an open index is arrays: 24 bytes a block (28 from 4 GiB on), and with any tails 4 bytes a block
and the tails. A search is a bisection of the heads in C, 0.6 µs among 10,000 blocks. A tuple of
`bytes` objects takes 0.3 µs, and three times the memory. To bisect every 16th head as an object
first saved 0.02 µs.

**Format**, version 2, little endian, `n` blocks, as columns:

    u32 [n]       stored lengths; their sums are the offsets
    u32 [n]       raw lengths, at most `BLOCK_BYTES_MAX`
    u64 [n]       checksums of the stored bytes
    u64 [n - 1]   heads of the separators
    u32 [n - 1]   lengths of the tails
    ...           the tails, joined

In version 1 there are, instead of the last three:

    u32 [n - 1]   lengths of the separators
    ...           the separators, joined

Core: pure and synchronous; a `TableIndex` never changes.
"""

from __future__ import annotations

import sys
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from itertools import accumulate, pairwise
from struct import Struct
from typing import Final

from engine.block import little_endian
from engine.codec import Key

BLOCK_BYTES_MAX: Final = (1 << 30) + 64
"""What a block may be before compression: an entry of 1 GiB, and what surrounds it."""

_HEAD_BYTES: Final = 7
_LONG: Final = 255
_NARROW_BYTES_MAX: Final = (1 << 32) - 1

_first_eight = Struct(">Q").unpack_from


class IndexBuilder:
    """Collects what the index says, block by block, and makes the section."""

    __slots__ = ("_checksums", "_heads", "_raw_lengths", "_stored_lengths", "_tails")

    def __init__(self) -> None:
        self._stored_lengths = array("I")
        self._raw_lengths = array("I")
        self._checksums = array("Q")
        self._heads = array("Q")
        self._tails: list[bytes] = []

    def __len__(self) -> int:
        return len(self._checksums)

    def add_block(self, stored_length: int, raw_length: int, checksum: int) -> None:
        """Say where the next block is: after all earlier ones."""
        assert 0 < stored_length <= raw_length <= BLOCK_BYTES_MAX
        self._stored_lengths.append(stored_length)
        self._raw_lengths.append(raw_length)
        self._checksums.append(checksum)

    def add_border(self, low: Key, high: Key) -> None:
        """Say the last key of a block, and the first of the next."""
        separator = separator_of(low, high)
        self._heads.append(head_of(separator))
        self._tails.append(separator[_HEAD_BYTES:])

    def finish(self) -> bytes:
        """Return the index in its format."""
        columns = [
            self._stored_lengths,
            self._raw_lengths,
            self._checksums,
            self._heads,
            array("I", map(len, self._tails)),
        ]
        return b"".join([little_endian(column).tobytes() for column in columns] + self._tails)


class TableIndex:
    """An index in memory. The columns are for reading only.

    Block `i` is the bytes from `offsets[i]` to `offsets[i + 1]`.
    """

    __slots__ = ("_tail_bounds", "_tails", "checksums", "heads", "offsets", "raw_lengths")

    def __init__(
        self,
        stored_lengths: array[int],
        raw_lengths: array[int],
        checksums: array[int],
        heads: array[int],
        tail_lengths: array[int],
        tails: bytes,
    ) -> None:
        """Raises ValueError if a block claims more bytes than it may have."""
        if max(raw_lengths, default=0) > BLOCK_BYTES_MAX:
            raise ValueError(f"a block of {max(raw_lengths)} bytes")
        offsets = list(accumulate(stored_lengths, initial=0))
        # From a list, because an array that grows keeps room to spare.
        self.offsets = array("I" if offsets[-1] <= _NARROW_BYTES_MAX else "Q", offsets)
        self.raw_lengths = raw_lengths
        self.checksums = checksums
        self.heads = heads
        self._tails = tails
        code = "I" if len(tails) <= _NARROW_BYTES_MAX else "Q"
        self._tail_bounds = array(code, list(accumulate(tail_lengths, initial=0)) if tails else [])

    def __len__(self) -> int:
        """How many blocks there are."""
        return len(self.checksums)

    @property
    def has_tails(self) -> bool:
        """Whether any separator is longer than its head."""
        return bool(self._tails)

    @property
    def memory_bytes(self) -> int:
        """How much memory the index takes."""
        columns = (self.offsets, self.raw_lengths, self.checksums, self.heads, self._tail_bounds)
        return sum(map(sys.getsizeof, (*columns, self._tails)))

    def block_of(self, key: Key) -> int:
        """Return the number of separators that are not above the key."""
        number = bisect_right(self.heads, head_of(key))
        return self.by_tail(key, number) if len(key) > _HEAD_BYTES else number

    def by_tail(self, key: Key, number: int) -> int:
        """Return what `block_of` does, where `number` separators have heads that are not above.

        The key has eight bytes or more.
        """
        heads = self.heads
        if number == 0 or heads[number - 1] != _first_eight(key)[0] | _LONG:
            return number
        first = bisect_left(heads, heads[number - 1], 0, number)
        tail = key[_HEAD_BYTES:]
        return bisect_right(range(number), tail, first, number, key=self._tail)

    def blocks_between(self, low: Key, high: Key) -> range:
        """Return the numbers of the blocks that can hold keys from `low` to before `high`."""
        end = self.block_of(high)
        if end > 0 and self.separator(end - 1) == high:
            end -= 1  # The first key of that block is not below its separator.
        return range(self.block_of(low), end + 1)

    def separator(self, number: int) -> bytes:
        """Return the border between the blocks `number` and `number + 1`."""
        start = self.heads[number].to_bytes(_HEAD_BYTES + 1, "big")
        if start[-1] == _LONG:
            return start[:-1] + self._tail(number)
        return start[: start[-1]]

    def _tail(self, number: int) -> bytes:
        return self._tails[self._tail_bounds[number] : self._tail_bounds[number + 1]]


def decode_index(data: bytes, block_count: int, version: int) -> TableIndex:
    """Read the section; the caller has checked its checksum.

    Raises ValueError where it does not say what it should.
    """
    border_count = max(0, block_count - 1)
    counts = [block_count] * 3 + [border_count] * (2 if version > 1 else 1)
    codes = "IIQQI" if version > 1 else "IIQI"
    columns: list[array[int]] = []
    start = 0
    for code, length in zip(codes, counts, strict=True):
        end = start + array(code).itemsize * length
        if end > len(data):
            raise ValueError("an index that ends early")
        # Copied, because an array that was read from bytes keeps room to spare.
        columns.append(little_endian(array(code, data[start:end]))[:])
        start = end
    lengths = columns[-1]
    joined = data[start:]
    if sum(lengths) != len(joined):
        raise ValueError("an index of another length")
    if version > 1:
        return TableIndex(columns[0], columns[1], columns[2], columns[3], lengths, joined)
    separators = list(_split(joined, lengths))
    heads = array("Q", list(map(head_of, separators)))
    tails = [separator[_HEAD_BYTES:] for separator in separators]
    lengths = array("I", list(map(len, tails)))
    return TableIndex(columns[0], columns[1], columns[2], heads, lengths, b"".join(tails))


def head_of(key: bytes) -> int:
    """Return the head of a key or a separator."""
    if len(key) > _HEAD_BYTES:
        number: int = _first_eight(key)[0] | _LONG
        return number
    return int.from_bytes(key.ljust(_HEAD_BYTES, b"\0"), "big") << 8 | len(key)


def separator_of(low: Key, high: Key) -> bytes:
    """Return the shortest prefix of `high` that is above `low`; `low` is below `high`."""
    # By big integers, because keys may be megabytes, and a loop would take a second over them.
    shared = min(len(low), len(high))
    difference = int.from_bytes(low[:shared], "big") ^ int.from_bytes(high[:shared], "big")
    same_bytes = shared - (difference.bit_length() + 7) // 8
    return high[: same_bytes + 1]


def _split(joined: bytes, lengths: array[int]) -> Iterator[bytes]:
    for start, end in pairwise(accumulate(lengths, initial=0)):
        yield joined[start:end]
