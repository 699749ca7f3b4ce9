"""A link: one socket between two nodes, from its first byte to its last.

Which links there should be, and when one is dialled or given up, is for `bus.py` to say. A link takes
the socket through its stages, and moves messages once it is open:

    CONNECTING    dialled, and the kernel has not said yes or no
    SHAKING       TLS, if the node has it, then the handshake of `cluster/handshake.py`
    NAMING        accepted and authenticated: the dialler says which lane this is (BUS.LANE)
    OPEN
    CLOSED

`ready` is called by the front, within a tick, when the socket is ready for something. Whatever ends a
link, its end is found there: a link that somebody else gives up (a deadline, a full queue) is *doomed*,
which shuts the socket down, and the kernel reports that at once like any other end. So the owner hears
of each end in a tick, once, and never in the middle of a `send`.

Messages of a tick wait in two lists, of which the urgent one goes first, and leave in one `send` of the
kernel's at the end of the tick (`flush`). What the kernel does not take is kept in `unsent`, and bounded:
a peer that does not read loses its link. What a peer sends is always read, one piece in a tick, so that
no peer can hold up the others.

Control messages are the link's own business and do not wait for the end of a tick, for they say nothing
about data: the handshake, BUS.LANE, BUS.PING, BUS.PONG.

Shell. `flush` and `_read` are the hot paths: `tests/respkv/test_bus.py` run as a program measures them.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from itertools import islice
from typing import Final, Protocol

from cluster.handshake import (
    Acceptor,
    Done,
    HandshakeError,
    Initiator,
    MalformedHandshake,
    RefusedByPeer,
    refusal,
)
from cluster.ring import NodeId
from cluster.transport import Message
from respkv import bus_wire
from respkv.bus_tls import Tls, TlsError
from respkv.bus_wire import Decoder, MalformedMessage, encode
from respkv.poller import READ, READ_WRITE, WRITE

LANE: Final = b"BUS.LANE"
PING: Final = b"BUS.PING"
PONG: Final = b"BUS.PONG"
PING_WIRE: Final = encode([PING])
PONG_WIRE: Final = encode([PONG])
KEEPALIVE: Final = frozenset((PING, PONG))

EARLY_READ_BYTES: Final = 4096  # Of somebody who has proved nothing.
USUAL_READ_BYTES: Final = 8192  # A small buffer is cheaper to get.
FEW_BYTES: Final = 2048  # The next batch will hardly be larger than a small buffer.
READ_BYTES: Final = bus_wire.FAST_BYTES_MAX
PIECES_PER_SEND: Final = 64

KEEPALIVE_IDLE_S: Final = 5
KEEPALIVE_INTERVAL_S: Final = 2
KEEPALIVE_COUNT: Final = 3


class Stage(IntEnum):
    CONNECTING = 0
    SHAKING = 1
    NAMING = 2
    OPEN = 3
    CLOSED = 4


class Lane(IntEnum):
    """What a link is for. Each has its own socket, so that bulk is never in front of a request."""

    SEND = 0
    BULK = 1


LANE_NAMES: Final = {Lane.SEND: b"send", Lane.BULK: b"bulk"}
LANES: Final = {name: lane for lane, name in LANE_NAMES.items()}


@dataclass(frozen=True, slots=True)
class BusLimits:
    """Bounds of memory and time."""

    frame_bytes_max: int = 64 << 20  # One message on the wire.
    queue_bytes_max: int = 64 << 20  # Queued for one peer, beside one message that is larger.
    bulk_bytes_max: int = 1 << 20  # On the bulk lane: beyond it `send_bulk` says no.
    accepted_max: int = 64  # Connections that have not proved themselves yet.
    connect_s: float = 2.0
    handshake_s: float = 5.0
    ping_s: float = 1.0  # Of silence, then a ping is sent.
    silence_s: float = 5.0  # Then the link is closed.
    backoff_min_s: float = 0.05
    backoff_max_s: float = 2.0
    user_timeout_ms: int = 5000  # How long the kernel waits for an acknowledgement.


class Descriptors(Protocol):
    """Where sockets are watched: the front."""

    def adopt(self, fd: int, mask: int, handler: Callable[[int], None]) -> None: ...

    def change(self, fd: int, mask: int) -> None: ...

    def release_fd(self, fd: int) -> None: ...


class Owner(Protocol):
    """What a link tells: `Bus`. Each is called within a tick."""

    def authenticated(self, link: Link, done: Done) -> None:
        """The peer of an accepted link has proved itself. Raises HandshakeError if it may not come in."""
        ...

    def opened(self, link: Link) -> None: ...

    def received(self, peer: NodeId, message: Message) -> None: ...

    def closed(self, link: Link, was: Stage, reason: str, kind: str) -> None:
        """It ended in stage `was`. `reason` may hold words of the peer's; `kind` is one of a few."""
        ...


