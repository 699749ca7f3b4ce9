"""The front: one task that serves every socket that is ready, in one batch per wake-up.

It takes no decision about commands: bytes go to a session's parser, whole commands to the runner,
and what sessions were told goes out at the end of the tick, after one write to the commit log. It
is the shell around `session.py` and `runner.py`.

A tick: the epoll set says which sockets are ready; each is read once, parsed and executed; the log
is written; the replies leave. With fsync `always` the replies of a tick wait in `_held` until the
log is durable up to the tick's end. Sessions with commands left over (a budget was reached, a wait
ended) are served again in the next tick.

Backpressure, per client: beyond `output_buffer_soft_bytes` of replies that it has not read, or that
wait for the disk, nothing more is executed for it until they have left; if it reads nothing for
`output_buffer_soft_s` it is closed, and beyond `output_buffer_bytes_max` at once (one reply may be
larger). Clients with subscriptions have limits of their own, in `[pubsub]`: they are closed at the
hard one, or when they have been beyond the soft one for a time, whatever they read. A client that
cannot be served at the moment is *behind*: what it sends is put aside in
`unparsed` as it came (parsed commands take many times the memory of their bytes), and beyond
`UNPARSED_BYTES_MAX` its socket is not read. So a client may send all of a long pipeline before it
reads the first reply.

Most clients send one small command and wait. Those of a tick are gathered in `_lone` and executed
together, since a run of GETs or SETs costs less than each alone.

A client that has shut down its side of the connection, as `printf ... | nc` does, still gets what it
asked for; one that waits for a time, or whose socket has failed, is closed at once.

A trio stream per connection costs three times as much per request; the loop below is measured by
bench/serving.py.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import stat
from collections import deque
from collections.abc import Callable
from itertools import islice
from typing import TYPE_CHECKING, Final

import trio

from respkv.parser import may_be_lone, parse_lone
from respkv.poller import READ, WRITE
from respkv.reply import ReplyError
from respkv.session import CLOSING, LARGE_REPLY_BYTES, MONITORING, WAITING, Session

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
UNPARSED_BYTES_MAX: Final = 16 << 20
ACCEPTS_PER_TICK: Final = 128
PIECES_PER_SEND: Final = 64
SEND_BYTES_PER_TICK: Final = 1 << 20
BACKLOG_NS: Final = (
    2_000_000  # A tick's time for sessions that had commands left over; one may take longer.
)
READS_AT_THE_END: Final = 64
# A tick of at least so many sockets is followed by another at once, for so long: trio's turn costs
# as much as two requests.
BUSY_EVENTS: Final = 8
BURST_NS: Final = 1_000_000
# What `accept` says when this machine has no room for more clients just now.
NO_ROOM: Final = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
TOO_MANY_CLIENTS: Final = b"-ERR max number of clients reached\r\n"
PROTECTED: Final = (
    b"-DENIED respkv is in protected mode: no password is set, so it serves only clients of its own machine. "
    b"Set client.requirepass, or client.protected_mode = false if the network is trusted, and restart.\r\n"
)


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
        self.held = 0  # Replies of it that are in `_held`: later ones must go there too.
        self.held_bytes = 0


class Front:
    """Listeners, connections and the tick."""

    def __init__(self, node: Node) -> None:
        self.node = node
        self.runner = node.runner
        self._commit = node.commit
        self.connections: dict[int, Connection] = {}
        self.by_session: dict[Session, Connection] = {}
        self._listeners: dict[int, socket.socket] = {}
        self._cluster_listeners: set[int] = set()  # Whose clients see a Redis Cluster member.
        self._foreign: dict[int, Callable[[int], None]] = {}  # Sockets that are no clients.
        self._poller = node.poller
        self._is_asleep = False  # In `run`, until a socket is ready or `_wake` is called.
        self._dirty: list[Connection] = []
        self._lone: list[Connection] = []  # What they sent in this tick is in `_lone_chunks`.
        self._lone_chunks: list[bytes] = []
        self._backlog: dict[Connection, None] = {}
        self._held: deque[tuple[int, list[tuple[Connection, bytes]]]] = deque()
        self._next_id = 1
        self._is_stopping = False
        self._is_full = False  # No more descriptors: `check_clients` tries again.
        self.commands_per_tick_max = node.config.client.commands_per_tick_max
        self.connections_total = 0
        self.rejected_total = 0
        self.ticks_total = 0
        self.bytes_in = 0
        self.bytes_out = 0

    # Listening

    def listen_tcp(self, host: str, port: int, backlog: int, *, is_cluster: bool = False) -> int:
        """Listen on one address, and return the port (it was chosen if 0 was asked for). Raises OSError.

        `is_cluster`: to those who connect there the node is a member of a Redis Cluster.
        """
        info = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        sock = socket.socket(info[0], socket.SOCK_STREAM)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if info[0] == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        self._listen(sock, info[4], backlog)
        if is_cluster:
            self._cluster_listeners.add(sock.fileno())
        return int(sock.getsockname()[1])

    def listen_unix(self, path: str, mode: str, backlog: int) -> None:
        """Listen on a Unix socket; a stale one of the same path is replaced. Raises OSError."""
        with contextlib.suppress(FileNotFoundError):
            if not stat.S_ISSOCK(os.stat(path).st_mode):
                raise OSError(f"{path} is there, and is no socket")
            probe = socket.socket(socket.AF_UNIX)
            try:
                probe.connect(path)
            except ConnectionRefusedError:
                os.unlink(path)
            else:
                raise OSError(f"{path} is in use")
            finally:
                probe.close()
        self._listen(socket.socket(socket.AF_UNIX), path, backlog, mode)

    def _listen(self, sock: socket.socket, address: object, backlog: int, mode: str = "") -> None:
        try:
            sock.bind(address)  # type: ignore[arg-type]
            if mode:  # Before anybody can connect.
                os.chmod(str(address), int(mode, 8))
            sock.listen(backlog)
        except OSError:
            sock.close()
            raise
        sock.setblocking(False)
        self._listeners[sock.fileno()] = sock
        self._poller.register(sock.fileno(), READ)

    def _accept(self, listener: socket.socket) -> None:
        client = self.node.config.client
        for _ in range(ACCEPTS_PER_TICK):
            try:
                sock, address = listener.accept()
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno not in NO_ROOM:
                    continue  # That client has gone already.
                # The kernel keeps the rest waiting; the epoll set would report them again and again.
                self.node.log.warning("cannot accept a client", reason=str(error))
                self._is_full = True
                for fd in self._listeners:
                    self._poller.modify(fd, 0)
                return
            sock.setblocking(False)
            is_unix = sock.family == socket.AF_UNIX
            refusal = b""
            if len(self.connections) >= client.clients_max:
                refusal = TOO_MANY_CLIENTS
            elif client.protected_mode and not client.requirepass and not is_unix:
                refusal = b"" if _is_loopback(address[0]) else PROTECTED
            if refusal:
                self.rejected_total += 1
                with contextlib.suppress(OSError):
                    sock.send(refusal)
                sock.close()
                continue
            self._add(sock, address, listener, is_unix=is_unix)

    def _add(
        self, sock: socket.socket, address: object, listener: socket.socket, *, is_unix: bool
    ) -> None:
        config = self.node.config.client
        if is_unix:
            peer = local = f"{listener.getsockname()}:0"
        else:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if config.tcp_keepalive_s:
                interval = config.tcp_keepalive_s
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, interval)
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, max(1, interval // 3))
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3)
            try:
                peer, local = _shown(sock.getpeername()), _shown(sock.getsockname())
            except OSError:  # Gone already.
                sock.close()
                return
        session = self.attach(sock, peer, local)
        session.is_unix = is_unix
        session.is_cluster = listener.fileno() in self._cluster_listeners

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
        self.connections[connection.fd] = connection
        self.by_session[session] = connection
        self.connections_total += 1
        self._poller.register(connection.fd, READ)
        return session

    # Sockets of others, which are served in the same tick

    def adopt(self, fd: int, mask: int, handler: Callable[[int], None]) -> None:
        """Have `handler` called, within a tick, with the mask of what `fd` is ready for."""
        self._poller.register(fd, mask)
        self._foreign[fd] = handler

    def change(self, fd: int, mask: int) -> None:
        """An adopted descriptor waits for something else."""
        self._poller.modify(fd, mask)

    def release_fd(self, fd: int) -> None:
        """To be called before an adopted descriptor is closed."""
        del self._foreign[fd]
        self._poller.unregister(fd)

    # The loop

    async def run(self) -> None:
        """Serve until cancelled."""
        poller = self._poller
        clock_ns = self.node.clock_ns
        while True:
            if self._has_more:
                await trio.lowlevel.checkpoint()
            else:
                self._is_asleep = True
                await poller.wait()
                self._is_asleep = False
            started_ns = clock_ns()
            events = poller.poll()
            self.tick(events)
            until_ns = started_ns + BURST_NS
            while len(events) >= BUSY_EVENTS and not self._held and clock_ns() < until_ns:
                events = poller.poll()
                self.tick(events)
            self.node.note_pause(started_ns)

    def tick(self, events: list[tuple[int, int]]) -> None:
        """Serve what is ready, then write the log and send."""
        self.ticks_total += 1
        now_ms = self.node.begin_tick()
        now_s = self.node.now_s
        connections = self.connections
        read = self._read
        for fd, mask in events:
            connection = connections.get(fd)
            if mask == READ and connection is not None:
                read(connection, now_ms, now_s)
            else:
                self._serve_unusual(fd, mask, now_ms, now_s)
        if self._lone:
            self._serve_lone(now_ms)
        if self._backlog:
            self._serve_backlog(now_ms)
        if self.runner.sliced:
            self.runner.advance(now_ms)
        self.finish(now_ms)

    def _serve_unusual(self, fd: int, mask: int, now_ms: int, now_s: float) -> None:
        """A new client, a socket that takes bytes again, or one that has failed."""
        listener = self._listeners.get(fd)
        if listener is not None:
            self._accept(listener)
            return
        connection = self.connections.get(fd)
        if connection is None:
            handler = self._foreign.get(fd)
            if handler is not None:
                handler(mask)
            return  # Or it was closed earlier in this tick.
        if mask & WRITE:
            self._send_rest(connection)
        if mask & ~WRITE and self.connections.get(fd) is connection:
            self._read(connection, now_ms, now_s)

    def finish(self, now_ms: int) -> None:
        """Everything that was executed goes to the log in one write, then the replies leave."""
        peers = self.node.peers
        if peers is not None:
            peers.prepare()
        for session in self.node.take_touched():
            connection = self.by_session.get(session)
            if connection is not None:
                self._dirty.append(connection)
                self._go_on(connection)
        self._wake()
        position = self._commit.write()
        if peers is not None:
            peers.flush(position)
        dirty = self._dirty
        if not dirty:
            return
        self._dirty = []
        if position > self._commit.releasable:
            self._hold(position, dirty)
        else:
            for connection in dirty:
                session = connection.session
                out = session.out
                if not out:
                    if session.mode & CLOSING:
                        self._end(connection)  # CLIENT REPLY OFF, then QUIT.
                    continue
                if session.has_large_reply and not connection.held and not connection.unsent:
                    self._send_large(connection)
                    continue
                data = b"".join(out)
                out.clear()
                if connection.held:
                    self._hold_data(position, connection, data)
                elif connection.unsent:
                    self._keep(connection, memoryview(data))
                else:
                    self._send(connection, data)

    def _wake(self) -> None:
        """Work may have come from another task than `run`."""
        if self._is_asleep and self._has_more:
            self._poller.wake()

    @property
    def _has_more(self) -> bool:
        """Whether another tick has something to do, whatever arrives."""
        peers = self.node.peers
        return (
            bool(self._backlog) or self.runner.has_slices or (peers is not None and peers.has_work)
        )

    def _go_on(self, connection: Connection) -> None:
        """Something that its commands waited for has come: look at it again in the next tick."""
        session = connection.session
        if not session.mode & WAITING and (
            session.queue or connection.unparsed or not session.parser.is_at_rest
        ):
            self._backlog[connection] = None
        elif connection.has_ended and not session.mode & WAITING and not _has_operations(session):
            session.close_after_reply("the client has ended")
            self._dirty.append(connection)

    def _read(self, connection: Connection, now_ms: int, now_s: float) -> None:
        session = connection.session
        size = connection.read_bytes
        if not size:
            self._read_bulk(connection, now_ms, now_s)
            return
        try:
            data = connection.recv(size)
        except BlockingIOError:
            return
        except OSError:
            self.close(connection)
            return
        if not data:
            self._end_of_input(connection)
            return
        count = len(data)
        self.bytes_in += count
        session.last_active_s = now_s
        if connection.unsent or connection.unparsed or session.queue:
            self._put_aside(connection, data)
            return
        if (
            count < SMALL_READ_BYTES
            and size <= USUAL_READ_BYTES
            and not session.mode
            and not session.out
            and session.parser.is_at_rest
            and may_be_lone(data)
        ):
            first = self._lone[0].session if self._lone else session
            if session.db == first.db and session.is_resp3 == first.is_resp3:
                self._lone.append(connection)
                self._lone_chunks.append(data)
                return
        if count == size:
            connection.read_bytes = LARGER_READS[size]
        elif count <= USUAL_READ_BYTES < size:
            connection.read_bytes = USUAL_READ_BYTES
        self._take(connection, session.parser.feed(data), now_ms)

    def _read_bulk(self, connection: Connection, now_ms: int, now_s: float) -> None:
        """Receive straight into the large argument that is arriving."""
        session = connection.session
        buffer = session.parser.bulk_buffer()
        assert buffer is not None
        try:
            count = connection.recv_into(buffer)
        except BlockingIOError:
            return
        except OSError:
            self.close(connection)
            return
        finally:
            buffer.release()
        if not count:
            self._end_of_input(connection)
            return
        self.bytes_in += count
        session.last_active_s = now_s
        connection.read_bytes = USUAL_READ_BYTES
        commands = session.parser.bulk_filled(count)
        if connection.unsent or connection.unparsed or session.queue:
            session.queue.extend(commands)
            commands = []
        self._take(connection, commands, now_ms)

    def _take(self, connection: Connection, commands: list[list[bytes]], now_ms: int) -> None:
        """Execute what a read has brought."""
        session = connection.session
        if len(commands) > self.commands_per_tick_max:
            session.queue.extend(commands)
        elif commands:
            self.runner.serve(session, commands, now_ms)
        if session.queue or not session.parser.is_at_rest:  # An error is no rest.
            self._after_unusual(connection)
        if session.out or session.mode:
            self._dirty.append(connection)

    def _serve_lone(self, now_ms: int) -> None:
        """Execute what `_lone` sent: one command each, as it seems."""
        lone, self._lone = self._lone, []
        chunks, self._lone_chunks = self._lone_chunks, []
        commands = parse_lone(chunks)
        if commands is None:
            for connection, data in zip(lone, chunks, strict=True):
                if self.connections.get(connection.fd) is connection:
                    self._take(connection, connection.session.parser.feed(data), now_ms)
            return
        self.runner.serve_lone([connection.session for connection in lone], commands, now_ms)
        for connection in lone:
            session = connection.session
            if session.queue:
                self._after_unusual(connection)
            if session.out or session.mode:
                self._dirty.append(connection)

    def _after_unusual(self, connection: Connection) -> None:
        """After a read that left something: half a command, commands in the queue, an error."""
        session = connection.session
        parser = session.parser
        if session.mode & CLOSING:
            session.queue.clear()
            return
        if parser.is_in_bulk and not connection.unparsed:
            connection.read_bytes = 0  # The next read goes straight into the argument.
        if not session.queue and not parser.is_in_bulk:
            self._read_on(connection)
        if not session.mode & WAITING:
            if session.queue:
                self._backlog[connection] = None
            elif parser.error is not None and not session.mode & CLOSING:
                self._protocol_error(connection)
        if parser.buffered_bytes > self.node.config.client.query_buffer_bytes_max:
            self.node.log.warning("client closed: query buffer limit", client=session.peer)
            self.close(connection)

    def _put_aside(self, connection: Connection, data: bytes) -> None:
        """The client is behind: keep what it sent for later. It comes again with the backlog."""
        if connection.session.mode & CLOSING:
            return
        connection.unparsed += data
        connection.read_bytes = READ_BYTES
        if len(connection.unparsed) > self._unparsed_bytes_max:
            self._stop_reading(connection)

    @property
    def _unparsed_bytes_max(self) -> int:
        return min(UNPARSED_BYTES_MAX, self.node.config.client.query_buffer_bytes_max)

    def _end_of_input(self, connection: Connection) -> None:
        """The client sends nothing more. What it has asked for is still done, if it does not take time."""
        session = connection.session
        wait = session.wait
        has_operations = _has_operations(session)
        is_long = (
            session.mode & WAITING
            and not has_operations
            and (wait is None or (wait.fault is None and wait.slices is None))
        )
        if connection.has_ended or is_long:
            self.close(connection)
            return
        connection.has_ended = True
        self._stop_reading(connection)
        if session.mode & WAITING or session.queue or connection.unparsed or has_operations:
            return
        session.close_after_reply("the client has ended")
        self._dirty.append(connection)

    def _read_on(self, connection: Connection) -> None:
        """Before AUTH the parser gives one command at a time, since the limits depend on it.

        When AUTH has changed them, this gets what came in the same chunk.
        """
        session = connection.session
        parser = session.parser
        while not session.mode & (WAITING | CLOSING) and not session.queue:
            commands = parser.feed(b"")
            if not commands:
                return
            self.runner.serve(session, commands, self.node.now_ms())

    def _protocol_error(self, connection: Connection) -> None:
        """The stream is broken: what came before is answered, then the error, then the end."""
        session = connection.session
        error = session.parser.error
        assert error is not None
        if session.queue:
            return  # Found again when the queue is empty.
        self.node.count_error(ReplyError(b"ERR"))
        session.mode &= ~WAITING
        # Latin-1: the text may quote a byte that the client sent.
        session.send(ReplyError(f"ERR Protocol error: {error}".encode("latin-1")))
        session.close_after_reply("protocol error")
        self._dirty.append(connection)

    def _serve_backlog(self, now_ms: int) -> None:
        soft = self.node.config.client.output_buffer_soft_bytes
        clock_ns = self.node.clock_ns
        until_ns = clock_ns() + BACKLOG_NS
        for connection in list(self._backlog):
            if clock_ns() >= until_ns:
                return  # The others are first in the next tick.
            if connection not in self._backlog:
                continue  # Closed by one before it.
            del self._backlog[connection]
            self._backlog[connection] = None  # Behind the others.
            session = connection.session
            is_full = soft and session.unsent_bytes + connection.held_bytes > soft
            if session.mode & WAITING or is_full:
                del self._backlog[connection]  # What it waits for brings it back: `_go_on`.
                continue
            if session.queue:
                self.runner.serve_queue(session, now_ms)
            elif connection.unparsed:
                self._parse_rest(connection, now_ms)
            else:
                self._after_unusual(connection)
            if session.out or session.mode & CLOSING:
                self._dirty.append(connection)
            if not session.queue and not connection.unparsed:
                self._backlog.pop(connection, None)
                self._catch_up(connection)

    def _parse_rest(self, connection: Connection, now_ms: int) -> None:
        """Serve a piece of what was put aside."""
        session = connection.session
        data = bytes(connection.unparsed[:READ_BYTES])
        del connection.unparsed[:READ_BYTES]
        commands = session.parser.feed(data)
        if commands:
            session.queue.extend(commands)
            self.runner.serve_queue(session, now_ms)
        if session.mode & CLOSING or session.parser.error is not None:
            connection.unparsed.clear()  # Nothing of it can be understood, or nobody asks for it.
        if not session.queue and not session.parser.is_at_rest:
            self._after_unusual(connection)

    def _catch_up(self, connection: Connection) -> None:
        """Nothing is left of what was received."""
        session = connection.session
        if session.mode & (WAITING | CLOSING):
            return
        if session.parser.error is not None:
            self._protocol_error(connection)
        elif connection.has_ended:
            if not _has_operations(session):
                session.close_after_reply("the client has ended")
                self._dirty.append(connection)
        else:
            self._listen_to(connection)

    def _listen_to(self, connection: Connection) -> None:
        """Read its socket again, if nothing speaks against it."""
        if (
            connection.events & READ
            or connection.has_ended
            or self._is_stopping
            or connection.session.mode & CLOSING
            or len(connection.unparsed) > self._unparsed_bytes_max
            or self.connections.get(connection.fd) is not connection
        ):
            return
        self._set_events(connection, connection.events | READ)

    def _stop_reading(self, connection: Connection) -> None:
        if connection.events & READ:
            self._set_events(connection, connection.events & ~READ)

    def _set_events(self, connection: Connection, events: int) -> None:
        connection.events = events
        self._poller.modify(connection.fd, events)

    # Sending

    def _send(self, connection: Connection, data: bytes) -> None:
        try:
            sent = connection.send(data)
        except BlockingIOError:
            sent = 0
        except OSError:
            self.close(connection)
            return
        self.bytes_out += sent
        if sent != len(data):
            self._keep(connection, memoryview(data)[sent:])
            self._wait_to_send(connection)
        elif connection.session.mode & CLOSING:
            self._end(connection)

    def _wait_to_send(self, connection: Connection) -> None:
        connection.progress_s = self.node.now_s
        self._set_events(connection, connection.events | WRITE)
        if connection.session.mode & CLOSING:
            self._stop_reading(connection)

    def _send_large(self, connection: Connection) -> None:
        """As `_send`, for replies of which one is large: they are not copied into one piece."""
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
            self._end(connection)

    def _keep(self, connection: Connection, rest: memoryview) -> None:
        session = connection.session
        connection.unsent.append(rest)
        session.unsent_bytes += len(rest)
        if session.unsent_bytes > session.unsent_peak_bytes:
            session.unsent_peak_bytes = session.unsent_bytes
        if session.mode & CLOSING:
            self._stop_reading(connection)
        # One of the oldest pieces may be a huge reply, which must be allowed to leave.
        beyond = session.unsent_bytes - max(map(len, islice(connection.unsent, 2)))
        config = self.node.config
        limits = config.client if session.subscriptions is None else config.pubsub
        if beyond > limits.output_buffer_bytes_max:
            self._close_for_output(connection)

    def _close_for_output(self, connection: Connection) -> None:
        session = connection.session
        self.node.log.warning(
            "client closed: it does not read its replies",
            client=session.peer,
            unsent_bytes=session.unsent_bytes,
        )
        self.close(connection)

    def _send_rest(self, connection: Connection) -> None:
        """The socket takes bytes again."""
        session = connection.session
        self._send_pieces(connection)
        if self.connections.get(connection.fd) is not connection:
            return
        if not connection.unsent:
            if session.mode & CLOSING and not session.out:
                self._end(connection)
                return
            self._set_events(connection, connection.events & ~WRITE)
            self._listen_to(connection)
        self._go_on(connection)

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
            self.close(connection)

    def _end(self, connection: Connection) -> None:
        """The session is over: close, or send and release first what it is owed."""
        if connection.unsent or connection.held:
            self._stop_reading(connection)
        else:
            self._close_gently(connection)

    def _close_gently(self, connection: Connection) -> None:
        """Close, and see to it that the client gets all that was sent.

        A socket that is closed with unread input is reset, and then the client may lose the rest.
        """
        with contextlib.suppress(OSError):
            for _ in range(READS_AT_THE_END):
                if not connection.recv(READ_BYTES):
                    break
        self.close(connection)

    # Replies that wait for the disk

    def _hold(self, position: int, dirty: list[Connection]) -> None:
        batch = []
        for connection in dirty:
            out = connection.session.out
            if out or connection.session.mode & CLOSING:
                data = b"".join(out)
                out.clear()
                self._count_held(connection, data)
                batch.append((connection, data))
        self._keep_held(position, batch)
        self._commit.want_sync()

    def _hold_data(self, position: int, connection: Connection, data: bytes) -> None:
        self._count_held(connection, data)
        self._keep_held(position, [(connection, data)])

    def _count_held(self, connection: Connection, data: bytes) -> None:
        connection.held += 1
        connection.held_bytes += len(data)
        soft = self.node.config.client.output_buffer_soft_bytes
        if connection.session.mode & CLOSING or (soft and connection.held_bytes > soft):
            self._stop_reading(connection)

    def _keep_held(self, position: int, batch: list[tuple[Connection, bytes]]) -> None:
        held = self._held
        last = held[-1][0] if held else 0
        if position >= last:
            held.append((position, batch))
            return
        # What stands at the end waits for room on the disk. Nobody else has to wait for that.
        before = [item for item in batch if item[0].held == 1]
        held.append((last, [item for item in batch if item[0].held > 1]))
        index = sum(position >= other for other, _ in held)
        held.insert(index, (position, before))

    def release(self, position: int) -> None:
        """The log is durable up to `position`: send what waited for that."""
        while self._held and self._held[0][0] <= position:
            for connection, data in self._held.popleft()[1]:
                connection.held -= 1
                connection.held_bytes -= len(data)
                if self.connections.get(connection.fd) is not connection:
                    continue
                if connection.unsent:
                    self._keep(connection, memoryview(data))
                else:
                    self._send(connection, data)
                if not connection.held and (
                    connection.session.queue or connection.unparsed or not connection.events & READ
                ):
                    self._listen_to(connection)
                    self._go_on(connection)
        self._wake()

    # The end of connections

    def close(self, connection: Connection) -> None:
        """Close a connection at once, with all that it is owed."""
        if self.connections.get(connection.fd) is not connection:
            return
        session = connection.session
        del self.connections[connection.fd]
        del self.by_session[session]
        self._backlog.pop(connection, None)
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

    def check_clients(self) -> None:
        """Once a second: idle clients, clients that do not read, and those that found no room."""
        config = self.node.config.client
        now_s = self.node.monotonic_s()
        for connection in list(self.connections.values()):
            session = connection.session
            if session.subscriptions is not None:
                if self._is_slow_subscriber(session, now_s):
                    self._close_for_output(connection)
                    continue
            elif connection.unsent and config.output_buffer_soft_bytes:
                is_over = (
                    session.unsent_bytes > config.output_buffer_soft_bytes
                    or session.queue
                    or connection.unparsed
                    or session.mode & CLOSING
                )
                if is_over and now_s - connection.progress_s > config.output_buffer_soft_s:
                    self._close_for_output(connection)
                    continue
            last_s = max(session.last_active_s, connection.progress_s)
            if (
                config.idle_timeout_s
                and now_s - last_s > config.idle_timeout_s
                and not session.mode & (WAITING | MONITORING)
                and session.subscriptions is None
            ):
                self.close(connection)
        if self._is_full:
            self._is_full = False
            for fd in self._listeners:
                self._poller.modify(fd, READ)

    def _is_slow_subscriber(self, session: Session, now_s: float) -> bool:
        """Whether a client with subscriptions has had too much to read for too long, as Redis counts it."""
        limits, own = self.node.config.pubsub, session.subscriptions
        if not limits.output_buffer_soft_bytes or (
            session.unsent_bytes <= limits.output_buffer_soft_bytes
        ):
            own.over_since_s = 0.0
        elif not own.over_since_s:
            own.over_since_s = now_s
        elif now_s - own.over_since_s >= limits.output_buffer_soft_s:
            return True
        return False

    def stop_listening(self) -> None:
        """Take no more clients, and no more of those that are here: what they have asked for is finished."""
        self._is_stopping = True
        for connection in self.connections.values():
            self._stop_reading(connection)
        for fd, sock in self._listeners.items():
            self._poller.unregister(fd)
            if sock.family == socket.AF_UNIX:
                with contextlib.suppress(OSError):
                    os.unlink(sock.getsockname())
            sock.close()
        self._listeners.clear()

    @property
    def has_unsent(self) -> bool:
        """Whether anything is under way: commands that do not wait for a time, and replies."""
        return (
            bool(self._held or self._backlog)
            or any(map(_has_operations, self.by_session))
            or any(connection.unsent for connection in self.connections.values())
            or any(
                w.fault is not None or w.slices is not None for w in self.runner.waiting.values()
            )
        )

    def close_all(self) -> None:
        for connection in list(self.connections.values()):
            self._close_gently(connection)
        self._poller.close()


def _has_operations(session: Session) -> bool:
    """Whether it waits for other nodes."""
    return session.is_grouped or (
        session.pipeline is not None and bool(session.pipeline.operations)
    )


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


def _is_loopback(host: str) -> bool:
    return host.startswith("127.") or host in ("::1", "::ffff:127.0.0.1")


def _shown(address: tuple[object, ...]) -> str:
    host, port = str(address[0]), address[1]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
