"""Replicas that take each other's deltas, on disks that lose power, against the events that each has seen.

The oracle keeps for each replica the set of all dots that it has seen, and for each write which dots it
had seen of its row. A row shows what was seen and no seen event has replaced; a slot clock covers
exactly what was seen. Nothing in the oracle compares counters.

Deltas leave as the coordinator sends them: the log's bytes, and the context of the slots that several
have written to, as it was at the first write of the message. They are lost, repeated and reordered.
"""

from __future__ import annotations

import random
from collections import Counter as Tally
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from typing import TypeVar

import pytest

from cluster import delta as delta_module
from cluster.clock import Actor, Dot, SlotClock
from cluster.delta import clock_of, missing
from cluster.delta_wire import MalformedDelta, decode_clock, encode_clock
from cluster.record import (
    CODEC,
    DELETION,
    HAS_EXPIRY,
    MANY,
    STRING,
    Record,
    Version,
    decode,
    encode,
    encode_version,
)
from cluster.replica import Replica
from cluster.slot import SLOT_COUNT, Row, Slot, row_of, slot_of
from cluster.slot_clocks import NOBODY, SlotClocks
from engine.job import run_job
from engine.log_format import COMPLETE, ENVELOPE
from engine.store import PageFault, StoreSettings
from tests.engine.stores import forget_pages
from tests.sim.disk import SimDisk

NOW_MS = 1_700_000_000_000
SETTINGS = StoreSettings(
    memtable_bytes=1 << 30,
    row_cache_bytes=1 << 20,
    block_cache_bytes=1 << 20,
    log_bytes_max=1 << 30,
)
PLACES: list[tuple[Slot, Row]] = [
    (slot_of(key), row_of(0, key)) for key in (b"{a}1", b"{a}2", b"{b}1")
]
SLOTS = sorted({slot for slot, _ in PLACES})
Event = tuple[Slot, Dot]
Events = frozenset[Event]
Delta = tuple[Slot, Row, bytes]
Contexts = dict[Slot, bytes]
T = TypeVar("T")
MET: Tally[str] = Tally()  # Of all worlds.


def opened(disk: SimDisk, actor: Actor, boot: str = "1") -> Replica:
    replica = Replica.open(disk, SETTINGS, actor, boot=boot)
    replica.store.horizon_position = 0  # As in a cluster.
    return replica


def disk_of(replica: Replica) -> SimDisk:
    disk = replica.store.disk
    assert isinstance(disk, SimDisk)
    return disk


def flush_memtable(replica: Replica) -> None:
    """Freeze, and do the job that makes a table of it."""
    store = replica.store
    store.freeze()
    job = store.next_job(NOW_MS)
    assert job is not None
    result = run_job(store.disk, job, CODEC)
    prepared = store.prepare(job, result)
    store.write_manifest(prepared)
    store.install(job, result, prepared)


def blob_of(deltas: list[Delta]) -> bytes:
    """As the coordinator packs them."""
    return b"".join(
        ENVELOPE(COMPLETE, slot, len(row), len(raw)) + row + raw for slot, row, raw in deltas
    )


def capture_context(replica: Replica, slot: Slot, contexts: Contexts) -> None:
    """As the coordinator does at the first write of a slot."""
    if replica.clocks.sole[slot] != NOBODY and slot not in contexts:
        contexts[slot] = encode_clock(replica.clocks.others(slot))


def unpacked(contexts: Contexts) -> dict[Slot, SlotClock]:
    return {slot: decode_clock(packed) for slot, packed in contexts.items()}


# The oracle


