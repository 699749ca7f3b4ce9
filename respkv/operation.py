"""Operations: commands of clients on their way through the cluster, and the order of their replies.

An `Operation` is one command that needs other nodes: it runs here or at another node, may run again, and
ends with the bytes of its reply. `Pipeline` keeps those of one session in the order in which they came:
replies leave in that order, whatever is ready first, and it says whether the next command may start
before the earlier ones have ended.

Commands of one session overlap only where nobody can tell: plain SET, GET, MSET and MGET of different
keys, and a read of a key where all before it was executed here. A write waits for what was asked of
its key before: that may have to run again, and must not see it then. Everything else starts when the
earlier ones are on enough replicas, so that an element of a queue is never seen before what it names.

Core: no sockets; `respkv/dispatch.py` runs them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from enum import Enum
from typing import TYPE_CHECKING, Any, Final

from cluster.errors import ClusterError
from cluster.ring import NodeId
from cluster.round import Pending
from cluster.slot import DATABASE_COUNT, Key, Slot
from engine.store import Pins
from respkv.command import TABLE
from respkv.number import integer_or_none
from respkv.reply import Reply, encode
from respkv.session import Session, Transaction
from respkv.transaction import Call, Queued

if TYPE_CHECKING:
    from respkv.command import Command
    from respkv.context import Context
    from respkv.dispatch import Dispatch
    from respkv.pubsub import Message as PublishedMessage

OF_NO_SESSION: Final = frozenset(("SELECT", "PING", "ECHO", "TIME", "PUBLISH"))
OPERATIONS_MAX: Final = 1024  # Of one session at the same time.
Origin = tuple[NodeId, bytes]  # Who forwarded an operation, and its number there.


class Phase(Enum):
    """How far an operation has got that writes, and reads other rows as well."""

    FIRST = 0
    REFRESHING = 1  # All rows are being confirmed; nothing was written.
    REFRESHED = 2  # They are: now it may write.


class Operation(Pending):
    """One command. `data` is its encoded reply: as long as it waits for quorums, what it will be."""

    __slots__ = (
        "args",
        "command",
        "data",
        "db",
        "deadline_s",
        "dispatch",
        "hlc",
        "is_done",
        "is_forwarded",
        "is_plain",
        "is_resp3",
        "is_silent",
        "is_timed",
        "is_tracked",
        "keys",
        "messages",
        "now_ms",
        "number",
        "origin",
        "parent",
        "part",
        "phase",
        "pins",
        "quorums",
        "session",
        "slots",
        "started_ns",
        "target",
        "tried",
    )  # fmt: skip

    def __init__(
        self,
        dispatch: Dispatch,
        session: Session,
        command: Command,
        args: list[bytes],
        now_ms: int,
        deadline_s: float,
    ) -> None:
        super().__init__()
        self.dispatch = dispatch
        self.session = session
        self.command = command
        self.args = args
        self.db = session.db
        self.is_resp3 = session.is_resp3
        self.now_ms = now_ms
        self.deadline_s = deadline_s
        self.data = b""
        self.is_done = False
        self.is_forwarded = False  # From another node, which may have it done elsewhere, too.
        self.is_plain = False
        self.is_silent = False  # CLIENT REPLY: its reply is not sent.
        self.is_timed = False  # KV.WITH TIMEOUT: it ends at its deadline, whatever it waits for.
        self.quorums = dispatch.coordinator.quorums
        self.is_tracked = False  # For a client that may cache what it reads.
        self.slots: tuple[Slot, ...] = ()
        self.keys: tuple[Key, ...] = ()  # Of a plain command. SELECT waits for all of them.
        self.pins: Pins = {}
        self.messages: list[PublishedMessage] = []  # What it publishes when it is done.
        self.origin: Origin | None = None
        self.parent: Any = None  # A split operation that waits for this one.
        self.phase = Phase.FIRST
        self.part = 0  # Which of its parts it is.
        self.number = 0
        self.target: NodeId | None = None  # Where it was forwarded.
        self.tried: tuple[NodeId, ...] = ()
        self.hlc = 0  # Of a write that may have been made before: its timestamp then.
        self.started_ns = 0

    @property
    def may_have_run(self) -> bool:
        """Whether an earlier attempt may last: then no error may say that nothing was done."""
        return bool(self.hlc) or (self.is_blind and 0 <= self.written < self.attempt)

    @property
    def may_be_twice(self) -> bool:
        """See `Pending`. Who forwarded it may have it done elsewhere as well, once this node is late."""
        return self.is_forwarded or self.may_have_run

    def settled(self) -> None:
        self.dispatch.finish(self)

    def stale(self) -> None:
        self.dispatch.execution.run_again(self)

    def failed(self, error: ClusterError) -> None:
        self.dispatch.fail(self, error)

    @property
    def transaction(self) -> Transaction | None:
        """Of an EXEC, which runs in a session of its own."""
        return None

    @property
    def commands(self) -> Sequence[Queued]:
        """What it runs: one command, those of an EXEC, or those of a `Unit`."""
        return ((self.command, self.args),)

    @property
    def is_write(self) -> bool:
        return self.command.is_write

    def run(self, context: Context, call: Call) -> Reply:
        """Run it on the bound context. Raises ReplyError, PageFault."""
        return call(self.command, self.args)

    def count(self, elapsed_ns: int) -> None:
        """It was executed here."""
        self.command.count(1, elapsed_ns)
        self.dispatch.node.runner.served_total += 1

    def encoded(self, reply: Reply, *, is_resp3: bool) -> bytes:
        """The bytes that answer it."""
        return encode(reply, resp3=is_resp3)


class ExecOperation(Operation):
    """An EXEC, with what MULTI had queued and WATCH had seen. It runs in a session of its own each time."""

    __slots__ = ("_transaction", "watches")

    def __init__(
        self, dispatch: Dispatch, session: Session, now_ms: int, deadline_s: float
    ) -> None:
        super().__init__(dispatch, session, TABLE.commands["EXEC"], [b"EXEC"], now_ms, deadline_s)
        assert session.transaction is not None
        self._transaction = session.transaction
        self.watches = dict(session.watches)

    @property
    def transaction(self) -> Transaction:
        return self._transaction

    @property
    def commands(self) -> Sequence[Queued]:
        return self._transaction.commands

    @property
    def is_write(self) -> bool:
        return any(command.is_write for command, _ in self._transaction.commands)

    @property
    def is_of_session(self) -> bool:
        """Whether a command is in it that looks at the client's session, or at the node: CLIENT, INFO, ..."""
        return any(
            not command.keys and command.name not in OF_NO_SESSION
            for command, _ in self._transaction.commands
        )


