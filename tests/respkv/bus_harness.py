"""Buses and links of one process under one poller, and what they told.

    async with buses("a", "b") as (a, b):
        await until(lambda: a.bus.is_connected("b"))
        a.bus.send("b", [b"HELLO"])

`Loop` stands in for the front: it serves what is ready and flushes at the end of each tick. `Told` is a
receiver and a log that keeps what it is told.
"""

from __future__ import annotations

import os
import random
import socket
import subprocess
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import trio

from bench.ports import free_port
from cluster.gossip_message import Terms, VersionRange
from cluster.handshake import Initiator
from cluster.transport import Message
from respkv.bus import Bus
from respkv.bus_link import BusLimits
from respkv.bus_wire import Decoder, encode
from respkv.poller import EpollPoller

TERMS = Terms("example", VersionRange(1, 1))
SECRET = b"a secret of sixteen bytes or more"
PATIENCE_S = 20.0
FLUSH_S = 0.005


class Loop:
    """Where sockets are watched, as by the front."""

    def __init__(self) -> None:
        self._poller = EpollPoller()
        self._handlers: dict[int, Callable[[int], None]] = {}
        self.buses: list[Bus] = []
        self.events_total = 0

    def adopt(self, fd: int, mask: int, handler: Callable[[int], None]) -> None:
        self._poller.register(fd, mask)
        self._handlers[fd] = handler

    def change(self, fd: int, mask: int) -> None:
        self._poller.modify(fd, mask)

    def release_fd(self, fd: int) -> None:
        del self._handlers[fd]
        self._poller.unregister(fd)

    def turn(self) -> int:
        """One tick; returns how many sockets were ready."""
        events = self._poller.poll()
        self.events_total += len(events)
        for fd, mask in events:
            handler = self._handlers.get(fd)
            if handler is not None:
                handler(mask)
        for bus in self.buses:
            bus.flush()
        return len(events)

    def turn_until(self, is_met: Callable[[], bool]) -> None:
        until_s = time.monotonic() + PATIENCE_S
        while not is_met():
            assert time.monotonic() < until_s, "it does not come"
            self.turn()

    async def run(self) -> None:
        while True:
            with trio.move_on_after(
                FLUSH_S
            ):  # As by the node's ticker: a test sends outside of ticks.
                await self._poller.wait()
            self.turn()

    @property
    def count(self) -> int:
        return len(self._handlers)

    def close(self) -> None:
        self._poller.close()


class Told:
    """What a receiver and a log were told."""

    def __init__(self) -> None:
        self.messages: list[tuple[str, Message]] = []
        self.events: list[tuple[str, str]] = []
        self.times_s: list[float] = []
        self.lines: list[tuple[str, dict[str, Any]]] = []

    def receive(self, peer: str, message: Message) -> None:
        self.messages.append((peer, message))

    def connected(self, peer: str) -> None:
        self._note("connected", peer)

    def disconnected(self, peer: str, *, is_refused: bool) -> None:
        self._note("refused" if is_refused else "lost", peer)

    def _note(self, what: str, peer: str) -> None:
        self.events.append((what, peer))
        self.times_s.append(time.monotonic())

    def info(self, event: str, **values: Any) -> None:
        self.lines.append((event, values))

    warning = error = info

    def reasons(self, event: str) -> list[str]:
        return [str(values["reason"]) for name, values in self.lines if name == event]


class Member:
    """A bus, its port, and what it told."""

    def __init__(self, name: str, loop: Loop, **options: Any) -> None:
        self.name = name
        self.told = Told()
        self.ahead_ns = 0  # Of the real clock.
        settings: dict[str, Any] = {
            "secret": SECRET,
            "limits": quick(),
            "terms": TERMS,
            "peers": {},
        }
        settings |= options
        terms = settings.pop("terms")
        self.bus = Bus(
            name,
            terms,
            descriptors=loop,
            receiver=self.told,
            rng=random.Random(1),
            entropy=os.urandom,
            clock_ns=lambda: time.monotonic_ns() + self.ahead_ns,
            log=self.told,
            **settings,
        )
        loop.buses.append(self.bus)
        self.port = self.bus.listen("127.0.0.1", free_port())

    @property
    def address(self) -> tuple[str, int]:
        return ("127.0.0.1", self.port)


