"""What makes a node a member of a cluster: its parts, composed, and the way between them and the network.

It decides nothing itself. What arrives goes by its verb to the part that knows it; what leaves waits for
the log. Each tick of the node ends with `flush`: what was executed has been written to the log, so its
deltas may leave, and what it promises (acknowledgements, confirmations, forwarded replies) leaves once
the log is as durable as the configuration asks for.

    dispatch       commands: here, forwarded, split              respkv/dispatch.py
    gather         commands on the whole keyspace                respkv/gather.py
    tracing        KV.TRACE                                      respkv/trace.py
    coordinator    rounds: W and R                               cluster/coordinator.py
    participant    other nodes' rounds                           cluster/participant.py
    membership     who can be reached                            cluster/membership.py
    exchange       what was missed                               cluster/exchange.py
    interest       CLIENT TRACKING at other nodes                respkv/interest.py
    arrivals       WAIT: who has what was written                cluster/arrival.py
    audiences      messages that clients publish                 respkv/audience.py
    roll_call      whether all nodes are here                    cluster/roll_call.py
    witnesses      whether this node's disk is an old one        cluster/witness.py

    STATE is_complete word      to each peer, when it is connected, when it changes, and with each gossip

Core, but for what it is handed: clocks, randomness, the transport.
"""

from __future__ import annotations

from array import array
from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from operator import lt
from typing import TYPE_CHECKING, Any, Final

from cluster.arrival import PREFIX as ARRIVAL
from cluster.arrival import Arrivals
from cluster.batch import Quorums
from cluster.clock import SlotClock
from cluster.coordinator import Coordinator
from cluster.delta import lacks
from cluster.errors import ClusterError
from cluster.exchange import Exchange, ExchangeSettings
from cluster.gossip_message import Terms, VersionRange
from cluster.member_event import (
    ClockBack,
    ClockOff,
    DuplicateName,
    Event,
    MemberRestarted,
    PeerReachable,
    PeerUnreachable,
)
from cluster.membership import Membership, MembershipSettings, introduce
from cluster.participant import Participant
from cluster.quorum_messages import ACK, NOT, READ, REPAIR, SAME, SETTLED, STATES, WRITE
from cluster.record import Record
from cluster.ring import NodeId
from cluster.roll_call import RollCall
from cluster.slot import Row, Slot
from cluster.topology import Topology
from cluster.transport import Message, Transport
from cluster.witness import Mark, OldDisk, Witnesses
from engine.errors import DiskFullError, EngineError
from engine.store import PageFault
from respkv.audience import Audiences
from respkv.dispatch import Dispatch
from respkv.forwarding import VERBS
from respkv.gather import Gather
from respkv.interest import PREFIX as INTEREST
from respkv.interest import Interest
from respkv.trace import Tracing
from respkv.waits import Waits

if TYPE_CHECKING:
    from cluster.replica import Replica
    from respkv.node import Node
    from respkv.reply import ReplyError

STATE: Final = b"STATE"
VERSIONS: Final = VersionRange(1, 1)  # Of the protocol between nodes.
RETRY_S: Final = 0.1  # Then a second replica is asked to confirm a read.
EXCHANGE_NS: Final = 1_000_000  # In each tick.
MESSAGE_OVERHEAD_BYTES: Final = 1 << 18  # Beside one value, in a message of the bus.
SLOTS_IN_FLIGHT: Final = 32  # Transfers from each peer: nearly all are one small message.
GROUPS_PER_ROUND: Final = 4  # Of 128: on a busy node every slot changes all the time.
PAGE_ROWS: Final = 64
Promise = tuple[int, NodeId, Sequence[bytes]]


