"""What the three engines are asked to keep: keys, values and the order in which they come (core).

It runs nothing. All engines get the same bytes:

- **Key**, 16 bytes: two of slot, then what respkv's engine calls the row. It is a hash of the
  record's number, so going through the numbers fills in random order, and no list of keys is kept.
- **Value**: it begins like a record of a server (`cluster/record.py`: kind, dot, timestamp), since
  respkv's engine asks the codec about it. The rest is a random fragment twice, so it compresses to
  about a half. The header is a part of the value's length, and the others keep it as well.

A *phase* is one kind of operation. It is told which records it touches:

    fill            every record once, in random order
    overwrite       as many again, random ones out of all
    overwrite hot   as many again, random ones out of a hundredth of all
    get hit         random ones out of all; "hot" in a process with large caches
    get miss        records that were never written
    scan            all rows of one slot, slot after slot in random order
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

from xxhash import xxh3_128_digest

from cluster.record import HEADER, HEADER_BYTES, STRING
from cluster.slot import SLOT_COUNT, TAG_OFFSET

Key: TypeAlias = bytes
"""Slot and row, 16 bytes."""

Cache: TypeAlias = Literal["large", "tiny"]
"""Whether blocks that were read once are found in the engine's own cache; the kernel has them always."""

FILL: Final = "fill"
OVERWRITE: Final = "overwrite"
OVERWRITE_HOT: Final = "overwrite hot"
GET_HIT: Final = "get hit"
GET_MISS: Final = "get miss"
SCAN: Final = "scan"

WRITES: Final = (FILL, OVERWRITE_HOT, OVERWRITE)
READS: Final = (GET_HIT, GET_MISS, SCAN)

KEY_BYTES: Final = 16
SLOT_BYTES: Final = 2
# Not so few that the same blocks are read by luck, and never more than fit into the large cache.
HOT_MIN: Final = 500
HOT_SHARE: Final = 100
GETS_MAX: Final = 200_000
SCANS_MAX: Final = 1000
MISS_BASE: Final = 1 << 40
TINY_CACHE_BYTES: Final = 64 << 10
BUFFER_BYTES: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class Spec:
    """What one process is to do with one engine, in a folder that may hold data already."""

    engine: str
    folder: str
    record_count: int
    value_bytes: int
    batch: int
    cache: Cache
    write_buffer_bytes: int
    cache_bytes: int
    phases: tuple[str, ...]
    seed: int = 1

    @property
    def user_bytes(self) -> int:
        """What the caller wants kept, once every record is written."""
        return self.record_count * (KEY_BYTES + self.value_bytes)


def op_count(phase: str, record_count: int) -> int:
    """How many operations a phase has."""
    if phase in WRITES:
        return record_count
    return min(SCANS_MAX if phase == SCAN else GETS_MAX, record_count)


def key_of(number: int) -> Key:
    """The key of a record."""
    digest = bytearray(xxh3_128_digest(number.to_bytes(8, "big")))
    digest[0] &= SLOT_COUNT // 256 - 1
    digest[SLOT_BYTES + TAG_OFFSET] = 0  # The database.
    return bytes(digest)


class Values:
    """Makes values of one length: as many different ones as asked for, without keeping them."""

    def __init__(self, value_bytes: int, rng: random.Random) -> None:
        assert value_bytes > HEADER_BYTES + 1
        self._rest = value_bytes - HEADER_BYTES
        self._half = (self._rest + 1) // 2
        self._rng = rng
        self._buffer = rng.randbytes(BUFFER_BYTES + self._half)
        self._counter = 0

    def make(self) -> bytes:
        self._counter = counter = self._counter + 1
        at = int(self._rng.random() * BUFFER_BYTES)
        fragment = self._buffer[at : at + self._half]
        return HEADER.pack(STRING, 1, counter, counter << 16) + (fragment + fragment)[: self._rest]


def numbers(phase: str, cache: Cache, record_count: int, rng: random.Random) -> Iterator[int]:
    """Yield the records (for `scan` the slots) of a phase, in order."""
    count = op_count(phase, record_count)
    if phase == FILL:
        return iter(range(record_count))
    if phase == SCAN:
        if cache == "large":  # Few enough to be cached: a hundredth of the slots, again and again.
            hot = rng.sample(range(SLOT_COUNT), SLOT_COUNT // HOT_SHARE)
            return (hot[at % len(hot)] for at in range(count))
        return iter(rng.sample(range(SLOT_COUNT), count))
    base = MISS_BASE if phase == GET_MISS else 0
    is_hot = phase == OVERWRITE_HOT or (phase in READS and cache == "large")
    span = min(record_count, max(HOT_MIN, record_count // HOT_SHARE)) if is_hot else record_count
    return (base + int(rng.random() * span) for _ in range(count))


def write_buffer_for(record_count: int) -> int:
    """A write buffer that a million records of 100 bytes fill several times, and fewer as often."""
    return max(1 << 20, min(16 << 20, (16 << 20) * record_count // 1_000_000))
