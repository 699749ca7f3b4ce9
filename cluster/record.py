"""Records: the versions of one row, their encoding and the one causal join.

A record is a set of versions, each hanging on its dot. A *string* is a multi-value register: two
writes that did not see each other stay side by side as siblings, and the *winner* (highest
timestamp among the live ones, ties by dot) is what plain commands answer. A deletion is a version
too: its dot keeps older entries below it in the store hidden. It hides no sibling, for it has not
seen any; neither does a version that has expired, so that nothing comes back or goes away when
compaction replaces it by its stub.

An encoded record (all numbers little endian) is the same in the memtable, the commit log and the
SSTables:

    1 byte   kind: bits 0-3 type (0 deletion, 1 string), 4 HAS_EXPIRY, 5 MANY, 6-7 encoding
    8 bytes  actor, 8 bytes counter   the dot
    8 bytes  hybrid timestamp
   [8 bytes  expiry in milliseconds since 1970, if HAS_EXPIRY]
    n bytes  payload

With MANY (siblings, or a context that is not "all before my dot"):

    1 byte   kind = MANY
    2 bytes  count of context entries, each: 8 bytes actor, 8 bytes counter
    2 bytes  count of dots beyond them, each: 8 bytes actor, 8 bytes counter
    2 bytes  count of versions, each: 4 bytes length, then a version as above

The context of the short form is implied: everything that its actor did before its dot. Nearly every
record has that form, and it is the hot path: GET looks at one byte and slices (bench/serving.py).

Core: no I/O, `now_ms` is an argument. Source: Almeida et al., Dotted Version Vectors; Shapiro et
al., CRDTs.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from struct import Struct
from typing import Final

from cluster.clock import Dot, Hlc, SlotClock
from cluster.slot import TAG_OFFSET
from engine.codec import Fate

DELETION: Final = 0
STRING: Final = 1
TYPE_MASK: Final = 0x0F
HAS_EXPIRY: Final = 0x10
MANY: Final = 0x20
# What OBJECT ENCODING answers is the value's form (`int`, `embstr`, `raw` by length), but for two marks:
RAW_ENCODING: Final = 0x40  # `raw` whatever the length: the value was changed in place.
TEXT_ENCODING: Final = (
    0x80  # Never `int`: the text was computed, and Redis does not look at it again.
)
ENCODING_MASK: Final = RAW_ENCODING | TEXT_ENCODING

HEADER: Final = Struct("<BQQQ")
HEADER_BYTES: Final = HEADER.size  # 25
DOT: Final = Struct("<QQ")
EXPIRY_HEADER: Final = Struct("<BQQQQ")
EXPIRY_HEADER_BYTES: Final = EXPIRY_HEADER.size  # 33
_ENTRY: Final = Struct("<QQ")


@dataclass(frozen=True, slots=True)
class Version:
    """One value with its causal identity. `expire_at_ms` 0 means never."""

    dot: Dot
    hlc: Hlc
    type: int
    payload: bytes = b""
    expire_at_ms: int = 0
    encoding: int = 0  # RAW_ENCODING, TEXT_ENCODING or 0.

    def is_live(self, now_ms: int) -> bool:
        return self.type != DELETION and not 0 < self.expire_at_ms <= now_ms

    @property
    def rank(self) -> tuple[Hlc, Dot]:
        """The order in which versions win."""
        return (self.hlc, self.dot)


@dataclass(frozen=True, slots=True)
class Record:
    """The versions of a row, highest rank first, and the context that they were written with.

    The context is a slot clock, frozen: `context` has one counter per actor and covers all up to it,
    sorted; `beyond` has the single dots after a gap, sorted.
    """

    versions: tuple[Version, ...]
    context: tuple[Dot, ...] = ()
    beyond: tuple[Dot, ...] = ()

    def winner(self, now_ms: int) -> Version | None:
        """The version that plain commands see, or None if all are deleted or expired."""
        return next((version for version in self.versions if version.is_live(now_ms)), None)

    @property
    def dots(self) -> frozenset[Dot]:
        return frozenset(version.dot for version in self.versions)

    def has_seen(self, dot: Dot) -> bool:
        return dot in self.beyond or any(
            actor == dot[0] and dot[1] <= counter for actor, counter in self.context
        )


def join_records(a: Record, b: Record) -> Record:
    """What has seen both: a version stays if both hold it, or if the side that lacks it has not seen it.

    Where one side has only the stub of a version, the stub stays.
    """
    a_dots, b_dots = a.dots, b.dots
    kept = {v.dot: v for v in a.versions if v.dot in b_dots or not b.has_seen(v.dot)}
    for v in b.versions:
        if v.dot in a_dots:
            if v.type == DELETION:
                kept[v.dot] = v
        elif not a.has_seen(v.dot):
            kept[v.dot] = v
    versions = tuple(sorted(kept.values(), key=lambda v: v.rank, reverse=True))
    if not a.beyond and not b.beyond:
        seen = dict(a.context)
        for actor, counter in b.context:
            if counter > seen.get(actor, 0):
                seen[actor] = counter
        return Record(versions, tuple(sorted(seen.items())))
    clock = SlotClock(dict(a.context), set(a.beyond))
    clock.join(SlotClock(dict(b.context), set(b.beyond)))
    return Record(versions, *clock.freeze())


def encode_version(version: Version) -> bytes:
    kind = version.type | version.encoding
    actor, counter = version.dot
    if version.expire_at_ms:
        head = EXPIRY_HEADER.pack(
            kind | HAS_EXPIRY, actor, counter, version.hlc, version.expire_at_ms
        )
        return head + version.payload
    return HEADER.pack(kind, actor, counter, version.hlc) + version.payload


def decode_version(raw: bytes) -> Version:
    kind, actor, counter, hlc = HEADER.unpack_from(raw)
    encoding = kind & ENCODING_MASK
    if kind & HAS_EXPIRY:
        expire_at_ms = int.from_bytes(raw[HEADER_BYTES:EXPIRY_HEADER_BYTES], "little")
        return Version(
            (actor, counter),
            hlc,
            kind & TYPE_MASK,
            raw[EXPIRY_HEADER_BYTES:],
            expire_at_ms,
            encoding,
        )
    return Version((actor, counter), hlc, kind & TYPE_MASK, raw[HEADER_BYTES:], 0, encoding)


def encode(record: Record) -> bytes:
    """The bytes of a record; the short form where the context is what its only dot implies."""
    if len(record.versions) == 1 and not record.beyond:
        dot = record.versions[0].dot
        if record.context == (dot,):
            return encode_version(record.versions[0])
    parts = [bytes([MANY])]
    for dots in (record.context, record.beyond):
        parts.append(len(dots).to_bytes(2, "little"))
        parts += [_ENTRY.pack(actor, counter) for actor, counter in dots]
    parts.append(len(record.versions).to_bytes(2, "little"))
    for version in record.versions:
        raw = encode_version(version)
        parts += (len(raw).to_bytes(4, "little"), raw)
    return b"".join(parts)


def decode(raw: bytes) -> Record:
    if raw[0] != MANY:
        version = decode_version(raw)
        return Record((version,), (version.dot,))
    context, offset = _decode_dots(raw, 1)
    beyond, offset = _decode_dots(raw, offset)
    count = int.from_bytes(raw[offset : offset + 2], "little")
    offset += 2
    versions = []
    for _ in range(count):
        length = int.from_bytes(raw[offset : offset + 4], "little")
        offset += 4
        versions.append(decode_version(raw[offset : offset + length]))
        offset += length
    return Record(tuple(versions), context, beyond)


def _decode_dots(raw: bytes, offset: int) -> tuple[tuple[Dot, ...], int]:
    count = int.from_bytes(raw[offset : offset + 2], "little")
    offset += 2
    end = offset + count * _ENTRY.size
    return tuple(_ENTRY.iter_unpack(raw[offset:end])), end


class Codec:
    """The engine's view of records (`engine.codec.RecordCodec`), named to its worker by import path."""

    def join(self, newer: bytes, older: bytes) -> bytes:
        return encode(join_records(decode(newer), decode(older)))

    def fate(self, row: bytes, raw: bytes, now_ms: int) -> Fate:
        kind = raw[0]
        if kind & MANY:
            return Fate.LIVE if decode(raw).winner(now_ms) else Fate.DEAD
        if kind & TYPE_MASK == DELETION:
            return Fate.DEAD
        return Fate.DEAD if 0 < self.expires_at_ms(raw) <= now_ms else Fate.LIVE

    def expires_at_ms(self, raw: bytes) -> int:
        if raw[0] & MANY:
            expiries = [v.expire_at_ms for v in decode(raw).versions if v.type != DELETION]
            return max(expiries) if expiries and all(expiries) else 0
        if raw[0] & HAS_EXPIRY:
            return int.from_bytes(raw[HEADER_BYTES:EXPIRY_HEADER_BYTES], "little")
        return 0

    def stub(self, raw: bytes) -> bytes:
        """The same dot without payload: what hides older entries of a row that is gone."""
        if raw[0] & MANY:
            record = decode(raw)
            gone = tuple(Version(v.dot, v.hlc, DELETION) for v in record.versions)
            return encode(Record(gone, record.context, record.beyond))
        return bytes([DELETION]) + raw[1:HEADER_BYTES]

    def tag(self, row: bytes) -> int:
        return row[TAG_OFFSET]


CODEC: Final = Codec()


def pack_dots(dots: Iterable[Dot]) -> bytes:
    """Dots in order, 16 bytes each, as the short form of a record has its own."""
    return b"".join(DOT.pack(*dot) for dot in sorted(dots))


def unpack_dots(packed: bytes) -> frozenset[Dot]:
    """Raises ValueError."""
    if len(packed) % DOT.size:
        raise ValueError("dots cut short")
    return frozenset(DOT.iter_unpack(packed))