class Peers:
    """The cluster's side of one node."""

    def __init__(self, node: Node, make_transport: Callable[[Peers], Transport]) -> None:
        config = node.config
        assert config.me is not None
        self.node = node
        self._commit = node.commit
        self.replica = node.replica
        self.topology = Topology(config.me.name, config.nodes, config.n)
        self.topology.mark_complete(self.topology.me, is_complete=self.replica.is_complete)
        self.roll_call = RollCall(self.topology)
        self.witnesses = Witnesses(self.replica.mark)
        self._say_joined: Callable[[], None] | None = None
        settings = config.cluster
        self.terms = Terms(settings.name, VERSIONS)
        self.transport = make_transport(self)
        now_s, wall_ms = node.monotonic_s(), node.now_ms()
        gossip_settings = MembershipSettings(
            interval_s=settings.gossip_interval_ms / 1000,
            clock_skew_max_ms=settings.clock_skew_max_ms,
        )
        gossip = introduce(
            self.terms,
            self.topology,
            wall_ms,
            actors=(self.replica.actor,),
            settings=gossip_settings,
        )
        self.membership = Membership(
            self.topology, gossip, self.transport, node.rng, now_s, wall_ms, gossip_settings
        )
        self._gossiped_s = now_s - gossip_settings.interval_s
        self.quorums = Quorums(config.replica_count, config.r, config.w)
        self.coordinator = Coordinator(
            self.topology,
            self.replica,
            self.transport,
            self.quorums,
            timeout_s=settings.timeout_ms / 1000,
            retry_s=RETRY_S,
            first_id=node.rng.getrandbits(52),
            fetch=self._fetch,
            when_durable=self.promise,
        )
        self._least_w = self.quorums.w
        if node.policies is not None:
            self._least_w = node.policies.least_w(self.quorums.w)
            greatest = node.policies.greatest(self.quorums.r, self.quorums.w)
            self.coordinator.survey_quorums = self.coordinator.quorums_of(*greatest)
            if node.policies.keeps_one_somewhere:
                self.replica.keeps_one = node.policies.keeps_one
        if self.quorums.checks_all:
            rows = self.replica.open_rows.at_start(settings.timeout_ms + 1000)
            together = self.replica.open_rows.written_together()
            self.coordinator.inquest.open_at_start(rows, together, now_s)
        self.replica.open_rows.forget_found()
        self.participant = Participant(
            self.replica,
            promise=self.promise,
            fetch=self._fetch,
            held=self.coordinator.held if self.coordinator.is_many else None,
        )
        self.exchange = Exchange(
            self.topology,
            _Slots(node, self.replica),
            self.transport,
            node.rng,
            ExchangeSettings(groups_per_round=GROUPS_PER_ROUND, slots_in_flight=SLOTS_IN_FLIGHT),
            self._fetch_for_exchange,
        )
        self.dispatch = Dispatch(
            node,
            self.topology,
            self.coordinator,
            self.transport,
            timeout_s=settings.timeout_ms / 1000,
            retries_max=settings.conflict_retries,
            in_flight_bytes_max=settings.bytes_in_flight_max,
            message_bytes_max=settings.bus_frame_bytes_max - MESSAGE_OVERHEAD_BYTES,
            first_id=node.rng.getrandbits(52),
            promise=self.promise,
        )
        self.gather = self.dispatch.gather = Gather(self)
        self.arrivals = Arrivals(
            self.topology,
            self.replica,
            self.transport,
            w=config.w,
            first_id=wall_ms << 10,  # Beyond those of the process before.
            promise=self.promise,
            when_durable=node.commit.when_durable,
        )
        self.waits = Waits(node, self.arrivals)
        self.interest = node.tracking.interest = Interest(
            node, self.topology, self.transport, first_id=wall_ms << 10
        )
        self.audiences = node.pubsub.audiences = Audiences(
            node, node.pubsub, self.transport, timeout_s=settings.timeout_ms / 1000
        )
        node.pubsub.message_bytes_max = self.dispatch.message_bytes_max
        self.tracing = self.dispatch.tracing = Tracing(self)
        self.is_clock_off = False
        self.received: dict[bytes, int] = {}  # Messages by verb.
        self._promises: deque[Promise] = deque()
        # Who takes a message, by its verb: the frequent ones cost one look-up.
        self._parts: dict[bytes, Callable[[NodeId, Message], bool]] = {
            **dict.fromkeys((ACK, SAME, STATES, NOT), self.coordinator.receive),
            **dict.fromkeys((WRITE, READ, REPAIR, SETTLED), self.participant.receive),
            **dict.fromkeys(VERBS, self.dispatch.forwarding.receive),
        }
        self._leads: dict[NodeId, float] = {}
        self.dispatch.forwarding.lead_ms = lambda peer: self._leads.get(peer, 0.0)
        self._heard_s: dict[NodeId, float] = {}
        self._new_promises: list[tuple[NodeId, Sequence[bytes]]] = []
        self._has_exchange_work = True
        if not self.replica.is_complete:
            node.log.info("incomplete: it serves when it has compared its data with other nodes")

    # The way in

    def receive(self, peer: NodeId, message: Message) -> None:
        """See `cluster.transport.Receiver`."""
        node = self.node
        now_s = self.coordinator.now_s = node.now_s
        self.coordinator.now_ms = self.participant.now_ms = node.now_ms()
        verb = message[0]
        if self._heard_s.get(peer) != now_s:  # Once a tick.
            self._heard_s[peer] = now_s
            self._act(self.membership.heard(peer, now_s))
        try:
            part = self._parts.get(verb)
            if part is not None:
                part(peer, message)
            elif verb.startswith(b"GOSSIP."):
                self._act(self.membership.receive(peer, message, now_s))
            elif verb.startswith(b"EXCHANGE."):
                self.exchange.receive(peer, message, now_s)
                self._has_exchange_work = True
            elif verb.startswith(b"GATHER."):
                self.gather.receive(peer, message)
            elif verb.startswith(INTEREST):
                self.interest.receive(peer, message)
            elif verb.startswith(ARRIVAL):
                self.arrivals.receive(peer, message)
            elif verb.startswith(b"PUBSUB."):
                self.audiences.receive(peer, message)
            elif verb == STATE:
                self._take_state(peer, message)
            else:
                node.log.warning("unknown message", peer=peer, verb=verb[:40].decode("latin-1"))
                return
        except (ClusterError, ValueError, IndexError) as error:
            node.log.error(
                "malformed message", peer=peer, verb=verb[:40].decode("latin-1"), reason=str(error)
            )
        else:
            self.received[verb] = self.received.get(verb, 0) + 1

    def set_part(self, verbs: Iterable[bytes], part: Callable[[NodeId, Message], bool]) -> None:
        """Have messages of these verbs taken by another part."""
        self._parts.update(dict.fromkeys(verbs, part))

    def connected(self, peer: NodeId) -> None:
        """See `cluster.transport.Receiver`."""
        self.roll_call.connected(peer)
        self._act(self.membership.connected(peer, self.node.monotonic_s()))
        self._tell_state(peer)
        self.exchange.connected(peer)
        self.interest.connected(peer)
        self.audiences.connected(peer)
        self._has_exchange_work = True

    def disconnected(self, peer: NodeId, *, is_refused: bool) -> None:
        """See `cluster.transport.Receiver`."""
        now_s = self.node.monotonic_s()
        self.roll_call.disconnected(peer)
        self._act(self.membership.disconnected(peer, now_s, is_refused=is_refused))
        self.exchange.disconnected(peer)
        self.audiences.disconnected(peer)
        self._lose(peer)

    def _act(self, events: Sequence[Event]) -> None:
        """What membership has found out."""
        for event in events:
            match event:
                case PeerReachable():
                    self.node.log.info("peer reachable", peer=event.name)
                    self._tell_state(event.name)
                    self.interest.connected(event.name)
                case PeerUnreachable():
                    self.node.log.warning("peer unreachable", peer=event.name, reason=event.reason)
                    self._lose(event.name)
                case MemberRestarted():
                    # What its messages' numbers tell is not forgotten: those of each process begin elsewhere,
                    # and this may be heard after the first of the new ones, which may come again.
                    self.interest.forget(event.name)
                case ClockOff() | ClockBack():
                    self.is_clock_off = self.membership.is_clock_off
                    self.node.log.warning("clocks", what=str(event))
                    self._note_fitness()
                case DuplicateName():
                    self.node.log.error(
                        "another process has this node's name and serves: this one stops",
                        what=str(event),
                    )
                    self.node.exit_status = 1
                    self.node.stop()
                case _:
                    self.node.log.info("membership", what=str(event))
        if events:
            self._call_roll()

    def _take_state(self, peer: NodeId, message: Message) -> None:
        """Raises IndexError, MalformedWord."""
        is_complete = message[1] == b"1"
        self.roll_call.told(peer)
        if self.topology.mark_complete(peer, is_complete=is_complete):
            self.node.log.info("a peer's state", peer=peer, is_complete=is_complete)
        if len(message) > 2:  # Releases before this one say no word.
            mark = self.witnesses.hear(peer, message[2])
            if mark is not None:
                self._doubt_disk(peer, mark)
        self._call_roll()

    def _doubt_disk(self, peer: NodeId, mark: Mark) -> None:
        """A peer has heard this node to be further than it is."""
        was_complete = self.replica.is_complete
        try:
            self.replica.begin_history(mark[0] + 1)
        except DiskFullError:
            pass  # After a restart it is told again.
        except EngineError as error:
            self.node.fail(error)
            return
        if self.replica.goes_on:
            self.node.fail(OldDisk(peer, mark))
        elif was_complete:
            self.node.log.warning(
                "the data folder is older than what was done with it: incomplete until its data is compared",
                known_to=peer,
            )
        self._note_fitness()

    def _lose(self, peer: NodeId) -> None:
        self.coordinator.now_s = self.node.now_s
        self.coordinator.disconnected(peer)
        self.dispatch.forwarding.disconnected(peer)
        self.gather.disconnected(peer)
        self.interest.lose(peer)

    @property
    def is_fit(self) -> bool:
        """Whether this node may coordinate, and counts for reads."""
        return self.replica.is_complete and not self.is_clock_off

    def _note_fitness(self) -> None:
        if self.topology.mark_complete(self.topology.me, is_complete=self.is_fit):
            for peer in self.topology.peers:
                self._tell_state(peer)
            self._call_roll()

    def tell_when_joined(self, say: Callable[[], None]) -> None:
        """Call `say` whenever this node has joined all others, also if it has by now."""
        self._say_joined = say
        self._call_roll()

    def _call_roll(self) -> None:
        if self._say_joined is not None and self.roll_call.is_news():
            self._say_joined()

    def _tell_state(self, peer: NodeId) -> None:
        word = self.witnesses.word_for(peer, self.replica.mark)
        self.transport.send(peer, (STATE, b"1" if self.is_fit else b"0", word))

    # The way out

    def promise(self, peer: NodeId, answer: Sequence[bytes]) -> None:
        """Send an answer once all that was applied by now is as safe as the configuration asks for."""
        self._new_promises.append((peer, answer))

    def prepare(self) -> None:
        """The tick ends: the last chance to execute something before the log is written."""
        if self.tracing.active:
            self.tracing.work()
        if self.dispatch.execution.has_parked and not self.node.runner.gate.is_stalled:
            self.dispatch.execution.try_parked()
        self.work()
        if not self.arrivals.is_idle:
            self.arrivals.work()
            self.waits.work(self.node.now_ms())
        self.node.tracking.flush()  # Of what others have changed.

    def flush(self, position: int) -> None:
        """The tick has ended, and the log is written up to `position`, unless the disk took nothing."""
        self.interest.flush()
        releasable = self._commit.releasable
        if self._promises:
            self._send_promised(releasable)  # In order: the disk may have got there since.
        self.coordinator.flush(
            is_logged=not self.node.store.log.pieces, position=position, durable=releasable
        )
        if self.tracing.active:
            self.tracing.logged(position)
        promises, self._new_promises = self._new_promises, []
        if promises:
            if position <= releasable and not self._promises:
                send = self.coordinator.transport.send
                for peer, answer in promises:
                    send(peer, answer)
            else:
                self._promises += [(position, peer, answer) for peer, answer in promises]
                self._commit.want_sync()
        self.audiences.flush()
        self.transport.flush()

    def release(self, position: int) -> None:
        """The log is durable up to `position`."""
        if self.tracing.active:
            self.tracing.released()
            self.node.ticker.wake()  # So that a tick answers what has ended.
        if self._promises:
            self._send_promised(position)
            self.transport.flush()

    def _send_promised(self, position: int) -> None:
        promises = self._promises
        send = self.coordinator.transport.send  # Which is watched while something is traced.
        while promises and promises[0][0] <= position:
            _, peer, answer = promises.popleft()
            send(peer, answer)

    @property
    def has_work(self) -> bool:
        """Whether `work` should be called in the next tick, without waiting for anything."""
        if self.tracing.active and self.tracing.has_ended:
            return True
        if self._has_exchange_work and not self.replica.store.is_stalled:
            return True
        return self.gather.has_work

    def work(self) -> None:
        """A slice of the exchange, and one of the commands on the whole keyspace."""
        self.gather.work()
        if self._has_exchange_work and not self.replica.store.is_stalled:
            clock_ns = self.node.clock_ns
            until_ns = clock_ns() + EXCHANGE_NS
            self._has_exchange_work = self.exchange.work(lambda: clock_ns() >= until_ns)

    @property
    def is_waiting(self) -> bool:
        """Whether answers of others are waited for, which may be late."""
        coordinator = self.coordinator
        has_rounds = bool(coordinator.writes or coordinator.reads)
        return has_rounds or bool(self.dispatch.forwarding.forwards or self.gather.tasks)

    def tick(self, now_s: float) -> None:
        """Some times a second, and more often while it `is_waiting`."""
        self.coordinator.now_ms = self.participant.now_ms = self.node.now_ms()
        if now_s - self._gossiped_s >= self.membership.settings.interval_s:
            self._gossiped_s = now_s
            self._act(self.membership.tick(now_s, self.node.now_ms()))
            for peer in self.topology.peers:
                self._tell_state(peer)  # Again: a message may be lost.
            clocks = self.membership.clocks
            self._leads = {peer: clocks.lead_ms(peer) for peer in self.topology.peers}
        self.coordinator.tick(now_s)
        self.dispatch.forwarding.tick(now_s)
        self.dispatch.tick(now_s)
        self.gather.tick(now_s)
        self.arrivals.tick(now_s)
        self.interest.tick(now_s)
        self.waits.tick()
        self.audiences.tick(now_s)
        self.exchange.tick(now_s)
        self._has_exchange_work = True
        if not self.replica.is_complete:
            self._check_complete()

    def _check_complete(self) -> None:
        """Complete again, once every slot was compared with a quorum of others."""
        needed = max(1, self.quorums.n - self._least_w + 1)
        me = self.topology.me
        needed_of = self.topology.by_slot(
            lambda replicas: min(needed, len(replicas) - 1) if me in replicas else 0
        )
        if any(map(lt, self.exchange.match_counts, needed_of)):
            return
        try:
            self.replica.note(is_complete=True)
        except DiskFullError:
            return  # There may be room the next time.
        except EngineError as error:
            self.node.fail(error)
            return
        self.node.log.info("complete: its data was compared with other nodes")
        self._note_fitness()

    # Pages

    def _fetch(self, fault: PageFault, then: Callable[[], None]) -> None:
        def resume(now_ms: int, failure: ReplyError | None) -> None:
            self.coordinator.now_ms = self.participant.now_ms = now_ms
            if failure is None:
                then()

        self.node.fetch(fault, None, resume)

    def _fetch_for_exchange(self, fault: PageFault, resume: Callable[[Any], None]) -> None:
        def arrived(now_ms: int, failure: ReplyError | None) -> None:
            resume(None if failure is None else EngineError(failure.line.decode()))
            self._has_exchange_work = True

        self.node.fetch(fault, None, arrived)


