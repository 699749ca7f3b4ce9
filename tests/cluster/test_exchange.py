"""Exchanges between replicas in memory: over a bad network from a seed, and step by step.

`tests/cluster/exchange_world.py` is the world and its oracle. Each rule of the protocol is broken once
at the end of this file, and some world must notice.
"""

from __future__ import annotations

import random
from array import array
from collections import Counter as Tally
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from time import perf_counter

import pytest

from cluster.clock import SlotClock
from cluster.delta import joined, missing, whole
from cluster.exchange import Exchange, ExchangeSettings, MalformedExchange
from cluster.exchange_compare import Comparison
from cluster.exchange_digest import Digests
from cluster.exchange_peer import Peer
from cluster.exchange_transfer import Incoming, Outgoing, is_missing
from cluster.exchange_wire import GROUP_COUNT, Clocks, Rows, Want, decode, encode
from cluster.record import STRING, Record, Version
from cluster.record import decode as decode_record
from cluster.record import encode as encode_record
from cluster.ring import NodeId
from cluster.slot import SLOT_COUNT, SYSTEM_SLOT, Row, Slot
from cluster.transport import Message
from engine.levels import PageFault
from tests.cluster.exchange_world import Conditions, MemoryReplica, World, views_of

PAIR = ("a", "b")
FIVE = ("a", "b", "c", "d", "e")
WIPING = Conditions(wipes=0.006)
LOSING = Conditions(losses=0.02, restarts=0.0)


def run(
    seed: object, names: Sequence[NodeId], conditions: Conditions, *, step_count: int = 250
) -> World:
    """A seed's whole story; raises AssertionError where a clock covers what is not there, or nothing heals."""
    world = World(seed, names, n=min(3, len(names)), conditions=conditions)
    for _ in range(step_count):
        world.step()
    world.heal()
    return world


@pytest.mark.parametrize("conditions", [Conditions(), WIPING, LOSING], ids=["", "wipe", "lose"])
@pytest.mark.parametrize("seed", range(8))
def test_two_replicas_become_equal(seed: int, conditions: Conditions) -> None:
    run(seed, PAIR, conditions)


@pytest.mark.parametrize("conditions", [Conditions(), WIPING, LOSING], ids=["", "wipe", "lose"])
@pytest.mark.parametrize("seed", range(2))
def test_five_nodes_become_equal(seed: int, conditions: Conditions) -> None:
    run(seed, FIVE, conditions)


def test_a_seed_gives_the_same_story_twice() -> None:
    one, two = (run(1, PAIR, Conditions(), step_count=100) for _ in range(2))
    assert (one.verbs, one.now_s, one.count) == (two.verbs, two.now_s, two.count)


def test_the_worlds_meet_everything() -> None:
    verbs: Tally[bytes] = Tally()
    outcomes: Tally[str] = Tally()
    dropped = 0
    for seed in range(6):
        world = run(f"all-{seed}", PAIR, LOSING)
        verbs += world.verbs
        for name in PAIR:
            outcomes += world.replicas[name].outcomes
            dropped += world.exchanges[name].progress().dropped
    assert len(verbs) == 8
    assert min(verbs.values()) > 10, verbs
    assert min(outcomes[name] for name in ("COMPLETE", "DELTA", "IGNORE")) > 10, outcomes
    assert dropped > 5


# Step by step: two nodes and a line that keeps what is sent.


@dataclass
class Wire:
    """A way out whose messages wait to be delivered by hand."""

    sent: deque[tuple[NodeId, Message]] = field(default_factory=deque)
    is_full: bool = False
    is_up: bool = True

    def send(self, peer: NodeId, message: Sequence[bytes]) -> None:
        self.sent.append((peer, list(message)))

    def send_bulk(self, peer: NodeId, message: Sequence[bytes]) -> bool:
        if not self.is_full:
            self.send(peer, message)
        return not self.is_full

    def is_connected(self, peer: NodeId) -> bool:
        return self.is_up

    def queued_bytes(self, peer: NodeId) -> int:
        return 0

    def flush(self) -> None:
        """Each message leaves at once."""


