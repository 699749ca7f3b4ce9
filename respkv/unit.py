"""Units: consecutive commands of a pipeline on one key, executed at once, as an EXEC would be.

A command that reads what it writes (INCR, APPEND, EXPIRE ...) cannot overlap with another one on its row, so
a pipeline of them would take a round trip for each. `Units` takes a *run* of them out of a session's queue, all at
once, and makes a `Unit` of those on one key: one run of the handlers, one round, one reply for each. Units of one
run overlap, as plain SETs of a pipeline do (`respkv/group.py`), and share the rounds of their tick.

What is a run: commands of one key each, and

- all have the same name: INCR a, INCR b, INCR a; or
- they are records of the same shape, one key after the other: SET a, EXPIRE a, SET b, EXPIRE b.

Commands of other shapes do not overlap, so that an element of a queue is never seen before the record that it
names, nor a lock released before what it guards was done.

A unit writes one row. With several, each could win or lose for itself once its author is not the only one to spread
them, and what runs again because of one would do the others twice.

A unit whose commands cannot be done together (one is too large, its node refused it, data is damaged) does them one
after the other.

Core.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from typing import TYPE_CHECKING, Final

import msgspec

from cluster.ring import NodeId
from cluster.slot import Key, slot_of
from respkv.command import TABLE, Command, Flag
from respkv.group import Run
from respkv.operation import Operation, Pipeline, is_plain_command
from respkv.reply import Reply, encode
from respkv.runner import FIND
from respkv.session import Session
from respkv.transaction import Call, Queued, execute_all
from respkv.waits import note_written

if TYPE_CHECKING:
    from respkv.context import Context
    from respkv.dispatch import Dispatch

COST_MAX: Final = 128
"""Of a run: a command that Redis calls fast costs 1, another one `SLOW_COST`."""
SLOW_COST: Final = 8
BYTES_MAX: Final = 1 << 15  # Of the arguments of a run.
_APART: Final = (
    Flag.NOSCRIPT | Flag.BLOCKING | Flag.CONTROL | Flag.UNCHECKED | Flag.ADMIN | Flag.MOVABLEKEYS
)


class Unit(Operation):
    """A run's commands on one key, two or more. `data` is an error for all of them, or their replies, packed."""

    __slots__ = ("_begun", "_commands", "indexes")

    def __init__(
        self,
        dispatch: Dispatch,
        session: Session,
        commands: Sequence[Queued],
        now_ms: int,
        deadline_s: float,
        *,
        run: Run | None = None,
        indexes: Sequence[int] = (),
    ) -> None:
        super().__init__(dispatch, session, commands[0][0], commands[0][1], now_ms, deadline_s)
        self._commands = commands
        self.parent = run
        self.indexes = indexes
        self._begun = 0  # How many have been, when they are done one after the other.
        self.slots = (slot_of(commands[0][1][1]),)

    @property
    def commands(self) -> Sequence[Queued]:
        return self._commands

    @property
    def is_write(self) -> bool:
        return any(command.is_write for command, _ in self._commands)

    def run(self, context: Context, call: Call) -> Reply:
        return execute_all(context, self._commands, call)

    def encoded(self, reply: Reply, *, is_resp3: bool) -> bytes:
        assert isinstance(reply, list)
        return msgspec.msgpack.encode([encode(each, resp3=is_resp3) for each in reply])

    def count(self, elapsed_ns: int) -> None:
        """Its commands were executed here."""
        each_ns = elapsed_ns // len(self._commands)
        for command, _ in self._commands:
            command.count(1, each_ns)
        self.dispatch.node.runner.served_total += len(self._commands)

    def deliver(self) -> None:
        """Give the run its replies."""
        run = self.parent
        if self.data.startswith(b"-"):
            for index in self.indexes:
                run.take(index, self.data)
        else:
            replies = msgspec.msgpack.decode(self.data, type=list[bytes])
            for index, data in zip(self.indexes, replies, strict=True):
                run.take(index, data)

    # One after the other

    def fall_apart(self) -> None:
        """Nothing was done: do the commands one after the other, wherever each can be done now."""
        self.is_done = self.is_over = True
        self.dispatch.in_flight -= 1
        if self.origin is not None:
            self.dispatch.forwarding.refuse(*self.origin, b"not together")  # It falls apart there.
        else:
            self._begin_next()

    def _begin_next(self) -> None:
        index = self._begun
        if index == len(self._commands):
            return
        self._begun += 1
        command, args = self._commands[index]
        dispatch = self.dispatch
        now_ms = dispatch.node.now_ms()
        single = Operation(dispatch, self.session, command, args, now_ms, self.deadline_s)
        single.slots = (slot_of(args[1]),)
        single.db, single.is_resp3 = self.db, self.is_resp3
        single.quorums = self.quorums
        single.is_plain = is_plain_command(command, args)
        single.is_blind = single.is_plain and command.is_write
        single.parent = self
        single.part = index
        single.tried = self.tried
        dispatch.in_flight += 1
        anywhere = dispatch.reads_here(single.quorums, self.session)
        target = dispatch.place(command, single.slots, args, [1], self.tried, anywhere=anywhere)
        dispatch.start(single, target)

    def take(self, part: int, data: bytes) -> None:
        """One that was done by itself has its reply."""
        self.parent.take(self.indexes[part], data)
        self._begin_next()


