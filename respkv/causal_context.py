"""Causal contexts for clients: what somebody has seen of a key, as a short text that nobody can change.

It is not what a record is stored with, and it decides nothing: `cluster/sibling.py` says what a context covers.
To a client the text is opaque. Before base64 (the alphabet for addresses, without padding):

     1 byte   format version, 1
     2 bytes  the cluster: from the key of the MACs
     8 bytes  the row: of its blake3 (database and key; the slot follows from the key)
     number   of actors, each: 8 bytes actor, number: all that it did in the slot up to there
     number   of runs, each: 8 bytes actor, number, number: the first dot beyond that, and how many follow it
     number   of holes, each: 8 bytes actor, number: dots that are covered by the above, and were not seen
     8 bytes  MAC over all before: blake3, keyed

An actor is little endian; other numbers have 7 bits in a byte, the lowest first, all but the last with the eighth
bit. All nodes of a cluster have the same key, derived from its secret, or from its name if it has none; a
node alone derives it from the first actor of its data, so that contexts outlive restarts and moves of the folder. With
a secret a client cannot make a context up. That matters: what a context covers is deleted by the write
that brings it.

Core. Source: the vclock of Riak's HTTP interface.
"""

from __future__ import annotations

from base64 import urlsafe_b64decode, urlsafe_b64encode
from binascii import Error as Base64Error
from collections.abc import Iterable
from hmac import compare_digest
from typing import Final

from blake3 import blake3

from cluster.clock import Actor, Counter, Dot, SlotClock
from cluster.sibling import Seen
from cluster.slot import Row
from respkv.reply import ReplyError

FORMAT: Final = 1
CLUSTER_BYTES: Final = 2
ROW_BYTES: Final = 8
MAC_BYTES: Final = 8
HEAD_BYTES: Final = 1 + CLUSTER_BYTES + ROW_BYTES
TEXT_BYTES_MAX: Final = 64 << 10
_MAC_LABEL: Final = "respkv 2026 causal context"

DAMAGED: Final = ReplyError(
    "ERR the context is damaged: give it back as KV.GET, KV.SIBLINGS or KV.PUT answered it"
)
NEWER: Final = ReplyError("ERR the context is of another version of respkv: read the key again")
FOREIGN: Final = ReplyError("ERR the context is of another cluster: read the key again, here")
OF_ANOTHER_KEY: Final = ReplyError("ERR the context is of another key: give the one of this key")
TOO_LONG: Final = ReplyError(
    "TRYAGAIN a context would be too long now: this node has yet to get much of this slot from the others"
)


class ContextSeal:
    """Makes texts of contexts, and contexts of texts that it has made, or another node of its cluster."""

    def __init__(self, secret: bytes) -> None:
        self._key = blake3(secret, derive_key_context=_MAC_LABEL).digest()
        self._cluster = blake3(self._key).digest(CLUSTER_BYTES)

    def seal(self, row: Row, seen: Seen) -> bytes:
        """The text. Raises ReplyError (TOO_LONG): a part of it would not do."""
        out = bytearray([FORMAT])
        out += self._cluster + blake3(row).digest(ROW_BYTES)
        clock = seen.clock
        _put_number(out, len(clock.base))
        for actor, counter in sorted(clock.base.items()):
            out += actor.to_bytes(8, "little")
            _put_number(out, counter)
        runs = _runs(sorted(clock.beyond))
        _put_number(out, len(runs))
        for actor, first, following in runs:
            out += actor.to_bytes(8, "little")
            _put_number(out, first)
            _put_number(out, following)
        _put_number(out, len(seen.holes))
        for actor, counter in sorted(seen.holes):
            out += actor.to_bytes(8, "little")
            _put_number(out, counter)
        text = urlsafe_b64encode(out + self._mac(out)).rstrip(b"=")
        if len(text) > TEXT_BYTES_MAX:
            raise TOO_LONG
        return text

    def open(self, row: Row, text: bytes) -> Seen:
        """What a context says of a row. Raises ReplyError: DAMAGED, NEWER, FOREIGN, OF_ANOTHER_KEY."""
        if len(text) > TEXT_BYTES_MAX:
            raise DAMAGED
        try:
            data = urlsafe_b64decode(text + b"=" * (-len(text) % 4))
        except (Base64Error, ValueError):
            raise DAMAGED from None
        # The decoder passes over what is not of its alphabet, and over the last bits.
        if len(data) < HEAD_BYTES + MAC_BYTES or urlsafe_b64encode(data).rstrip(b"=") != text:
            raise DAMAGED
        if data[0] != FORMAT:
            raise NEWER
        if data[1 : 1 + CLUSTER_BYTES] != self._cluster:
            raise FOREIGN
        body = data[:-MAC_BYTES]
        if not compare_digest(self._mac(body), data[-MAC_BYTES:]):
            raise DAMAGED
        if body[1 + CLUSTER_BYTES : HEAD_BYTES] != blake3(row).digest(ROW_BYTES):
            raise OF_ANOTHER_KEY
        return _Reader(body).read()

    def _mac(self, body: bytes | bytearray) -> bytes:
        return blake3(body, key=self._key).digest(MAC_BYTES)


def _runs(dots: Iterable[Dot]) -> list[tuple[Actor, Counter, int]]:
    """Sorted dots as runs: actor, first counter, how many follow."""
    runs: list[tuple[Actor, Counter, int]] = []
    for actor, counter in dots:
        if runs:
            of, first, following = runs[-1]
            if of == actor and counter == first + following + 1:
                runs[-1] = (of, first, following + 1)
                continue
        runs.append((actor, counter, 0))
    return runs


def _put_number(out: bytearray, number: int) -> None:
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)


class _Reader:
    """Of what has the right MAC: a node has written it, so it is well formed."""

    def __init__(self, body: bytes) -> None:
        self._body = body
        self._at = HEAD_BYTES

    def read(self) -> Seen:
        base = {self._actor(): self._number() for _ in range(self._number())}
        beyond: set[Dot] = set()
        for _ in range(self._number()):
            actor, first, following = self._actor(), self._number(), self._number()
            beyond.update((actor, counter) for counter in range(first, first + following + 1))
        holes = frozenset((self._actor(), self._number()) for _ in range(self._number()))
        assert self._at == len(self._body)
        return Seen(SlotClock(base, beyond), holes)

    def _actor(self) -> Actor:
        self._at += 8
        return int.from_bytes(self._body[self._at - 8 : self._at], "little")

    def _number(self) -> int:
        number = shift = 0
        while True:
            byte = self._body[self._at]
            self._at += 1
            number |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return number
