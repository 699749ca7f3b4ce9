"""Links on socket pairs: no listener, no task, no trio. The test turns the loop."""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest

from cluster.handshake import Acceptor, Done, Initiator
from cluster.transport import Message
from respkv.bus import NotMember
from respkv.bus_link import READ_BYTES, BusLimits, Lane, Link, Stage
from respkv.bus_wire import encode
from respkv.poller import WRITE
from tests.respkv.bus_harness import SECRET, TERMS, Loop


@dataclass
class Owner:
    """Keeps what links tell."""

    messages: list[tuple[str, Message]] = field(default_factory=list)
    events: list[tuple[str, str]] = field(default_factory=list)
    is_strict: bool = False
    write_at_once: bytes = b""

    def authenticated(self, link: Link, done: Done) -> None:
        if self.is_strict:
            raise NotMember(done.peer_name)

    def opened(self, link: Link) -> None:
        self.events.append(("opened", f"{link.peer} {link.lane.name}"))
        if self.write_at_once:
            link.write(self.write_at_once)

    def received(self, peer: str, message: Message) -> None:
        self.messages.append((peer, message))

    def closed(self, link: Link, was: Stage, reason: str, kind: str) -> None:
        self.events.append((was.name, reason))


@dataclass
class Pair:
    """Two ends of a connection: "a" has dialled "b"."""

    loop: Loop
    a: Link
    b: Link
    told_a: Owner
    told_b: Owner

    def open(self) -> None:
        self.a.start()
        self.b.start()
        self.loop.turn_until(lambda: self.a.stage is self.b.stage is Stage.OPEN)


def make(limits: BusLimits | None = None, lane: Lane = Lane.SEND) -> Pair:
    limits = BusLimits() if limits is None else limits
    loop = Loop()
    left, right = socket.socketpair()
    left.setblocking(False)
    right.setblocking(False)
    dialler = Initiator(TERMS, "a", b"1" * 32, secret=SECRET, is_loopback=True, expected="b")
    acceptor = Acceptor(TERMS, "b", b"2" * 32, secret=SECRET, is_loopback=True)
    told_a, told_b = Owner(), Owner()
    a = Link(left, dialler, told_a, loop, limits, now_s=0, address="b", lane=lane, peer="b")
    b = Link(right, acceptor, told_b, loop, limits, now_s=0, address="a")
    return Pair(loop, a, b, told_a, told_b)


@pytest.fixture
def pair() -> Iterator[Pair]:
    made = make()
    made.open()
    yield made
    for link in (made.a, made.b):
        if link.stage is not Stage.CLOSED:
            link.abandon()
    assert made.loop.count == 0
    made.loop.close()


@pytest.mark.parametrize("lane", list(Lane))
def test_the_dialler_names_the_lane(lane: Lane) -> None:
    made = make(lane=lane)
    made.open()
    assert made.told_a.events == [("opened", f"b {lane.name}")]
    assert made.told_b.events == [("opened", f"a {lane.name}")]
    made.a.abandon()
    made.b.abandon()


def test_messages_right_behind_the_handshake_are_not_lost() -> None:
    made = make()
    wire = encode([b"WRITE", bytes(100_000)])
    made.told_a.write_at_once = wire * 2
    made.open()
    made.loop.turn_until(lambda: len(made.told_b.messages) == 2)
    made.a.abandon()
    made.b.abandon()


def test_one_that_is_not_let_in_hears_why() -> None:
    made = make()
    made.told_b.is_strict = True
    made.a.start()
    made.b.start()
    made.loop.turn_until(lambda: made.a.stage is made.b.stage is Stage.CLOSED)
    assert made.told_a.events[0][0] == "SHAKING"
    assert "a is not in this node's list" in made.told_a.events[0][1]
    assert "a is not in this node's list" in made.told_b.events[0][1]


def test_pings_are_answered_and_not_delivered(pair: Pair) -> None:
    pair.a.is_heard = False
    pair.a.write(encode([b"BUS.PING"]))
    pair.loop.turn_until(lambda: pair.a.is_heard)
    assert pair.told_a.messages == pair.told_b.messages == []


