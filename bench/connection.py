"""A small blocking Redis client for the benchmarks (shell).

It is not a client library: one socket, RESP2, and no reply types beyond what the benchmarks ask
for. It exists so that a value of 64 MiB is received straight into one buffer and raw bytes can be
sent, neither of which a client library lets us control.
"""

from __future__ import annotations

import socket
from dataclasses import dataclass
from types import TracebackType
from typing import Self, TypeAlias

Address: TypeAlias = tuple[str, int]
"""Host and port of a server."""

Reply: TypeAlias = bytes | bytearray | int | None
"""A simple string, bulk string, integer or null. Arrays are not needed here."""

RECEIVE_BYTES = 64 * 1024


@dataclass(eq=False)
class ErrorAnswered(Exception):
    """The server answered with an error. The benchmark cannot go on, or reports it."""

    text: str

    def __str__(self) -> str:
        return self.text


class ConnectionEnded(Exception):
    """The server closed the connection in the middle of a reply."""


def encode_command(*arguments: bytes) -> bytes:
    """Return the RESP array of bulk strings that asks for one command."""
    parts = [b"*%d\r\n" % len(arguments)]
    parts.extend(b"$%d\r\n%b\r\n" % (len(argument), argument) for argument in arguments)
    return b"".join(parts)


def parse_info(text: bytes | bytearray) -> dict[str, str]:
    """Return the `name:value` lines of an INFO reply, without its headings."""
    lines = text.decode("utf-8", "replace").splitlines()
    pairs = (line.split(":", 1) for line in lines if ":" in line and not line.startswith("#"))
    return {name: value.strip() for name, value in pairs}


class Connection:
    """One connection; calls block for at most `timeout_s` without progress (`TimeoutError`)."""

    def __init__(self, address: Address, *, timeout_s: float = 60.0) -> None:
        self._socket = socket.create_connection(address, timeout=timeout_s)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._received = bytearray()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._socket.close()

    def send(self, data: bytes) -> None:
        self._socket.sendall(data)

    def read_line(self) -> bytes:
        """Return the next line without its CRLF."""
        while (end := self._received.find(b"\r\n")) < 0:
            self._receive()
        line = bytes(self._received[:end])
        del self._received[: end + 2]
        return line

    def read_exactly(self, length_bytes: int) -> bytearray:
        """Return the next `length_bytes` bytes."""
        data = bytearray(length_bytes)
        with memoryview(data) as view:
            self.read_into(view)
        return data

    def read_into(self, view: memoryview) -> None:
        """Fill `view` with what comes next; what is not here yet goes straight to its place."""
        filled = min(len(view), len(self._received))
        view[:filled] = self._received[:filled]
        del self._received[:filled]
        while filled < len(view):
            count = self._socket.recv_into(view[filled:])
            if count == 0:
                raise ConnectionEnded("the server closed the connection within a reply")
            filled += count

    def read_reply(self) -> Reply:
        """Return the next reply, or raise `ErrorAnswered` with the server's text."""
        line = self.read_line()
        kind, rest = line[:1], line[1:]
        if kind == b"$":
            length = int(rest)
            return None if length < 0 else self.read_exactly(length + 2)[:length]
        if kind == b"+":
            return rest
        if kind == b":":
            return int(rest)
        if kind == b"-":
            raise ErrorAnswered(rest.decode("utf-8", "backslashreplace"))
        raise ErrorAnswered(f"a reply that the benchmark does not know: {line[:80]!r}")

    def command(self, *arguments: bytes) -> Reply:
        self.send(encode_command(*arguments))
        return self.read_reply()

    def info(self, section: bytes) -> dict[str, str]:
        """Return one section of INFO as a dictionary."""
        reply = self.command(b"INFO", section)
        assert isinstance(reply, bytes | bytearray)
        return parse_info(reply)

    def _receive(self) -> None:
        data = self._socket.recv(RECEIVE_BYTES)
        if not data:
            raise ConnectionEnded("the server closed the connection within a reply")
        self._received += data
