"""Audience: which nodes want which messages, and how messages get there.

It knows names and counts, not clients (`respkv/pubsub.py`). Each node tells the others what its clients
listen to, so that a message goes to the nodes that want it and to no other:

    PUBSUB.WANT number base (kind name count)*    what has changed since the announcement `base`, or, if that
                                                  is empty, all; kind `*` stands for everything
    PUBSUB.KNOWN number                           announcements up to this one are known; empty: send all again
    PUBSUB.SAID number (kind channel payload)*    one tick's messages, in order

A new subscription is confirmed to its client when all nodes that are connected know of it: a *hold*. So who was
told that it listens misses nothing that is published afterwards, at any node. A node that is lost or silent
is waited for `timeout_s` at most.

Messages are said at most once: a broken connection loses what was on its way, and nothing is sent again. A
batch that comes twice, or behind a later one, is dropped, so the messages of one node arrive in the order in
which it said them. Announcements are repeated until they are known, as a whole if one was lost. Numbers begin
with the time, and grow from process to process.

Bounds: a node whose names take more than `NAMES_BYTES_MAX` announces that it wants everything. Messages of a tick
leave in pieces of `BATCH_BYTES`; while more than `QUEUE_BYTES_MAX` waits for one of the nodes that want a
message, PUBLISH is refused (BUSY), and keyspace events are dropped for the other nodes.

Core: time is an argument; messages go through the transport seam.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from cluster.ring import NodeId
from cluster.transport import Message, Transport
from respkv.pubsub import CHANNEL, NAME_KINDS, PATTERN, SHARD, Kind, Name, PubSub

if TYPE_CHECKING:
    from respkv.node import Node
    from respkv.reply import Reply
    from respkv.session import Session

WANT: Final = b"PUBSUB.WANT"
KNOWN: Final = b"PUBSUB.KNOWN"
SAID: Final = b"PUBSUB.SAID"
EVERYTHING: Final = b"*"
NAMES_BYTES_MAX: Final = 16 << 20
NAME_OVERHEAD_BYTES: Final = 64
BATCH_BYTES: Final = 1 << 20
QUEUE_BYTES_MAX: Final = 32 << 20
REPEAT_S: Final = 1.0


@dataclass(slots=True)
class Heard:
    """What is known of a peer. `number` is that of its last announcement, `said` of its last batch."""

    number: int = -1
    said: int = -1
    counts: dict[Kind, dict[Name, int]] = field(
        default_factory=lambda: {kind: {} for kind in NAME_KINDS}
    )
    wants_everything: bool = False

    def clear(self) -> None:
        self.wants_everything = False
        for counts in self.counts.values():
            counts.clear()

    @property
    def has_any(self) -> bool:
        return self.wants_everything or any(self.counts.values())


@dataclass(slots=True)
class Told:
    """What a connected peer knows of this node: announcements up to `known`."""

    known: int = -1
    sent_s: float = 0.0


@dataclass(slots=True, eq=False)
class Hold:
    """A subscription that waits until all know the announcement `number`; then `reply` confirms it."""

    session: Session
    kind: Kind
    names: list[Name]
    reply: Reply
    number: int
    deadline_s: float


class Audiences:
    """One per node of a cluster."""

    def __init__(
        self, node: Node, pubsub: PubSub, transport: Transport, *, timeout_s: float
    ) -> None:
        self._node = node
        self._pubsub = pubsub
        self._transport = transport
        self._timeout_s = timeout_s
        self._announced = self._said = node.now_ms() << 20
        self._heard: dict[NodeId, Heard] = {}
        self._told: dict[NodeId, Told] = {}
        self._counts: dict[tuple[Kind, Name], int] = {}
        self._since: dict[tuple[Kind, Name], int] = {}  # The announcement that named it first.
        self._names_bytes = 0
        self._is_everything = False
        self._changed: dict[tuple[Kind, Name], None] = {}
        self._holds: list[Hold] = []
        self._batches: list[tuple[tuple[NodeId, ...], list[bytes]]] = []
        self._batch_bytes = 0
        self.dropped_total = 0  # Keyspace events that other nodes did not get.

    # What this node wants

    def changed(self, kind: Kind, name: Name, count: int) -> None:
        """So many of this node's clients have subscribed to a name now."""
        key = (kind, name)
        if not count:
            if self._counts.pop(key, None) is not None:
                self._names_bytes -= len(name) + NAME_OVERHEAD_BYTES
            self._since.pop(key, None)
        else:
            if key not in self._counts:
                self._names_bytes += len(name) + NAME_OVERHEAD_BYTES
                self._since[key] = self._announced + 1
            self._counts[key] = count
        self._changed[key] = None
        if len(self._changed) > len(self._counts) + 1024:
            self._announce(self._node.now_s)

    def must_hold(self, kind: Kind, names: list[Name]) -> int:
        """The announcement that has to be known before these names are confirmed; 0: all of them are."""
        number = max((self._since.get((kind, name), 0) for name in names), default=0)
        return 0 if self._is_known(number) else number

    def hold(
        self, session: Session, kind: Kind, names: list[Name], reply: Reply, number: int
    ) -> None:
        """The session waits; it is the caller who says so to the runner."""
        deadline_s = self._node.now_s + self._timeout_s
        self._holds.append(Hold(session, kind, names, reply, number, deadline_s))

    def _is_known(self, number: int) -> bool:
        return all(told.known >= number for told in self._told.values())

    def _release(self, now_s: float) -> None:
        """Confirm what all know by now, and what has waited long enough."""
        if not self._holds:
            return
        holds, self._holds = self._holds, []
        now_ms = self._node.now_ms()
        for hold in holds:
            session = hold.session
            if session.wait is None or session.wait.reply is not hold.reply:
                continue  # The client is gone.
            if hold.deadline_s > now_s and not self._is_known(hold.number):
                self._holds.append(hold)
                continue
            self._pubsub.activate(session, hold.kind, hold.names)
            self._node.runner.long_way.unblock(session, hold.reply, now_ms)

    def _announce(self, now_s: float) -> None:
        """Tell the peers what has changed, or all to those that lack what it was built upon."""
        changed, self._changed = self._changed, {}
        base = self._announced
        self._announced += 1
        was_everything = self._is_everything
        limit = NAMES_BYTES_MAX // 2 if was_everything else NAMES_BYTES_MAX
        self._is_everything = self._names_bytes > limit
        if was_everything or self._is_everything:
            message = self._whole()
        else:
            parts = [WANT, b"%d" % self._announced, b"%d" % base]
            for kind, name in changed:
                parts += (kind, name, b"%d" % self._counts.get((kind, name), 0))
            message = tuple(parts)
        for peer, told in self._told.items():
            self._transport.send(peer, message)
            told.sent_s = now_s

    def _whole(self) -> tuple[bytes, ...]:
        parts = [WANT, b"%d" % self._announced, b""]
        if self._is_everything:
            parts += (EVERYTHING, b"", b"1")
        else:
            for (kind, name), count in self._counts.items():
                parts += (kind, name, b"%d" % count)
        return tuple(parts)

    # What others want

    @property
    def has_remote(self) -> bool:
        """Whether anybody listens at another node."""
        return any(heard.has_any for heard in self._heard.values())

    def wanted(
        self, kind: Kind, channel: Name, matches: Callable[[Name, Name], bool]
    ) -> tuple[tuple[NodeId, ...], int]:
        """The nodes that want what is published to a channel, and how many clients listen there."""
        peers = []
        total = 0
        matching: dict[Name, bool] = {}  # Nodes share patterns.
        for peer, heard in self._heard.items():
            count = heard.counts[kind].get(channel, 0)
            if kind == CHANNEL:
                for pattern, clients in heard.counts[PATTERN].items():
                    is_match = matching.get(pattern)
                    if is_match is None:
                        is_match = matching[pattern] = matches(pattern, channel)
                    if is_match:
                        count += clients
            if count or heard.wants_everything:
                peers.append(peer)
                total += count
        return tuple(peers), total

    def known_names(self, kind: Kind) -> set[Name]:
        """The names of a kind at other nodes, as far as they are announced."""
        return {name for heard in self._heard.values() for name in heard.counts[kind]}

    def known_count(self, kind: Kind, name: Name) -> int:
        """How many clients of other nodes have subscribed to a name."""
        return sum(heard.counts[kind].get(name, 0) for heard in self._heard.values())

    # Messages

    def is_full(self, peers: tuple[NodeId, ...]) -> bool:
        """Whether one of these nodes has not taken what was sent to it before."""
        queued_bytes = self._transport.queued_bytes
        return any(queued_bytes(peer) > QUEUE_BYTES_MAX for peer in peers)

    def send(self, peers: tuple[NodeId, ...], kind: Kind, channel: Name, payload: bytes) -> None:
        """Say something to the clients of other nodes, at the end of the tick."""
        batches = self._batches
        if not batches or batches[-1][0] != peers:
            batches.append((peers, []))
        batches[-1][1].extend((kind, channel, payload))
        self._batch_bytes += len(channel) + len(payload) + NAME_OVERHEAD_BYTES
        if self._batch_bytes > BATCH_BYTES:
            self._send_batches()

    def _send_batches(self) -> None:
        """One message to each node; encoded once where all messages go to the same nodes."""
        batches, self._batches = self._batches, []
        self._batch_bytes = 0
        self._said += 1
        head = (SAID, b"%d" % self._said)
        if len(batches) == 1:
            peers, parts = batches[0]
            message = (*head, *parts)
            for peer in peers:
                self._transport.send(peer, message)
            return
        by_peer: dict[NodeId, list[bytes]] = {}
        for peers, parts in batches:
            for peer in peers:
                by_peer.setdefault(peer, [*head]).extend(parts)
        for peer, each in by_peer.items():
            self._transport.send(peer, each)

    def flush(self) -> None:
        """The tick ends: what was said and announced leaves."""
        if self._changed:
            self._announce(self._node.now_s)
        if self._batches:
            self._send_batches()

    def tick(self, now_s: float) -> None:
        """Some times a second: repeat what is not known after a while, and wait no longer for who is silent."""
        for peer, told in self._told.items():
            if told.known < self._announced and now_s - told.sent_s >= REPEAT_S:
                self._tell_all(peer, told, now_s)
        self._release(now_s)

    # The other nodes

    def connected(self, peer: NodeId) -> None:
        """A connection is open: begin anew with it."""
        self._forget(peer)
        told = self._told[peer] = Told()
        self._tell_all(peer, told, self._node.now_s)

    def disconnected(self, peer: NodeId) -> None:
        """It is broken. What the peer wanted it will announce again."""
        self._told.pop(peer, None)
        self._forget(peer)
        self._release(self._node.now_s)

    def _forget(self, peer: NodeId) -> None:
        if self._heard.pop(peer, None) is not None:
            self._pubsub.forget_routes()
            self._node.notifier.look()

    def _tell_all(self, peer: NodeId, told: Told, now_s: float) -> None:
        told.sent_s = now_s
        self._transport.send(peer, self._whole())

    def receive(self, peer: NodeId, message: Message) -> bool:
        """Take a message of another node. Raises ValueError if it is malformed."""
        verb = message[0]
        if verb == SAID:
            heard = self._heard.setdefault(peer, Heard())
            number = int(message[1])
            if number > heard.said:
                heard.said = number
                deliver = self._pubsub.deliver
                for at in range(2, len(message) - 2, 3):
                    deliver(message[at], message[at + 1], message[at + 2])
        elif verb == WANT:
            self._take_want(peer, message)
        elif verb == KNOWN:
            told = self._told.get(peer)
            if told is None:
                return True
            if not message[1]:
                self._tell_all(peer, told, self._node.now_s)
            else:
                told.known = max(told.known, int(message[1]))
                self._release(self._node.now_s)
        else:
            return False
        return True

    def _take_want(self, peer: NodeId, message: Message) -> None:
        heard = self._heard.setdefault(peer, Heard())
        number, base = int(message[1]), message[2]
        if number <= heard.number:
            self._transport.send(peer, (KNOWN, b"%d" % heard.number))
            return
        if base and int(base) != heard.number:
            self._transport.send(peer, (KNOWN, b""))  # One was lost.
            return
        if not base:
            heard.clear()
        heard.number = number
        for at in range(3, len(message) - 2, 3):
            kind, name, count = message[at], message[at + 1], int(message[at + 2])
            if kind == EVERYTHING:
                heard.wants_everything = True
            elif kind in (CHANNEL, PATTERN, SHARD) and count > 0:
                heard.counts[kind][name] = count
            elif kind in (CHANNEL, PATTERN, SHARD):
                heard.counts[kind].pop(name, None)
        self._pubsub.forget_routes()
        self._node.notifier.look()
        self._transport.send(peer, (KNOWN, b"%d" % number))
