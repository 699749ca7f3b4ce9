"""The sockets that a simulated front sees behave as the kernel's do."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable

import pytest
import trio

from respkv.poller import READ, READ_WRITE, WRITE
from tests.sim.simulated import simulated
from tests.sim.timeline import Timeline
from tests.sim.wire import SEND_BUFFER_BYTES, Connection, Poller


class Wire:
    """A connection between a test and itself."""

    def __init__(self, timeline: Timeline) -> None:
        self.has_cut = False
        self.is_alive = True
        self.seen: list[tuple[bool, bytes]] = []
        self.poller = Poller(random.Random(1))
        self.connection = Connection(
            timeline,
            self,
            self.poller,
            is_server_alive=lambda: self.is_alive,
            record=lambda to_server, data: self.seen.append((to_server, data)),
        )
        self.socket = self.connection.socket
        self.fd = self.socket.fileno()
        self.poller.register(self.fd, READ)

    def delay_s(self) -> float:
        return 0.01

    def is_cut(self) -> bool:
        return self.has_cut


def wired(body: Callable[[Wire], Awaitable[None]]) -> None:
    async def main(timeline: Timeline) -> None:
        await body(Wire(timeline))

    simulated(main)


def test_bytes_arrive_in_order_both_ways() -> None:
    async def body(wire: Wire) -> None:
        with pytest.raises(BlockingIOError):
            wire.socket.recv(10)
        wire.connection.send(b"one")
        wire.connection.send(b"two")
        assert wire.poller.poll() == []
        await wire.poller.wait()
        await trio.sleep(0.1)
        assert wire.poller.poll() == [(wire.fd, READ)]
        buffer = bytearray(4)
        assert wire.socket.recv_into(memoryview(buffer)) == 4
        assert bytes(buffer) + wire.socket.recv(100) == b"onetwo"
        assert wire.poller.poll() == []
        assert wire.socket.sendmsg([b"th", memoryview(b"ree")]) == 5
        assert await wire.connection.receive() == b"three"
        assert wire.seen == [(True, b"one"), (True, b"two"), (False, b"three")]

    wired(body)


def test_a_full_socket_takes_nothing_until_the_client_has_some() -> None:
    async def body(wire: Wire) -> None:
        wire.poller.modify(wire.fd, READ_WRITE)
        assert wire.poller.poll() == [(wire.fd, WRITE)]
        assert wire.socket.send(bytes(SEND_BUFFER_BYTES + 5)) == SEND_BUFFER_BYTES
        with pytest.raises(BlockingIOError):
            wire.socket.send(b"more")
        assert wire.poller.poll() == []
        while not wire.poller.poll():
            await wire.poller.wait()
        assert wire.poller.poll() == [(wire.fd, WRITE)]
        assert wire.socket.send(b"more") == 4

    wired(body)


def test_the_client_leaves() -> None:
    async def body(wire: Wire) -> None:
        wire.connection.send(b"last")
        wire.connection.close()
        await trio.sleep(0.1)
        assert wire.socket.recv(10) == b"last"
        assert wire.poller.poll() == [(wire.fd, READ)]
        assert wire.socket.recv(10) == b""

    wired(body)


def test_the_server_closes() -> None:
    async def body(wire: Wire) -> None:
        wire.socket.send(b"bye")
        wire.poller.unregister(wire.fd)
        wire.socket.close()
        assert await wire.connection.receive() == b"bye"
        assert await wire.connection.receive() == b""
        assert wire.connection.has_ended
        with pytest.raises(OSError, match="closed"):
            wire.socket.send(b"x")

    wired(body)


def test_after_a_kill_what_was_sent_arrives() -> None:
    async def body(wire: Wire) -> None:
        wire.socket.send(b"sent")
        wire.connection.send(b"lost")
        wire.is_alive = False
        wire.connection.server_was_killed()
        with pytest.raises(ConnectionResetError):
            wire.socket.send(b"x")
        assert await wire.connection.receive() == b"sent"
        assert await wire.connection.receive() == b""
        assert wire.seen == [(False, b"sent")]

    wired(body)


def test_after_a_power_cut_nobody_says_anything() -> None:
    async def body(wire: Wire) -> None:
        wire.socket.send(b"sent")
        wire.is_alive = False
        wire.connection.server_lost_power(does_sent_arrive=False)
        with trio.move_on_after(100) as silence:
            await wire.connection.receive()
        assert silence.cancelled_caught

    wired(body)


def test_a_cut_holds_back_and_keeps_the_order() -> None:
    async def body(wire: Wire) -> None:
        wire.has_cut = True
        wire.connection.send(b"one")
        await trio.sleep(3)
        wire.connection.send(b"two")
        assert wire.poller.poll() == []
        wire.has_cut = False
        await trio.sleep(1)
        assert wire.socket.recv(100) == b"onetwo"

    wired(body)


def test_a_reset_ends_both_sides() -> None:
    async def body(wire: Wire) -> None:
        wire.socket.send(b"lost")
        wire.connection.reset()
        assert await wire.connection.receive() == b""
        assert wire.socket.recv(10) == b""
        await trio.sleep(1)
        assert wire.seen == []

    wired(body)


def test_a_wait_can_be_ended() -> None:
    async def body(wire: Wire) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(wire.poller.wait)
            await trio.sleep(1)
            wire.poller.wake()
        assert trio.current_time() == 1

    wired(body)
