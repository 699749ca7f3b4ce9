"""Runs commands: from what a session asked to replies in its `out`, over one shared context.

It reads no socket and awaits nothing. A plain session's commands take the short way, which is here:
look up, call, commit, encode; runs of plain GETs and SETs take lanes (`lane.py`). Whatever else
there is (AUTH missing, MULTI, MONITOR, pauses, tracking, sliced commands, rows to fetch) takes the
long way, one command at a time: `gate.py` says whether a command may run now, `long_way.py` runs it
and may leave the session waiting; what follows then stays in the session's queue. In a cluster
commands go through its dispatch, which comes back for those that need no other node.

    serve(session, commands)      the front gives what it parsed
    serve_lone(sessions, ...)     one command each of many sessions
    serve_queue(session)          what was left over
    expire_waits(now_s)           time-outs of blocked sessions, and the end of a pause

Handlers are atomic: they run to completion, and their effects are committed only when they
returned.

Core: synchronous; time comes from the clock that it was given.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from engine.store import PageFault
from respkv.command import TABLE
from respkv.context import Context
from respkv.gate import Gate
from respkv.histogram import FINE_SHIFT
from respkv.lane import BULK_HEADS, CRLF, LENGTHS, OK_BYTES
from respkv.long_way import LongWay
from respkv.reply import OK, ReplyError, encode
from respkv.session import CLOSING, LARGE_REPLY_BYTES, REPLY_BYTES_PER_TICK, Block, Session

if TYPE_CHECKING:
    from respkv.dispatch import Dispatch
    from respkv.node import Node

FIND: Final = TABLE.by_spelling.get
# A run of commands in a lane is timed together: with a lower threshold each must be timed alone.
LANES_FROM_SLOW_NS: Final = 1_000_000


class Runner:
    """One per node."""

    def __init__(self, node: Node, context: Context, clock_ns: Callable[[], int]) -> None:
        self.node = node
        self.context = context
        self.clock_ns = clock_ns  # Monotonic.
        self.databases = node.databases  # Changed in place by SWAPDB.
        self.slowlog = node.slowlog
        # A MONITOR, a CLIENT PAUSE, a client that tracks, a full disk: all take the long way.
        self.has_observers = False
        self.served_total = 0  # Commands, without those of the long way.
        self.dispatch: Dispatch | None = None  # Of a member of a cluster.
        self.long_way = LongWay(node, context, clock_ns, self.serve_queue)
        self.gate = Gate(node, self.long_way, clock_ns)
        self._serve_slowly = self.gate.serve
        policies = node.policies
        self._is_ruled = policies is not None and policies.touches_writes

    def lead_through(self, dispatch: Dispatch) -> None:
        """The node is a member of a cluster: commands go through its dispatch."""
        self.dispatch = self.gate.dispatch = dispatch

    # The short way

    def serve(self, session: Session, commands: list[list[bytes]], now_ms: int) -> None:
        """Execute commands of one session in order. Hot: see bench/serving.py.

        What is left over when a budget of the tick is used up stays in the session's queue.
        """
        if self.dispatch is not None:
            self.dispatch.serve(session, commands, now_ms)
            return
        if session.mode or self.has_observers or session.queue:
            self._serve_slowly(session, commands, now_ms)
            return
        context = self.context
        context.session = session
        context.db = self.databases[session.db]
        context.now_ms = now_ms
        find = FIND
        clock_ns = self.clock_ns
        out = session.out
        slow_ns = self.slowlog.threshold_ns
        large_bytes = REPLY_BYTES_PER_TICK
        is_ruled = self._is_ruled
        done = 0
        started = clock_ns()
        count_all = len(commands)
        while done < count_all:
            args = commands[done]
            command = find(args[0])
            if command is None or not command.is_plain:
                break
            if command.lane is not None and slow_ns >= LANES_FROM_SLOW_NS:
                count = command.lane(context, commands, done, out)
                if count:
                    done += count
                    now = clock_ns()
                    command.count(count, now - started)
                    started = now
                    continue
            if is_ruled and command.is_write:
                break
            count = len(args)
            arity = command.arity
            if count != arity and (arity >= 0 or count < -arity):
                break
            try:
                # A slice and a star cost three times as much as the two usual counts written out.
                if count == 2:
                    reply = command.handler(context, args[1])  # type: ignore[misc]
                elif count == 3:
                    reply = command.handler(context, args[1], args[2])  # type: ignore[misc]
                else:
                    reply = command.handler(context, *args[1:])  # type: ignore[misc]
            except ReplyError as error:
                error.__traceback__ = None  # Many errors are one object each: frames would gather.
                context.drop()
                out.append(b"-%b\r\n" % error.line)
                command.failed_calls += 1
                self.node.count_error(error)
            except (PageFault, Block):
                context.drop()
                break
            except Exception as error:
                context.drop()
                failure = self.node.failure_of(command, error)
                self.node.count_error(failure)
                out.append(b"-%b\r\n" % failure.line)
                command.failed_calls += 1
            else:
                if context.effects or context.flushed:
                    context.commit()
                if reply is OK:
                    out.append(OK_BYTES)
                elif type(reply) is bytes:
                    length = len(reply)
                    if length < LENGTHS:  # Pieces for the join at the tick's end: cheaper than `%`.
                        out += (BULK_HEADS[length], reply, CRLF)
                    else:
                        out += (b"$%d\r\n" % length, reply, CRLF)
                        large_bytes -= length
                        if length >= LARGE_REPLY_BYTES:
                            session.has_large_reply = True
                else:
                    encoded = encode(reply, resp3=session.is_resp3)
                    out.append(encoded)
                    large_bytes -= len(encoded)
            done += 1
            command.calls += 1
            now = clock_ns()
            elapsed = now - started
            started = now
            command.elapsed_ns += elapsed
            try:
                command.histogram.fine[elapsed >> FINE_SHIFT] += 1
            except IndexError:
                command.histogram.add_slow(elapsed)
            if elapsed >= slow_ns:
                self.slowlog.add(session, command, args, elapsed)
            if large_bytes < 0:
                break
        self.served_total += done
        if done == count_all:
            session.last_command = command
        elif large_bytes < 0:
            session.last_command = command
            session.queue.extend(commands[done:])
        else:
            # The command that broke off starts anew on the long way, with the rest behind it.
            self._serve_slowly(session, commands[done:], now_ms)

    def only_puts(self, session: Session, args: list[bytes]) -> bool:
        """Whether a command of `args` and one more would put that into a record now, and do nothing else with it."""
        return (
            len(args) == 2
            and args[0].upper() == b"SET"
            and self.dispatch is None
            and not (session.mode or session.queue or self.has_observers or self._is_ruled)
            and not self.context.replica.unsettled
        )

    def serve_lone(self, sessions: list[Session], commands: list[list[bytes]], now_ms: int) -> None:
        """Execute one plain command of each session, in order: runs of one name go through its lane.

        All sessions use the same database and protocol. Hot, as `serve`.
        """
        if self.dispatch is not None:
            self.dispatch.serve_lone(sessions, commands, now_ms)
            return
        context = self.context
        context.now_ms = now_ms
        is_usual = (
            not self.has_observers
            and self.dispatch is None
            and self.slowlog.threshold_ns >= LANES_FROM_SLOW_NS
        )
        done = 0
        replies: list[bytes] = []
        started = self.clock_ns()
        while done < len(sessions):
            session = sessions[done]
            command = FIND(commands[done][0])
            count = 0
            if is_usual and command is not None and command.lane is not None:
                context.session = session
                context.db = self.databases[session.db]
                count = command.lane(context, commands, done, replies)
            if not count:
                self.serve(session, [commands[done]], now_ms)
                done += 1
                started = self.clock_ns()
                continue
            assert command is not None
            if count == 1:
                session.out += replies
                session.last_command = command
            else:
                for session, reply in zip(sessions[done : done + count], replies, strict=True):
                    session.out.append(reply)
                    session.last_command = command
            replies.clear()
            done += count
            self.served_total += count
            now = self.clock_ns()
            command.count(count, now - started)
            started = now

    def serve_queue(self, session: Session, now_ms: int) -> None:
        """Execute what waits in the session's queue, as far as the budget of a tick goes."""
        queue = session.queue
        budget = self.node.config.client.commands_per_tick_max
        if len(queue) <= budget:
            commands = list(queue)
            queue.clear()
            self.serve(session, commands, now_ms)
            return
        commands = [queue.popleft() for _ in range(budget)]
        session.queue = deque()
        self.serve(session, commands, now_ms)
        if not session.mode & CLOSING:
            queue.extendleft(reversed(session.queue))
            session.queue = queue

    # Sessions that wait

    @property
    def commands_total(self) -> int:
        """How many commands were executed."""
        return self.served_total + self.long_way.commands_total

    def reset_stats(self) -> None:
        self.served_total = self.long_way.commands_total = 0

    @property
    def next_deadline_s(self) -> float:
        """When the first wait or the pause ends, in monotonic seconds; infinity if none does."""
        return min(self.long_way.next_deadline_s, self.gate.next_deadline_s)

    def expire_waits(self, now_s: float, now_ms: int) -> None:
        """Answer the blocked sessions whose time is up, and end a pause."""
        self.gate.end_pause_in_time(now_s, now_ms)
        self.long_way.expire_waits(now_s, now_ms)

    def forget(self, session: Session) -> None:
        """The session is gone."""
        self.long_way.forget(session)
        self.gate.forget(session)
