"""The dispatch: where a member of a cluster has each command executed, and when its reply leaves.

A single node has none; there the runner does everything. Here a command that touches keys becomes an
`Operation` (`respkv/operation.py`), and goes one of these ways:

    execution    here: run the handler, commit, wait for quorums      respkv/execution.py
    forwarding   at the slot's coordinator: wait for its reply        respkv/forwarding.py
    splitting    MGET, MSET, DEL, EXISTS, UNLINK and TOUCH on several slots: an operation for each part
    grouping     plain GETs and SETs, many at once                    respkv/grouping.py
    units        others of one pipeline, many at once                 respkv/unit.py
    spreading    all others on keys that no single node holds        respkv/spread.py
    gathering    the whole keyspace: SCAN, KEYS, FLUSHALL ...         respkv/gather.py

Reads are executed by the node that the client is connected to, if it is a replica of the slot; writes by
the slot's coordinator, so that writers of a key meet at one place. Replies leave in the order of their
commands. Commands without keys are the runner's, once all earlier ones of the session have ended.

Core: time is an argument; messages go through the transport seam.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Final

from cluster.batch import Quorums
from cluster.coordinator import Coordinator
from cluster.errors import ClusterError
from cluster.ring import NodeId
from cluster.slot import Slot, slot_of
from cluster.topology import Topology
from cluster.transport import Transport
from respkv.cluster_view import redirect, slots_of
from respkv.command import TABLE, Command, Flag
from respkv.consistency import Consistency, Request, Scope, decide, unwrapped
from respkv.execution import Execution
from respkv.forwarding import Forwarding
from respkv.grouping import RUN_MIN, Grouping
from respkv.operation import ExecOperation, Operation, Phase, Pipeline, is_plain_command
from respkv.refusal import (
    IN_TRANSACTION,
    NO_REPLICA,
    TIMED_OUT,
    TOO_BUSY,
    TOO_LARGE,
    doubted,
    text_of,
)
from respkv.reply import ReplyError
from respkv.runner import FIND
from respkv.session import (
    CLOSING,
    CONSISTENT,
    IN_MULTI,
    REPLY_OFF,
    REPLY_SKIP,
    TRACKING,
    WAITING,
    Session,
)
from respkv.spread import Spreads
from respkv.transaction import end_transaction
from respkv.unit import Unit, Units
from respkv.waits import note_written

if TYPE_CHECKING:
    from respkv.gather import Gather
    from respkv.node import Node
    from respkv.trace import Tracing

SPLITTABLE: Final = frozenset(("MGET", "MSET", "DEL", "EXISTS", "UNLINK", "TOUCH"))
RESULT_MODES: Final = REPLY_OFF | REPLY_SKIP
HARMLESS_MODES: Final = (
    TRACKING | RESULT_MODES | CONSISTENT
)  # Commands are executed as without them.


class SplitOperation(Operation):
    """A command on several slots: its parts answer for it."""

    __slots__ = ("_left", "parts")

    parts: list[Operation]
    _left: int  # Of the parts, those that are not done.

    def begin(self, parts: list[Operation]) -> None:
        """It waits for these."""
        self.parts = parts
        self._left = len(parts)

    def part_done(self) -> None:
        self._left -= 1
        if not self._left:
            for part in self.parts:
                part.parent = None  # Who holds each other waits for the collector.
            self.data = _joined(self.command.name, [part.data for part in self.parts])
            self.is_over = True
            self.dispatch.release(self)


class Dispatch:
    """One per node of a cluster."""

    gather: Gather  # Commands on the whole keyspace; `respkv/peers.py` sets it.
    tracing: Tracing  # KV.TRACE; set there too.

    def __init__(
        self,
        node: Node,
        topology: Topology,
        coordinator: Coordinator,
        transport: Transport,
        *,
        timeout_s: float,
        retries_max: int,
        in_flight_bytes_max: int,
        message_bytes_max: int,
        first_id: int,
        promise: Callable[[NodeId, Sequence[bytes]], None],
    ) -> None:
        self.promise = promise
        self.node = node
        self.topology = topology
        self.coordinator = coordinator
        self.transport = transport
        self.timeout_s = timeout_s
        self.in_flight_bytes_max = in_flight_bytes_max
        self.message_bytes_max = message_bytes_max
        self.in_flight = 0
        quorums = coordinator.quorums
        self.reads_anywhere = quorums.reads_anywhere
        self.policies = node.policies
        self.scope = Scope.of(node.config)
        self._gate = node.runner.gate
        self._usual = Consistency(quorums.r, quorums.w)
        self._with = TABLE.commands["KV.WITH"]
        self._timed: dict[Operation, None] = {}  # Those of KV.WITH TIMEOUT.
        self.execution = Execution(self, retries_max)
        self.forwarding = Forwarding(self, first_id)
        self.grouping = Grouping(self)
        self.units = Units(self)
        self.spreads = Spreads(self)
        self.serve_lone = self.grouping.serve_lone  # Hot.

    # Sessions

    def serve(self, session: Session, commands: list[list[bytes]], now_ms: int) -> None:
        """Execute commands of one session in order. What has to wait stays in its queue."""
        if session.mode & CLOSING:
            return
        queue = session.queue
        queue.extend(commands)
        budget = self.node.config.client.commands_per_tick_max
        while queue and not session.mode & (WAITING | CLOSING):
            args = queue.popleft()
            if len(queue) >= RUN_MIN - 1 and len(args) <= 3:
                count = self.grouping.take_run(session, args, now_ms)
                if count:
                    budget -= count
                    if budget <= 0:
                        return
                    continue
            if queue and (count := self.units.take_run(session, args, now_ms)):
                budget -= count
                if budget <= 0:
                    return
                continue
            if not self.take(session, args, now_ms):
                queue.appendleft(args)
                session.mode |= WAITING
                return
            if session.is_asking and not session.mode & IN_MULTI and args[0].upper() != b"ASKING":
                session.is_asking = False
            budget -= 1
            if budget <= 0:
                return  # The front brings it back in the next tick.

    def take(self, session: Session, args: list[bytes], now_ms: int) -> bool:
        """Begin a command; False if earlier ones have to end first."""
        command = FIND(args[0]) or TABLE.find(args[0])
        if command is not None and command.subcommands:
            command = TABLE.lookup(args)
        if command is self._with and not session.mode & ~HARMLESS_MODES:
            return self._take_with(session, command, args, now_ms)
        is_exec = command is not None and command.name == "EXEC"
        if self._gate.is_paused is not None and self._must_pause(session, command):
            return False
        mode = session.mode & ~HARMLESS_MODES
        if command is None or mode or not (command.is_keyed or is_exec):
            if is_exec and mode == IN_MULTI and len(args) == 1:
                return self._take_exec(session, now_ms)
            if command is not None and (
                (taken := self.gather.take(session, command, args, now_ms)) is not None
                or (taken := self.tracing.take(session, command, args, now_ms)) is not None
            ):
                return taken
            pipeline = session.pipeline
            if pipeline is not None and pipeline.operations:
                return False
            self._gate.serve_here(session, [args], now_ms)
            return True
        count = len(args)
        arity = command.arity
        if (count != arity and (arity >= 0 or count < -arity)) or is_exec:
            if session.pipeline is not None and session.pipeline.operations:
                return False
            self._gate.serve_here(session, [args], now_ms)  # It says what is wrong.
            return True
        return self._take_keyed(session, command, args, now_ms)

    def _take_with(
        self, session: Session, command: Command, args: list[bytes], now_ms: int
    ) -> bool:
        """KV.WITH: the command in it, with what is asked for it."""
        try:
            request = self.request_of(args)
        except ReplyError as error:
            if session.pipeline is not None and session.pipeline.operations:
                return False
            self.node.runner.long_way.refuse(session, command, error)
            return True
        if self._must_pause(session, request.command):
            return False
        return self._take_keyed(session, request.command, request.args, now_ms, request)

    def request_of(self, args: list[bytes]) -> Request:
        """What a KV.WITH asks. Raises ReplyError."""
        return unwrapped(args, self.scope, self.node.config.cluster.timeout_ms)

    def quorums_for(
        self, session: Session, keys: Iterable[bytes], request: Consistency | None = None
    ) -> Quorums:
        """How many replicas a command on these keys needs."""
        if self.policies is None and session.consistency is None and request is None:
            return self.coordinator.quorums
        found = decide(self._usual, self.policies, keys, session.consistency, request)
        return self.coordinator.quorums_of(found.r, found.w)

    @staticmethod
    def reads_here(quorums: Quorums, session: Session) -> bool:
        """Whether any replica may answer a read. With R + W <= N it would miss what was acknowledged."""
        return quorums.reads_anywhere or session.is_readonly

    def _must_pause(self, session: Session, command: Command | None) -> bool:
        """CLIENT PAUSE: whether a command has to wait for its end."""
        gate = self._gate
        if command is None or gate.is_paused is None or not gate.is_paused(command, session):
            return False
        if session not in gate.held_back:
            gate.held_back.append(session)
        return True

    def _take_keyed(
        self,
        session: Session,
        command: Command,
        args: list[bytes],
        now_ms: int,
        request: Request | None = None,
    ) -> bool:
        positions = command.key_positions(args)
        if len(positions) == 1:
            slots: tuple[Slot, ...] = (slot_of(args[positions[0]]),)
        else:
            slots = tuple(dict.fromkeys(slot_of(args[at]) for at in positions))
        is_plain = is_plain_command(command, args)
        wanted = None if request is None else request.consistency
        quorums = self.coordinator.quorums
        if self.policies is not None or session.consistency is not None or wanted is not None:
            quorums = self.quorums_for(session, [args[at] for at in positions], wanted)
        anywhere = self.reads_here(quorums, session)
        target = self.place(command, slots, args, positions, (), anywhere=anywhere)
        is_local = target == self.topology.me
        pipeline = session.pipeline
        if pipeline is None:
            pipeline = session.pipeline = Pipeline()
        is_split = len(slots) > 1 and not is_local and command.name in SPLITTABLE
        keys = tuple([args[at] for at in positions]) if is_plain else ()
        if not pipeline.may_start(keys, is_plain=is_plain):
            return False
        deadline_s = self.node.now_s + self.timeout_s
        kind = SplitOperation if is_split else Operation
        operation = kind(self, session, command, args, now_ms, deadline_s)
        operation.slots = slots
        operation.keys = keys
        operation.is_plain = is_plain
        operation.is_blind = is_plain and command.is_write
        operation.quorums = quorums
        self.admit(session, pipeline, operation)
        if request is not None and request.timeout_ms:
            operation.deadline_s = self.node.now_s + request.timeout_ms / 1000
            operation.is_timed = True
            self._timed[operation] = None
        if command.is_write:
            note_written(session, slots)
        if session.is_cluster and (
            len(slots) != 1 or self.topology.coordinators[slots[0]] != self.topology.me
        ):
            refusal = redirect(session, command, slots, self.topology)
            if refusal is not None:
                self.end(operation, refusal)
                return True
        if self.coordinator.in_flight_bytes > self.in_flight_bytes_max:
            self.end(operation, TOO_BUSY)
        elif not is_local and sum(map(len, args)) > self.message_bytes_max:
            self.end(operation, TOO_LARGE)
        elif isinstance(operation, SplitOperation):
            self._split(operation, positions, wanted)
        else:
            self.start(operation, target)
        return True

    def admit(self, session: Session, pipeline: Pipeline, operation: Operation) -> None:
        if self.tracing.is_wanted:
            operation = self.tracing.adopt(operation)
        session.last_command = operation.command
        if session.mode & RESULT_MODES:
            operation.is_silent = True
            session.mode &= ~REPLY_SKIP
        if session.mode & TRACKING:
            operation.is_tracked = self.node.tracking.begins(session, operation.command)
        pipeline.add(operation)
        self.in_flight += 1

    def redirection(
        self, session: Session, command: Command, args: list[bytes]
    ) -> ReplyError | None:
        """What a command of the cluster port is answered because of its keys, if another node has them."""
        return redirect(session, command, slots_of(session, command, args), self.topology)

    def _take_exec(self, session: Session, now_ms: int) -> bool:
        pipeline = session.pipeline
        if pipeline is None:
            pipeline = session.pipeline = Pipeline()
        if pipeline.operations:
            return False
        transaction = session.transaction
        assert transaction is not None
        slots: dict[Slot, None] = {}
        for command, args in transaction.commands:
            slots.update((slot_of(args[at]), None) for at in command.key_positions(args))
        slots.update((slot_of(key), None) for _, key in session.watches)
        if transaction.is_broken or not slots:
            self._gate.serve_here(session, [[b"EXEC"]], now_ms)
            return True
        operation = ExecOperation(self, session, now_ms, self.node.now_s + self.timeout_s)
        operation.slots = tuple(slots)
        keys = [
            args[at] for command, args in transaction.commands for at in command.key_positions(args)
        ]
        operation.quorums = self.quorums_for(session, [*keys, *(key for _, key in session.watches)])
        self.admit(session, pipeline, operation)
        note_written(session, operation.slots)
        refusal = (
            self.redirection(session, operation.command, operation.args)
            if session.is_cluster
            else None
        )
        end_transaction(session)
        target = self.place_exec(operation)
        if refusal is not None:
            self.end(operation, refusal)
        elif target not in (None, self.topology.me) and operation.is_of_session:
            self.end(operation, IN_TRANSACTION)
        else:
            self.start(operation, target)
        return True

    # Where

    def place(
        self,
        command: Command,
        slots: tuple[Slot, ...],
        args: list[bytes],
        positions: list[int],
        tried: tuple[NodeId, ...],
        *,
        anywhere: bool,
    ) -> NodeId | None:
        """The node that executes a command; None if it has to be split, or no node can.

        `anywhere`: a read may be answered by any replica.
        """
        topology = self.topology
        me = topology.me
        is_read_here = anywhere and not command.is_write and me not in tried
        if is_read_here and me not in topology.incomplete and all(map(topology.owns, slots)):
            return me
        if len(slots) == 1:
            return self._coordinator(slots[0], tried)
        if command.name in SPLITTABLE:
            chosen = {self._coordinator(slot, tried) for slot in slots}
            return chosen.pop() if len(chosen) == 1 else None
        if command.is_write and not self._is_together(slots):
            return None
        # The first written key's coordinator, or one that holds all.
        first = slot_of(args[positions[_first_written(command)]])
        return self._common([first, *slots], tried)

    def place_exec(self, operation: ExecOperation) -> NodeId | None:
        topology = self.topology
        writes = any(command.is_write for command, _ in operation.transaction.commands)
        if writes and not self._is_together(operation.slots):
            return None
        is_fit = topology.me not in topology.incomplete
        if operation.is_of_session and is_fit and all(map(topology.owns, operation.slots)):
            return topology.me
        first = [
            slot_of(args[at])
            for command, args in operation.transaction.commands
            if command.is_write
            for at in command.key_positions(args)[:1]
        ]
        return self._common([*first, *operation.slots], operation.tried)

    def _is_together(self, slots: Sequence[Slot]) -> bool:
        """Whether the same nodes hold all slots: only then what is written there is all or nothing.

        Otherwise one of two rows may be taken and the other one lose a race: RENAME would lose its value.
        """
        preferences = self.topology.preferences
        first = preferences[slots[0]]
        return all(
            preferences[slot] == first or set(preferences[slot]) == set(first) for slot in slots
        )

    def _common(self, slots: Sequence[Slot], tried: tuple[NodeId, ...]) -> NodeId | None:
        """A node that holds all these slots: the first one's coordinator if possible."""
        topology = self.topology
        for name in topology.candidates(slots[0]):
            if name not in tried and all(name in topology.preferences[slot] for slot in slots):
                return name
        return None

    def _coordinator(self, slot: Slot, tried: tuple[NodeId, ...]) -> NodeId | None:
        if not tried:
            return self.topology.coordinators[slot]
        return next((name for name in self.topology.candidates(slot) if name not in tried), None)

    def start(self, operation: Operation, target: NodeId | None) -> None:
        if target is None:
            if len(operation.slots) > 1 and not operation.hlc:
                self.spreads.begin(operation)
            else:
                self.end(operation, NO_REPLICA)
        elif target == self.topology.me:
            self.execution.execute(operation)
        else:
            self.forwarding.forward(operation, target)

    # Splitting

    def _split(
        self, operation: SplitOperation, positions: list[int], wanted: Consistency | None
    ) -> None:
        command, args = operation.command, operation.args
        groups: list[list[bytes]] = []
        if command.name == "MGET":
            groups = [[args[0], args[at]] for at in positions]
        else:
            by_slot: dict[Slot, list[bytes]] = {}
            step = 2 if command.name == "MSET" else 1
            if (len(args) - 1) % step:
                self.execution.execute(operation)  # It says what is wrong.
                return
            for at in positions:
                group = by_slot.setdefault(slot_of(args[at]), [args[0]])
                group += args[at : at + step]
            groups = list(by_slot.values())
        parts = []
        for group in groups:
            part = Operation(
                self, operation.session, command, group, operation.now_ms, operation.deadline_s
            )
            part.slots = (slot_of(group[1]),)
            part.is_timed = operation.is_timed
            keys = [group[at] for at in command.key_positions(group)]
            part.quorums = self.quorums_for(operation.session, keys, wanted)
            part.is_blind = operation.is_blind
            part.is_plain = operation.is_plain
            part.is_tracked = operation.is_tracked
            part.parent = operation
            parts.append(part)
            self.in_flight += 1
        operation.begin(parts)
        for part in parts:
            anywhere = self.reads_here(part.quorums, part.session)
            target = self.place(command, part.slots, part.args, [1], (), anywhere=anywhere)
            self.start(part, target)

    # The end of an operation

    def tick(self, now_s: float) -> None:
        """End what KV.WITH TIMEOUT gave no more time."""
        for operation in list(self._timed):
            if operation.is_done:
                del self._timed[operation]
            elif operation.deadline_s <= now_s:
                del self._timed[operation]
                self.end(operation, TIMED_OUT)

    def finish(self, operation: Operation) -> None:
        """All that its reply shows is on enough replicas."""
        if operation.phase is Phase.REFRESHING:
            operation.phase = Phase.REFRESHED
            operation.is_over = False
            operation.attempt += 1
            self.execution.execute(operation)
            return
        if operation.messages:
            operation.messages = self.node.pubsub.say(
                operation.messages, is_forwarded=operation.origin is not None
            )
        command = operation.command
        elapsed_ns = self.node.clock_ns() - operation.started_ns
        operation.count(elapsed_ns)
        if operation.origin is None:
            if command.name == "WATCH":
                self.execution.take_watched(operation)
            self.show(operation, elapsed_ns)
        self.release(operation)

    def show(self, operation: Operation, elapsed_ns: int) -> None:
        """A client's command was executed, here or elsewhere: for the slow log and the monitors."""
        if operation.parent is not None:
            return
        slowlog, command = self.node.slowlog, operation.command
        if elapsed_ns >= slowlog.threshold_ns and Flag.SKIP_SLOWLOG not in command.flags:
            slowlog.add(operation.session, command, operation.args, elapsed_ns)
        if self.node.monitors:
            self.node.runner.long_way.show(operation.session, command, operation.args)

    def fail(self, operation: Operation, error: ClusterError) -> None:
        self.end(operation, text_of(error, is_early=False))

    def end(self, operation: Operation, error: ReplyError) -> None:
        """Answer an error."""
        if operation.is_done:
            return
        if operation.may_have_run:
            error = doubted(error)
        operation.is_over = True
        operation.command.failed_calls += 1
        self.node.count_error(error)
        operation.data = b"-%b\r\n" % error.line
        self.release(operation)

    def release(self, operation: Operation) -> None:
        """Its answer stands: pass it on, as soon as it is its turn."""
        if operation.is_done:
            return
        operation.is_done = True
        self.in_flight -= 1
        parent = operation.parent
        if parent is not None:
            if isinstance(parent, SplitOperation):
                parent.part_done()
            elif isinstance(operation, Unit):
                operation.deliver()
            else:
                parent.take(operation.part, operation.data)
            return
        if operation.origin is not None:
            self.forwarding.answer(operation)
            return
        self._send_ready(operation.session)

    def _send_ready(self, session: Session) -> None:
        pipeline = session.pipeline
        assert pipeline is not None
        if not pipeline.operations or not pipeline.operations[0].is_done:
            return
        session.out += pipeline.take_done()
        self.node.touch(session)
        self.node.tracking.flush()
        if session.mode & WAITING and session.wait is None:
            session.mode &= ~WAITING  # The front serves its queue in the next tick.


def _first_written(command: Command) -> int:
    """Which of a command's keys it writes first, as an index into its key positions."""
    for number, spec in enumerate(command.keys):
        if "RO" not in spec.access:
            return number if len(command.keys) > 1 else 0
    return 0


def _joined(name: str, replies: list[bytes]) -> bytes:
    """One reply of those to the parts; an error if one of them is."""
    for reply in replies:
        if reply.startswith(b"-"):
            return reply
    if name == "MGET":
        return b"*%d\r\n" % len(replies) + b"".join(reply[4:] for reply in replies)
    if name == "MSET":
        return replies[0]
    return b":%d\r\n" % sum(int(reply[1:-2]) for reply in replies)