@dataclass
class Oracle:
    """All writes: where each was made, and which events of its row it had seen."""

    row_of: dict[Event, Row] = field(default_factory=dict)
    replaced: dict[Event, Events] = field(default_factory=dict)

    def of_row(self, seen: Events, place: tuple[Slot, Row]) -> Events:
        return frozenset(e for e in seen if (e[0], self.row_of[e]) == place)

    def shown(self, seen: Events, place: tuple[Slot, Row]) -> Events:
        events = self.of_row(seen, place)
        return events - frozenset().union(*(self.replaced[event] for event in events))

    def write(self, event: Event, row: Row, seen: Events) -> None:
        known = self.of_row(seen, (event[0], row))
        # What a write replaces, it replaces for ever: also what its author knew to be replaced.
        self.replaced[event] = known.union(*(self.replaced[each] for each in known))
        self.row_of[event] = row


@dataclass
class Node:
    """One data folder, and the batch of deltas that will leave it next."""

    number: int
    replica: Replica
    seen: Events = frozenset()
    # What was seen at each position of the log: a power cut goes back to one of them.
    history: list[tuple[int, Events]] = field(default_factory=list)
    batch: list[Delta] = field(default_factory=list)
    contexts: Contexts = field(default_factory=dict)
    boot: int = 1


@dataclass
class Message:
    to: int
    deltas: list[Delta]
    contexts: Contexts


@dataclass
class RowMessage:
    """A row's whole state, and what it shows."""

    to: int
    place: tuple[Slot, Row]
    state: bytes
    events: Events


