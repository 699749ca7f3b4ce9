"""CLIENT TRACKING: which client may have cached which key, and telling it when the key has changed.

It caches nothing itself. In the default mode every key that a tracking client reads is remembered
with the client, until one message has told it that the key changed. In broadcasting mode nothing is
remembered: a client hears of every changed key under its prefixes. Messages are pushes, which RESP2
has not: a RESP2 client names another connection with REDIRECT, and without that hears nothing. That one
speaks RESP3, or has subscribed to something: then it hears a message of a channel, as in Redis.

A key that expires has changed too, though nothing wrote it: so the table notes when tracked keys
expire, and in broadcasting mode when those that are written will.

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

from cluster.record import EXPIRY_HEADER_BYTES, HAS_EXPIRY, HEADER_BYTES
from cluster.slot import SYSTEM_SLOT, key_of
from engine.store import PageFault
from respkv.command import Flag
from respkv.reply import Push, Reply
from respkv.session import CLOSING, TRACKING, Session

if TYPE_CHECKING:
    from cluster.replica import Effect
    from cluster.slot import Key, Row
    from respkv.command import Command
    from respkv.node import Node

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
        return bool(self._sessions)

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

    def stop(self, session: Session) -> None:
        """The session tracks no longer. Its keys go when they change, or are evicted."""
        session.tracking = None
        session.mode &= ~TRACKING
        self._broadcast.pop(session, None)
        if self._sessions.pop(session, None) is not None and not self._sessions:
            self._readers.clear()
            self._expiries.clear()
            self._queue.clear()

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
        mode: TrackingMode | None = session.tracking
        if mode is None or mode.is_broadcast or Flag.READONLY not in command.flags:
            return
        if (mode.is_optin and mode.caching is not True) or (
            mode.is_optout and mode.caching is False
        ):
            return
        for position in command.key_positions(args):
            key = args[position]
            self._readers.setdefault(key, {})[session] = None
            self._note_expiry(key, self._expiry_of(key))
        while len(self._readers) > KEYS_MAX:
            oldest = next(iter(self._readers))
            self._note_expiry(oldest, 0)
            self._tell(self._readers.pop(oldest), oldest, None)

    def disown(self, session: Session, command: Command, args: list[bytes]) -> None:
        """Keys were read at another node, and nobody will tell of their changes: tell the client at once."""
        mode: TrackingMode | None = session.tracking
        if mode is not None and not mode.is_broadcast and Flag.READONLY in command.flags:
            for position in command.key_positions(args):
                self._tell((session,), args[position], None)

    def end_command(self, session: Session, command: Command) -> None:
        """CLIENT CACHING holds for one command, or for the whole transaction that comes next."""
        if session.transaction is None and not command.name.startswith("CLIENT|"):
            session.tracking.caching = None

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
            self._readers.clear()
            for session in self._sessions:
                self._send(session, None)
        changed = {
            key_of(row): effect[2] for row, effect in effects.items() if effect[0] != SYSTEM_SLOT
        }
        self.invalidate_keys(changed, writer)
        if self._broadcast:
            for key, expire_at_ms in changed.items():
                self._note_expiry(key, expire_at_ms)

    def invalidate_keys(self, keys: Iterable[Key], writer: Session | None) -> None:
        """As `invalidate`, for keys."""
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
            self.invalidate_keys(expired, None)
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