def resolve(fault: PageFault, resume: Callable[[None], None]) -> None:
    resume(None)


class Pair:
    """Nodes a and b, which own all slots."""

    def __init__(self, settings: ExchangeSettings | None = None) -> None:
        settings = settings or ExchangeSettings()
        views = views_of(PAIR, 2)
        self.now_s = 0.0
        self.wires = {name: Wire() for name in PAIR}
        self.replicas = {name: MemoryReplica(number) for number, name in enumerate(PAIR, start=1)}
        self.exchanges = {
            name: Exchange(
                views[name],
                self.replicas[name],
                self.wires[name],
                random.Random(name),
                settings,
                resolve,
            )
            for name in PAIR
        }

    def connect(self) -> None:
        self.exchanges["a"].connected("b")
        self.exchanges["b"].connected("a")

    def write(self, name: NodeId, slot: Slot, number: int, *, payload: bytes = b"v") -> Record:
        return self.replicas[name].write(
            slot, row_of(number), payload, hlc=number, kind=STRING, is_blind=False
        )

    def work(self, name: NodeId) -> None:
        self.exchanges[name].tick(self.now_s)
        while self.exchanges[name].work(lambda: False):
            pass

    def deliver(self, name: NodeId) -> list[bytes]:
        """Deliver all that a node has sent; returns the verbs."""
        verbs = []
        wire = self.wires[name]
        while wire.sent:
            peer, message = wire.sent.popleft()
            verbs.append(message[0].removeprefix(b"EXCHANGE."))
            self.exchanges[peer].receive(name, message, self.now_s)
        return verbs

    def turn(self) -> list[bytes]:
        verbs = []
        for name in PAIR:
            self.work(name)
            verbs += self.deliver(name)
        return verbs

    def settle(self) -> list[bytes]:
        verbs: list[bytes] = []
        while turned := self.turn():
            verbs += turned
        return verbs


def row_of(number: int) -> Row:
    return b"%06d\0\0\0\0\0" % number


def test_after_a_connection_what_is_missing_comes_at_once() -> None:
    pair = Pair()
    for number in range(5):
        pair.write("a", 7, number)
    pair.write("b", 16383, 1)
    pair.connect()
    verbs = Tally(pair.settle())
    assert pair.now_s == 0
    assert verbs == {
        b"DIGEST": 2, b"SAME": 2, b"CLOCKS": 4, b"WANT": 2, b"ROWS": 2, b"STOP": 2
    }  # fmt: skip
    for slot in (7, 16383):
        assert pair.replicas["a"].clock(slot) == pair.replicas["b"].clock(slot)
    assert pair.exchanges["a"].is_complete_with("b")
    assert pair.exchanges["b"].is_complete_with("a")
    assert pair.exchanges["b"].matched(7) == ["a"]
    assert set(pair.exchanges["b"].match_counts) == {1}
    progress = pair.exchanges["b"].progress()
    assert (progress.slots_received, progress.rows_received, progress.slots_left) == (1, 5, 0)
    assert pair.exchanges["a"].progress().rows_sent == 5
    assert pair.exchanges["a"].progress().bytes_sent == progress.bytes_received > 5 * 26


def test_the_systems_slot_takes_no_part() -> None:
    pair = Pair()
    pair.write("a", SYSTEM_SLOT, 1)
    pair.connect()
    assert b"CLOCKS" not in pair.settle()
    assert pair.replicas["b"].clock(SYSTEM_SLOT) == SlotClock()


def test_what_is_on_its_way_is_not_asked_for() -> None:
    """A peer that was ahead a second ago is asked only if what it had then is still missing."""
    pair = Pair()
    pair.connect()
    pair.settle()
    made = pair.write("a", 7, 1)
    lost = pair.write("a", 8, 1)
    pair.now_s = 1.5
    assert b"WANT" not in pair.settle()
    assert pair.exchanges["b"].progress().slots_left == 2
    pair.replicas["b"].accept(7, row_of(1), made)  # It came after all.
    pair.write("a", 7, 2)  # And another one is on its way.
    pair.now_s = 2.6
    verbs = pair.settle()
    assert verbs.count(b"WANT") == 1
    assert pair.replicas["b"].slots[8].read(row_of(1)).versions == lost.versions


