"""Grouping: finds the plain GETs and SETs that go through the cluster together, and sends the others on alone.

How a group is executed stands in `respkv/group.py`. Members are lone commands of many clients in one tick
(`serve_lone`), or consecutive ones in a pipeline (`take_run`).

Core. Hot: see bench/replicated.py.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from cluster.errors import ClusterError
from cluster.ring import NodeId
from cluster.slot import SLOT_COUNT, slot_of
from respkv.command import TABLE, Command
from respkv.group import Answers, Group, GroupLane, Member, Run, plain_slots
from respkv.lane import OK_BYTES, VALUE_BYTES_MAX
from respkv.operation import Operation, Pipeline
from respkv.refusal import text_of
from respkv.runner import LANES_FROM_SLOW_NS
from respkv.session import WAITING, Session
from respkv.waits import note_written

if TYPE_CHECKING:
    from respkv.dispatch import Dispatch
    from respkv.policy_match import Policies

GETS: Final = (b"GET", b"get")
SETS: Final = (b"SET", b"set")
RUN_MIN: Final = 2
RUN_MAX: Final = 512


class Grouping:
    """One per dispatch."""

    def __init__(self, dispatch: Dispatch) -> None:
        self._dispatch = dispatch
        self.node = dispatch.node
        self.topology = dispatch.topology
        self.coordinator = dispatch.coordinator
        self.timeout_s = dispatch.timeout_s
        self.lane = GroupLane(dispatch, dispatch.coordinator)
        self._policies = dispatch.node.policies
        self._get = TABLE.commands["GET"]
        self._set = TABLE.commands["SET"]
        self._owns_all = all(map(dispatch.topology.owns, range(SLOT_COUNT)))

    def serve_lone(self, sessions: list[Session], commands: list[list[bytes]], now_ms: int) -> None:
        """Execute one command of each session. All sessions use the same database and protocol."""
        if not self.is_usual:
            for session, args in zip(sessions, commands, strict=True):
                self._dispatch.serve(session, [args], now_ms)
            return
        if self._policies is not None:
            sessions, commands = self._serve_ruled(self._policies, sessions, commands, now_ms)
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
                self._dispatch.serve(session, [args], now_ms)
                continue
            session.mode |= WAITING
            session.is_grouped = True
            session.last_command = self._get if len(args) == 2 else self._set
        if gets or sets:
            self._group(gets, sets, self.node.databases[sessions[0].db], sessions[0].db, now_ms)

    def _serve_ruled(
        self,
        policies: Policies,
        sessions: list[Session],
        commands: list[list[bytes]],
        now_ms: int,
    ) -> tuple[list[Session], list[list[bytes]]]:
        """Serve the commands on keys that have a policy, one by one. Returns the others."""
        others: list[Session] = []
        plain: list[list[bytes]] = []
        for session, args in zip(sessions, commands, strict=True):
            if len(args) > 1 and policies.find(args[1]) is not None:
                self._dispatch.serve(session, [args], now_ms)
            else:
                others.append(session)
                plain.append(args)
        return others, plain

    def take_run(self, session: Session, first: list[bytes], now_ms: int) -> int:
        """Begin a run of plain GETs or SETs that starts with `first`, the rest being in the queue; 0 if it is none."""
        name = first[0]
        is_get = name in GETS and len(first) == 2
        if session.mode or not (is_get or (name in SETS and len(first) == 3)):
            return 0
        pipeline = session.pipeline
        if pipeline is None:
            pipeline = session.pipeline = Pipeline()
        if pipeline.is_full or not self.is_usual:
            return 0
        queue = session.queue
        length = len(first)
        commands = [first]
        for args in queue:
            if args[0] != name or len(args) != length or len(commands) >= RUN_MAX:
                break
            commands.append(args)
        if self._policies is not None:
            del commands[self._policies.plain_count(commands) :]
        keys = [args[1] for args in commands]
        count = pipeline.count_plain(keys)
        if count < RUN_MIN:
            return 0
        del keys[count:], commands[count:]
        # Reads that are executed here are confirmed by the same message anyway.
        is_shared = not (is_get and self._owns_all) and len(set(keys)) < count
        if is_shared and not is_get and max(len(args[2]) for args in commands) > VALUE_BYTES_MAX:
            return 0  # It might be refused for its length, and must not answer for the others.
        slots = plain_slots(commands)
        me, coordinators = self.topology.me, self.topology.coordinators
        is_mine = all(slot >= 0 and coordinators[slot] == me for slot in slots)
        if session.is_cluster and not is_mine:
            return 0  # Some are redirected.
        command = self._get if is_get else self._set
        session.last_command = command
        run = Run(self._dispatch, session, command, now_ms, self.node.now_s + self.timeout_s, count)
        run.keys = tuple(keys)
        run.is_plain = True
        pipeline.add(run)
        self._dispatch.in_flight += 1
        for _ in range(count - 1):
            queue.popleft()
        chosen = run.share(keys) if is_shared else range(count)
        members: list[Member] = [(session, run, index, commands[index]) for index in chosen]
        db = self.node.databases[session.db]
        if is_get:
            self._group(members, [], db, session.db, now_ms)
        else:
            self._group([], members, db, session.db, now_ms)
        return count

    def _is_coordinated(self, args: list[bytes]) -> bool:
        """Whether this node coordinates the slot of a command's first key: elsewhere the cluster port redirects."""
        return len(args) > 1 and self.topology.coordinators[slot_of(args[1])] == self.topology.me

    @property
    def is_usual(self) -> bool:
        """Whether plain commands may take the short way."""
        return (
            not self.node.runner.has_observers
            and self.node.slowlog.threshold_ns >= LANES_FROM_SLOW_NS
            and self.coordinator.quorums.r <= 2
            and self._dispatch.reads_anywhere
            and self.topology.me not in self.topology.incomplete
            and self.coordinator.in_flight_bytes <= self._dispatch.in_flight_bytes_max
        )

    def _group(
        self, gets: list[Member], sets: list[Member], db: int, session_db: int, now_ms: int
    ) -> None:
        """Execute members here, have others executed elsewhere, and let the rest go on alone."""
        self.coordinator.look()
        lane = self.lane
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
                marks = member[0].written
                if marks is None or slot < 0:
                    note_written(member[0], (slot_of(member[3][1]),))
                else:
                    marks[slot >> 3] = 1
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
                    self._dispatch.forwarding.forward_sets(target, members, session_db, now_ms)
        for member in rest:
            self.go_on_alone(member)

    def set_here(self, members: list[Member], db: int, now_ms: int) -> list[Member]:
        """Do plain SETs that another node has forwarded; returns those that have to go on alone."""
        self.coordinator.look()
        return self.lane.set(self._set, members, db, now_ms)

    def go_on_alone(
        self,
        member: Member,
        *,
        hlc: int = 0,
        tried: tuple[NodeId, ...] = (),
        ran_ms: int = 0,
    ) -> None:
        """A member of a group becomes an operation of its own. `ran_ms`: when the group has run it, in vain."""
        session, part_of, index, args = member
        command = self._get if len(args) == 2 else self._set
        now_ms = ran_ms or self.node.now_ms()
        operation = Operation(
            self._dispatch, session, command, args, now_ms, self.node.now_s + self.timeout_s
        )
        operation.slots = (slot_of(args[1]),)
        operation.keys = (args[1],)
        operation.is_plain = True
        operation.is_blind = command is self._set
        operation.hlc = hlc
        operation.tried = tried
        operation.is_forwarded = isinstance(part_of, Answers)
        if ran_ms:
            operation.written, operation.attempt = 0, 1
            if operation.is_blind and operation.is_forwarded:
                operation.hlc = ran_ms << 16
        self._dispatch.in_flight += 1
        if part_of is None:
            session.is_grouped = False
            pipeline = session.pipeline
            if pipeline is None:
                pipeline = session.pipeline = Pipeline()
            pipeline.add(operation)
        else:
            operation.parent = part_of
            operation.part = index
        if operation.is_forwarded:
            self._dispatch.execution.execute(operation)  # It was forwarded once.
            return
        anywhere = self._dispatch.reads_here(operation.quorums, session)
        self._dispatch.start(
            operation,
            self._dispatch.place(command, operation.slots, args, [1], tried, anywhere=anywhere),
        )

    def fail_alone(self, member: Member, command: Command, error: ClusterError) -> None:
        """A member of a group gets an error."""
        reply = text_of(error, is_early=False)
        command.failed_calls += 1
        self.node.count_error(reply)
        self.deliver(member, b"-%b\r\n" % reply.line)

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
            self.node.runner.served_total += count

    def deliver(self, member: Member, data: bytes) -> None:
        session, part_of, index, _ = member
        if part_of is None:
            session.mode &= ~WAITING
            session.is_grouped = False
            session.out.append(data)
            self.node.touch(session)
        else:
            part_of.take(index, data)
