"""Membership by gossip: what every node says about itself, and how it gets around.

It is not ownership: who owns which slot is decided by epochs and votes. A member that is down stays a
member. Suspicion is this node's own opinion (`cluster.phi`) and is never told to others.

**What is said.** A *statement* is about one member: name, incarnation (a start of its process; larger is
newer), version (counts changes within an incarnation), heartbeat (counts rounds), and a *body*, its
encoded `Profile`. Statements form a join-semilattice:

- the higher incarnation wins, wholly;
- within an incarnation the higher version wins, with its body. Two bodies of one version (two operators
  declared at once) are ordered by their bytes, and a check sum in the digest tells that they differ;
- heartbeats join by the maximum, whatever the version.

A body is passed on as the bytes that its author wrote. So a node of an older release loses nothing that a
newer one added at the end of a profile, which a rolling upgrade needs.

**How it gets around.** Once a second `begin` gives the peers to talk to. With each of them, three messages:

    initiator                                other
    digest()              -- Digest -->      merge(digest), answer(digest)
    merge(answer)         <-- Answer --      what is newer here, and names whose bodies are wanted
    tell(answer.wanted)   -- Answer -->      merge(answer)

A digest holds every statement without its body. Hearing it is hearing all its heartbeats, so the
usual round moves no bodies at all, and the first message alone keeps the failure detector quiet.

**Truth about oneself.** Nobody else may count a member's versions, except an operator who declares it
down or gone (`declare`). A node that hears a declaration about itself is alive, so it raises its version
above it: refuted. A higher incarnation of its own name is another process: a `DuplicateName` for the
shell, and no fight. The younger one keeps the name in the table of all others.

**Leaving.** A member that has left is kept as a tombstone, so that an old statement does not bring it
back. A statement carries how long ago that was, so all nodes forget it at about the same time, without
a common clock. In the second half of its life nobody takes it up anew: those who forgot it a moment
earlier would get it back from those who have not yet, for ever.

Invariants: one call changes nothing when it raises. Everything is bounded: members, bodies, names, messages.
Nothing depends on the order of a set or on a hash seed.

The messages and their encoding are in `cluster/gossip_message.py`. They are sent, and what they say of
connections is added, in `cluster/membership.py`.

Core: time is an argument, in seconds of a clock that never goes back, and so is randomness. Sources: van
Renesse et al., Efficient Reconciliation and Flow Control for Anti-Entropy Protocols (digests); Das,
Gupta, Motivala, SWIM (incarnations, refutation).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from random import Random
from typing import Final

import msgspec

from cluster.gossip_message import (
    COUNT_MAX,
    MEMBER_COUNT_MAX,
    Answer,
    Digest,
    GossipError,
    HostPort,
    Incarnation,
    InvalidProfile,
    MalformedGossip,
    Message,
    NodeId,
    OtherCluster,
    Profile,
    Statement,
    Status,
    Terms,
    check_of,
    compatible,
    decode_digest,
    decode_profile,
    encode,
    encode_profile,
    with_status,
)
from cluster.member_event import (
    DuplicateName,
    Event,
    Incompatible,
    MemberChanged,
    MemberJoined,
    MemberLeft,
    MemberRecovered,
    MemberRestarted,
    MemberSuspected,
    MemberUp,
    TableFull,
)
from cluster.phi import FailureDetector, PhiSettings

ANSWER_BYTES_MAX: Final = 1 << 18  # Statements in one answer. The others follow in the next rounds.
REFUTABLE_MAX: Final = COUNT_MAX // 2  # No honest process has so many versions.
# How far a declaration jumps: above the changes of the member that the declaring node has not heard of.
DECLARATION_STEP: Final = 1024
TOMBSTONE_S: Final = 72 * 3600.0


@dataclass(eq=False)
class UnknownMember(GossipError):
    """An operator named a member that is not in the table. The caller answers so."""

    name: NodeId

    def __str__(self) -> str:
        return f"no member of this cluster is called {self.name!r}"


@dataclass(frozen=True, slots=True)
class Contact:
    """Whom to talk to. A seed is an address from the configuration, without a name."""

    name: NodeId | None
    address: HostPort


@dataclass(frozen=True, slots=True)
class GossipSettings:
    seeds: tuple[HostPort, ...] = ()
    member_count_max: int = MEMBER_COUNT_MAX
    tombstone_s: float = TOMBSTONE_S
    phi: PhiSettings = field(default_factory=PhiSettings)


@dataclass(slots=True)
class Member:
    """A row of the table. To be read by others, and changed by `Gossip` only."""

    name: NodeId
    incarnation: Incarnation
    version: int
    heartbeat: int
    body: bytes
    check: int
    profile: Profile
    left_at_s: float | None = None  # Of a tombstone.
    is_suspect: bool = False
    refusal: str | None = None  # Why this node cannot talk to it.

    @property
    def status(self) -> Status:
        return self.profile.status

    @property
    def is_live(self) -> bool:
        """Whether it is worth sending a request to."""
        return not self.is_suspect and self.status < Status.DOWN and self.refusal is None

    @property
    def address(self) -> HostPort:
        return self.profile.addresses.host, self.profile.addresses.bus_port

    def statement(self, now_s: float, *, with_body: bool) -> Statement:
        age_s = 0 if self.left_at_s is None else min(max(int(now_s - self.left_at_s), 0), COUNT_MAX)
        body = self.body if with_body else b""
        return Statement(
            self.name, self.incarnation, self.version, self.check, self.heartbeat, age_s, body
        )

    def is_newer_than(self, other: Statement) -> bool:
        """Whether the other should be sent this body. True for both sides if two bodies have one version."""
        mine, theirs = (self.incarnation, self.version), (other.incarnation, other.version)
        return mine > theirs or (mine == theirs and self.check != other.check)


class Gossip:
    """This node's table of members. It keeps itself apart: nobody else's word changes that row."""

    def __init__(
        self,
        cluster: str,
        name: NodeId,
        incarnation: Incarnation,
        profile: Profile,
        settings: GossipSettings | None = None,
    ) -> None:
        """Raises InvalidProfile."""
        self.cluster = cluster
        self.settings = settings or GossipSettings()
        self.detector = FailureDetector(self.settings.phi)
        body = encode_profile(profile)
        self.me = Member(name, incarnation, 1, 0, body, check_of(body), profile)
        self.members: dict[NodeId, Member] = {}  # The others.
        try:
            decode_digest(encode(self.digest(0)))
        except MalformedGossip as error:
            raise InvalidProfile(error.reason) from error
        self._reported: Incarnation = -1  # The highest incarnation reported as a duplicate.
        self._cursor = 0  # Where the next answer begins, if the last did not hold everything.

    # What this node says of itself.

    def change(self, profile: Profile) -> list[Event]:
        """Say something else from now on. Each call is a version and its body travels: send load rarely.

        Members may become compatible by it, and others incompatible. Raises InvalidProfile.
        """
        body = encode_profile(profile)
        me = self.me
        me.profile, me.body, me.check = profile, body, check_of(body)
        me.version += 1
        events: list[Event] = []
        for member in self.members.values():
            if member.left_at_s is None:
                self._check_terms(member, events)
        return events

    def reincarnate(self, incarnation: Incarnation) -> None:
        """Be a newer process than any that was heard of: after a `DuplicateName` that was this node's past."""
        me = self.me
        if incarnation <= me.incarnation:
            raise ValueError("a new incarnation must be higher than the old one")
        me.incarnation, me.version, me.heartbeat = incarnation, 1, 0

    # A round, from its initiator's side and from the other's.

    def begin(self, now_s: float, rng: Random) -> list[Contact]:
        """Begin a round: beat, and give the peers to talk to.

        One live peer; sometimes one that is suspected or declared down, so that it is found again;
        sometimes a seed, so that the halves of a partition meet again. Without a live peer, always.
        """
        self.me.heartbeat = min(self.me.heartbeat + 1, COUNT_MAX)
        present = [m for m in self.members.values() if m.left_at_s is None and m.refusal is None]
        live = [m for m in present if m.is_live]
        lost = [m for m in present if not m.is_live]
        chosen = [rng.choice(live)] if live else []
        if lost and rng.random() * (len(live) + 1) < len(lost):
            chosen.append(rng.choice(lost))
        contacts = [Contact(m.name, m.address) for m in chosen]
        taken = {self.me.address, *(contact.address for contact in contacts)}
        seeds = [seed for seed in self.settings.seeds if seed not in taken]
        if seeds and (not live or rng.random() * len(present) < len(seeds)):
            contacts.append(Contact(None, rng.choice(seeds)))
        return contacts

    def digest(self, now_s: float) -> Digest:
        """The first message of a round."""
        return Digest(self.cluster, tuple(m.statement(now_s, with_body=False) for m in self._all()))

    def answer(self, digest: Digest, now_s: float) -> Answer:
        """The second message: what is newer here, and whose bodies are wanted. To be merged before.

        Raises OtherCluster.
        """
        self._check_cluster(digest)
        theirs = {statement.name: statement for statement in digest.statements}
        wanted = tuple(s.name for s in digest.statements if self._wants(s))
        return Answer(self.cluster, tuple(self._news(theirs, now_s)), wanted)

    def tell(self, wanted: tuple[NodeId, ...], now_s: float) -> Answer:
        """The third message: the bodies that were wanted, as far as they fit."""
        statements = []
        room = ANSWER_BYTES_MAX
        for name in wanted:
            member = self.me if name == self.me.name else self.members.get(name)
            if member is not None:
                room -= _size_of(member, with_body=True)
                if room < 0:
                    break
                statements.append(member.statement(now_s, with_body=True))
        return Answer(self.cluster, tuple(statements))

    def merge(self, message: Message, now_s: float) -> list[Event]:
        """Join what another said, and tell what that changed. Raises MalformedGossip or OtherCluster."""
        self._check_cluster(message)
        heard = [(statement, self._profile_of(statement)) for statement in message.statements]
        events: list[Event] = []  # Below here nothing raises.
        ignored_count = 0
        for statement, profile in heard:
            known = self.members.get(statement.name)
            if statement.name == self.me.name:
                self._hear_of_myself(statement, profile, events)
            elif known is not None:
                self._hear_again(known, statement, profile, now_s, events)
            elif profile is not None:
                if len(self.members) + 1 < self.settings.member_count_max:
                    self._hear_first(statement, profile, now_s, events)
                else:
                    ignored_count += 1
        if ignored_count:
            events.append(TableFull(ignored_count))
        return events

    # Time, and what is seen from here.

    def tick(self, now_s: float) -> list[Event]:
        """Look at everybody's silence, and forget tombstones that are old. Several times a second."""
        events: list[Event] = []
        forgotten = []
        for member in self.members.values():
            if member.left_at_s is not None:
                if now_s - member.left_at_s >= self.settings.tombstone_s:
                    forgotten.append(member.name)
                continue
            self._judge(member, now_s, events)
        for name in forgotten:
            del self.members[name]
        return events

    def mark_unreachable(self, name: NodeId, now_s: float) -> list[Event]:
        """A connection to the member was refused or reset. A name that is not known is ignored."""
        events: list[Event] = []
        member = self.members.get(name)
        if member is not None:
            self.detector.mark_unreachable(name)
            self._judge(member, now_s, events)
        return events

    def sign_of_life(self, name: NodeId, now_s: float) -> list[Event]:
        """The member itself was heard at that time, and not by gossip. A name that is not known is ignored."""
        events: list[Event] = []
        member = self.members.get(name)
        if member is not None and member.left_at_s is None:
            self.detector.touch(name, now_s)
            self._judge(member, now_s, events)
        return events

    def observe_local_pause(self, seconds: float) -> None:
        """This process stood still for so long: to be told before `tick`."""
        self.detector.observe_local_pause(seconds)

    # What an operator says.

    def declare(self, name: NodeId, status: Status, now_s: float) -> list[Event]:
        """Declare another member DOWN or LEFT. If it is alive, it will hear of it and refute.

        Raises UnknownMember.
        """
        if status not in (Status.DOWN, Status.LEFT):
            raise ValueError(
                "an operator declares members down or gone; the rest they say themselves"
            )
        member = self.members.get(name)
        if member is None:
            raise UnknownMember(name)
        body = with_status(member.body, status)
        version = min(member.version + DECLARATION_STEP, REFUTABLE_MAX - 1)
        said = Statement(
            name, member.incarnation, version, check_of(body), member.heartbeat, 0, body
        )
        return self.merge(Answer(self.cluster, (said,)), now_s)

    # What is known.

    def live(self) -> list[NodeId]:
        """The others that are worth sending a request to."""
        return [member.name for member in self.members.values() if member.is_live]

    def is_live(self, name: NodeId) -> bool:
        member = self.members.get(name)
        return name == self.me.name or (member is not None and member.is_live)

    def common_capabilities(self) -> tuple[str, ...]:
        """What every member can do, also those that are down: a new format is used only if it is here."""
        common = self.me.profile.capabilities
        for member in self.members.values():
            if member.left_at_s is None:
                common = tuple(c for c in common if c in member.profile.capabilities)
        return common

    def terms_of(self, member: Member) -> Terms:
        p = member.profile
        return Terms(self.cluster, p.versions, p.capabilities, p.required, p.epoch, p.epoch_digest)

    # Inside.

    def _all(self) -> Iterator[Member]:
        yield self.me
        yield from self.members.values()

    def _check_cluster(self, message: Message) -> None:
        if message.cluster != self.cluster:
            raise OtherCluster(self.cluster, message.cluster)

    def _profile_of(self, statement: Statement) -> Profile | None:
        """What the body says, or None without one. Raises MalformedGossip."""
        if not statement.body:
            return None
        if check_of(statement.body) != statement.check:
            raise MalformedGossip(f"the body of {statement.name} does not match its check sum")
        known = self.members.get(statement.name)
        if known is not None and known.body == statement.body:
            return known.profile
        return decode_profile(statement.body)

    def _wants(self, statement: Statement) -> bool:
        if statement.name == self.me.name:
            return statement.incarnation > self.me.incarnation  # Whose is it? Its body says so.
        known = self.members.get(statement.name)
        if known is None:
            has_room = len(self.members) + 1 < self.settings.member_count_max
            return has_room and not self._is_fading(statement.age_s)
        theirs = (statement.incarnation, statement.version)
        mine = (known.incarnation, known.version)
        return theirs > mine or (theirs == mine and statement.check != known.check)

    def _is_fading(self, age_s: float) -> bool:
        """Whether a tombstone is in the second half of its life."""
        return age_s > 0 and age_s * 2 >= self.settings.tombstone_s

    def _news(self, theirs: dict[NodeId, Statement], now_s: float) -> Iterator[Statement]:
        """What is newer here, beginning where the last answer was full."""
        members = list(self._all())
        start = self._cursor % len(members)
        self._cursor = 0
        room = ANSWER_BYTES_MAX
        for index in (*range(start, len(members)), *range(start)):
            member = members[index]
            other = theirs.get(member.name)
            if other is None and member.left_at_s is not None:
                with_body = not self._is_fading(now_s - member.left_at_s)
            else:
                with_body = other is None or member.is_newer_than(other)
            has_beaten = (
                other is not None
                and member.incarnation == other.incarnation
                and member.heartbeat > other.heartbeat
            )
            if with_body or has_beaten:
                room -= _size_of(member, with_body=with_body)
                if room < 0:
                    self._cursor = index
                    return
                yield member.statement(now_s, with_body=with_body)

    def _hear_of_myself(
        self, statement: Statement, profile: Profile | None, events: list[Event]
    ) -> None:
        me = self.me
        if statement.incarnation < me.incarnation:
            return  # This node's past, or another of its name that will find out itself.
        is_other = statement.incarnation > me.incarnation
        if is_other and profile is None:
            return  # `answer` asks for the body.
        if is_other or statement.heartbeat > me.heartbeat or statement.version >= REFUTABLE_MAX:
            if statement.incarnation > self._reported:
                self._reported = statement.incarnation
                addresses = profile.addresses if is_other and profile is not None else None
                events.append(DuplicateName(me.name, statement.incarnation, addresses))
            return
        same = statement.version == me.version and statement.check == me.check
        if statement.version >= me.version and not same:
            me.version = statement.version + 1

    def _hear_first(
        self, statement: Statement, profile: Profile, now_s: float, events: list[Event]
    ) -> None:
        if profile.status is Status.LEFT and self._is_fading(statement.age_s):
            return
        member = Member(
            statement.name,
            statement.incarnation,
            statement.version,
            statement.heartbeat,
            statement.body,
            statement.check,
            profile,
        )
        self.members[member.name] = member
        if profile.status is Status.LEFT:
            member.left_at_s = now_s - statement.age_s  # It was never seen here: nothing to tell.
            return
        self.detector.heartbeat(member.name, now_s)
        events.append(MemberJoined(member.name))
        if profile.status is Status.UP:
            events.append(MemberUp(member.name))
        self._check_terms(member, events)

    def _hear_again(
        self,
        known: Member,
        statement: Statement,
        profile: Profile | None,
        now_s: float,
        events: list[Event],
    ) -> None:
        if statement.incarnation < known.incarnation:
            return
        if statement.incarnation > known.incarnation:
            if profile is not None:
                self._replace_process(known, statement, profile, now_s, events)
            return
        has_beaten = statement.heartbeat > known.heartbeat
        known.heartbeat = max(known.heartbeat, statement.heartbeat)
        if profile is not None and (statement.version, statement.body) > (
            known.version,
            known.body,
        ):
            self._replace_profile(known, statement, profile, now_s, events)
        elif known.left_at_s is not None and (statement.version, statement.check) == (
            known.version,
            known.check,
        ):
            known.left_at_s = min(known.left_at_s, now_s - statement.age_s)
        if has_beaten and known.left_at_s is None:
            self.detector.heartbeat(known.name, now_s)
            self._judge(known, now_s, events)

    def _replace_process(
        self,
        known: Member,
        statement: Statement,
        profile: Profile,
        now_s: float,
        events: list[Event],
    ) -> None:
        old = known.incarnation
        known.incarnation = statement.incarnation
        known.heartbeat = statement.heartbeat
        if known.left_at_s is None and profile.status is not Status.LEFT:
            events.append(MemberRestarted(known.name, old, statement.incarnation))
            self.detector.restart(known.name, now_s)
        self._replace_profile(known, statement, profile, now_s, events)
        if known.left_at_s is None:
            self._judge(known, now_s, events)

    def _replace_profile(
        self,
        known: Member,
        statement: Statement,
        profile: Profile,
        now_s: float,
        events: list[Event],
    ) -> None:
        """The later body of a process, or the first of a new one."""
        old = known.profile
        known.version, known.body, known.check = statement.version, statement.body, statement.check
        known.profile = profile
        if profile.status is Status.LEFT:
            if known.left_at_s is None:
                events.append(MemberLeft(known.name))
                self.detector.forget(known.name)
                known.is_suspect = False
            known.left_at_s = now_s - statement.age_s
            return
        if known.left_at_s is not None:
            known.left_at_s = None
            self.detector.heartbeat(known.name, now_s)
            events.append(MemberJoined(known.name))
        if profile.status is Status.UP and old.status is not Status.UP:
            events.append(MemberUp(known.name))
        elif _is_change(old, profile):
            events.append(MemberChanged(known.name, old, profile))
        self._check_terms(known, events)

    def _check_terms(self, member: Member, events: list[Event]) -> None:
        verdict = compatible(self.terms_of(self.me), self.terms_of(member))
        refusal = verdict if isinstance(verdict, str) else None
        if refusal is not None and refusal != member.refusal:
            events.append(Incompatible(member.name, refusal))
        member.refusal = refusal

    def _judge(self, member: Member, now_s: float, events: list[Event]) -> None:
        """Bring the opinion of a member up to date."""
        is_suspect = self.detector.is_suspect(member.name, now_s)
        if is_suspect and not member.is_suspect:
            events.append(MemberSuspected(member.name, self.detector.phi(member.name, now_s)))
        elif member.is_suspect and not is_suspect:
            events.append(MemberRecovered(member.name))
        member.is_suspect = is_suspect


def _is_change(old: Profile, new: Profile) -> bool:
    """Whether more than the load differs."""
    return msgspec.structs.replace(old, load={}) != msgspec.structs.replace(new, load={})


def _size_of(member: Member, *, with_body: bool) -> int:
    """No less than the bytes that a statement takes in a message."""
    return len(member.name) + 48 + (len(member.body) if with_body else 0)
