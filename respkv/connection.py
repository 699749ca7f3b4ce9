"""Clients' sockets: what belongs to each, who is here, and how one ends.

It reads and sends nothing: `front.py` receives, `output.py` sends. Here a socket is taken in, found
by its descriptor or its session, watched for what it waits for, and closed with all that it is
owed. A connection that was closed is in none of the tables any more, the backlog among them; who
keeps one over something that may close it looks whether `by_fd` still has it.

Shell.
"""

from __future__ import annotations

import contextlib
import socket
from collections import deque
from typing import TYPE_CHECKING, Final

from respkv.poller import READ
from respkv.session import CLOSING, Session

if TYPE_CHECKING:
    from respkv.node import Node

READ_BYTES: Final = 65536
# Small buffers are cheaper to get. A read that fills its buffer is followed by a larger one, and a
# client that has once sent more than the smallest keeps the usual one: its pipelines are not cut.
SMALL_READ_BYTES: Final = 448
USUAL_READ_BYTES: Final = 4096
LARGER_READS: Final = {
    SMALL_READ_BYTES: USUAL_READ_BYTES,
    USUAL_READ_BYTES: READ_BYTES,
    READ_BYTES: READ_BYTES,
}


class Connection:
    """A socket, its session, and what the kernel did not take yet."""

    __slots__ = (
        "events", "fd", "has_ended", "held", "held_bytes", "progress_s", "read_bytes", "recv", "recv_into",
        "send", "session", "sock", "unparsed", "unsent",
    )  # fmt: skip

    def __init__(self, sock: socket.socket, session: Session, now_s: float) -> None:
        self.sock = sock
        self.fd = sock.fileno()
        self.session = session
        self.recv = sock.recv  # Bound once: the look-ups show in the benchmark.
        self.recv_into = sock.recv_into
        self.send = sock.send
        self.unsent: deque[memoryview] = deque()
        self.events = READ
        self.unparsed = bytearray()  # Received while it was behind.
        self.has_ended = False  # It sends nothing more.
        self.read_bytes = SMALL_READ_BYTES  # 0: the parser wants the bytes in a buffer of its own.
        self.progress_s = now_s  # When the client last took a byte.
        self.held = 0  # Replies of it that wait for the disk: later ones must go there too.
        self.held_bytes = 0


class Clients:
    """All connections."""

    def __init__(self, node: Node) -> None:
        self.node = node
        self.by_fd: dict[int, Connection] = {}
        self.by_session: dict[Session, Connection] = {}
        self.backlog: dict[Connection, None] = {}  # Those that the front serves in the next tick.
        self.connections_total = 0
        self._poller = node.poller
        self._next_id = 1

    def attach(self, sock: socket.socket, peer: str, local: str) -> Session:
        """Serve a client by a connected socket that does not block. The addresses are shown to others."""
        now_s = self.node.monotonic_s()
        session = Session(
            self._next_id,
            peer,
            local,
            self.node.limits,
            now_s,
            authenticated=not self.node.config.client.requirepass,
        )
        self._next_id += 1
        connection = Connection(sock, session, now_s)
        session.fd = connection.fd
        self.by_fd[connection.fd] = connection
        self.by_session[session] = connection
        self.connections_total += 1
        self._poller.register(connection.fd, READ)
        return session

    def watch(self, connection: Connection, events: int) -> None:
        """Have it served when its socket is ready for these."""
        connection.events = events
        self._poller.modify(connection.fd, events)

    def stop_reading(self, connection: Connection) -> None:
        if connection.events & READ:
            self.watch(connection, connection.events & ~READ)

    def close(self, connection: Connection) -> None:
        """Close a connection at once, with all that it is owed."""
        if self.by_fd.get(connection.fd) is not connection:
            return
        session = connection.session
        del self.by_fd[connection.fd]
        del self.by_session[session]
        self.backlog.pop(connection, None)
        with contextlib.suppress(OSError):
            self._poller.unregister(connection.fd)
        connection.sock.close()
        connection.unsent.clear()
        connection.unparsed.clear()
        session.unsent_bytes = 0
        session.out.clear()
        session.queue.clear()
        session.mode |= CLOSING
        self.node.forget(session)

    def close_session(self, session: Session) -> None:
        connection = self.by_session.get(session)
        if connection is not None:
            self.close(connection)