class World:
    hears_before_sealing = False  # A planted bug.

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(f"replica-deltas-{seed}")
        self.oracle = Oracle()
        self.met: Tally[str] = Tally()
        self.step_count = 0
        self.now_ms = NOW_MS
        self.under_way: list[Message | RowMessage] = []
        self.nodes = [
            Node(n, opened(SimDisk(random.Random(seed * 10 + n)), self.new_actor()))
            for n in range(self.rng.randrange(3, 6))
        ]
        for node in self.nodes:
            node.replica.before_hearing = partial(self.before_hearing, node)
            # Then what is in tables has to be fetched.
            disk_of(node.replica).faults.is_cold = self.rng.random() < 0.5
            self.log(node)

    def new_actor(self) -> Actor:
        return self.rng.getrandbits(62) + 1

    # What happens

    def step(self) -> None:
        self.step_count += 1
        rng = self.rng
        self.now_ms += rng.choice([0, 0, 1, 700])
        node = rng.choice(self.nodes)
        for each in self.nodes:
            if disk_of(each.replica).faults.is_cold:
                forget_pages(each.replica.store)
        choice = rng.random()
        if choice < 0.34:
            self.write(node)
        elif choice < 0.76 and self.under_way:
            node = self.deliver()
        elif choice < 0.80:
            self.send_row(node)
        elif choice < 0.85:
            node = self.exchange(*rng.sample(self.nodes, 2))
        elif choice < 0.89:
            self.log(node)
            flush_memtable(node.replica)
            self.met["flush"] += 1
        elif choice < 0.91:
            node.replica.expire(self.now_ms, lambda: rng.random() < 0.1)
        elif choice < 0.94:
            self.restart(node)
        else:
            self.seal(node)
        if rng.random() < 0.9:
            self.log(node)
        self.check(node)

    def write(self, node: Node) -> None:
        rng, replica = self.rng, node.replica
        effects = {}
        for slot, row in rng.sample(PLACES, rng.randrange(1, 3)):
            kind = rng.choice((STRING, STRING, DELETION))
            expiry = self.now_ms + rng.randrange(3000) if kind and rng.random() < 0.3 else 0
            payload = b"%d" % self.step_count if kind else b""
            effects[row] = (slot, kind, expiry, payload)
        for slot, *_ in effects.values():
            self.met["write in an unsettled slot"] += slot in replica.unsettled
            capture_context(replica, slot, node.contexts)
        with_faults(replica, lambda: replica.write(effects, self.now_ms, node.batch))
        for row, (slot, *_) in effects.items():
            raw = replica.store.active[slot][row]
            event = (slot, decode(raw).versions[0].dot)
            assert event not in self.oracle.row_of, "a dot names two writes"
            self.oracle.write(event, row, node.seen)
            node.seen |= {event}

    def before_hearing(self, node: Node) -> None:
        if not self.hears_before_sealing:
            self.seal(node)

    def seal(self, node: Node) -> None:
        """The tick ends: the log first, then the messages."""
        deltas, contexts = node.batch, node.contexts
        node.batch, node.contexts = [], {}
        if not deltas:
            return
        self.log(node)
        for other in self.nodes:
            if other is not node and self.rng.random() < 0.8:
                self.under_way.append(Message(other.number, deltas, contexts))

    def deliver(self) -> Node:
        index = self.rng.randrange(len(self.under_way))
        message = self.under_way[index]
        if self.rng.random() < 0.75:
            del self.under_way[index]
        node = self.nodes[message.to]
        if isinstance(message, RowMessage):
            self.repair(node, message)
        else:
            self.accept(node, message)
        return node

    def accept(self, node: Node, message: Message) -> None:
        is_checked = self.rng.random() < 0.5
        contexts = unpacked(message.contexts)
        blob = blob_of(message.deltas)
        expected: list[tuple[Slot, Row]] = []
        seen = node.seen
        for slot, row, raw in message.deltas:
            event = (slot, decode(raw).versions[0].dot)
            if is_checked and self.is_conflict(seen, event, (slot, row)):
                expected.append((slot, row))
            else:
                seen |= {event}
        replica = node.replica
        refusals = with_faults(replica, lambda: replica.refusals(blob, contexts))
        if len(message.deltas) == 1 and is_checked:
            assert [(each.slot, each.row) for each in refusals] == expected
        found = []

        def take() -> None:
            for conflict in replica.accept(blob, contexts, self.now_ms, is_checked=is_checked):
                found.append((conflict.slot, conflict.row))
                shown = self.oracle.shown(node.seen, (conflict.slot, conflict.row))
                assert {(conflict.slot, dot) for dot in decode(conflict.state).dots} == shown

        with_faults(replica, take)
        # A call that went on after a fault tells a conflict again.
        assert list(dict.fromkeys(found)) == list(dict.fromkeys(expected)), self.step_count
        self.met["refused"] += len(expected)
        self.met["taken"] += len(seen) - len(node.seen)
        node.seen = seen

    def is_conflict(self, seen: Events, event: Event, place: tuple[Slot, Row]) -> bool:
        shown = self.oracle.shown(seen, place)
        gone = frozenset().union(*(self.oracle.replaced[each] for each in shown))
        if event not in shown and (event in seen or event in gone):
            return False  # It came before, or what replaced it has overtaken it.
        return not shown <= self.oracle.replaced[event] | {event}

    def send_row(self, node: Node) -> None:
        slot, row = self.rng.choice(PLACES)
        replica = node.replica
        state = with_faults(replica, lambda: replica.state_of(slot, row))
        if state and decode(state).versions:
            self.log(node)
            shown = self.oracle.shown(node.seen, (slot, row))
            to = self.rng.choice([other.number for other in self.nodes if other is not node])
            self.under_way.append(RowMessage(to, (slot, row), state, shown))

    def repair(self, node: Node, message: RowMessage) -> None:
        replica = node.replica
        slot, row = message.place
        record = decode(message.state)
        if self.rng.random() < 0.5:
            with_faults(replica, lambda: replica.repair(slot, row, record, self.now_ms))
        else:
            raw = with_faults(replica, lambda: replica.merge(slot, row, record, self.now_ms))
            assert raw == replica.store.read_now(slot, row)
        node.seen |= message.events
        self.met["repaired"] += 1

    def exchange(self, source: Node, target: Node) -> Node:
        """The target gets what it lacks of one slot; the end may be lost, then its clock stays."""
        slot = self.rng.choice(SLOTS)
        self.log(source)
        clock = source.replica.clocks.clock(slot)
        rows = [
            (row, decode(raw))
            for of_slot, row in PLACES
            if of_slot == slot and (raw := source.replica.store.read_now(slot, row)) is not None
        ]
        replica = target.replica
        for row, record in list(missing(rows, clock, replica.clocks.clock(slot))):
            if self.rng.random() < 0.05:
                return target
            with_faults(replica, repairer(target, slot, row, record, self.now_ms))
            target.seen |= self.oracle.shown(source.seen, (slot, row))
        if self.rng.random() < 0.9:
            replica.join_clock(slot, clock, self.now_ms)
            target.seen |= {event for event in source.seen if event[0] == slot}
            self.met["exchanged"] += 1
        return target

    def log(self, node: Node) -> None:
        position = node.replica.store.write()
        if node.history and node.history[-1][0] == position:
            assert node.history[-1][1] == node.seen, "something was seen that is not in the log"
        node.history.append((position, node.seen))
        if self.rng.random() < 0.3:
            node.replica.store.log.sync()

    def restart(self, node: Node) -> None:
        how = self.rng.choice(("stop", "kill", "power cut"))
        self.met[how] += 1
        replica = node.replica
        actor = replica.actor
        node.batch, node.contexts = [], {}
        unsettled = set(replica.unsettled) if how == "stop" else set()
        if how == "stop":
            self.log(node)
            replica.close()
            disk = disk_of(replica).kill()
        elif how == "kill":
            disk = disk_of(replica).kill()
        else:
            disk = disk_of(replica).crash()
            node.boot += 1
        replica = node.replica = opened(disk, self.new_actor(), str(node.boot))
        replica.before_hearing = partial(self.before_hearing, node)
        assert unsettled <= set(replica.unsettled)
        assert (replica.actor == actor) == (how != "power cut")
        end = replica.store.recovery.end
        if how == "stop":  # The log's last frame says only that all is durable.
            node.history.append((end, node.seen))
        at_end = [seen for position, seen in node.history if position == end]
        before, node.seen = node.seen, at_end[-1]
        # What was never told to anybody and is lost has never been.
        lost = before - node.seen
        for event in sorted(lost, reverse=True):  # The last first: it may have replaced the others.
            is_told = self.is_told({event})
            assert not is_told or how == "power cut" or event[1][0] != actor
            if not is_told:
                del self.oracle.row_of[event], self.oracle.replaced[event]
        node.history = [(p, seen) for p, seen in node.history if p <= end]
        self.check(node)

    def is_told(self, events: Events | set[Event]) -> bool:
        if any(events & other.seen for other in self.nodes):
            return True
        for message in self.under_way:
            if isinstance(message, RowMessage):
                if events & message.events:
                    return True
            elif any((s, decode(raw).versions[0].dot) in events for s, _, raw in message.deltas):
                return True
        known = [k for e, k in self.oracle.replaced.items() if e not in events]
        return any(events & each for each in known)

    # What must be

    def check(self, node: Node) -> None:
        replica = node.replica
        at = (node.number, self.step_count)
        for slot, row in PLACES:
            raw = replica.store.read_now(slot, row)
            dots = decode(raw).dots if raw is not None else frozenset()
            assert {(slot, dot) for dot in dots} == self.oracle.shown(node.seen, (slot, row)), at
        for event in self.oracle.row_of:
            slot, dot = event
            is_covered = replica.clocks.covers(slot, dot)
            assert is_covered == (event in node.seen), (at, event, is_covered)
        for slot in SLOTS:
            clock = replica.clocks.clock(slot)
            events = frozenset(dot for of_slot, dot in node.seen if of_slot == slot)
            plain = SlotClock()
            for dot in sorted(events):
                plain.add(dot)
            assert clock == plain, at

    def heal(self) -> None:
        """Everything is exchanged: then all show the same."""
        for node in self.nodes:
            self.seal(node)
            self.log(node)
        self.under_way.clear()
        for _ in range(2):
            for source in self.nodes:
                for target in self.nodes:
                    if source is not target:
                        self.exchange_all(source, target)
        for node in self.nodes:
            self.check(node)
        for one, other in pairwise(self.nodes):
            assert one.seen == other.seen
            for slot, row in PLACES:
                states = [with_faults(n.replica, reader(n, slot, row)) for n in (one, other)]
                assert dots_in(states[0]) == dots_in(states[1])
            for slot in SLOTS:
                assert one.replica.clocks.clock(slot) == other.replica.clocks.clock(slot)
                # Only what a power cut took from everybody is still waited for.
                wanted = one.replica.unsettled.get(slot, SlotClock())
                known = [e for e in self.oracle.row_of if wanted.covers(e[1]) and e[0] == slot]
                assert slot not in one.replica.unsettled or not set(known) <= one.seen

    def exchange_all(self, source: Node, target: Node) -> None:
        for slot in SLOTS:
            clock = source.replica.clocks.clock(slot)
            rows = [
                (row, decode(raw))
                for of_slot, row in PLACES
                if of_slot == slot and (raw := source.replica.store.read_now(slot, row)) is not None
            ]
            for row, record in missing(rows, clock, target.replica.clocks.clock(slot)):
                with_faults(target.replica, repairer(target, slot, row, record, self.now_ms))
            target.replica.join_clock(slot, clock, self.now_ms)
        target.seen |= source.seen


