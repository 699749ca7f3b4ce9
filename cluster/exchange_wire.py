"""What replicas say to each other in an exchange: the messages of `cluster/exchange.py`, byte by byte.

It decides nothing. `decode` checks every announced length against what is there, and gives a message
or raises `MalformedExchange`; `encode` is its opposite. A message is its verb, a head, and for ROWS the
rows behind it. Numbers are little endian, without gaps:

    EXCHANGE.DIGEST  8 round, 1 flags (1 FULL), then for each group: 1 group, 8 hash
    EXCHANGE.SAME    8 round, 16 bits of groups: bit g & 7 of byte g >> 3 is group g
    EXCHANGE.CLOCKS  8 round, then for each slot: 2 slot, 1 flags (1 PARTIAL), clock
    EXCHANGE.WANT    8 transfer, 2 slot, clock
    EXCHANGE.ROWS    8 transfer, 8 scan, 2 slot, 4 number, 1 flags (1 LAST), clock if number is 0;
                     then two parts for each row: the row, its raw record
    EXCHANGE.NEXT    8 transfer, 8 scan, 2 slot, 4 number
    EXCHANGE.STOP    8 transfer, 2 slot
    EXCHANGE.GONE    8 transfer, 2 slot

    clock            4 count of base, 4 count of dots beyond, then 8 actor, 8 counter for each of both

Base and dots are sorted, so that equal clocks have equal bytes: these are what is hashed, too. Raw
records are as they are stored (`cluster/record.py`); what their context leaves to the slot clock is in
the clock of chunk 0.

Core.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain, pairwise
from struct import Struct
from typing import Final

from cluster.clock import SlotClock
from cluster.errors import ClusterError
from cluster.record import (
    EXPIRY_HEADER_BYTES,
    HAS_EXPIRY,
    HEADER_BYTES,
    MANY,
    Record,
    decode_version,
)
from cluster.record import decode as decode_record
from cluster.record import encode as encode_record
from cluster.slot import KEY_OFFSET, SLOT_COUNT, Row, Slot
from cluster.transport import Message

GROUP_COUNT: Final = 128
GROUP_SHIFT: Final = (
    SLOT_COUNT // GROUP_COUNT
).bit_length() - 1  # slot >> GROUP_SHIFT is its group.

Group = int  # 0 to 127: a run of 128 slots.
RoundId = int  # 64 bits: of a node's comparison with a peer, growing; random at its start.
TransferId = int  # 64 bits, random: who wants the rows chooses it.
ScanId = int  # 64 bits, random: chosen by who sends the rows, for each scan that it begins.
PackedClock = bytes  # A slot clock as it is on the wire.

DIGEST: Final = b"EXCHANGE.DIGEST"
SAME: Final = b"EXCHANGE.SAME"
CLOCKS: Final = b"EXCHANGE.CLOCKS"
WANT: Final = b"EXCHANGE.WANT"
ROWS: Final = b"EXCHANGE.ROWS"
NEXT: Final = b"EXCHANGE.NEXT"
STOP: Final = b"EXCHANGE.STOP"
GONE: Final = b"EXCHANGE.GONE"

_ROUND: Final = Struct("<Q")
_DIGEST: Final = Struct("<QB")
_GROUP: Final = Struct("<BQ")
_SAME_BYTES: Final = GROUP_COUNT // 8
_ENTRY: Final = Struct("<HB")
_TRANSFER: Final = Struct("<QH")
_NEXT: Final = Struct("<QQHI")
_ROWS: Final = Struct("<QQHIB")
_COUNTS: Final = Struct("<II")
NOTHING: Final = _COUNTS.pack(0, 0)  # The clock of who has seen nothing.
_DOT: Final = Struct("<QQ")

COUNTER_MAX: Final = 2**63 - 1
FLAG: Final = 1  # FULL, PARTIAL or LAST; no other bit is in use.


@dataclass(eq=False)
class MalformedExchange(ClusterError):
    """A message is not what a replica sends. Nothing was changed; the caller closes the connection."""

    reason: str

    def __str__(self) -> str:
        return f"malformed exchange: {self.reason}"


@dataclass(frozen=True, slots=True)
class Digest:
    """The hashes of the sender's clocks, by group. `is_full`: answer all that differ, however many."""

    round: RoundId
    is_full: bool
    groups: dict[Group, int]


@dataclass(frozen=True, slots=True)
class Same:
    """The groups of a digest that are the same at who was asked."""

    round: RoundId
    groups: tuple[Group, ...]


@dataclass(frozen=True, slots=True)
class ClockEntry:
    """A slot's clock. `is_partial`: only the base of it, for it has too many dots beyond."""

    slot: Slot
    is_partial: bool
    clock: PackedClock


