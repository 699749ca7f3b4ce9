"""Spread commands: RENAME, COPY, MSETNX, BITOP, LCS, EXEC and others on keys that no single node holds.

Commands that can be split by slot are (`respkv/dispatch.py`), and commands of which some node is a replica
of all slots run there. What is left takes these steps, all led by the node that the client is connected to:

    fetch      the rows of all keys, each from its slot's coordinator, confirmed by R replicas there
    run        the handler on a `View` of these rows: a reply, and effects that are not applied
    validate   the rows of slots that are not written: the same question again, answered without the values
    commit     the effects, slot by slot, each at its slot's coordinator, if the rows are still what was seen

Rows that did not change between two fetches were all there at one moment: so a command that only reads
(LCS, an EXEC of reads) shows one moment, and what a write was built upon was there together. What changed is
fetched again, and the command runs again, as long as nothing is written.

Each commit is atomic and checked like any write of its slot; all of them together are not. They go out in
stages: first what is written, and what is removed last, so that a key that is renamed is never lost, and is
there twice for a moment. EXEC writes slot by slot in the order of its commands, so that nothing is seen
before what it names. Other commands write the first slot alone, since most races are lost there and cost
nothing, and then all others. Where a later commit fails, the error says that a part was applied.

The parts are commands between nodes: `respkv/spread_part.py`.

Core: messages go through the dispatch's forwarding. Sources: double collect (Afek et al., Atomic Snapshots
of Shared Memory); optimistic concurrency control by validation (Kung and Robinson).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, Final, cast

from cluster.quorum_messages import dots_of
from cluster.record import DELETION, TYPE_MASK
from cluster.replica import Effect
from cluster.round import ConflictLost, Place
from cluster.slot import SLOT_COUNT, Row, Slot
from engine.errors import EngineError
from engine.store import PageFault, Store
from respkv.lane import OK_BYTES
from respkv.operation import Operation
from respkv.refusal import OVERTAKEN, TIMED_OUT, TOO_BUSY, TOO_LARGE, parted, text_of
from respkv.reply import Reply, ReplyError, encode
from respkv.session import Session
from respkv.spread_part import (
    COMMIT,
    FETCH,
    MalformedPart,
    commit_args,
    fetch_args,
    fetched,
    places_of_part,
)
from respkv.transaction import end_transaction

if TYPE_CHECKING:
    from respkv.command import Command
    from respkv.dispatch import Dispatch

LOST: Final = text_of(ConflictLost(is_partial=False), is_early=False)
Stage = list[list[bytes]]  # Commits that go out together.


class RowFault(PageFault):
    """A handler touches a row that has not been fetched from its slot's coordinator."""

    def __init__(self, place: Place) -> None:
        Exception.__init__(self)
        self.place = place


class View:
    """The store as a spread command sees it: rows of many nodes. All else is this node's."""

    def __init__(self, store: Store, rows: dict[Place, bytes | None]) -> None:
        self._store = store
        self._rows = rows
        self.active = _Nothing()

    def get(self, slot: Slot, row: Row) -> bytes | None:
        """As `Store.get`. Raises RowFault."""
        if slot >= SLOT_COUNT:
            return self._store.get(slot, row)
        try:
            return self._rows[slot, row]
        except KeyError:
            raise RowFault((slot, row)) from None

    lookup = get

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)


class _Nothing:
    """An active memtable without rows, so that all look-ups are the view's."""

    def __getitem__(self, slot: Slot) -> dict[Row, bytes]:
        return {}


class Spreads:
    """One per dispatch: the spread commands that are under way."""

    def __init__(self, dispatch: Dispatch) -> None:
        self.dispatch = dispatch
        self.running: dict[Operation, Spread] = {}
        self.held_bytes = 0  # Of the rows that were fetched and not dropped yet.
        self.begun_total = self.retries_total = 0

    def begin(self, operation: Operation) -> None:
        """Execute a command whose keys no single node holds."""
        self.begun_total += 1
        spread = self.running[operation] = Spread(self, operation)
        spread.begin()

    def agent(self) -> Session:
        """The session in which this node executes parts of its own."""
        return self.dispatch.forwarding.agent(self.dispatch.topology.me)


