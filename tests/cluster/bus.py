"""Memberships in one loop, in virtual time, over connections that break, stall and lose one direction.

Everything is drawn from the seed. A connection belongs to two processes: what is under way when it breaks
is lost, and a process that was stopped answers nothing.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from random import Random

from cluster.claim import Claim
from cluster.gossip_message import NodeId, Terms, VersionRange
from cluster.member_event import Event
from cluster.membership import Membership, MembershipSettings, introduce
from cluster.topology import NodeInfo, Topology

TERMS = Terms("blue", VersionRange(1, 2), ("hints",))
EPOCH_MS = 1_700_000_000_000  # The calendar at virtual second 0.


def infos(count: int) -> list[NodeInfo]:
    return [
        NodeInfo(f"n{i:02}", f"h{i:02}.example", 6379, 6479, 16379) for i in range(1, count + 1)
    ]


@cache
def claim_of(nodes: tuple[NodeInfo, ...], n: int) -> Claim:
    """The first claim of these nodes, computed once: it is the same in every process."""
    return Topology(nodes[0].name, nodes, n).claim


class QuietTopology(Topology):
    """Leaves out the choice of coordinators, which costs a millisecond for each change."""

    def _choose(self) -> None:
        self.coordinators = []


@dataclass
class Host:
    """One process, as the transport of its membership."""

    bus: Bus
    name: NodeId
    rng: Random
    skew_ms: int
    membership: Membership = field(init=False)
    events: list[tuple[float, Event]] = field(default_factory=list)
    is_paused: bool = False

    def send(self, peer: NodeId, message: Sequence[bytes]) -> None:
        self.bus.carry(self, peer, list(message))

    def send_bulk(self, peer: NodeId, message: Sequence[bytes]) -> bool:
        raise AssertionError("membership has nothing in bulk")

    def is_connected(self, peer: NodeId) -> bool:
        return peer in self.bus.connections.get(self.name, {})

    def queued_bytes(self, peer: NodeId) -> int:
        return 0

    def flush(self) -> None:
        """Nothing waits here."""

    @property
    def wall_ms(self) -> int:
        return EPOCH_MS + int(self.bus.now_s * 1000) + self.skew_ms

    @property
    def reachable(self) -> list[NodeId]:
        topology = self.membership.topology
        return [peer for peer in topology.peers if topology.is_reachable(peer)]

    def seen(self, *kinds: type, since_s: float = 0.0) -> list[tuple[float, Event]]:
        return [(at, e) for at, e in self.events if isinstance(e, kinds) and at >= since_s]

    def note(self, events: Iterable[Event]) -> None:
        self.events += [(self.bus.now_s, event) for event in events]


@dataclass
class Bus:
    """The network and the clock. `connections[a][b]` is the number of the connection that a has to b."""

    seed: str
    delay_s: float = 0.002
    interval_s: float = 1.0
    skew_max_ms: int = 1000
    hosts: dict[NodeId, Host] = field(default_factory=dict)
    connections: dict[NodeId, dict[NodeId, int]] = field(default_factory=dict)
    # Whether what the first sends to the second is lost, though the connection stays.
    is_cut: Callable[[NodeId, NodeId], bool] = lambda a, b: False
    trace: list[tuple[float, NodeId, NodeId, list[bytes]]] = field(default_factory=list)
    now_s: float = 0.0

    def __post_init__(self) -> None:
        self.rng = Random(f"bus-{self.seed}")
        self._queue: list[tuple[float, int, Callable[[], None]]] = []
        self._sequence = itertools.count()
        self._number = itertools.count(1)

    def start(
        self,
        name: NodeId,
        nodes: Sequence[NodeInfo],
        *,
        incarnation: int = 1,
        terms: Terms = TERMS,
        skew_ms: int = 0,
        kind: type[Topology] = Topology,
    ) -> Host:
        """A process begins; it connects to all that run, and is refused by the others."""
        host = Host(self, name, Random(f"{name}-{incarnation}-{self.seed}"), skew_ms)
        n = min(3, len(nodes))
        topology = kind(name, nodes, n, claim=claim_of(tuple(nodes), n))
        settings = MembershipSettings(self.interval_s, clock_skew_max_ms=self.skew_max_ms)
        gossip = introduce(terms, topology, incarnation, settings=settings)
        host.membership = Membership(
            topology, gossip, host, host.rng, self.now_s, host.wall_ms, settings
        )
        self.hosts[name] = host
        self.connections[name] = {}
        self.at(host.rng.uniform(0, self.interval_s), partial(self._tick, host))
        for node in nodes:
            if node.name in self.hosts and node.name != name:
                self.connect(name, node.name)
            elif node.name != name:
                host.note(host.membership.disconnected(node.name, self.now_s, is_refused=True))
        return host

    def stop(self, name: NodeId) -> None:
        """As `kill -9` does: its connections are reset."""
        for peer in list(self.connections[name]):
            self.reset(name, peer)
        del self.hosts[name], self.connections[name]

    def vanish(self, name: NodeId) -> None:
        """As a power cut does: nobody is told."""
        del self.hosts[name]

    def connect(self, one: NodeId, other: NodeId) -> None:
        number = next(self._number)
        for a, b in ((one, other), (other, one)):
            self.connections[a][b] = number
        for a, b in ((one, other), (other, one)):
            host = self.hosts[a]
            host.note(host.membership.connected(b, self.now_s))

    def reset(self, one: NodeId, other: NodeId) -> None:
        for a, b in ((one, other), (other, one)):
            del self.connections[a][b]
        for a, b in ((one, other), (other, one)):
            if a in self.hosts:
                host = self.hosts[a]
                host.note(host.membership.disconnected(b, self.now_s, is_refused=False))

    def carry(self, source: Host, target: NodeId, message: list[bytes]) -> None:
        number = self.connections.get(source.name, {}).get(target)
        if number is None or self.is_cut(source.name, target):
            return

        def deliver() -> None:
            host = self.hosts.get(target)
            if host is None or self.connections[target].get(source.name) != number:
                return
            if host.is_paused:
                self.at(0.05, deliver)
                return
            self.trace.append((self.now_s, source.name, target, message))
            host.note(host.membership.receive(source.name, message, self.now_s))

        self.at(self.rng.uniform(0.5, 1.5) * self.delay_s, deliver)

    def at(self, after_s: float, action: Callable[[], None]) -> None:
        heapq.heappush(self._queue, (self.now_s + after_s, next(self._sequence), action))

    def run(self, seconds: float, until: Callable[[], bool] = lambda: False) -> bool:
        """Let time pass. Returns whether `until` came true, which is looked at a hundred times a second."""
        end_s = self.now_s + seconds
        while self.now_s < end_s:
            stop_s = min(self.now_s + 0.01, end_s)
            while self._queue and self._queue[0][0] <= stop_s:
                self.now_s, _, action = heapq.heappop(self._queue)
                action()
            self.now_s = stop_s
            if until():
                return True
        return False

    def is_whole(self) -> bool:
        """Everybody that runs reaches everybody else that runs."""
        return all(len(host.reachable) == len(self.hosts) - 1 for host in self.hosts.values())

    def _tick(self, host: Host) -> None:
        if self.hosts.get(host.name) is not host:
            return
        if not host.is_paused:
            host.note(host.membership.tick(self.now_s, host.wall_ms))
        self.at(self.interval_s * host.rng.uniform(0.97, 1.03), partial(self._tick, host))
