"""The front: one task that serves every socket that is ready, in one batch per wake-up.

It takes no decision about commands: bytes go to a session's parser, whole commands to the runner,
and what sessions were told goes out at the end of the tick, after one write to the commit log. It
is the shell around `session.py` and `runner.py`, made of parts that each keep one thing:

    listener.py     who is let in
    connection.py   who is here
    output.py       what was sent and not taken
    held.py         what waits for the disk
    patience.py     who is closed for being idle, or for not reading

A tick: the epoll set says which sockets are ready; each is read once, parsed and executed; the log
is written; the replies leave. With fsync `always` the replies of a tick are held until the log is
durable up to the tick's end. Sessions with commands left over (a budget was reached, a wait ended)
are in the backlog, which is served in the next tick.

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

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

import trio

from respkv.connection import (
    LARGER_READS,
    READ_BYTES,
    SMALL_READ_BYTES,
    USUAL_READ_BYTES,
    Clients,
    Connection,
)
from respkv.held import HeldReplies
from respkv.listener import Listeners
from respkv.output import Output
from respkv.parser import may_be_lone, parse_lone
from respkv.patience import is_idle, reads_too_little
from respkv.poller import READ, WRITE
from respkv.reply import ReplyError
from respkv.session import CLOSING, WAITING, Session

if TYPE_CHECKING:
    from respkv.node import Node

UNPARSED_BYTES_MAX: Final = 16 << 20
BACKLOG_NS: Final = (
    2_000_000  # A tick's time for sessions that had commands left over; one may take longer.
)
# A tick of at least so many sockets is followed by another at once, for so long: trio's turn costs
# as much as two requests.
BUSY_EVENTS: Final = 8
BURST_NS: Final = 1_000_000


class Front:
    """The tick, and what it serves."""

    def __init__(self, node: Node) -> None:
        self.node = node
        self.runner = node.runner
        self._commit = node.commit
        self.clients = Clients(node)
        self.listeners = Listeners(node, self.clients)
        self.output = Output(node, self.clients)
        self.held = HeldReplies(node, self.clients)
        # What the tick asks for each socket and each reply, bound once.
        self.connections = self.clients.by_fd
        self.by_session = self.clients.by_session
        self._listening = self.listeners.by_fd
        self._backlog = self.clients.backlog
        self._send = self.output.send
        self._hold = self.held.hold
        self._hold_data = self.held.hold_data
        self._batches = self.held.batches
        self._long_way = node.runner.long_way
        self._sliced = self._long_way.sliced
        self._foreign: dict[int, Callable[[int], None]] = {}  # Sockets that are no clients.
        self._poller = node.poller
        self._is_asleep = False  # In `run`, until a socket is ready or `_wake` is called.
        self._dirty: list[Connection] = []
        self._lone: list[Connection] = []  # What they sent in this tick is in `_lone_chunks`.
        self._lone_chunks: list[bytes] = []
        self._is_stopping = False
        self.commands_per_tick_max = node.config.client.commands_per_tick_max
        self.ticks_total = 0
        self.bytes_in = 0

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
        batches = self._batches
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
            while len(events) >= BUSY_EVENTS and not batches and clock_ns() < until_ns:
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
        if self._sliced:
            self._long_way.advance(now_ms)
        self.finish(now_ms)

    def _serve_unusual(self, fd: int, mask: int, now_ms: int, now_s: float) -> None:
        """A new client, a socket that takes bytes again, or one that has failed."""
        listener = self._listening.get(fd)
        if listener is not None:
            self.listeners.accept(listener)
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
            self._commit.want_sync()
        else:
            send = self._send
            for connection in dirty:
                session = connection.session
                out = session.out
                if not out:
                    if session.mode & CLOSING:
                        self.output.end(connection)  # CLIENT REPLY OFF, then QUIT.
                    continue
                if session.has_large_reply and not connection.held and not connection.unsent:
                    self.output.send_large(connection)
                    continue
                data = b"".join(out)
                out.clear()
                if connection.held:
                    self._hold_data(position, connection, data)
                elif connection.unsent:
                    self.output.keep(connection, memoryview(data))
                else:
                    send(connection, data)

    def _wake(self) -> None:
        """Work may have come from another task than `run`."""
        if self._is_asleep and self._has_more:
            self._poller.wake()

    @property
    def _has_more(self) -> bool:
        """Whether another tick has something to do, whatever arrives."""
        peers = self.node.peers
        return bool(self._backlog) or bool(self._sliced) or (peers is not None and peers.has_work)

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
            self.clients.close(connection)
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
            self.clients.close(connection)
            return
        finally:
            buffer.release()
        if not count:
            self._end_of_input(connection)
            return
        self.bytes_in += count
        session.last_active_s = now_s
        connection.read_bytes = USUAL_READ_BYTES
        parser = session.parser
        must_wait = bool(connection.unsent or connection.unparsed or session.queue)
        stays = not must_wait and self.runner.only_puts(session, parser.before_bulk)
        commands = parser.bulk_filled(count, as_it_is=stays)
        if must_wait:
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
            self.clients.close(connection)

    def _put_aside(self, connection: Connection, data: bytes) -> None:
        """The client is behind: keep what it sent for later. It comes again with the backlog."""
        if connection.session.mode & CLOSING:
            return
        connection.unparsed += data
        connection.read_bytes = READ_BYTES
        if len(connection.unparsed) > self._unparsed_bytes_max:
            self.clients.stop_reading(connection)

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
            self.clients.close(connection)
            return
        connection.has_ended = True
        self.clients.stop_reading(connection)
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
        self.clients.watch(connection, connection.events | READ)

    # Sending

    def _send_rest(self, connection: Connection) -> None:
        """The socket takes bytes again."""
        if self.output.send_rest(connection):
            if not connection.unsent:
                self._listen_to(connection)
            self._go_on(connection)

    def release(self, position: int) -> None:
        """The log is durable up to `position`: send what waited for that."""
        batches = self._batches
        while batches and batches[0][0] <= position:
            for connection, data in batches.popleft()[1]:
                connection.held -= 1
                connection.held_bytes -= len(data)
                if self.connections.get(connection.fd) is not connection:
                    continue
                if connection.unsent:
                    self.output.keep(connection, memoryview(data))
                else:
                    self._send(connection, data)
                if not connection.held and (
                    connection.session.queue or connection.unparsed or not connection.events & READ
                ):
                    self._listen_to(connection)
                    self._go_on(connection)
        self._wake()

    # The end of connections

    def check_clients(self) -> None:
        """Once a second: idle clients, clients that do not read, and those that found no room."""
        config = self.node.config
        now_s = self.node.monotonic_s()
        for connection in list(self.connections.values()):
            if reads_too_little(connection, config, now_s):
                self.output.close_unread(connection)
            elif is_idle(connection, config, now_s):
                self.clients.close(connection)
        self.listeners.try_again()

    def stop_listening(self) -> None:
        """Take no more clients, and no more of those that are here: what they have asked for is finished."""
        self._is_stopping = True
        for connection in self.connections.values():
            self.clients.stop_reading(connection)
        self.listeners.close()

    @property
    def has_unsent(self) -> bool:
        """Whether anything is under way: commands that do not wait for a time, and replies."""
        return (
            bool(self._batches or self._backlog)
            or any(map(_has_operations, self.by_session))
            or any(connection.unsent for connection in self.connections.values())
            or any(
                w.fault is not None or w.slices is not None for w in self._long_way.waiting.values()
            )
        )

    def close_all(self) -> None:
        for connection in list(self.connections.values()):
            self.output.close_gently(connection)
        self._poller.close()


def _has_operations(session: Session) -> bool:
    """Whether it waits for other nodes."""
    return session.is_grouped or (
        session.pipeline is not None and bool(session.pipeline.operations)
    )
