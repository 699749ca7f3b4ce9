"""Execution: runs an operation on the local replica, as often as it takes, and begins its wait for others.

It does not choose the node (`respkv/dispatch.py`) and knows no quorums (`cluster/coordinator.py`). A
handler runs on the context as on a single node. What it wrote is committed at once; then the coordinator
is told what was read and written, and the operation waits. It may have to run again: for a page, because
another node had seen more, or because another node was faster.

A command that writes some rows and depends on others has all of them confirmed before it writes
(`Phase`): a write that was built upon something overtaken could not be taken back.

Core.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from cluster.record import decode
from cluster.round import ConflictLost
from cluster.slot import Row, Slot, row_of, slot_of
from engine.errors import EngineError
from engine.store import PageFault
from respkv.gather_place import places_of
from respkv.lane import OK_BYTES
from respkv.operation import ExecOperation, Operation, Phase, by_database
from respkv.refusal import TIMED_OUT, TOO_LARGE, TRIED, text_of
from respkv.reply import OK, Reply, ReplyError
from respkv.session import IN_MULTI, Session, Transaction
from respkv.transaction import end_transaction
from respkv.unit import Unit
from respkv.unlogged import UNLOGGED

if TYPE_CHECKING:
    from respkv.dispatch import Dispatch


class Execution:
    """One per dispatch."""

    def __init__(self, dispatch: Dispatch, retries_max: int) -> None:
        self._dispatch = dispatch
        self.node = dispatch.node
        self._gate = self.node.runner.gate
        self._call = self.node.runner.long_way.call
        self.coordinator = dispatch.coordinator
        self.retries_max = retries_max
        self._parked: list[Operation] = []

    def execute(self, operation: Operation) -> None:
        """Run a command on the local replica, and wait for what it read and wrote to be on enough replicas."""
        node = self.node
        command = operation.command
        is_write = operation.is_write
        transaction = operation.transaction
        unlogged = node.unlogged
        if unlogged is not None and unlogged.is_shown_by_one_of(operation.commands):
            self._refuse(operation, UNLOGGED)
            return
        if is_write:
            if node.refusal is not None:
                self._dispatch.end(operation, node.refusal)
                return
            if self._gate.is_stalled:
                self._park(operation)
                return
        is_blind = operation.is_blind
        coordinator = self.coordinator
        quorums = operation.quorums
        is_checked = not command.is_unchecked and (quorums.checks_all or not is_blind)
        for slot in operation.slots:
            lack = coordinator.lack(
                slot, quorums, is_write=is_write, is_checked=is_checked, is_blind=is_blind
            )
            if lack is not None:
                self._dispatch.end(operation, text_of(lack, is_early=True))
                return
        operation.started_ns = node.clock_ns()
        context = node.context
        session = self.session_of(operation)
        context.bind(session, operation.now_ms)
        context.db = node.databases[session.db]
        context.args = operation.args
        context.store.pinned = operation.pins
        written: list[tuple[Slot, Row, bytes]] = []
        reads: list[tuple[Slot, Row, bytes | None]] = []
        reply: Reply
        try:
            places = self.places(operation)
            if not is_blind and is_write:
                store = context.store
                for slot, row in places:
                    if (
                        coordinator.may_be_taken_back((slot, row))
                        if command.is_unchecked
                        else coordinator.must_wait(slot, row, store.get(slot, row))
                    ):
                        self._park(operation)
                        return
            is_overtaken = self._is_overtaken(operation, places) if operation.hlc else False
            if is_overtaken is None:
                self._dispatch.end(operation, TRIED)
                return
            reply = OK if is_overtaken else operation.run(context, self._call)
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
            self._refuse(operation, node.data_error(error))
            return
        finally:
            if transaction is not None:
                end_transaction(session)
        if operation.is_tracked:
            # Now, and not when it is answered: what changes in between has to be told.
            node.tracking.was_read(operation)
        try:
            store = context.store
            reads = [
                (slot, row, store.get(slot, row))
                for slot, row in places
                if row not in context.effects
            ]
            if operation.phase is Phase.REFRESHED:
                reads = []
            elif reads and context.effects and not is_blind and quorums.r > 1:
                # What it read may be overtaken, and then it must not have written.
                context.drop()
                operation.phase = Phase.REFRESHING
                reads = [(slot, row, store.get(slot, row)) for slot, row in places]
                coordinator.begin(operation, reads, [], quorums=quorums, is_checked=is_checked)
                return
            if context.effects:
                if max(len(effect[3]) for effect in context.effects.values()) > (
                    self._dispatch.message_bytes_max
                ):
                    context.drop()
                    self._refuse(operation, TOO_LARGE)
                    return
                if not is_blind:
                    effects = context.effects.items()
                    operation.before = {(e[0], row): store.get(e[0], row) for row, e in effects}
                if node.tracking.is_active:
                    node.tracking.invalidate(context.effects, context.flushed, session)
                context.commit(written)
        except PageFault as fault:
            context.drop()
            self._fetch(operation, fault)
            return
        finally:
            context.store.pinned = {}
        operation.messages = context.take_messages()
        is_resp3 = session.is_resp3 if transaction is not None else operation.is_resp3
        operation.data = operation.encoded(reply, is_resp3=is_resp3)
        if command.name == "WATCH" and not operation.data.startswith(b"-"):
            operation.data = self.watched_by(session)
        coordinator.begin(operation, reads, written, quorums=quorums, is_checked=is_checked)
        if not operation.waits and not operation.is_over:
            operation.is_over = True
            self._dispatch.finish(operation)

    def _refuse(self, operation: Operation, error: ReplyError) -> None:
        """Nothing was done. Of the commands of a unit, the error may concern one alone."""
        if isinstance(operation, Unit):
            operation.fall_apart()
        else:
            self._dispatch.end(operation, error)

    def session_of(self, operation: Operation) -> Session:
        """The session that a command sees: the client's, or one that stands for it. EXEC finds it as it was.

        WATCH has one of its own: what an attempt has seen counts only when it was confirmed.
        """
        session = operation.session
        is_exec = operation.transaction is not None
        if operation.command.name == "WATCH" or (operation.origin is not None and is_exec):
            session = Session(0, "", "", self.node.limits, self.node.now_s, authenticated=True)
        if not session.id or operation.transaction is not None:
            session.db, session.is_resp3 = operation.db, operation.is_resp3
        if operation.transaction is not None:
            assert isinstance(operation, ExecOperation)
            session.transaction = Transaction(list(operation.transaction.commands))
            session.watches = dict(operation.watches)
            session.mode |= IN_MULTI
        return session

    def watched_by(self, agent: Session) -> bytes:
        """What a WATCH has seen: the client watches, not the agent. See `take_watched`."""
        watched = [(db, key, dots) for (db, key), dots in agent.watches.items()]
        agent.watches.clear()
        return msgspec.msgpack.encode(watched)

    def take_watched(self, operation: Operation) -> None:
        """The client watches what its WATCH has seen, here or elsewhere."""
        if operation.data.startswith(b"-"):
            return
        watched = msgspec.msgpack.decode(operation.data, type=list[tuple[int, bytes, bytes | None]])
        for db, key, dots in watched:
            operation.session.watches.setdefault((db, key), dots)
        operation.data = OK_BYTES

    def places(self, operation: Operation) -> list[tuple[Slot, Row]]:
        """The rows of the keys that a command names."""
        databases = self.node.databases
        commands = operation.commands
        if len(commands) == 1 and operation.transaction is None:
            return places_of(*commands[0], databases[operation.db], databases)
        places: dict[tuple[Slot, Row], None] = {}
        for number, queued, queued_args in by_database(operation):
            for place in places_of(queued, queued_args, databases[number], databases):
                places[place] = None
        if isinstance(operation, ExecOperation):
            for watched_db, key in operation.watches:
                places[slot_of(key), row_of(databases[watched_db], key)] = None
        return list(places)

    def _is_overtaken(self, operation: Operation, places: list[tuple[Slot, Row]]) -> bool | None:
        """Whether a SET that may have been made before was made, or has been overwritten since.

        None: nobody can know. Its time is of one node's clock, and that of the row of another's: what was
        written a while before it may look later, as far as two clocks can be apart. Nor does anybody know if
        R is less than W: no more than R replicas confirm what is found.
        """
        store = self.node.context.store
        records = [decode(raw) for slot, row in places if (raw := store.get(slot, row))]
        times = [max((v.hlc for v in record.versions), default=0) for record in records]
        if len(times) < len(places) or min(times, default=0) < operation.hlc:
            return False
        if operation.quorums.r < operation.quorums.w:
            return None
        apart_ms = 2 * self.node.config.cluster.clock_skew_max_ms
        if min(times) >= operation.hlc + (apart_ms << 16):
            return True
        args = operation.args
        versions = records[0].versions
        is_there = len(args) == 3 and len(versions) == 1 and versions[0].payload == args[2]
        return True if is_there and not versions[0].expire_at_ms else None

    def _fetch(self, operation: Operation, fault: PageFault) -> None:
        """Have pages read, then run again: this one, and all that the rows of its other commands are in."""
        faults = [fault]
        if operation.transaction is not None:
            faults += self._faults(operation)
        missing = len(faults)

        def resume(now_ms: int, failure: ReplyError | None) -> None:
            nonlocal missing
            missing -= 1
            if failure is not None:
                self._dispatch.end(operation, failure)
            elif not missing and not operation.is_done:
                self.execute(operation)

        for each in faults:
            self.node.fetch(each, operation.pins, resume)

    def _faults(self, operation: Operation) -> list[PageFault]:
        """The faults that its rows meet now."""
        store = self.node.context.store
        store.pinned = operation.pins
        faults = []
        for slot, row in self.places(operation):
            try:
                store.get(slot, row)
            except PageFault as fault:
                faults.append(fault)
            except EngineError:
                pass  # The command meets it again.
        store.pinned = {}
        return faults

    def _park(self, operation: Operation) -> None:
        self._parked.append(operation)

    def run_again(self, operation: Operation) -> None:
        """What it saw has been overtaken."""
        operation.phase = Phase.FIRST
        if operation.is_blind and operation.is_forwarded and not operation.hlc:
            # Who forwarded it may have had it done elsewhere meanwhile, and others may have written since.
            operation.hlc = operation.now_ms << 16
        if operation.attempt > self.retries_max:
            operation.is_over = True
            self._dispatch.end(operation, text_of(ConflictLost(is_partial=False), is_early=False))
            return
        if operation.deadline_s <= self.node.now_s:
            operation.is_over = True
            self._dispatch.end(operation, TIMED_OUT)
            return
        self.execute(operation)

    @property
    def has_parked(self) -> bool:
        return bool(self._parked)

    def try_parked(self) -> None:
        """Run what waited for a stall to end, or for another command's fate."""
        parked, self._parked = self._parked, []
        for operation in parked:
            if operation.is_done:
                continue
            if operation.deadline_s <= self.node.now_s:
                self._dispatch.end(operation, TIMED_OUT)
            elif not operation.is_done:
                self.execute(operation)
