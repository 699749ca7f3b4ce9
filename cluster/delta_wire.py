"""The forms of deltas, rows and clocks on the wire, and the checks of what came over it.

Not what a replica does with them (`cluster/replica.py`), nor the messages that hold them.

    deltas    a blob: entries as the commit log has them (`engine/log_format.py`), one behind the other
    a place   2 bytes slot, big endian, and the row
    a clock   2 bytes: how many actors; for each 8 bytes actor and 8 bytes counter; then single dots alike

The log holds places and clocks in these forms too, in rows of the system's slot.

Core.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from struct import Struct
from struct import error as StructError
from typing import Final

from cluster.clock import Dot, SlotClock
from cluster.delta import clock_of, joined
from cluster.errors import ClusterError
from cluster.record import HEADER_BYTES, Record, decode, encode
from cluster.slot import SLOT_COUNT, Row, Slot
from cluster.slot_clocks import NOBODY

COUNTER_MAX: Final = (1 << 63) - 1  # What a column of `SlotClocks` holds.
ENTRY: Final = Struct("<BHII")  # As `engine.log_format.ENVELOPE` packs it.
_DOTS: Final = Struct("<QQ")


@dataclass(eq=False)
class MalformedDelta(ClusterError):
    """What a peer sent is no delta. The caller closes the connection; deltas before it in a blob were taken."""

    reason: str

    def __str__(self) -> str:
        return f"malformed delta: {self.reason}"


def pack_place(slot: Slot, row: Row) -> bytes:
    """A row and its slot, as messages and the log name them."""
    return slot.to_bytes(2, "big") + row


def unpack_place(key: bytes) -> tuple[Slot, Row]:
    """Raises MalformedDelta."""
    slot = int.from_bytes(key[:2], "big")
    if len(key) < 9 or slot >= SLOT_COUNT:
        raise MalformedDelta("no such row")
    return slot, key[2:]


def entries_of(blob: bytes) -> Iterator[tuple[int, Slot, Row, bytes]]:
    """Flags, slot, row and record of each log entry in a blob. Raises MalformedDelta.

    `Replica.accept` has it inlined.
    """
    at, size = 0, len(blob)
    while at < size:
        if at + ENTRY.size > size:
            raise MalformedDelta("an entry cut short")
        flags, slot, row_length, raw_length = ENTRY.unpack_from(blob, at)
        row_at = at + ENTRY.size
        raw_at = row_at + row_length
        at = raw_at + raw_length
        if at > size or raw_length < HEADER_BYTES or row_length < 7 or slot >= SLOT_COUNT:
            raise MalformedDelta("an entry with impossible lengths")
        yield flags, slot, blob[row_at:raw_at], blob[raw_at:at]


def delta_of(raw: bytes, context: SlotClock | None) -> Record:
    """A write as a delta: the short form means all that its actor did before, and `context` says the rest.

    Raises MalformedDelta.
    """
    record = record_of(raw)
    if context is None:
        return record
    return Record(record.versions, *joined(context, clock_of(record)).freeze())


def record_of(raw: bytes) -> Record:
    """A record that came from elsewhere. Raises MalformedDelta."""
    try:
        record = decode(raw)
        is_whole = encode(record) == raw
    except (StructError, IndexError) as error:
        raise MalformedDelta("a record cut short") from error
    if not is_whole:
        raise MalformedDelta("a record with lengths that do not fit")
    _check_dots((*(version.dot for version in record.versions), *record.context, *record.beyond))
    return record


def _check_dots(dots: Iterable[Dot]) -> None:
    for actor, counter in dots:
        if actor == NOBODY or not 0 < counter <= COUNTER_MAX:
            raise MalformedDelta("an impossible dot")


def encode_clock(clock: SlotClock) -> bytes:
    """Two bytes for the number of actors, then each with its counter; then the single dots."""
    base, beyond = clock.freeze()
    parts = [len(base).to_bytes(2, "little"), *(_DOTS.pack(*dot) for dot in base)]
    return b"".join([*parts, *(_DOTS.pack(*dot) for dot in beyond)])


def decode_clock(data: bytes) -> SlotClock:
    """Raises MalformedDelta."""
    count = int.from_bytes(data[:2], "little")
    if len(data) < 2 + count * _DOTS.size or (len(data) - 2) % _DOTS.size:
        raise MalformedDelta("a clock cut short")
    dots: list[Dot] = list(_DOTS.iter_unpack(data[2:]))
    _check_dots(dots)
    return SlotClock(dict(dots[:count]), set(dots[count:]))