def test_a_slot_is_taken_from_one_peer_at_a_time() -> None:
    world = World("one", FIVE[:3], n=3, conditions=replace(Conditions(), wipes=0, restarts=0))
    world.conditions = Conditions(0, 0, 0.01, 0, 0, 0.5, 0, 0)
    for _ in range(100):
        world.step()
    world.heal()
    world.verbs.clear()
    world.restart("a", is_wiped=True)
    for other in ("b", "c"):
        world.mend_line("a", other)
    world.heal()
    assert world.verbs[b"EXCHANGE.WANT"] == len(world.slots)


def test_rows_come_in_chunks_and_one_at_a_time() -> None:
    pair = Pair(ExchangeSettings(chunk_rows_max=10, chunk_bytes_max=500))
    for number in range(25):
        pair.write("a", 7, number)
    pair.write("a", 7, 30, payload=b"x" * 5000)  # Larger than a chunk.
    pair.connect()
    chunks = []
    for _ in range(40):
        pair.work("a")
        chunks += [decode(message) for _, message in pair.wires["a"].sent]
        in_flight = sum(message[0] == b"EXCHANGE.ROWS" for _, message in pair.wires["a"].sent)
        assert in_flight <= 1
        pair.deliver("a")
        pair.work("b")
        pair.deliver("b")
    chunks = [chunk for chunk in chunks if isinstance(chunk, Rows)]
    for chunk in chunks:
        assert isinstance(chunk, Rows)
        size = sum(len(row) + len(raw) for row, raw in chunk.rows)
        assert len(chunk.rows) <= 10
        assert size <= 500 or len(chunk.rows) == 1
    assert len(chunks) > 3
    assert pair.replicas["a"].clock(7) == pair.replicas["b"].clock(7)


def test_only_so_many_slots_are_in_flight() -> None:
    pair = Pair(ExchangeSettings(slots_in_flight=3))
    for slot in range(20):
        pair.write("a", slot, 1)
    pair.connect()
    most = 0
    for _ in range(60):
        pair.turn()
        most = max(most, *(exchange.progress().transfers for exchange in pair.exchanges.values()))
    assert most == 3
    assert pair.exchanges["b"].is_complete_with("a")


def test_a_full_connection_is_tried_again() -> None:
    pair = Pair()
    pair.write("a", 7, 1)
    for wire in pair.wires.values():
        wire.is_full = True
    pair.connect()
    assert b"CLOCKS" not in pair.settle()
    pair.wires["a"].is_full = False
    pair.work("a")
    pair.wires["a"].is_full = True
    verbs = pair.settle()
    assert b"WANT" in verbs
    assert b"ROWS" not in verbs
    pair.wires["a"].is_full = False
    assert b"ROWS" in pair.settle()


def test_a_lost_chunk_is_asked_for_again_and_then_given_up() -> None:
    pair = Pair(ExchangeSettings(retry_s=1.0, attempts_max=3, interval_s=1000))
    pair.write("a", 7, 1)
    pair.connect()
    wants = 0
    for _ in range(30):
        for name in PAIR:
            pair.work(name)
            for peer, message in list(pair.wires[name].sent):
                wants += message[0] == b"EXCHANGE.WANT"
                if message[0] != b"EXCHANGE.ROWS":
                    pair.exchanges[peer].receive(name, message, pair.now_s)
            pair.wires[name].sent.clear()
        pair.now_s += 0.5
    assert wants == 3
    progress = pair.exchanges["b"].progress()
    assert (progress.dropped, progress.transfers, progress.slots_left) == (1, 0, 0)
    assert pair.replicas["b"].clock(7) == SlotClock()


def test_a_sender_forgets_a_transfer_that_nobody_asks_for() -> None:
    pair = Pair(ExchangeSettings(idle_s=5.0))
    want = encode(Want(77, 7, SlotClock()))
    pair.exchanges["a"].receive("b", want, 0.0)
    pair.work("a")
    assert pair.exchanges["a"].progress().transfers == 1
    pair.now_s = 4.9
    pair.work("a")
    assert pair.exchanges["a"].progress().transfers == 1
    pair.now_s = 5.0
    pair.work("a")
    assert pair.exchanges["a"].progress().transfers == 0
    # And one that the peer does not know is ended by it.
    pair.exchanges["a"].receive("b", want, 5.0)
    pair.settle()
    assert pair.exchanges["a"].progress().transfers == 0