class _Slots:
    """The replica as the exchange wants it."""

    def __init__(self, node: Node, replica: Replica) -> None:
        self._node = node
        self._replica = replica

    def clock(self, slot: Slot) -> SlotClock:
        return self._replica.clocks.clock(slot)

    def seen_slots(self) -> Iterable[Slot]:
        return self._replica.clocks.slots()

    def has_undecided(self, slot: Slot) -> bool:
        peers = self._node.peers
        return peers is not None and peers.coordinator.undecided.has_slot(slot)

    def change_counts(self) -> Sequence[array[int]]:
        return (self._replica.clocks.own, self._replica.heard)

    def pages(self, slot: Slot) -> Generator[list[tuple[Row, bytes]] | PageFault, None, None]:
        with self._replica.store.snapshot_scan(slot) as scan:
            while True:
                try:
                    rows = scan.page(PAGE_ROWS)
                except PageFault as fault:
                    yield fault
                    continue
                if not rows:
                    return
                yield rows

    def repair(self, slot: Slot, row: Row, record: Record) -> bool:
        return self._replica.repair(slot, row, record, self._node.now_ms())

    def join_clock(self, slot: Slot, clock: SlotClock) -> None:
        if lacks(self._replica.clocks.clock(slot), clock):
            self._replica.join_clock(slot, clock, self._node.now_ms())
