"""Simulated clients: they speak RESP bytes with a node, give up after a while, and go to another node.

A client is one *session*: what it may rely on does not end with a connection. It sends one command, or
some at once, waits for all replies, and writes down what it asked and was told. A connection that says
nothing in time or ends leaves the outcome of what was asked unknown; the client never asks again for the
same: whether to try again is for the workload to decide.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

import hiredis
import trio

from tests.sim.history import History, Operation
from tests.sim.wire import Connection

if TYPE_CHECKING:
    from tests.sim.world import World

PATIENCE_S = 4.0
PAUSE_S = 0.2  # Before another node is tried.
# What is answered before anything is done.
REFUSALS: Final = (b"MISCONF", b"LOADING", b"MOVED")


class ServerError(bytes):
    """An error reply's line, without the dash."""


class Client:
    """One session. Errors of the network become unknown outcomes; only replies are promises."""

    def __init__(
        self, world: World, session: int, history: History, *, home: str | None = None
    ) -> None:
        """`home`: it goes to this node only."""
        self.world = world
        self.session = session
        self.history = history
        self.rng: random.Random = world.rng(f"client-{session}")
        self._home = home
        self._connection: Connection | None = None
        self._node = ""
        self._reader: hiredis.Reader

    async def ask(self, *args: bytes) -> Operation:
        """One command."""
        return (await self.ask_all([args]))[0]

    async def ask_all(self, commands: Sequence[Sequence[bytes]]) -> list[Operation]:
        """Some commands at once, and what became of them."""
        connection = await self._connected()
        begun = [
            self.history.begin(self.session, args, node=self._node, now_s=self.world.timeline.now_s)
            for args in commands
        ]
        connection.send(b"".join(encode(*args) for args in commands))
        with trio.move_on_after(PATIENCE_S):
            for operation in begun:
                reply = await self._reply(connection)
                if isinstance(reply, Gone):
                    break
                self._note(operation, reply)
        if any(not each.is_acknowledged and not each.error for each in begun):
            self.world.fired["unknown outcome"] += 1
            self.leave()
        return begun

    def _note(self, operation: Operation, reply: Any) -> None:
        if isinstance(reply, ServerError):
            is_refused = reply.partition(b" ")[0] in REFUSALS
            self.history.failed(operation, bytes(reply), is_refused=is_refused)
            self.world.fired["refused operation" if is_refused else "error reply"] += 1
        else:
            self.history.answered(operation, reply)

    async def _reply(self, connection: Connection) -> Any:
        while (reply := self._reader.gets()) is False:
            data = await connection.receive()
            if not data:
                return Gone()
            self._reader.feed(data)
        return reply

    async def _connected(self) -> Connection:
        """The connection, or a new one to any node that runs; it may take until one does."""
        while self._connection is None or self._connection.has_ended:
            name = self._home or self.rng.choice(self.world.names)
            self._connection = self.world.connect(name, self.session)
            self._node = name
            self._reader = hiredis.Reader(replyError=_error)  # type: ignore[arg-type]
            if self._connection is None:
                await trio.sleep(self.rng.uniform(0, PAUSE_S))
        return self._connection

    def leave(self) -> None:
        """Close the connection; the next command makes another."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None


class Gone:
    """The connection has ended."""


def _error(text: str) -> ServerError:
    return ServerError(text.encode("latin-1"))


def encode(*args: bytes) -> bytes:
    """A command as clients send it."""
    parts = [b"*%d\r\n" % len(args)]
    for arg in args:
        parts += (b"$%d\r\n" % len(arg), arg, b"\r\n")
    return b"".join(parts)
