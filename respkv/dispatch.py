"""The dispatch: where a member of a cluster has each command executed, and when its reply leaves.

A single node has none; there the runner does everything. Here a command that touches keys becomes an
`Operation` (`respkv/operation.py`):

    take      find its slots, and the node that executes it
    execute   here: run the handler, commit, tell the coordinator what was read and written, wait. One
              that writes and depends on rows that it does not write has these confirmed first
    forward   at the slot's coordinator: send it there, wait for its reply
    split     MGET, MSET, DEL, EXISTS, UNLINK and TOUCH on several slots: one operation for each part
    finish    its reply leaves when all earlier ones of its session have left

Reads are executed by the node that the client is connected to, if it is a replica of the slot; writes by
the slot's coordinator, so that writers of a key meet at one place. A request is forwarded once at most:
who gets a forwarded one executes it, or refuses it, and then it may go to another. When the node that
executes it is lost, an idempotent command goes to the next one, with the time of its first try; for any
other nobody knows whether it took effect, and the error says so.

    FORWARD number ms db resp3 time name argument*     ms: what is left of its time
    FORWARD.EXEC number ms db resp3 time packed        packed: commands and watches, MessagePack
    REPLY number bytes                                 RESP, ready for the client
    REFUSED number reason                              it was not executed
    FORWARD.SETS number ms db (key value)*             plain SETs
    REPLY.SETS number (index error)*                   all were done, but for these

Commands without keys are the runner's, once all earlier ones of the session have ended.

Core: time is an argument; messages go through the transport seam.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Final

import msgspec

from cluster.coordinator import Coordinator
from cluster.errors import ClusterError
from cluster.ring import NodeId
from cluster.round import ConflictLost, QuorumNotMet
from cluster.slot import DATABASE_COUNT, SLOT_COUNT, Key, Row, Slot, row_of, slot_of
from cluster.topology import Topology
from cluster.transport import Transport
from engine.errors import EngineError
from engine.store import PageFault
from respkv.cluster_view import redirect, slots_of
from respkv.command import TABLE, Command, Flag
from respkv.gather_place import places_of
from respkv.group import Answers, Group, GroupLane, Member, Run, Sets, plain_slots
from respkv.lane import OK_BYTES
from respkv.number import integer_or_none
from respkv.operation import Operation, Phase, Pipeline
from respkv.reply import OK, Reply, ReplyError, encode
from respkv.runner import FIND, LANES_FROM_SLOW_NS
from respkv.session import (
    CLOSING,
    IN_MULTI,
    REPLY_OFF,
    REPLY_SKIP,
    TRACKING,
    WAITING,
    Session,
    Transaction,
)

if TYPE_CHECKING:
    from respkv.gather import Gather
    from respkv.node import Node

FORWARD: Final = b"FORWARD"
FORWARD_EXEC: Final = b"FORWARD.EXEC"
REPLY: Final = b"REPLY"
REFUSED: Final = b"REFUSED"
FORWARD_SETS: Final = b"FORWARD.SETS"
REPLY_SETS: Final = b"REPLY.SETS"
VERBS: Final = (FORWARD, FORWARD_EXEC, FORWARD_SETS, REPLY, REPLY_SETS, REFUSED)
GETS: Final = (b"GET", b"get")
SETS: Final = (b"SET", b"set")
RUN_MIN: Final = 2
RUN_MAX: Final = 512

UNKNOWN: Final = ReplyError(
    "UNKNOWN the node that executed this command was lost: it may or may not have taken effect"
)
NO_REPLICA: Final = ReplyError("NOREPLICAS no replica of this key can be reached now")
TIMED_OUT: Final = ReplyError(
    "TIMEOUT no answer in time: the command may or may not have taken effect"
)
TOO_BUSY: Final = ReplyError("BUSY too much is on its way to other nodes: try again")
TOO_LARGE: Final = ReplyError(
    "ERR the value is too large for one message between nodes (cluster.bus_frame_bytes_max)"
)
SPREAD: Final = ReplyError(
    "CROSSSLOT no single node holds all keys of this command: give them one hash tag, such as {name}"
)
IN_TRANSACTION: Final = ReplyError("ERR this command cannot be used inside MULTI in a cluster")
SPLITTABLE: Final = frozenset(("MGET", "MSET", "DEL", "EXISTS", "UNLINK", "TOUCH"))
OF_NO_SESSION: Final = frozenset(("SELECT", "PING", "ECHO", "TIME"))
SEEN_MAX: Final = 4096  # Forwarded operations that are remembered of each peer.
RESULT_MODES: Final = REPLY_OFF | REPLY_SKIP
HARMLESS_MODES: Final = TRACKING | RESULT_MODES  # Commands are executed as without them.


class Packed(msgspec.Struct, array_like=True):
    """A transaction on its way to the node that executes it."""

    commands: list[list[bytes]]
    watches: list[tuple[int, bytes, bytes | None]]


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
    def is_of_session(self) -> bool:
        """Whether a command is in it that looks at the client's session, or at the node: CLIENT, INFO, ..."""
        return any(
            not command.keys and command.name not in OF_NO_SESSION
            for command, _ in self._transaction.commands
        )


class SplitOperation(Operation):
    """A command on several slots: its parts answer for it."""

    __slots__ = ("parts",)

    parts: list[Operation]

    def part_done(self) -> None:
        if all(part.is_done for part in self.parts):
            self.data = _joined(self.command.name, [part.data for part in self.parts])
            self.is_over = True
            self.dispatch.release(self)


