"""Replicas in memory, a bad network between them, and exchanges that have to make them equal.

The oracle is a history of causes: for each write, which other writes of its row it replaced. A replica
whose clock covers some writes must show those of them that none of them replaced: that is checked
after every step for all that the step changed, so a clock that covers what is not there is found at
once. Nothing here compares counters but `SlotClock.covers`.

Everything is drawn from one seed.
"""

from __future__ import annotations

import random
from array import array
from collections import Counter as Tally
from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from heapq import heappop, heappush

from cluster.clock import Actor, Dot, SlotClock
from cluster.delta import Outcome, clock_of, joined, lacks, settle, whole
from cluster.exchange import Exchange, ExchangeSettings
from cluster.exchange_transfer import Page, Resume
from cluster.record import DELETION, STRING, Record, Version, decode, encode, join_records
from cluster.ring import NodeId
from cluster.slot import SLOT_COUNT, Row, Slot
from cluster.topology import NodeInfo, Topology
from cluster.transport import Message
from engine.errors import EngineError
from engine.levels import PageFault

NOTHING = Record(())


class Fault(PageFault):
    """A page that is not in memory, of nothing: `arrive` tells the replica."""

    def __init__(self, on_arrival: Callable[[], None]) -> None:
        Exception.__init__(self)
        self.on_arrival = on_arrival


@dataclass
class SlotRows:
    """A slot as a store keeps it: complete entries, deltas over them, and what was seen."""

    clock: SlotClock = field(default_factory=SlotClock)
    complete: dict[Row, Record] = field(default_factory=dict)
    deltas: dict[Row, list[Record]] = field(default_factory=dict)

    def read(self, row: Row) -> Record:
        """All entries of a row joined, newest first, as the engine does it."""
        entries = [*reversed(self.deltas.get(row, ())), self.complete.get(row, NOTHING)]
        state = entries[0]
        for entry in entries[1:]:
            state = join_records(state, entry)
        return state

    def rows(self) -> list[Row]:
        return sorted({**self.complete, **self.deltas})


class MemoryReplica:
    """`cluster.exchange.Replica` in plain memory. Faults as often as `rng` says; with None, never."""

    def __init__(
        self, actor: Actor, rng: random.Random | None = None, *, page_rows: int = 64
    ) -> None:
        self.actor = actor
        self.counters: Tally[Slot] = Tally()
        self.slots: dict[Slot, SlotRows] = {}
        self.changed: dict[Slot, None] = {}  # For who checks.
        self.outcomes: Tally[str] = Tally()
        self._rng = rng
        self._page_rows = page_rows
        self._counts = array("q", bytes(8 * (SLOT_COUNT + 1)))
        self._at_hand: dict[tuple[Slot, Row], None] = {}

    def clock(self, slot: Slot) -> SlotClock:
        held = self.slots.get(slot)
        return SlotClock() if held is None else joined(held.clock, SlotClock())

    def seen_slots(self) -> Iterable[Slot]:
        return list(self.slots)

    def change_counts(self) -> Sequence[array[int]]:
        return (self._counts,)

    def has_undecided(self, slot: Slot) -> bool:
        return False

    def pages(self, slot: Slot) -> Generator[Page, None, None]:
        held = self.slots.get(slot, SlotRows())
        entries = [(row, encode(held.read(row))) for row in held.rows()]
        for first in range(0, len(entries), self._page_rows):
            while self._is_faulting():
                yield Fault(lambda: None)
            if self._rng is not None and self._rng.random() < 0.01:
                raise EngineError("a page is lost")
            yield entries[first : first + self._page_rows]

    def repair(self, slot: Slot, row: Row, record: Record) -> bool:
        held = self._held(slot)
        at_hand = None
        if self._at_hand.pop((slot, row), "none") is None:
            at_hand = held.read(row)
        elif self._is_faulting():
            raise Fault(lambda: self._at_hand.setdefault((slot, row)))
        outcome, stored = settle(record, held.clock, at_hand)
        if outcome is Outcome.READ:
            raise Fault(lambda: self._at_hand.setdefault((slot, row)))
        self._store(slot, row, record, outcome, stored)
        return outcome is not Outcome.IGNORE

    def join_clock(self, slot: Slot, clock: SlotClock) -> None:
        self._held(slot).clock.join(clock)
        self._mark(slot)

    def write(
        self, slot: Slot, row: Row, payload: bytes, *, hlc: int, kind: int, is_blind: bool
    ) -> Record:
        """A local write: it replaces all that the replica has seen of the row, or (blind) nothing."""
        held = self._held(slot)
        self.counters[slot] += 1
        version = Version((self.actor, self.counters[slot]), hlc, kind, payload)
        before = held.read(row)
        context = SlotClock() if is_blind else clock_of(whole(before, held.clock))
        context.add(version.dot)
        made = Record((version,), *context.freeze())
        outcome, stored = settle(made, held.clock, before)
        self._store(slot, row, made, outcome, stored)
        return made

    def accept(self, slot: Slot, row: Row, delta: Record) -> None:
        """A write of another replica."""
        held = self._held(slot)
        outcome, stored = settle(delta, held.clock, None)
        if outcome is Outcome.READ:
            outcome, stored = settle(delta, held.clock, held.read(row))
        self._store(slot, row, delta, outcome, stored)

    def lose(self, slot: Slot) -> None:
        """The slot's data is gone, and with it what was seen; no dot is given out again."""
        self.slots.pop(slot, None)
        self._mark(slot)

    def _store(
        self, slot: Slot, row: Row, delta: Record, outcome: Outcome, stored: Record | None
    ) -> None:
        held = self._held(slot)
        self.outcomes[outcome.name] += 1
        if stored is not None:
            stored = decode(encode(stored))
            if outcome is Outcome.COMPLETE:
                held.complete[row] = stored
                held.deltas.pop(row, None)
            else:
                held.deltas.setdefault(row, []).append(stored)
        for version in delta.versions:
            held.clock.add(version.dot)
        self._mark(slot)

    def _held(self, slot: Slot) -> SlotRows:
        return self.slots.setdefault(slot, SlotRows())

    def _mark(self, slot: Slot) -> None:
        self._counts[slot] += 1
        self.changed[slot] = None

    def _is_faulting(self) -> bool:
        return self._rng is not None and self._rng.random() < 0.1


