"""The front: one task that serves every socket that is ready, in one batch per wake-up.

It takes no decision about commands: bytes go to a session's parser, whole commands to the runner,
and what sessions were told goes out at the end of the tick, after one write to the commit log. It
is the shell around `session.py` and `runner.py`.

A tick: the epoll set says which sockets are ready; each is read once, parsed and executed; the log
is written; the replies leave. With fsync `always` the replies of a tick wait in `_held` until the
log is durable up to the tick's end. Sessions with commands left over (a budget was reached, a wait
ended) are served again in the next tick.

Backpressure, per client: beyond `output_buffer_soft_bytes` of unread replies nothing more is
executed for it until it reads; if it reads nothing for `output_buffer_soft_s` it is closed, and
beyond `output_buffer_bytes_max` at once (one reply may be larger). Beyond `QUEUE_BYTES_MAX` of
commands that wait to be executed, its socket is not read.

A trio stream per connection costs three times as much per request; the loop below is measured by
bench/serving.py.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
from collections import deque
from typing import TYPE_CHECKING, Final

import trio

from respkv.reply import ReplyError
from respkv.session import CLOSING, WAITING, Session

if TYPE_CHECKING:
    from respkv.node import Node

READ_BYTES: Final = 65536
SMALL_READ_BYTES: Final = 4096
QUEUE_BYTES_MAX: Final = 16 << 20
ACCEPTS_PER_TICK: Final = 128
READ: Final = select.EPOLLIN
READ_WRITE: Final = select.EPOLLIN | select.EPOLLOUT
TOO_MANY_CLIENTS: Final = b"-ERR max number of clients reached\r\n"
PROTECTED: Final = (
    b"-DENIED respkv is in protected mode: no password is set, so it serves only clients of its own machine. "
    b"Set client.requirepass, or client.protected_mode = false if the network is trusted, and restart.\r\n"
)


class Connection:
    """A socket, its session, and what the kernel did not take yet."""

    __slots__ = (
        "events", "fd", "held", "progress_s", "queued_bytes", "read_bytes",
        "recv", "recv_into", "send", "session", "sock", "unsent",
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
        self.queued_bytes = 0
        self.read_bytes = SMALL_READ_BYTES  # 0: the parser wants the bytes in a buffer of its own.
        self.progress_s = now_s  # When the client last took a byte.
        self.held = 0  # Replies of it that are in `_held`: later ones must go there too.


class Front:
    """Listeners, connections and the tick."""

    def __init__(self, node: Node) -> None:
        self.node = node
        self.runner = node.runner
        self.connections: dict[int, Connection] = {}
        self.by_session: dict[Session, Connection] = {}
        self._listeners: dict[int, socket.socket] = {}
        self._epoll = select.epoll()
        self._dirty: list[Connection] = []
        self._backlog: dict[Connection, None] = {}
        self._held: deque[tuple[int, list[tuple[Connection, bytes]]]] = deque()
        self._next_id = 1
        self._is_stopping = False
        self.commands_per_tick_max = node.config.client.commands_per_tick_max
        self.connections_total = 0
        self.rejected_total = 0
        self.ticks_total = 0
        self.bytes_in = 0
        self.bytes_out = 0

    # Listening

    def listen_tcp(self, host: str, port: int, backlog: int) -> int:
        """Listen on one address, and return the port (it was chosen if 0 was asked for). Raises OSError."""
        info = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        sock = socket.socket(info[0], socket.SOCK_STREAM)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if info[0] == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        self._listen(sock, info[4], backlog)
        return int(sock.getsockname()[1])

    def listen_unix(self, path: str, mode: str, backlog: int) -> None:
        """Listen on a Unix socket; a stale one of the same path is replaced. Raises OSError."""
        with contextlib.suppress(FileNotFoundError):
            probe = socket.socket(socket.AF_UNIX)
            try:
                probe.connect(path)
            except ConnectionRefusedError:
                os.unlink(path)
            else:
                raise OSError(f"{path} is in use")
            finally:
                probe.close()
        sock = socket.socket(socket.AF_UNIX)
        self._listen(sock, path, backlog)
        if mode:
            os.chmod(path, int(mode, 8))

    def _listen(self, sock: socket.socket, address: object, backlog: int) -> None:
        try:
            sock.bind(address)  # type: ignore[arg-type]
            sock.listen(backlog)
        except OSError:
            sock.close()
            raise
        sock.setblocking(False)
        self._listeners[sock.fileno()] = sock
        self._epoll.register(sock.fileno(), select.EPOLLIN)

    def _accept(self, listener: socket.socket) -> None:
        client = self.node.config.client
        for _ in range(ACCEPTS_PER_TICK):
            try:
                sock, address = listener.accept()
            except BlockingIOError:
                return
            except OSError as error:  # Out of descriptors: the kernel keeps the rest waiting.
                self.node.log.warning("cannot accept a client", reason=str(error))
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
        now_s = self.node.monotonic_s()
        session = Session(
            self._next_id,
            peer,
            local,
            self.node.limits,
            now_s,
            authenticated=not config.requirepass,
        )
        self._next_id += 1
        session.is_unix = is_unix
        connection = Connection(sock, session, now_s)
        session.fd = connection.fd
        self.connections[connection.fd] = connection
        self.by_session[session] = connection
        self.connections_total += 1
        self._epoll.register(connection.fd, READ)

    # The loop

    async def run(self) -> None:
        """Serve until cancelled."""
        epoll = self._epoll
        while True:
            if self._backlog or self.runner.has_slices:
                await trio.lowlevel.checkpoint()
            else:
                await trio.lowlevel.wait_readable(epoll.fileno())
            self.tick(epoll.poll(0))

    def tick(self, events: list[tuple[int, int]]) -> None:
        """Serve what is ready, then write the log and send."""
        self.ticks_total += 1
        now_ms = self.node.begin_tick()
        now_s = self.node.now_s
        connections = self.connections
        if not self.node.store.is_stalled or self._is_stopping:
            read = self._read
            for fd, mask in events:
                connection = connections.get(fd)
                if mask == READ and connection is not None:
                    read(connection, now_ms, now_s)
                else:
                    self._serve_unusual(fd, mask, now_ms, now_s)
            if self._backlog:
                self._serve_backlog(now_ms)
            if self.runner.waiting:
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
            return  # Closed earlier in this tick.
        if mask & select.EPOLLOUT:
            self._send_rest(connection)
        if mask & ~select.EPOLLOUT and self.connections.get(fd) is connection:
            self._read(connection, now_ms, now_s)

    def finish(self, now_ms: int) -> None:
        """Everything that was executed goes to the log in one write, then the replies leave."""
        for session in self.node.take_touched():
            connection = self.by_session.get(session)
            if connection is not None:
                self._dirty.append(connection)
                if session.queue and not session.mode & WAITING:
                    self._backlog[connection] = None
        position = self.node.write_log()
        dirty = self._dirty
        if not dirty:
            return
        self._dirty = []
        if position > self.node.releasable:
            self._hold(position, dirty)
        else:
            for connection in dirty:
                session = connection.session
                out = session.out
                if not out:
                    continue
                data = b"".join(out)
                out.clear()
                if connection.held:
                    self._hold_data(position, connection, data)
                elif connection.unsent:
                    self._keep(connection, memoryview(data))
                else:
                    self._send(connection, data)

    def _read(self, connection: Connection, now_ms: int, now_s: float) -> None:
        session = connection.session
        parser = session.parser
        size = connection.read_bytes
        try:
            if size:
                data = connection.recv(size)
                count = len(data)
            else:
                buffer = parser.bulk_buffer()
                assert buffer is not None
                count = connection.recv_into(buffer)
                buffer.release()
        except BlockingIOError:
            return
        except OSError:
            self.close(connection)
            return
        if not count:
            self.close(connection)
            return
        self.bytes_in += count
        session.last_active_s = now_s
        commands = parser.feed(data) if size else parser.bulk_filled(count)
        if commands and not connection.unsent and not session.queue:
            if len(commands) > self.commands_per_tick_max:
                session.queue.extend(commands[self.commands_per_tick_max :])
                del commands[self.commands_per_tick_max :]
            self.runner.serve(session, commands, now_ms)
        elif commands:
            session.queue.extend(commands)
            self._throttle(connection, count)
        # A large chunk likely has a successor: small reads are cheaper, large ones fewer.
        if count == size:
            connection.read_bytes = READ_BYTES
        elif size != SMALL_READ_BYTES:
            connection.read_bytes = SMALL_READ_BYTES
        if session.queue or not parser.is_at_rest:  # An error is no rest.
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
        if parser.is_in_bulk:
            connection.read_bytes = 0  # The next read goes straight into the argument.
        if not session.queue and not parser.is_in_bulk:
            self._read_on(connection)
        if session.queue:
            if not session.mode & WAITING:
                self._backlog[connection] = None
        elif parser.error is not None:
            self._protocol_error(connection)
        if parser.buffered_bytes > self.node.config.client.query_buffer_bytes_max:
            self.node.log.warning("client closed: query buffer limit", client=session.peer)
            self.close(connection)

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
        for connection in list(self._backlog):
            session = connection.session
            if session.mode & WAITING or not session.queue:
                del self._backlog[connection]
            elif not soft or session.unsent_bytes <= soft:
                commands = list(session.queue)
                session.queue.clear()
                self.runner.serve(session, commands, now_ms)
            else:
                del self._backlog[connection]  # `_send_rest` brings it back.
                continue
            if session.out or session.mode & CLOSING:
                self._dirty.append(connection)
            if not session.queue:
                connection.queued_bytes = 0
                self._listen_to(connection)
                self._backlog.pop(connection, None)
                if session.parser.error is not None and not session.mode & (CLOSING | WAITING):
                    self._protocol_error(connection)

    def _throttle(self, connection: Connection, count: int) -> None:
        """Stop reading from a client whose commands pile up."""
        connection.queued_bytes += count
        if connection.queued_bytes > QUEUE_BYTES_MAX and connection.events & READ:
            self._set_events(connection, connection.events & ~READ)

    def _listen_to(self, connection: Connection) -> None:
        if not connection.events & READ and connection.fd in self.connections:
            self._set_events(connection, connection.events | READ)

    def _set_events(self, connection: Connection, events: int) -> None:
        connection.events = events
        self._epoll.modify(connection.fd, events)

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
            connection.progress_s = self.node.now_s
            self._keep(connection, memoryview(data)[sent:])
            self._set_events(connection, connection.events | select.EPOLLOUT)
        elif connection.session.mode & CLOSING:
            self.close(connection)

    def _keep(self, connection: Connection, rest: memoryview) -> None:
        session = connection.session
        connection.unsent.append(rest)
        session.unsent_bytes += len(rest)
        if session.unsent_bytes > session.unsent_peak_bytes:
            session.unsent_peak_bytes = session.unsent_bytes
        # The oldest piece may be one huge reply, which must be allowed to leave.
        beyond = session.unsent_bytes - len(connection.unsent[0])
        if beyond > self.node.config.client.output_buffer_bytes_max:
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
        unsent = connection.unsent
        try:
            while unsent:
                piece = unsent[0]
                sent = connection.send(piece)
                connection.progress_s = self.node.now_s
                session.unsent_bytes -= sent
                self.bytes_out += sent
                if sent < len(piece):
                    unsent[0] = piece[sent:]
                    break
                unsent.popleft()
        except BlockingIOError:
            pass
        except OSError:
            self.close(connection)
            return
        if not unsent:
            if session.mode & CLOSING and not session.out:
                self.close(connection)
                return
            self._set_events(connection, connection.events & ~select.EPOLLOUT)
        if session.queue and not session.mode & WAITING:
            self._backlog[connection] = None

    # Replies that wait for the disk

    def _hold(self, position: int, dirty: list[Connection]) -> None:
        batch = []
        for connection in dirty:
            out = connection.session.out
            if out:
                connection.held += 1
                batch.append((connection, b"".join(out)))
                out.clear()
            elif connection.session.mode & CLOSING:
                connection.held += 1
                batch.append((connection, b""))
        self._held.append((position, batch))
        self.node.want_sync()

    def _hold_data(self, position: int, connection: Connection, data: bytes) -> None:
        connection.held += 1
        self._held.append((position, [(connection, data)]))

    def release(self, position: int) -> None:
        """The log is durable up to `position`: send what waited for that."""
        while self._held and self._held[0][0] <= position:
            for connection, data in self._held.popleft()[1]:
                connection.held -= 1
                if self.connections.get(connection.fd) is not connection:
                    continue
                if connection.unsent:
                    self._keep(connection, memoryview(data))
                else:
                    self._send(connection, data)

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
            self._epoll.unregister(connection.fd)
        connection.sock.close()
        connection.unsent.clear()
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
        """Once a second: idle clients, and clients that do not read."""
        config = self.node.config.client
        now_s = self.node.monotonic_s()
        for connection in list(self.connections.values()):
            session = connection.session
            if connection.unsent and config.output_buffer_soft_bytes:
                is_over = session.unsent_bytes > config.output_buffer_soft_bytes or session.queue
                if is_over and now_s - connection.progress_s > config.output_buffer_soft_s:
                    self._close_for_output(connection)
                    continue
            if (
                config.idle_timeout_s
                and now_s - session.last_active_s > config.idle_timeout_s
                and not session.mode & WAITING
            ):
                self.close(connection)

    def stop_listening(self) -> None:
        """Take no more clients."""
        self._is_stopping = True
        for fd, sock in self._listeners.items():
            self._epoll.unregister(fd)
            if sock.family == socket.AF_UNIX:
                with contextlib.suppress(OSError):
                    os.unlink(sock.getsockname())
            sock.close()
        self._listeners.clear()

    @property
    def has_unsent(self) -> bool:
        return bool(self._held) or any(c.unsent for c in self.connections.values())

    def close_all(self) -> None:
        for connection in list(self.connections.values()):
            self.close(connection)
        self._epoll.close()


def _is_loopback(host: str) -> bool:
    return host.startswith("127.") or host in ("::1", "::ffff:127.0.0.1")


def _shown(address: tuple[object, ...]) -> str:
    host, port = str(address[0]), address[1]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
