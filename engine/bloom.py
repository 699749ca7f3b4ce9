"""Bloom filters over keys: "certainly not here" without touching a block.

Not a general Bloom filter: it is laid out so that a lookup is a handful of operations on Python's
big integers. A classic filter probes up to seven scattered bits, and each probe costs a tenth of a
microsecond in pure Python. Here all bits of a key lie in one *word* of 1536 bits. The key's bits
are gathered into a mask once (`hash_of`, 0.4 µs); each filter then answers with a single
`word & mask == mask` (0.15 µs), so that many tables share the cost of one hash.

**Memory.** Words are kept as integers, which take 248 bytes for 192. To keep the filter as one
bytes object, and make the integer of a word when it is asked for, would save these 29 % and take
0.5 to 0.6 µs instead of 0.15: too much for what every read does with every table.

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

from collections.abc import Callable, Iterable
from struct import Struct
from typing import Final

from xxhash import xxh3_128_digest

from engine.codec import Key

KeyHash = tuple[int, int]
"""What filters need to know of a key: a number that picks the word, and the mask of its bits."""

BITS_PER_KEY: Final = 10
SECTION_COUNT: Final = 6
SECTION_BITS: Final = 256
WORD_BYTES: Final = SECTION_COUNT * SECTION_BITS // 8

WORD_MEMORY_BYTES: Final = 248
"""What a word costs in memory: an integer of 52 digits of four bytes, in units of 16 bytes, and the
reference to it."""

_OVERHEAD_BYTES: Final = 350
"""The objects around the words: filter, function, its variables, tuple."""

_split_digest = Struct("<6B2xQ").unpack
_each_digest = Struct("<6B2xQ").iter_unpack

# One table per section, from a byte of the digest to its bit. Separate names, because a global
# list is found faster than an element of a list of lists.
_BIT_0, _BIT_1, _BIT_2, _BIT_3, _BIT_4, _BIT_5 = (
    [1 << (SECTION_BITS * section + bit) for bit in range(SECTION_BITS)]
    for section in range(SECTION_COUNT)
)


def hash_of(key: Key) -> KeyHash:
    """Return what any number of filters can be asked with about `key`.

    Hot path: every read that the memtable does not answer. Measured by `bench/sstable.py`.
    """
    b0, b1, b2, b3, b4, b5, pick = _split_digest(xxh3_128_digest(key))
    return pick, _BIT_0[b0] | _BIT_1[b1] | _BIT_2[b2] | _BIT_3[b3] | _BIT_4[b4] | _BIT_5[b5]


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
        words = [0] * word_count
        for digests in self._digests:
            for b0, b1, b2, b3, b4, b5, pick in _each_digest(digests):
                words[pick % word_count] |= (
                    _BIT_0[b0] | _BIT_1[b1] | _BIT_2[b2] | _BIT_3[b3] | _BIT_4[b4] | _BIT_5[b5]
                )
        return b"".join([word.to_bytes(WORD_BYTES, "little") for word in words])


class BloomFilter:
    """A filter in memory, ready to be asked.

    `may_contain(hashed)` returns False when the key was certainly not added.
    """

    __slots__ = ("may_contain", "memory_bytes")

    def __init__(self, data: bytes) -> None:
        """Read a filter from its format; `data` is one or more whole words."""
        assert data, "a filter has at least one word"
        assert len(data) % WORD_BYTES == 0, "a filter consists of whole words"
        # A tuple: once the collector has seen that it holds nothing but numbers, it forgets it.
        words = tuple(
            int.from_bytes(data[start : start + WORD_BYTES], "little")
            for start in range(0, len(data), WORD_BYTES)
        )
        self.may_contain: Callable[[KeyHash], bool] = _test_of(words)
        self.memory_bytes = len(words) * WORD_MEMORY_BYTES + _OVERHEAD_BYTES


def _test_of(words: tuple[int, ...]) -> Callable[[KeyHash], bool]:
    """Return `may_contain`. A closure, whose variables are found faster than those of an object."""
    word_count = len(words)

    def may_contain(hashed: KeyHash) -> bool:
        pick, mask = hashed
        return words[pick % word_count] & mask == mask

    return may_contain
