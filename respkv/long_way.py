"""The long way of a command that may run: from its first run to its reply, with whatever comes between.

    execute(wait, session)        run it: it is answered then, or its session waits
    resume(session)               the row that the session waited for is there
    advance(now_ms)               another slice for each sliced command
    expire_waits(now_s)           time-outs of blocked sessions

Each command is counted, logged, tracked and shown to monitors by itself. A handler runs to
completion, and its effects are committed only when it returned; one that meets a row that is not
in memory runs again from its start. While a session waits (`Wait` tells for what), what it sends
stays in its queue; when it goes on the runner serves that.

Whether a command may run is not asked here: `gate.py` has done that.

Core: synchronous; time comes from the clock that it was given.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from math import inf
from typing import TYPE_CHECKING, Any

from engine.store import NO_PINS, PageFault
from respkv.command import Command, Flag
from respkv.context import Context
from respkv.policy_effect import enforce
from respkv.reply import NO_REPLY, Pushed, Reply, ReplyError
from respkv.session import (
    REPLY_OFF,
    REPLY_SKIP,
    TRACKING,
    WAITING,
    Block,
    Session,
    Wait,
)
from respkv.transaction import EXECABORT_BECAUSE, end_transaction
from respkv.unlogged import UNLOGGED

if TYPE_CHECKING:
    from respkv.node import Node

ServeQueue = Callable[[Session, int], None]  # What a session's queue has; `now_ms`.


class LongWay:
    """One per runner, over its context."""

    def __init__(
        self,
        node: Node,
        context: Context,
        clock_ns: Callable[[], int],
        serve_queue: ServeQueue,
    ) -> None:
        self.node = node
        self.context = context
        self.clock_ns = clock_ns  # Monotonic.
        self.waiting: dict[Session, Wait] = {}
        self.sliced: dict[Session, Wait] = {}  # Those of `waiting` that `advance` advances.
        self.commands_total = 0
        self._serve_queue = serve_queue
        self._skips: set[Session] = set()  # Whose CLIENT REPLY SKIP is being answered.
        policies = node.policies
        self._ruling = policies if policies is not None and policies.touches_writes else None

    def execute(self, wait: Wait, session: Session) -> None:
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
        self.answer(session, reply)
        self.node.tracking.flush()
        if not is_shown:
            self.show(session, command, wait.args)

    def show(self, session: Session, command: Command, args: list[bytes]) -> None:
        """To the monitors: after the command's reply, and nothing that only administrators do."""
        if self.node.monitors and not command.flags & (Flag.SKIP_MONITOR | Flag.ADMIN):
            self.node.feed_monitors(session, args)

    def answer(self, session: Session, reply: Reply) -> None:
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

    def refuse(self, session: Session, command: Command | None, error: ReplyError) -> None:
        """A command that is not run: a transaction that it stood in is broken, or over if it is EXEC."""
        if command is not None and command.name == "EXEC":
            end_transaction(session)
            error = ReplyError(EXECABORT_BECAUSE + error.line.removeprefix(b"ERR "))
        if session.transaction is not None:
            session.transaction.is_broken = True
        if command is not None:
            command.rejected_calls += 1
        self.node.count_error(error)
        self.answer(session, error)

    def skip_next_reply(self, session: Session) -> None:
        """CLIENT REPLY SKIP."""
        session.mode |= REPLY_SKIP
        self._skips.add(session)

    # Waiting

    def _wait(self, session: Session, wait: Wait) -> None:
        session.wait = wait
        session.mode |= WAITING
        self.waiting[session] = wait
        if wait.deadline_s is not None:
            self.node.ticker.wake()

    @property
    def next_deadline_s(self) -> float:
        """When the first wait ends, in monotonic seconds; infinity if none does."""
        return min(
            (w.deadline_s for w in self.waiting.values() if w.deadline_s is not None), default=inf
        )

    def go_on(self, session: Session, now_ms: int) -> None:
        """The session waits no longer: serve what queued up."""
        session.wait = None
        session.mode &= ~WAITING
        self.waiting.pop(session, None)
        self.sliced.pop(session, None)
        self.node.touch(session)
        if session.queue:
            self._serve_queue(session, now_ms)

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
                self.go_on(session, now_ms)
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
            self.execute(wait, session)
            self.context.store.pinned = NO_PINS
        if session.wait is None:
            self.go_on(session, now_ms)

    def _fail(self, session: Session, wait: Wait, failure: ReplyError) -> None:
        """A command whose page cannot be read. An EXEC has run nothing, and its transaction is over."""
        if wait.command.name == "EXEC":
            end_transaction(session)
        wait.command.failed_calls += 1
        self.node.count_error(failure)
        self._finish(session, wait, failure, self.clock_ns())

    def unblock(self, session: Session, reply: Reply, now_ms: int) -> None:
        """End a blocked session's wait with the given answer (time-out, CLIENT UNBLOCK)."""
        wait = session.wait
        assert wait is not None
        self._finish(session, wait, reply, self.clock_ns(), is_shown=True)
        self.go_on(session, now_ms)

    def unblock_later(self, session: Session, reply: Reply) -> None:
        """CLIENT UNBLOCK: the wait ends at once, with this answer."""
        assert session.wait is not None
        session.wait.deadline_s = 0.0
        session.wait.reply = reply
        self.node.ticker.wake()

    def expire_waits(self, now_s: float, now_ms: int) -> None:
        """Answer the blocked sessions whose time is up."""
        for session, wait in list(self.waiting.items()):
            if wait.deadline_s is None or wait.deadline_s > now_s:
                continue
            if session.wait is wait:  # One that went on before it may have closed it.
                self.unblock(session, wait.reply, now_ms)

    def forget(self, session: Session) -> None:
        """The session is gone."""
        wait = self.waiting.pop(session, None)
        self.sliced.pop(session, None)
        if wait is not None and wait.slices is not None:
            wait.slices.close()
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
                self.go_on(session, now_ms)
