"""Writes that keep siblings, at replicas that take each other's deltas, against causal histories written out.

The oracle knows sets of events and no counters. Each write replaces a set of events of its row for ever, and
carries the versions that it kept. A replica shows what it was given and nothing that it was given replaces.
What somebody has seen is a set of events too.
"""

from __future__ import annotations

import random
from collections import Counter as Tally
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import pytest

from cluster import sibling
from cluster.clock import Dot, SlotClock
from cluster.delta import missing
from cluster.record import DELETION, STRING, Record, decode
from cluster.replica import Replica
from cluster.sibling import Beside, Seen, beside, seen_after, seen_with
from cluster.slot import Row, Slot
from respkv.causal_context import ContextSeal
from tests.cluster.test_replica_deltas import (
    NOW_MS,
    PLACES,
    SLOTS,
    Contexts,
    Delta,
    blob_of,
    capture_context,
    disk_of,
    flush_memtable,
    opened,
    unpacked,
    with_faults,
)
from tests.engine.stores import forget_pages
from tests.sim.disk import SimDisk

Place = tuple[Slot, Row]
Events = frozenset[tuple[Place, Dot]]
SEAL = ContextSeal(b"a secret of sixteen bytes")


@dataclass
class Context:
    """What a client has: a text, and what the oracle says of it."""

    place: Place
    text: bytes
    events: Events
    holes: Events


@dataclass
class Message:
    to: int
    delta: Delta
    contexts: Contexts
    carried: Events


@dataclass
class Node:
    replica: Replica
    given: Events = frozenset()
    boot: int = 1


