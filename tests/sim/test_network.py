"""The simulated network keeps the promises of `cluster.transport`, and its faults do what they say."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Awaitable, Callable

import pytest
import trio

from cluster.transport import Message, Receiver, Transport
from tests.sim.network import BULK_ROOM_BYTES, Batch, Endpoint, Link, Network
from tests.sim.simulated import simulated
from tests.sim.timeline import Timeline

CONNECTED_S = 5.0


class Peer:
    """A receiver that writes down what it is told, and in which batches."""

    def __init__(self, network: Network, name: str) -> None:
        self.endpoint = Endpoint(network, name)
        self.messages: list[tuple[str, Message]] = []
        self.news: list[str] = []
        self.batches: list[int] = []
        receiver: Receiver = self
        self.endpoint.start(receiver, self._run)

    def _run(self, batch: Batch) -> None:
        self.batches.append(len(batch))
        for arrive in batch:
            arrive()

    def receive(self, peer: str, message: Message) -> None:
        self.messages.append((peer, message))

    def connected(self, peer: str) -> None:
        self.news.append(f"+{peer}")

    def disconnected(self, peer: str, *, is_refused: bool) -> None:
        self.news.append(f"-{peer}" + " refused" * is_refused)

    @property
    def texts(self) -> list[bytes]:
        return [message[1] for _, message in self.messages]


class Trio:
    """Three peers and their network."""

    def __init__(self, timeline: Timeline, calm: Link, seed: int) -> None:
        self.fired: Counter[str] = Counter()
        self.records: list[tuple[str, str, bytes]] = []
        self.network = Network(
            timeline,
            random.Random(seed),
            fired=self.fired,
            record=lambda *delivery: self.records.append(delivery),
            calm=calm,
        )
        self.a, self.b, self.c = (Peer(self.network, name) for name in "abc")


def networked(
    body: Callable[[Trio], Awaitable[None]], calm: Link | None = None, seed: int = 1
) -> None:
    async def main(timeline: Timeline) -> None:
        world = Trio(timeline, calm or Link(), seed)
        await trio.sleep(CONNECTED_S)
        await body(world)

    simulated(main)


# What every transport promises


def test_messages_arrive_whole_and_at_their_target() -> None:
    async def body(world: Trio) -> None:
        out: Transport = world.a.endpoint
        out.send("b", [b"VERB", b"", b"\r\n\0", bytes(100_000)])
        await trio.sleep(1)
        assert world.b.messages == [("a", [b"VERB", b"", b"\r\n\0", bytes(100_000)])]
        assert world.a.messages == world.c.messages == []
        assert world.records == [("a", "b", b"VERB\0\0\r\n\0\0" + bytes(100_000))]

    networked(body)


def test_order_is_kept_between_two_breaks() -> None:
    async def body(world: Trio) -> None:
        for number in range(200):
            world.a.endpoint.send("b", [b"N", b"%d" % number])
            await trio.sleep(0.0005)
        await trio.sleep(1)
        assert world.b.texts == [b"%d" % number for number in range(200)]

    networked(body)


def test_connections_are_told_and_asked_for() -> None:
    async def body(world: Trio) -> None:
        assert sorted(world.a.news) == ["+b", "+c"]
        assert world.a.endpoint.is_connected("b")
        assert not world.a.endpoint.is_connected("nobody")
        world.b.endpoint.stop(is_refused=True)
        await trio.sleep(1)
        assert "-b refused" in world.a.news
        assert not world.a.endpoint.is_connected("b")
        world.a.endpoint.send("b", [b"N", b"dropped"])
        again = Peer(world.network, "b")
        await trio.sleep(CONNECTED_S)
        assert world.a.endpoint.is_connected("b")
        assert world.a.news.count("+b") == 2
        assert again.messages == []

    networked(body)


def test_without_a_connection_a_message_is_dropped() -> None:
    async def body(world: Trio) -> None:
        world.a.endpoint.send("nobody", [b"N"])
        assert not world.a.endpoint.send_bulk("nobody", [b"N"])

    networked(body)


def test_bulk_is_refused_while_the_peer_has_not_taken_it() -> None:
    async def body(world: Trio) -> None:
        world.network.link("a", "b").bytes_per_s = 1e5
        piece = bytes(BULK_ROOM_BYTES // 2)
        assert world.a.endpoint.send_bulk("b", [b"N", piece])
        assert world.a.endpoint.queued_bytes("b") == len(piece) + 1
        assert world.a.endpoint.send_bulk("b", [b"N", piece])
        assert not world.a.endpoint.send_bulk("b", [b"N", piece])
        await trio.sleep(10)
        assert world.a.endpoint.queued_bytes("b") == 0
        assert world.a.endpoint.send_bulk("b", [b"N", piece])
        await trio.sleep(10)
        assert len(world.b.messages) == 3

    networked(body)


def test_what_is_sent_is_what_it_was_then() -> None:
    async def body(world: Trio) -> None:
        part = bytearray(b"before")
        world.a.endpoint.send("b", [b"N", part])  # type: ignore[list-item]
        part[:] = b"behind"
        await trio.sleep(1)
        assert world.b.texts == [b"before"]

    networked(body)


# What this one does besides


def test_a_millisecond_is_one_batch() -> None:
    async def body(world: Trio) -> None:
        world.b.batches.clear()
        for _ in range(50):
            world.a.endpoint.send("b", [b"N", b""])
            world.c.endpoint.send("b", [b"N", b""])
        await trio.sleep(1)
        assert sum(world.b.batches) == 100
        assert len(world.b.batches) <= 3

    networked(body)


@pytest.mark.parametrize(
    ("calm", "kind"),
    [
        (Link(loss=0.2), "lost message"),
        (Link(repetition=0.2), "repeated message"),
        (Link(reordering=0.2), "reordered message"),
    ],
)
def test_messages_are_lost_repeated_and_reordered(calm: Link, kind: str) -> None:
    async def body(world: Trio) -> None:
        sent = [b"%d" % number for number in range(300)]
        for number in sent:
            world.a.endpoint.send("b", [b"N", number])
            await trio.sleep(0.001)
        await trio.sleep(1)
        got = world.b.texts
        count = world.fired[kind]
        assert 30 < count < 100
        assert len(got) == 300 + count * ((kind == "repeated message") - (kind == "lost message"))
        if kind == "reordered message":
            assert got != sent
            assert sorted(got) == sorted(sent)

    networked(body, calm)


def test_a_cut_goes_one_way_and_breaks_the_connection_later() -> None:
    async def body(world: Trio) -> None:
        world.network.cut("a", "b")
        world.a.endpoint.send("b", [b"N", b"lost"])
        world.b.endpoint.send("a", [b"N", b"arrives"])
        await trio.sleep(0.3)
        assert (world.b.texts, world.a.texts) == ([], [b"arrives"])
        await trio.sleep(CONNECTED_S)
        assert "-b" in world.a.news
        assert "-a" in world.b.news
        world.network.heal()
        await trio.sleep(CONNECTED_S)
        assert world.a.endpoint.is_connected("b")
        assert world.fired["message into a cut"] == 1

    networked(body)


def test_isolated_groups_hear_nothing_of_each_other() -> None:
    async def body(world: Trio) -> None:
        world.network.isolate(["a"], ["b", "c"])
        for source, target in (("a", "b"), ("c", "a"), ("b", "c")):
            peer = {"a": world.a, "b": world.b, "c": world.c}[source]
            peer.endpoint.send(target, [b"N", source.encode()])
        await trio.sleep(1)
        assert (world.a.texts, world.b.texts, world.c.texts) == ([], [], [b"b"])

    networked(body)


def test_a_broken_connection_loses_what_is_under_way_and_comes_back() -> None:
    async def body(world: Trio) -> None:
        world.a.endpoint.send("b", [b"N", b"lost"])
        assert world.network.break_connection("a", "b")
        assert not world.network.break_connection("b", "a")
        await trio.sleep(CONNECTED_S)
        assert world.b.texts == []
        assert world.a.news[-2:] == ["-b", "+b"]
        world.a.endpoint.send("b", [b"N", b"new"])
        await trio.sleep(1)
        assert world.b.texts == [b"new"]

    networked(body)


def test_a_slow_link_is_slow() -> None:
    async def body(world: Trio) -> None:
        world.network.link("a", "b").extra_s = 2.0
        world.a.endpoint.send("b", [b"N", b"late"])
        await trio.sleep(1.9)
        assert world.b.texts == []
        await trio.sleep(0.2)
        assert world.b.texts == [b"late"]

    networked(body)


def test_a_dead_process_sends_nothing_and_gets_nothing() -> None:
    async def body(world: Trio) -> None:
        world.a.endpoint.send("b", [b"N", b"was sent"])
        world.b.endpoint.send("a", [b"N", b"too late"])
        world.a.endpoint.stop(is_refused=False)
        world.a.endpoint.send("b", [b"N", b"not sent"])
        await trio.sleep(0.4)
        assert world.b.texts == []  # What was under way goes with the connection.
        assert world.a.messages == []
        assert "-a" not in world.b.news, "nobody knows yet"
        await trio.sleep(5)
        assert "-a" in world.b.news

    networked(body)
