"""Where a key lives: its slot, and its row in storage order.

A slot is one of 16384, from the CRC16 of the key or of its `{hash tag}`, as in Redis Cluster. A row
orders the keys of a slot:

    6 bytes  xxh3_64 of the key, the upper 48 bits (SCAN's cursor and the Merkle bucket are
             prefixes of it)
    1 byte   database
    4 bytes  length of the key, big endian (so that no key is a prefix of another one's elements)
    n bytes  key
    m bytes  element (empty for the header, which is the only row of a string)

Core: no I/O. Source of the slot: the Redis Cluster specification.
"""

from __future__ import annotations

from binascii import crc_hqx
from struct import Struct
from typing import Final

from xxhash import xxh3_64_digest

Key = bytes  # What a client calls a key.
Row = bytes  # The ordered form of a key, within its slot.
Slot = int  # 0 to 16383, or SYSTEM_SLOT.

SLOT_COUNT: Final = 16384
SYSTEM_SLOT: Final = (
    16384  # Rows of the node itself, such as the table of databases; no key lives there.
)
DATABASE_COUNT: Final = 16
HASH_BYTES: Final = 6
TAG_OFFSET: Final = 6  # Where the database stands in a row.
KEY_OFFSET: Final = 11

_MIDDLE: Final = Struct(">BI").pack
# The middle of a row for short keys, by database and length: a table look-up is half the cost of
# packing.
MIDDLES: Final = [[_MIDDLE(db, length) for length in range(256)] for db in range(DATABASE_COUNT)]


def slot_of(key: Key) -> Slot:
    """The slot of a key: CRC16 of it, or of what stands in its first non-empty braces."""
    if b"{" in key:
        start = key.index(b"{") + 1
        stop = key.find(b"}", start)
        if stop > start:
            key = key[start:stop]
    return crc_hqx(key, 0) & 16383


def row_of(db: int, key: Key) -> Row:
    """The header row of a key of a (physical) database."""
    length = len(key)
    middle = MIDDLES[db][length] if length < 256 else _MIDDLE(db, length)
    return xxh3_64_digest(key)[:6] + middle + key


def key_of(row: Row) -> Key:
    """The key that a row belongs to."""
    length = int.from_bytes(row[7:11], "big")
    return row[KEY_OFFSET : KEY_OFFSET + length]


def hash_of(row: Row) -> int:
    """The 48-bit hash by which the rows of a slot are ordered."""
    return int.from_bytes(row[:6], "big")
