"""RESP2 and RESP3 as the tester needs them: the exact bytes of each reply, beside what they mean.

Not a client: nothing is converted, no command is known, and nothing is retried. The reader is the tester's own, so
that an error in the server's parser cannot hide here.

`ReplyReader` is a sink: bytes in, whole `Reply` values out. Push messages are replies of kind `>` and are told apart
by `Connection`, which keeps those that came before a reply with it.
"""

from __future__ import annotations

import socket
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

REPLY_BYTES_MAX = 64 * 1024 * 1024
DEPTH_MAX = 32
_CHUNK_BYTES = 1 << 20
_LINE_BYTES_MAX = 64 * 1024
_LARGE_BYTES = 32 * 1024
_LARGE_COUNT = 2

_LINES: Final = frozenset(b"+-:,(#")
_BLOBS: Final = frozenset(b"$=!")
_LISTS: Final = frozenset(b"*~>")


class WireError(Exception):
    """Bytes that are not RESP, or a reply larger than the tester's limits. The connection is of no more use."""


class Unanswered(Exception):
    """No whole reply came within the timeout. `got` is what had come of it."""

    def __init__(self, got: bytes) -> None:
        super().__init__(f"no reply in time; so far {got[:200]!r}")
        self.got = got


class Closed(Exception):
    """The server closed the connection where a reply was due."""


@dataclass(slots=True, frozen=True)
class Reply:
    """One reply. `kind` is its type byte, `raw` its bytes as they came.

    `value` is bytes for lines and blobs, None for the nulls of RESP2 and RESP3, a list of replies for arrays, sets,
    pushes and maps (a map as keys and values in turn, as on the wire).
    """

    kind: str
    value: bytes | list[Reply] | None
    raw: bytes

    @property
    def is_error(self) -> bool:
        return self.kind in "-!"

    @property
    def is_nil(self) -> bool:
        return self.value is None

    @property
    def text(self) -> bytes:
        """The bytes of a line or blob, without the `txt:` of a verbatim string; empty for anything else."""
        value = self.value if isinstance(self.value, bytes) else b""
        return value[4:] if self.kind == "=" else value

    @property
    def items(self) -> list[Reply]:
        """The elements of an aggregate; empty for anything else."""
        return self.value if isinstance(self.value, list) else []

    @property
    def pairs(self) -> dict[bytes, Reply]:
        """A map's fields, or those of the flat array that stands for a map in RESP2."""
        items = self.items
        return {items[i].text: items[i + 1] for i in range(0, len(items) - 1, 2)}

    def __str__(self) -> str:
        return render(self)


def render(reply: Reply, chars_max: int = 1500) -> str:
    """A reply on one line, for people: `$"text"`, `:1`, `*[$"a", nil]`."""
    if len(reply.raw) > 100_000:
        return f"{reply.kind}({len(reply.raw)} bytes)"
    text = _render(reply)
    return text if len(text) <= chars_max else text[:chars_max] + "..."


def _render(reply: Reply) -> str:
    if reply.value is None:
        return "nil"
    if isinstance(reply.value, list):
        inner = ", ".join(_render(item) for item in reply.value[:40])
        more = f", ... {len(reply.value)} in all" if len(reply.value) > 40 else ""
        return f"{reply.kind}[{inner}{more}]"
    text = reply.value if len(reply.value) <= 400 else reply.value[:400] + b"..."
    return reply.kind + (quote(text) if reply.kind in "$=" else _escape(text))


def quote(argument: bytes) -> str:
    """An argument as redis-cli would take it: quoted where it must be."""
    escaped = _escape(argument)
    is_plain = escaped and len(escaped) == len(argument) and not set(argument) & set(b" \"'")
    return escaped if is_plain else f'"{escaped}"'


def _escape(text: bytes) -> str:
    special = {ord('"'): '\\"', ord("\\"): "\\\\"}
    return "".join(special.get(c) or (chr(c) if 32 <= c < 127 else f"\\x{c:02x}") for c in text)


def encode(arguments: Iterable[bytes]) -> bytes:
    """A request: an array of bulk strings."""
    parts = [b"$%d\r\n%b\r\n" % (len(argument), argument) for argument in arguments]
    return b"*%d\r\n%b" % (len(parts), b"".join(parts))


class _Incomplete(Exception):
    """The buffer ends before the reply does."""


