"""Finding out who has seen what: digests of slot clocks, the clocks that differ, and what was matched.

It begins no transfers: it says which slots are `wanted` of a peer. The protocol, and what a round
costs, stand with `cluster/exchange.py`, whose part this is.

Two rules. A hash or a clock of this node may be older than the moment at which it is compared: what is
covered by it is covered by now, for clocks only grow. The one exception is told to `reset`: then no
answer to an earlier digest, nor a digest that is being made, may match anything.

Core.
"""

from __future__ import annotations

from array import array
from collections import deque
from collections.abc import Iterable, Iterator
from itertools import compress
from operator import ne
from random import Random

from cluster.delta import lacks
from cluster.exchange_digest import NEVER, Digests
from cluster.exchange_peer import Answer, ExchangeSettings, Lead, Peer, Progress, Round
from cluster.exchange_transfer import Replica
from cluster.exchange_wire import (
    GROUP_COUNT,
    GROUP_SHIFT,
    NOTHING,
    ClockEntry,
    Clocks,
    Digest,
    Group,
    RoundId,
    Same,
    encode,
    pack_clock,
    unpack_clock,
)
from cluster.slot import SLOT_COUNT, Slot
from cluster.topology import Topology
from cluster.transport import Message, Transport


class Comparison:
    """The comparing half of an exchange. `match_counts`: with how many peers each slot was matched."""

    def __init__(
        self,
        topology: Topology,
        replica: Replica,
        transport: Transport,
        rng: Random,
        settings: ExchangeSettings,
        progress: Progress,
    ) -> None:
        self.match_counts = bytearray(SLOT_COUNT)
        self._topology = topology
        self._replica = replica
        self._transport = transport
        self._rng = rng
        self._settings = settings
        self._progress = progress
        self._digests = Digests(replica)
        # An answer to a former process of this node, which may have had other data, has another half.
        self._round: RoundId = rng.getrandbits(31) << 32
        self._first_round = self._round + 1

    def shared(self, peer: Peer, group: Group) -> array[Slot]:
        """The slots of a group that both own."""
        slots = peer.shared.get(group)
        if slots is None:
            self._share(peer)
            slots = peer.shared[group]
        return slots

    def _share(self, peer: Peer) -> None:
        me, name = self._topology.me, peer.name
        is_shared = self._topology.by_slot(lambda owners: me in owners and name in owners)
        for group in range(GROUP_COUNT):
            first, end = group << GROUP_SHIFT, (group + 1) << GROUP_SHIFT
            both = compress(range(first, end), is_shared[first:end])
            peer.shared[group] = array("H", both)

    def reset(self, slots: Iterable[Slot], peers: Iterable[Peer]) -> None:
        """The clocks of some slots were set back: what was matched by them is not any more."""
        slots = list(slots)
        self._digests.forget(slots)
        for peer in peers:
            for slot in slots:
                self.match_counts[slot] -= peer.matched[slot]
                peer.matched[slot] = False
                peer.matched_groups.pop(slot >> GROUP_SHIFT, None)
                peer.suspects.pop(slot, None)
                peer.wanted.pop(slot, None)
            self.begin_again(peer)

    def begin_again(self, peer: Peer) -> None:
        """Compare everything, at once; answers to what was asked before are void."""
        peer.first_round = self._round + 1
        peer.round = None
        peer.is_full_due = True
        peer.next_round_s = 0.0

    def adopt_topology(self, peer: Peer) -> None:
        """The slots that a peer shares may be others now."""
        peer.shared.clear()
        peer.digests.clear()
        peer.versions = [NEVER] * GROUP_COUNT
        peer.matched_groups.clear()
        for slot, replicas in enumerate(self._topology.preferences):
            if peer.matched[slot] and peer.name not in replicas:
                peer.matched[slot] = False
                self.match_counts[slot] -= 1
        self.begin_again(peer)

    def remove(self, peer: Peer) -> None:
        """It is no member any more, and counts for nothing."""
        counts = zip(self.match_counts, peer.matched, strict=True)
        self.match_counts = bytearray(count - was for count, was in counts)

    # Who asks

    def begin_round(self, peer: Peer, now_s: float) -> None:
        """Once a second, and when a peer was connected. It is made by `compare`."""
        settings = self._settings
        peer.next_round_s = now_s + settings.interval_s * (0.9 + 0.2 * self._rng.random())
        if not self._transport.is_connected(peer.name):
            return
        stale = self._digests.stale_groups()
        if peer.is_full_due:
            peer.round = Round(True, deque(stale), frozenset())
            return
        if len(stale) > settings.groups_per_round:
            stale = _rotated(stale, peer.turn)
            peer.turn = stale[settings.groups_per_round]
        pending = (peer.suspects, peer.wanted, peer.incoming)
        under_way = {slot >> GROUP_SHIFT for slots in pending for slot in slots}
        left_out = frozenset(stale[settings.groups_per_round :]) | under_way
        todo = deque(group for group in stale if group not in left_out)
        peer.round = Round(False, todo, left_out)

    def compare(self, peer: Peer) -> bool:
        """Hash a group, or send the digest."""
        made = peer.round
        if made is None:
            return False
        while made.todo:
            group = made.todo.popleft()
            if self.shared(peer, group) and self._digests.refresh(group):
                return True
        peer.round = None
        digests = self._digests_of(peer)
        groups = {group: digests[group] for group in digests if group not in made.left_out}
        if groups:
            self._round += 1
            self._progress.rounds += 1
            if made.is_full:
                peer.is_full_due = False
                peer.full_round = self._round
            message = encode(Digest(self._round, made.is_full, groups))
            self._transport.send(peer.name, message)
        return True

    def _digests_of(self, peer: Peer) -> dict[Group, int]:
        """The hashes of what both own, by group, as they were when they were hashed last. Not to be changed."""
        versions = self._digests.versions
        if peer.versions != versions:
            for group in compress(range(GROUP_COUNT), map(ne, versions, peer.versions)):
                if slots := self.shared(peer, group):
                    peer.digests[group] = self._digests.of(slots)
            peer.versions = versions[:]
        return peer.digests

    def hear_same(self, peer: Peer, same: Same) -> None:
        """The peer had seen the same of some groups as this node."""
        if not self._is_valid(peer, same.round):
            return
        for group in same.groups:
            if group not in peer.matched_groups:
                peer.matched_groups[group] = None
                matched, counts = peer.matched, self.match_counts
                for slot in self.shared(peer, group):
                    if not matched[slot]:  # As `match` does.
                        matched[slot] = True
                        counts[slot] += 1

    def _is_valid(self, peer: Peer, asked: RoundId) -> bool:
        return max(self._first_round, peer.first_round) <= asked <= self._round

    def hear_clocks(self, peer: Peer, clocks: Clocks, now_s: float) -> None:
        """What the peer had seen of a group that differs. Raises MalformedExchange."""
        theirs = [(entry, unpack_clock(entry.clock)) for entry in clocks.entries]
        if not self._is_valid(peer, clocks.round):
            return
        is_urgent = clocks.round == peer.full_round
        due_s = now_s + (0.0 if is_urgent else self._settings.grace_s)
        for entry, clock in theirs:
            slot = entry.slot
            if slot in peer.incoming or slot not in self.shared(peer, slot >> GROUP_SHIFT):
                continue
            if not entry.is_partial and (
                entry.clock == NOTHING or not lacks(self._replica.clock(slot), clock)
            ):
                self.match(peer, slot)
                continue
            lead = Lead(entry.clock, entry.is_partial, due_s)
            if is_urgent:
                peer.suspects.pop(slot, None)
                peer.wanted[slot] = lead
            elif slot not in peer.wanted:
                peer.suspects.setdefault(slot, lead)

    def match(self, peer: Peer, slot: Slot) -> None:
        """The peer has been found to have seen nothing more of a slot."""
        if not peer.matched[slot]:
            peer.matched[slot] = True
            self.match_counts[slot] += 1

    def look_again(self, peer: Peer, now_s: float) -> bool:
        """Want what a peer had seen a while ago, if it is still missing here. The first suspect is the oldest."""
        for slot, lead in peer.suspects.items():
            if lead.due_s > now_s:
                return False
            del peer.suspects[slot]
            if self.is_behind(slot, lead):
                peer.wanted[slot] = lead
            else:
                self.match(peer, slot)
            return True
        return False

    def is_behind(self, slot: Slot, lead: Lead) -> bool:
        """Whether this node still lacks what a peer had seen."""
        if lead.is_partial:
            return True
        return lacks(self._replica.clock(slot), unpack_clock(lead.clock))

    # Who answers

    def hear_digest(self, peer: Peer, digest: Digest) -> None:
        """To be answered by `answer`, unless there is one already."""
        under_way = peer.answer
        if under_way is not None and (under_way.digest.is_full or not digest.is_full):
            return  # It asks again in a second.
        todo = list(digest.groups)
        room = GROUP_COUNT
        if not digest.is_full:
            todo = _rotated(todo, peer.answer_turn)
            room = self._settings.groups_per_round
        stale = frozenset(self._digests.stale_groups())
        # What changes from now on is answered by the older hash.
        peer.answer = Answer(digest, deque(todo), room, stale)

    def answer(self, peer: Peer) -> bool:
        """Compare one group, or send what is to be told about it."""
        answer = peer.answer
        if answer is None:
            return False
        if answer.unsent:
            if not self._transport.send_bulk(peer.name, answer.unsent[0]):
                return False
            answer.unsent.popleft()
            return True
        digests, theirs = self._digests_of(peer), answer.digest.groups
        while answer.todo and answer.room:
            group = answer.todo.popleft()
            is_stale = group in answer.stale and bool(self.shared(peer, group))
            has_hashed = is_stale and self._digests.refresh(group)
            if has_hashed:
                digests = self._digests_of(peer)
            if digests.get(group) == theirs[group]:
                answer.same.append(group)
            else:
                answer.room -= 1
                answer.unsent.extend(self._clocks_of(peer, group, answer.digest.round))
                has_hashed = True
            if has_hashed:
                return True
        if answer.todo:
            peer.answer_turn = answer.todo[0]
        if answer.same:
            message = encode(Same(answer.digest.round, tuple(answer.same)))
            self._transport.send(peer.name, message)
        peer.answer = None
        return True

    def _clocks_of(self, peer: Peer, group: Group, asked: RoundId) -> Iterator[Message]:
        entries: list[ClockEntry] = []
        size = 0
        for slot in self.shared(peer, group):
            clock = self._replica.clock(slot)
            is_partial = len(clock.beyond) > self._settings.clock_dots_max
            if is_partial:
                clock.beyond.clear()
            entry = ClockEntry(slot, is_partial, pack_clock(clock))
            size += len(entry.clock)
            if entries and size > self._settings.chunk_bytes_max:
                yield encode(Clocks(asked, tuple(entries)))
                entries, size = [], len(entry.clock)
            entries.append(entry)
        if entries:
            yield encode(Clocks(asked, tuple(entries)))


def _rotated(groups: list[Group], first: Group) -> list[Group]:
    """Groups in order, from `first` on and round."""
    return [g for g in groups if g >= first] + [g for g in groups if g < first]