@dataclass(frozen=True, slots=True)
class Clocks:
    """Clocks of a group that differs. It says nothing about slots that are not in it."""

    round: RoundId
    entries: tuple[ClockEntry, ...]


@dataclass(frozen=True, slots=True)
class Want:
    """Begin a transfer: what this clock of mine does not cover. The answer is chunk 0."""

    id: TransferId
    slot: Slot
    clock: SlotClock


@dataclass(frozen=True, slots=True)
class Next:
    """All before chunk `number` is stored here; send that one, or send it again."""

    id: TransferId
    scan: ScanId
    slot: Slot
    number: int


@dataclass(frozen=True, slots=True)
class Rows:
    """A chunk: rows as they are stored. `clock` (chunk 0 only) is what the sender had seen at its scan's start."""

    id: TransferId
    scan: ScanId
    slot: Slot
    number: int
    is_last: bool
    clock: SlotClock | None
    rows: tuple[tuple[Row, bytes], ...]


@dataclass(frozen=True, slots=True)
class Stop:
    """The transfer is over for who wanted it: done, or given up."""

    id: TransferId
    slot: Slot


@dataclass(frozen=True, slots=True)
class Gone:
    """The transfer is over for who sent the rows: unknown here, or it cannot go on."""

    id: TransferId
    slot: Slot


ExchangeMessage = Digest | Same | Clocks | Want | Next | Rows | Stop | Gone


def encode(message: ExchangeMessage) -> Message:
    """The parts of a message, verb first."""
    match message:
        case Digest():
            groups = [_GROUP.pack(group, value) for group, value in message.groups.items()]
            return [DIGEST, _DIGEST.pack(message.round, message.is_full) + b"".join(groups)]
        case Same():
            bits = sum(1 << group for group in message.groups)
            return [SAME, _ROUND.pack(message.round) + bits.to_bytes(_SAME_BYTES, "little")]
        case Clocks():
            entries = [_ENTRY.pack(e.slot, e.is_partial) + e.clock for e in message.entries]
            return [CLOCKS, _ROUND.pack(message.round) + b"".join(entries)]
        case Want():
            return [WANT, _TRANSFER.pack(message.id, message.slot) + pack_clock(message.clock)]
        case Next():
            return [NEXT, _NEXT.pack(message.id, message.scan, message.slot, message.number)]
        case Rows():
            return [ROWS, _rows_head(message), *chain.from_iterable(message.rows)]
        case Stop():
            return [STOP, _TRANSFER.pack(message.id, message.slot)]
        case Gone():
            return [GONE, _TRANSFER.pack(message.id, message.slot)]


def _rows_head(message: Rows) -> bytes:
    head = _ROWS.pack(message.id, message.scan, message.slot, message.number, message.is_last)
    return head if message.clock is None else head + pack_clock(message.clock)


def decode(parts: Sequence[bytes]) -> ExchangeMessage:
    """The message that these parts are. Raises MalformedExchange."""
    if len(parts) < 2:
        raise MalformedExchange("no head")
    verb, head = parts[0], parts[1]
    if verb != ROWS and len(parts) != 2:
        raise MalformedExchange(f"{len(parts)} parts")
    try:
        decoder = _DECODERS.get(verb)
        if decoder is not None:
            return decoder(head)
        if verb == ROWS:
            return _decode_rows(head, parts[2:])
    except struct.error as error:
        raise MalformedExchange(f"{verb.decode()}: {error}") from error
    raise MalformedExchange(f"unknown verb {verb[:32]!r}")


def pack_clock(clock: SlotClock) -> PackedClock:
    """The bytes of a clock: the same for equal ones."""
    if not clock.base and not clock.beyond:  # Most slots of a small cluster.
        return NOTHING
    base, beyond = clock.freeze()
    numbers = chain.from_iterable(base + beyond)
    count = len(base) + len(beyond)
    return _COUNTS.pack(len(base), len(beyond)) + struct.pack(f"<{2 * count}Q", *numbers)


def unpack_clock(packed: PackedClock) -> SlotClock:
    """The opposite. Raises MalformedExchange."""
    if packed == NOTHING:
        return SlotClock()
    if _clock_end(packed, 0) != len(packed):
        raise MalformedExchange("bytes after a clock")
    base_count = _COUNTS.unpack_from(packed)[0]
    dots = list(_DOT.iter_unpack(packed[_COUNTS.size :]))
    clock = SlotClock(dict(dots[:base_count]))
    if len(clock.base) != base_count:
        raise MalformedExchange("an actor stands twice in a clock")
    if not all(0 < counter <= COUNTER_MAX for _, counter in dots):
        raise MalformedExchange("a clock counts from 1 to 2**63 - 1")
    for dot in dots[base_count:]:
        clock.add(dot)
    return clock


