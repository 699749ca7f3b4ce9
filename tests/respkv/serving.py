"""A node with real sockets and a real folder, in the test's own process, and clients for it.

    async with serving(tmp_path, {"client.clients_max": 2}) as node:
        client = await connect(node)
        assert await client.ask(b"PING\r\n") == b"PONG"

The clock is the real one, plus what a test adds with `node.later(seconds)`. The disk is a `SlowDisk`: a
test may hold back its syncs, or have every page be out of the kernel's memory.
"""

from __future__ import annotations

import random
import socket
import threading
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import hiredis
import trio

from cluster.record import CODEC
from cluster.replica import Replica
from engine.disk import RealDisk, RealFile
from engine.job import run_job
from respkv.commands import load
from respkv.config import Config
from respkv.connection import Connection
from respkv.node import Node
from respkv.store_share import store_settings

PATIENCE_S = 20.0
START_S = 10.0

load()


class SlowDisk(RealDisk):
    """A real folder whose syncs wait for `may_sync`, and which `is_cold`: nothing is in the kernel's memory."""

    def __init__(self, path: str) -> None:
        self.may_sync = threading.Event()
        self.may_sync.set()
        self.is_cold = False
        super().__init__(path)

    def _open(self, name: str, flags: int, operation: str) -> RealFile:
        file = super()._open(name, flags, operation)
        file.__class__ = _SlowFile
        return file


class _SlowFile(RealFile):
    __slots__ = ()

    def sync(self) -> None:
        assert isinstance(self._disk, SlowDisk)
        assert self._disk.may_sync.wait(PATIENCE_S), "a test has forgotten to let the disk sync"
        super().sync()

    def read_cached(self, offset: int, length: int) -> bytes | None:
        assert isinstance(self._disk, SlowDisk)
        return None if self._disk.is_cold else super().read_cached(offset, length)


class AdjustableClock:
    """The monotonic clock, `ahead_ns` put forward."""

    ahead_ns = 0

    def __call__(self) -> int:
        return time.monotonic_ns() + self.ahead_ns


class TestNode(Node):
    """A node whose clock a test may put forward."""

    __test__ = False
    disk: SlowDisk
    clock: AdjustableClock

    def later(self, seconds: float) -> None:
        self.clock.ahead_ns += int(seconds * 1e9)

    def evict(self) -> None:
        """Move everything to a table, out of all memory."""
        store = self.store
        store.write()
        store.freeze()
        while (job := store.next_job(self.now_ms())) is not None:
            result = run_job(self.disk, job, CODEC)
            prepared = store.prepare(job, result)
            store.write_manifest(prepared)
            store.install(job, result, prepared)
        self.disk.is_cold = True

    def connection(self, number: int = 0) -> Connection:
        """The connection of the n-th client that is here."""
        return list(self.front.connections.values())[number]


def make_node(folder: Path, settings: Mapping[str, Any] | None = None) -> TestNode:
    config = Config()
    config.put("client.port", 0)
    for name, value in (settings or {}).items():
        config.put(name, value)
    disk = SlowDisk(str(folder / "data"))
    clock = AdjustableClock()
    node = TestNode(
        config,
        Replica.open(disk, store_settings(config), 1),
        name="test",
        data_dir=disk.path,
        rng=random.Random(1),
        clock_ns=clock,
    )
    node.disk, node.clock = disk, clock
    return node


@asynccontextmanager
async def serving(
    folder: Path, settings: Mapping[str, Any] | None = None
) -> AsyncIterator[TestNode]:
    """Run a node for the length of the block; then it must stop by itself, with status 0."""
    node = make_node(folder, settings)
    status: list[int] = []

    async def run() -> None:
        status.append(await node.run())

    async with trio.open_nursery() as nursery:
        with trio.fail_after(PATIENCE_S * 3):
            nursery.start_soon(run)
            with trio.fail_after(START_S):
                await until(lambda: node.front.listeners.by_fd)
            try:
                yield node
            finally:
                node.disk.may_sync.set()
                node.stop()
            await until(lambda: status)
    node.disk.close()
    assert status == [0]


class Client:
    """A socket and a reader of replies. Errors are `-` and their line."""

    def __init__(self, sock: trio.socket.SocketType) -> None:
        self.sock = sock
        self.reader = hiredis.Reader(replyError=lambda text: b"-" + text.encode("latin-1"))  # type: ignore[arg-type,return-value]

    async def send(self, data: bytes) -> None:
        with trio.fail_after(PATIENCE_S):
            view = memoryview(data)
            while view:
                view = view[await self.sock.send(view) :]

    async def reply(self) -> Any:
        """The next reply; EOFError when the server has closed."""
        with trio.fail_after(PATIENCE_S):
            while (reply := self.reader.gets()) is False:
                data = await self.sock.recv(1 << 20)
                if not data:
                    raise EOFError
                self.reader.feed(data)
        return reply

    async def replies(self, count: int) -> list[Any]:
        return [await self.reply() for _ in range(count)]

    async def ask(self, data: bytes) -> Any:
        await self.send(data)
        return await self.reply()

    async def rest(self) -> bytes:
        """All bytes until the server closes; a reset counts as that."""
        received = bytearray()
        with trio.fail_after(PATIENCE_S):
            try:
                while data := await self.sock.recv(1 << 20):
                    received += data
            except ConnectionResetError:
                pass
        return bytes(received)

    async def hears_nothing(self, seconds: float = 0.05) -> bool:
        with trio.move_on_after(seconds):
            return await self.sock.recv(1) is None
        return True

    def close(self) -> None:
        self.sock.close()


async def connect(
    node: Node, *, host: str = "127.0.0.1", receive_bytes: int = 0, path: str = ""
) -> Client:
    """A client that is known to the node. `receive_bytes` makes the kernel take little for it."""
    total = node.front.clients.connections_total
    if path:
        sock = trio.socket.socket(socket.AF_UNIX)
    else:
        sock = trio.socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    if receive_bytes:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
    with trio.fail_after(PATIENCE_S):
        await sock.connect(path or (host, node.ready_port))
        await until(
            lambda: (
                node.front.clients.connections_total > total or node.front.listeners.rejected_total
            )
        )
    return Client(sock)


async def until(is_true: Any, seconds: float = PATIENCE_S) -> None:
    """Wait for something that the node does on its own."""
    with trio.fail_after(seconds):
        while not is_true():  # noqa: ASYNC110  What it waits for has no event.
            await trio.sleep(0.002)


def encode(*args: bytes) -> bytes:
    """A command as clients send it."""
    parts = [b"*%d\r\n" % len(args)]
    for arg in args:
        parts += (b"$%d\r\n" % len(arg), arg, b"\r\n")
    return b"".join(parts)
