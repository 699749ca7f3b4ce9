"""Forwarding: commands that another node executes, and those that others send here.

    FORWARD number ms begin db mode time quorums name argument*
                                                       ms: what is left of its time; begin: when it must have
                                                       begun, by the sender's calendar; mode: 1 RESP3, 2 the client
                                                       tracks what it reads; time: when a write came, as a timestamp,
                                                       negative unless it may have been made elsewhere before;
                                                       quorums: "R W", as the sender has decided
    FORWARD.EXEC number ms begin db mode time quorums packed
                                                       packed: commands and watches, MessagePack
    FORWARD.TRACE ...                                  as FORWARD, for KV.TRACE (`respkv/trace.py`)
    REPLY number bytes (kind channel payload)*         RESP, ready for the client, and what EXEC has published; for
                                                       KV.TRACE what it tells
    REFUSED number reason                              it was not executed
    FORWARD.SETS number ms begin db time (key value)*  plain SETs with the usual quorums
    REPLY.SETS number (index error)*                   all were done, but for these

A request is forwarded once at most: who gets it executes it or refuses it, and then it may go to another.
When the node that executes it is lost or late, an idempotent command goes to the next one, with the time of its
first try; of any other nobody knows whether it took effect, and the error says so. Each number is
answered once: one that comes again gets the same answer.

Core: messages go through the transport seam.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final

import msgspec

from cluster.ring import NodeId
from cluster.slot import Key, Slot, slot_of
from respkv.command import TABLE
from respkv.group import Answers, Member, Sets
from respkv.lane import OK_BYTES
from respkv.operation import ExecOperation, Operation, by_database, is_idempotent, is_plain_command
from respkv.refusal import TIMED_OUT, UNKNOWN
from respkv.reply import ReplyError
from respkv.session import TRACKING, Session, Transaction
from respkv.spread_part import PARTS
from respkv.trace import traced_by
from respkv.unit import Unit

if TYPE_CHECKING:
    from cluster.batch import Quorums
    from respkv.dispatch import Dispatch

FORWARD: Final = b"FORWARD"
FORWARD_EXEC: Final = b"FORWARD.EXEC"
FORWARD_TRACE: Final = b"FORWARD.TRACE"
REPLY: Final = b"REPLY"
REFUSED: Final = b"REFUSED"
FORWARD_SETS: Final = b"FORWARD.SETS"
REPLY_SETS: Final = b"REPLY.SETS"
VERBS: Final = (FORWARD, FORWARD_EXEC, FORWARD_TRACE, FORWARD_SETS, REPLY, REPLY_SETS, REFUSED)
PATIENCE: Final = (
    0.25  # Of an operation's time: then an idempotent one is sent to another node too.
)
CLOCK_MARGIN_MS: Final = 100  # By what the clocks of two nodes are known less well than this.
IS_RESP3: Final = 1
IS_TRACKED: Final = 2
SEEN_MAX: Final = 4096  # Forwarded operations that are remembered of each peer.


class Packed(msgspec.Struct, array_like=True):
    """A transaction, or a unit, on its way to the node that executes it."""

    commands: list[list[bytes]]
    watches: list[tuple[int, bytes, bytes | None]]
    is_unit: bool = False


class Forwarding:
    """One per dispatch."""

    def __init__(self, dispatch: Dispatch, first_id: int) -> None:
        self._dispatch = dispatch
        self.node = dispatch.node
        self.topology = dispatch.topology
        self.transport = dispatch.transport
        self.timeout_s = dispatch.timeout_s
        self.promise = dispatch.promise
        self.forwards: dict[int, Operation | Sets] = {}
        self.forwarded_total = 0
        self._next_id = first_id
        self._begin_ms = int(PATIENCE * self.timeout_s * 1000) - CLOCK_MARGIN_MS
        # How far a peer's calendar is ahead; `respkv/peers.py` sets it.
        self.lead_ms: Callable[[NodeId], float] = lambda peer: 0.0
        self._agents: dict[NodeId, Session] = {}
        # Forwarded operations of each peer by number: the answer, or None while it is not there.
        self._seen: dict[NodeId, dict[bytes, Sequence[bytes] | None]] = {}

    def forward(self, operation: Operation, target: NodeId) -> None:
        self._next_id += 1
        operation.number = self._next_id
        operation.target = target
        operation.started_ns = self.node.clock_ns()
        self.forwards[operation.number] = operation
        self.forwarded_total += 1
        if operation.is_tracked:
            self.node.tracking.is_read_at(operation, target)
        ms = max(1, int((operation.deadline_s - self.node.now_s) * 1000))
        begin_ms = min(self._begin_ms, ms) if is_idempotent(operation) else ms
        head = (
            b"%d" % operation.number,
            b"%d" % ms,
            b"%d" % (self.node.now_ms() + begin_ms),
            b"%d" % operation.db,
            b"%d" % (operation.is_resp3 * IS_RESP3 + operation.is_tracked * IS_TRACKED),
            b"%d" % (operation.hlc or -self._time_of(operation)),
            b"%d %d" % (operation.quorums.r, operation.quorums.w),
        )
        if isinstance(operation, ExecOperation | Unit):
            watches = operation.watches if isinstance(operation, ExecOperation) else {}
            packed = Packed(
                [args for _, args in operation.commands],
                [(db, key, dots) for (db, key), dots in watches.items()],
                isinstance(operation, Unit),
            )
            self.transport.send(target, (FORWARD_EXEC, *head, msgspec.msgpack.encode(packed)))
        else:
            verb = FORWARD
            if operation.parent is not None and (traced := traced_by(operation)) is not None:
                self._dispatch.tracing.forward(traced, operation, target)
                verb = FORWARD_TRACE
            self.transport.send(target, (verb, *head, *operation.args))

    @staticmethod
    def _time_of(operation: Operation) -> int:
        """When a write came, as a timestamp: what is made of it there is later, as `_is_overtaken` expects."""
        return operation.now_ms << 16 if operation.is_write else 0

    def _hear_time(self, hlc: int, now_ms: int) -> None:
        """What is written from now on is later than this, if that is no further ahead than clocks may be apart."""
        apart_ms = 2 * self.node.config.cluster.clock_skew_max_ms
        if hlc <= (now_ms + apart_ms) << 16:
            self.node.replica.clock.observe(hlc)

    def receive(self, peer: NodeId, message: list[bytes]) -> bool:
        """Take a message of another node's dispatch; False if it is none."""
        verb = message[0]
        if verb == REPLY:
            operation = self._answered(peer, message)
            if operation is not None:
                operation.is_over = True
                operation.data = message[2]
                if len(message) > 3:
                    said = message[3:]
                    self.node.pubsub.say(list(zip(said[::3], said[1::3], said[2::3], strict=True)))
                if operation.parent is not None and (traced := traced_by(operation)) is not None:
                    data = self._dispatch.tracing.answered(traced, operation, message[2])
                    operation.data = data
                if operation.command.name == "WATCH":
                    self._dispatch.execution.take_watched(operation)
                elif operation.transaction is not None and operation.data[1:2].isdigit():
                    operation.session.db = list(by_database(operation))[-1][0]
                self._dispatch.show(operation, self.node.clock_ns() - operation.started_ns)
                self._dispatch.release(operation)
        elif verb == REPLY_SETS:
            self._take_set_replies(peer, message)
        elif verb == FORWARD_SETS:
            self._take_sets(peer, message)
        elif verb in (FORWARD, FORWARD_EXEC, FORWARD_TRACE):
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
        agent = self.agent(peer)
        if self._is_late(peer, message):
            return
        mode = int(message[5])
        agent.db, agent.is_resp3 = int(message[4]), bool(mode & IS_RESP3)
        deadline_s = self.node.now_s + int(message[2]) / 1000
        now_ms = self.node.now_ms()
        try:
            operation = self._forwarded(agent, message, now_ms, deadline_s)
        except ReplyError:  # A newer node's command.
            operation = None
        if operation is None or not self._can_execute(operation):
            self.refuse(peer, number, b"not here")
            return
        operation.origin = (peer, number)
        operation.is_forwarded = True
        time = int(message[6])
        self._hear_time(abs(time), now_ms)
        operation.hlc = max(time, 0)
        operation.quorums = self._quorums_of(message[7])
        operation.is_tracked = bool(mode & IS_TRACKED)
        self._dispatch.in_flight += 1
        if message[0] == FORWARD_TRACE:
            self._dispatch.tracing.adopt_forwarded(operation)
        self._dispatch.execution.execute(operation)

    def _is_late(self, peer: NodeId, message: list[bytes]) -> bool:
        """Refuse what should have begun before now: the sender may have asked another node already.

        It lay in a buffer while this process or the network stood still. Done now, it would undo what
        was written meanwhile.
        """
        if self.node.now_ms() + self.lead_ms(peer) <= int(message[3]):
            return False
        self.refuse(peer, message[1], b"late")
        return True

    def refuse(self, peer: NodeId, number: bytes, reason: bytes) -> None:
        """Nothing of what a peer has forwarded was done: it may go to another node."""
        self._seen.get(peer, {}).pop(number, None)
        self.promise(peer, (REFUSED, number, reason))

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

    def agent(self, peer: NodeId) -> Session:
        """The session that stands for a peer's clients."""
        agent = self._agents.get(peer)
        if agent is None:
            agent = self._agents[peer] = Session(
                0, "", "", self.node.limits, self.node.now_s, authenticated=True
            )
        return agent

    def _forwarded(
        self, agent: Session, message: list[bytes], now_ms: int, deadline_s: float
    ) -> Operation:
        """What a message asks for. Raises ReplyError."""
        if message[0] == FORWARD_EXEC:
            packed = msgspec.msgpack.decode(message[8], type=Packed)
            if packed.is_unit:
                commands = [(TABLE.resolve(args), args) for args in packed.commands]
                return Unit(self._dispatch, agent, commands, now_ms, deadline_s)
            agent.transaction = Transaction(
                [(TABLE.resolve(args), args) for args in packed.commands]
            )
            agent.watches = {(db, key): dots for db, key, dots in packed.watches}
            transaction = ExecOperation(self._dispatch, agent, now_ms, deadline_s)
            agent.transaction, agent.watches = None, {}
            slots: dict[Slot, None] = {}
            for command, args in transaction.transaction.commands:
                slots.update((slot_of(args[at]), None) for at in command.key_positions(args))
            slots.update((slot_of(key), None) for _, key in transaction.watches)
            transaction.slots = tuple(slots)
            return transaction
        args = message[8:]
        command = PARTS.get(args[0]) or TABLE.resolve(args)
        operation = Operation(self._dispatch, agent, command, args, now_ms, deadline_s)
        operation.slots = tuple(
            dict.fromkeys(slot_of(args[at]) for at in command.key_positions(args))
        )
        operation.is_plain = is_plain_command(command, args)
        operation.is_blind = operation.is_plain and command.is_write
        return operation

    def _quorums_of(self, text: bytes) -> Quorums:
        """What the node that the client asked has decided. Raises ValueError."""
        r, w = map(int, text.split())
        if not (0 < r <= len(self.topology.nodes) and 0 < w <= len(self.topology.nodes)):
            raise ValueError("impossible quorums")
        return self._dispatch.coordinator.quorums_of(r, w)

    def _can_execute(self, operation: Operation) -> bool:
        topology = self.topology
        return (
            topology.me not in topology.incomplete
            and not self.node.is_stopping
            and all(topology.owns(slot) for slot in operation.slots)
        )

    def _try_another(self, operation: Operation, *, is_executed: bool) -> None:
        """The node that it was forwarded to refused, or is lost (`is_executed`: it may have run)."""
        if operation.parent is not None and (traced := traced_by(operation)) is not None:
            self._dispatch.tracing.not_answered(traced, operation, is_executed=is_executed)
        if is_executed:
            if not is_idempotent(operation):
                self._dispatch.end(operation, UNKNOWN)
                return
            if operation.command.is_write and not operation.hlc:
                operation.hlc = self._time_of(operation)
        assert operation.target is not None
        operation.tried = (*operation.tried, operation.target)
        if operation.deadline_s <= self.node.now_s:
            self._dispatch.end(operation, TIMED_OUT)
            return
        if isinstance(operation, Unit):
            operation.fall_apart()
            return
        if isinstance(operation, ExecOperation):
            target = self._dispatch.place_exec(operation)
        else:
            positions = operation.command.key_positions(operation.args)
            target = self._dispatch.place(
                operation.command,
                operation.slots,
                operation.args,
                positions,
                operation.tried,
                anywhere=self._dispatch.reads_here(operation.quorums, operation.session),
            )
        self._dispatch.start(operation, target)

    def tick(self, now_s: float) -> None:
        """Send to another node what is late and may be repeated, and give up what has had its time."""
        late_s = self.timeout_s * (1 - PATIENCE)
        for forward in list(self.forwards.values()):
            if forward.deadline_s > now_s:
                if forward.deadline_s - now_s < late_s:
                    self._hurry(forward)
                continue
            del self.forwards[forward.number]
            if isinstance(forward, Sets):
                for member in forward.members:
                    self._dispatch.grouping.deliver(member, b"-%b\r\n" % TIMED_OUT.line)
            else:
                self._dispatch.end(forward, TIMED_OUT)

    def _hurry(self, forward: Operation | Sets) -> None:
        """Its node is late: it may be hung. Once, so that a slow cluster gets no more work."""
        if isinstance(forward, Sets):
            slots = [slot_of(member[3][1]) for member in forward.members]
            if all(len(self.topology.candidates(slot)) > 1 for slot in slots):
                del self.forwards[forward.number]
                self._lose_sets(forward, is_executed=True)
        elif (
            not forward.tried
            and not forward.is_timed
            and is_idempotent(forward)
            and self._has_another(forward)
        ):
            del self.forwards[forward.number]
            self._try_another(forward, is_executed=True)

    def _has_another(self, operation: Operation) -> bool:
        return all(len(self.topology.candidates(slot)) > 1 for slot in operation.slots)

    def disconnected(self, peer: NodeId) -> None:
        """What was forwarded to a peer may have run there or not."""
        for forward in list(self.forwards.values()):
            if forward.target != peer or self.forwards.pop(forward.number, None) is None:
                continue
            if isinstance(forward, Sets):
                self._lose_sets(forward, is_executed=True)
            else:
                self._try_another(forward, is_executed=True)

    def forward_sets(self, target: NodeId, members: list[Member], db: int, now_ms: int) -> None:
        self._next_id += 1
        deadline_s = self.node.now_s + self.timeout_s
        self.forwards[self._next_id] = Sets(target, members, self._next_id, now_ms, deadline_s)
        self.forwarded_total += len(members)
        ms = max(1, int(self.timeout_s * 1000))
        begin_ms = self.node.now_ms() + self._begin_ms
        message = [FORWARD_SETS, b"%d" % self._next_id, b"%d" % ms, b"%d" % begin_ms, b"%d" % db]
        message.append(b"%d" % (now_ms << 16))
        for member in members:
            message += member[3][1:]
        self.transport.send(target, message)

    def _take_sets(self, peer: NodeId, message: list[bytes]) -> None:
        """Another node forwards plain SETs."""
        number = message[1]
        if not self._is_first(peer, number):
            return
        if self.topology.me in self.topology.incomplete or self.node.is_stopping:
            self.refuse(peer, number, b"not here")
            return
        if self._is_late(peer, message):
            return
        agent = self.agent(peer)
        db = int(message[4])
        agent.db, agent.is_resp3 = db, False
        answers = Answers(self._dispatch, peer, number, (len(message) - 6) >> 1)
        members: list[Member] = [
            (agent, answers, index, [b"SET", *message[at : at + 2]])
            for index, at in enumerate(range(6, len(message) - 1, 2))
        ]
        now_ms = self.node.now_ms()
        self._hear_time(int(message[5]), now_ms)
        grouping = self._dispatch.grouping
        if grouping.is_usual:
            members = grouping.set_here(members, self.node.databases[agent.db], now_ms)
        for member in members:
            agent.db = db
            self._dispatch.grouping.go_on_alone(member)

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
            self._dispatch.grouping.deliver(member, errors.get(index, OK_BYTES))

    def _lose_sets(self, sets: Sets, *, is_executed: bool) -> None:
        """The node that they were forwarded to refused, or is lost: each goes on alone."""
        hlc = sets.now_ms << 16 if is_executed else 0
        for member in sets.members:
            self._dispatch.grouping.go_on_alone(member, hlc=hlc, tried=(sets.target,))

    def writer_of(self, key: Key) -> Session | None:
        """The client of this node that tracks keys, and has a write of this one under way to another node."""
        for operation in self.forwards.values():
            if isinstance(operation, Sets) or not operation.session.mode & TRACKING:
                continue
            if any(command.is_write and key in args for command, args in operation.commands):
                return operation.session
        return None

    def answer(self, operation: Operation) -> None:
        """Send the reply of an operation that another node had forwarded."""
        assert operation.origin is not None
        peer, number = operation.origin
        said = [part for each in operation.messages for part in each]
        answer = (REPLY, number, operation.data, *said)
        seen = self._seen.get(peer)
        if seen is not None and number in seen:
            seen[number] = answer
        self.promise(peer, answer)
