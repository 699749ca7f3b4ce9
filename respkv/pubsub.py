"""Publish/subscribe: who listens to what, and the way of a message to the sessions that do.

It keeps nothing that was said: who does not listen at the moment of a message never hears it. Nor does it
know other nodes' clients one by one: `respkv/audience.py` tells which nodes want a message, and how many
clients listen there.

There are three kinds of names. A *channel* is a name that messages are published to; a *pattern* is a glob
that matches channels; a *shard channel* has names of its own, which SPUBLISH reaches and PUBLISH does not.
What a client has subscribed to stands in its session (`Subscriptions`), and the sessions of each name here.

    publish    the node's own message: to local listeners, and to the nodes that want it
    deliver    another node's message: to local listeners only
    say        the messages of a command that is committed now: those of EXEC, and keyspace events

A *route* is who gets the messages of one channel, found once and forgotten when anybody subscribes or
leaves. A message is encoded once for each version of the protocol; every session's `out` gets that same
object. bench/pubsub.py measures.

In a cluster a new subscription is *held*: the session counts, and gets nothing, until the other nodes know
of it and its confirmation leaves. So nothing is lost that is published after a client was told that it
listens.

Bounds: the memory of one session's names (`pubsub.subscription_bytes_max`), that of what it does not read
(`pubsub.output_buffer_bytes_max` and its sisters, see `respkv/output.py`), and `ROUTES_MAX`.

Core: no I/O; messages go into sessions' `out`, and the front sends them.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from respkv.glob import Matcher, matcher
from respkv.refusal import TOO_BUSY, TOO_LARGE
from respkv.reply import ReplyError
from respkv.session import CLOSING, LARGE_REPLY_BYTES, SUBSCRIBED, Session

if TYPE_CHECKING:
    from cluster.ring import NodeId
    from respkv.audience import Audiences
    from respkv.node import Node

Kind = bytes  # One of the next four.
Name = bytes
Message = tuple[Kind, Name, bytes]  # Kind, channel, payload.

CHANNEL: Final = b"c"
PATTERN: Final = b"p"
SHARD: Final = b"s"
EVENT: Final = b"e"  # A keyspace event: to listeners it is a message of a channel.
TOLD: Final = b"t"  # No message: a row, and whether it was said that it has expired.
NAME_KINDS: Final = (CHANNEL, PATTERN, SHARD)

NAME_OVERHEAD_BYTES: Final = 400  # Of one subscription: its place in five dicts.
ROUTES_MAX: Final = 4096
MATCHERS_MAX: Final = 65536
_SPACE_HEADS: Final = {False: b"message", True: b"smessage"}


class Subscriptions:
    """What one session has subscribed to, in the order in which it did."""

    __slots__ = ("names", "over_since_s", "weight_bytes")

    def __init__(self) -> None:
        self.names: dict[Kind, dict[Name, None]] = {kind: {} for kind in NAME_KINDS}
        self.weight_bytes = 0
        self.over_since_s = (
            0.0  # Since when more is unread than the soft limit allows; 0: it is not.
        )

    def count(self, kind: Kind) -> int:
        """What a confirmation tells: channels and patterns are counted together."""
        names = self.names
        return len(names[SHARD]) if kind == SHARD else len(names[CHANNEL]) + len(names[PATTERN])


@dataclass(slots=True)
class Listeners:
    """Sessions by the protocol that they speak."""

    resp2: list[Session] = field(default_factory=list)
    resp3: list[Session] = field(default_factory=list)

    def add(self, session: Session) -> None:
        (self.resp3 if session.is_resp3 else self.resp2).append(session)


@dataclass(slots=True)
class Route:
    """Who gets what is published to one channel. `count`: clients, here and elsewhere, as far as is known."""

    listeners: Listeners
    patterns: list[tuple[Name, Listeners]]
    peers: tuple[NodeId, ...]
    count: int


class PubSub:
    """One per node."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self.audiences: Audiences | None = None  # Of a member of a cluster.
        # False: held, it gets nothing yet.
        self._sessions: dict[Kind, dict[Name, dict[Session, bool]]] = {
            kind: {} for kind in NAME_KINDS
        }
        self._routes: dict[Name, Route] = {}
        self._shard_routes: dict[Name, Route] = {}
        self._matchers: dict[Name, Matcher] = {}
        self.message_bytes_max = 0  # In a cluster: of a message that fits the bus.

    # Who listens

    def check_room(self, session: Session, kind: Kind, names: Iterable[Name]) -> None:
        """Raises ReplyError if so many more names are too many for one client."""
        own = session.subscriptions
        known = {} if own is None else own.names[kind]
        weight = 0 if own is None else own.weight_bytes
        weight += sum(len(name) + NAME_OVERHEAD_BYTES for name in set(names) if name not in known)
        if weight > self._node.config.pubsub.subscription_bytes_max:
            raise ReplyError(
                "ERR too many subscriptions for one client: more than pubsub.subscription_bytes_max"
            )

    def subscribe(self, session: Session, kind: Kind, name: Name, *, is_held: bool) -> int:
        """Add a name to a session's; returns how many of the kind it has then."""
        own: Subscriptions | None = session.subscriptions
        if own is None:
            own = session.subscriptions = Subscriptions()
        if name not in own.names[kind]:
            own.names[kind][name] = None
            own.weight_bytes += len(name) + NAME_OVERHEAD_BYTES
            self._sessions[kind].setdefault(name, {})[session] = not is_held
            self._changed(kind, name)
            restrict(session)
        return own.count(kind)

    def activate(self, session: Session, kind: Kind, names: Iterable[Name]) -> None:
        """All other nodes know: the session hears what is published from now on."""
        for name in names:
            sessions = self._sessions[kind].get(name)
            if sessions is not None and session in sessions:
                sessions[session] = True
        self.forget_routes()

    def unsubscribe(self, session: Session, kind: Kind, name: Name) -> int:
        """Take a name from a session's, if it is one; returns how many of the kind are left."""
        own: Subscriptions | None = session.subscriptions
        if own is None:
            return 0
        if name in own.names[kind]:
            del own.names[kind][name]
            own.weight_bytes -= len(name) + NAME_OVERHEAD_BYTES
            sessions = self._sessions[kind][name]
            del sessions[session]
            if not sessions:
                del self._sessions[kind][name]
            self._changed(kind, name)
            if not any(own.names.values()):
                session.subscriptions = None
                restrict(session)
        return own.count(kind)

    def forget(self, session: Session) -> None:
        """The session is gone, or starts anew: it listens to nothing."""
        own: Subscriptions | None = session.subscriptions
        if own is not None:
            for kind in NAME_KINDS:
                for name in list(own.names[kind]):
                    self.unsubscribe(session, kind, name)

    def restore(self, session: Session, before: dict[Kind, list[Name]]) -> None:
        """A transaction runs again from its start: the session listens to what it did then."""
        own: Subscriptions | None = session.subscriptions
        now = {} if own is None else {kind: list(own.names[kind]) for kind in NAME_KINDS}
        if now != before:
            self.forget(session)
            for kind, names in before.items():
                for name in names:
                    self.subscribe(session, kind, name, is_held=False)

    def _changed(self, kind: Kind, name: Name) -> None:
        self.forget_routes()
        if self.audiences is not None:
            self.audiences.changed(kind, name, len(self._sessions[kind].get(name, ())))
        if not self.has_listeners or len(self._sessions[kind]) <= 1:
            self._node.notifier.look()

    def forget_routes(self) -> None:
        """Somebody came or left, here or elsewhere, or speaks another protocol version."""
        self._routes.clear()
        self._shard_routes.clear()

    @property
    def has_listeners(self) -> bool:
        """Whether a message to any channel might be heard, here or at another node."""
        sessions, audiences = self._sessions, self.audiences
        return bool(sessions[CHANNEL] or sessions[PATTERN]) or (
            audiences is not None and audiences.has_remote
        )

    def names(self, kind: Kind) -> list[Name]:
        """The names of a kind that this node's clients have subscribed to."""
        return list(self._sessions[kind])

    def local_count(self, kind: Kind, name: Name) -> int:
        """How many of this node's clients have subscribed to a name."""
        return len(self._sessions[kind].get(name, ()))

    # Messages

    def publish(self, kind: Kind, channel: Name, payload: bytes) -> int:
        """Say something to all who listen, at all nodes; returns how many clients that are."""
        routes = self._shard_routes if kind == SHARD else self._routes
        route = routes.get(channel) or self._find_route(kind, channel)
        if route.peers:
            assert self.audiences is not None
            self.audiences.send(route.peers, kind, channel, payload)
        self._deliver(route, kind, channel, payload)
        return route.count

    def check(self, kind: Kind, channel: Name, payload: bytes) -> int:
        """How many clients a message would reach; raises ReplyError if it cannot leave this node now."""
        routes = self._shard_routes if kind == SHARD else self._routes
        route = routes.get(channel) or self._find_route(kind, channel)
        if route.peers:
            assert self.audiences is not None
            if len(channel) + len(payload) > self.message_bytes_max:
                raise TOO_LARGE
            if self.audiences.is_full(route.peers):
                raise TOO_BUSY
        return route.count

    def deliver(self, kind: Kind, channel: Name, payload: bytes) -> None:
        """Another node says something to this one's clients."""
        routes = self._shard_routes if kind == SHARD else self._routes
        route = routes.get(channel) or self._find_route(kind, channel)
        self._deliver(route, kind, channel, payload)

    def say(self, messages: list[Message], *, is_forwarded: bool = False) -> list[Message]:
        """Publish what a command has said that is committed now.

        `is_forwarded`: another node's client gave the command. What it published is returned, for its own node
        to say, so that a client's messages stay in order; keyspace events are this node's.
        """
        left = []
        for kind, channel, payload in messages:
            if kind == EVENT:
                self.publish_event(channel, payload)
            elif kind == TOLD:
                self._node.notifier.mark(channel, is_told=bool(payload))
            elif is_forwarded:
                left.append((kind, channel, payload))
            else:
                self.publish(kind, channel, payload)
        return left

    def publish_event(self, channel: Name, payload: bytes) -> None:
        """Publish a keyspace event. One that the bus has no room for is lost for the other nodes."""
        route = self._routes.get(channel) or self._find_route(CHANNEL, channel)
        if route.peers:
            assert self.audiences is not None
            if self.audiences.is_full(route.peers):
                self.audiences.dropped_total += 1
            else:
                self.audiences.send(route.peers, CHANNEL, channel, payload)
        self._deliver(route, CHANNEL, channel, payload)

    def _deliver(self, route: Route, kind: Kind, channel: Name, payload: bytes) -> None:
        """Hot: bench/pubsub.py."""
        listeners = route.listeners
        if listeners.resp2 or listeners.resp3:
            word = _SPACE_HEADS[kind == SHARD]
            body = b"3\r\n$%d\r\n%b\r\n$%d\r\n%b\r\n$%d\r\n%b\r\n" % (
                len(word), word, len(channel), channel, len(payload), payload,
            )  # fmt: skip
            self._give(listeners, body)
        for pattern, matching in route.patterns:
            body = b"4\r\n$8\r\npmessage\r\n$%d\r\n%b\r\n$%d\r\n%b\r\n$%d\r\n%b\r\n" % (
                len(pattern), pattern, len(channel), channel, len(payload), payload,
            )  # fmt: skip
            self._give(matching, body)

    def _give(self, listeners: Listeners, body: bytes) -> None:
        touch = self._node.touch
        for sessions, sign in ((listeners.resp2, b"*"), (listeners.resp3, b">")):
            if not sessions:
                continue
            data = sign + body
            is_large = len(data) >= LARGE_REPLY_BYTES
            for session in sessions:
                if session.mode & CLOSING:
                    continue
                out = session.out
                if not out:  # Otherwise the front knows already that it has something to send.
                    touch(session)
                out.append(data)
                if is_large:
                    session.has_large_reply = True

    def _find_route(self, kind: Kind, channel: Name) -> Route:
        is_shard = kind == SHARD
        routes = self._shard_routes if is_shard else self._routes
        listeners = Listeners()
        count = 0
        for session, is_active in (
            self._sessions[SHARD if is_shard else CHANNEL].get(channel, {}).items()
        ):
            if is_active:
                listeners.add(session)
                count += 1
        patterns = []
        if not is_shard:
            for pattern, sessions in self._sessions[PATTERN].items():
                if self.matches(pattern, channel):
                    matching = Listeners()
                    for session, is_active in sessions.items():
                        if is_active:
                            matching.add(session)
                            count += 1
                    patterns.append((pattern, matching))
        peers: tuple[NodeId, ...] = ()
        if self.audiences is not None:
            peers, remote_count = self.audiences.wanted(
                SHARD if is_shard else CHANNEL, channel, self.matches
            )
            count += remote_count
        if len(routes) >= ROUTES_MAX:
            routes.clear()
        route = routes[channel] = Route(listeners, patterns, peers, count)
        return route

    def matches(self, pattern: Name, channel: Name) -> bool:
        """Whether a pattern is about a channel. Patterns are compiled once."""
        found = self._matchers.get(pattern)
        if found is None:
            if len(self._matchers) >= MATCHERS_MAX:
                self._matchers.clear()
            found = self._matchers[pattern] = matcher(pattern)
        return bool(found(channel))


def restrict(session: Session) -> None:
    """A RESP2 client that has subscriptions can tell replies from messages only if it asks little else."""
    if session.subscriptions is not None and not session.is_resp3:
        session.mode |= SUBSCRIBED
    else:
        session.mode &= ~SUBSCRIBED


def confirmation(word: bytes, name: Name | None, count: int, *, resp3: bool) -> bytes:
    """What a client hears of each name that it subscribes to or leaves. None: it had none to leave."""
    head = b">3" if resp3 else b"*3"
    shown = b"$%d\r\n%b" % (len(name), name) if name is not None else b"_" if resp3 else b"$-1"
    return b"%b\r\n$%d\r\n%b\r\n%b\r\n:%d\r\n" % (head, len(word), word, shown, count)


__all__ = [
    "CHANNEL",
    "EVENT",
    "PATTERN",
    "SHARD",
    "Message",
    "PubSub",
    "Subscriptions",
    "confirmation",
    "restrict",
]