@cache
def views_of(names: tuple[NodeId, ...], n: int) -> dict[NodeId, Topology]:
    """The view of each of some nodes, with `n` replicas of each slot."""
    infos = [NodeInfo(name, "127.0.0.1", 7001, 7101, 17001) for name in names]
    first = Topology(names[0], infos, n)
    return {name: Topology(name, infos, n, claim=first.claim) for name in names}


@dataclass
class Conditions:
    """How bad the network is, and what else happens."""

    loss: float = 0.2
    repeat: float = 0.2
    delay_s: float = 0.6
    refused: float = 0.3  # Of what is sent in bulk.
    write_loss: float = 0.5
    writes: float = 0.6  # In each step.
    breaks: float = 0.02
    restarts: float = 0.01
    wipes: float = 0.0
    losses: float = 0.0  # Of one slot's data.


CALM = Conditions(0, 0, 0.01, 0, 0, 0, 0, 0)

QUICK = ExchangeSettings(
    interval_s=0.5,
    grace_s=0.3,
    slots_in_flight=2,
    chunk_rows_max=2,
    chunk_bytes_max=200,
    retry_s=0.7,
    attempts_max=4,
    idle_s=2.0,
    clock_dots_max=6,
)


class Line:
    """One node's way out."""

    def __init__(self, world: World, me: NodeId) -> None:
        self.world = world
        self.me = me

    def send(self, peer: NodeId, message: Sequence[bytes]) -> None:
        self.world.send(self.me, peer, list(message))

    def send_bulk(self, peer: NodeId, message: Sequence[bytes]) -> bool:
        world = self.world
        if not self.is_connected(peer) or world.rng.random() < world.conditions.refused:
            return False
        world.send(self.me, peer, list(message))
        return True

    def is_connected(self, peer: NodeId) -> bool:
        return not {(self.me, peer), (peer, self.me)} & self.world.broken.keys()

    def queued_bytes(self, peer: NodeId) -> int:
        return 0

    def flush(self) -> None:
        """Each message leaves at once."""


