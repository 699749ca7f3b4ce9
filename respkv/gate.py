"""What may stand in a command's way before it runs.

A session whose mode is not plain, or a node with observers, has its commands taken here one at a time. A
command may be refused (no AUTH, a full disk, a transaction that is broken, a slot of another node),
queued (MULTI), or held back: by CLIENT PAUSE, and writes by a store that has no room in memory.
Then the session waits its turn, with the command first in its queue. What passes goes the long way
(`long_way.py`). Nothing is run here.

Core: synchronous; time comes from the clock that it was given.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from math import inf
from typing import TYPE_CHECKING, Final

from respkv.command import TABLE, Command, Flag
from respkv.consistency import Request, Scope, unwrapped
from respkv.long_way import LongWay
from respkv.reply import QUEUED, ReplyError
from respkv.session import (
    CLOSING,
    IN_MULTI,
    MONITORING,
    REPLY_BYTES_PER_TICK,
    SUBSCRIBED,
    UNAUTHENTICATED,
    WAITING,
    Session,
    Wait,
)

if TYPE_CHECKING:
    from respkv.dispatch import Dispatch
    from respkv.node import Node

NOAUTH: Final = ReplyError("NOAUTH Authentication required.")
QUEUE_FULL: Final = ReplyError(
    "ERR the commands queued since MULTI take more than client.query_buffer_bytes_max: EXEC will discard them"
)
MONITOR_READS: Final = ReplyError("ERR Replica can't interact with the keyspace")
WHILE_SUBSCRIBED: Final = frozenset(
    ("SUBSCRIBE", "UNSUBSCRIBE", "PSUBSCRIBE", "PUNSUBSCRIBE", "SSUBSCRIBE", "SUNSUBSCRIBE", "PING", "QUIT", "RESET")
)  # fmt: skip
_OF_THE_KEYSPACE: Final = Flag.READONLY | Flag.WRITE | Flag.MAY_REPLICATE


class Gate:
    """One per runner."""

    def __init__(self, node: Node, long_way: LongWay, clock_ns: Callable[[], int]) -> None:
        self.node = node
        self.clock_ns = clock_ns  # Monotonic.
        self.dispatch: Dispatch | None = None  # Of a member of a cluster.
        self.is_paused: Callable[[Command, Session], bool] | None = (
            None  # CLIENT PAUSE, while it lasts.
        )
        self.is_stalled = False  # The store has no room in memory: writes wait for a flush.
        self.held_back: list[Session] = []  # Whose next command has to wait its turn.
        self._paused_until_s = 0.0
        self._long_way = long_way
        # Bound once, as what each command passes.
        self._execute = long_way.execute
        self._answer = long_way.answer
        self._refuse = long_way.refuse
        self._with = TABLE.commands["KV.WITH"]

    def serve_here(self, session: Session, commands: list[list[bytes]], now_ms: int) -> None:
        """Execute commands that need no other node; the session's queue stays behind them."""
        queue, session.queue = session.queue, deque()
        self.serve(session, commands, now_ms)
        queue.extendleft(reversed(session.queue))
        session.queue = queue

    def serve(self, session: Session, commands: list[list[bytes]], now_ms: int) -> None:
        """Execute commands behind those that the session has in its queue, as far as the budget of a tick goes."""
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
            self._refuse(session, found, error)
            return True
        if session.mode & UNAUTHENTICATED and Flag.NO_AUTH not in command.flags:
            self._refuse(session, command, NOAUTH)
            return True
        if command is self._with and not session.mode & IN_MULTI:
            try:
                request = self._request_of(args)
            except ReplyError as error:
                self._refuse(session, command, error)
                return True
            command, args = request.command, request.args
        if session.mode & MONITORING and command.flags & _OF_THE_KEYSPACE:
            self._refuse(session, command, MONITOR_READS)
            return True
        if session.is_cluster and command.keys and self.dispatch is not None:
            refusal = self.dispatch.redirection(session, command, args)
            if refusal is not None:
                self._refuse(session, command, refusal)
                return True
        refusal = self.node.refusal
        if refusal is not None and _writes(command, session):
            self._refuse(session, command, refusal)
            return True
        if session.mode & SUBSCRIBED and command.name not in WHILE_SUBSCRIBED:
            self._refuse(session, command, not_while_subscribed(command))
            return True
        if session.mode & IN_MULTI and Flag.CONTROL not in command.flags:
            self._queue(session, command, args)
            return True
        if (self.is_paused is not None and self.is_paused(command, session)) or (
            self.is_stalled and _writes(command, session)
        ):
            session.queue.appendleft(args)
            session.mode |= WAITING
            self.held_back.append(session)
            return False
        self._execute(Wait(args, command, now_ms), session)
        return True

    def _queue(self, session: Session, command: Command, args: list[bytes]) -> None:
        if Flag.NO_MULTI in command.flags:
            self._refuse(
                session, command, ReplyError("ERR Command not allowed inside a transaction")
            )
            return
        transaction = session.transaction
        assert transaction is not None
        if not transaction.is_broken:  # Otherwise EXEC will not run it.
            transaction.add(command, args)
            if transaction.weight_bytes > self.node.config.client.query_buffer_bytes_max:
                transaction.commands.clear()
                self._refuse(session, command, QUEUE_FULL)
                return
        self._answer(session, QUEUED)

    def _request_of(self, args: list[bytes]) -> Request:
        """What a KV.WITH asks of a node alone: each key is here and nowhere else. Raises ReplyError."""
        config = self.node.config
        return unwrapped(args, Scope.of(config), config.cluster.timeout_ms)

    # Pauses and stalls

    @property
    def next_deadline_s(self) -> float:
        """When the pause ends, in monotonic seconds; infinity if there is none."""
        return inf if self.is_paused is None else self._paused_until_s

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

    def end_pause_in_time(self, now_s: float, now_ms: int) -> None:
        """End a pause whose time is up."""
        if self.is_paused is None or now_s < self._paused_until_s:
            return
        self.is_paused = None
        self.node.observe_changed()
        self.try_again(now_ms)

    def try_again(self, now_ms: int) -> None:
        """A pause, a stall or the reason for one has ended: those whose turn it still is not go on waiting."""
        sessions, self.held_back = self.held_back, []
        for session in sessions:
            self._long_way.go_on(session, now_ms)

    def forget(self, session: Session) -> None:
        """The session is gone."""
        if session in self.held_back:
            self.held_back.remove(session)


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