def test_more_wants_than_agreed_end_the_oldest() -> None:
    pair = Pair(ExchangeSettings(slots_in_flight=4))
    for slot in range(50):
        pair.exchanges["a"].receive("b", encode(Want(slot, slot, SlotClock())), 0.0)
        assert pair.exchanges["a"].progress().transfers <= 4


def test_a_reset_slot_is_matched_only_by_later_answers() -> None:
    pair = Pair()
    pair.write("a", 7, 1)
    pair.connect()
    pair.settle()
    assert pair.exchanges["b"].matched(7) == ["a"]
    pair.now_s = 1.5
    pair.work("b")
    pair.deliver("b")
    pair.work("a")  # SAME is on its way.
    pair.replicas["b"].lose(7)
    pair.exchanges["b"].reset([7])
    assert b"SAME" in pair.deliver("a")
    assert pair.exchanges["b"].matched(7) == []
    assert pair.exchanges["b"].match_counts[7] == 0
    pair.settle()
    assert pair.exchanges["b"].matched(7) == ["a"]
    assert pair.replicas["b"].clock(7) == pair.replicas["a"].clock(7)


@pytest.mark.parametrize("seed", ["one", "two", "three", "four"])
def test_an_answer_to_a_former_process_matches_nothing(seed: str) -> None:
    """Its rounds may have had smaller or larger numbers."""
    pair = Pair()
    pair.write("a", 7, 1)
    pair.connect()
    pair.settle()
    pair.now_s = 1.5
    pair.work("b")
    pair.deliver("b")
    pair.work("a")  # SAME is on its way, and b begins again, with nothing.
    pair.replicas["b"].lose(7)
    pair.exchanges["b"] = Exchange(
        views_of(PAIR, 2)["b"],
        pair.replicas["b"],
        pair.wires["b"],
        random.Random(seed),
        ExchangeSettings(),
        resolve,
    )
    assert b"SAME" in pair.deliver("a")
    assert pair.exchanges["b"].matched(7) == []
    assert not pair.exchanges["b"].is_complete_with("a")


def test_a_clock_that_was_set_back_is_hashed_again_though_it_counts_as_before() -> None:
    replica = MemoryReplica(1)
    replica.write(7, row_of(1), b"", hlc=1, kind=STRING, is_blind=False)
    digests = Digests(replica)
    slots = array("H", [7])
    assert digests.refresh(0)
    before = digests.of(slots)
    replica.slots.clear()
    assert not digests.refresh(0)
    digests.forget([7])
    assert digests.stale_groups() == [0]
    assert digests.refresh(0)
    assert digests.of(slots) != before


def test_a_round_is_answered_with_a_part_of_what_differs() -> None:
    pair = Pair(ExchangeSettings(groups_per_round=10))
    pair.connect()
    pair.settle()
    for slot in range(0, SLOT_COUNT, 128):
        pair.write("a", slot, 1)
    seen = set()
    for _ in range(20):
        pair.now_s += 1.2
        pair.work("b")
        pair.deliver("b")
        pair.work("a")
        told = [decode(message) for _, message in pair.wires["a"].sent]
        groups = {each.entries[0].slot >> 7 for each in told if isinstance(each, Clocks)}
        assert len(groups) <= 10
        seen |= groups
        pair.settle()
    assert len(seen) == GROUP_COUNT
    assert pair.exchanges["b"].is_complete_with("a")


def test_a_reset_ends_what_is_being_taken() -> None:
    pair = Pair(ExchangeSettings(chunk_rows_max=1))
    for number in range(3):
        pair.write("a", 7, number)
    pair.connect()
    while not pair.replicas["b"].slots.get(7):
        pair.turn()
    assert pair.exchanges["b"].progress().transfers == 1
    pair.replicas["b"].lose(7)
    pair.exchanges["b"].reset([7])
    assert pair.exchanges["b"].progress().transfers == 0
    pair.settle()
    assert len(pair.replicas["b"].slots[7].complete) == 3
    assert pair.replicas["b"].clock(7) == pair.replicas["a"].clock(7)


