"""Simulated clients: they speak RESP bytes with a node, give up after a while, and go to another node.

A client is one *session*: what it may rely on does not end with a connection. It sends one command, or
some at once, waits for all replies, and writes down what it asked and was told. A connection that says
nothing in time or ends leaves the outcome of what was asked unknown; the client never asks again for the
same: whether to try again is for the workload to decide.

MGET and MSET are carried out key by key, so the history has them as one GET or SET for each. A
transaction is one operation, whose arguments are a name for its keys and then each command as one text.

A client of a cluster port goes where MOVED says, and asks again there for what was refused.
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
# What is answered if nothing was done: docs/ERRORS.md.
REFUSALS: Final = (
    b"MISCONF",
    b"LOADING",
    b"MOVED",
    b"CROSSSLOT",
    b"CLUSTERDOWN",
    b"NOREPLICAS",
    b"TRYAGAIN",
    b"EXECABORT",
)
# The same of a command that is not carried out key by key: of another, a part may have been done.
REFUSALS_OF_PARTS: Final = (b"LOADING", b"MOVED", b"CROSSSLOT", b"CLUSTERDOWN")
MOVES_MAX: Final = 5


class ServerError(bytes):
    """An error reply's line, without the dash."""


class Client:
    """One session. Errors of the network become unknown outcomes; only replies are promises."""

    def __init__(
        self,
        world: World,
        session: int,
        history: History,
        *,
        home: str | None = None,
        is_cluster: bool = False,
    ) -> None:
        """`home`: it goes to this node only. `is_cluster`: to the cluster ports."""
        self.world = world
        self.session = session
        self.history = history
        self.rng: random.Random = world.rng(f"client-{session}")
        self._home = home
        self.is_cluster = is_cluster
        self._next_node = ""  # Where MOVED has sent it.
        self._connection: Connection | None = None
        self._node = ""
        self._reader: hiredis.Reader

    async def ask(self, *args: bytes) -> Operation:
        """One command that is one operation."""
        return (await self.ask_all([args]))[0]

    async def ask_all(self, commands: Sequence[Sequence[bytes]]) -> list[Operation]:
        """Some commands at once, and what became of them."""
        done: list[Operation] = []
        for _ in range(MOVES_MAX):
            asked = [(args, _operations_of(args)) for args in commands]
            outcomes = await self._exchange(
                [(own, [args], 0) for args, own in asked],
            )
            done += [operation for own in outcomes for operation in own]
            commands = [
                args
                for (args, _), own in zip(asked, outcomes, strict=True)
                if own[0].error.startswith(b"MOVED")
            ]
            if not commands:
                break
        return [each for each in done if not each.error.startswith(b"MOVED")] or done

    async def ask_together(self, name: bytes, commands: Sequence[Sequence[bytes]]) -> Operation:
        """A transaction, which is one operation. `name` is a name for its keys."""
        texts = [b" ".join(command) for command in commands]
        wire = [[b"MULTI"], *commands, [b"EXEC"]]
        for _ in range(MOVES_MAX):
            ((operation,),) = await self._exchange(
                [([(b"EXEC", name, *texts)], wire, len(wire) - 1)]
            )
            if not self._next_node:
                break
        return operation

    async def _exchange(
        self, asked: Sequence[tuple[Sequence[Sequence[bytes]], Sequence[Sequence[bytes]], int]]
    ) -> list[list[Operation]]:
        """Send all, and wait for all replies. Each: the operations, what is sent for them, and which reply counts."""
        connection = await self._connected()
        now_s = self.world.timeline.now_s
        begun = [
            [self.history.begin(self.session, args, node=self._node, now_s=now_s) for args in own]
            for own, _, _ in asked
        ]
        connection.send(b"".join(encode(*args) for _, wire, _ in asked for args in wire))
        is_whole = False
        with trio.move_on_after(PATIENCE_S):
            is_whole = await self._hear(connection, asked, begun)
        if not is_whole:
            self.world.fired["unknown outcome"] += 1
            self.leave()
        elif self._next_node:
            self.world.fired["redirected client"] += 1
            self.leave()
        return begun

    async def _hear(
        self,
        connection: Connection,
        asked: Sequence[tuple[Sequence[Sequence[bytes]], Sequence[Sequence[bytes]], int]],
        begun: list[list[Operation]],
    ) -> bool:
        """Take all replies; False if the connection ends before."""
        for (own, wire, counted), operations in zip(asked, begun, strict=True):
            for number in range(len(wire)):
                reply = await self._reply(connection)
                if isinstance(reply, Gone):
                    return False
                if isinstance(reply, ServerError) and reply.startswith(b"MOVED "):
                    self._next_node = self.world.node_of_port(int(reply.rpartition(b":")[2]))
                if number == counted:
                    self._note(own, operations, reply)
        return True

    def _note(
        self, asked: Sequence[Sequence[bytes]], operations: list[Operation], reply: Any
    ) -> None:
        now_s = self.world.timeline.now_s
        if isinstance(reply, ServerError):
            refusals = REFUSALS if len(operations) == 1 else REFUSALS_OF_PARTS
            is_refused = reply.partition(b" ")[0] in refusals
            for operation in operations:
                self.history.failed(operation, bytes(reply), is_refused=is_refused)
            self.world.fired["refused operation" if is_refused else "error reply"] += 1
            return
        if isinstance(reply, list) and asked[0][0] == b"EXEC":
            errors = [each for each in reply if isinstance(each, ServerError)]
            if errors:  # It has run, but for these.
                self.history.failed(operations[0], bytes(errors[0]), is_refused=False)
                return
        replies = reply if isinstance(reply, list) and asked[0][0] == b"GET" else None
        for number, operation in enumerate(operations):
            operation.ended_s = now_s
            self.history.answered(operation, reply if replies is None else replies[number])

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
            name = self._home or self._next_node or self.rng.choice(self.world.names)
            self._next_node = ""
            self._connection = self.world.connect(name, self.session, is_cluster=self.is_cluster)
            self._node = name
            self._reader = hiredis.Reader(replyError=_error)  # type: ignore[arg-type]
            if self._connection is None:
                await trio.sleep(self.rng.uniform(0, PAUSE_S))
            elif self.world.plan.consistency:
                words = [word.encode() for word in self.world.plan.consistency]
                self._connection.send(encode(b"KV.CONSISTENCY", *words))
                if await self._reply(self._connection) != b"OK":
                    self.leave()
        return self._connection

    def leave(self) -> None:
        """Close the connection; the next command makes another."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None


def _operations_of(args: Sequence[bytes]) -> list[Sequence[bytes]]:
    """What a command does, by key."""
    if args[0] == b"MGET":
        return [(b"GET", key) for key in args[1:]]
    if args[0] == b"MSET":
        pairs = zip(args[1::2], args[2::2], strict=True)
        return [(b"SET", key, value) for key, value in pairs]
    return [args]


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
