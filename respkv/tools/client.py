"""A small blocking client for RESP2 servers, for the operator's tools.

Not a client library: no pool, no retry, no TLS. One connection; commands go out in pipelines whose
replies must fit in memory, which the caller sees to.

Shell: owns a socket.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import unquote, urlsplit

import hiredis

PORT: Final = 6379
TIMEOUT_S: Final = 60.0
_READ_BYTES: Final = 1 << 18

Words = Sequence[bytes | str | int]
"""A command and its arguments."""


class ClientError(Exception):
    """The server cannot be reached, or went away, or refused the client. The text says which and where."""


@dataclass(frozen=True, slots=True)
class Address:
    """What a URL `redis://[user[:password]@]host[:port][/db]` names."""

    host: str
    port: int
    db: int
    user: str = ""
    password: str = ""

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"redis://{host}:{self.port}/{self.db}"  # Without the password: for logs and files.


def parse_url(url: str) -> Address:
    """Raises ValueError with what is wrong."""
    parts = urlsplit(url)
    if parts.scheme == "rediss":
        raise ValueError("TLS (rediss://) is not supported yet: use a tunnel such as stunnel")
    if parts.scheme != "redis" or not parts.hostname:
        raise ValueError("a server is named redis://[[user]:password@]host[:port][/db]")
    path = parts.path.strip("/")
    if path and not path.isdecimal():
        raise ValueError(f"{path} is not the number of a database")
    user, password = unquote(parts.username or ""), unquote(parts.password or "")
    return Address(parts.hostname, parts.port or PORT, int(path or 0), user, password)


class Client:
    """A connection, logged in, with the address' database selected. Raises ClientError."""

    def __init__(self, address: Address, timeout_s: float = TIMEOUT_S) -> None:
        self.address = address
        self._reader = hiredis.Reader()
        try:
            self._socket = socket.create_connection((address.host, address.port), timeout_s)
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        except OSError as error:
            raise ClientError(f"cannot connect to {address}: {error}") from error
        if address.password:
            self.ask("AUTH", *([address.user] if address.user else []), address.password)
        self.ask("SELECT", address.db)

    def ask(self, *words: bytes | str | int) -> Any:
        """The reply to one command. An error reply raises ClientError."""
        (reply,) = self.pipeline([words])
        if isinstance(reply, hiredis.ReplyError):
            raise ClientError(f"{self.address} refused {words[0]!s}: {reply}")
        return reply

    def pipeline(self, commands: Sequence[Words]) -> Iterator[Any]:
        """Send commands at once, and yield a reply for each; errors are `hiredis.ReplyError` objects.

        All must be taken before anything else is asked.
        """
        self._send(b"".join(map(_packed, commands)))
        return self._replies(len(commands))

    def _send(self, data: bytes) -> None:
        try:
            self._socket.sendall(data)
        except OSError as error:
            raise ClientError(f"the connection to {self.address} broke: {error}") from error

    def _replies(self, count: int) -> Iterator[Any]:
        for _ in range(count):
            while (reply := self._reader.gets()) is False:
                try:
                    data = self._socket.recv(_READ_BYTES)
                except OSError as error:
                    raise ClientError(f"the connection to {self.address} broke: {error}") from error
                if not data:
                    raise ClientError(f"{self.address} closed the connection")
                self._reader.feed(data)
            yield reply

    def close(self) -> None:
        self._socket.close()


def _packed(command: Words) -> bytes:
    packed: bytes = hiredis.pack_command(tuple(command))  # type: ignore[arg-type]  # It takes these.
    return packed
