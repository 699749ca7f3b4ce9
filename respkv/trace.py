"""KV.TRACE: runs a command as usual, and answers its reply with what happened on the way.

    reply          what the command answered
    microseconds   from its arrival until its reply could leave
    forwarded      node, slots, at_us, answer, answered_us                to which nodes it was sent
    executed       node, slots, runs, began_us, quorum_us, log_us         where it ran
    asked          by, node, what, slots, run, at_us, answer, answered_us what replicas were asked

All times are microseconds since the command came to the node that was asked. `what` is `write`, `read` (do you
hold the same?) or `repair` (here is the whole row). Answers of replicas are `taken`, `refused` (it holds what
the writer had not seen), `same`, `state` (it holds something else, and sent it), `cannot` (incomplete, or its
data cannot be read); nil: it had not answered when the reply left. `quorum_us`: enough had. `log_us`: this
node's own log was as safe as its configuration asks for; the reply leaves when both have come. `runs` counts
on when a command had to begin again, and `run` says for the sake of which run a replica was asked.

It does not change what is done: the command is an `Operation` as without KV.TRACE, and may share its messages
with others. Only groups (`respkv/grouping.py`) do without it.

Nothing of this costs anything while no command is traced: what is watched is found by its `parent`, a
`Traced`; and only as long as there is one, the coordinator's messages and the answers to them come by here
(`Tracing._watch`).

A command travels as FORWARD.TRACE (`respkv/forwarding.py`), and its answer is a `Told` in MessagePack: the
reply, and the trace of the node that executed it. Clocks of two machines cannot be compared to the
microsecond, so its times count from its arrival there, and are moved to the middle of the time that the way
there and back took.

Core: time comes from the node's clock.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final

import msgspec

from cluster.delta_wire import pack_place, unpack_place
from cluster.errors import ClusterError
from cluster.quorum_messages import ACK, NOT, READ, REPAIR, SAME, STATES, WRITE
from cluster.ring import NodeId
from cluster.round import Place
from cluster.slot import Slot
from respkv.command import TABLE, Command, Flag
from respkv.operation import Operation
from respkv.reply import Encoded, Reply, ReplyError, c_string, encode
from respkv.session import IN_MULTI, MONITORING, UNAUTHENTICATED, Session

if TYPE_CHECKING:
    from cluster.transport import Message, Transport
    from respkv.peers import Peers

NAME: Final = b"KV.TRACE"
ACTIVE_MAX: Final = 64  # Traced commands at a time.
ANSWERS: Final = (ACK, SAME, STATES, NOT)
QUESTIONS: Final = {WRITE: "write", READ: "read", REPAIR: "repair"}
UNUSUAL_MODES: Final = IN_MULTI | UNAUTHENTICATED | MONITORING
# What the cluster port answers instead, as without KV.TRACE.
REDIRECTIONS: Final = (b"-MOVED ", b"-CROSSSLOT ", b"-CLUSTERDOWN ")

# Commands that stand for the one in them.
WRAPPERS: Final = frozenset(("KV.WITH",))

NESTED: Final = ReplyError("ERR KV.TRACE cannot trace itself")
TOO_MANY: Final = ReplyError("BUSY too many commands are being traced: try again")
NOT_TRACED: Final = (
    b"ERR KV.TRACE takes one command on keys that answers at once, and '%b' is none: it %b"
)


class Forwarded(msgspec.Struct, array_like=True):
    """The command was sent to another node. `answer`: executed, refused, lost; empty while there is none."""

    node: NodeId
    slots: list[Slot]
    at_us: int
    answer: str = ""
    answered_us: int = -1


class Executed(msgspec.Struct, array_like=True):
    """The command ran at a node. Times are -1 while it has not come so far."""

    node: NodeId
    slots: list[Slot]
    runs: int = 0
    began_us: int = -1
    quorum_us: int = -1
    log_us: int = -1


class Asked(msgspec.Struct, array_like=True):
    """One message to one replica for the sake of the command."""

    by: NodeId
    node: NodeId
    what: str
    slots: list[Slot]
    run: int
    at_us: int
    answer: str = ""
    answered_us: int = -1


class Told(msgspec.Struct, array_like=True):
    """What a node answers to a forwarded KV.TRACE."""

    reply: bytes
    elapsed_us: int
    executed: list[Executed]
    asked: list[Asked]


class Watch:
    """An operation whose course is written down: of one slot, or of the slots that one node executes."""

    __slots__ = (
        "executed", "forwarded", "forwarded_ns", "log_position", "logged_ns", "operation", "places",
    )  # fmt: skip

    def __init__(self, operation: Operation) -> None:
        self.operation = operation
        self.forwarded: list[Forwarded] = []
        self.executed: Executed | None = None  # If it ran here.
        self.forwarded_ns = 0
        self.places: dict[bytes, None] = {}  # The rows that replicas were asked for.
        self.log_position = 0  # Of the run that began at `logged_ns`.
        self.logged_ns = 0

    @property
    def has_begun_here(self) -> bool:
        """Whether it runs or ran here. Forwarding notes a start as well."""
        return self.operation.started_ns not in (0, self.forwarded_ns)

    @property
    def is_written(self) -> bool:
        """Whether `log_position` is that of its last run."""
        return self.logged_ns == self.operation.started_ns


class Traced(Operation):
    """A KV.TRACE in its session's pipeline, or forwarded by another node; `inner` is the command itself."""

    __slots__ = ("asked", "told", "watches")

    def __init__(self, tracing: Tracing, inner: Operation) -> None:
        args = [NAME, *inner.args]
        super().__init__(
            inner.dispatch, inner.session, tracing.command, args, inner.now_ms, inner.deadline_s
        )
        self.started_ns = tracing.clock_ns()
        self.watches: dict[Operation, Watch] = {inner: Watch(inner)}
        self.asked: list[Asked] = []
        self.told: list[Told] = []  # By nodes that executed it.
        inner.parent = self

    @property
    def inner(self) -> Operation:
        return next(iter(self.watches))

    def take(self, part: int, data: bytes) -> None:
        """The command has its answer, which may leave when the log allows it."""
        self.dispatch.tracing.look()

    def failed(self, error: ClusterError) -> None:
        raise AssertionError("it waits for nothing by itself")


