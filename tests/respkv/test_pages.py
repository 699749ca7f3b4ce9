"""Pages are read beside the loop: how many hops that takes, and that every client gets its own answers."""

from __future__ import annotations

import random
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
import trio.testing

from respkv import pages
from respkv.session import Session
from tests.respkv.commands.scene import NodeStage


class Stage(NodeStage):
    """A node of which only the pages are a task; each hop to a thread is counted, and may be held back."""

    def __init__(self) -> None:
        super().__init__()
        self.hops = 0
        self.gate = trio.Event()
        self.gate.set()
        self.node.pages._offload = self._hop

    async def _hop(self, call: Callable[[], Any]) -> Any:
        self.hops += 1
        await self.gate.wait()
        await trio.lowlevel.checkpoint()
        return call()

    def connect(self) -> socket.socket:
        client = super().connect()
        client.settimeout(10)
        self.tick()
        return client

    def fill(self, count: int) -> None:
        """Values on the disk, in many blocks, and in no cache."""
        client = self.connect()
        rng = random.Random(1)
        self.values = {b"key%d" % n: rng.randbytes(3000).hex().encode() for n in range(count)}
        for key, value in self.values.items():
            self.ask(client, [b"SET", key, value])
        self.settle()
        assert client.recv(1 << 20) == b"+OK\r\n" * count
        client.close()
        self.settle()
        self.evict()

    def ask(self, client: socket.socket, *commands: list[bytes]) -> None:
        for args in commands:
            parts = [b"*%d\r\n" % len(args), *(b"$%d\r\n%b\r\n" % (len(a), a) for a in args)]
            client.sendall(b"".join(parts))
            self.tick()

    def tick(self) -> None:
        while events := self.node.poller.poll():
            self.node.front.tick(events)
        self.node.front.tick([])

    @asynccontextmanager
    async def reading(self) -> AsyncIterator[None]:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.node.pages.run)
            yield
            nursery.cancel_scope.cancel()

    async def answer(self, client: socket.socket, byte_count: int) -> bytes:
        """So many bytes, which come at last."""
        client.setblocking(False)
        received = b""
        with trio.fail_after(10):
            while len(received) < byte_count:
                await trio.lowlevel.checkpoint()
                self.tick()
                try:
                    received += client.recv(1 << 20)
                except BlockingIOError:
                    continue
        return received

    def shown(self, keys: list[bytes]) -> bytes:
        return b"".join(b"$%d\r\n%b\r\n" % (len(self.values[k]), self.values[k]) for k in keys)


@pytest.fixture
async def stage() -> AsyncIterator[Stage]:
    stage = Stage()
    yield stage
    stage.close()


def gets(keys: list[bytes]) -> list[list[bytes]]:
    return [[b"GET", key] for key in keys]


async def test_the_pages_of_a_pipeline_are_read_together(stage: Stage) -> None:
    stage.fill(40)
    client = stage.connect()
    keys = list(stage.values)[:10]
    client.sendall(b"".join(b"*2\r\n$3\r\nGET\r\n$%d\r\n%b\r\n" % (len(k), k) for k in keys))
    stage.tick()
    async with stage.reading():
        expected = stage.shown(keys)
        assert await stage.answer(client, len(expected)) == expected
    assert stage.hops == 1


async def test_what_many_clients_wait_for_is_read_together(stage: Stage) -> None:
    stage.fill(30)
    clients = {key: stage.connect() for key in list(stage.values)[:20]}
    for key, client in clients.items():
        stage.ask(client, [b"GET", key])
    async with stage.reading():
        for key, client in clients.items():
            expected = stage.shown([key])
            assert await stage.answer(client, len(expected)) == expected
    assert stage.hops == 1