class Spread:
    """One command. It ends in `_finish` or in `_fail`."""

    def __init__(self, spreads: Spreads, operation: Operation) -> None:
        self._spreads = spreads
        self._dispatch = spreads.dispatch
        self._node = spreads.dispatch.node
        self._operation = operation
        self._rows: dict[Place, bytes | None] = {}
        self._held_bytes = 0
        self._attempt = 0
        self._has_written = False
        self._data = b""  # The encoded reply of the last run.
        self._stages: list[Stage] = []
        self._parts: list[Operation] = []
        self._then: Callable[[], None] = self._run

    def begin(self) -> None:
        self._operation.started_ns = self._node.clock_ns()
        self._refresh(self._dispatch.execution.places(self._operation), self._run)

    # Fetch

    def _refresh(self, places: Iterable[Place], then: Callable[[], None]) -> None:
        """Have rows again as their coordinators hold them, and then go on."""
        by_slot: dict[Slot, dict[Row, bytes | None]] = {}
        for place in places:
            known = dots_of(self._rows[place]) if place in self._rows else None
            by_slot.setdefault(place[0], {})[place[1]] = known
        self._send(FETCH, [fetch_args(rows) for rows in by_slot.values()], then)

    def _take_rows(self) -> bool | None:
        """Keep what was fetched. Whether anything differs from what was known; None if the command has failed."""
        if (error := self._first_error()) is not None:
            self._fail(error)
            return None
        has_changed = False
        for part in self._parts:
            places = places_of_part(FETCH, part.args)
            try:
                rows = fetched(part.data)
            except MalformedPart as malformed:
                self._node.log.error("a part was not answered", reason=str(malformed))
                self._fail(TIMED_OUT)
                return None
            for place, row in zip(places, rows, strict=True):
                if not isinstance(row, bool):
                    has_changed = True
                    self._rows[place] = row
        held_bytes = sum(len(raw) for raw in self._rows.values() if raw)
        self._spreads.held_bytes += held_bytes - self._held_bytes
        self._held_bytes = held_bytes
        if self._spreads.held_bytes > self._dispatch.in_flight_bytes_max:
            self._fail(TOO_BUSY)
            return None
        return has_changed

    # Run

    def _run(self) -> None:
        """Fetched: run the handler, and go on with what it would write."""
        if self._take_rows() is None:
            return
        self._call()

    def _call(self) -> None:
        node, operation = self._node, self._operation
        long_way, context = node.runner.long_way, node.context
        session = self._dispatch.execution.session_of(operation)
        context.bind(session, operation.now_ms)
        context.db = node.databases[session.db]
        context.args = operation.args
        store = context.store
        store.pinned = operation.pins
        context.store = cast(Store, View(store, self._rows))
        reply: Reply
        try:
            reply = long_way.call(operation.command, operation.args)
        except ReplyError as error:
            error.__traceback__ = None
            context.drop()
            operation.command.failed_calls += 1
            node.count_error(error)
            reply = error
        except RowFault as fault:
            context.drop()
            self._refresh([fault.place], self._run)
            return
        except PageFault as fault:
            context.drop()
            node.fetch(fault, operation.pins, self._resume)
            return
        except EngineError as error:
            context.drop()
            self._fail(node.data_error(error))
            return
        finally:
            context.store = store
            store.pinned = {}
            if operation.transaction is not None:
                end_transaction(session)
        is_exec = operation.transaction is not None
        self._data = encode(reply, resp3=session.is_resp3 if is_exec else operation.is_resp3)
        if operation.command.name == "WATCH" and not self._data.startswith(b"-"):
            self._data = self._dispatch.execution.watched_by(session)
        operation.messages = context.take_messages()  # Said when all of it is done.
        effects = dict(context.effects)
        context.drop()
        self._plan(effects)

    def _resume(self, now_ms: int, failure: ReplyError | None) -> None:
        if failure is not None:
            self._fail(failure)
        elif self._operation in self._spreads.running:
            self._call()

    def _plan(self, effects: dict[Row, Effect]) -> None:
        """Make the commits, and see first whether what they are built upon is still there."""
        unseen = [
            (slot, row) for row, (slot, *_) in effects.items() if (slot, row) not in self._rows
        ]
        if unseen:  # It wrote blindly what none of its keys names.
            self._refresh(unseen, self._run)
            return
        is_exec = self._operation.transaction is not None
        self._stages = stages(self._rows, effects, is_in_order=is_exec)
        written = {effect[0] for effect in effects.values()}
        read = [place for place in self._rows if place[0] not in written]
        if read:
            self._refresh(read, self._validate)
        else:
            self._commit()

    def _validate(self) -> None:
        match self._take_rows():
            case True:
                if self._may_repeat():
                    self._call()
            case False:
                self._commit()

    # Commit

    def _commit(self) -> None:
        """Send the next stage, or answer."""
        if not self._stages:
            self._finish()
            return
        if not self._has_written and any(
            sum(map(len, args)) > self._dispatch.message_bytes_max
            for stage in self._stages
            for args in stage
        ):
            self._fail(TOO_LARGE)
            return
        self._send(COMMIT, self._stages.pop(0), self._committed)

    def _committed(self) -> None:
        has_written = any(part.data == OK_BYTES for part in self._parts)
        error = self._first_error()
        is_stale = any(part.data != OK_BYTES for part in self._parts)
        self._has_written |= has_written
        if error is not None:
            self._fail(error)
        elif not is_stale:
            self._commit()
        elif self._has_written:
            self._fail(OVERTAKEN)
        elif self._may_repeat():
            self._refresh(list(self._rows), self._run)

    def _may_repeat(self) -> bool:
        """Whether it runs again; if not, it has been answered."""
        self._attempt += 1
        self._spreads.retries_total += 1
        if self._attempt > self._dispatch.execution.retries_max:
            self._fail(LOST)
            return False
        return True

    # Parts

    def _send(self, command: Command, parts: list[list[bytes]], then: Callable[[], None]) -> None:
        """Have parts executed, each at its slot's coordinator; `then` finds their answers in `_parts`."""
        dispatch, operation = self._dispatch, self._operation
        if operation.deadline_s <= self._node.now_s:
            self._fail(TIMED_OUT)
            return
        self._then = then
        agent = self._spreads.agent()
        now_ms = self._node.now_ms()
        self._parts = []
        for number, args in enumerate(parts):
            part = Operation(dispatch, agent, command, args, now_ms, operation.deadline_s)
            part.slots = (places_of_part(command, args)[0][0],)
            part.parent, part.part = self, number
            part.quorums = operation.quorums
            self._parts.append(part)
        dispatch.in_flight += len(self._parts)
        for part in list(self._parts):
            dispatch.start(part, self._place(part))

    def _place(self, part: Operation) -> Any:
        """Reads of reads go where reads go; all others to the coordinator, where writers meet."""
        is_write = self._operation.command.is_write or self._operation.transaction is not None
        if is_write:
            return self._dispatch.topology.coordinators[part.slots[0]]
        anywhere = part.quorums.reads_anywhere
        return self._dispatch.place(part.command, part.slots, part.args, [1], (), anywhere=anywhere)

    def take(self, part: int, data: bytes) -> None:
        """The answer of a part stands: see `Dispatch.release`."""
        if all(each.is_done for each in self._parts):
            self._then()

    def _first_error(self) -> ReplyError | None:
        for part in self._parts:
            if part.data.startswith(b"-"):
                return ReplyError(part.data[1:-2])
        return None

    # The end

    def _finish(self) -> None:
        operation = self._operation
        self._close()
        operation.data = self._data
        operation.is_over = True
        if operation.is_tracked:
            self._node.tracking.disown(operation)
        self._dispatch.finish(operation)

    def _fail(self, error: ReplyError) -> None:
        """Answer an error, which says so if a part was written."""
        operation = self._operation
        self._close()
        if operation.transaction is not None:
            operation.session.db = operation.db
        self._dispatch.end(operation, parted(error) if self._has_written else error)

    def _close(self) -> None:
        del self._spreads.running[self._operation]
        self._spreads.held_bytes -= self._held_bytes
        self._rows.clear()


def stages(
    rows: dict[Place, bytes | None], effects: dict[Row, Effect], *, is_in_order: bool
) -> list[Stage]:
    """The commits that bring about effects, in the order in which they have to be made.

    `rows` is what was seen, by which each commit is checked. `is_in_order`: of a transaction.
    """
    slots = dict.fromkeys(effect[0] for effect in effects.values())
    writing = {effect[0] for effect in effects.values() if effect[1] & TYPE_MASK != DELETION}
    first = [[slot] for slot in slots if slot in writing]
    if not is_in_order and len(first) > 1:
        first[1:] = [[slot for group in first[1:] for slot in group]]
    removed = [slot for slot in slots if slot not in writing]
    if removed and not first:
        first.append([removed.pop(0)])
    commits = {
        slot: commit_args(
            (row, dots_of(raw), effects.get(row)) for (of, row), raw in rows.items() if of == slot
        )
        for slot in slots
    }
    return [[commits[slot] for slot in group] for group in (*first, removed) if group]
