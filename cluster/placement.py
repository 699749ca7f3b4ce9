"""Placement: from members and the previous claim to the next, moving as little as it can.

It decides who owns which slot, and does not copy anything. Each data centre is placed alone:

1. *Keep* the previous lists. A node that left, lost its weight, or stands in a zone that has too many
   replicas of the slot leaves a *hole*.
2. *Fill* holes with nodes below their quota (`cluster/quota.py`), found clockwise on the ring; a run
   of equal lists gets the same node, so that it stays one run.
3. *Shift* replicas from nodes above their quota to those below, in the arcs behind the tokens of
   the receiver, again in runs.
4. *Settle* what fits nowhere directly: a path of nodes, each of which hands a slot to the next
   (`cluster/flow.py`). First only replicas that are new anyway change hands; then a node may stay
   a few per cent off its quota; and only what still breaks a bound moves replicas that could have stayed.
5. *Order*: the same for primaries. It only changes the order inside lists, which moves no data.

Holes are treated as the slots of one more node, whose quota is nothing.

Core and deterministic: members are numbered in order of name, and no set or hash order is used.
Sources: Dynamo's strategy 3; Riak's claim (wants, and minimal transfers before anything else).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final

from cluster.claim import Claim, Preference
from cluster.flow import Flow, Row
from cluster.quota import EXCESS_MAX, fair_primaries, fair_shares, replica_quota, rounded
from cluster.ring import SLOT_SHIFT, Member, Ring
from cluster.slot import SLOT_COUNT, Slot

CANDIDATE_COUNT: Final = 8  # Nodes on the ring among which the one with most room is chosen.
NO_ZONE: Final = -1  # Of a hole.


def claim(
    members: Iterable[Member], n_by_dc: Mapping[str, int], previous: Claim | None = None
) -> Claim:
    """The claim of these members, with `n_by_dc[name]` replicas in each data centre, N or all nodes.

    It depends on its arguments alone. A data centre whose N is 0 or that has no member with weight
    gets no table.
    """
    everyone = sorted((m for m in members if m.weight), key=lambda m: m.id)
    tables = {}
    for name in sorted(n_by_dc):
        inside = [member for member in everyone if member.data_centre == name]
        n = min(n_by_dc[name], len(inside))
        if n > 0:
            before = previous.tables.get(name) if previous else None
            tables[name] = _Placement(inside, n, before).table()
    return Claim(tables)


class _Placement:
    """The table of one data centre while it is computed."""

    def __init__(
        self, members: Sequence[Member], n: int, before: tuple[Preference, ...] | None
    ) -> None:
        self.members = members
        self.n = n
        self.hole = len(members)
        self.is_first = before is None
        self.ring = Ring(members)
        self.weights = [member.weight for member in members]
        names = sorted({member.zone for member in members})
        zones = [names.index(member.zone) for member in members]
        self.zones = [*zones, NO_ZONE]
        self.rows = self._kept(before)
        self.before = [row.copy() for row in self.rows]
        self.counts = [0] * (self.hole + 1)
        for row in self.rows:
            for index in row:
                self.counts[index] += 1
        quota = replica_quota(self.weights, zones, n, self.counts)
        self.quota = [*quota.replicas, 0]
        self.zone_least, self.zone_most = quota.zone_least, quota.zone_most
        self.is_zoned = len(names) > 1
        self._open: dict[tuple[int, ...], list[bool]] = {}  # By the zones of a list and a giver's.

    def table(self) -> tuple[Preference, ...]:
        """Do all of it."""
        self._trim()
        if self.is_zoned:
            self._evict()
        if self.is_first:
            self._fill_primaries()
        for place in range(self.n):
            self._fill(place)
        self._shift()
        self._settle()
        assert not self.counts[self.hole]
        self._order()
        return self._named()

    # 1. Keep.

    def _kept(self, before: tuple[Preference, ...] | None) -> list[Row]:
        if before is None:
            return [[self.hole] * self.n for _ in range(SLOT_COUNT)]
        index_of = {member.id: index for index, member in enumerate(self.members)}
        known: dict[Preference, Row] = {}
        rows = []
        for names in before:
            row = known.get(names)
            if row is None:
                row = [index_of.get(name, self.hole) for name in names]
                row += [self.hole] * (self.n - len(row))
                known[names] = row
            rows.append(row.copy())
        return rows

    def _trim(self) -> None:
        """Where N became smaller, drop holes first and then who is furthest above its quota."""
        last = self.hole
        for row in self.rows:
            while len(row) > self.n:
                # Runs of lists lose the same node for as long as it has too much.
                if last not in row or not self._is_above(last):
                    last = self._most_above(row)
                row.remove(last)
                self.counts[last] -= 1

    def _most_above(self, candidates: Iterable[int]) -> int:
        """Of these the one furthest above its quota, by share; holes before all, then the last."""
        best, most = self.hole, None
        for index in candidates:
            if index == self.hole:
                return index
            above = self.counts[index] / (self.quota[index] or 1)
            if most is None or above >= most:
                best, most = index, above
        return best

    def _evict(self) -> None:
        """Make holes where zones changed so that a list breaks their bounds."""
        surplus: dict[tuple[int, ...], int | None] = {}
        last = self.hole
        before: Row = []
        for row in self.rows:
            is_run, before = row == before, row.copy()
            while True:
                pattern = tuple([self.zones[index] for index in row])
                if pattern not in surplus:
                    surplus[pattern] = self._surplus_zone(pattern)
                zone = surplus[pattern]
                if zone is None:
                    break
                is_same = last in row and self.zones[last] == zone
                if not (is_same and (is_run or self._is_above(last))):
                    last = self._most_above(i for i in row if self.zones[i] == zone)
                self._replace(row, last, self.hole)

    def _surplus_zone(self, pattern: Sequence[int]) -> int | None:
        """A zone that must give up a replica of a list in these zones: one above its bound, or the
        one furthest above its least while another misses its own and no hole is left for it."""
        inside = self._zone_counts(pattern)
        for zone, count in enumerate(inside):
            if count > self.zone_most[zone]:
                return zone
        if self._missing(inside) <= pattern.count(NO_ZONE):
            return None
        above = [count - least for count, least in zip(inside, self.zone_least, strict=True)]
        return above.index(max(above))

    def _zone_counts(self, pattern: Sequence[int]) -> list[int]:
        inside = [0] * len(self.zone_most)
        for zone in pattern:
            if zone != NO_ZONE:
                inside[zone] += 1
        return inside

    def _missing(self, inside: Sequence[int]) -> int:
        return sum(
            least - count
            for count, least in zip(inside, self.zone_least, strict=True)
            if count < least
        )

    def _fits(self, row: Row, giver: int, taker: int) -> bool:
        """Whether `taker` may replace `giver` (or a hole) in this list."""
        return bool(self._fitting(row, giver, (taker,)))

    def _fitting(self, row: Row, giver: int, takers: Iterable[int]) -> list[int]:
        """Those who may: they are not in the list, and their zone keeps its bounds."""
        if not self.is_zoned:
            return [taker for taker in takers if taker not in row]
        zones = self.zones
        key = (zones[giver], *[zones[index] for index in row])
        is_open = self._open.get(key)
        if is_open is None:
            is_open = self._open[key] = self._open_zones(key[0], key[1:])
        return [taker for taker in takers if is_open[zones[taker]] and taker not in row]

    def _open_zones(self, giver: int, pattern: Sequence[int]) -> list[bool]:
        """Which zones may take over from a zone (or a hole) in a list with replicas in these zones."""
        inside = self._zone_counts(pattern)
        if giver != NO_ZONE:
            may_leave = inside[giver] > self.zone_least[giver]
            return [
                zone == giver or (may_leave and count < most)
                for zone, (count, most) in enumerate(zip(inside, self.zone_most, strict=True))
            ]
        # What is missing must find a hole, and one hole is taken now.
        is_urgent = self._missing(inside) >= pattern.count(NO_ZONE)
        return [
            count < (least if is_urgent else most)
            for count, least, most in zip(inside, self.zone_least, self.zone_most, strict=True)
        ]

    def _replace(self, row: Row, giver: int, taker: int) -> None:
        row[row.index(giver)] = taker
        self.counts[giver] -= 1
        self.counts[taker] += 1

    # 2. Fill.

    def _fill_primaries(self) -> None:
        """The first claim of all: primaries by their own quota, so that little is reordered."""
        nobody = [0] * len(self.members)
        self._fill(0, [*rounded(fair_primaries(self.weights), SLOT_COUNT, nobody), 0])

    def _fill(self, place: int, room: list[int] | None = None) -> None:
        """Fill the holes at one place of the lists with nodes that have room, as far as they fit."""
        if not self.counts[self.hole]:
            return
        if room is None:
            room = [
                max(0, quota - count) for quota, count in zip(self.quota, self.counts, strict=True)
            ]
        search = _Search(self.ring, room)
        last, last_context = self.hole, None
        for slot, row in enumerate(self.rows):
            if row[place] != self.hole:
                continue
            # The same list is filled by the same node; in the first claim, up to the next token.
            context = (self.ring.first_token(slot) if self.is_first else 0, tuple(row))
            if context != last_context or not room[last]:
                found = search.find(slot, partial(self._fits, row, self.hole), self.quota)
                if found is None:
                    continue
                last, last_context = found, context
            row[place] = last
            self.counts[self.hole] -= 1
            self.counts[last] += 1
            room[last] -= 1

    # 3. Shift.

    def _shift(self) -> None:
        """Let nodes below their quota take runs of slots behind their tokens."""
        tokens: list[list[Slot]] = [[] for _ in self.members]
        for position, owner in zip(self.ring.positions, self.ring.owners, strict=True):
            tokens[owner].append(position >> SLOT_SHIFT)
        for taker in range(self.hole):
            for number, token in enumerate(tokens[taker]):
                room = self.quota[taker] - self.counts[taker]
                if room <= 0:
                    break
                self._shift_arc(taker, token, -(-room // (len(tokens[taker]) - number)))

    def _shift_arc(self, taker: int, token: Slot, length: int) -> None:
        """Take up to `length` slots of the arc that ends at a token and is twice as long."""
        giver, before = self.hole, None
        for slot in range(token, token - 2 * length, -1):
            if not length:
                return
            row = self.rows[slot % SLOT_COUNT]
            if not (row == before and self._is_above(giver) and self._fits(row, giver, taker)):
                givers = [i for i in row if self._is_above(i) and self._fits(row, i, taker)]
                if not givers:
                    continue
                giver, before = self._most_above(givers), row.copy()
            self._replace(row, giver, taker)
            length -= 1

    def _is_above(self, index: int) -> bool:
        return self.counts[index] > self.quota[index]

    # 4. Settle.

    def _settle(self) -> None:
        """Bring every node to its quota, or within the allowed excess where that saves moves.

        First only what moves anyway changes hands once more, which costs nothing. Only for what
        still breaks a bound do replicas move that could have stayed.
        """
        shares = fair_shares(self.weights, self.n)
        most = [
            max(quota, int(share * EXCESS_MAX))
            for quota, share in zip(self.quota, shares, strict=False)
        ]
        least = [
            min(quota, int(share / EXCESS_MAX))
            for quota, share in zip(self.quota, shares, strict=False)
        ]
        for aim, is_free in (
            (self.quota, True),
            ([*most, 0], True),
            ([*least, 0], True),
            ([*most, 0], False),
            ([*least, 0], False),
        ):
            flow = _ReplicaFlow(
                self.rows, self.counts, aim, self._fitting, self.before, is_free=is_free
            )
            flow.settle()

    # 5. Order.

    def _order(self) -> None:
        """Even out who is first: the lists keep their nodes."""
        counts = [0] * len(self.members)
        for row in self.rows:
            counts[row[0]] += 1
        shares = fair_primaries(self.weights)
        quota = rounded(shares, SLOT_COUNT, counts)
        flow = _PrimaryFlow(self.rows, counts, quota)
        flow.give_directly()
        flow.settle()
        # Where the replicas make that impossible, as close as the allowed excess lets it come.
        flow.quota = [
            max(each, int(EXCESS_MAX * share)) for each, share in zip(quota, shares, strict=True)
        ]
        flow.settle()

    def _named(self) -> tuple[Preference, ...]:
        """The table with names, in which equal lists are one tuple."""
        ids = [member.id for member in self.members]
        lists: dict[tuple[int, ...], Preference] = {}
        table = []
        for row in self.rows:
            key = tuple(row)
            names = lists.get(key)
            if names is None:
                names = lists[key] = tuple(ids[index] for index in key)
            table.append(names)
        return tuple(table)


@dataclass(slots=True)
class _ReplicaFlow(Flow):
    """Who replicates a slot.

    While `is_free`, a node that is not above its quota gives away only what it did not own before:
    the replica has to be copied in any case, so it may as well go elsewhere.
    """

    fitting: Callable[[Row, int, Iterable[int]], list[int]]
    before: list[Row]
    is_free: bool

    def holders(self, slot: Slot) -> Sequence[int]:
        row = self.rows[slot]
        if not self.is_free:
            return row
        before, counts, quota = self.before[slot], self.counts, self.quota
        return [i for i in row if counts[i] > quota[i] or i not in before]

    def takers(self, slot: Slot, giver: int, among: Mapping[int, None]) -> Sequence[int]:
        return self.fitting(self.rows[slot], giver, among)

    def hand_over(self, slot: Slot, giver: int, taker: int) -> None:
        row = self.rows[slot]
        row[row.index(giver)] = taker


@dataclass(slots=True)
class _PrimaryFlow(Flow):
    """Who is first in the list of a slot: anyone in the list can be."""

    def holders(self, slot: Slot) -> Sequence[int]:
        return self.rows[slot][:1]

    def takers(self, slot: Slot, giver: int, among: Mapping[int, None]) -> Sequence[int]:
        return [index for index in self.rows[slot] if index in among]

    def hand_over(self, slot: Slot, giver: int, taker: int) -> None:
        row = self.rows[slot]
        row.remove(taker)
        row.insert(0, taker)

    def give_directly(self) -> None:
        """What needs no path, in the order of slots and to the same node while it can, so that
        equal lists stay equal."""
        last = -1
        for slot, row in enumerate(self.rows):
            giver = row[0]
            if self.counts[giver] <= self.quota[giver]:
                continue
            below = [i for i in row if self.counts[i] < self.quota[i]]
            if not below:
                continue
            if last not in below:
                last = below[0]
            self.hand_over(slot, giver, last)
            self.counts[giver] -= 1
            self.counts[last] += 1


class _Search:
    """Finds nodes with room clockwise on the ring, and passes by used-up tokens only once."""

    def __init__(self, ring: Ring, room: list[int]) -> None:
        self._ring = ring
        self._room = room
        self._next = list(range(len(ring.owners) + 1))  # The next token that may have room.

    def find(self, slot: Slot, fits: Callable[[int], bool], quota: Sequence[int]) -> int | None:
        """Of the first few nodes that fit, the one with the most room for its quota."""
        owners, room = self._ring.owners, self._room
        best, most, count = None, 0.0, 0
        passed: dict[int, None] = {}
        start = self._ring.first_token(slot)
        for begin, end in ((start, len(owners)), (0, start)):
            token = self._live(begin)
            while token < end:
                index = owners[token]
                if index not in passed:
                    passed[index] = None
                    if fits(index):
                        count += 1
                        if room[index] / quota[index] > most:
                            best, most = index, room[index] / quota[index]
                        if count == CANDIDATE_COUNT:
                            return best
                token = self._live(token + 1)
        return best

    def _live(self, token: int) -> int:
        """The first token from here on whose node has room."""
        path = []
        while token < len(self._ring.owners):
            if self._next[token] != token:
                path.append(token)
                token = self._next[token]
            elif self._room[self._ring.owners[token]]:
                break
            else:
                self._next[token] = token + 1
        for each in path:
            self._next[each] = token
        return token
