"""Client connections without a kernel: the socket and the poller that a node's front sees, and the client's end.

A connection is two directions of bytes. Each takes its time on the timeline and keeps its order, as TCP
does; a cut holds bytes back until it is healed. The node's end has a send buffer that fills up, so that the
front meets sockets that take nothing more; received bytes wait in the socket whatever the node does, as
they would in the kernel of a process that stands still.

When the process is killed, what it had sent still arrives, and then the connection is reset. When the power
goes, what had left may arrive, and then nothing more does.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Protocol

import trio

from respkv.poller import READ, WRITE, Ready
from tests.sim.timeline import Timeline

SEND_BUFFER_BYTES = 16384
CUT_RETRY_S = 0.2
FIRST_FD = 100


class Line(Protocol):
    """What the way between a client and a node is like now."""

    def delay_s(self) -> float: ...

    def is_cut(self) -> bool: ...


class Poller:
    """Which of a process' sockets are ready, as `respkv.poller.EpollPoller` tells it."""

    def __init__(self, rng: random.Random) -> None:
        self.sockets: dict[int, Socket] = {}
        self._masks: dict[int, int] = {}
        self._rng = rng
        self._wake = trio.Event()
        self._next_fd = FIRST_FD

    def new_fd(self) -> int:
        self._next_fd += 1
        return self._next_fd

    def register(self, fd: int, mask: int) -> None:
        assert fd in self.sockets
        self._masks[fd] = mask
        self.changed(fd)

    def modify(self, fd: int, mask: int) -> None:
        assert fd in self._masks
        self._masks[fd] = mask
        self.changed(fd)

    def unregister(self, fd: int) -> None:
        del self._masks[fd]

    def poll(self) -> Ready:
        """What is ready, in any order."""
        ready = [(fd, mask) for fd in self._masks if (mask := self._ready(fd))]
        self._rng.shuffle(ready)
        return ready

    async def wait(self) -> None:
        if not any(map(self._ready, self._masks)):
            await self._wake.wait()
        else:
            await trio.lowlevel.checkpoint()
        self._wake = trio.Event()

    def wake(self) -> None:
        self._wake.set()

    def close(self) -> None:
        self._masks.clear()

    def changed(self, fd: int) -> None:
        """A socket's state is another one."""
        if fd in self._masks and self._ready(fd):
            self._wake.set()

    def _ready(self, fd: int) -> int:
        return self.sockets[fd].ready() & self._masks[fd]


class Direction:
    """Bytes on their way to one end, in order. `None` ends them: the last thing that arrives."""

    def __init__(
        self, timeline: Timeline, line: Line, arrive: Callable[[bytes | None], None]
    ) -> None:
        self.flying_bytes = 0
        self._timeline = timeline
        self._line = line
        self._arrive = arrive
        self._pieces: list[bytes | None] = []
        self._last_tick = 0
        self.is_lost = False  # Nothing arrives any more.

    def put(self, data: bytes | None) -> None:
        self.flying_bytes += len(data or b"")
        self._pieces.append(data)
        due = int((self._timeline.now_s + self._line.delay_s()) * 1000) + 1
        due = max(due, self._last_tick, self._timeline.tick + 1)
        self._last_tick = due
        self._timeline.at(due, self._deliver)

    def _deliver(self) -> None:
        if self.is_lost or not self._pieces:
            return
        if self._line.is_cut():
            self._timeline.after(CUT_RETRY_S, self._deliver)
            return
        piece = self._pieces.pop(0)
        self.flying_bytes -= len(piece or b"")
        self._arrive(piece)