class Units:
    """One per dispatch."""

    def __init__(self, dispatch: Dispatch) -> None:
        self._dispatch = dispatch
        self._topology = dispatch.topology
        self._policies = dispatch.node.policies
        self._gate = dispatch.node.runner.gate
        self._fit = {command for command in TABLE.commands.values() if _may_be_in_a_unit(command)}

    def take_run(self, session: Session, first: list[bytes], now_ms: int) -> int:
        """Begin a run that starts with `first`, the rest being in the queue. Returns its length; 0: it is none."""
        pipeline = session.pipeline
        dispatch = self._dispatch
        if (
            session.mode
            or self._gate.is_paused is not None
            or (pipeline is not None and pipeline.operations)
            or not dispatch.grouping.is_usual
        ):
            return 0
        commands = self._run_of(session, first)
        if len(commands) < 2:
            return 0
        by_key: dict[Key, list[int]] = {}
        for index, (_, args) in enumerate(commands):
            by_key.setdefault(args[1], []).append(index)
        places = [self._place(session, commands, indexes) for indexes in by_key.values()]
        if session.is_cluster and any(target != self._topology.me for target in places):
            return 0  # Some are redirected.
        for _ in range(len(commands) - 1):
            session.queue.popleft()
        session.last_command = commands[-1][0]
        deadline_s = dispatch.node.now_s + dispatch.timeout_s
        run = Run(dispatch, session, commands[0][0], now_ms, deadline_s, len(commands))
        if pipeline is None:
            pipeline = session.pipeline = Pipeline()
        pipeline.add(run)
        dispatch.in_flight += 1 + len(by_key)
        for indexes, target in zip(by_key.values(), places, strict=True):
            unit: Operation
            if len(indexes) == 1:
                unit = Operation(dispatch, session, *commands[indexes[0]], now_ms, deadline_s)
                unit.part = indexes[0]
                unit.slots = (slot_of(unit.args[1]),)
                unit.parent = run
            else:
                mine = [commands[index] for index in indexes]
                unit = Unit(dispatch, session, mine, now_ms, deadline_s, run=run, indexes=indexes)
            if unit.is_write:
                note_written(session, unit.slots)
            dispatch.start(unit, target)
        return len(commands)

    def _run_of(self, session: Session, first: list[bytes]) -> list[Queued]:
        """The longest run that the queue begins with, as far as the bounds let it be."""
        found: list[Queued] = []
        cost = size = 0
        for args in (first, *islice(session.queue, COST_MAX)):
            command = FIND(args[0]) or TABLE.find(args[0])
            if command not in self._fit or not _has_one_key(command, args):
                break
            cost += 1 if Flag.FAST in command.flags else SLOW_COST
            size += sum(map(len, args))
            if cost > COST_MAX or size > BYTES_MAX:
                break
            found.append((command, args))
            if len(found) == 2 and command is not found[0][0] and args[1] != first[1]:
                return []  # Mostly: and the rest need not be looked at.
        if self._policies is not None:
            del found[self._policies.plain_count([args for _, args in found]) :]
        if len(found) < 2:
            return []
        count = _same_name(found)
        if count < 2:
            count = _same_shape(found)
        elif is_plain_command(*found[0]):
            return []  # A group's affair.
        return found[:count]

    def _place(
        self, session: Session, commands: list[Queued], indexes: Sequence[int]
    ) -> NodeId | None:
        """Who executes commands on one key. Reads are placed with the writes: they may have to see them."""
        command, args = commands[indexes[0]]
        slots = (slot_of(args[1]),)
        anywhere = self._dispatch.reads_here(self._dispatch.coordinator.quorums, session)
        if anywhere and len(indexes) > 1:
            anywhere = not any(commands[index][0].is_write for index in indexes)
        return self._dispatch.place(command, slots, args, [1], (), anywhere=anywhere)


def _may_be_in_a_unit(command: Command) -> bool:
    keys = command.keys
    return (
        command.is_keyed
        and command.handler is not None
        and not command.is_sliced
        and not command.flags & _APART
        and len(keys) == 1
        and keys[0].first == 1
        and keys[0].last in (1, -1)
        and keys[0].step == 1
        and command.name != "MOVE"  # It writes two rows.
    )


def _has_one_key(command: Command, args: list[bytes]) -> bool:
    """Whether it is a call with the right number of arguments, of which the first is its only key."""
    count = len(args)
    arity = command.arity
    if count != arity and (arity >= 0 or count < -arity):
        return False
    return command.keys[0].last == 1 or count == 2


def _same_name(commands: list[Queued]) -> int:
    name = commands[0][0]
    return next(
        (count for count, (command, _) in enumerate(commands) if command is not name),
        len(commands),
    )


def _same_shape(commands: list[Queued]) -> int:
    """How many commands are records of the same names, each on one key; 0 if the first is a command alone."""
    keys = [args[1] for _, args in commands]
    length = next((count for count, key in enumerate(keys) if key != keys[0]), len(keys))
    if length < 2:
        return 0
    shape = [command for command, _ in commands[:length]]
    end = length
    while (
        end + length <= len(commands)
        and [command for command, _ in commands[end : end + length]] == shape
        and len(set(keys[end : end + length])) == 1
    ):
        end += length
    return end