def test_one_tick_reads_a_bounded_piece_of_one_peer(pair: Pair) -> None:
    wire = encode([b"WRITE", bytes(100)])
    pair.a.write(wire * 1500)
    total = 0
    while total < 1500:
        pair.loop.turn()
        got = len(pair.told_b.messages) - total
        assert got * len(wire) <= READ_BYTES + len(wire)
        total += got
    assert total == 1500


def test_what_the_kernel_does_not_take_leaves_later_and_in_order(pair: Pair) -> None:
    for number in range(300):
        pair.a.queue(encode([b"WRITE", b"%d" % number, bytes(10_000)]), is_urgent=False)
        if number % 7 == 0:
            pair.a.flush()
    pair.a.flush()
    assert pair.a.unsent_bytes > 1_000_000
    assert pair.a._mask & WRITE
    pair.loop.turn_until(lambda: len(pair.told_b.messages) == 300)
    assert [int(message[1]) for _, message in pair.told_b.messages] == list(range(300))
    assert pair.a.unsent_bytes == 0
    assert not pair.a._mask & WRITE


def test_a_slow_reader_is_closed_once_and_in_a_tick() -> None:
    made = make(BusLimits(queue_bytes_max=1_000_000))
    made.open()
    piece = encode([b"WRITE", bytes(100_000)])
    peak = 0
    for _ in range(100):
        made.a.queue(piece, is_urgent=False)
        made.a.flush()
        peak = max(peak, made.a.unsent_bytes)
    assert peak < 1_300_000
    assert made.a.doom
    assert made.a.unsent_bytes == 0
    assert made.told_a.events == [("opened", "b SEND")]  # Not from within `flush`.
    made.loop.turn_until(lambda: made.a.stage is made.b.stage is Stage.CLOSED)
    assert [stage for stage, _ in made.told_a.events] == ["opened", "OPEN"]
    assert "does not read" in made.told_a.events[1][1]
    made.a.queue(piece, is_urgent=False)  # Late, and harmless.
    made.a.flush()


def test_one_message_larger_than_the_queue_leaves() -> None:
    made = make(BusLimits(queue_bytes_max=1_000_000))
    made.open()
    made.a.queue(encode([b"WRITE", bytes(5_000_000)]), is_urgent=False)
    made.a.flush()
    made.loop.turn_until(lambda: len(made.told_b.messages) == 1)
    made.a.abandon()
    made.b.abandon()


def test_the_end_of_one_end_is_told_to_the_other(pair: Pair) -> None:
    pair.b.abandon()
    pair.loop.turn_until(lambda: pair.a.stage is Stage.CLOSED)
    assert pair.told_a.events[-1] == ("OPEN", "closed by the peer")


def test_a_failed_send_is_told_in_the_next_tick(pair: Pair) -> None:
    pair.b.abandon()
    pair.a.queue(encode([b"WRITE"]), is_urgent=False)
    pair.a.flush()
    assert pair.told_a.events == [("opened", "b SEND")]
    pair.loop.turn_until(lambda: pair.a.stage is Stage.CLOSED)
    assert len(pair.told_a.events) == 2


def test_garbage_on_an_open_link_ends_it(pair: Pair) -> None:
    pair.a._sock.send(b"garbage")
    pair.loop.turn_until(lambda: pair.b.stage is Stage.CLOSED)
    assert pair.told_b.events[-1] == ("OPEN", "malformed message: an array was due")


def test_what_connect_says_at_once_is_told_in_a_tick() -> None:
    loop = Loop()
    told = Owner()
    end = Initiator(TERMS, "a", b"1" * 32, secret=SECRET, is_loopback=True)
    with socket.socket() as sock:
        sock.setblocking(False)
        link = Link(
            sock, end, told, loop, BusLimits(), now_s=0, address="b", is_connecting=True,
            connect_error=errno.ECONNREFUSED,
        )  # fmt: skip
        assert told.events == []
        loop.turn_until(lambda: link.stage is Stage.CLOSED)
        assert told.events == [("CONNECTING", "Connection refused")]
    loop.close()