@dataclass
class World:
    """Without `does_exchange`, replicas have nothing but deltas; with it, the sets of their clocks are joined too."""

    seed: int
    node_count: int = 3
    nodes: list[Node] = field(default_factory=list)
    replaced: dict[tuple[Place, Dot], Events] = field(default_factory=dict)
    is_deletion: set[tuple[Place, Dot]] = field(default_factory=set)
    under_way: list[Message] = field(default_factory=list)
    contexts: list[Context] = field(default_factory=list)
    met: Tally[str] = field(default_factory=Tally)

    def __post_init__(self) -> None:
        self.rng = random.Random(f"sibling-{self.seed}")
        for number in range(self.node_count):
            disk = SimDisk(random.Random(self.seed * 10 + number))
            replica = opened(disk, self.rng.getrandbits(62) + 1)
            replica.store.write()
            self.nodes.append(Node(replica))

    # The oracle

    def known(self, node: Node, place: Place) -> Events:
        mine = frozenset(event for event in node.given if event[0] == place)
        return mine.union(*(self.replaced[event] for event in mine))

    def shown(self, node: Node, place: Place) -> Events:
        mine = frozenset(event for event in node.given if event[0] == place)
        return mine - frozenset().union(*(self.replaced[event] for event in mine))

    # What happens

    def step(self) -> None:
        rng = self.rng
        node, place = rng.choice(self.nodes), rng.choice(PLACES[:2])
        choice = rng.random()
        if choice < 0.12:
            self.write(node, place, None)
        elif choice < 0.26:
            self.read(node, place)
        elif choice < 0.5:
            of_place = [each for each in self.contexts if each.place == place]
            nothing = Context(place, SEAL.seal(place[1], Seen()), frozenset(), frozenset())
            is_new = not of_place or rng.random() < 0.2
            self.write(node, place, nothing if is_new else rng.choice(of_place[-6:]))
        elif choice < 0.85:
            self.deliver()
        elif choice < 0.92:
            self.exchange(*rng.sample(self.nodes, 2))
        elif choice < 0.95:
            flush_memtable(node.replica)
            forget_pages(node.replica.store)
        elif choice < 0.97:
            node.replica.store.write()
            self.restart(node)
        else:
            self.send_row(node, place)
        for each in self.nodes:
            each.replica.store.write()
            self.check(each)

    def write(self, node: Node, place: Place, context: Context | None) -> None:
        """A plain SET or DEL, or a KV.PUT or KV.DEL with what somebody has seen."""
        slot, row = place
        replica = node.replica
        kind = DELETION if self.rng.random() < 0.2 else STRING
        shown, known = self.shown(node, place), self.known(node, place)
        live = shown - self.is_deletion
        kept: Events = frozenset()
        places: dict[Row, Beside] = {}
        extra: Events = frozenset()
        seen = Seen()
        if context is not None:
            stored = with_faults(replica, lambda: replica.store.get(slot, row)) or b""
            seen = SEAL.open(row, context.text)
            place_here = beside(stored, replica.clocks.view(slot), seen, NOW_MS)
            dot = (replica.actor, replica.clocks.own[slot] + 1)
            after = seen_after(seen, place_here, replica.clocks.view(slot), dot)
            kept = live - context.events
            assert {(place, version.dot) for version in place_here.kept} == kept
            if place_here.kept or place_here.seen is not None:
                places[row] = place_here
            if context.holes <= known:
                extra = context.events - known
            self.met["beyond the clock"] += bool(extra)
            self.met["holes in the way"] += bool(context.events - known and not extra)
            self.met["kept"] += bool(kept)
        capture: Contexts = {}
        capture_context(replica, slot, capture)
        written: list[Delta] = []
        effects = {row: (slot, kind, 0, b"%d" % len(self.replaced) if kind else b"")}
        with_faults(replica, lambda: replica.write(effects, NOW_MS, written, places))
        (event,) = {
            (place, version.dot)
            for version in decode(written[0][2]).versions
            if (place, version.dot) not in kept
        }
        assert event not in self.replaced
        self.replaced[event] = (known | extra) - kept
        if kind == DELETION:
            self.is_deletion.add(event)
        node.given |= {event}
        for other in range(self.node_count):
            if self.nodes[other] is not node and self.rng.random() < 0.7:
                self.under_way.append(Message(other, written[0], capture, kept | {event}))
        if context is not None:
            assert event[1] == dot
            holes = kept | (context.holes - known)
            events = (known | context.events | {event}) - holes
            self.contexts.append(Context(place, SEAL.seal(row, after), events, holes))

    def read(self, node: Node, place: Place) -> None:
        slot, row = place
        raw = with_faults(node.replica, lambda: node.replica.store.get(slot, row))
        record = Record(()) if raw is None else decode(raw)
        text = SEAL.seal(row, seen_with(record, node.replica.clocks.view(slot)))
        self.contexts.append(Context(place, text, self.known(node, place), frozenset()))

    def deliver(self) -> None:
        if not self.under_way:
            return
        index = self.rng.randrange(len(self.under_way))
        message = self.under_way[index]
        if self.rng.random() < 0.8:  # Or it comes once more.
            del self.under_way[index]
        node, delta = self.nodes[message.to], blob_of([message.delta])
        contexts = unpacked(message.contexts)

        def take() -> None:
            assert not list(node.replica.accept(delta, contexts, NOW_MS, is_checked=False))

        with_faults(node.replica, take)
        node.given |= message.carried

    def send_row(self, node: Node, place: Place) -> None:
        """A repair: a row's whole state."""
        slot, row = place
        state = with_faults(node.replica, lambda: node.replica.state_of(slot, row))
        other = self.rng.choice(self.nodes)
        if state:
            record = decode(state)
            with_faults(other.replica, lambda: other.replica.repair(slot, row, record, NOW_MS))
            # Of what was replaced only the fact has come: as good as all of it.
            other.given |= frozenset(event for event in node.given if event[0] == place)

    def exchange(self, source: Node, target: Node) -> None:
        for slot in SLOTS:
            clock = source.replica.clocks.clock(slot)
            rows = [
                (row, decode(raw))
                for of_slot, row in PLACES
                if of_slot == slot and (raw := source.replica.store.read_now(slot, row)) is not None
            ]
            for row, record in list(missing(rows, clock, target.replica.clocks.clock(slot))):
                repair(target.replica, slot, row, record)
            target.replica.join_clock(slot, clock, NOW_MS)
        target.given |= source.given

    def restart(self, node: Node) -> None:
        disk = disk_of(node.replica).kill()
        actor, clocks = node.replica.actor, {s: node.replica.clocks.clock(s) for s in SLOTS}
        node.replica = opened(disk, 1 + self.rng.getrandbits(62), str(node.boot))
        assert node.replica.actor == actor
        assert {s: node.replica.clocks.clock(s) for s in SLOTS} == clocks
        self.met["restart"] += 1

    def check(self, node: Node) -> None:
        for place in PLACES[:2]:
            slot, row = place
            raw = node.replica.store.read_now(slot, row)
            versions = () if raw is None else decode(raw).versions
            live = {(place, each.dot) for each in versions if each.type != DELETION}
            assert live == self.shown(node, place) - self.is_deletion
            self.met["siblings"] += len(live) > 1

    def settle(self) -> None:
        for _ in range(2):
            for source in self.nodes:
                for target in self.nodes:
                    if source is not target:
                        self.exchange(source, target)
        for node in self.nodes:
            self.check(node)
            for place in PLACES[:2]:
                # What only a context spoke of is nowhere, and nothing hangs on it.
                assert self.shown(node, place) == self.shown(self.nodes[0], place)
            assert [node.replica.clocks.clock(s) for s in SLOTS] == [
                self.nodes[0].replica.clocks.clock(s) for s in SLOTS
            ]