class Pipeline:
    """The operations of one session that have not been answered, in order."""

    __keys__ = (
        "_other_count",
        "_keys",
        "answered_count",
        "begun_count",
        "operations",
    )

    def __init__(self) -> None:
        self.operations: deque[Operation] = deque()
        self.begun_count = self.answered_count = 0  # Of all that ever were.
        self._keys: dict[Key, int] = {}
        self._other_count = 0  # Those that are not plain.

    def may_start(self, keys: tuple[Key, ...], *, is_plain: bool) -> bool:
        """Whether a command on these keys may run before the earlier ones have ended.

        Not if one of them is on a key of it, though both only read: the earlier one may have to run again, and
        would show what came after the later one.
        """
        if not self.operations:
            return True
        if len(self.operations) >= OPERATIONS_MAX:
            return False
        if not is_plain or self._other_count:
            return False
        taken = self._keys
        return not taken or not any(key in taken for key in keys)

    @property
    def is_full(self) -> bool:
        return len(self.operations) >= OPERATIONS_MAX

    def count_plain(self, keys: list[Key]) -> int:
        """How many plain commands of one name, the first on these keys in this order, may start now, together.

        Among themselves they may be on one key: who begins them together answers for that (`Run`).
        """
        if self._other_count:
            return 0
        taken = self._keys
        if taken:
            for count, key in enumerate(keys):
                if key in taken:
                    return count
        return len(keys)

    def add(self, operation: Operation) -> None:
        self.operations.append(operation)
        self.begun_count += 1
        for key in operation.keys:
            self._keys[key] = self._keys.get(key, 0) + 1
        self._other_count += not operation.is_plain

    def take_done(self) -> list[bytes]:
        """The replies that may leave now."""
        operations = self.operations
        ready = []
        while operations and operations[0].is_done:
            operation = operations.popleft()
            self.answered_count += 1
            if not operation.is_silent:
                ready.append(operation.data)
            for key in operation.keys:
                _count_down(self._keys, key)
            self._other_count -= not operation.is_plain
        return ready


def _count_down(counts: dict[Key, int], key: Key) -> None:
    if counts[key] == 1:
        del counts[key]
    else:
        counts[key] -= 1


def is_plain_command(command: Command, args: list[bytes]) -> bool:
    """GET, MGET, MSET, and SET whose effect does not depend on what was there."""
    name = command.name
    if name == "SET":
        return len(args) == 3 or not any(
            option.upper() in (b"NX", b"XX", b"GET", b"KEEPTTL") for option in args[3:]
        )
    return name in ("GET", "MGET", "MSET")


def is_idempotent(operation: Operation) -> bool:
    return operation.is_plain or not operation.is_write


def by_database(operation: Operation) -> Iterator[tuple[int, Command, list[bytes]]]:
    """The commands of an operation, each with the database that is selected behind it."""
    db = operation.db
    for queued, args in operation.commands:
        if queued.name == "SELECT":
            number = integer_or_none(args[1])
            if number is not None and 0 <= number < DATABASE_COUNT:
                db = number
        yield db, queued, args