def test_a_malformed_chunk_changes_nothing() -> None:
    pair = Pair()
    pair.write("a", 7, 1)
    pair.write("a", 7, 2)
    pair.connect()
    while not any(m[0] == b"EXCHANGE.ROWS" for _, m in pair.wires["a"].sent):
        pair.work("b")
        pair.deliver("b")
        pair.work("a")
        if not any(m[0] == b"EXCHANGE.ROWS" for _, m in pair.wires["a"].sent):
            pair.deliver("a")
    message = next(m for _, m in pair.wires["a"].sent if m[0] == b"EXCHANGE.ROWS")
    broken = [*message[:-1], message[-1][:10]]
    with pytest.raises(MalformedExchange):
        pair.exchanges["b"].receive("a", broken, 0.0)
    pair.work("b")
    assert pair.replicas["b"].clock(7) == SlotClock()
    pair.settle()
    assert pair.replicas["b"].clock(7) == pair.replicas["a"].clock(7)


def test_a_large_clock_is_compared_by_its_base_and_sent_whole() -> None:
    pair = Pair(ExchangeSettings(clock_dots_max=3))
    for number in range(2, 30, 2):  # Each second one was lost for ever.
        version = Version((9, number), 1, STRING)
        pair.replicas["a"].accept(7, row_of(number), Record((version,), (), (version.dot,)))
    pair.connect()
    pair.settle()
    assert pair.replicas["b"].clock(7) == pair.replicas["a"].clock(7)
    pair.now_s = 1.5
    pair.settle()
    assert pair.exchanges["a"].is_complete_with("b")


def test_chunks_of_two_scans_are_not_mixed() -> None:
    """A request that comes again when the scan is forgotten begins another, whose chunks end elsewhere."""
    sender, receiver = MemoryReplica(1), MemoryReplica(2)
    write = sender.write
    for number in range(6):
        write(7, row_of(number), b"x" * 100, hlc=1, kind=STRING, is_blind=False)
    want = Want(5, 7, SlotClock())

    def serve(scan: int) -> Outgoing:
        return Outgoing(want, scan, sender, resolve, list, 0.0, rows_max=100, bytes_max=300)

    def chunk(outgoing: Outgoing) -> Rows:
        while (message := outgoing.message) is None:
            assert outgoing.step()
        outgoing.sent()
        return message

    incoming = Incoming(want, receiver, resolve, 0.0)
    first = serve(1)
    assert incoming.take(chunk(first))
    while incoming.step():
        pass
    for number in range(3):
        write(7, row_of(number), b"", hlc=2, kind=STRING, is_blind=False)
    second = serve(2)
    assert len(chunk(second).rows) > 2  # It has row 2, which the first did not send.
    second.ask(1, 0.0)
    assert not incoming.take(chunk(second))
    first.ask(1, 0.0)
    assert incoming.take(chunk(first))


def test_rows_are_sent_in_the_order_asked_for() -> None:
    replica = MemoryReplica(1)
    for number in range(4):
        replica.write(7, row_of(number), b"", hlc=1, kind=STRING, is_blind=False)
    outgoing = Outgoing(
        Want(5, 7, SlotClock()),
        1,
        replica,
        resolve,
        lambda entries: entries[::-1],
        0.0,
        rows_max=100,
        bytes_max=10000,
    )
    while (message := outgoing.message) is None:
        outgoing.step()
    assert [row for row, _ in message.rows] == [row_of(number) for number in (3, 2, 1, 0)]


