"""Two small codecs whose right answers are obvious, and entries made of them."""

from __future__ import annotations

from struct import Struct

from engine.codec import Fate

_REGISTER = Struct(">QQ?")


def register(time: int, value: bytes = b"", *, expires_at_ms: int = 0, dead: bool = False) -> bytes:
    """Return the record of a last-writer-wins register."""
    return _REGISTER.pack(time, expires_at_ms, dead) + value


class RegisterCodec:
    """Last writer wins: of two records, the one with the later time."""

    def join(self, newer: bytes, older: bytes) -> bytes:
        return max(newer, older)

    def fate(self, row: bytes, raw: bytes, now_ms: int) -> Fate:
        _, expires_at_ms, dead = _REGISTER.unpack_from(raw)
        return Fate.DEAD if dead or 0 < expires_at_ms <= now_ms else Fate.LIVE

    def expires_at_ms(self, raw: bytes) -> int:
        expires_at_ms: int = _REGISTER.unpack_from(raw)[1]
        return expires_at_ms

    def stub(self, raw: bytes) -> bytes:
        return register(_REGISTER.unpack_from(raw)[0], dead=True)

    def tag(self, row: bytes) -> int:
        return row[0] if row else 0


class SetCodec:
    """Grow-only sets of bytes values: the join is the union. Nothing dies but the empty set."""

    def join(self, newer: bytes, older: bytes) -> bytes:
        return bytes(sorted({*newer, *older}))

    def fate(self, row: bytes, raw: bytes, now_ms: int) -> Fate:
        return Fate.LIVE if raw else Fate.DEAD

    def expires_at_ms(self, raw: bytes) -> int:
        return 0

    def stub(self, raw: bytes) -> bytes:
        return b""

    def tag(self, row: bytes) -> int:
        return row[0] if row else 0


REGISTERS = RegisterCodec()
SETS = SetCodec()
