"""Replies on their way into sockets: what one takes at once, and what is kept until it takes more.

It does not know which replies may leave: the front hands them over when they may, in order. What a
socket does not take is kept in `Connection.unsent`, and the socket is watched until it takes bytes
again; then it gets no more in one tick than is one client's share. Beyond `output_buffer_bytes_max`
of what is kept the client is closed at once (one reply may be larger); `patience.py` has the
limits that depend on time. A session that is over is closed when the last of its replies has left.

Shell.
"""

from __future__ import annotations

import contextlib
from itertools import islice
from typing import TYPE_CHECKING, Final

from respkv.connection import READ_BYTES, Clients, Connection
from respkv.poller import WRITE
from respkv.session import CLOSING, LARGE_REPLY_BYTES

if TYPE_CHECKING:
    from respkv.node import Node

PIECES_PER_SEND: Final = 64
SEND_BYTES_PER_TICK: Final = 1 << 20
READS_AT_THE_END: Final = 64


class Output:
    """What goes out, to all clients."""

    def __init__(self, node: Node, clients: Clients) -> None:
        self.node = node
        self.bytes_out = 0
        self._clients = clients

    def send(self, connection: Connection, data: bytes) -> None:
        """Send replies of a client to which nothing older is owed. Hot."""
        try:
            sent = connection.send(data)
        except BlockingIOError:
            sent = 0
        except OSError:
            self._clients.close(connection)
            return
        self.bytes_out += sent
        if sent != len(data):
            self.keep(connection, memoryview(data)[sent:])
            self._wait_to_send(connection)
        elif connection.session.mode & CLOSING:
            self.end(connection)

    def _wait_to_send(self, connection: Connection) -> None:
        connection.progress_s = self.node.now_s
        self._clients.watch(connection, connection.events | WRITE)
        if connection.session.mode & CLOSING:
            self._clients.stop_reading(connection)

    def send_large(self, connection: Connection) -> None:
        """As `send`, for the session's replies of which one is large: they are not copied into one piece."""
        session = connection.session
        pieces = _gathered(session.out)
        session.out.clear()
        session.has_large_reply = False
        connection.unsent.extend(pieces)
        session.unsent_bytes += sum(map(len, pieces))
        if session.unsent_bytes > session.unsent_peak_bytes:
            session.unsent_peak_bytes = session.unsent_bytes
        self._send_pieces(connection)
        if connection.unsent:
            self._wait_to_send(connection)
        elif session.mode & CLOSING:
            self.end(connection)

    def keep(self, connection: Connection, rest: memoryview) -> None:
        """Behind what is owed already. It may be the client's end."""
        session = connection.session
        connection.unsent.append(rest)
        session.unsent_bytes += len(rest)
        if session.unsent_bytes > session.unsent_peak_bytes:
            session.unsent_peak_bytes = session.unsent_bytes
        if session.mode & CLOSING:
            self._clients.stop_reading(connection)
        # One of the oldest pieces may be a huge reply, which must be allowed to leave.
        beyond = session.unsent_bytes - max(map(len, islice(connection.unsent, 2)))
        config = self.node.config
        limits = config.client if session.subscriptions is None else config.pubsub
        if beyond > limits.output_buffer_bytes_max:
            self.close_unread(connection)

    def close_unread(self, connection: Connection) -> None:
        """It does not read what it is sent."""
        session = connection.session
        self.node.log.warning(
            "client closed: it does not read its replies",
            client=session.peer,
            unsent_bytes=session.unsent_bytes,
        )
        self._clients.close(connection)

    def send_rest(self, connection: Connection) -> bool:
        """The socket takes bytes again. False if that was the end of the connection."""
        self._send_pieces(connection)
        if self._clients.by_fd.get(connection.fd) is not connection:
            return False
        if not connection.unsent:
            session = connection.session
            if session.mode & CLOSING and not session.out:
                self.end(connection)
                return False
            self._clients.watch(connection, connection.events & ~WRITE)
        return True

    def _send_pieces(self, connection: Connection) -> None:
        """Send of `unsent` what the socket takes, and no more than is one client's share of a tick."""
        session = connection.session
        unsent = connection.unsent
        room = SEND_BYTES_PER_TICK
        try:
            while unsent and room > 0:
                pieces = [piece[:room] for piece in islice(unsent, PIECES_PER_SEND)]
                while len(pieces) > 1 and sum(map(len, pieces)) > room:
                    pieces.pop()
                sent = connection.sock.sendmsg(pieces)
                room -= sent
                connection.progress_s = self.node.now_s
                session.unsent_bytes -= sent
                self.bytes_out += sent
                while unsent and sent >= len(unsent[0]):
                    sent -= len(unsent.popleft())
                if unsent and sent:
                    unsent[0] = unsent[0][sent:]
                    break
        except BlockingIOError:
            pass
        except OSError:
            self._clients.close(connection)

    def end(self, connection: Connection) -> None:
        """The session is over: close, or send and release first what it is owed."""
        if connection.unsent or connection.held:
            self._clients.stop_reading(connection)
        else:
            self.close_gently(connection)

    def close_gently(self, connection: Connection) -> None:
        """Close, and see to it that the client gets all that was sent.

        A socket that is closed with unread input is reset, and then the client may lose the rest.
        """
        with contextlib.suppress(OSError):
            for _ in range(READS_AT_THE_END):
                if not connection.recv(READ_BYTES):
                    break
        self._clients.close(connection)


def _gathered(pieces: list[bytes]) -> list[memoryview]:
    """Neighbours joined, but for the large ones."""
    gathered = []
    small: list[bytes] = []
    for piece in pieces:
        if len(piece) < LARGE_REPLY_BYTES:
            small.append(piece)
            continue
        gathered += [memoryview(b"".join(small)), memoryview(piece)]
        small = []
    gathered.append(memoryview(b"".join(small)))
    return [piece for piece in gathered if piece]
