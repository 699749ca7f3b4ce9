"""A record whose right answers are obvious, and yet have all that the engine cares about.

A record is a *base* and *additions*. A base is a value that was put at some time, until it expires, or a deletion.
An addition is one byte at a time of its own: what a delta carries. The later base of two wins, and additions
before it are void. So a put is complete, and a delta that comes late is void if what superseded it is known: that
shows whether something dead was forgotten too early.

Core: pure.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from struct import Struct

from engine.codec import Fate

_BASE = Struct(">QQ?H")
_ADDITION = Struct(">QB")

Addition = tuple[int, int]
"""Time and byte."""


@dataclass(frozen=True, slots=True)
class Record:
    """`time` 0: no base. `expires_at_ms` 0: never."""

    time: int = 0
    expires_at_ms: int = 0
    is_dead: bool = True
    value: bytes = b""
    additions: frozenset[Addition] = frozenset()

    def join(self, other: Record) -> Record:
        """Return what has seen both."""
        base = max(self, other, key=lambda record: record.time)
        alive = {each for each in self.additions | other.additions if each[0] > base.time}
        return replace(base, additions=frozenset(alive))

    def shown(self, now_ms: int) -> tuple[bytes | None, bytes] | None:
        """Return what a reader sees: the base's value if there is one, and the additions; None: nothing."""
        is_over = self.is_dead or 0 < self.expires_at_ms <= now_ms
        if is_over and not self.additions:
            return None
        return None if is_over else self.value, bytes(byte for _, byte in sorted(self.additions))

    def encode(self) -> bytes:
        """Return its only encoding."""
        head = _BASE.pack(self.time, self.expires_at_ms, self.is_dead, len(self.value))
        return (
            head + self.value + b"".join(_ADDITION.pack(*each) for each in sorted(self.additions))
        )


def decode(raw: bytes) -> Record:
    """Return the record that was encoded."""
    time, expires_at_ms, is_dead, length = _BASE.unpack_from(raw)
    end = _BASE.size + length
    additions = frozenset(_ADDITION.iter_unpack(raw[end:]))
    return Record(time, expires_at_ms, is_dead, raw[_BASE.size : end], additions)


class ModelCodec:
    """What the engine asks about these records."""

    def join(self, newer: bytes, older: bytes) -> bytes:
        return decode(newer).join(decode(older)).encode()

    def fate(self, row: bytes, raw: bytes, now_ms: int) -> Fate:
        return Fate.DEAD if decode(raw).shown(now_ms) is None else Fate.LIVE

    def expires_at_ms(self, raw: bytes) -> int:
        return decode(raw).expires_at_ms

    def stub(self, raw: bytes) -> bytes:
        return Record(time=decode(raw).time).encode()

    def tag(self, row: bytes) -> int:
        return row[0]


CODEC = ModelCodec()