def reader(node: Node, slot: Slot, row: Row) -> Callable[[], bytes]:
    return lambda: node.replica.state_of(slot, row)


def repairer(node: Node, slot: Slot, row: Row, record: Record, now_ms: int) -> Callable[[], bool]:
    return lambda: node.replica.repair(slot, row, record, now_ms)


def dots_in(state: bytes) -> frozenset[Dot]:
    return decode(state).dots if state else frozenset()


def with_faults(replica: Replica, do: Callable[[], T]) -> T:
    """Do it again after each page fault, as the shell does."""
    while True:
        try:
            return do()
        except PageFault as fault:
            MET["page fault"] += 1
            fault.resolve()


def run(seed: int, steps: int = 120) -> World:
    """A seed's whole story; raises AssertionError where a replica is not as the oracle says."""
    world = World(seed)
    try:
        for _ in range(steps):
            world.step()
        world.heal()
    except AssertionError:
        print(f"seed {seed}, step {world.step_count}")
        raise
    return world


def run_all(count: int) -> None:
    for seed in range(count):
        run(seed)


@pytest.mark.parametrize("block", range(5))
def test_replicas_are_as_their_histories_say(block: int) -> None:
    met: Tally[str] = Tally()
    for seed in range(block * 8, block * 8 + 8):
        met += run(seed).met
    met += MET
    for what in ("taken", "refused", "repaired", "exchanged", "flush", "kill", "stop", "power cut"):
        assert met[what] > 2, met
    assert met["write in an unsettled slot"] > 10, met
    assert met["page fault"] > 2, met