def test_what_is_sent_is_what_the_rules_say() -> None:
    """`is_missing` and the receiver's context, against `cluster.delta`."""
    world = run("rules", PAIR, LOSING, step_count=150)
    compared = 0
    for slot, held in world.replicas["a"].slots.items():
        rows = [(row, held.read(row)) for row in held.rows()]
        peers = [SlotClock(), held.clock]
        for _, record in rows:
            peers.append(SlotClock({}, set(sorted(record.dots)[:1])))
        for peer in peers:
            expected = list(missing(rows, held.clock, peer))
            incoming = Incoming(Want(1, slot, peer), world.replicas["b"], resolve, 0.0)
            incoming.take(Rows(1, 1, slot, 0, False, joined(held.clock, SlotClock()), ()))
            found = []
            for row, record in rows:
                raw = encode_record(record)
                if is_missing(raw, peer):
                    sent = decode_record(raw)
                    assert incoming._whole(sent) == whole(sent, held.clock)
                    found.append((row, incoming._whole(sent)))
            assert found == expected
            compared += len(found)
    assert compared > 50


def test_a_peer_that_is_no_member_is_not_heard() -> None:
    pair = Pair()
    pair.exchanges["a"].receive("stranger", encode(Want(1, 7, SlotClock())), 0.0)
    pair.exchanges["a"].connected("stranger")
    pair.exchanges["a"].disconnected("stranger")
    assert pair.exchanges["a"].progress().transfers == 0
    assert not pair.exchanges["a"].is_complete_with("stranger")


def test_nothing_is_sent_to_who_is_not_connected() -> None:
    pair = Pair()
    pair.wires["a"].is_up = False
    pair.now_s = 5.0
    pair.work("a")
    assert not pair.wires["a"].sent


def test_a_busy_node_compares_a_part_in_each_round_and_all_in_time() -> None:
    pair = Pair(ExchangeSettings(groups_per_round=10))
    pair.connect()
    pair.settle()
    lost = [pair.write("a", slot, 1) for slot in range(0, SLOT_COUNT, 128)]
    for number in range(2, 60):
        for index, slot in enumerate(range(0, SLOT_COUNT, 128)):
            made = pair.write("a", slot, number)
            pair.replicas["b"].accept(slot, row_of(number), made)
            assert lost[index]
        pair.now_s += 1.2
        digests = clocks = 0
        while True:
            verbs = pair.turn()
            digests += verbs.count(b"DIGEST")
            clocks += verbs.count(b"CLOCKS")
            if not verbs:
                break
        assert (digests, clocks <= 20) == (2, True)
    for slot in range(0, SLOT_COUNT, 128):
        assert pair.replicas["b"].clock(slot) == pair.replicas["a"].clock(slot)


# What it costs. Bounds are loose, for busy machines: the figures are printed (pytest -s).


def test_a_quiet_round_costs_little() -> None:
    pair = Pair()
    for slot in range(SLOT_COUNT):
        pair.replicas["b"].accept(slot, row_of(1), pair.write("a", slot, 1))
    pair.connect()
    pair.settle()
    quickest = {"asking": 1.0, "answering": 1.0, "hearing": 1.0, "idle": 1.0}
    for _ in range(20):
        pair.now_s += 1.2
        times = [perf_counter()]
        pair.work("a")
        times.append(perf_counter())
        assert pair.deliver("a") == [b"DIGEST"]
        pair.exchanges["b"].work(lambda: False)
        times.append(perf_counter())
        size = sum(len(part) for _, message in pair.wires["b"].sent for part in message)
        assert pair.deliver("b") == [b"SAME"]
        times.append(perf_counter())
        pair.work("a")
        times.append(perf_counter())
        pair.work("b")  # Its own round, not counted.
        pair.settle()
        for (name, known), first, last in zip(quickest.items(), times, times[1:], strict=False):
            quickest[name] = min(known, last - first)
    shown = ", ".join(f"{name} {seconds * 1e6:.0f}" for name, seconds in quickest.items())
    print(f"\na quiet round of {SLOT_COUNT} slots, in microseconds: {shown}; answer {size} bytes")
    assert sum(quickest.values()) < 0.02


