"""Membership at work: it sends gossip, watches connections and clocks, and says who can be reached.

It owns no slot and moves none: who is a member, and who owns what, comes from the ownership epoch. All
members are known from the configuration; gossip tells which of them live, as what process, and on what
terms. It opens no connection either: that is the transport's.

    GOSSIP.DIGEST   Digest    first message of a gossip round (cluster/gossip.py)
    GOSSIP.ANSWER   Answer    second
    GOSSIP.TELL     Answer    third; also what a node says of itself on a new connection
    GOSSIP.BEAT     Beat      to each connected peer, once a round

Verbs that begin so and are not known come from a newer release, and are only a sign of life.

**Two opinions.** *Suspected* is what gossip thinks of a process: nobody has heard of it for too long. It
says little about the way there: a peer that this node cannot reach, and others can, is never suspected. So
each connection is watched as well, by *beats*. A beat holds when it was sent, and which of the receiver's
beats was the last to arrive (its *echo*). An echo that moves proves that both directions work; one
that stands still for as long as phi allows means that one of them does not, and both ends find out.

**Reachable** is a peer that is connected, has said anything since, is known by its profile, is compatible,
neither suspected nor declared down, and whose echo moves. It is unreachable from the beginning. A
refused or broken connection makes it so at once; so does a round trip that fails for some seconds.
`Topology.mark` is told of each change, in the call that finds it.

**Terms.** A profile carries the digest of the claim. Who differs from it in the same epoch has another
configuration file and is incompatible, as is who speaks no common protocol version or lacks what is
required. Nothing is begun with such a peer. Its digests are answered, so that both sides know why, and so that
it is found again when it has been restarted with the right file.

**Clocks.** A beat also holds its sender's calendar; `cluster/skew.py` finds whose is off.

**A name taken.** A node that hears of a later process at its own addresses has met its own past, before
its clock went back: it takes a higher incarnation. It does so a few times only; another process at the same
addresses would do the same.

Invariants: `topology` agrees with `obstacle` after each call. A call sends a bounded number of messages: one
beat to each peer, and at most three digests. Equal calls and equal random numbers give equal messages.

Core: a stepper over the transport seam, which never blocks; time is an argument and so is randomness. Sources:
SWIM (suspicion); Katz and Ward, RFC 5880 (a session is up when each end says that it hears the other);
RFC 7323 (echoed timestamps).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import Final

from cluster.gossip import Gossip, GossipSettings
from cluster.gossip_message import (
    COUNT_MAX,
    Addresses,
    Beat,
    GossipError,
    Incarnation,
    NodeId,
    Profile,
    Status,
    Terms,
    compatible,
    decode_answer,
    decode_beat,
    decode_digest,
    encode,
)
from cluster.member_event import (
    DuplicateName,
    Event,
    GossipRefused,
    MemberRestarted,
    PeerReachable,
    PeerUnreachable,
    TableFull,
)
from cluster.phi import FailureDetector, PhiSettings
from cluster.skew import PeerClocks
from cluster.topology import Topology
from cluster.transport import Message, Transport

DIGEST: Final = b"GOSSIP.DIGEST"
ANSWER: Final = b"GOSSIP.ANSWER"
TELL: Final = b"GOSSIP.TELL"
BEAT: Final = b"GOSSIP.BEAT"

PAST_COUNT_MAX: Final = 3  # How often a node steps over its own past.


@dataclass(frozen=True, slots=True)
class MembershipSettings:
    """How often, how sure, and how far clocks may differ."""

    interval_s: float = 1.0  # Between calls of `tick`.
    phi_threshold: float = 8.0
    clock_skew_max_ms: int = 1000

    def __post_init__(self) -> None:
        if self.interval_s <= 0 or self.clock_skew_max_ms <= 0:
            raise ValueError("interval_s and clock_skew_max_ms must be above 0")

    @property
    def phi(self) -> PhiSettings:
        return PhiSettings(
            self.phi_threshold,
            first_interval_s=2 * self.interval_s,
            deviation_min_s=max(self.interval_s / 2, 0.2),
        )


def introduce(
    terms: Terms,
    topology: Topology,
    incarnation: Incarnation,
    *,
    actors: Sequence[int] = (),
    settings: MembershipSettings | None = None,
) -> Gossip:
    """The gossip of a node of this topology, all of whose members are seeds.

    `incarnation` must be higher than any before: milliseconds of the calendar will do. The epoch in
    `terms` is not looked at: the topology's is said. Raises InvalidProfile.
    """
    me = topology.nodes[topology.me]
    profile = Profile(
        Status.UP,
        Addresses(me.host, me.client_port, me.cluster_port, me.bus_port),
        me.zone,
        me.data_centre,
        float(me.weight),
        terms.versions,
        terms.capabilities,
        terms.required,
        actors=tuple(actors),
        epoch=topology.epoch,
        epoch_digest=topology.claim.digest,
    )
    seeds = tuple((node.host, node.bus_port) for node in topology.nodes.values())
    phi = (settings or MembershipSettings()).phi
    return Gossip(terms.cluster, me.name, incarnation, profile, GossipSettings(seeds, phi=phi))


@dataclass(slots=True)
class _Link:
    """The connection to one peer, as it is seen from here. Microseconds are of beats, and 0 is none."""

    lost: str = "not connected yet"  # Why there is no connection, if there is none.
    obstacle: str | None = "not connected yet"
    is_heard: bool = False  # Since it was connected.
    heard_s: float | None = None  # Since the last tick.
    theirs_us: int = 0  # The peer's last beat,
    theirs_s: float = 0.0  # and when it came.
    echoed_us: int = 0  # This node's last beat that the peer is known to have.


class Membership:
    """One node's view of its peers. All times are seconds of a clock that never goes back."""

    def __init__(
        self,
        topology: Topology,
        gossip: Gossip,
        transport: Transport,
        rng: Random,
        now_s: float,
        wall_ms: int,
        settings: MembershipSettings | None = None,
    ) -> None:
        """Marks every peer as unreachable. `wall_ms` is the calendar's time at `now_s`."""
        self.topology = topology
        self.gossip = gossip
        self.settings = settings or MembershipSettings()
        self.clocks = PeerClocks(
            topology.me, self.settings.clock_skew_max_ms, wall_ms - now_s * 1e3
        )
        self._transport = transport
        self._rng = rng
        self._echoes = FailureDetector(self.settings.phi)  # A heartbeat is an echo that moves.
        self._links: dict[NodeId, _Link] = {}
        self._ticked_s = now_s
        self._past_count = 0
        for peer in topology.peers:
            topology.mark(peer, is_reachable=False)

    # What happens.

    def tick(self, now_s: float, wall_ms: int) -> list[Event]:
        """Once every `interval_s`: gossip, beat, and look at everybody's silence and at the clocks."""
        events: list[Event] = []
        for peer in self.topology.peers:
            link = self._link(peer)
            if link.heard_s is not None:
                events += self.gossip.sign_of_life(peer, link.heard_s)
                link.heard_s = None
        self._notice_pause(now_s)  # After what was heard before it, and before any verdict.
        self._ticked_s = now_s
        events += self.gossip.tick(now_s)
        events += self.clocks.judge(now_s * 1e3, wall_ms)
        self._gossip(now_s)
        for peer in self.topology.peers:
            if self._transport.is_connected(peer) and self._refusal(peer) is None:
                self._beat(peer, now_s)
            self._refresh(peer, now_s, events)
        return events

    def heard(self, peer: NodeId, now_s: float) -> list[Event]:
        """The peer sent something, whatever it was. Cheap: to be called for each batch of messages."""
        link = self._links.get(peer)
        if link is None:
            if peer not in self.topology.nodes or peer == self.topology.me:
                return []
            link = self._link(peer)
        link.heard_s = now_s
        if link.is_heard:
            return []
        link.is_heard = True
        self._echoes.restart(peer, now_s)
        events = self.gossip.sign_of_life(peer, now_s)
        self._refresh(peer, now_s, events)
        return events

    def receive(self, peer: NodeId, message: Message, now_s: float) -> list[Event]:
        """A message of one of the verbs above has come. It counts as `heard`, too."""
        self._notice_pause(now_s)
        events = self.heard(peer, now_s)
        try:
            found = self._take(peer, message, now_s)
        except GossipError as error:
            return [*events, GossipRefused(peer, str(error))]
        return events + self._follow(found, now_s)

    def connected(self, peer: NodeId, now_s: float) -> list[Event]:
        """Messages go both ways from now on. This node says at once who it is."""
        told = self.gossip.tell((self.topology.me,), now_s)
        self._transport.send(peer, [TELL, encode(told)])
        if peer not in self.topology.nodes:
            return []  # Its configuration differs. It will learn so from what it was told.
        link = self._forget_connection(peer, "the connection broke")
        link.echoed_us = _micros(now_s) - 1  # Echoes of what was sent before do not count.
        self.clocks.forget(peer)
        self._beat(peer, now_s)
        events: list[Event] = []
        self._refresh(peer, now_s, events)
        return events

    def disconnected(self, peer: NodeId, now_s: float, *, is_refused: bool) -> list[Event]:
        """The connection broke, or none could be made because nobody listens there."""
        if peer not in self.topology.nodes:
            return []
        self._notice_pause(now_s)
        self._forget_connection(
            peer, "it refuses connections" if is_refused else "the connection broke"
        )
        events = self.gossip.mark_unreachable(peer, now_s)
        self._refresh(peer, now_s, events)
        return events

    def change(self, profile: Profile, now_s: float) -> list[Event]:
        """Say something else of this node, such as another load or epoch. Raises InvalidProfile."""
        return self._follow(self.gossip.change(profile), now_s)

    # What is known.

    @property
    def profile(self) -> Profile:
        """What this node says of itself."""
        return self.gossip.me.profile

    @property
    def is_clock_off(self) -> bool:
        """Whether this node must neither coordinate nor expire. Looked at once a tick."""
        return self.topology.me in self.clocks.off

    def is_clock_off_at(self, peer: NodeId) -> bool:
        """Whether a peer will refuse to coordinate, as far as this node can tell."""
        return peer in self.clocks.off

    def clock_offset_ms(self) -> int:
        """How far this node's calendar is ahead of the median of all."""
        return self.clocks.offset_ms(self.topology.me) or 0

    def obstacle(self, peer: NodeId) -> str | None:
        """Why a peer cannot be reached, in words for an operator; None if it can."""
        link = self._links.get(peer)
        return _Link().obstacle if link is None else link.obstacle

    def version_with(self, peer: NodeId) -> int | None:
        """The protocol version to speak with a peer; None while it is not known or incompatible."""
        member = self.gossip.members.get(peer)
        if member is None:
            return None
        verdict = compatible(self.gossip.terms_of(self.gossip.me), self.gossip.terms_of(member))
        return None if isinstance(verdict, str) else verdict

    def common_capabilities(self) -> tuple[str, ...]:
        """What every member can do; nothing before all have been heard of since this node's start."""
        if any(peer not in self.gossip.members for peer in self.topology.peers):
            return ()
        return self.gossip.common_capabilities()

    # Sending.

    def _gossip(self, now_s: float) -> None:
        """The first message of a round, to whom gossip chooses. Encoded once."""
        names = {(node.host, node.bus_port): node.name for node in self.topology.nodes.values()}
        raw = b""
        for contact in self.gossip.begin(now_s, self._rng):
            peer = contact.name or names.get(contact.address)
            if peer is None or peer not in self.topology.nodes or peer == self.topology.me:
                continue
            if self._transport.is_connected(peer) and self._refusal(peer) is None:
                raw = raw or encode(self.gossip.digest(now_s))
                self._transport.send(peer, [DIGEST, raw])

    def _beat(self, peer: NodeId, now_s: float) -> None:
        link = self._link(peer)
        # A caller may tell the time of its tick here, and the present one there.
        held_us = max(int((now_s - link.theirs_s) * 1e6), 0) if link.theirs_us else 0
        wall_ms = int(now_s * 1e3 + self.clocks.ahead_ms)
        beat = Beat(_micros(now_s), min(max(wall_ms, 0), COUNT_MAX), link.theirs_us, held_us)
        self._transport.send(peer, [BEAT, encode(beat)])

    # Receiving.

    def _take(self, peer: NodeId, message: Message, now_s: float) -> list[Event]:
        """Raises GossipError, and has changed nothing then."""
        verb, raw = message[0], message[1] if len(message) > 1 else b""
        if verb == BEAT:
            return self._take_beat(peer, decode_beat(raw), now_s)
        if verb == DIGEST:
            digest = decode_digest(raw)
            events = self.gossip.merge(digest, now_s)
            self._transport.send(peer, [ANSWER, encode(self.gossip.answer(digest, now_s))])
            return events
        if verb == ANSWER:
            answer = decode_answer(raw)
            events = self.gossip.merge(answer, now_s)
            if answer.wanted:
                self._transport.send(peer, [TELL, encode(self.gossip.tell(answer.wanted, now_s))])
            return events
        if verb == TELL:
            return self.gossip.merge(decode_answer(raw), now_s)
        return []

    def _take_beat(self, peer: NodeId, beat: Beat, now_s: float) -> list[Event]:
        link = self._links.get(peer)
        if link is None:
            return []
        is_first = link.theirs_us == 0
        link.theirs_us, link.theirs_s = beat.sent_us, now_s
        if is_first:
            self._beat(peer, now_s)  # At once, so that both ends know the way there and back.
        now_us = _micros(now_s)
        if not link.echoed_us < beat.echo_us <= now_us:
            return []
        link.echoed_us = beat.echo_us
        self._echoes.heartbeat(peer, now_s)
        # The peer's clock may run a little faster than this one.
        trip_ms = max(now_us - beat.echo_us - beat.held_us, 0) / 1e3
        self.clocks.add(peer, wall_ms=beat.wall_ms, trip_ms=trip_ms, now_ms=now_s * 1e3)
        events: list[Event] = []
        self._refresh(peer, now_s, events)
        return events

    # Inside.

    def _link(self, peer: NodeId) -> _Link:
        return self._links.setdefault(peer, _Link())

    def _refusal(self, peer: NodeId) -> str | None:
        member = self.gossip.members.get(peer)
        return None if member is None else member.refusal

    def _forget_connection(self, peer: NodeId, lost: str) -> _Link:
        self._echoes.forget(peer)
        obstacle = self._link(peer).obstacle
        link = self._links[peer] = _Link(lost, obstacle)
        return link

    def _notice_pause(self, now_s: float) -> None:
        """A tick that is more than an interval late: this process stood still, and heard nobody."""
        late_s = now_s - self._ticked_s - self.settings.interval_s
        if late_s > self.settings.interval_s:
            self.gossip.observe_local_pause(late_s)
            self._echoes.observe_local_pause(late_s)
            self._ticked_s += late_s

    def _follow(self, found: list[Event], now_s: float) -> list[Event]:
        """What the events mean for who can be reached."""
        events: list[Event] = []
        for event in found:
            if isinstance(event, DuplicateName) and self._is_past(event):
                old = self.gossip.me.incarnation
                self.gossip.reincarnate(event.incarnation + 1)
                event = MemberRestarted(event.name, old, event.incarnation + 1)
            events.append(event)
        for name in dict.fromkeys(e.name for e in found if not isinstance(e, TableFull)):
            if name in self._links:
                self._refresh(name, now_s, events)
        return events

    def _is_past(self, event: DuplicateName) -> bool:
        is_here = event.addresses == self.profile.addresses
        if not is_here or self._past_count == PAST_COUNT_MAX:
            return False
        self._past_count += 1
        return True

    def _refresh(self, peer: NodeId, now_s: float, events: list[Event]) -> None:
        """Bring the topology up to date with what is known of a peer."""
        link = self._link(peer)
        link.obstacle = self._obstacle(peer, link, now_s)
        if self.topology.mark(peer, is_reachable=link.obstacle is None):
            events.append(
                PeerReachable(peer)
                if link.obstacle is None
                else PeerUnreachable(peer, link.obstacle)
            )

    def _obstacle(self, peer: NodeId, link: _Link, now_s: float) -> str | None:
        if not self._transport.is_connected(peer):
            return link.lost
        if not link.is_heard:
            return "connected, and not heard since"
        member = self.gossip.members.get(peer)
        if member is None:
            return "it has not said yet who it is"
        if member.refusal is not None:
            return f"incompatible: {member.refusal}"
        if member.status >= Status.DOWN:
            return "it was declared down" if member.status is Status.DOWN else "it has left"
        if self._echoes.is_suspect(peer, now_s):
            return f"no answer for {self._echoes.patience_s(peer):.1f} s or more"
        if member.is_suspect:
            return "nobody has heard of it for too long"
        return None


def _micros(now_s: float) -> int:
    """A time as beats carry it: whole microseconds, never 0."""
    return int(now_s * 1e6) + 1
