"""Who has what was written: the questions of one node to others, without a network."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

import pytest

from cluster import arrival
from cluster.arrival import AGAIN_S, CLOCKS, FORGET_S, HERE, UNTIL, Arrival, Arrivals
from cluster.clock import SlotClock
from cluster.delta_wire import MalformedDelta, encode_clock
from cluster.record import STRING
from cluster.replica import Replica
from cluster.slot import row_of
from cluster.topology import NodeInfo, Topology
from engine.store import StoreSettings
from tests.sim.disk import SimDisk

NAMES = ("a", "b", "c")
ACTORS = {"a": 11, "b": 22, "c": 33}
SLOT, OTHER_SLOT = 5, 6
SETTINGS = StoreSettings(
    1 << 30, row_cache_bytes=1 << 20, block_cache_bytes=0, log_bytes_max=1 << 30
)
NODES = [NodeInfo(name, "h", 1, 2, 3) for name in NAMES]


class Seat:
    """One node. `sent` is what it wants to send; `syncing` what waits for its disk."""

    def __init__(self, name: str, w: int) -> None:
        self.name = name
        self.topology = Topology(name, NODES, 3)
        self.replica = Replica.open(SimDisk(random.Random(name)), SETTINGS, ACTORS[name])
        self.sent: list[tuple[str, list[bytes]]] = []
        self.syncing: list[Callable[[], None]] = []
        self.arrivals = Arrivals(
            self.topology,
            self.replica,
            self,  # type: ignore[arg-type]
            w=w,
            first_id=100,
            promise=self.send,
            when_durable=self.syncing.append,
        )

    def send(self, peer: str, message: Sequence[bytes]) -> None:
        self.sent.append((peer, list(message)))

    def write(self, slot: int = SLOT) -> None:
        effects = {row_of(0, b"k"): (slot, STRING, 0, b"v")}
        self.replica.write(effects, 1000)

    def see(self, *, of: Seat, slot: int = SLOT) -> None:
        """What another one has of a slot has come."""
        self.replica.join_clock(slot, of.replica.clocks.clock(slot), 1000)


class Seats:
    def __init__(self, w: int = 2) -> None:
        self.a, self.b, self.c = (Seat(name, w) for name in NAMES)
        self.by_name = {"a": self.a, "b": self.b, "c": self.c}

    def run(self, *silent: str) -> None:
        """Deliver all messages but those to and of silent nodes."""
        while any(seat.sent for seat in self.by_name.values()):
            for name, seat in self.by_name.items():
                sent, seat.sent = seat.sent, []
                for peer, message in sent:
                    if peer not in silent and name not in silent:
                        self.by_name[peer].arrivals.receive(name, message)

    def ask(self, *slots: int, is_durable: bool = False) -> Arrival:
        return self.a.arrivals.ask(slots, is_durable=is_durable, changed=lambda: None)

    def tick(self, now_s: float) -> None:
        for seat in self.by_name.values():
            seat.arrivals.tick(now_s)
            seat.arrivals.work()


def test_one_question_is_enough_if_all_have_it() -> None:
    seats = Seats()
    seats.a.write()
    for seat in (seats.b, seats.c):
        seat.see(of=seats.a)
    question = seats.ask(SLOT, OTHER_SLOT)
    assert question.count == 0  # Nobody knows yet.
    seats.run()
    assert question.count == 3
    assert question.is_everywhere
    seats.a.arrivals.end(question)
    assert seats.a.arrivals.is_idle


def test_who_lacks_it_answers_when_it_has_come() -> None:
    seats = Seats()
    seats.b.write()
    seats.c.see(of=seats.b)
    question = seats.ask(SLOT)
    seats.run()
    assert question.count == 2  # Without this node, which asks.
    seats.a.see(of=seats.b)
    seats.tick(0.01)
    assert question.count == 3


def test_the_slot_with_the_fewest_counts() -> None:
    seats = Seats()
    seats.a.write()
    seats.a.write(OTHER_SLOT)
    seats.b.see(of=seats.a)
    seats.b.see(of=seats.a, slot=OTHER_SLOT)
    seats.c.see(of=seats.a)
    question = seats.ask(SLOT, OTHER_SLOT)
    seats.run()
    assert question.count == 2


@pytest.mark.parametrize("w", [1, 2, 3])
def test_nothing_is_known_until_enough_were_asked(w: int) -> None:
    """The write is on W of them, and this node may be one of the others."""
    seats = Seats(w)
    holders = [seats.c, seats.b, seats.a][:w]
    seats.c.write()
    for seat in holders[1:]:
        seat.see(of=seats.c)
    question = seats.ask(SLOT)
    seats.run("b", "c")
    assert question.count == (1 if w == 3 else 0)
    seats.tick(2 * AGAIN_S)
    seats.run("c")
    assert question.count == {1: 0, 2: 1, 3: 2}[w]
    seats.tick(4 * AGAIN_S)
    seats.run()
    assert question.count == w


def test_who_may_have_forgotten_does_not_say_what_was_written() -> None:
    """b had taken the write, and lost it with its power: this node and b together know nothing of it."""
    seats = Seats()
    seats.c.write()
    seats.b.topology.mark_complete("b", is_complete=False)
    question = seats.ask(SLOT)
    seats.run("c")
    assert question.count == 0
    seats.tick(2 * AGAIN_S)
    seats.run()
    assert question.count == 1
    assert set(question.parts[0].here) == {"c"}


def test_durable_means_the_disk() -> None:
    seats = Seats()
    seats.a.write()
    for seat in (seats.b, seats.c):
        seat.see(of=seats.a)
    question = seats.ask(SLOT, is_durable=True)
    seats.run()
    assert question.count == 0
    for count, seat in enumerate((seats.c, seats.a, seats.b), start=1):
        seat.syncing.pop()()
        seats.run()
        assert question.count == count
    for seat in seats.by_name.values():
        seat.replica.store.write()
        seat.replica.store.log.sync()
    again = seats.ask(SLOT, is_durable=True)
    seats.run()
    assert again.count == 3
    assert not seats.b.syncing


def test_what_is_lost_is_asked_again_and_what_is_not_asked_again_is_forgotten() -> None:
    seats = Seats()
    seats.c.write()
    seats.b.see(of=seats.c)
    question = seats.ask(SLOT)
    seats.run()
    seats.a.see(of=seats.c)
    seats.a.arrivals.work()
    assert question.count == 3
    other = seats.b.arrivals.ask([SLOT], is_durable=False, changed=lambda: None)
    seats.b.write()
    late = seats.b.arrivals.ask([SLOT], is_durable=False, changed=lambda: None)
    seats.run()
    assert not seats.a.arrivals.is_idle
    for one in (other, late):
        seats.b.arrivals.end(one)
    seats.a.arrivals.end(question)
    seats.tick(2 * FORGET_S)
    assert seats.a.arrivals.is_idle


def test_what_others_have_watched_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arrival, "WATCHED_MAX", 3)
    seat = Seat("a", 2)
    clock = encode_clock(SlotClock({99: 1}))
    for number in range(10):
        seat.arrivals.receive("b", [UNTIL, b"%d" % number, b"0", b"\5\0", clock])
    assert len(seat.arrivals._watched) == 3
    assert seat.sent == []


@pytest.mark.parametrize(
    "message",
    [
        (arrival.ASK, b"1", b"\5"),
        (arrival.ASK, b"1", b"\xff\xff"),
        (UNTIL, b"1", b"0", b"\5\0"),
        (UNTIL, b"1", b"0", b"\5\0", b"\1"),
        (HERE, b"x"),
        (CLOCKS, b""),
    ],
)
def test_malformed_messages(message: tuple[bytes, ...]) -> None:
    with pytest.raises(MalformedDelta):
        Seat("a", 2).arrivals.receive("b", list(message))


def test_answers_that_nobody_waits_for() -> None:
    seats = Seats()
    clock = encode_clock(SlotClock())
    seats.a.arrivals.receive("b", [CLOCKS, b"7", b"1", clock])
    seats.a.arrivals.receive("b", [HERE, b"7"])
    question = seats.ask(SLOT)
    number = b"%d" % question.parts[0].number
    seats.a.arrivals.receive("b", [HERE, number])  # Nobody has told it what to wait for.
    seats.a.arrivals.receive("z", [CLOCKS, number, b"1", clock])
    assert question.count == 0