async def test_a_batch_is_bounded(stage: Stage) -> None:
    count = pages.BATCH_MAX + 5
    stage.fill(count)
    clients = {key: stage.connect() for key in stage.values}
    for key, client in clients.items():
        stage.ask(client, [b"GET", key])
    async with stage.reading():
        for key, client in clients.items():
            expected = stage.shown([key])
            assert await stage.answer(client, len(expected)) == expected
    assert stage.hops >= 2


async def test_a_page_that_cannot_be_read_is_the_error_of_its_own_client(stage: Stage) -> None:
    stage.fill(30)
    keys = list(stage.values)[:2]
    clients = [stage.connect() for _ in keys]
    for key, client in zip(keys, clients, strict=True):
        stage.ask(client, [b"GET", key])
    stage.disk.faults.read_error_in = 1
    answers = []
    async with stage.reading():
        for client in clients:
            answers.append(await stage.answer(client, 1))
    assert sorted(answer[:1] for answer in answers) == [b"$", b"-"]
    assert any(b"the data cannot be read" in answer for answer in answers)


def waiting_session(stage: Stage, client: socket.socket, key: bytes) -> Session:
    """A session that waits for the page of a key, of which nobody knows."""
    stage.ask(client, [b"GET", key])
    assert len(stage.node.pages.take()) == 1
    (session,) = stage.node.runner.long_way.waiting
    return session


def waiting_ahead(stage: Stage) -> int:
    return sum(resume is None for _, _, resume in stage.node.pages.take())


async def test_only_what_will_be_read_is_read_ahead(stage: Stage) -> None:
    stage.fill(30)
    keys = list(stage.values)
    client = stage.connect()
    behind: list[list[bytes]] = [
        [b"SET", keys[1], b"new"],
        [b"MSET", keys[2], b"new", keys[3], b"new"],
        [b"PING"],
        [b"NO SUCH COMMAND", keys[4]],
        [b"GET"],
    ]
    session = waiting_session(stage, client, keys[0])
    session.queue.extend(behind)
    stage.node.pages.read_ahead(session)
    assert waiting_ahead(stage) == 0
    session.queue.extend([[b"GET", keys[4]], [b"INCR", keys[5]], [b"MGET", keys[6], keys[7]]])
    stage.node.pages.read_ahead(session)
    assert waiting_ahead(stage) == 4


async def test_what_is_read_ahead_is_a_part_of_the_cache(stage: Stage) -> None:
    stage.fill(60)
    room = 3
    settings = stage.node.store.settings
    stage.node.store.blocks.resize(room * pages.AHEAD_SHARE * settings.block_bytes)
    client = stage.connect()
    keys = list(stage.values)[:20]
    session = waiting_session(stage, client, keys[0])
    session.queue.extend(gets(keys[1:]))
    stage.node.pages.read_ahead(session)
    assert waiting_ahead(stage) == room


async def test_no_further_than_some_commands_is_read_ahead(stage: Stage) -> None:
    stage.fill(60)
    stage.node.store.blocks.resize(1 << 30)
    client = stage.connect()
    keys = list(stage.values)
    session = waiting_session(stage, client, keys[0])
    session.queue.extend(gets(keys[1:]))
    stage.node.pages.read_ahead(session)
    assert waiting_ahead(stage) == pages.AHEAD_COMMANDS


async def test_one_slow_read_does_not_hold_up_the_next(stage: Stage) -> None:
    stage.fill(30)
    slow, quick = stage.connect(), stage.connect()
    keys = list(stage.values)[:2]
    stage.gate = trio.Event()
    async with stage.reading():
        stage.ask(slow, [b"GET", keys[0]])
        await trio.testing.wait_all_tasks_blocked()
        held, stage.gate = stage.gate, trio.Event()
        stage.gate.set()
        stage.ask(quick, [b"GET", keys[1]])
        expected = stage.shown([keys[1]])
        assert await stage.answer(quick, len(expected)) == expected
        held.set()
        expected = stage.shown([keys[0]])
        assert await stage.answer(slow, len(expected)) == expected