class Dispatch:
    """One per node of a cluster."""

    gather: Gather  # Commands on the whole keyspace; `respkv/peers.py` sets it.

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
        self.retries_max = retries_max
        self.in_flight_bytes_max = in_flight_bytes_max
        self.message_bytes_max = message_bytes_max
        self.forwards: dict[int, Operation | Sets] = {}
        self.in_flight = 0
        self.forwarded_total = 0
        self._next_id = first_id
        self._agents: dict[NodeId, Session] = {}
        # Forwarded operations of each peer by number: the answer, or None while it is not there.
        self._seen: dict[NodeId, dict[bytes, Sequence[bytes] | None]] = {}
        self._parked: list[Operation] = []
        self._lane = GroupLane(self, coordinator)
        self._get = TABLE.commands["GET"]
        self._set = TABLE.commands["SET"]
        self._owns_all = all(map(topology.owns, range(SLOT_COUNT)))
        quorums = coordinator.quorums
        self._reads_anywhere = quorums.r + quorums.w > quorums.n

    # Groups: see `respkv/group.py`

    def serve_lone(self, sessions: list[Session], commands: list[list[bytes]], now_ms: int) -> None:
        """Execute one command of each session. All sessions use the same database and protocol."""
        if not self._is_usual:
            for session, args in zip(sessions, commands, strict=True):
                self.serve(session, [args], now_ms)
            return
        gets: list[Member] = []
        sets: list[Member] = []
        for session, args in zip(sessions, commands, strict=True):
            name = args[0]
            pipeline = session.pipeline
            is_first = pipeline is None or not pipeline.operations
            if session.is_cluster and is_first:
                is_first = self._is_coordinated(args)
            if is_first and name in GETS and len(args) == 2:
                gets.append((session, None, 0, args))
            elif is_first and name in SETS and len(args) == 3:
                sets.append((session, None, 0, args))
            else:
                self.serve(session, [args], now_ms)
                continue
            session.mode |= WAITING
            session.is_grouped = True
            session.last_command = self._get if len(args) == 2 else self._set
        if gets or sets:
            self._group(gets, sets, self.node.databases[sessions[0].db], sessions[0].db, now_ms)

    def _is_coordinated(self, args: list[bytes]) -> bool:
        """Whether this node coordinates the slot of a command's first key: elsewhere the cluster port redirects."""
        return len(args) > 1 and self.topology.coordinators[slot_of(args[1])] == self.topology.me

    @property
    def _is_usual(self) -> bool:
        """Whether plain commands may take the short way."""
        return (
            not self.node.runner.has_observers
            and self.node.slowlog.threshold_ns >= LANES_FROM_SLOW_NS
            and self.coordinator.quorums.r <= 2
            and self._reads_anywhere
            and self.topology.me not in self.topology.incomplete
            and self.coordinator.in_flight_bytes <= self.in_flight_bytes_max
        )

    def _group(
        self, gets: list[Member], sets: list[Member], db: int, session_db: int, now_ms: int
    ) -> None:
        """Execute members here, have others executed elsewhere, and let the rest go on alone."""
        self.coordinator.look()
        lane = self._lane
        rest: list[Member] = []
        me = self.topology.me
        if gets:
            if not self._owns_all:
                preferences = self.topology.preferences
                slots = plain_slots([member[3] for member in gets])
                here: list[Member] = []
                for slot, member in zip(slots, gets, strict=True):
                    is_here = slot >= 0 and me in preferences[slot]
                    (here if is_here else rest).append(member)
                gets = here
            rest += lane.get(self._get, gets, db, now_ms)
        if sets:
            coordinators = self.topology.coordinators
            by_target: dict[NodeId | None, list[Member]] = {}
            for slot, member in zip(plain_slots([m[3] for m in sets]), sets, strict=True):
                target = coordinators[slot] if slot >= 0 else None
                members = by_target.get(target)
                if members is None:
                    members = by_target[target] = []
                members.append(member)
            for target, members in by_target.items():
                if target is None:
                    rest += members
                elif target == me:
                    rest += lane.set(self._set, members, db, now_ms)
                else:
                    self._forward_sets(target, members, session_db, now_ms)
        for member in rest:
            self.go_on_alone(member)

    def go_on_alone(self, member: Member, *, hlc: int = 0, tried: tuple[NodeId, ...] = ()) -> None:
        """A member of a group becomes an operation of its own."""
        session, part_of, index, args = member
        command = self._get if len(args) == 2 else self._set
        now_ms = self.node.now_ms()
        operation = Operation(
            self, session, command, args, now_ms, self.node.now_s + self.timeout_s
        )
        operation.slots = (slot_of(args[1]),)
        operation.keys = (args[1],)
        operation.is_plain = True
        operation.is_blind = command is self._set
        operation.hlc = hlc
        operation.tried = tried
        self.in_flight += 1
        if part_of is None:
            session.is_grouped = False
            pipeline = session.pipeline
            if pipeline is None:
                pipeline = session.pipeline = Pipeline()
            pipeline.add(operation)
        else:
            operation.parent = part_of
            operation.part = index
        if isinstance(part_of, Answers):
            self.execute(operation)  # It was forwarded once.
            return
        self._start(operation, self._place(command, operation.slots, args, [1], tried))

    def fail_alone(self, member: Member, command: Command, error: ClusterError) -> None:
        """A member of a group gets an error."""
        reply = _text_of(error, is_early=False)
        command.failed_calls += 1
        self.node.count_error(reply)
        self._deliver(member, b"-%b\r\n" % reply.line)

    def finish_group(self, group: Group) -> None:
        """All of its members that have not left are on enough replicas."""
        members, replies, gone = group.members, group.replies, group.gone
        touch = self.node.touch
        for index, member in enumerate(members):
            if gone and index in gone:
                continue
            session, part_of, number, _ = member
            data = OK_BYTES if replies is None else replies[index]
            if part_of is None:
                session.mode &= ~WAITING
                session.is_grouped = False
                session.out.append(data)
                touch(session)
            else:
                part_of.take(number, data)
        count = len(members) - len(gone)
        if count:
            group.command.count(count, self.node.clock_ns() - group.started_ns)
            self.node.runner.commands_total += count

    def _deliver(self, member: Member, data: bytes) -> None:
        session, part_of, index, _ = member
        if part_of is None:
            session.mode &= ~WAITING
            session.is_grouped = False
            session.out.append(data)
            self.node.touch(session)
        else:
            part_of.take(index, data)

    def _forward_sets(self, target: NodeId, members: list[Member], db: int, now_ms: int) -> None:
        self._next_id += 1
        deadline_s = self.node.now_s + self.timeout_s
        self.forwards[self._next_id] = Sets(target, members, self._next_id, now_ms, deadline_s)
        self.forwarded_total += len(members)
        ms = max(1, int(self.timeout_s * 1000))
        message = [FORWARD_SETS, b"%d" % self._next_id, b"%d" % ms, b"%d" % db]
        for member in members:
            message += member[3][1:]
        self.transport.send(target, message)

    def _take_sets(self, peer: NodeId, message: list[bytes]) -> None:
        """Another node forwards plain SETs."""
        number = message[1]
        if not self._is_first(peer, number):
            return
        if self.topology.me in self.topology.incomplete or self.node.is_stopping:
            del self._seen[peer][number]
            self.promise(peer, (REFUSED, number, b"not here"))
            return
        agent = self._agent(peer)
        agent.db, agent.is_resp3 = int(message[3]), False
        answers = Answers(self, peer, number, (len(message) - 4) >> 1)
        members: list[Member] = [
            (agent, answers, index, [b"SET", *message[at : at + 2]])
            for index, at in enumerate(range(4, len(message) - 1, 2))
        ]
        now_ms = self.node.now_ms()
        if self._is_usual:
            self.coordinator.look()
            members = self._lane.set(self._set, members, self.node.databases[agent.db], now_ms)
        for member in members:
            agent.db = int(message[3])
            self.go_on_alone(member)

    def answer_sets(self, answers: Answers) -> None:
        answer = (REPLY_SETS, answers.number, *answers.errors)
        seen = self._seen.get(answers.peer)
        if seen is not None and answers.number in seen:
            seen[answers.number] = answer
        self.promise(answers.peer, answer)

    def _take_set_replies(self, peer: NodeId, message: list[bytes]) -> None:
        sets = self.forwards.get(int(message[1]))
        if not isinstance(sets, Sets) or sets.target != peer:
            return
        del self.forwards[sets.number]
        errors = {int(message[at]): message[at + 1] for at in range(2, len(message) - 1, 2)}
        for index, member in enumerate(sets.members):
            self._deliver(member, errors.get(index, OK_BYTES))

    def _lose_sets(self, sets: Sets, *, is_executed: bool) -> None:
        """The node that they were forwarded to refused, or is lost: each goes on alone."""
        hlc = sets.now_ms << 16 if is_executed else 0
        for member in sets.members:
            self.go_on_alone(member, hlc=hlc, tried=(sets.target,))

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
                count = self._take_run(session, args, now_ms)
                if count:
                    budget -= count
                    if budget <= 0:
                        return
                    continue
            if not self._take(session, args, now_ms):
                queue.appendleft(args)
                session.mode |= WAITING
                return
            if session.is_asking and not session.mode & IN_MULTI and args[0].upper() != b"ASKING":
                session.is_asking = False
            budget -= 1
            if budget <= 0:
                return  # The front brings it back in the next tick.

    def _take_run(self, session: Session, first: list[bytes], now_ms: int) -> int:
        """Begin a run of plain GETs or SETs that starts with `first`, the rest being in the queue; 0 if it is none."""
        name = first[0]
        is_get = name in GETS and len(first) == 2
        if session.mode or not (is_get or (name in SETS and len(first) == 3)):
            return 0
        pipeline = session.pipeline
        if pipeline is None:
            pipeline = session.pipeline = Pipeline()
        if pipeline.is_full or not self._is_usual:
            return 0
        queue = session.queue
        length = len(first)
        commands = [first]
        for args in queue:
            if args[0] != name or len(args) != length or len(commands) >= RUN_MAX:
                break
            commands.append(args)
        keys = [args[1] for args in commands]
        is_local = self._owns_all
        count = (
            pipeline.count_reads(keys, is_local=is_local) if is_get else pipeline.count_writes(keys)
        )
        if count < RUN_MIN:
            return 0
        slots = plain_slots(commands[:count])
        me, coordinators = self.topology.me, self.topology.coordinators
        is_mine = all(slot >= 0 and coordinators[slot] == me for slot in slots)
        if session.is_cluster and not is_mine:
            return 0  # Some are redirected.
        command = self._get if is_get else self._set
        session.last_command = command
        run = Run(self, session, command, now_ms, self.node.now_s + self.timeout_s, count)
        run.keys = tuple(keys[:count])
        run.is_plain = True
        run.is_local = is_local if is_get else is_mine
        pipeline.add(run)
        self.in_flight += 1
        for _ in range(count - 1):
            queue.popleft()
        members: list[Member] = [
            (session, run, index, args) for index, args in enumerate(commands[:count])
        ]
        db = self.node.databases[session.db]
        if is_get:
            self._group(members, [], db, session.db, now_ms)
        else:
            self._group([], members, db, session.db, now_ms)
        return count

    def _take(self, session: Session, args: list[bytes], now_ms: int) -> bool:
        """Begin a command; False if earlier ones have to end first."""
        command = FIND(args[0]) or TABLE.find(args[0])
        if command is not None and command.subcommands:
            command = TABLE.lookup(args)
        is_exec = command is not None and command.name == "EXEC"
        if self.node.runner.is_paused is not None and self._must_pause(session, command):
            return False
        mode = session.mode & ~HARMLESS_MODES
        if command is None or mode or not (command.keys or is_exec):
            if is_exec and mode == IN_MULTI and len(args) == 1:
                return self._take_exec(session, now_ms)
            if command is not None and (
                (taken := self.gather.take(session, command, args, now_ms)) is not None
            ):
                return taken
            pipeline = session.pipeline
            if pipeline is not None and pipeline.operations:
                return False
            self.node.runner.serve_here(session, [args], now_ms)
            return True
        count = len(args)
        arity = command.arity
        if (count != arity and (arity >= 0 or count < -arity)) or is_exec:
            if session.pipeline is not None and session.pipeline.operations:
                return False
            self.node.runner.serve_here(session, [args], now_ms)  # It says what is wrong.
            return True
        return self._take_keyed(session, command, args, now_ms)

    def _must_pause(self, session: Session, command: Command | None) -> bool:
        """CLIENT PAUSE: whether a command has to wait for its end."""
        runner = self.node.runner
        if command is None or runner.is_paused is None or not runner.is_paused(command, session):
            return False
        if session not in runner.paused:
            runner.paused.append(session)
        return True

    def _take_keyed(
        self, session: Session, command: Command, args: list[bytes], now_ms: int
    ) -> bool:
        positions = command.key_positions(args)
        if len(positions) == 1:
            slots: tuple[Slot, ...] = (slot_of(args[positions[0]]),)
        else:
            slots = tuple(dict.fromkeys(slot_of(args[at]) for at in positions))
        is_plain = _is_plain(command, args)
        target = self._place(command, slots, args, positions, ())
        is_local = target == self.topology.me
        pipeline = session.pipeline
        if pipeline is None:
            pipeline = session.pipeline = Pipeline()
        is_split = len(slots) > 1 and not is_local and command.name in SPLITTABLE
        keys = tuple([args[at] for at in positions]) if is_plain else ()
        if not pipeline.may_start(
            keys, is_plain=is_plain, is_local=is_local, is_write=command.is_write
        ):
            return False
        deadline_s = self.node.now_s + self.timeout_s
        kind = SplitOperation if is_split else Operation
        operation = kind(self, session, command, args, now_ms, deadline_s)
        operation.slots = slots
        operation.keys = keys
        operation.is_plain = is_plain
        operation.is_local = is_local
        operation.is_blind = is_plain and command.is_write
        self._admit(session, pipeline, operation)
        if session.is_cluster and (
            len(slots) != 1 or self.topology.coordinators[slots[0]] != self.topology.me
        ):
            refusal = redirect(session, command, slots, self.topology)
            if refusal is not None:
                self._end(operation, refusal)
                return True
        if self.coordinator.in_flight_bytes > self.in_flight_bytes_max:
            self._end(operation, TOO_BUSY)
        elif not is_local and sum(map(len, args)) > self.message_bytes_max:
            self._end(operation, TOO_LARGE)
        elif isinstance(operation, SplitOperation):
            self._split(operation, positions)
        else:
            self._start(operation, target)
        return True

    def _admit(self, session: Session, pipeline: Pipeline, operation: Operation) -> None:
        session.last_command = operation.command
        if session.mode & RESULT_MODES:
            operation.is_silent = True
            session.mode &= ~REPLY_SKIP
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
            self.node.runner.serve_here(session, [[b"EXEC"]], now_ms)
            return True
        operation = ExecOperation(self, session, now_ms, self.node.now_s + self.timeout_s)
        operation.slots = tuple(slots)
        operation.is_local = False
        self._admit(session, pipeline, operation)
        refusal = (
            self.redirection(session, operation.command, operation.args)
            if session.is_cluster
            else None
        )
        self.node.runner.end_transaction(session)
        target = self._place_exec(operation)
        if refusal is not None:
            self._end(operation, refusal)
        elif target != self.topology.me and operation.is_of_session:
            self._end(operation, IN_TRANSACTION)
        else:
            self._start(operation, target)
        return True

    # Where

    def _place(
        self,
        command: Command,
        slots: tuple[Slot, ...],
        args: list[bytes],
        positions: list[int],
        tried: tuple[NodeId, ...],
    ) -> NodeId | None:
        """The node that executes a command; None if it has to be split, or no node can."""
        topology = self.topology
        me = topology.me
        is_read_here = self._reads_anywhere and not command.is_write and me not in tried
        if is_read_here and me not in topology.incomplete and all(map(topology.owns, slots)):
            return me
        if len(slots) == 1:
            return self._coordinator(slots[0], tried)
        if command.name in SPLITTABLE:
            chosen = {self._coordinator(slot, tried) for slot in slots}
            return chosen.pop() if len(chosen) == 1 else None
        # The first written key's coordinator, or one that holds all.
        first = slot_of(args[positions[_first_written(command)]])
        return self._common([first, *slots], tried)

    def _place_exec(self, operation: ExecOperation) -> NodeId | None:
        topology = self.topology
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

    def _start(self, operation: Operation, target: NodeId | None) -> None:
        if target is None:
            is_spread = len(operation.slots) > 1 and not operation.tried
            self._end(operation, SPREAD if is_spread else NO_REPLICA)
        elif target == self.topology.me:
            self.execute(operation)
        else:
            self._forward(operation, target)

    # Splitting

    def _split(self, operation: SplitOperation, positions: list[int]) -> None:
        command, args = operation.command, operation.args
        groups: list[list[bytes]] = []
        if command.name == "MGET":
            groups = [[args[0], args[at]] for at in positions]
        else:
            by_slot: dict[Slot, list[bytes]] = {}
            step = 2 if command.name == "MSET" else 1
            if (len(args) - 1) % step:
                self.execute(operation)  # It says what is wrong.
                return
            for at in positions:
                group = by_slot.setdefault(slot_of(args[at]), [args[0]])
                group += args[at : at + step]
            groups = list(by_slot.values())
        operation.parts = []
        for group in groups:
            part = Operation(
                self, operation.session, command, group, operation.now_ms, operation.deadline_s
            )
            part.slots = (slot_of(group[1]),)
            part.is_blind = operation.is_blind
            part.is_plain = operation.is_plain
            part.parent = operation
            operation.parts.append(part)
            self.in_flight += 1
        for part in list(operation.parts):
            target = self._place(command, part.slots, part.args, [1], ())
            self._start(part, target)

    # Here

    def execute(self, operation: Operation) -> None:
        """Run a command on the local replica, and wait for what it read and wrote to be on enough replicas."""
        node = self.node
        runner = node.runner
        command = operation.command
        is_write = command.is_write
        transaction = operation.transaction
        if transaction is not None:
            is_write = any(queued.is_write for queued, _ in transaction.commands)
        if is_write:
            if node.refusal is not None:
                self._end(operation, node.refusal)
                return
            if runner.is_stalled:
                self._park(operation)
                return
        is_blind = operation.is_blind
        coordinator = self.coordinator
        is_checked = coordinator.quorums.checks_all or not is_blind
        for slot in operation.slots:
            lack = coordinator.lack(slot, is_write=is_write, is_checked=is_checked)
            if lack is not None:
                self._end(operation, _text_of(lack, is_early=True))
                return
        operation.started_ns = node.clock_ns()
        context = node.context
        session = self._session_of(operation)
        context.bind(session, operation.now_ms)
        context.db = node.databases[session.db]
        context.args = operation.args
        context.store.pinned = operation.pins
        written: list[tuple[Slot, Row, bytes]] = []
        reads: list[tuple[Slot, Row, bytes | None]] = []
        reply: Reply
        try:
            places = self._places(operation, session)
            if not is_blind and is_write:
                store = context.store
                for slot, row in places:
                    if coordinator.must_wait(slot, row, store.get(slot, row)):
                        self._park(operation)
                        return
            if operation.hlc and self._is_overtaken(operation, places):
                reply = OK
            else:
                reply = runner.call(command, operation.args)
        except ReplyError as error:
            error.__traceback__ = None
            context.drop()
            command.failed_calls += 1
            node.count_error(error)
            reply = error
        except PageFault as fault:
            context.drop()
            self._fetch(operation, fault)
            return
        except EngineError as error:
            context.drop()
            self._end(operation, node.data_error(error))
            return
        finally:
            if transaction is not None:
                runner.end_transaction(session)
        try:
            store = context.store
            reads = [
                (slot, row, store.get(slot, row))
                for slot, row in places
                if row not in context.effects
            ]
            if operation.phase is Phase.REFRESHED:
                reads = []
            elif reads and context.effects and not is_blind and coordinator.quorums.r > 1:
                # What it read may be overtaken, and then it must not have written.
                context.drop()
                operation.phase = Phase.REFRESHING
                reads = [(slot, row, store.get(slot, row)) for slot, row in places]
                coordinator.begin(operation, reads, [], is_checked=is_checked)
                return
            if context.effects:
                if max(len(effect[3]) for effect in context.effects.values()) > (
                    self.message_bytes_max
                ):
                    context.drop()
                    self._end(operation, TOO_LARGE)
                    return
                if node.tracking.is_active:
                    node.tracking.invalidate(context.effects, context.flushed, session)
                context.commit(written)
        except PageFault as fault:
            context.drop()
            self._fetch(operation, fault)
            return
        finally:
            context.store.pinned = {}
        is_resp3 = session.is_resp3 if transaction is not None else operation.is_resp3
        operation.data = encode(reply, resp3=is_resp3)
        if session.mode & TRACKING and operation.attempt == 0:
            # Now, and not when it is answered: what changes in between has to be told.
            if transaction is None:
                node.tracking.remember(session, command, operation.args)
            node.tracking.end_command(session, command)
        if command.name == "WATCH" and operation.origin is not None:
            self._give_watched(operation, session)
        coordinator.begin(operation, reads, written, is_checked=is_checked)
        if not operation.waits and not operation.is_over:
            operation.is_over = True
            self.finish(operation)

    def _session_of(self, operation: Operation) -> Session:
        """The session that a command sees: the client's, or one that stands for it. EXEC finds it as it was."""
        session = operation.session
        if operation.origin is not None and operation.transaction is not None:
            session = Session(0, "", "", self.node.limits, self.node.now_s, authenticated=True)
        if not session.id or operation.transaction is not None:
            session.db, session.is_resp3 = operation.db, operation.is_resp3
        if operation.transaction is not None:
            assert isinstance(operation, ExecOperation)
            session.transaction = Transaction(list(operation.transaction.commands))
            session.watches = dict(operation.watches)
            session.mode |= IN_MULTI
        return session

    def _give_watched(self, operation: Operation, agent: Session) -> None:
        """The client watches, not the agent: answer what it has seen."""
        watched = [(db, key, dots) for (db, key), dots in agent.watches.items()]
        agent.watches.clear()
        if not operation.data.startswith(b"-"):
            operation.data = msgspec.msgpack.encode(watched)

    def _take_watched(self, operation: Operation) -> None:
        if operation.data.startswith(b"-"):
            return
        watched = msgspec.msgpack.decode(operation.data, type=list[tuple[int, bytes, bytes | None]])
        for db, key, dots in watched:
            operation.session.watches.setdefault((db, key), dots)
        operation.data = OK_BYTES

    def _places(self, operation: Operation, session: Session) -> list[tuple[Slot, Row]]:
        """The rows of the keys that a command names."""
        databases = self.node.databases
        db = databases[operation.db]
        command, args = operation.command, operation.args
        transaction = operation.transaction
        if transaction is None:
            return places_of(command, args, db, databases)
        places: dict[tuple[Slot, Row], None] = {}
        for number, queued, queued_args in _by_database(operation):
            for place in places_of(queued, queued_args, databases[number], databases):
                places[place] = None
        for watched_db, key in session.watches:
            places[slot_of(key), row_of(databases[watched_db], key)] = None
        return list(places)

    def _is_overtaken(self, operation: Operation, places: list[tuple[Slot, Row]]) -> bool:
        """Whether a SET that may have been made before has been overwritten since."""
        from cluster.record import decode

        store = self.node.context.store
        raws = [store.get(slot, row) for slot, row in places]
        return bool(raws) and all(
            raw is not None and max(v.hlc for v in decode(raw).versions) >= operation.hlc
            for raw in raws
            if raw is None or decode(raw).versions
        )

    def _fetch(self, operation: Operation, fault: PageFault) -> None:
        """Have a page read, then run again."""

        def resume(now_ms: int, failure: ReplyError | None) -> None:
            if failure is not None:
                self._end(operation, failure)
            elif not operation.is_done:
                self.execute(operation)

        self.node.fetch(fault, operation.pins, resume)

    def _park(self, operation: Operation) -> None:
        self._parked.append(operation)

    def run_again(self, operation: Operation) -> None:
        """What it saw has been overtaken."""
        operation.phase = Phase.FIRST
        if operation.attempt > self.retries_max:
            operation.is_over = True
            self._end(operation, _text_of(ConflictLost(is_partial=False), is_early=False))
            return
        if operation.deadline_s <= self.node.now_s:
            operation.is_over = True
            self._end(operation, TIMED_OUT)
            return
        self.execute(operation)

    # The end of an operation

    def finish(self, operation: Operation) -> None:
        """All that its reply shows is on enough replicas."""
        if operation.phase is Phase.REFRESHING:
            operation.phase = Phase.REFRESHED
            operation.is_over = False
            operation.attempt += 1
            self.execute(operation)
            return
        command = operation.command
        elapsed_ns = self.node.clock_ns() - operation.started_ns
        command.calls += 1
        command.elapsed_ns += elapsed_ns
        command.histogram.add(elapsed_ns)
        self.node.runner.commands_total += 1
        if operation.origin is None:
            self._show(operation, elapsed_ns)
        self.release(operation)

    def _show(self, operation: Operation, elapsed_ns: int) -> None:
        """A client's command was executed, here or elsewhere: for the slow log and the monitors."""
        if operation.parent is not None:
            return
        slowlog, command = self.node.slowlog, operation.command
        if elapsed_ns >= slowlog.threshold_ns and Flag.SKIP_SLOWLOG not in command.flags:
            slowlog.add(operation.session, command, operation.args, elapsed_ns)
        if self.node.monitors:
            self.node.runner.show(operation.session, command, operation.args)

    def _disown(self, operation: Operation) -> None:
        """A client that tracks what it reads has read it elsewhere."""
        session, tracking = operation.session, self.node.tracking
        transaction = operation.transaction
        read = (
            [(operation.command, operation.args)] if transaction is None else transaction.commands
        )
        for command, args in read:
            tracking.disown(session, command, args)
        tracking.end_command(session, operation.command)

    def writer_of(self, key: Key) -> Session | None:
        """The client of this node that tracks keys, and has a command on this one under way to another node."""
        for operation in self.forwards.values():
            if isinstance(operation, Sets) or not operation.session.mode & TRACKING:
                continue
            if key in operation.args or (
                operation.transaction is not None
                and any(key in args for _, args in operation.transaction.commands)
            ):
                return operation.session
        return None

    def fail(self, operation: Operation, error: ClusterError) -> None:
        self._end(operation, _text_of(error, is_early=False))

    def _end(self, operation: Operation, error: ReplyError) -> None:
        """Answer an error."""
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
            else:
                parent.take(operation.part, operation.data)
            return
        if operation.origin is not None:
            peer, number = operation.origin
            answer = (REPLY, number, operation.data)
            seen = self._seen.get(peer)
            if seen is not None and number in seen:
                seen[number] = answer
            self.promise(peer, answer)
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

    # Elsewhere

    def _forward(self, operation: Operation, target: NodeId) -> None:
        self._next_id += 1
        operation.number = self._next_id
        operation.target = target
        operation.started_ns = self.node.clock_ns()
        self.forwards[operation.number] = operation
        self.forwarded_total += 1
        ms = max(1, int((operation.deadline_s - self.node.now_s) * 1000))
        head = (
            b"%d" % operation.number,
            b"%d" % ms,
            b"%d" % operation.db,
            b"1" if operation.is_resp3 else b"0",
            b"%d" % operation.hlc,
        )
        if operation.transaction is not None:
            assert isinstance(operation, ExecOperation)
            packed = Packed(
                [args for _, args in operation.transaction.commands],
                [(db, key, dots) for (db, key), dots in operation.watches.items()],
            )
            self.transport.send(target, (FORWARD_EXEC, *head, msgspec.msgpack.encode(packed)))
        else:
            self.transport.send(target, (FORWARD, *head, *operation.args))

    def receive(self, peer: NodeId, message: list[bytes]) -> bool:
        """Take a message of another node's dispatch; False if it is none."""
        verb = message[0]
        if verb == REPLY:
            operation = self._answered(peer, message)
            if operation is not None:
                operation.is_over = True
                operation.data = message[2]
                if operation.command.name == "WATCH":
                    self._take_watched(operation)
                elif operation.transaction is not None and operation.data.startswith(b"*"):
                    operation.session.db = list(_by_database(operation))[-1][0]
                if operation.session.mode & TRACKING:
                    self._disown(operation)
                self._show(operation, self.node.clock_ns() - operation.started_ns)
                self.release(operation)
        elif verb == REPLY_SETS:
            self._take_set_replies(peer, message)
        elif verb == FORWARD_SETS:
            self._take_sets(peer, message)
        elif verb in (FORWARD, FORWARD_EXEC):
            self._take_forwarded(peer, message)
        elif verb == REFUSED:
            sets = self.forwards.get(int(message[1]))
            if isinstance(sets, Sets):
                if sets.target == peer:
                    del self.forwards[sets.number]
                    self._lose_sets(sets, is_executed=False)
                return True
            operation = self._answered(peer, message)
            if operation is not None:
                self._try_another(operation, is_executed=False)
        else:
            return False
        return True

    def _answered(self, peer: NodeId, message: list[bytes]) -> Operation | None:
        operation = self.forwards.get(int(message[1]))
        if not isinstance(operation, Operation) or operation.target != peer:
            return None
        del self.forwards[operation.number]
        return operation

    def _take_forwarded(self, peer: NodeId, message: list[bytes]) -> None:
        number = message[1]
        if not self._is_first(peer, number):
            return
        agent = self._agent(peer)
        agent.db, agent.is_resp3 = int(message[3]), message[4] == b"1"
        deadline_s = self.node.now_s + int(message[2]) / 1000
        now_ms = self.node.now_ms()
        operation = self._forwarded(agent, message, now_ms, deadline_s)
        if operation is None or not self._can_execute(operation):
            del self._seen[peer][number]
            self.promise(peer, (REFUSED, number, b"not here"))
            return
        operation.origin = (peer, number)
        operation.hlc = int(message[5])
        self.in_flight += 1
        self.execute(operation)

    def _is_first(self, peer: NodeId, number: bytes) -> bool:
        """Whether a forwarded message has to be worked on; if not, its answer is given again if there is one."""
        seen = self._seen.setdefault(peer, {})
        if number in seen:
            if (answer := seen[number]) is not None:
                self.promise(peer, answer)
            return False
        if len(seen) >= SEEN_MAX:
            del seen[next(iter(seen))]
        seen[number] = None
        return True

    def _agent(self, peer: NodeId) -> Session:
        """The session that stands for a peer's clients."""
        agent = self._agents.get(peer)
        if agent is None:
            agent = self._agents[peer] = Session(
                0, "", "", self.node.limits, self.node.now_s, authenticated=True
            )
        return agent

    def _forwarded(
        self, agent: Session, message: list[bytes], now_ms: int, deadline_s: float
    ) -> Operation | None:
        if message[0] == FORWARD_EXEC:
            packed = msgspec.msgpack.decode(message[6], type=Packed)
            agent.transaction = Transaction(
                [(TABLE.resolve(args), args) for args in packed.commands]
            )
            agent.watches = {(db, key): dots for db, key, dots in packed.watches}
            transaction = ExecOperation(self, agent, now_ms, deadline_s)
            agent.transaction, agent.watches = None, {}
            slots: dict[Slot, None] = {}
            for command, args in transaction.transaction.commands:
                slots.update((slot_of(args[at]), None) for at in command.key_positions(args))
            slots.update((slot_of(key), None) for _, key in transaction.watches)
            transaction.slots = tuple(slots)
            return transaction
        args = message[6:]
        try:
            command = TABLE.resolve(args)
        except ReplyError:  # A newer node's command.
            return None
        operation = Operation(self, agent, command, args, now_ms, deadline_s)
        operation.slots = tuple(
            dict.fromkeys(slot_of(args[at]) for at in command.key_positions(args))
        )
        operation.is_plain = _is_plain(command, args)
        operation.is_blind = operation.is_plain and command.is_write
        return operation

    def _can_execute(self, operation: Operation) -> bool:
        topology = self.topology
        return (
            topology.me not in topology.incomplete
            and not self.node.is_stopping
            and all(topology.owns(slot) for slot in operation.slots)
        )

    def _try_another(self, operation: Operation, *, is_executed: bool) -> None:
        """The node that it was forwarded to refused, or is lost (`is_executed`: it may have run)."""
        if is_executed:
            if not _is_idempotent(operation):
                self._end(operation, UNKNOWN)
                return
            if operation.command.is_write and not operation.hlc:
                operation.hlc = operation.now_ms << 16
        assert operation.target is not None
        operation.tried = (*operation.tried, operation.target)
        if operation.deadline_s <= self.node.now_s:
            self._end(operation, TIMED_OUT)
            return
        if isinstance(operation, ExecOperation):
            target = self._place_exec(operation)
        else:
            positions = operation.command.key_positions(operation.args)
            target = self._place(
                operation.command, operation.slots, operation.args, positions, operation.tried
            )
        self._start(operation, target)

    # Time and losses

    @property
    def has_parked(self) -> bool:
        return bool(self._parked)

    def try_parked(self) -> None:
        """Run what waited for a stall to end, or for another command's fate."""
        parked, self._parked = self._parked, []
        for operation in parked:
            if operation.deadline_s <= self.node.now_s:
                self._end(operation, TIMED_OUT)
            elif not operation.is_done:
                self.execute(operation)

    def tick(self, now_s: float) -> None:
        """Give up what has had its time."""
        for forward in list(self.forwards.values()):
            if forward.deadline_s > now_s:
                continue
            del self.forwards[forward.number]
            if isinstance(forward, Sets):
                for member in forward.members:
                    self._deliver(member, b"-%b\r\n" % TIMED_OUT.line)
            else:
                self._end(forward, TIMED_OUT)

    def disconnected(self, peer: NodeId) -> None:
        """What was forwarded to a peer may have run there or not."""
        for forward in list(self.forwards.values()):
            if forward.target != peer or self.forwards.pop(forward.number, None) is None:
                continue
            if isinstance(forward, Sets):
                self._lose_sets(forward, is_executed=True)
            else:
                self._try_another(forward, is_executed=True)

    def forget(self, peer: NodeId) -> None:
        """The peer is another process now."""
        self._seen.pop(peer, None)