# Found by the worlds above


def two_slots(key: bytes = b"k") -> tuple[Slot, Row]:
    return slot_of(key), row_of(0, key)


def short(actor: Actor, counter: int, payload: bytes = b"v") -> bytes:
    return encode_version(Version((actor, counter), NOW_MS << 16, STRING, payload))


def take(replica: Replica, *deltas: Delta, is_checked: bool = False) -> list[bytes]:
    conflicts = replica.accept(blob_of(list(deltas)), {}, NOW_MS, is_checked=is_checked)
    return [conflict.state for conflict in conflicts]


def test_after_a_power_cut_what_the_old_actor_did_may_have_gaps() -> None:
    """The log is read as the new actor: the old one's dots are those of any other."""
    slot, row = two_slots()
    replica = opened(SimDisk(random.Random(1)), 7, "1")
    replica.store.log.sync()
    replica = opened(disk_of(replica).crash(), 8, "2")
    take(replica, (slot, row, short(7, 3)))  # Its first two were lost, and come back later.
    replica.store.write()
    replica = opened(disk_of(replica).kill(), 9, "2")
    assert replica.actor == 8
    assert not replica.clocks.covers(slot, (7, 1))
    assert replica.clocks.clock(slot) == SlotClock({}, {(7, 3)})


def test_a_slot_with_a_gap_is_unsettled_after_a_restart_too() -> None:
    slot, row = two_slots()
    replica = opened(SimDisk(random.Random(1)), 8)
    take(replica, (slot, row, short(7, 3)))
    assert replica.unsettled == {slot: SlotClock({7: 3})}
    replica.store.write()
    replica = opened(disk_of(replica).kill(), 9)
    assert replica.unsettled == {slot: SlotClock({7: 3})}