class Socket:
    """The node's end: so much of a socket as the front uses."""

    def __init__(self, connection: Connection, poller: Poller) -> None:
        self._connection = connection
        self._poller = poller
        self._fd = poller.new_fd()
        self._inbox = bytearray()
        self._has_ended = False
        self._is_closed = False
        poller.sockets[self._fd] = self

    def fileno(self) -> int:
        return self._fd

    def recv(self, size: int) -> bytes:
        self._check()
        if not self._inbox:
            if self._has_ended:
                return b""
            raise BlockingIOError
        data = bytes(self._inbox[:size])
        del self._inbox[:size]
        return data

    def recv_into(self, buffer: memoryview) -> int:
        data = self.recv(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def send(self, data: bytes | memoryview) -> int:
        self._check()
        room = SEND_BUFFER_BYTES - self._connection.to_client.flying_bytes
        if room <= 0:
            raise BlockingIOError
        taken = bytes(data[:room])
        self._connection.to_client.put(taken)
        return len(taken)

    def sendmsg(self, pieces: Sequence[bytes | memoryview]) -> int:
        return self.send(b"".join(pieces))

    def close(self) -> None:
        if not self._is_closed:
            self._is_closed = True
            self._poller.sockets.pop(self._fd)
            self._connection.to_client.put(None)

    def ready(self) -> int:
        mask = READ if self._inbox or self._has_ended else 0
        is_full = self._connection.to_client.flying_bytes >= SEND_BUFFER_BYTES
        return mask if is_full else mask | WRITE

    def arrived(self, data: bytes | None) -> None:
        """Bytes of the client are here, or its end."""
        if data is None:
            self._has_ended = True
        else:
            self._inbox += data
        self._poller.changed(self._fd)

    def has_room(self) -> None:
        """The client has taken bytes."""
        self._poller.changed(self._fd)

    def _check(self) -> None:
        if self._is_closed:
            raise OSError("the socket is closed")
        if not self._connection.is_server_alive():
            raise ConnectionResetError


class Connection:
    """Both ends and both directions; this is the client's end too."""

    def __init__(
        self,
        timeline: Timeline,
        line: Line,
        poller: Poller,
        *,
        is_server_alive: Callable[[], bool],
        record: Callable[[bool, bytes], None],
    ) -> None:
        """`record` is told what arrives, with True for what goes to the node."""
        self.is_server_alive = is_server_alive
        self._record = record
        self.to_client = Direction(timeline, line, self._at_client)
        self.to_server = Direction(timeline, line, self._at_server)
        self.socket = Socket(self, poller)
        self._inbox = bytearray()
        self._has_ended = False
        self._is_closed = False
        self._arrival = trio.Event()

    # The client's end

    @property
    def has_ended(self) -> bool:
        return self._has_ended or self._is_closed

    def send(self, data: bytes) -> None:
        self.to_server.put(data)

    async def receive(self) -> bytes:
        """Return what has come, or nothing at the end."""
        while not self._inbox and not self._has_ended:
            self._arrival = trio.Event()
            await self._arrival.wait()
        data = bytes(self._inbox)
        self._inbox.clear()
        return data

    def close(self) -> None:
        """The client leaves."""
        if not self._is_closed:
            self._is_closed = True
            self.to_server.put(None)

    # The ends of things

    def server_was_killed(self) -> None:
        """What was sent arrives, then the reset."""
        self.to_server.is_lost = True
        self.to_client.put(None)

    def server_lost_power(self, *, does_sent_arrive: bool) -> None:
        """Nobody says anything any more."""
        self.to_server.is_lost = True
        self.to_client.is_lost = not does_sent_arrive

    def reset(self) -> None:
        """Something between the ends breaks it for both."""
        if self.is_server_alive():
            self.socket.arrived(None)
        self.to_server.is_lost = self.to_client.is_lost = True
        self._end()

    def _at_client(self, data: bytes | None) -> None:
        if data is None:
            self._end()
            return
        self._record(False, data)
        if not self._is_closed:
            self._inbox += data
            self._arrival.set()
        if self.is_server_alive():
            self.socket.has_room()

    def _end(self) -> None:
        self._has_ended = True
        self._arrival.set()

    def _at_server(self, data: bytes | None) -> None:
        if self.is_server_alive():
            self._record(True, data or b"")
            self.socket.arrived(data)
