"""How replicas find out what they lack of each other, and get it: anti-entropy by slot clocks.

It is not how writes get around (`cluster/coordinator.py` sends each to all replicas at once): it is
what makes up for those that were lost, for a node that was away, and for one that lost its data. It
does not join rows, nor know how they are stored: `cluster/delta.py` has the rules, the replica the rows.

**Comparing.** About once a second, and at once after they were connected, a node sends each peer that
shares slots with it a digest: a hash for each of 128 groups of slots, over the clocks of those slots
that both own. The peer answers which groups are the same, and the clocks of the others. The node that
asked looks where the peer has seen more than itself. Each compares for itself only, so the two
directions do not depend on each other, and a lost message costs a round.

    asks                                   answers
    DIGEST: groups and hashes   ---->      SAME: groups; CLOCKS: the slots of a group that differs
    WANT: a slot, and a clock   ---->      ROWS 0, with the clock of the scan
    NEXT 1                      ---->      ROWS 1, LAST
    STOP                        ---->
                                <----      GONE, if a transfer is not known or cannot go on

While writes are under way clocks differ all the time. A slot becomes a *suspect*, and is *wanted* only
if, a second later, the node still lacks what the peer had seen then. After a connection was made there
is no such grace. Rows are sent by `cluster/exchange_transfer.py`, where the rule stands that keeps
clocks true. A slot is taken from one peer at a time: the next one is asked for what is then missing.

**Cost.** Hashes are kept until a slot changes, and so is the digest of a peer. A round hashes
`groups_per_round` changed groups and leaves the other changed ones out, and it is answered with the
clocks of as many; which groups these are goes round. Only the first comparison after a connection is
of everything. Groups of which slots are still wanted are not compared again.

**Bounds.** Per peer and direction: `slots_in_flight` transfers with one chunk each; one digest that is
answered, one being made. Suspects and wanted slots: at most all slots, each with its packed clock.

**Matched.** For each slot it is kept which peers were found to have seen nothing more than this node
since `reset`: by an equal hash, a clock that is covered, or a transfer that came to its end. That makes
an incomplete replica complete again: once it has matched with a quorum, it has all that was acknowledged.

Whoever owns it calls `tick`, `receive`, `connected`, `disconnected`, and in each tick of the node
`work`, which does all that takes time, in steps of some tenths of a millisecond. All in one task.

Core: time and randomness are arguments. Sources: Goncalves, Almeida, Baquero and Fonte, DottedDB
(comparing node clocks); DeCandia et al., Dynamo (anti-entropy by ranges).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from random import Random

from cluster.exchange_compare import Comparison
from cluster.exchange_peer import ExchangeSettings, Peer, Progress
from cluster.exchange_transfer import Fetch, Incoming, Order, Outgoing, Replica, Resume
from cluster.exchange_wire import (
    GROUP_COUNT,
    Clocks,
    Digest,
    ExchangeMessage,
    Gone,
    MalformedExchange,
    Next,
    Rows,
    Same,
    Stop,
    Want,
    decode,
    encode,
)
from cluster.ring import NodeId
from cluster.slot import Slot
from cluster.topology import Topology
from cluster.transport import Transport
from engine.errors import EngineError

__all__ = [
    "Exchange",
    "ExchangeSettings",
    "Fetch",
    "MalformedExchange",
    "Progress",
    "Replica",
    "Resume",
]


class Exchange:
    """One node's exchange with all others. See the module's docstring for who calls what."""

    def __init__(
        self,
        topology: Topology,
        replica: Replica,
        transport: Transport,
        rng: Random,
        settings: ExchangeSettings,
        fetch: Fetch,
        order: Order = list,
    ) -> None:
        """`order` sorts the rows of a chunk before they are sent: they are stored in that order."""
        self._topology = topology
        self._replica = replica
        self._transport = transport
        self._rng = rng
        self._settings = settings
        self._fetch = fetch
        self._order = order
        self._now_s = 0.0
        self._progress = Progress()
        self._comparison = Comparison(topology, replica, transport, rng, settings, self._progress)
        self._peers: dict[NodeId, Peer] = {}
        self._epoch: int | None = None
        self._taking: dict[Slot, NodeId] = {}  # Of whom each slot is taken now.
        self._steps = self._cycle()
        self._has_progressed = True

    # What happens

    def tick(self, now_s: float) -> None:
        """Time has passed: begin comparisons, ask again, forget what nobody wants. Call it some times a second."""
        self._now_s = now_s
        self._adopt_topology()
        for peer in self._peers.values():
            if now_s >= peer.next_round_s and peer.round is None:
                self._comparison.begin_round(peer, now_s)
            for incoming in list(peer.incoming.values()):
                if now_s - incoming.asked_s >= self._settings.retry_s and incoming.request:
                    self._ask_again(peer, incoming)
            for outgoing in list(peer.outgoing.values()):
                if now_s - outgoing.used_s >= self._settings.idle_s:
                    self._drop_outgoing(peer, outgoing)

    def connected(self, name: NodeId) -> None:
        """Messages go both ways: compare everything, at once."""
        self._adopt_topology()
        if (peer := self._peers.get(name)) is not None:
            self._comparison.begin_again(peer)

    def disconnected(self, name: NodeId) -> None:
        """What was under way may be lost. What was matched stays so."""
        if (peer := self._peers.get(name)) is not None:
            self._forget(peer)

    def receive(self, name: NodeId, message: Sequence[bytes], now_s: float) -> None:
        """A message of a peer has come. Raises MalformedExchange, and then has changed nothing."""
        self._now_s = max(self._now_s, now_s)
        told = decode(message)
        self._adopt_topology()
        peer = self._peers.get(name)
        if peer is None:
            return  # It is no member by this node's view.
        match told:
            case Digest():
                self._comparison.hear_digest(peer, told)
            case Same():
                self._comparison.hear_same(peer, told)
            case Clocks():
                self._comparison.hear_clocks(peer, told, self._now_s)
            case Want():
                self._hear_want(peer, told)
            case Next():
                self._hear_next(peer, told)
            case Rows():
                self._hear_rows(peer, told, message)
            case Stop():
                outgoing = peer.outgoing.get(told.slot)
                if outgoing is not None and outgoing.id == told.id:
                    self._drop_outgoing(peer, outgoing)
            case Gone():
                incoming = peer.incoming.get(told.slot)
                if incoming is not None and incoming.id == told.id:
                    self._drop_incoming(peer, incoming)

    def work(self, is_time_up: Callable[[], bool]) -> bool:
        """Do what is to be done until time is up; whether there may be more to do at once.

        False: what is left waits for a peer, for a page, or for room in a connection. Call it again
        in the next tick.
        """
        while True:
            has_done = next(self._steps)
            if has_done is not None:
                self._has_progressed |= has_done
            elif not self._has_progressed:
                return False
            else:
                self._has_progressed = False
            if is_time_up():
                return True

    # What it knows

    @property
    def match_counts(self) -> bytearray:
        """With how many peers each slot was matched, by slot: for who waits for many. Not to be changed."""
        return self._comparison.match_counts

    def matched(self, slot: Slot) -> list[NodeId]:
        """The peers that were found to have seen nothing more of a slot than this node, since it was reset."""
        return [peer.name for peer in self._peers.values() if peer.matched[slot]]

    def is_complete_with(self, name: NodeId) -> bool:
        """Whether all slots that a peer shares were matched with it."""
        peer = self._peers.get(name)
        if peer is None:
            return False
        return all(
            peer.matched[slot]
            for group in range(GROUP_COUNT)
            for slot in self._comparison.shared(peer, group)
        )

    def reset(self, slots: Iterable[Slot]) -> None:
        """The slots' data is in doubt, or gone: forget what was matched, and end transfers to this node.

        To be called after their clocks were set back, before anything else happens.
        """
        slots = list(slots)
        self._comparison.reset(slots, self._peers.values())
        for slot in slots:
            if (name := self._taking.get(slot)) is not None:
                peer = self._peers[name]
                self._end_incoming(peer, peer.incoming[slot])

    def progress(self) -> Progress:
        """For INFO: what was done, and how much is left."""
        left: dict[Slot, None] = {}
        for peer in self._peers.values():
            for slots in (peer.suspects, peer.wanted, peer.incoming):
                left.update(dict.fromkeys(slots))
        self._progress.slots_left = len(left)
        self._progress.transfers = sum(
            len(peer.incoming) + len(peer.outgoing) for peer in self._peers.values()
        )
        return self._progress

    # Peers

    def _adopt_topology(self) -> None:
        topology = self._topology
        if topology.epoch == self._epoch:
            return
        self._epoch = topology.epoch
        for name in list(self._peers):
            if name not in topology.nodes:
                self._forget(self._peers[name])
                self._comparison.remove(self._peers.pop(name))
        for name in topology.peers:
            peer = self._peers.get(name)
            if peer is None:
                first_s = self._now_s + self._rng.random() * self._settings.interval_s
                self._peers[name] = Peer(name, first_s)
            else:
                self._comparison.adopt_topology(peer)

    def _forget(self, peer: Peer) -> None:
        """End all that is under way with a peer."""
        peer.round = peer.answer = peer.full_round = None
        peer.is_full_due = True
        peer.suspects.clear()
        peer.wanted.clear()
        for incoming in list(peer.incoming.values()):
            self._drop_incoming(peer, incoming)
        for outgoing in list(peer.outgoing.values()):
            self._drop_outgoing(peer, outgoing)

    # Work

    def _cycle(self) -> Iterator[bool | None]:
        """All steps, for ever: whether each has done anything, and None when all had their turn."""
        while True:
            for peer in list(self._peers.values()):
                # A quiet peer costs some looks, and no turn.
                if peer.round is not None:
                    yield self._comparison.compare(peer)
                if peer.answer is not None:
                    yield self._comparison.answer(peer)
                if peer.suspects:
                    yield self._comparison.look_again(peer, self._now_s)
                if peer.wanted:
                    yield self._want(peer)
                for outgoing in list(peer.outgoing.values()):
                    yield self._send(peer, outgoing)
                for incoming in list(peer.incoming.values()):
                    yield self._take(peer, incoming)
            yield None

    # Transfers: who wants

    def _want(self, peer: Peer) -> bool:
        """Begin a transfer of a wanted slot, if there is room and nobody else sends it."""
        if not peer.wanted or len(peer.incoming) >= self._settings.slots_in_flight:
            return False
        # At most those that are taken from others stand before one that is not.
        for _ in range(min(len(peer.wanted), len(self._taking) + 1)):
            slot = next(iter(peer.wanted))
            lead = peer.wanted.pop(slot)
            if slot in self._taking:
                peer.wanted[slot] = lead
                continue
            if self._comparison.is_behind(slot, lead):
                self._begin_incoming(peer, slot)
            else:
                self._comparison.match(peer, slot)
            return True
        return False

    def _begin_incoming(self, peer: Peer, slot: Slot) -> None:
        clock = self._replica.clock(slot)
        if len(clock.beyond) > self._settings.clock_dots_max:
            clock.beyond.clear()  # Some rows come once more than they must.
        want = Want(self._rng.getrandbits(64), slot, clock)
        peer.incoming[slot] = Incoming(want, self._replica, self._fetch, self._now_s)
        self._taking[slot] = peer.name
        self._tell(peer, want)

    def _ask_again(self, peer: Peer, incoming: Incoming) -> None:
        request = incoming.request
        if request is None or incoming.attempts >= self._settings.attempts_max:
            self._end_incoming(peer, incoming)
            self._progress.dropped += 1
            return
        incoming.attempts += 1
        incoming.asked_s = self._now_s
        self._tell(peer, request)

    def _hear_rows(self, peer: Peer, rows: Rows, message: Sequence[bytes]) -> None:
        incoming = peer.incoming.get(rows.slot)
        if incoming is None or incoming.id != rows.id:
            self._tell(peer, Stop(rows.id, rows.slot))
        elif incoming.take(rows):
            self._progress.rows_received += len(rows.rows)
            self._progress.bytes_received += sum(map(len, message))

    def _take(self, peer: Peer, incoming: Incoming) -> bool:
        """Store some rows, and ask for more when all are stored."""
        if peer.incoming.get(incoming.slot) is not incoming:
            return False  # It ended since this turn began.
        try:
            if not incoming.step():
                return False
        except EngineError:
            # The store is damaged or full, which it has told its owner. The clock stays as it is.
            self._end_incoming(peer, incoming)
            self._progress.dropped += 1
            return True
        if incoming.is_done:
            self._progress.slots_received += 1
            self._end_incoming(peer, incoming)
            self._comparison.match(peer, incoming.slot)
        elif (request := incoming.request) is not None:
            incoming.attempts = 1
            incoming.asked_s = self._now_s
            self._tell(peer, request)
        return True

    def _end_incoming(self, peer: Peer, incoming: Incoming) -> None:
        """Let go of a transfer, and tell who sends it."""
        del peer.incoming[incoming.slot]
        del self._taking[incoming.slot]
        self._tell(peer, Stop(incoming.id, incoming.slot))

    def _drop_incoming(self, peer: Peer, incoming: Incoming) -> None:
        del peer.incoming[incoming.slot]
        del self._taking[incoming.slot]
        self._progress.dropped += 1

    # Transfers: who sends

    def _hear_want(self, peer: Peer, want: Want) -> None:
        known = peer.outgoing.get(want.slot)
        if known is not None:
            if known.id == want.id:
                known.ask(0, self._now_s)
                return
            self._drop_outgoing(peer, known)
        elif len(peer.outgoing) >= self._settings.slots_in_flight:
            # The peer keeps to the same limit, so it has forgotten at least one of them.
            self._drop_outgoing(peer, min(peer.outgoing.values(), key=lambda o: o.used_s))
        peer.outgoing[want.slot] = Outgoing(
            want,
            self._rng.getrandbits(64),
            self._replica,
            self._fetch,
            self._order,
            self._now_s,
            rows_max=self._settings.chunk_rows_max,
            bytes_max=self._settings.chunk_bytes_max,
        )

    def _hear_next(self, peer: Peer, request: Next) -> None:
        outgoing = peer.outgoing.get(request.slot)
        if outgoing is None or (outgoing.id, outgoing.scan) != (request.id, request.scan):
            self._tell(peer, Gone(request.id, request.slot))
        else:
            outgoing.ask(request.number, self._now_s)

    def _send(self, peer: Peer, outgoing: Outgoing) -> bool:
        """Scan a page, or send the chunk that is ready."""
        if peer.outgoing.get(outgoing.slot) is not outgoing:
            return False  # It ended since this turn began.
        if (rows := outgoing.message) is not None:
            message = encode(rows)
            if not self._transport.send_bulk(peer.name, message):
                return False
            outgoing.sent()
            self._progress.rows_sent += len(rows.rows)
            self._progress.bytes_sent += sum(map(len, message))
            return True
        try:
            return outgoing.step()
        except EngineError:
            self._drop_outgoing(peer, outgoing)
            self._tell(peer, Gone(outgoing.id, outgoing.slot))
            return True

    def _drop_outgoing(self, peer: Peer, outgoing: Outgoing) -> None:
        outgoing.close()
        del peer.outgoing[outgoing.slot]

    def _tell(self, peer: Peer, message: ExchangeMessage) -> None:
        self._transport.send(peer.name, encode(message))
