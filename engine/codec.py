"""What the engine must be told about records, and the shape of what it stores.

The engine does not look into the records that it stores. Where it needs to know something (which
of two states is the newer truth, what has expired), it asks a `RecordCodec`. The codec is named by
import path, so that the worker process loads the same one.

An *entry* is `(key, flags, raw)`. The key is the slot as two bytes, big endian, and then the row;
the order of entries is the order of these bytes. `raw` is the record, opaque. Of the flags one is
defined:

- `COMPLETE`: the entry is the whole state as of its time, older entries of the key need not be
  read. Without it the entry is a delta, and the state is its join with the older ones.

This module holds definitions only: no states, no I/O.
"""

from __future__ import annotations

from enum import Enum
from typing import Protocol

Key = bytes
"""Slot (two bytes, big endian) and row: what a table is ordered by."""

Row = bytes
"""A key without its slot. Its inner structure belongs to the codec."""

Entry = tuple[Key, int, bytes]
"""Key, flags and raw record."""

SLOT_BYTES = 2
"""How many bytes of a key are the slot."""

SLOT_MAX = 16384
"""The largest slot: the 16384 slots of user data, and one for what belongs to no slot."""

COMPLETE = 1
"""Flag: the entry is the whole state as of its time."""


class Fate(Enum):
    """What compaction may do with a record."""

    LIVE = 0
    """It shows something, or may again: keep it as it is."""

    DEAD = 1
    """It shows nothing any more (deleted or expired) and only hides older entries below it."""


class RecordCodec(Protocol):
    """What the engine may ask about records. All methods are pure and safe to call in any process.

    `join` is associative, idempotent and commutative in effect. `stub` of a stub is the stub, and
    a stub of a dead record is dead at the same time and later.
    """

    def join(self, newer: bytes, older: bytes) -> bytes:
        """Return the state that has seen both."""
        ...

    def fate(self, row: Row, raw: bytes, now_ms: int) -> Fate:
        """Say whether the record still shows anything at `now_ms` (Unix time in milliseconds)."""
        ...

    def expires_at_ms(self, raw: bytes) -> int:
        """Return the Unix time in milliseconds from which the record is hidden; 0 is never."""
        ...

    def stub(self, raw: bytes) -> bytes:
        """Return what must stay of a dead record while older entries may lie below it: little."""
        ...

    def tag(self, row: Row) -> int:
        """Return the keyspace of a row, 0 to 255: entries are counted and dropped by it."""
        ...


def key_of(slot: int, row: Row) -> Key:
    """Return the key under which tables order the row."""
    return slot.to_bytes(SLOT_BYTES, "big") + row