def quick(**changes: Any) -> BusLimits:
    """Limits of time that suit a test; the dead are not found by chance."""
    limits: dict[str, Any] = {"backoff_min_s": 0.01, "backoff_max_s": 0.1}
    return BusLimits(**limits | changes)


@asynccontextmanager
async def buses(
    *names: str, each: Mapping[str, Mapping[str, Any]] | None = None, **options: Any
) -> AsyncIterator[list[Member]]:
    """Buses that know each other. `each` has options of single ones."""
    loop = Loop()
    members = [Member(name, loop, **options | dict((each or {}).get(name, {}))) for name in names]
    for member in members:
        member.bus.set_peers(
            {other.name: other.address for other in members if other is not member}
        )
    async with running(loop, *members):
        yield members


@asynccontextmanager
async def running(loop: Loop, *members: Member) -> AsyncIterator[None]:
    """The loop and the tasks of buses."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(loop.run)
        for member in members:
            nursery.start_soon(member.bus.run)
        try:
            yield
        finally:
            nursery.cancel_scope.cancel()
            for member in members:
                member.bus.close()
    assert loop.count == 0, "a descriptor is left"
    loop.close()


async def until(is_met: Callable[[], bool]) -> None:
    with trio.move_on_after(PATIENCE_S):
        while not is_met():  # noqa: ASYNC110  What is awaited has no event.
            await trio.sleep(0.001)
        return
    raise AssertionError("it does not come")


class Stranger:
    """A peer made by hand, on a blocking socket of its own: it does what a test wants and no more."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        sock.settimeout(PATIENCE_S)
        self._decoder = Decoder()
        self._messages: list[Message] = []

    @classmethod
    def dial(cls, member: Member) -> Stranger:
        return cls(socket.create_connection(member.address))

    async def shake(self, name: str, *last: bytes) -> None:
        """The whole handshake, as one that dials. `last`: the message that names the lane."""
        end = Initiator(TERMS, name, os.urandom(32), secret=SECRET, is_loopback=True)
        self.send(end.start())
        step = end.receive(await self.next())
        assert step.reply is not None
        self.send(step.reply)
        assert end.receive(await self.next()).done is not None
        self.send(list(last) or [b"BUS.LANE", b"send"])

    def send(self, message: Message) -> None:
        self.sock.sendall(encode(message))

    async def next(self) -> Message:
        while not self._messages:
            data = await trio.to_thread.run_sync(self.sock.recv, 65536)
            assert data, "it was closed"
            self._messages = self._decoder.feed(data)
        message = self._messages.pop(0)
        self._messages += self._decoder.feed(b"")
        return message

    async def ends(self) -> bytes:
        """What came until the end."""
        received = b""
        try:
            while data := await trio.to_thread.run_sync(self.sock.recv, 65536):
                received += data
        except ConnectionResetError:
            pass
        return received

    def close(self) -> None:
        self.sock.close()


def certify(folder: Path, *names: str) -> None:
    """Make a CA (`ca.pem`) and certificates that it signs (`NAME.pem`, `NAME.key`)."""
    key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    _openssl(folder, "req", "-x509", *key, "-keyout", "ca.key", "-out", "ca.pem", "-subj", "/CN=ca")
    for name in names:
        _openssl(
            folder, "req", *key, "-keyout", f"{name}.key", "-out", f"{name}.csr", "-subj", f"/CN={name}"
        )  # fmt: skip
        _openssl(
            folder, "x509", "-req", "-in", f"{name}.csr", "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial",
            "-out", f"{name}.pem",
        )  # fmt: skip


def _openssl(folder: Path, *args: str) -> None:
    subprocess.run(["openssl", *args], cwd=folder, check=True, capture_output=True, timeout=30)


def files(folder: Path, name: str) -> tuple[str, str, str]:
    """Certificate, key and CA of one node."""
    return str(folder / f"{name}.pem"), str(folder / f"{name}.key"), str(folder / "ca.pem")