def test_no_step_takes_long() -> None:
    """Everything is missing at one side; the longest call is printed."""
    pair = Pair()
    for slot in range(0, SLOT_COUNT, 8):
        for number in range(3):
            pair.write("a", slot, number, payload=b"v" * 100)
    pair.connect()
    steps: list[float] = []
    begun = perf_counter()
    while not pair.exchanges["b"].is_complete_with("a"):
        for name in PAIR:
            exchange = pair.exchanges[name]
            exchange.tick(pair.now_s)
            is_left = True
            while is_left:
                started = perf_counter()
                is_left = exchange.work(lambda: True)
                steps.append(perf_counter() - started)
            while pair.wires[name].sent:
                peer, message = pair.wires[name].sent.popleft()
                started = perf_counter()
                pair.exchanges[peer].receive(name, message, pair.now_s)
                steps.append(perf_counter() - started)
    took = perf_counter() - begun
    steps.sort()
    progress = pair.exchanges["b"].progress()
    print(
        f"\n{progress.slots_received} slots, {progress.rows_received} rows in {took:.2f} s; steps in"
        f" microseconds: median {steps[len(steps) // 2] * 1e6:.1f},"
        f" 99.9 % {steps[len(steps) * 999 // 1000] * 1e6:.0f}, longest {steps[-1] * 1e6:.0f}"
    )
    assert steps[len(steps) * 999 // 1000] < 0.02


# Each rule broken once: some world must notice.


def clock_of_now(self: Outgoing) -> SlotClock:
    return self._replica.clock(self.slot)


def any_chunk(self: Incoming, rows: Rows) -> bool:
    return not self._has_chunk and not self.is_done


def number_alone(self: Incoming, rows: Rows) -> bool:
    return rows.number == self._number and any_chunk(self, rows)


def whatever_comes_next(self: Outgoing, number: int, now_s: float) -> None:
    message = self._message
    ASK(self, self._number + 1 if message is not None else number, now_s)


def joining_first(self: Incoming, rows: Rows) -> bool:
    is_taken = TAKE(self, rows)
    if is_taken and rows.is_last:
        self._replica.join_clock(self.slot, self._clock)
    return is_taken


def with_own_context(self: Incoming, record: Record) -> Record:
    return record


def answers_stay_valid(self: Comparison, peer: Peer) -> None:
    first = peer.first_round
    BEGIN_AGAIN(self, peer)
    peer.first_round = first


def forgetting_nothing(self: Exchange, slots: Sequence[Slot]) -> None:
    for peer in self._peers.values():
        self._comparison.begin_again(peer)


ASK, TAKE, BEGIN_AGAIN = Outgoing.ask, Incoming.take, Comparison.begin_again

Plant = tuple[type, str, Callable[..., object]]
PLANTED: dict[str, tuple[Conditions, list[Plant]]] = {
    "the clock is taken after the scan": (Conditions(), [(Outgoing, "covered", clock_of_now)]),
    "chunks are not counted": (
        Conditions(),
        [(Incoming, "_is_expected", any_chunk), (Outgoing, "ask", whatever_comes_next)],
    ),
    "the clock is joined before the rows": (Conditions(), [(Incoming, "take", joining_first)]),
    "rows have only their own context": (Conditions(), [(Incoming, "_whole", with_own_context)]),
    "a reset forgets nothing": (LOSING, [(Exchange, "reset", forgetting_nothing)]),
}


@pytest.mark.parametrize("name", PLANTED)
def test_planted_bugs_are_found(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    conditions, plants = PLANTED[name]
    for owner, function, replacement in plants:
        monkeypatch.setattr(owner, function, replacement)
    with pytest.raises(AssertionError):
        deque((run(seed, PAIR, conditions) for seed in range(24)), maxlen=0)


@pytest.mark.parametrize(
    ("owner", "function", "replacement", "finder"),
    [
        (
            Comparison,
            "begin_again",
            answers_stay_valid,
            test_a_reset_slot_is_matched_only_by_later_answers,
        ),
        (Incoming, "_is_expected", number_alone, test_chunks_of_two_scans_are_not_mixed),
    ],
    ids=["answers to before a reset count", "scans are not told apart"],
)
def test_rarer_planted_bugs_are_found(
    owner: type,
    function: str,
    replacement: Callable[..., object],
    finder: Callable[[], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(owner, function, replacement)
    with pytest.raises(AssertionError):
        finder()