class ReplyReader:
    """Collects bytes and gives out whole replies."""

    def __init__(self) -> None:
        self._buffer = b""
        # A blob that is awaited: no use in parsing again before it is there.
        self._wanted_bytes = 0
        # Large replies. COMMAND and its DOCS are long and always the same; to parse them would be most of the run.
        self._large: deque[Reply] = deque(maxlen=_LARGE_COUNT)

    @property
    def pending(self) -> bytes:
        """Bytes that belong to no whole reply yet."""
        return self._buffer

    def feed(self, data: bytes) -> None:
        self._buffer += data
        if len(self._buffer) > REPLY_BYTES_MAX:
            raise WireError("reply too large")

    def next(self) -> Reply | None:
        """The next whole reply, or None until more bytes are fed."""
        buffer = self._buffer
        if len(buffer) < self._wanted_bytes or not buffer:
            return None
        for large in self._large:
            if buffer.startswith(large.raw):
                self._buffer = buffer[len(large.raw) :]
                return large
            if large.raw.startswith(buffer):
                return None  # No whole reply is the beginning of another.
        self._wanted_bytes = 0
        try:
            reply, end = self._parse(buffer, 0, 0)
        except _Incomplete:
            return None
        self._buffer = buffer[end:]
        if end >= _LARGE_BYTES and reply.items:
            self._large.append(reply)
        return reply

    def _parse(self, buffer: bytes, start: int, depth: int) -> tuple[Reply, int]:
        if depth > DEPTH_MAX:
            raise WireError("reply too deep")
        line_end = buffer.find(b"\r\n", start)
        if line_end < 0:
            if len(buffer) - start > _LINE_BYTES_MAX:
                raise WireError("endless line")
            raise _Incomplete
        kind = buffer[start]
        line = buffer[start + 1 : line_end]
        end = line_end + 2
        if kind in _LINES:
            return Reply(chr(kind), line, buffer[start:end]), end
        if kind == ord("_"):
            return Reply("_", None, buffer[start:end]), end
        if kind not in _BLOBS and kind not in _LISTS and kind not in b"%|":
            raise WireError(f"not a reply: {buffer[start : start + 80]!r}")
        length = _length(line)
        if length < 0:
            return Reply(chr(kind), None, buffer[start:end]), end
        if kind in _BLOBS:
            return self._blob(buffer, start, end, length)
        items: list[Reply] = []
        for _ in range(length * 2 if kind in b"%|" else length):
            item, end = self._parse(buffer, end, depth + 1)
            items.append(item)
        return Reply(chr(kind), items, buffer[start:end]), end

    def _blob(self, buffer: bytes, start: int, body: int, length: int) -> tuple[Reply, int]:
        end = body + length + 2
        if len(buffer) < end:
            self._wanted_bytes = end
            raise _Incomplete
        if buffer[end - 2 : end] != b"\r\n":
            raise WireError(f"blob of {length} bytes is not followed by CRLF")
        return Reply(chr(buffer[start]), buffer[body : end - 2], buffer[start:end]), end


def _length(line: bytes) -> int:
    if line == b"-1":
        return -1
    if not line.isdigit() or int(line) > REPLY_BYTES_MAX:
        raise WireError(f"bad length {line[:40]!r}")
    return int(line)


@dataclass(slots=True, frozen=True)
class Answer:
    """A reply and the push messages that stood before it on the wire."""

    reply: Reply
    pushes: tuple[Reply, ...] = ()


class Connection:
    """A blocking socket. Each wait for a reply is bounded by `timeout_s`."""

    def __init__(self, host: str, port: int, *, timeout_s: float) -> None:
        self._socket = socket.create_connection((host, port), timeout=timeout_s)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._reader = ReplyReader()
        self.local_address = "{}:{}".format(*self._socket.getsockname()[:2])
        self.remote_address = "{}:{}".format(*self._socket.getpeername()[:2])

    def send(self, data: bytes) -> None:
        try:
            self._socket.sendall(data)
        except TimeoutError:
            raise Unanswered(b"") from None
        except OSError as error:
            raise Closed(str(error)) from None

    def receive(self) -> Answer:
        """The next reply that is no push. Raises `Unanswered`, `Closed` or `WireError`."""
        pushes: list[Reply] = []
        while True:
            reply = self._reader.next()
            if reply is None:
                self._fill()
            elif reply.kind == ">":
                pushes.append(reply)
            else:
                return Answer(reply, tuple(pushes))

    def ask(self, *arguments: bytes) -> Reply:
        """Send one command and return its reply."""
        self.send(encode(arguments))
        return self.receive().reply

    def await_close(self) -> bytes:
        """Read until the server closes; returns what it still said. Raises `Unanswered` when it does not close."""
        try:
            while True:
                self._fill()
        except Closed:
            return self._reader.pending

    def close(self) -> None:
        self._socket.close()

    def _fill(self) -> None:
        try:
            data = self._socket.recv(_CHUNK_BYTES)
        except TimeoutError:
            raise Unanswered(self._reader.pending) from None
        except OSError as error:
            raise Closed(str(error)) from None
        if not data:
            raise Closed("connection closed by the server")
        self._reader.feed(data)
