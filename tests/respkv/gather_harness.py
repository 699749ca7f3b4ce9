"""A cluster in this process under a virtual clock, and clients that ask its nodes.

    def test_something() -> None:
        @clustered(nodes=5)
        async def _(cluster: Cluster) -> None:
            await cluster.ask("a", "SET", "key", "value")

Messages take some virtual milliseconds. The nodes are those of `tests/sim`: product code on simulated machines.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import hiredis
import trio
import trio.testing

from respkv.node import Node
from tests.sim.client import encode
from tests.sim.machine import Process
from tests.sim.plan import Plan
from tests.sim.timeline import deterministic
from tests.sim.wire import Connection
from tests.sim.world import World, quiet

PATIENCE_S = 60.0
CLUSTER_PORT = 1000  # Sessions from this number on.


class Session:
    """One connection to one node."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self._reader = hiredis.Reader(replyError=lambda text: "-" + text)  # type: ignore[arg-type,return-value]

    def send(self, *args: bytes | str | int) -> None:
        parts = [arg if isinstance(arg, bytes) else str(arg).encode() for arg in args]
        self.connection.send(encode(*parts))

    async def reply(self) -> Any:
        with trio.fail_after(PATIENCE_S):
            while (reply := self._reader.gets()) is False:
                data = await self.connection.receive()
                assert data, "the node has closed the connection"
                self._reader.feed(data)
        return reply

    async def ask(self, *args: bytes | str | int) -> Any:
        self.send(*args)
        return await self.reply()


class Cluster:
    """A world without faults, and a session for each node."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.names = world.names
        self._sessions: dict[str, Session] = {}

    def node(self, name: str) -> Node:
        process = self.world.machines[name].process
        assert process is not None
        return process.node

    def session(self, name: str, *, is_cluster: bool = False) -> Session:
        connection = self.world.connect(name, len(self._sessions) + 1)
        assert connection is not None
        if is_cluster:
            front = self.node(name).front
            next(reversed(front.connections.values())).session.is_cluster = True
        return Session(connection)

    async def ask(self, name: str, *args: bytes | str | int) -> Any:
        """One command, in the node's own session."""
        if name not in self._sessions:
            self._sessions[name] = self.session(name)
        return await self._sessions[name].ask(*args)

    async def fill(self, name: str, count: int, prefix: str = "key:") -> set[bytes]:
        """Write so many keys through a node."""
        session = self.session(name)
        keys = [b"%s%d" % (prefix.encode(), number) for number in range(count)]
        for at in range(0, count, 50):
            some = keys[at : at + 50]
            for key in some:
                session.send("SET", key, b"v")
            for _ in some:
                assert await session.reply() == b"OK"
        return set(keys)

    async def scan(self, name: str, *options: bytes | str | int) -> list[bytes]:
        """A whole iteration."""
        cursor, keys = b"0", []
        while True:
            reply = await self.ask(name, "SCAN", cursor, *options)
            assert isinstance(reply, list), reply
            cursor = reply[0]
            keys += reply[1]
            if cursor == b"0":
                return keys

    def freeze(self, name: str) -> Process:
        """Let a node hang, until it is thawed."""
        hung = self.world.machines[name].freeze()
        assert hung is not None
        return hung

    def bound_messages(self, bytes_max: int) -> None:
        """What is longer is refused."""
        for name in self.names:
            peers = self.node(name).peers
            assert peers is not None
            peers.dispatch.message_bytes_max = bytes_max

    def kill(self, name: str) -> None:
        self.world.machines[name].kill()
        self._sessions.pop(name, None)

    async def know(self, name: str, *, is_up: bool) -> None:
        """Wait until all others know that a node is there, or is not."""
        with trio.fail_after(PATIENCE_S):
            for other in self.names:
                if other != name and self.world.machines[other].is_up:
                    peers = self.node(other).peers
                    assert peers is not None
                    while peers.topology.is_reachable(name) is not is_up or (  # noqa: ASYNC110
                        is_up and name in peers.topology.incomplete
                    ):
                        await trio.sleep(0.05)


def clustered(*, nodes: int, **plan: Any) -> Callable[[Callable[[Cluster], Awaitable[None]]], None]:
    """Run a function with a cluster whose nodes all know each other."""

    async def main(body: Callable[[Cluster], Awaitable[None]]) -> None:
        world = World(Plan(seed=1, nodes=nodes, has_faults=False, **plan))
        async with world.running():
            with trio.fail_after(1000), trio.CancelScope() as scope:
                world.when_failed = scope.cancel
                cluster = Cluster(world)
                await trio.sleep(0.5)
                for name in cluster.names:
                    await cluster.know(name, is_up=True)
                await body(cluster)
        assert not world.failures, world.failures

    def run(body: Callable[[Cluster], Awaitable[None]]) -> None:
        with quiet() as log, deterministic(1):
            try:
                trio.run(main, body, clock=trio.testing.MockClock(autojump_threshold=0))
            except BaseException as error:
                error.add_note(log.getvalue().decode(errors="replace")[-4000:])
                raise

    return run