class Tracing:
    """One per node of a cluster."""

    def __init__(self, peers: Peers) -> None:
        self._peers = peers
        self.node = peers.node
        self._coordinator = peers.coordinator
        self._dispatch = peers.dispatch
        self._topology = peers.topology
        self._transport = peers.coordinator.transport
        self.command: Command = TABLE.commands["KV.TRACE"]
        self.clock_ns: Callable[[], int] = peers.node.clock_ns
        self.active: dict[Traced, None] = {}
        self.is_wanted = False  # The command that begins now is to be traced.
        self._ended: list[Traced] = []
        # Messages that an answer is expected to, by number and peer.
        self._asked: dict[tuple[bytes, NodeId], list[tuple[Traced, Asked, Watch, list[int]]]] = {}

    # Commands

    def take(
        self, session: Session, command: Command, args: list[bytes], now_ms: int
    ) -> bool | None:
        """Begin a KV.TRACE of a client; False if earlier commands have to end first, None if it is none for here."""
        if command is not self.command or len(args) < 2:
            return None
        if session.mode & UNUSUAL_MODES:
            return None
        pipeline = session.pipeline
        if pipeline is not None and pipeline.operations:
            return False
        refusal = TOO_MANY if len(self.active) >= ACTIVE_MAX else _refusal(args[1:])
        if refusal is not None:
            self.node.runner.long_way.refuse(session, command, refusal)
            return True
        self.is_wanted = True
        try:
            return self._dispatch.take(session, args[1:], now_ms)
        finally:
            self.is_wanted = False

    def adopt(self, operation: Operation) -> Traced:
        """What stands for the command in its session's pipeline, when it was asked for with KV.TRACE."""
        traced = Traced(self, operation)
        self._dispatch.in_flight += 1
        self._watch(traced)
        return traced

    def adopt_forwarded(self, operation: Operation) -> None:
        """The same for a command that another node has forwarded."""
        origin, operation.origin = operation.origin, None
        self.adopt(operation).origin = origin

    # What happens to them

    def forward(self, traced: Traced, operation: Operation, target: NodeId) -> None:
        """A traced command is sent to another node."""
        watch = self._watch_of(traced, operation)
        watch.forwarded_ns = operation.started_ns
        watch.forwarded.append(Forwarded(target, list(operation.slots), self._us(traced)))

    def answered(self, traced: Traced, operation: Operation, data: bytes) -> bytes:
        """Another node has executed it: its reply. Raises ValueError if that is not what a node sends."""
        forwarded = self._watch_of(traced, operation).forwarded[-1]
        forwarded.answer, forwarded.answered_us = "executed", self._us(traced)
        if data.startswith(b"-"):
            return data
        told = msgspec.msgpack.decode(data, type=Told)
        way_us = forwarded.answered_us - forwarded.at_us - told.elapsed_us
        _move(told, forwarded.at_us + max(0, way_us // 2))
        traced.told.append(told)
        return told.reply

    def not_answered(self, traced: Traced, operation: Operation, *, is_executed: bool) -> None:
        """The node that it was forwarded to has refused it, or is lost or late (`is_executed`: it may have run)."""
        forwarded = self._watch_of(traced, operation).forwarded[-1]
        forwarded.answer = "lost" if is_executed else "refused"
        forwarded.answered_us = self._us(traced)

    def _watch_of(self, traced: Traced, operation: Operation) -> Watch:
        watch = traced.watches.get(operation)
        if watch is None:
            watch = traced.watches[operation] = Watch(operation)
        return watch

    def _us(self, traced: Traced) -> int:
        return (self.clock_ns() - traced.started_ns) // 1000

    # The coordinator's messages

    def _watch(self, traced: Traced) -> None:
        self.active[traced] = None
        if len(self.active) == 1:
            self._coordinator.transport = _Watched(self, self._transport)
            self._peers.set_part(ANSWERS, self._receive)

    def _unwatch(self, traced: Traced) -> None:
        del self.active[traced]
        if not self.active:
            self._asked.clear()
            self._coordinator.transport = self._transport
            self._peers.set_part(ANSWERS, self._coordinator.receive)

    def sent(self, peer: NodeId, message: Sequence[bytes]) -> None:
        """The coordinator sends a message, perhaps for the sake of a traced command."""
        what = QUESTIONS.get(message[0])
        if what is None:
            return
        rounds = self._coordinator.reads if what == "read" else self._coordinator.writes
        round_ = rounds.get(int(message[1]))
        mine: dict[Operation, tuple[Traced, int, dict[int, Place]]] = {}
        for index, (op, attempt, slot, row, _) in enumerate(
            () if round_ is None else round_.entries
        ):
            if isinstance(op, Operation) and (traced := traced_by(op)) is not None:
                mine.setdefault(op, (traced, attempt, {}))[2][index] = (slot, row)
        found = [
            (traced, self._watch_of(traced, op), attempt, places)
            for op, (traced, attempt, places) in mine.items()
        ]
        if what == "repair" and not found:  # Nobody waits for it, but a row that was asked for.
            place = unpack_place(message[2])
            found = [
                (traced, watch, watch.operation.attempt, {0: place})
                for traced in self.active
                for watch in traced.watches.values()
                if message[2] in watch.places
            ]
        for traced, watch, attempt, places in found:
            slots = list(dict.fromkeys(slot for slot, _ in places.values()))
            me = self._topology.me
            asked = Asked(me, peer, what, slots, attempt + 1, self._us(traced))
            traced.asked.append(asked)
            watch.places.update((pack_place(*place), None) for place in places.values())
            key = (message[1], peer)
            self._asked.setdefault(key, []).append((traced, asked, watch, list(places)))

    def _receive(self, peer: NodeId, message: Message) -> bool:
        if len(message) > 1:
            for traced, asked, watch, indexes in self._asked.pop((message[1], peer), ()):
                if traced in self.active:
                    asked.answer = _answer(message, watch, indexes)
                    asked.answered_us = self._us(traced)
        is_taken = self._coordinator.receive(peer, message)
        self.look()
        return is_taken

    # The end

    def logged(self, position: int) -> None:
        """A tick has ended, and the log is written up to `position`."""
        for traced in self.active:
            self._add_parts(traced)
            for watch in traced.watches.values():
                if watch.has_begun_here and not watch.is_written:
                    watch.logged_ns, watch.log_position = watch.operation.started_ns, position
        if position > self.node.commit.releasable:
            self.node.commit.want_sync()  # No reply is held back yet that would ask for it.
        self.released()

    def released(self) -> None:
        """The log may be safer than before. What has ended by now is answered in the next tick:

        a repair that its end has caused leaves in this one.
        """
        self.look()
        self._ended = [traced for traced in self.active if self._is_over(traced)]

    def look(self) -> None:
        """Note what has come since the last look."""
        for traced in self.active:
            self._add_parts(traced)
            for watch in traced.watches.values():
                self._look_at(traced, watch)

    def _look_at(self, traced: Traced, watch: Watch) -> None:
        operation = watch.operation
        if not watch.has_begun_here:
            return
        executed = watch.executed
        if executed is None:
            executed = watch.executed = Executed(self._topology.me, list(operation.slots))
        executed.began_us = (operation.started_ns - traced.started_ns) // 1000
        executed.runs = operation.attempt + 1
        if operation.is_done and executed.quorum_us < 0:
            executed.quorum_us = self._us(traced)
        if not watch.is_written:
            executed.log_us = -1
        elif executed.log_us < 0 and watch.log_position <= self.node.commit.releasable:
            executed.log_us = self._us(traced)

    def _add_parts(self, traced: Traced) -> None:
        for part in getattr(traced.inner, "parts", ()):
            self._watch_of(traced, part)

    @property
    def has_ended(self) -> bool:
        return bool(self._ended)

    def _is_over(self, traced: Traced) -> bool:
        return traced.inner.is_done and all(
            not watch.has_begun_here or (watch.executed is not None and watch.executed.log_us >= 0)
            for watch in traced.watches.values()
        )

    def work(self) -> None:
        """Answer what has ended. Within a tick, before the log is written."""
        ended, self._ended = self._ended, []
        for traced in ended:
            self._unwatch(traced)
            elapsed_ns = self.clock_ns() - traced.started_ns
            traced.data = self._data_of(traced)
            traced.is_over = True
            self.command.count(1, elapsed_ns)
            if traced.origin is None:
                self._dispatch.show(traced, elapsed_ns)
            self._dispatch.release(traced)
            traced.inner.parent = None  # Who holds each other waits for the collector.

    def _data_of(self, traced: Traced) -> bytes:
        if traced.origin is not None:
            return self._told(traced)
        data = traced.inner.data
        is_redirected = traced.session.is_cluster and data.startswith(REDIRECTIONS)
        return data if is_redirected else self._shown(traced)

    def _told(self, traced: Traced) -> bytes:
        executed = [each.executed for each in traced.watches.values() if each.executed is not None]
        told = Told(traced.inner.data, self._us(traced), executed, traced.asked)
        return msgspec.msgpack.encode(told)

    def _shown(self, traced: Traced) -> bytes:
        forwarded = [each for watch in traced.watches.values() for each in watch.forwarded]
        executed = [each.executed for each in traced.watches.values() if each.executed is not None]
        executed += [each for told in traced.told for each in told.executed]
        asked = traced.asked + [each for told in traced.told for each in told.asked]
        asked.sort(key=lambda each: (each.at_us, each.node))
        reply: Reply = {
            b"reply": Encoded(traced.inner.data),
            b"microseconds": self._us(traced),
            b"forwarded": [_map(each) for each in forwarded],
            b"executed": [_map(each) for each in executed],
            b"asked": [_map(each) for each in asked],
        }
        return encode(reply, resp3=traced.is_resp3)


class _Watched:
    """The coordinator's way out while something is traced. See `cluster.transport.Transport`."""

    def __init__(self, tracing: Tracing, transport: Transport) -> None:
        self._tracing = tracing
        self._transport = transport
        self.send_bulk = transport.send_bulk
        self.is_connected = transport.is_connected
        self.queued_bytes = transport.queued_bytes
        self.flush = transport.flush

    def send(self, peer: NodeId, message: Sequence[bytes]) -> None:
        self._tracing.sent(peer, message)
        self._transport.send(peer, message)


def traced_by(operation: Operation) -> Traced | None:
    """The KV.TRACE that an operation is a part of."""
    parent = operation.parent
    while parent is not None and not isinstance(parent, Traced):
        parent = getattr(parent, "parent", None)  # What another node waits for has none.
    return parent


def _refusal(args: list[bytes]) -> ReplyError | None:
    """Why a command cannot be traced. What is wrong with it otherwise, it says itself."""
    command = TABLE.lookup(args)
    if command is None or command.name in WRAPPERS:
        return None
    if command.name.encode() == NAME:
        return NESTED
    if Flag.CONTROL in command.flags:
        reason = b"belongs to a transaction"
    elif Flag.BLOCKING in command.flags:
        reason = b"may wait for others"
    elif not command.keys:
        reason = b"names no key"
    else:
        return None
    return ReplyError(NOT_TRACED % (c_string(args[0]).lower(), reason))


def _answer(message: Message, watch: Watch, indexes: list[int]) -> str:
    """What a replica has answered, as far as it is about one command."""
    verb = message[0]
    if verb == ACK:
        return "refused" if any(key in watch.places for key in message[2::2]) else "taken"
    if verb == SAME:
        return "same"
    if verb == STATES:
        return "state" if any(b"%d" % index in message[2::2] for index in indexes) else "same"
    return "cannot"


def _move(told: Told, by_us: int) -> None:
    """Put the times of another node's trace in the place where they belong here."""
    for executed in told.executed:
        executed.began_us += by_us
        executed.quorum_us += by_us if executed.quorum_us >= 0 else 0
        executed.log_us += by_us if executed.log_us >= 0 else 0
    for asked in told.asked:
        asked.at_us += by_us
        asked.answered_us += by_us if asked.answered_us >= 0 else 0


def _map(each: Forwarded | Executed | Asked) -> Reply:
    """One line of the trace. What did not happen is nil."""
    shown: dict[bytes, Reply] = {}
    for name in each.__struct_fields__:
        value = getattr(each, name)
        if isinstance(value, str):
            value = value.encode() or None
        elif value == -1:
            value = None
        shown[name.encode()] = value
    return shown