End = Initiator | Acceptor


class Link:
    """One socket. `lane` is known once it is open; an accepted link learns its peer's name on the way."""

    __slots__ = (
        "_decoder", "_descriptors", "_end", "_limits", "_mask", "_owner", "_queue", "_queue_bytes_max",
        "_read_bytes", "_recv", "_sock", "_tls", "_urgent", "address", "connect_error", "doom", "fd",
        "has_overflowed", "heard_s", "is_dialled", "is_dirty", "is_heard", "is_muted", "is_pinged", "lane",
        "peer", "queued_bytes", "stage", "started_s", "unsent", "unsent_bytes",
    )  # fmt: skip

    def __init__(
        self,
        sock: socket.socket,
        end: End,
        owner: Owner,
        descriptors: Descriptors,
        limits: BusLimits,
        *,
        now_s: float,
        address: str,
        tls: Tls | None = None,
        lane: Lane = Lane.SEND,
        peer: NodeId = "",
        is_connecting: bool = False,
        connect_error: int = 0,
    ) -> None:
        """`sock` is non-blocking. `connect_error`: what `connect` has said already, told in the next tick."""
        self._sock = sock
        self._recv = sock.recv  # Bound once: the look-up shows.
        self.fd = sock.fileno()
        self._end = end
        self.is_dialled = isinstance(end, Initiator)
        self._owner = owner
        self._descriptors = descriptors
        self._limits = limits
        self._queue_bytes_max = limits.queue_bytes_max
        self._tls = tls
        self._decoder = Decoder()
        self._read_bytes = EARLY_READ_BYTES
        self.address = address
        self.lane = lane
        self.peer = peer
        self.stage = Stage.CONNECTING if is_connecting else Stage.SHAKING
        self.connect_error = connect_error
        self.doom = ""  # Why it was given up.
        self.started_s = now_s  # When it came into its stage.
        self.heard_s = now_s
        self.is_heard = False  # Since somebody looked.
        self.is_pinged = False
        self.is_muted = False  # KV.DRILL: nothing arrives, and nobody is told.
        self._urgent: list[bytes] = []
        self._queue: list[bytes] = []
        self.queued_bytes = 0  # In these two.
        self.is_dirty = False  # The owner knows that there is something in them.
        self.unsent: deque[bytes | memoryview] = deque()  # What the kernel did not take.
        self.unsent_bytes = 0
        self.has_overflowed = False  # It was given up since too much waited to be sent.
        self._mask = READ_WRITE if is_connecting else READ
        descriptors.adopt(self.fd, self._mask, self.ready)

    # Called by the owner

    def start(self) -> None:
        """Say the first word, on a link whose socket is connected."""
        try:
            self._start()
        except TlsError as error:
            self.give_up(str(error))

    def queue(self, data: bytes, *, is_urgent: bool) -> None:
        """Have a message leave with `flush`."""
        # One message alone may be larger than the limit: nothing else would ever carry it.
        if self.queued_bytes > self._queue_bytes_max:
            self.has_overflowed = True
            self.give_up(f"{self.queued_bytes} bytes are queued for it within one tick")
        if self.doom:
            return
        (self._urgent if is_urgent else self._queue).append(data)
        self.queued_bytes += len(data)

    def flush(self) -> None:
        """Send what was queued in this tick."""
        pieces = self._urgent + self._queue
        self._urgent.clear()
        self._queue.clear()
        self.queued_bytes = 0
        self.is_dirty = False
        self.write(b"".join(pieces))

    def write(self, data: bytes) -> None:
        """Send bytes now, or as soon as the kernel takes them."""
        if self.doom or self.is_muted or self.stage is Stage.CLOSED:
            return
        if self._tls is not None:
            try:
                self._tls.send(data)
            except TlsError as error:
                self.give_up(str(error))
                return
            data = self._tls.take()
        self._write_raw(data)

    @property
    def is_watched_for_writing(self) -> bool:
        return bool(self._mask & WRITE)

    def give_up(self, reason: str) -> None:
        """Have the link end. The owner hears of it in the next tick."""
        if self.doom or self.stage is Stage.CLOSED:
            return
        self.doom = reason
        self._forget_output()
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)
        # The kernel reports what is shut down as ready for reading, whatever the mask.
        self._set_mask(READ)

    def mute(self) -> None:
        """Play a network that loses everything, and says nothing: until the silence is noticed."""
        if not self.doom and self.stage is not Stage.CLOSED:
            self.is_muted = True
            self._forget_output()
            self._set_mask(0)

    def ready(self, mask: int) -> None:
        """The socket is ready for something, or so it was when the tick began."""
        if self.doom:
            self.close(self.doom)
        elif self.stage is Stage.CONNECTING:
            self._finish_connect()
        else:
            if mask & WRITE and self.unsent:
                self._write_rest()
            if mask & ~WRITE and self.stage is not Stage.CLOSED:
                self._read()

    def close(self, reason: str, error: Exception | None = None) -> None:
        """End it now, within a tick, and tell the owner."""
        was = self.stage
        if was is not Stage.CLOSED:
            self.abandon()
            kind = reason if error is None else type(error).__name__
            self._owner.closed(self, was, reason, kind)

    def abandon(self) -> None:
        """End it now, and tell nobody."""
        self.stage = Stage.CLOSED
        self._forget_output()
        self._descriptors.release_fd(self.fd)
        self._sock.close()

    # Stages

    def _finish_connect(self) -> None:
        number = self.connect_error or self._sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if number:
            self.connect_error = number
            self.close(os.strerror(number))
            return
        try:
            self._sock.getpeername()
        except OSError:
            return  # Not yet: the event was meant for an earlier socket of this number.
        self.stage = Stage.SHAKING
        self._set_mask(READ)
        try:
            self._start()
        except TlsError as error:
            self.close(str(error), error)

    def _start(self) -> None:
        if self._tls is None:
            self._begin_handshake()
        else:
            self._tls.receive(b"")
            self._write_raw(self._tls.take())

    def _begin_handshake(self) -> None:
        offer = self._end.start()
        if offer is not None:  # The dialler's.
            self.write(encode(offer))

    def _take_early(self, messages: list[Message]) -> None:
        """Messages before the link is open come one at a time; after that, what came in the same chunk."""
        while messages:
            if self.stage is Stage.OPEN:
                self._deliver(messages)
            else:
                self._step(messages[0])
            messages = self._decoder.feed(b"")

    def _step(self, message: Message) -> None:
        if self.stage is Stage.NAMING:
            if len(message) != 2 or message[0] != LANE or message[1] not in LANES:
                raise MalformedHandshake("the lane of the link was due")
            self.lane = LANES[message[1]]
            self._open()
            return
        step = self._end.receive(message)
        if step.done is not None:
            self.peer = step.done.peer_name
            if not self.is_dialled:
                self._owner.authenticated(self, step.done)
                self.stage = Stage.NAMING
        if step.reply is not None:
            self.write(encode(step.reply))
        if step.done is not None and self.is_dialled:
            self.write(encode([LANE, LANE_NAMES[self.lane]]))
            self._open()

    def _open(self) -> None:
        self.stage = Stage.OPEN
        limits = self._limits
        self._decoder.admit(
            bus_wire.Limits(
                message_bytes_max=limits.frame_bytes_max, field_bytes_max=limits.frame_bytes_max
            )
        )
        self._read_bytes = USUAL_READ_BYTES
        self._owner.opened(self)

    # Receiving

    def _read(self) -> None:
        size = self._read_bytes
        try:
            data = self._recv(size)
        except BlockingIOError:
            return
        except OSError as error:
            self.close(error.strerror or str(error))
            return
        if not data:
            self.close("closed by the peer")
            return
        self.is_heard = True
        try:
            if self._tls is not None:
                data = self._decipher(self._tls, data)
            messages = self._decoder.feed(data)
            if self.stage is Stage.OPEN:
                if len(data) == size:  # Cut, most likely, which costs more than a large buffer.
                    self._read_bytes = READ_BYTES
                elif len(data) <= FEW_BYTES:
                    self._read_bytes = USUAL_READ_BYTES
                self._deliver(messages)
            else:
                self._take_early(messages)
        except HandshakeError as error:
            if not isinstance(error, RefusedByPeer):
                self.write(encode(refusal(error)))
            self.close(str(error), error)
        except (TlsError, MalformedMessage) as error:
            self.close(str(error), error)

    def _decipher(self, tls: Tls, data: bytes) -> bytes:
        was_ready = tls.is_ready
        try:
            plain = tls.receive(data)
        finally:
            self._write_raw(tls.take())
        if tls.is_ready and not was_ready:
            self._begin_handshake()
        return plain

    def _deliver(self, messages: list[Message]) -> None:
        received = self._owner.received
        peer = self.peer
        for message in messages:
            if message[0] not in KEEPALIVE:
                received(peer, message)
            elif message[0] == PING:
                self.write(PONG_WIRE)

    # Sending

    def _write_raw(self, data: bytes) -> None:
        if not data:
            return
        if self.unsent:
            self._keep(data)
            return
        try:
            sent = self._sock.send(data)
        except BlockingIOError:
            sent = 0
        except OSError as error:
            self.give_up(error.strerror or str(error))
            return
        if sent != len(data):
            self._keep(memoryview(data)[sent:])
            self._set_mask(READ_WRITE)

    def _keep(self, rest: bytes | memoryview) -> None:
        self.unsent.append(rest)
        self.unsent_bytes += len(rest)
        # The oldest may be one large message, which must be allowed to leave.
        if self.unsent_bytes - len(self.unsent[0]) > self._queue_bytes_max:
            self.has_overflowed = True
            self.give_up(f"it does not read: {self.unsent_bytes} bytes wait for it")

    def _write_rest(self) -> None:
        """The socket takes bytes again."""
        unsent = self.unsent
        try:
            sent = self._sock.sendmsg(list(islice(unsent, PIECES_PER_SEND)))
        except BlockingIOError:
            return
        except OSError as error:
            self.close(error.strerror or str(error))
            return
        self.is_heard = True  # Bytes leave, so the other end takes some.
        self.unsent_bytes -= sent
        while unsent and sent >= len(unsent[0]):
            sent -= len(unsent.popleft())
        if sent:
            unsent[0] = memoryview(unsent[0])[sent:]
        if not unsent:
            self._set_mask(READ)

    def _forget_output(self) -> None:
        self._urgent.clear()
        self._queue.clear()
        self.unsent.clear()
        self.queued_bytes = self.unsent_bytes = 0

    def _set_mask(self, mask: int) -> None:
        if mask != self._mask:
            self._mask = mask
            self._descriptors.change(self.fd, mask)


def tune(sock: socket.socket, limits: BusLimits) -> None:
    """Set a TCP socket's options: small messages leave at once, and a silent end is noticed."""
    sock.setblocking(False)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, KEEPALIVE_IDLE_S)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, KEEPALIVE_INTERVAL_S)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, KEEPALIVE_COUNT)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, limits.user_timeout_ms)
