"""Runs commands: from what a session asked to replies in its `out`, over one shared context.

It reads no socket and awaits nothing. A plain session's commands take the short way in `serve`:
look up, call, commit, encode. Whatever else there is (AUTH missing, MULTI, MONITOR, pauses,
tracking, sliced commands, rows to fetch) takes the long way, which handles one command at a time
and can leave the session waiting; what follows then stays in the session's queue.

    serve(session, commands)      the front gives what it parsed
    resume(session)               the row that the session waited for is there
    advance(budget)               another slice for each sliced command
    expire_waits(now_s)           time-outs of blocked sessions

Handlers are atomic: they run to completion, and their effects are committed only when they
returned.

Core: synchronous; time comes from the clock that it was given.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator
from math import inf
from typing import TYPE_CHECKING, Any, Final

from engine.store import NO_PINS, PageFault
from respkv.command import TABLE, Command, Flag
from respkv.consistency import Request, Scope, unwrapped
from respkv.context import NO_EFFECTS, Context
from respkv.histogram import FINE_SHIFT
from respkv.lane import BULK_HEADS, CRLF, LENGTHS, OK_BYTES
from respkv.policy_effect import enforce
from respkv.reply import (
    NO_REPLY,
    NULL_ARRAY,
    OK,
    QUEUED,
    Pushed,
    Reply,
    ReplyError,
    Simple,
    encode,
)
from respkv.session import (
    CLOSING,
    IN_MULTI,
    LARGE_REPLY_BYTES,
    MONITORING,
    REPLY_OFF,
    REPLY_SKIP,
    SUBSCRIBED,
    TRACKING,
    UNAUTHENTICATED,
    WAITING,
    Block,
    Session,
    Transaction,
    Wait,
)
from respkv.unlogged import UNLOGGED

if TYPE_CHECKING:
    from respkv.dispatch import Dispatch
    from respkv.node import Node

NOAUTH: Final = ReplyError("NOAUTH Authentication required.")
EXECABORT: Final = ReplyError("EXECABORT Transaction discarded because of previous errors.")
EXECABORT_BECAUSE: Final = b"EXECABORT Transaction discarded because of: "
QUEUE_FULL: Final = ReplyError(
    "ERR the commands queued since MULTI take more than client.query_buffer_bytes_max: EXEC will discard them"
)
FIND: Final = TABLE.by_spelling.get
MONITOR_READS: Final = ReplyError("ERR Replica can't interact with the keyspace")
WHILE_SUBSCRIBED: Final = frozenset(
    ("SUBSCRIBE", "UNSUBSCRIBE", "PSUBSCRIBE", "PUNSUBSCRIBE", "SSUBSCRIBE", "SUNSUBSCRIBE", "PING", "QUIT", "RESET")
)  # fmt: skip
_OF_THE_KEYSPACE: Final = Flag.READONLY | Flag.WRITE | Flag.MAY_REPLICATE
# A run of commands in a lane is timed together: with a lower threshold each must be timed alone.
LANES_FROM_SLOW_NS: Final = 1_000_000
# A session's large replies in one tick: then it is the others' turn, and the client has to read.
REPLY_BYTES_PER_TICK: Final = 1 << 20


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
        self.waiting: dict[Session, Wait] = {}
        self.sliced: dict[Session, Wait] = {}  # Those of `waiting` that `advance` advances.
        self.is_paused: Callable[[Command, Session], bool] | None = (
            None  # CLIENT PAUSE, while it lasts.
        )
        self.paused: list[Session] = []
        self.is_stalled = False  # The store has no room in memory: writes wait for a flush.
        self._paused_until_s = 0.0
        self._skips: set[Session] = set()  # Whose CLIENT REPLY SKIP is being answered.
        self.commands_total = 0
        self.dispatch: Dispatch | None = None  # Of a member of a cluster.
        policies = node.policies
        self._ruling = policies if policies is not None and policies.touches_writes else None
        self._with = TABLE.commands["KV.WITH"]

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
        is_ruled = self._ruling is not None
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
        self.commands_total += done
        if done == count_all:
            session.last_command = command
        elif large_bytes < 0:
            session.last_command = command
            session.queue.extend(commands[done:])
        else:
            # The command that broke off starts anew on the long way, with the rest behind it.
            self._serve_slowly(session, commands[done:], now_ms)

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
            self.commands_total += count
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

    # The long way

    def serve_here(self, session: Session, commands: list[list[bytes]], now_ms: int) -> None:
        """Execute commands that need no other node; the session's queue stays behind them."""
        queue, session.queue = session.queue, deque()
        self._serve_slowly(session, commands, now_ms)
        queue.extendleft(reversed(session.queue))
        session.queue = queue

    def _serve_slowly(self, session: Session, commands: list[list[bytes]], now_ms: int) -> None:
        if session.mode & CLOSING:
            return
        session.queue.extend(commands)
        out = session.out
        budget = self.node.config.client.commands_per_tick_max
        pieces, large_bytes = len(out), REPLY_BYTES_PER_TICK
        while session.queue and not session.mode & (WAITING | CLOSING):
            args = session.queue.popleft()
            if not self._serve_one(session, args, now_ms):
                return
            budget -= 1
            large_bytes -= sum(map(len, out[pieces:]))
            pieces = len(out)
            if budget <= 0 or large_bytes < 0:
                return  # The front brings the session back in the next tick.

    def _serve_one(self, session: Session, args: list[bytes], now_ms: int) -> bool:
        """Check and run one command.

        False if it has to wait its turn (CLIENT PAUSE): it is first in the queue again.
        """
        try:
            command = TABLE.resolve(args)
        except ReplyError as error:
            error.__traceback__ = None
            found = TABLE.lookup(args)
            session.last_command = found
            self.refuse(session, found, error)
            return True
        if session.mode & UNAUTHENTICATED and Flag.NO_AUTH not in command.flags:
            self.refuse(session, command, NOAUTH)
            return True
        if command is self._with and not session.mode & IN_MULTI:
            try:
                request = self._request_of(args)
            except ReplyError as error:
                self.refuse(session, command, error)
                return True
            command, args = request.command, request.args
        if session.mode & MONITORING and command.flags & _OF_THE_KEYSPACE:
            self.refuse(session, command, MONITOR_READS)
            return True
        if session.is_cluster and command.keys and self.dispatch is not None:
            refusal = self.dispatch.redirection(session, command, args)
            if refusal is not None:
                self.refuse(session, command, refusal)
                return True
        refusal = self.node.refusal
        if refusal is not None and _writes(command, session):
            self.refuse(session, command, refusal)
            return True
        if session.mode & SUBSCRIBED and command.name not in WHILE_SUBSCRIBED:
            self.refuse(session, command, not_while_subscribed(command))
            return True
        if session.mode & IN_MULTI and Flag.CONTROL not in command.flags:
            self._queue(session, command, args)
            return True
        if (self.is_paused is not None and self.is_paused(command, session)) or (
            self.is_stalled and _writes(command, session)
        ):
            session.queue.appendleft(args)
            session.mode |= WAITING
            self.paused.append(session)
            return False
        self._execute(Wait(args, command, now_ms), session)
        return True

    def refuse(self, session: Session, command: Command | None, error: ReplyError) -> None:
        """A command that is not run: a transaction that it stood in is broken, or over if it is EXEC."""
        if command is not None and command.name == "EXEC":
            self.end_transaction(session)
            error = ReplyError(EXECABORT_BECAUSE + error.line.removeprefix(b"ERR "))
        if session.transaction is not None:
            session.transaction.is_broken = True
        if command is not None:
            command.rejected_calls += 1
        self.node.count_error(error)
        self._answer(session, error)

    def _queue(self, session: Session, command: Command, args: list[bytes]) -> None:
        if Flag.NO_MULTI in command.flags:
            self.refuse(
                session, command, ReplyError("ERR Command not allowed inside a transaction")
            )
            return
        transaction = session.transaction
        assert transaction is not None
        if not transaction.is_broken:  # Otherwise EXEC will not run it.
            transaction.add(command, args)
            if transaction.weight_bytes > self.node.config.client.query_buffer_bytes_max:
                transaction.commands.clear()
                self.refuse(session, command, QUEUE_FULL)
                return
        self._answer(session, QUEUED)

    def _execute(self, wait: Wait, session: Session) -> None:
        """Run a command from its start, or again after a fault."""
        command, args = wait.command, wait.args
        wait.fault = None
        unlogged = self.node.unlogged
        if unlogged is not None and unlogged.is_shown_by(command, args, session):
            self.refuse(session, command, UNLOGGED)
            return
        context = self.context
        context.bind(session, wait.now_ms)
        context.args = args
        started = self.clock_ns()
        session.last_command = command
        reply: Reply
        try:
            reply = self._call(command, args)
            if command.is_sliced:
                self._start_slices(session, wait, reply)
                return
            if self._ruling is not None and command.name != "EXEC":
                enforce(context, self._ruling, command, args)
            self._commit(session)
        except ReplyError as error:
            error.__traceback__ = None
            context.drop()
            command.failed_calls += 1
            self.node.count_error(error)
            reply = error
        except PageFault as fault:
            context.drop()
            wait.fault = fault
            self._wait(session, wait)
            self._fetch(session, wait, fault)
            return
        except Block as block:
            context.drop()
            wait.reply = block.reply
            wait.is_blocking = block.is_blocking
            if block.seconds is not None:
                # In whole nanoseconds, as `now_s` is: it is reached exactly, also where time stands still.
                wait.deadline_s = (self.clock_ns() + int(block.seconds * 1e9)) / 1e9
            self.show(session, command, args)
            self._wait(session, wait)
            return
        self._finish(session, wait, reply, started)

    def _fetch(self, session: Session, wait: Wait, fault: PageFault) -> None:
        """Have a page read in a thread; then the session goes on."""

        def resume(now_ms: int, failure: ReplyError | None) -> None:
            if session.wait is wait:
                self.resume(session, now_ms, failure)
                self.node.touch(session)

        self.node.fetch(fault, wait.pins, resume)
        if wait.slices is None:
            self.node.pages.read_ahead(session)

    def call(self, command: Command, args: list[bytes]) -> Reply:
        """Run a handler on the bound context to its end. Raises ReplyError, PageFault."""
        reply = self._call(command, args)
        if command.is_sliced:
            return self._run_slices(command, reply)
        if self._ruling is not None and command.name != "EXEC":
            enforce(self.context, self._ruling, command, args)
        return reply  # type: ignore[no-any-return]

    def _request_of(self, args: list[bytes]) -> Request:
        """What a KV.WITH asks of a node alone: each key is here and nowhere else. Raises ReplyError."""
        config = self.node.config
        return unwrapped(args, Scope.of(config), config.cluster.timeout_ms)

    def _call(self, command: Command, args: list[bytes]) -> Any:
        """Run a handler. What it did not mean to raise becomes an error reply, and nothing else changes."""
        assert command.handler is not None
        try:
            return command.handler(self.context, *args[2 if "|" in command.name else 1 :])
        except (ReplyError, PageFault, Block):
            raise
        except Exception as error:
            raise self.node.failure_of(command, error) from error

    def _commit(self, session: Session) -> None:
        context = self.context
        if context.effects or context.flushed:
            if self.node.tracking.is_active:
                self.node.tracking.invalidate(context.effects, context.flushed, session)
            context.commit()
        if context.messages:
            self.node.pubsub.say(context.take_messages())

    def _finish(
        self, session: Session, wait: Wait, reply: Reply, started: int, *, is_shown: bool = False
    ) -> None:
        """Count, log and answer a command. `is_shown`: the monitors have seen it."""
        command = wait.command
        elapsed = self.clock_ns() - started
        command.calls += 1
        command.elapsed_ns += elapsed
        command.histogram.add(elapsed)
        self.commands_total += 1
        session.last_command = command
        if elapsed >= self.node.slowlog.threshold_ns and Flag.SKIP_SLOWLOG not in command.flags:
            self.node.slowlog.add(session, command, wait.args, elapsed)
        if session.mode & TRACKING:
            self.node.tracking.remember(session, command, wait.args)
            self.node.tracking.end_command(session, command)
        self._answer(session, reply)
        self.node.tracking.flush()
        if not is_shown:
            self.show(session, command, wait.args)

    def show(self, session: Session, command: Command, args: list[bytes]) -> None:
        """To the monitors: after the command's reply, and nothing that only administrators do."""
        if self.node.monitors and not command.flags & (Flag.SKIP_MONITOR | Flag.ADMIN):
            self.node.feed_monitors(session, args)

    def _answer(self, session: Session, reply: Reply) -> None:
        """Send a reply, unless CLIENT REPLY says not to."""
        if type(reply) is Pushed:
            session.send(reply)
            reply = NO_REPLY
        if session.mode & (REPLY_OFF | REPLY_SKIP):
            if session in self._skips:  # CLIENT REPLY SKIP itself: the next one is skipped.
                self._skips.discard(session)
                return
            session.mode &= ~REPLY_SKIP
            return
        if reply is not NO_REPLY:
            session.send(reply)

    # Waiting

    def _wait(self, session: Session, wait: Wait) -> None:
        session.wait = wait
        session.mode |= WAITING
        self.waiting[session] = wait
        if wait.deadline_s is not None:
            self.node.ticker.wake()

    @property
    def next_deadline_s(self) -> float:
        """When the first wait or the pause ends, in monotonic seconds; infinity if none does."""
        ends = [w.deadline_s for w in self.waiting.values() if w.deadline_s is not None]
        if self.is_paused is not None:
            ends.append(self._paused_until_s)
        return min(ends, default=inf)

    def _go_on(self, session: Session, now_ms: int) -> None:
        """The session waits no longer: serve what queued up."""
        session.wait = None
        session.mode &= ~WAITING
        self.waiting.pop(session, None)
        self.sliced.pop(session, None)
        self.node.touch(session)
        if session.queue:
            self.serve_queue(session, now_ms)

    def resume(self, session: Session, now_ms: int, failure: ReplyError | None = None) -> None:
        """The row is in memory (or cannot be had): run the command again, at the time of its first run."""
        wait = session.wait
        if wait is None or wait.fault is None:
            return  # The session has ended.
        if wait.slices is not None:
            wait.fault = None
            if failure is not None:
                wait.slices.close()
                self._fail(session, wait, failure)
                self._go_on(session, now_ms)
            else:
                self.sliced[session] = wait
            return
        session.wait = None
        session.mode &= ~WAITING
        self.waiting.pop(session, None)
        if failure is not None:
            self._fail(session, wait, failure)
        else:
            self.context.store.pinned = wait.pins
            self._execute(wait, session)
            self.context.store.pinned = NO_PINS
        if session.wait is None:
            self._go_on(session, now_ms)

    def _fail(self, session: Session, wait: Wait, failure: ReplyError) -> None:
        """A command whose page cannot be read. An EXEC has run nothing, and its transaction is over."""
        if wait.command.name == "EXEC":
            self.end_transaction(session)
        wait.command.failed_calls += 1
        self.node.count_error(failure)
        self._finish(session, wait, failure, self.clock_ns())

    def unblock(self, session: Session, reply: Reply, now_ms: int) -> None:
        """End a blocked session's wait with the given answer (time-out, CLIENT UNBLOCK)."""
        wait = session.wait
        assert wait is not None
        self._finish(session, wait, reply, self.clock_ns(), is_shown=True)
        self._go_on(session, now_ms)

    def expire_waits(self, now_s: float, now_ms: int) -> None:
        """Answer the blocked sessions whose time is up, and end a pause."""
        self._end_pause_in_time(now_s, now_ms)
        for session, wait in list(self.waiting.items()):
            if wait.deadline_s is None or wait.deadline_s > now_s:
                continue
            if session.wait is wait:  # One that went on before it may have closed it.
                self.unblock(session, wait.reply, now_ms)

    # CLIENT's effects on other sessions, which take place after its reply

    def skip_next_reply(self, session: Session) -> None:
        """CLIENT REPLY SKIP."""
        session.mode |= REPLY_SKIP
        self._skips.add(session)

    def pause(self, seconds: float, *, only_writes: bool) -> None:
        """CLIENT PAUSE: a longer pause that is under way stays as long, a stricter one as strict."""
        until_s = self.clock_ns() / 1e9 + seconds
        if self.is_paused is not None:
            until_s = max(until_s, self._paused_until_s)
        self._paused_until_s = until_s
        if not only_writes or self.is_paused is None:
            self.is_paused = _pauses_writes if only_writes else _pauses_all
        self.node.ticker.wake()

    def end_pause(self) -> None:
        self._paused_until_s = 0.0
        self.node.ticker.wake()

    def unblock_later(self, session: Session, reply: Reply) -> None:
        """CLIENT UNBLOCK: the wait ends at once, with this answer."""
        assert session.wait is not None
        session.wait.deadline_s = 0.0
        session.wait.reply = reply
        self.node.ticker.wake()

    def _end_pause_in_time(self, now_s: float, now_ms: int) -> None:
        if self.is_paused is None or now_s < self._paused_until_s:
            return
        self.is_paused = None
        self.node.observe_changed()
        self.try_again(now_ms)

    def try_again(self, now_ms: int) -> None:
        """A pause, a stall or the reason for one has ended: those whose turn it still is not go on waiting."""
        sessions, self.paused = self.paused, []
        for session in sessions:
            self._go_on(session, now_ms)

    def forget(self, session: Session) -> None:
        """The session is gone."""
        wait = self.waiting.pop(session, None)
        self.sliced.pop(session, None)
        if wait is not None and wait.slices is not None:
            wait.slices.close()
        if session in self.paused:
            self.paused.remove(session)
        session.wait = None

    # Sliced commands

    def _start_slices(self, session: Session, wait: Wait, slices: Any) -> None:
        wait.slices = slices
        if self._advance_one(session, wait, self.clock_ns() + self.node.slice_ns):
            return
        self._wait(session, wait)
        if wait.fault is None:
            self.sliced[session] = wait

    def _advance_one(self, session: Session, wait: Wait, until_ns: int) -> bool:
        """Run slices until the time is up, at least one; True if the command has ended and was answered.

        What it writes it writes after its last slice: others use the same context between them.
        """
        slices: Generator[Any, Any, Reply] = wait.slices  # type: ignore[assignment]
        unlogged = self.node.unlogged
        if unlogged is not None and unlogged.is_shown_by(wait.command, wait.args, session):
            slices.close()
            self._fail(session, wait, UNLOGGED)
            return True
        started = self.clock_ns()
        context = self.context
        context.bind(session, wait.now_ms)
        context.store.pinned = pins = wait.pins
        reply: Reply
        try:
            while True:
                step = next(slices)
                assert not context.effects, wait.command.name
                if isinstance(step, PageFault):
                    wait.fault = step
                    self.sliced.pop(session, None)
                    self._fetch(session, wait, step)
                    break
                if pins:
                    pins.clear()  # It got on: it does not look at these again.
                if self.clock_ns() >= until_ns:
                    break
            wait.spent_ns += self.clock_ns() - started
            return False
        except StopIteration as stop:
            reply = stop.value
            self._commit(session)
        except ReplyError as error:
            error.__traceback__ = None
            context.drop()
            wait.command.failed_calls += 1
            self.node.count_error(error)
            reply = error
        except Exception as bug:
            context.drop()
            wait.command.failed_calls += 1
            reply = self.node.failure_of(wait.command, bug)
            self.node.count_error(reply)
        finally:
            context.store.pinned = NO_PINS
        self._finish(session, wait, reply, started - wait.spent_ns)
        return True

    @property
    def has_slices(self) -> bool:
        return bool(self.sliced)

    def advance(self, now_ms: int) -> None:
        """Give each sliced command that is not waiting for a page its slice of this tick.

        They share the time, so that a tick does not grow with their number.
        """
        sliced = list(self.sliced.items())
        share_ns = self.node.slice_ns // max(1, len(sliced))
        for session, wait in sliced:
            # One that went on before it may have closed it.
            if session.wait is wait and self._advance_one(
                session, wait, self.clock_ns() + share_ns
            ):
                self._go_on(session, now_ms)

    # Transactions

    def execute_transaction(self, context: Context) -> Reply:
        """EXEC's middle: check the watched keys, then run each command in a layer of its own. Raises PageFault.

        Nothing of the session changes before the last command has run, so that a fault can run it
        all again.
        """
        session = context.session
        transaction = session.transaction
        assert transaction is not None
        if transaction.is_broken:
            self.end_transaction(session)
            raise EXECABORT
        for (db, key), dots in session.watches.items():
            if context.dots(key, db=self.databases[db]) != dots:
                self.end_transaction(session)
                return NULL_ARRAY
        replies: list[Reply] = []
        errors: list[tuple[Command, ReplyError]] = []
        context.is_atomic = True
        context.below = {}
        db, mode, is_resp3 = session.db, session.mode, session.is_resp3
        own = session.subscriptions
        names = {} if own is None else {kind: list(each) for kind, each in own.names.items()}
        try:
            for command, args in transaction.commands:
                try:
                    replies.append(self._run_inside(context, command, args))
                    context.below.update(context.effects)
                except ReplyError as error:
                    error.__traceback__ = None
                    replies.append(error)
                    errors.append((command, error))
                except Block as block:
                    replies.append(block.reply)
                context.effects = {}
        except PageFault:
            session.db, session.mode, session.is_resp3 = db, mode, is_resp3
            self.node.pubsub.restore(session, names)
            raise
        finally:
            context.effects = context.below
            context.below = NO_EFFECTS
            context.is_atomic = False
        for command, failure in errors:
            command.failed_calls += 1
            self.node.count_error(failure)
        for command, args in transaction.commands:
            command.calls += 1
            self.show(session, command, args)
            if session.mode & TRACKING:
                self.node.tracking.remember(session, command, args)
        self.end_transaction(session)
        return replies

    def _run_inside(self, context: Context, command: Command, args: list[bytes]) -> Reply:
        context.db = context.databases[context.session.db]
        context.args = args
        return self.call(command, args)

    def _run_slices(self, command: Command, slices: Any) -> Reply:
        try:
            while True:
                step = next(slices)
                if isinstance(step, PageFault):
                    raise step
        except StopIteration as stop:
            return stop.value  # type: ignore[no-any-return]
        except (ReplyError, PageFault):
            raise
        except Exception as error:
            raise self.node.failure_of(command, error) from error

    @staticmethod
    def end_transaction(session: Session) -> None:
        """Forget the queue and the watches."""
        session.transaction = None
        session.watches.clear()
        session.mode &= ~IN_MULTI


def not_while_subscribed(command: Command) -> ReplyError:
    """What a RESP2 client hears that has subscriptions and asks for something else."""
    return ReplyError(
        f"ERR Can't execute '{command.name.lower()}': only (P|S)SUBSCRIBE / (P|S)UNSUBSCRIBE / PING / QUIT / RESET "
        "are allowed in this context"
    )


def _pauses_all(command: Command, session: Session) -> bool:
    return command.name != "CLIENT|UNPAUSE"


def _pauses_writes(command: Command, session: Session) -> bool:
    return _writes(command, session) or Flag.MAY_REPLICATE in command.flags


def _writes(command: Command, session: Session) -> bool:
    """Whether a command writes, or is an EXEC of one that does."""
    if command.name == "EXEC" and session.transaction is not None:
        return any(queued.is_write for queued, _ in session.transaction.commands)
    return command.is_write


def begin_transaction(session: Session) -> Reply:
    """MULTI."""
    if session.transaction is not None:
        raise ReplyError("ERR MULTI calls can not be nested")
    session.transaction = Transaction()
    session.mode |= IN_MULTI
    return OK


__all__ = ["Runner", "Simple", "begin_transaction"]