def test_what_was_dead_when_it_came_is_seen_after_a_restart_too() -> None:
    slot, row = two_slots()
    replica = opened(SimDisk(random.Random(1)), 8)
    take(replica, (slot, row, short(7, 2)))
    dead = Record(
        (Version((7, 1), 5, STRING, b"old"), Version((6, 1), 4, STRING)), ((6, 1), (7, 1))
    )
    replica.repair(slot, row, dead, NOW_MS)
    before = replica.clocks.clock(slot)
    assert before == SlotClock({6: 1, 7: 2})
    replica.store.write()
    assert opened(disk_of(replica).kill(), 9).clocks.clock(slot) == before


def test_a_checked_write_that_its_author_s_next_one_overtook_is_no_conflict() -> None:
    slot, row = two_slots()
    replica = opened(SimDisk(random.Random(1)), 8)
    assert take(replica, (slot, row, short(7, 2)), is_checked=True) == []
    assert take(replica, (slot, row, short(7, 1)), is_checked=True) == []
    raw = replica.store.get(slot, row)
    assert raw is not None
    assert decode(raw).dots == {(7, 2)}
    assert len(take(replica, (slot, row, short(6, 1)), is_checked=True)) == 1


# Malformed


def replica_with_a_row() -> Replica:
    slot, row = two_slots()
    replica = opened(SimDisk(random.Random(1)), 8)
    take(replica, (slot, row, short(7, 1)))
    replica.write({row: (slot, STRING, 0, b"own")}, NOW_MS)
    return replica


def damaged(rng: random.Random, data: bytes) -> bytes:
    kind = rng.randrange(4)
    if kind == 0:
        return data[: rng.randrange(len(data))]
    if kind == 1:
        return data + rng.randbytes(rng.randrange(1, 20))
    changed = bytearray(data)
    for _ in range(rng.randrange(1, 4)):
        changed[rng.randrange(len(changed))] = rng.choice((0, 1, 0x20, 0x30, 0x7F, 0xFF))
    return bytes(changed)


def many(rng: random.Random) -> bytes:
    versions = tuple(
        Version((actor, rng.randrange(1, 4)), rng.randrange(9), STRING, b"x", rng.choice((0, 99)))
        for actor in rng.sample((5, 6, 7), rng.randrange(1, 4))
    )
    return encode(Record(versions, ((5, 2), (7, 1)), ((6, 9),)))


def test_malformed_blobs_end_in_a_typed_error_and_leave_clocks_that_tell_the_truth() -> None:
    """Whatever of a blob was taken is there, also for the next start."""
    rng = random.Random(1)
    slot, row = two_slots()
    replica = replica_with_a_row()
    refused = 0
    for number in range(1500):
        raws = [rng.choice((short(7, number), many(rng))) for _ in range(rng.randrange(1, 4))]
        blob = damaged(rng, blob_of([(slot, row, raw) for raw in raws]))
        try:
            replica.refusals(blob, {})
            for _ in replica.accept(blob, {}, NOW_MS, is_checked=rng.random() < 0.5):
                pass
        except MalformedDelta:
            refused += 1
    assert 300 < refused < 1500
    before = {slot: replica.clocks.clock(slot) for slot in replica.clocks.slots()}
    rows = {
        (slot, row): replica.store.get(slot, row)
        for slot in before
        for row in replica.store.active[slot]
    }
    for (of_slot, _), raw in rows.items():
        assert raw is not None
        if of_slot < SLOT_COUNT:
            assert all(before[of_slot].covers(dot) for dot in decode(raw).dots)
    replica.store.write()
    again = opened(disk_of(replica).kill(), 9)
    assert {slot: again.clocks.clock(slot) for slot in again.clocks.slots()} == before


