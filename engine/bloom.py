"""Bloom filters over keys: "certainly not here" without touching a block.

Not a general Bloom filter: it is laid out for what Python is fast at. All bits of a key lie in one
*word* of 192 bytes, which has six sections of 32 bytes with one bit of the key in each, so that a byte of
the key's digest is the number of a bit as it stands.

**Asking.** The digest of a key is made once (0.1 µs), and all filters are asked with it. Each is asked bit
by bit, and the first that is not set ends it. Less than half of the bits are set, so that a key that is not
there takes two looks, at bytes that lie close together (0.2 µs), and one that is there takes six (0.4 µs).
`candidates` asks the filters of many tables in one loop, because calling a function for each would cost
about as much as two looks.

Tried before: words as big integers, and the key's bits as a mask, so that one `word & mask == mask` is all.
That takes 29 % more memory, and 0.3 µs more to make the mask; and it moves all 192 bytes through the CPU's
cache. Once filters are larger than that, it is not faster even for keys that are there.

**Sizes.** 10 bits a key give 0.9 % false positives. (A word has six sections of 256 bits and a key
sets one bit in each. Words fill unevenly; with 153 keys to a word that costs less than a tenth of
the rate. Measured by `tests/engine/test_bloom.py`.)

**Format**, version 1. The filter is `word_count` words of 192 bytes, each a little endian number;
nothing else. Let `d` be the canonical (big endian) 16 byte digest of xxh3_128 of the key, seed 0:

    word of the key     d[8:16] as a little endian u64, modulo word_count
    bits in the word    256 * s + d[s] for s in 0..5

There is always at least one word, and `word_count` is the smallest that gives `BITS_PER_KEY`.

Core: pure and synchronous. Sources: Bloom; Putze, Sanders and Singler on cache-, hash- and
space-efficient Bloom filters (blocked filters); the split block filter of Parquet.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from struct import Struct
from typing import Final, Protocol, TypeVar

from xxhash import xxh3_128_digest

from engine.codec import Key

Words = tuple[bytes, int]
"""All words of a filter, and how many they are."""

BITS_PER_KEY: Final = 10
SECTION_COUNT: Final = 6
SECTION_BITS: Final = 256
WORD_BYTES: Final = SECTION_COUNT * SECTION_BITS // 8

_OVERHEAD_BYTES: Final = 150
"""The objects around the words: filter, header of the bytes, number of words, the tuple of both."""

_split_digest = Struct("<6B2xQ").unpack
_each_digest = Struct("<6B2xQ").iter_unpack

# Of a bit's number in its section: the bit in its byte, and for each section the byte in the word.
# Separate names, because a global list is found faster than an element of a list of lists. (In section
# 0 a shift is as fast.)
_BIT: Final = [1 << bit % 8 for bit in range(SECTION_BITS)]
_BYTE_1, _BYTE_2, _BYTE_3, _BYTE_4, _BYTE_5 = (
    [(SECTION_BITS * section + bit) // 8 for bit in range(SECTION_BITS)]
    for section in range(1, SECTION_COUNT)
)


class BloomBuilder:
    """Collects keys, and makes the filter when their number is known.

    Keeps 16 bytes a key.
    """

    __slots__ = ("_digests",)

    def __init__(self) -> None:
        self._digests: list[bytes] = []

    def add_all(self, keys: Iterable[Key]) -> None:
        """Add keys; each should come once, since the filter's size follows their number."""
        # Joined at once: a bytes object of its own would triple what a digest costs.
        self._digests.append(b"".join(map(xxh3_128_digest, keys)))

    def finish(self) -> bytes:
        """Return the filter in its format."""
        key_count = sum(map(len, self._digests)) // 16
        word_count = max(1, -(-key_count * BITS_PER_KEY // (WORD_BYTES * 8)))
        data = bytearray(word_count * WORD_BYTES)
        bit = _BIT
        for digests in self._digests:
            for b0, b1, b2, b3, b4, b5, pick in _each_digest(digests):
                start = pick % word_count * WORD_BYTES
                data[start + (b0 >> 3)] |= bit[b0]
                data[start + _BYTE_1[b1]] |= bit[b1]
                data[start + _BYTE_2[b2]] |= bit[b2]
                data[start + _BYTE_3[b3]] |= bit[b3]
                data[start + _BYTE_4[b4]] |= bit[b4]
                data[start + _BYTE_5[b5]] |= bit[b5]
        return bytes(data)


class BloomFilter:
    """A filter in memory, ready to be asked: by itself, or as one of many by `candidates`."""

    __slots__ = ("memory_bytes", "words")

    def __init__(self, data: bytes) -> None:
        """Take a filter in its format; `data` is one or more whole words."""
        assert data, "a filter has at least one word"
        assert len(data) % WORD_BYTES == 0, "a filter consists of whole words"
        self.words: Words = (data, len(data) // WORD_BYTES)
        self.memory_bytes = len(data) + _OVERHEAD_BYTES

    def may_contain(self, key: Key) -> bool:
        """Return False when the key was certainly not added."""
        return any(candidates((self,), key))


class Filtered(Protocol):
    """What has the words of a filter."""

    @property
    def words(self) -> Words: ...


F = TypeVar("F", bound=Filtered)


def candidates(filtered: Iterable[F], key: Key) -> Iterator[F]:
    """Yield those, in order, whose filter may contain the key.

    Hot path: every read that the memtable does not answer. Measured by `bench/sstable.py`.
    """
    b0, b1, b2, b3, b4, b5, pick = _split_digest(xxh3_128_digest(key))
    bit = _BIT
    for each in filtered:
        data, word_count = each.words
        start = pick % word_count * WORD_BYTES
        if (
            data[start + (b0 >> 3)] & bit[b0]
            and data[start + _BYTE_1[b1]] & bit[b1]
            and data[start + _BYTE_2[b2]] & bit[b2]
            and data[start + _BYTE_3[b3]] & bit[b3]
            and data[start + _BYTE_4[b4]] & bit[b4]
            and data[start + _BYTE_5[b5]] & bit[b5]
        ):
            yield each