class World:
    """Some nodes, and everything that happens to them."""

    def __init__(
        self,
        seed: object,
        names: Sequence[NodeId],
        *,
        n: int,
        conditions: Conditions,
        slots: Sequence[Slot] = (0, 1, 127, 128, 9000, 16383),
        row_count: int = 6,
        settings: ExchangeSettings = QUICK,
    ) -> None:
        self.rng = random.Random(f"exchange-{seed}")
        self.names = list(names)
        self.conditions = conditions
        self.settings = settings
        self.slots = slots
        self.rows = [b"%06d\0\0\0\0\0" % number for number in range(row_count)]
        self.now_s = 100.0
        self.views = views_of(tuple(names), n)
        self.broken: dict[tuple[NodeId, NodeId], None] = {}
        self.events: list[tuple[float, int, Callable[[], None]]] = []
        self.count = 0
        self.verbs: Tally[bytes] = Tally()
        # The history: what each write replaced, by slot and dot.
        self.written: dict[tuple[Slot, Row], list[Dot]] = {}
        self.replaced: dict[tuple[Slot, Dot], frozenset[Dot]] = {}
        # What each peer had seen when a node's exchange began, by node: what "matched" promises.
        self.promised: dict[NodeId, dict[tuple[NodeId, Slot], SlotClock]] = {}
        self.replicas: dict[NodeId, MemoryReplica] = {}
        self.exchanges: dict[NodeId, Exchange] = {}
        for name in names:
            self.replicas[name] = self._new_replica()
        for name in names:
            self._start(name)

    # The network

    def at(self, delay_s: float, action: Callable[[], None]) -> None:
        self.count += 1
        heappush(self.events, (self.now_s + delay_s, self.count, action))

    def send(self, sender: NodeId, peer: NodeId, message: Message) -> None:
        self.verbs[message[0]] += 1
        if (sender, peer) in self.broken or (peer, sender) in self.broken:
            return
        rng, conditions = self.rng, self.conditions
        if rng.random() < conditions.loss:
            return
        for _ in range(2 if rng.random() < conditions.repeat else 1):
            # Some come very late.
            delay_s = rng.random() * conditions.delay_s * (10 if rng.random() < 0.05 else 1)
            self.at(delay_s, lambda: self._deliver(sender, peer, message))

    def _deliver(self, sender: NodeId, peer: NodeId, message: Message) -> None:
        self.exchanges[peer].receive(sender, message, self.now_s)
        self.check(peer)

    def break_line(self, a: NodeId, b: NodeId) -> None:
        self.broken[a, b] = None
        self.exchanges[a].disconnected(b)
        self.exchanges[b].disconnected(a)

    def mend_line(self, a: NodeId, b: NodeId) -> None:
        self.broken.pop((a, b), None)
        self.exchanges[a].connected(b)
        self.exchanges[b].connected(a)

    # The nodes

    def _new_replica(self) -> MemoryReplica:
        actor = self.rng.getrandbits(64)
        return MemoryReplica(actor, self.rng, page_rows=self.rng.randint(1, 4))

    def _start(self, name: NodeId) -> None:
        self.exchanges[name] = Exchange(
            self.views[name],
            self.replicas[name],
            Line(self, name),
            random.Random(self.rng.getrandbits(64)),
            self.settings,
            self._fetch,
        )
        self.promise(name, self.slots)

    def promise(self, name: NodeId, slots: Sequence[Slot]) -> None:
        promised = self.promised.setdefault(name, {})
        for peer in self.names:
            for slot in slots:
                promised[peer, slot] = self.replicas[peer].clock(slot)

    def _fetch(self, fault: PageFault, resume: Resume) -> None:
        assert isinstance(fault, Fault)
        on_arrival = fault.on_arrival
        chance = self.rng.random()
        if chance < 0.02:
            self.at(0.1, lambda: resume(EngineError("a page is lost")))
        elif chance < 0.5:
            on_arrival()
            resume(None)
        else:
            self.at(0.1, on_arrival)
            self.at(0.1, lambda: resume(None))

    def restart(self, name: NodeId, *, is_wiped: bool = False) -> None:
        """The process begins again; sometimes nobody notices that its connections broke."""
        if is_wiped:
            self.replicas[name] = self._new_replica()
            for promised in self.promised.values():
                promised.update({(name, slot): SlotClock() for slot in self.slots})
        self._start(name)
        if self.rng.random() < 0.7:
            for peer in self.names:
                if peer != name and self.exchanges[name]._transport.is_connected(peer):
                    self.break_line(name, peer)
                    self.mend_line(name, peer)

    def lose(self, name: NodeId, slot: Slot) -> None:
        self.replicas[name].lose(slot)
        self.exchanges[name].reset([slot])
        self.promise(name, [slot])
        for promised in self.promised.values():
            promised[name, slot] = SlotClock()

    def write(self, name: NodeId, slot: Slot) -> None:
        rng, replica = self.rng, self.replicas[name]
        row = rng.choice(self.rows)
        is_blind = rng.random() < 0.2
        before = self.covered(name, slot, row)
        made = replica.write(
            slot,
            row,
            b"%d" % self.count * rng.randint(1, 20),
            hlc=len(self.replaced),
            kind=rng.choice((STRING, STRING, DELETION)),
            is_blind=is_blind,
        )
        dot = made.versions[0].dot
        assert (slot, dot) not in self.replaced
        self.written.setdefault((slot, row), []).append(dot)
        # What a write replaces, it replaces for ever: also what its author knew to be replaced.
        known = before.union(*(self.replaced[slot, d] for d in before))
        self.replaced[slot, dot] = frozenset() if is_blind else known
        for peer in self.views[name].replicas(slot):
            if peer != name and rng.random() >= self.conditions.write_loss:
                self.at(
                    rng.random() * self.conditions.delay_s,
                    lambda peer=peer: self._hear_write(peer, slot, row, made),  # type: ignore[misc]
                )
        self.check(name)

    def _hear_write(self, name: NodeId, slot: Slot, row: Row, made: Record) -> None:
        self.replicas[name].accept(slot, row, made)
        self.check(name)

    # Time

    def step(self) -> None:
        """A tick of all nodes, and what happens between two."""
        self.now_s += 0.05
        self._happen()
        while self.events and self.events[0][0] <= self.now_s:
            heappop(self.events)[2]()
        for name in self.names:
            exchange = self.exchanges[name]
            exchange.tick(self.now_s)
            for _ in range(self.rng.randint(0, 3)):
                left = iter(range(self.rng.randint(1, 15)))
                exchange.work(lambda left=left: next(left, None) is None)  # type: ignore[misc]
                self.check(name)

    def _happen(self) -> None:
        rng, conditions = self.rng, self.conditions
        if rng.random() < conditions.writes:
            slot = rng.choice(self.slots)
            self.write(rng.choice(self.views[self.names[0]].replicas(slot)), slot)
        a, b = rng.sample(self.names, 2)
        if (a, b) in self.broken:
            if rng.random() < 0.1:
                self.mend_line(a, b)
        elif rng.random() < conditions.breaks and (b, a) not in self.broken:
            self.break_line(a, b)
        if rng.random() < conditions.restarts:
            self.restart(a)
        if rng.random() < conditions.wipes:
            self.restart(b, is_wiped=True)
        if rng.random() < conditions.losses:
            self.lose(a, rng.choice(self.slots))

    def heal(self, deadline_s: float = 60.0) -> float:
        """Everything works from now on, and nobody writes: how long until all have the same."""
        self.conditions = replace(CALM)
        for a, b in list(self.broken):
            self.mend_line(a, b)
        begun_s = self.now_s
        while not self.is_equal():
            assert self.now_s < begun_s + deadline_s, "the replicas did not become equal"
            self.step()
        healed_s = self.now_s - begun_s
        while not self.is_matched():
            assert self.now_s < begun_s + deadline_s, "equal replicas were not matched"
            self.step()
        return healed_s

    # The oracle

    def covered(self, name: NodeId, slot: Slot, row: Row) -> frozenset[Dot]:
        clock = self.replicas[name].clock(slot)
        return frozenset(filter(clock.covers, self.written.get((slot, row), ())))

    def shown(self, seen: frozenset[Dot], slot: Slot) -> frozenset[Dot]:
        return seen - frozenset().union(*(self.replaced[slot, dot] for dot in seen))

    def check(self, name: NodeId) -> None:
        """What has changed at a node is what its clock says, and what was matched is here."""
        replica = self.replicas[name]
        changed, replica.changed = replica.changed, {}
        for slot in changed:
            held = replica.slots.get(slot, SlotRows())
            for row in self.rows:
                expected = self.shown(self.covered(name, slot, row), slot)
                assert held.read(row).dots == expected, (name, slot, row)
        for slot in self.slots:
            for peer in self.exchanges[name].matched(slot):
                promised = self.promised[name][peer, slot]
                assert not lacks(replica.clock(slot), promised), (name, peer, slot)

    def is_equal(self) -> bool:
        for slot in self.slots:
            owners = self.views[self.names[0]].replicas(slot)
            clocks = [self.replicas[name].clock(slot) for name in owners]
            if any(clock != clocks[0] for clock in clocks):
                return False
            held = [self.replicas[name].slots.get(slot, SlotRows()) for name in owners]
            for row in self.rows:
                records = [each.read(row).versions for each in held]
                assert all(versions == records[0] for versions in records)
        return True

    def is_matched(self) -> bool:
        return all(
            set(self.exchanges[name].matched(slot)) == set(self.views[name].replicas(slot)) - {name}
            for slot in self.slots
            for name in self.views[self.names[0]].replicas(slot)
        )
