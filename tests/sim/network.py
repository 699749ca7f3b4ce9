"""A network between nodes that delays, loses, repeats and reorders messages, cuts links and breaks connections.

`Endpoint` is a node's way into it: it keeps the protocol of `cluster.transport.Transport`, and passes the
tests that every transport has to pass. Each ordered pair of nodes has a `Link` with its own faults, so a cut
may go one way only; each pair has at most one connection. Whoever ends leaves without a word: if its machine
is there, its peers are refused at once, and otherwise they find out after a while. A link that stays cut
breaks its connection too. Broken connections come back by themselves when they can.

What arrives at a node in one millisecond is handed over as one batch, within one tick of the node.
Everything that came true is counted in `fired`.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from cluster.ring import NodeId
from cluster.transport import Message, Receiver
from tests.sim.timeline import Timeline

KEEPER_S = 0.1
BULK_ROOM_BYTES = 1 << 18

Batch = list[Callable[[], None]]
Pair = tuple[NodeId, NodeId]
# For which process, whether it still comes, and its coming.
Arrival = tuple["Endpoint", Callable[[], bool], Callable[[], None]]


@dataclass(slots=True)
class Link:
    """One way between two nodes. Chances are per message."""

    delay_min_s: float = 0.0002
    delay_max_s: float = 0.002
    loss: float = 0.0
    repetition: float = 0.0
    reordering: float = 0.0
    extra_s: float = 0.0  # Of a slow link.
    bytes_per_s: float = 100e6
    is_cut: bool = False
    last_tick: int = 0
    flying_bytes: int = 0
    bulk_bytes: int = 0


@dataclass(slots=True)
class Connection:
    """Between two nodes: its number changes whenever it breaks."""

    number: int = 0
    is_up: bool = False
    cut_since_s: float | None = None
    patience_s: float = 2.0


class Network:
    """All links. `record` is told each delivery: source, destination, bytes."""

    def __init__(
        self,
        timeline: Timeline,
        rng: random.Random,
        *,
        fired: Counter[str] | None = None,
        record: Callable[[NodeId, NodeId, bytes], None] = lambda source, target, data: None,
        calm: Link | None = None,
    ) -> None:
        """`calm` is what links are like without faults."""
        self.timeline = timeline
        self.rng = rng
        self.fired = Counter() if fired is None else fired
        self.record = record
        self.calm = calm or Link()
        self.endpoints: dict[NodeId, Endpoint] = {}
        self.links: dict[Pair, Link] = {}
        self.connections: dict[Pair, Connection] = {}
        self._batches: dict[tuple[int, NodeId], list[Arrival]] = {}
        self._is_kept = False

    # Faults

    def link(self, source: NodeId, target: NodeId) -> Link:
        link = self.links.get((source, target))
        if link is None:
            link = self.links[source, target] = _calm_link(self.calm)
        return link

    def cut(self, source: NodeId, target: NodeId) -> None:
        """Nothing goes from one to the other any more."""
        self.link(source, target).is_cut = True

    def isolate(self, group: Sequence[NodeId], others: Sequence[NodeId]) -> None:
        """Nothing goes between the group and the others."""
        for one in group:
            for other in others:
                self.cut(one, other)
                self.cut(other, one)

    def heal(self) -> None:
        """All links are calm again. What is under way stays under way."""
        for link in self.links.values():
            link.is_cut = False
            link.extra_s = 0.0
            link.loss, link.repetition = self.calm.loss, self.calm.repetition
            link.reordering, link.bytes_per_s = self.calm.reordering, self.calm.bytes_per_s

    def break_connection(self, one: NodeId, other: NodeId) -> bool:
        """Lose what is under way between two nodes, and tell both."""
        connection = self.connection(one, other)
        if not connection.is_up:
            return False
        self.fired["broken connection"] += 1
        number = connection.number
        connection.is_up = False
        connection.number += 1
        for me, peer in ((one, other), (other, one)):
            self._tell_broken(me, peer, number, self.rng.uniform(0, 0.05), is_refused=False)
        return True

    # Endpoints

    def connection(self, one: NodeId, other: NodeId) -> Connection:
        pair = (one, other) if one < other else (other, one)
        connection = self.connections.get(pair)
        if connection is None:
            connection = self.connections[pair] = Connection()
        return connection

    def join(self, endpoint: Endpoint) -> None:
        assert endpoint.name not in self.endpoints
        self.endpoints[endpoint.name] = endpoint
        if not self._is_kept:
            self._is_kept = True
            self.timeline.after(KEEPER_S, self._keep)

    def leave(self, endpoint: Endpoint, *, is_refused: bool) -> None:
        del self.endpoints[endpoint.name]
        for peer in self.endpoints:
            connection = self.connection(endpoint.name, peer)
            if connection.is_up:
                number = connection.number
                connection.is_up = False
                connection.number += 1
                delay_s = 0.002 if is_refused else self.rng.uniform(0.5, 3)
                self._tell_broken(peer, endpoint.name, number, delay_s, is_refused=is_refused)

    def send(
        self, source: Endpoint, target: NodeId, message: Sequence[bytes], *, is_bulk: bool
    ) -> None:
        """Let a message fly, or be lost."""
        rng, link = self.rng, self.link(source.name, target)
        copy = [bytes(part) for part in message]
        size = sum(map(len, copy))
        if link.loss and rng.random() < link.loss:
            self.fired["lost message"] += 1
            return
        is_repeated = link.repetition and rng.random() < link.repetition
        self._fly(source, target, copy, size, link, is_bulk=is_bulk)
        if is_repeated:
            self.fired["repeated message"] += 1
            self._fly(source, target, copy, size, link, is_bulk=is_bulk)

    def _fly(
        self, source: Endpoint, target: NodeId, message: Message, size: int, link: Link, *, is_bulk: bool
    ) -> None:  # fmt: skip
        rng = self.rng
        delay_s = rng.uniform(link.delay_min_s, link.delay_max_s) + size / link.bytes_per_s
        if link.extra_s:
            self.fired["slow message"] += 1
            delay_s += link.extra_s
        due = int((self.timeline.now_s + delay_s) * 1000) + 1
        if link.reordering and rng.random() < link.reordering:
            due += rng.randint(1, 30)
            self.fired["reordered message"] += 1
        elif due < link.last_tick:
            due = link.last_tick
        else:
            link.last_tick = due
        connection = self.connection(source.name, target)
        number = connection.number
        link.flying_bytes += size
        link.bulk_bytes += size if is_bulk else 0

        def is_here() -> bool:
            link.flying_bytes -= size
            link.bulk_bytes -= size if is_bulk else 0
            if link.is_cut:
                self.fired["message into a cut"] += 1
                return False
            return connection.is_up and connection.number == number

        def arrive() -> None:
            self.record(source.name, target, b"\0".join(message))
            self.endpoints[target].receiver.receive(source.name, list(message))

        self._put(due, target, is_here, arrive)

    def _put(
        self, tick: int, target: NodeId, is_here: Callable[[], bool], arrive: Callable[[], None]
    ) -> None:
        """Something comes to a node in a millisecond to come, if `is_here` says so then."""
        endpoint = self.endpoints.get(target)
        if endpoint is None:
            return
        batch = self._batches.get((tick, target))
        if batch is None:
            batch = self._batches[tick, target] = []
            self.timeline.at(tick, partial(self._hand_over, tick, target))
        batch.append((endpoint, is_here, arrive))

    def _hand_over(self, tick: int, target: NodeId) -> None:
        now_here = self.endpoints.get(target)
        batch = [
            arrive
            for endpoint, is_here, arrive in self._batches.pop((tick, target))
            if is_here() and endpoint is now_here
        ]
        if batch and now_here is not None:
            now_here.run(batch)

    # Connections

    def _tell_broken(
        self, me: NodeId, peer: NodeId, number: int, delay_s: float, *, is_refused: bool
    ) -> None:
        endpoint = self.endpoints.get(me)
        if endpoint is None:
            return
        tick = int((self.timeline.now_s + delay_s) * 1000) + 1

        def tell() -> None:
            if endpoint.connected_to.get(peer) == number:  # And not a later one.
                del endpoint.connected_to[peer]
                endpoint.receiver.disconnected(peer, is_refused=is_refused)

        self._put(tick, me, lambda: True, tell)

    def _keep(self) -> None:
        """Make the connections that can be made, and break those whose link has long been cut."""
        names = sorted(self.endpoints)
        for place, one in enumerate(names):
            for other in names[place + 1 :]:
                self._keep_pair(one, other)
        self.timeline.after(KEEPER_S, self._keep)

    def _keep_pair(self, one: NodeId, other: NodeId) -> None:
        connection = self.connection(one, other)
        is_cut = self.link(one, other).is_cut or self.link(other, one).is_cut
        now_s = self.timeline.now_s
        if connection.is_up:
            if not is_cut:
                connection.cut_since_s = None
            elif connection.cut_since_s is None:
                connection.cut_since_s = now_s
                connection.patience_s = self.rng.uniform(0.5, 3)
            elif now_s - connection.cut_since_s > connection.patience_s:
                self.break_connection(one, other)
            return
        ends = self.endpoints[one], self.endpoints[other]
        is_news_out = other in ends[0].connected_to or one in ends[1].connected_to
        if is_cut or is_news_out or self.rng.random() < 0.5:
            return
        connection.is_up = True
        connection.number += 1
        connection.cut_since_s = None
        for me, peer in ((ends[0], other), (ends[1], one)):
            self._put(
                self.timeline.tick + 1,
                me.name,
                lambda number=connection.number: connection.number == number,  # type: ignore[misc]
                partial(me.now_connected, peer, connection.number),
            )


class Endpoint:
    """One process' way into the network: a `Transport`."""

    def __init__(
        self, network: Network, name: NodeId, *, is_alive: Callable[[], bool] = lambda: True
    ) -> None:
        self.name = name
        self._is_alive = is_alive
        self.connected_to: dict[NodeId, int] = {}  # The number of the connection.
        self.receiver: Receiver
        self.run: Callable[[Batch], None]
        self._network = network

    def start(self, receiver: Receiver, run: Callable[[Batch], None]) -> None:
        """Take part. `run` does a batch within a tick."""
        self.receiver = receiver
        self.run = run
        self._network.join(self)

    def stop(self, *, is_refused: bool) -> None:
        """Leave without a word. `is_refused`: the machine is there and refuses connections."""
        if self._network.endpoints.get(self.name) is self:
            self._network.leave(self, is_refused=is_refused)

    def now_connected(self, peer: NodeId, number: int) -> None:
        self.connected_to[peer] = number
        self.receiver.connected(peer)

    # The protocol

    def send(self, peer: NodeId, message: Sequence[bytes]) -> None:
        if self._may_send(peer):
            self._network.send(self, peer, message, is_bulk=False)

    def send_bulk(self, peer: NodeId, message: Sequence[bytes]) -> bool:
        if not self._may_send(peer):
            return False
        if self._network.link(self.name, peer).bulk_bytes >= BULK_ROOM_BYTES:
            return False
        self._network.send(self, peer, message, is_bulk=True)
        return True

    def flush(self) -> None:
        """Nothing was held back."""

    def is_connected(self, peer: NodeId) -> bool:
        return peer in self.connected_to

    def queued_bytes(self, peer: NodeId) -> int:
        return self._network.link(self.name, peer).flying_bytes

    def _may_send(self, peer: NodeId) -> bool:
        is_here = self._network.endpoints.get(self.name) is self
        return is_here and peer in self.connected_to and self._is_alive()


def _calm_link(calm: Link) -> Link:
    return Link(
        delay_min_s=calm.delay_min_s,
        delay_max_s=calm.delay_max_s,
        loss=calm.loss,
        repetition=calm.repetition,
        reordering=calm.reordering,
        bytes_per_s=calm.bytes_per_s,
    )
