"""CLIENT TRACKING: which client may have cached which key, and telling it when the key has changed.

It caches nothing itself. In the default mode every key that a tracking client reads is remembered
with the client, until one message has told it that the key changed. In broadcasting mode nothing is
remembered: a client hears of every changed key under its prefixes. Messages are pushes, which RESP2
has not: a RESP2 client names another connection with REDIRECT, and without that hears nothing. That one
speaks RESP3, or has subscribed to something: then it hears a message of a channel, as in Redis.

A key that expires has changed too, though nothing wrote it: so the table notes when tracked keys
expire, and in broadcasting mode when those that are written will.

In a cluster this is the table of the clients that are connected to this node. `respkv/interest.py` does the same for
those of other nodes, and sees to it that nothing is missed.

The table is bounded: beyond `KEYS_MAX` the oldest key is invalidated and forgotten.

Messages that a command causes wait in `_pending` until its own reply stands in `out`: a client that
changes a key which it has cached hears its reply first.

Core: no I/O; messages go into sessions' `out`, and the node flushes them.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from cluster.record import CODEC, EXPIRY_HEADER_BYTES, HAS_EXPIRY, HEADER_BYTES
from cluster.slot import SYSTEM_SLOT, key_of
from engine.store import PageFault
from respkv.command import Flag
from respkv.reply import Push, Reply
from respkv.session import CLOSING, TRACKING, Session

if TYPE_CHECKING:
    from cluster.replica import Effect
    from cluster.ring import NodeId
    from cluster.slot import Key, Row, Slot
    from respkv.command import Command
    from respkv.interest import Interest
    from respkv.node import Node
    from respkv.operation import Operation

KEYS_MAX: Final = 1_000_000
REDIRECT_CHANNEL: Final = b"__redis__:invalidate"


@dataclass(slots=True)
class TrackingMode:
    """How one session tracks. `caching` is CLIENT CACHING's answer for the next command, None if not given.

    `prefixes` are sorted; in broadcasting mode there is at least one, the empty one if none was named.
    """

    redirect: int = 0
    target: Session | None = None  # Whom `redirect` names.
    prefixes: tuple[bytes, ...] = ()
    is_broadcast: bool = False
    is_optin: bool = False
    is_optout: bool = False
    is_noloop: bool = False
    caching: bool | None = None
    is_broken: bool = False  # The client that it redirected to is gone.


class Tracking:
    """The table of a node."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self.interest: Interest | None = None  # In a cluster.
        self._readers: dict[Key, dict[Session, None]] = {}
        self._broadcast: dict[Session, TrackingMode] = {}
        self._sessions: dict[Session, TrackingMode] = {}
        self._expiries: dict[Key, int] = {}  # In milliseconds since 1970.
        self._queue: list[
            tuple[int, Key]
        ] = []  # A heap; entries that `_expiries` contradicts are dead.
        # What is to be told, and how many of the session's operations have to be answered first.
        self._pending: list[tuple[Session, Push, int]] = []

    @property
    def is_active(self) -> bool:
        """Whether anybody, here or at other nodes, wants to know what changes."""
        return bool(self._sessions) or (self.interest is not None and self.interest.is_active)

    @property
    def key_count(self) -> int:
        return len(self._readers)

    @property
    def client_count(self) -> int:
        return len(self._sessions)

    # Sessions

    def start(self, session: Session, mode: TrackingMode) -> None:
        """Track for a session, or change how. What it has read stays known."""
        session.tracking = mode
        session.mode |= TRACKING
        self._sessions[session] = mode
        if mode.is_broadcast:
            self._broadcast[session] = mode
        self._note_prefixes()

    def stop(self, session: Session) -> None:
        """The session tracks no longer. Its keys go when they change, or are evicted."""
        session.tracking = None
        session.mode &= ~TRACKING
        self._broadcast.pop(session, None)
        if self._sessions.pop(session, None) is not None and not self._sessions:
            self._readers.clear()
            if self.interest is not None:
                self.interest.forget_all()
            if not self.is_active:
                self._expiries.clear()
                self._queue.clear()
        self._note_prefixes()

    def _note_prefixes(self) -> None:
        if self.interest is not None:
            prefixes = (prefix for mode in self._broadcast.values() for prefix in mode.prefixes)
            self.interest.want(prefixes)

    def forget(self, session: Session) -> None:
        """The session is gone: those that it heard for are told so, since now they miss changes."""
        self.stop(session)
        for other, mode in self._sessions.items():
            if mode.target is session and not mode.is_broken:
                mode.is_broken = True
                if other.is_resp3:
                    self._push(other, Push([b"tracking-redir-broken", session.id]))

    # Reading

    def remember(self, session: Session, command: Command, args: list[bytes]) -> None:
        """A command was run for a tracking session, perhaps inside EXEC: keep the keys that it read."""
        if session.tracking is not None and self._wants(session.tracking):
            self._remember(session, _read(command, args))

    def _wants(self, mode: TrackingMode) -> bool:
        if mode.is_optin:
            return mode.caching is True
        return not mode.is_optout or mode.caching is not False

    def _remember(self, session: Session, keys: list[Key]) -> None:
        mode: TrackingMode | None = session.tracking
        if mode is None or mode.is_broadcast:
            return
        for key in keys:
            self._readers.setdefault(key, {})[session] = None
        self._note_expiries(keys)
        while len(self._readers) > KEYS_MAX:
            oldest = next(iter(self._readers))
            self._note_expiry(oldest, 0)
            self._tell(self._readers.pop(oldest), oldest, None)

    # Reading, in a cluster

    def begins(self, session: Session, command: Command) -> bool:
        """Whether what a command reads is tracked. CLIENT CACHING has had its effect."""
        mode: TrackingMode | None = session.tracking
        if mode is None:
            return False
        is_tracked = self._wants(mode)
        mode.caching = None
        return is_tracked

    def was_read(self, operation: Operation) -> None:
        """An operation that is tracked has been run here, and nothing has changed since."""
        if operation.origin is None:
            self._remember(operation.session, _read_by(operation))
        elif self.interest is not None:
            keys = _read_by(operation)
            self.interest.note(operation.origin[0], keys)
            self._note_expiries(keys)

    def is_read_at(self, operation: Operation, target: NodeId) -> None:
        """An operation that is tracked is about to be forwarded."""
        assert self.interest is not None
        keys = _read_by(operation)
        self.interest.forwarded(keys, target)
        mode: TrackingMode | None = operation.session.tracking
        if mode is not None and not mode.is_broadcast:
            for key in keys:
                self._readers.setdefault(key, {})[operation.session] = None

    def disown(self, operation: Operation) -> None:
        """What an operation that is tracked has read is not watched for its client, which must not keep it."""
        mode: TrackingMode | None = operation.session.tracking
        if mode is not None and not mode.is_broadcast:
            for key in _read_by(operation):
                self._send(operation.session, [key])

    def has_readers(self, key: Key) -> bool:
        return key in self._readers

    def end_command(self, session: Session, command: Command) -> None:
        """CLIENT CACHING holds for one command, or for the whole transaction that comes next."""
        if session.transaction is None and not command.name.startswith("CLIENT|"):
            session.tracking.caching = None

    def _note_expiries(self, keys: list[Key]) -> None:
        now_ms = self._node.context.now_ms
        for key in keys:
            at_ms = self._expiry_of(key)
            # One that has expired and was not told of yet is: others may have cached what it was.
            if at_ms or not 0 < self._expiries.get(key, 0) <= now_ms:
                self._note_expiry(key, at_ms)

    def _expiry_of(self, key: Key) -> int:
        """When a key that was just read expires, 0 if never."""
        try:
            raw = self._node.context.locate(key)[2]
        except PageFault:  # Inside EXEC it may be out of memory again.
            return 0
        if raw is None or not raw[0] & HAS_EXPIRY:
            return 0
        return int.from_bytes(raw[HEADER_BYTES:EXPIRY_HEADER_BYTES], "little")

    def _note_expiry(self, key: Key, at_ms: int) -> None:
        if not at_ms:
            self._expiries.pop(key, None)
        elif self._expiries.get(key) != at_ms and len(self._expiries) < KEYS_MAX:
            self._expiries[key] = at_ms
            heapq.heappush(self._queue, (at_ms, key))
            if len(self._queue) > 2 * KEYS_MAX:  # Mostly dead entries.
                self._queue = [(at_ms, key) for key, at_ms in self._expiries.items()]
                heapq.heapify(self._queue)

    # Changes

    def invalidate(
        self, effects: dict[Row, Effect], flushed: set[int], writer: Session | None
    ) -> None:
        """Rows are about to change: tell who may have cached their keys, at the next `flush`."""
        if flushed:
            self.tell_all()
        changed = {
            key_of(row): effect[2] for row, effect in effects.items() if effect[0] != SYSTEM_SLOT
        }
        self.invalidate_keys(changed, writer, is_own=True)
        if self._broadcast or (self.interest is not None and self.interest.has_prefixes):
            for key, expire_at_ms in changed.items():
                self._note_expiry(key, expire_at_ms)

    def others_changed(self, slot: Slot, row: Row, writer: Session | None) -> None:
        """Another node has changed a row."""
        key = key_of(row)
        self.invalidate_keys((key,), writer, is_own=False)
        if self._broadcast:
            raw = self._node.store.active[slot].get(row)
            self._note_expiry(key, 0 if raw is None else CODEC.expires_at_ms(raw))

    def invalidate_keys(self, keys: Iterable[Key], writer: Session | None, *, is_own: bool) -> None:
        """Keys are about to change. `is_own`: this node has executed the command, or they expire."""
        keys = tuple(keys)
        if self.interest is not None:
            self.interest.changed(keys, is_own=is_own)
        self.tell(keys, writer)

    def tell_all(self) -> None:
        """Tell this node's clients to forget everything."""
        self._readers.clear()
        if self.interest is not None:
            self.interest.forget_all()
        for session in self._sessions:
            self._send(session, None)

    def tell_broadcasts(self) -> None:
        """Tell those in broadcasting mode to forget everything."""
        for session in self._broadcast:
            self._send(session, None)

    def tell(self, keys: Iterable[Key], writer: Session | None) -> None:
        """Tell this node's clients that keys have changed."""
        keys = sorted(keys)
        for key in keys:
            readers = self._readers.pop(key, None)
            if readers is not None:
                self._tell(readers, key, writer)
        for session, mode in self._broadcast.items():
            if mode.is_noloop and session is writer:
                continue
            for prefix in mode.prefixes:
                matching: list[Reply] = [key for key in keys if key.startswith(prefix)]
                if matching:
                    self._send(session, matching)

    def expire(self, now_ms: int) -> None:
        """Tell of the tracked keys that have expired by now, and of all else that is pending."""
        expired = []
        while self._queue and self._queue[0][0] <= now_ms:
            at_ms, key = heapq.heappop(self._queue)
            if self._expiries.get(key) == at_ms:
                del self._expiries[key]
                expired.append(key)
        if expired:
            self.invalidate_keys(expired, None, is_own=True)
        self.flush()

    # Telling

    def _tell(self, sessions: Iterable[Session], key: Key, writer: Session | None) -> None:
        for session in sessions:
            mode = self._sessions.get(session)
            if mode is None or mode.is_broadcast or (mode.is_noloop and session is writer):
                continue
            self._send(session, [key])

    def _send(self, session: Session, keys: list[Reply] | None) -> None:
        mode = self._sessions[session]
        target = mode.target or session
        if mode.is_broken:
            return
        if target.is_resp3:
            self._push(target, Push([b"invalidate", keys]))
        elif mode.target is not None and target.subscriptions is not None:
            self._push(target, Push([b"message", REDIRECT_CHANNEL, keys]))

    def _push(self, session: Session, message: Push) -> None:
        pipeline = session.pipeline
        self._pending.append((session, message, 0 if pipeline is None else pipeline.begun_count))

    def flush(self) -> None:
        """Send what is pending: the command that caused it has been answered.

        A session that is owed replies by the cluster gets them first: one of them may show what is
        overtaken now, and a client caches what it is told last.
        """
        if not self._pending:
            return
        pending, self._pending = self._pending, []
        for session, message, owed_count in pending:
            if session.pipeline is not None and session.pipeline.answered_count < owed_count:
                if not session.mode & CLOSING:
                    self._pending.append((session, message, owed_count))
                continue
            session.send(message)
            self._node.touch(session)


def _read(command: Command, args: list[bytes]) -> list[Key]:
    """The keys that a command reads and does not write."""
    if Flag.READONLY not in command.flags:
        return []
    return [args[position] for position in command.key_positions(args)]


def _read_by(operation: Operation) -> list[Key]:
    """The same of an operation, which may be several commands."""
    return [key for each in operation.commands for key in _read(*each)]