def repair(replica: Replica, slot: Slot, row: Row, record: Record) -> None:
    with_faults(replica, lambda: replica.repair(slot, row, record, NOW_MS))


def run(seed: int, steps: int = 80) -> World:
    world = World(seed, 3 + seed % 2)
    try:
        for _ in range(steps):
            world.step()
        world.settle()
    except AssertionError as error:
        error.add_note(f"seed {seed}")
        raise
    return world


def all_seeds() -> Tally[str]:
    met: Tally[str] = Tally()
    for seed in range(60):
        met += run(seed).met
    return met


def test_replicas_show_what_no_write_that_they_have_seen_replaces() -> None:
    met = all_seeds()
    assert met["kept"] > 100, met
    assert met["beyond the clock"] > 100, met
    assert met["holes in the way"] > 3, met
    assert met["siblings"] > 500, met
    assert met["restart"] > 20, met


def with_bare_clock(seen: Seen, place: Beside, clock: SlotClock, dot: Dot) -> Seen:
    """What stands beside a version counts as seen by its author."""
    return replace(SEEN_AFTER(seen, place, clock, dot), holes=frozenset())


def with_versions_only(seen: Seen, place: Beside, clock: SlotClock, dot: Dot) -> Seen:
    """What a version had replaced does not count as seen by its author."""
    return Seen(SlotClock({}, {dot}))


def forgetting_what_is_elsewhere(
    stored: bytes, clock: SlotClock, seen: Seen, now_ms: int
) -> Beside:
    return BESIDE(stored, clock, seen, now_ms)._replace(seen=None)


def without_holes(stored: bytes, clock: SlotClock, seen: Seen, now_ms: int) -> Beside:
    """The holes of what was seen are forgotten where they matter."""
    made = BESIDE(stored, clock, seen, now_ms)
    return made if made.seen is not None else made._replace(seen=seen.clock)


SEEN_AFTER, BESIDE = seen_after, beside
PLANTED: list[tuple[str, str, Callable[..., object]]] = [
    ("the context of a write covers its siblings", "seen_after", with_bare_clock),
    ("the context of a write is not closed", "seen_after", with_versions_only),
    ("what was seen elsewhere is not replaced", "beside", forgetting_what_is_elsewhere),
    ("holes are covered", "beside", without_holes),
]


@pytest.mark.parametrize(
    ("name", "function", "planted"), PLANTED, ids=[each[0] for each in PLANTED]
)
def test_planted_bugs_are_found(
    name: str, function: str, planted: Callable[..., object], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert hasattr(sibling, function)
    monkeypatch.setitem(globals(), function, planted)
    with pytest.raises(AssertionError):
        all_seeds()
