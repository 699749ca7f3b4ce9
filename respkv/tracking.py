"""CLIENT TRACKING: which client may have cached which key, and telling it when the key has changed.

It caches nothing itself. In the default mode every key that a tracking client reads is remembered
with the client, until one message has told it that the key changed. In broadcasting mode nothing is
remembered: a client hears of every changed key under its prefixes. Messages are pushes, which RESP2
has not: a RESP2 client names a RESP3 connection with REDIRECT, and without that hears nothing, as
in Redis.

The table is bounded: beyond `KEYS_MAX` the oldest key is invalidated and forgotten.

Core: no I/O; messages go into sessions' `out`, and the node flushes them.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from cluster.slot import SYSTEM_SLOT, key_of
from respkv.command import Flag
from respkv.reply import Push, Reply
from respkv.session import TRACKING, Session

if TYPE_CHECKING:
    from cluster.replica import Effect
    from cluster.slot import Key, Row
    from respkv.command import Command
    from respkv.node import Node

KEYS_MAX: Final = 1_000_000


@dataclass(slots=True)
class TrackingMode:
    """How one session tracks. `caching` is CLIENT CACHING's answer for the next command, None if not given."""

    redirect: int = 0
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

    @property
    def is_active(self) -> bool:
        return bool(self._sessions)

    @property
    def key_count(self) -> int:
        return len(self._readers)

    @property
    def client_count(self) -> int:
        return len(self._sessions)

    def start(self, session: Session, mode: TrackingMode) -> None:
        """Track for a session, or change how."""
        self.forget(session)
        session.tracking = mode
        session.mode |= TRACKING
        self._sessions[session] = mode
        if mode.is_broadcast:
            self._broadcast[session] = mode

    def forget(self, session: Session) -> None:
        """The session tracks no longer, or is gone. Its keys go when they change, or are evicted."""
        session.tracking = None
        session.mode &= ~TRACKING
        self._sessions.pop(session, None)
        self._broadcast.pop(session, None)
        for other, mode in self._sessions.items():
            if mode.redirect == session.id and not mode.is_broken:
                mode.is_broken = True
                if other.is_resp3:
                    self._push(other, Push([b"tracking-redir-broken", session.id]))

    def remember(self, session: Session, command: Command, args: list[bytes]) -> None:
        """A command was run for a tracking session: keep the keys that it read."""
        mode: TrackingMode | None = session.tracking
        if mode is None or command.name == "CLIENT|CACHING":
            return
        caching, mode.caching = mode.caching, None
        if mode.is_broadcast or Flag.READONLY not in command.flags:
            return
        if (mode.is_optin and caching is not True) or (mode.is_optout and caching is False):
            return
        for position in command.key_positions(args):
            self._readers.setdefault(args[position], {})[session] = None
        while len(self._readers) > KEYS_MAX:
            oldest = next(iter(self._readers))
            self._tell(self._readers.pop(oldest), [oldest], None)

    def invalidate(
        self, effects: dict[Row, Effect], flushed: set[int], writer: Session | None
    ) -> None:
        """Rows are about to change: tell who may have cached their keys."""
        if flushed:
            self._readers.clear()
            for session in list(self._sessions):
                self._send(session, None)
        self.invalidate_keys(
            (key_of(row) for row, effect in effects.items() if effect[0] != SYSTEM_SLOT), writer
        )

    def invalidate_keys(self, keys: Iterable[Key], writer: Session | None) -> None:
        """As `invalidate`, for keys."""
        for key in keys:
            readers = self._readers.pop(key, None)
            if readers is not None:
                self._tell(readers, [key], writer)
            for session, mode in self._broadcast.items():
                if key.startswith(mode.prefixes or b"") and not (
                    mode.is_noloop and session is writer
                ):
                    self._send(session, [key])

    def _tell(self, sessions: Iterable[Session], keys: list[Reply], writer: Session | None) -> None:
        for session in sessions:
            mode = self._sessions.get(session)
            if mode is None or mode.is_broadcast or (mode.is_noloop and session is writer):
                continue
            self._send(session, keys)

    def _send(self, session: Session, keys: list[Reply] | None) -> None:
        mode = self._sessions[session]
        target: Session | None = session
        if mode.redirect:
            target = self._node.session_by_id(mode.redirect)
        if target is not None and target.is_resp3:
            self._push(target, Push([b"invalidate", keys]))

    def _push(self, session: Session, message: Push) -> None:
        session.send(message)
        self._node.touch(session)