@pytest.mark.parametrize(
    "raw",
    [
        short(0, 1),  # Nobody.
        short(8, 1),  # The receiver itself.
        short(7, 0),
        short(7, 1 << 63),
        short(7, 1)[:24],
        bytes([STRING | HAS_EXPIRY]) + short(7, 1)[1:25] + b"1234567",
        bytes([MANY]) + bytes(30),
        bytes([MANY | 1]) + short(7, 1)[1:],
        encode(Record((Version((7, 1), 1, STRING), Version((5, 1), 1, STRING)), ((0, 4),))),
    ],
)
def test_malformed_deltas(raw: bytes) -> None:
    slot, row = two_slots()
    replica = opened(SimDisk(random.Random(1)), 8)
    with pytest.raises(MalformedDelta):
        take(replica, (slot, row, raw))
    assert list(replica.clocks.slots()) == []
    assert replica.store.get(slot, row) is None


# Each rule broken once: the worlds above must notice.


def refusing_after_all(self: Replica, *args: object) -> object:
    """The clock goes on for a delta that is refused."""
    conflict = ACCEPT_SLOWLY(self, *args)  # type: ignore[arg-type]
    if conflict is not None:
        slot, _, delta = args[:3]
        for version in delta.versions:  # type: ignore[attr-defined]
            self.clocks.add(slot, version.dot)  # type: ignore[arg-type]
    return conflict


def checking_nothing(self: Replica, *args: object) -> tuple[None, None]:
    return None, None


def deferred(node: Node, world: World) -> None:
    """The contexts of a message are those of the time when it leaves."""
    for slot, _, _ in node.batch:
        node.contexts.pop(slot, None)
        capture_context(node.replica, slot, node.contexts)


def sealing_late(self: World, node: Node) -> None:
    deferred(node, self)
    SEAL(self, node)


def without_gaps(self: object, slot: Slot, dot: Dot) -> bool:
    return False


def unlogged(self: Replica, slot: Slot, now_ms: int) -> None:
    """A clock that grew is not logged."""


def all_taken(self: Replica, slot: Slot, row: Row, record: Record, now_ms: int) -> bool:
    """The whole context of a repair is taken as seen."""
    done = REPAIR(self, slot, row, record, now_ms)
    self.clocks.join(slot, clock_of(record))
    return done


ACCEPT_SLOWLY = Replica._accept_slowly
REPAIR = Replica.repair
SEAL = World.seal
PLANTED = [
    ("the clock takes what was refused", Replica, "_accept_slowly", refusing_after_all),
    ("no conflict is looked for", Replica, "_check", checking_nothing),
    (
        "a restart forgets which slots are unsettled",
        SlotClocks,
        "is_after_gap",
        without_gaps,
    ),
    ("clocks are not logged", Replica, "_log_clock", unlogged),
    ("a repair's context is taken as seen", Replica, "repair", all_taken),
    ("everything new is complete", delta_module, "lacks", lambda *args: False),
]


@pytest.mark.parametrize(
    ("name", "owner", "function", "replacement"), PLANTED, ids=[each[0] for each in PLANTED]
)
def test_planted_bugs_are_found(
    name: str,
    owner: object,
    function: str,
    replacement: Callable[..., object],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(owner, function, replacement)
    with pytest.raises(AssertionError):
        run_all(60)


def test_a_context_captured_at_the_end_of_the_tick_is_found(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(World, "seal", sealing_late)
    monkeypatch.setattr(World, "hears_before_sealing", True)
    with pytest.raises(AssertionError):
        run_all(60)