def check_record(raw: bytes) -> Record:
    """A record that came from elsewhere. Raises MalformedExchange."""
    try:
        if not raw[0] & MANY:
            if len(raw) < (EXPIRY_HEADER_BYTES if raw[0] & HAS_EXPIRY else HEADER_BYTES):
                raise MalformedExchange(f"a record of {len(raw)} bytes")
            version = decode_version(raw)
            record = Record((version,), (version.dot,))
        else:
            record = decode_record(raw)
            if encode_record(record) != raw:
                raise MalformedExchange("a record has lengths that do not fit")
    except (struct.error, IndexError) as error:
        raise MalformedExchange(f"a record ends too early: {error}") from error
    if not record.versions:
        raise MalformedExchange("a record without versions")
    return record


def _flag(value: int) -> bool:
    if value & ~FLAG:
        raise MalformedExchange(f"flags {value}")
    return bool(value)


def _slot(value: int) -> Slot:
    if value >= SLOT_COUNT:
        raise MalformedExchange(f"slot {value}")
    return value


def _decode_digest(head: bytes) -> Digest:
    round_id, flags = _DIGEST.unpack_from(head)
    groups = list(_GROUP.iter_unpack(head[_DIGEST.size :]))
    for (before, _), (after, _) in pairwise(groups):
        if before >= after:
            raise MalformedExchange("groups are not in order")
    if groups and groups[-1][0] >= GROUP_COUNT:
        raise MalformedExchange(f"group {groups[-1][0]}")
    return Digest(round_id, _flag(flags), dict(groups))


def _decode_same(head: bytes) -> Same:
    if len(head) != _ROUND.size + _SAME_BYTES:
        raise MalformedExchange(f"SAME of {len(head)} bytes")
    bits = int.from_bytes(head[_ROUND.size :], "little")
    groups = tuple(group for group in range(GROUP_COUNT) if bits >> group & 1)
    return Same(_ROUND.unpack_from(head)[0], groups)


def _decode_clocks(head: bytes) -> Clocks:
    round_id = _ROUND.unpack_from(head)[0]
    offset = _ROUND.size
    entries = []
    while offset < len(head):
        slot, flags = _ENTRY.unpack_from(head, offset)
        start = offset + _ENTRY.size
        offset = _clock_end(head, start)
        entries.append(ClockEntry(_slot(slot), _flag(flags), head[start:offset]))
    return Clocks(round_id, tuple(entries))


def _clock_end(data: bytes, start: int) -> int:
    base_count, beyond_count = _COUNTS.unpack_from(data, start)
    end: int = start + _COUNTS.size + (base_count + beyond_count) * _DOT.size
    if end > len(data):
        raise MalformedExchange(f"a clock announces {base_count} and {beyond_count} dots")
    return end


def _decode_want(head: bytes) -> Want:
    transfer, slot = _TRANSFER.unpack_from(head)
    return Want(transfer, _slot(slot), unpack_clock(head[_TRANSFER.size :]))


def _decode_next(head: bytes) -> Next:
    transfer, scan, slot, number = _NEXT.unpack(head)
    return Next(transfer, scan, _slot(slot), number)


def _decode_stop(head: bytes) -> Stop:
    transfer, slot = _TRANSFER.unpack(head)
    return Stop(transfer, _slot(slot))


def _decode_gone(head: bytes) -> Gone:
    transfer, slot = _TRANSFER.unpack(head)
    return Gone(transfer, _slot(slot))


def _decode_rows(head: bytes, parts: Sequence[bytes]) -> Rows:
    """Not the records: who takes the chunk checks them, all of them first (`check_record`)."""
    transfer, scan, slot, number, flags = _ROWS.unpack_from(head)
    rest = head[_ROWS.size :]
    if number and rest:
        raise MalformedExchange("a clock in a later chunk")
    if len(parts) % 2:
        raise MalformedExchange("a row without its record")
    if any(len(row) < KEY_OFFSET for row in parts[::2]):
        raise MalformedExchange("a row is too short")
    clock = None if number else unpack_clock(rest)
    rows = tuple(zip(parts[::2], parts[1::2], strict=True))
    return Rows(transfer, scan, _slot(slot), number, _flag(flags), clock, rows)


_DECODERS: Final[dict[bytes, Callable[[bytes], ExchangeMessage]]] = {
    DIGEST: _decode_digest,
    SAME: _decode_same,
    CLOCKS: _decode_clocks,
    WANT: _decode_want,
    NEXT: _decode_next,
    STOP: _decode_stop,
    GONE: _decode_gone,
}
