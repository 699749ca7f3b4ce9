r"""Messages between nodes as bytes: RESP arrays of bulk strings, a verb first.

Not here: sockets, and what a message means. It is not the clients' parser (`parser.py`) either: that
one has to agree with Redis about each byte, inline commands included; here both ends are ours, and what
is not a canonical message is refused.

    *3\r\n $5\r\nWRITE\r\n $2\r\n17\r\n $4\r\n....\r\n      (without the blanks)

`encode` makes them. `Decoder` is fed what a socket gave and returns the messages that are whole. Limits
hold before memory is taken: how many fields an array announces, how long a field, how long the message
is by then. Until `admit` is called nobody has proved anything: then they are the small ones of the
handshake, and one message is returned at a time, since it may change what holds for the next.

Two ways lead through the decoder:

*Fast*. A chunk that starts at a boundary between messages, as nearly all do: hiredis parses it
in C. It reserves a list as long as an array announces, 32 GiB for 14 bytes, so it gets to see no chunk in
which anything looks like five digits of such a length, in whichever of its five kinds of arrays.

*Slow*. An exact machine for the rest: a message that is cut, the handshake, chunks that look suspicious.
When a chunk is whole messages and then a cut one, the length of the whole ones is found by encoding them
again, and the rest goes this way.

A simple string where a bulk string is due is refused by the machine and taken by hiredis. No node sends
any, and it harms nobody.

Core. The cost of both directions is measured by `tests/respkv/test_bus_wire.py` run as a program.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Final

import hiredis

from cluster.handshake import FIELD_BYTES_MAX, FIELD_COUNT_MAX, MESSAGE_BYTES_MAX
from cluster.transport import Message

# hiredis moves what it has not parsed to the front of its buffer after each KiB: so not too much.
FAST_BYTES_MAX: Final = 64 * 1024

_STAR: Final = ord("*")
_DOLLAR: Final = ord("$")
_LINE_BYTES_MAX: Final = 16  # "*", up to 12 digits, and the end of the line.
_digits = re.compile(rb"0|[1-9][0-9]{0,11}").fullmatch
# One search for a character is many times faster than one for any of five.
_AS_STARS: Final = bytes(_STAR if char in b"*~%>|" else char for char in range(256))
_announces_many = re.compile(rb"\*\d{5}").search


@dataclass(eq=False)
class MalformedMessage(Exception):
    """What came is no message, or over a limit. Nothing after it can be understood: close the connection."""

    reason: str

    def __str__(self) -> str:
        return f"malformed message: {self.reason}"


@dataclass(frozen=True, slots=True)
class Limits:
    """What one message may hold. Each is checked when it is announced."""

    field_count_max: int = 2 << 20  # A forwarded command may have a million arguments.
    message_bytes_max: int = 64 << 20  # On the wire, and so of each field too.
    field_bytes_max: int = 64 << 20


EARLY: Final = Limits(FIELD_COUNT_MAX, MESSAGE_BYTES_MAX, FIELD_BYTES_MAX)


class _Texts(dict[int, bytes]):
    """A format's results, made once each for the usual numbers."""

    def __init__(self, template: bytes) -> None:
        self._template = template

    def __missing__(self, number: int) -> bytes:
        text = self._template % number
        if number < 4096:
            self[number] = text
        return text


_counts = _Texts(b"*%d")
_lengths = _Texts(b"\r\n$%d\r\n")


def encode(message: Sequence[bytes]) -> bytes:
    """One message, as it goes over the wire."""
    parts = [_counts[len(message)]]
    append = parts.append  # Each way with a format, `zip` or `+=` took longer.
    lengths = _lengths
    for field in message:
        append(lengths[len(field)])
        append(field)
    append(b"\r\n")
    return b"".join(parts)