def _is_plain(command: Command, args: list[bytes]) -> bool:
    """GET, MGET, MSET, and SET whose effect does not depend on what was there."""
    name = command.name
    if name == "SET":
        return len(args) == 3 or not any(
            option.upper() in (b"NX", b"XX", b"GET", b"KEEPTTL") for option in args[3:]
        )
    return name in ("GET", "MGET", "MSET")


def _is_idempotent(operation: Operation) -> bool:
    if operation.transaction is not None:
        return all(not command.is_write for command, _ in operation.transaction.commands)
    return operation.is_plain or not operation.command.is_write


def _by_database(operation: Operation) -> Iterator[tuple[int, Command, list[bytes]]]:
    """The commands of a transaction, each with the database that is selected behind it."""
    assert operation.transaction is not None
    db = operation.db
    for queued, args in operation.transaction.commands:
        if queued.name == "SELECT":
            number = integer_or_none(args[1])
            if number is not None and 0 <= number < DATABASE_COUNT:
                db = number
        yield db, queued, args


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


def _text_of(error: ClusterError, *, is_early: bool) -> ReplyError:
    """What a client hears; docs/ERRORS.md explains each. `is_early`: nothing was done."""
    if isinstance(error, QuorumNotMet):
        if is_early:
            what = "writes need" if error.is_write else "reads need"
            return ReplyError(
                f"NOREPLICAS {what} {error.needed} replicas of this key, and {error.answered} can be reached"
            )
        if error.is_write:
            return ReplyError(
                f"TIMEOUT written to {error.answered} of the {error.needed} replicas that are needed: "
                "the write may last or not"
            )
        return ReplyError(f"TIMEOUT {error}")
    if isinstance(error, ConflictLost) and error.is_partial:
        return ReplyError(f"UNKNOWN {error}")
    if isinstance(error, ConflictLost):
        return ReplyError(f"TRYAGAIN {error}: nothing was changed")
    return ReplyError(f"ERR {error}")


__all__ = ["Dispatch", "Flag"]