class Decoder:
    """The messages in one connection's bytes. After an error it is good for nothing."""

    __slots__ = (
        "_buffer", "_field_bytes", "_fields", "_is_at_rest", "_is_early", "_limits", "_message_bytes", "_missing_count",
    )  # fmt: skip

    def __init__(self) -> None:
        self._limits = EARLY
        self._is_early = True
        self._is_at_rest = True  # Between two messages, nothing held.
        self._buffer = bytearray()  # Not looked at yet.
        self._fields: Message = []
        self._missing_count = 0  # Fields that the message under way still lacks.
        self._field_bytes = -1  # Announced length of the next field; -1: its header is awaited.
        self._message_bytes = 0  # Of the message under way, with what is announced.

    def admit(self, limits: Limits) -> None:
        """The peer has proved itself. `feed(b"")` returns what came in the same chunk."""
        self._limits = limits
        self._is_early = False

    @property
    def buffered_bytes(self) -> int:
        """Memory that the peer's unfinished message takes."""
        return sum(map(len, self._fields)) + len(self._buffer)

    def feed(self, data: bytes) -> list[Message]:
        """Take what the socket gave, return the messages that are whole now. Raises MalformedMessage."""
        if (
            self._is_at_rest
            and not self._is_early
            and 0 < len(data) <= FAST_BYTES_MAX
            and data[0] == _STAR
            and not _announces_many(data.translate(_AS_STARS))
        ):
            return self._feed_fast(data)
        return self._feed_slowly(data)

    def _feed_fast(self, data: bytes) -> list[Message]:
        messages: list[Message] = []
        reader = _SHARED
        gets = reader.gets
        reader.feed(data)
        try:
            while message := gets():  # False: it is cut. None, []: not what a node sends.
                messages.append(message)
                if not reader.has_data():
                    # In C throughout. TypeError: a field is not bytes, or a message no array.
                    b"".join(chain.from_iterable(messages) if len(messages) > 1 else message)
                    if dict not in map(type, messages):
                        return messages
                    break
        except (hiredis.ProtocolError, TypeError):
            pass
        _renew()
        return self._feed_rest(data, messages)

    def _feed_rest(self, data: bytes, messages: list[Message]) -> list[Message]:
        """hiredis made `messages` of the start of `data`. The machine takes what follows, or all if it has doubts."""
        try:
            encoded = b"".join(map(encode, messages))
        except TypeError:
            encoded = b""
        if encoded and data.startswith(encoded):
            return messages + self._feed_slowly(data[len(encoded) :])
        return self._feed_slowly(data)

    def _feed_slowly(self, data: bytes) -> list[Message]:
        messages: list[Message] = []
        was_at_rest = self._is_at_rest
        buffer = self._buffer
        buffer += data
        while (message := self._next()) is not None:
            messages.append(message)
            if self._is_early:
                break
            if not was_at_rest and buffer:  # The cut message has ended: back to the fast way, once.
                rest = bytes(buffer)
                buffer.clear()
                self._is_at_rest = True
                for start in range(0, len(rest), FAST_BYTES_MAX):
                    messages += self.feed(rest[start : start + FAST_BYTES_MAX])
                return messages
        self._is_at_rest = not buffer and not self._missing_count
        if self._is_early and len(buffer) > MESSAGE_BYTES_MAX:
            raise MalformedMessage("too much before the handshake has ended")
        return messages

    def _next(self) -> Message | None:
        """The next message in the buffer, or None if it is not whole."""
        if not self._missing_count:
            count = self._announced(_STAR, "an array")
            if count is None:
                return None
            if not 0 < count <= self._limits.field_count_max:
                raise MalformedMessage(f"an array of {count} fields")
            self._missing_count = count
            self._message_bytes = 0
        while self._missing_count:
            if self._field_bytes < 0:
                length = self._announced(_DOLLAR, "a bulk string")
                if length is None:
                    return None
                self._message_bytes += length + len(_lengths[length])
                if (
                    length > self._limits.field_bytes_max
                    or self._message_bytes > self._limits.message_bytes_max
                ):
                    raise MalformedMessage(f"a field of {length} bytes is over the limit")
                self._field_bytes = length
            if not self._take_field():
                return None
        fields, self._fields = self._fields, []
        return fields

    def _take_field(self) -> bool:
        length = self._field_bytes
        buffer = self._buffer
        if len(buffer) < length + 2:
            return False
        if buffer[length : length + 2] != b"\r\n":
            raise MalformedMessage("a field is longer than announced")
        with memoryview(buffer) as view:
            self._fields.append(bytes(view[:length]))
        del buffer[: length + 2]  # Moves nothing: a bytearray may start late in its memory.
        self._field_bytes = -1
        self._missing_count -= 1
        return True

    def _announced(self, kind: int, name: str) -> int | None:
        """The number of the header that starts the buffer, or None if it is not whole."""
        buffer = self._buffer
        if not buffer:
            return None
        end = buffer.find(b"\r\n", 0, _LINE_BYTES_MAX)
        if buffer[0] != kind:
            raise MalformedMessage(f"{name} was due")
        if end < 0:
            if len(buffer) >= _LINE_BYTES_MAX:
                raise MalformedMessage(f"a long line where {name} was due")
            return None
        digits = bytes(buffer[1:end])
        if not _digits(digits):
            raise MalformedMessage(f"the length of {name} is no number")
        del buffer[: end + 2]
        return int(digits)


_SHARED = hiredis.Reader()  # For all decoders: no state of it outlives a chunk.


def _renew() -> None:
    """Drop the reader, which was left in the middle of something."""
    global _SHARED
    _SHARED = hiredis.Reader()
