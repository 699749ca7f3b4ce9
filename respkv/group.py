"""Groups: plain GETs and SETs that wait for other nodes together, so that one costs little.

Nearly all that a busy cluster does is GET and SET of single keys. A `Group` holds those of one tick that
are executed at one place: its *members* come from one session's pipeline (then they are parts of a
`Run`) or are lone commands of many sessions. They are written for speed, like `respkv/lane.py`: one
object waits for all, and each member costs an entry in a list. A member that does not go through at
once (a conflict, another state elsewhere, an error) leaves the group and goes on as an `Operation`
of its own; so does, from the start, whatever is not plain (`respkv/dispatch.py`).

    GroupLane.get / set     executes members here
    Sets                    members that another node executes: FORWARD.SETS

bench/replicated.py measures.

Core.
"""

from __future__ import annotations

from binascii import crc_hqx
from typing import TYPE_CHECKING, Any, Final

from xxhash import xxh3_64_digest

from cluster.coordinator import ROUND_BYTES_MAX, Coordinator
from cluster.errors import ClusterError
from cluster.quorum_messages import QUESTION
from cluster.record import HEADER, HEADER_BYTES, STRING
from cluster.ring import NodeId
from cluster.round import Pending, Place
from cluster.slot import MIDDLES, Key, Slot, slot_of
from cluster.slot_clocks import NOBODY
from engine.errors import EngineError
from engine.log_format import COMPLETE, ENVELOPE
from engine.memtable import ENTRY_OVERHEAD_BYTES
from engine.store import PageFault
from respkv.lane import BULK_HEADS, CRLF, KEY_BYTES_MAX, LENGTHS, OK_BYTES, VALUE_BYTES_MAX
from respkv.operation import Operation
from respkv.session import Session

if TYPE_CHECKING:
    from respkv.command import Command
    from respkv.dispatch import Dispatch

_pack_header = HEADER.pack
_RAW_BYTES_MAX: Final = HEADER_BYTES + LENGTHS - 1
_NULLS: Final = (b"$-1\r\n", b"_\r\n")


class Run(Operation):
    """Consecutive commands in a session's pipeline: one operation, with as many replies.

    They are plain ones of one name, or units (`respkv/unit.py`). Of plain ones on one key only the last is a member of
    a group, if `share` is called: it answers for the others. All of them happen at once then, and nobody sees what an
    earlier SET wrote.
    """

    __slots__ = ("_earlier", "left", "replies")

    def __init__(
        self,
        dispatch: Dispatch,
        session: Session,
        command: Command,
        now_ms: int,
        deadline_s: float,
        count: int,
    ) -> None:
        super().__init__(dispatch, session, command, [], now_ms, deadline_s)
        self.replies: list[bytes] = [b""] * count
        self.left = count
        self._earlier: dict[int, list[int]] = {}  # Of a member: whom else it answers for.

    def share(self, keys: list[Key]) -> list[int]:
        """Choose the members, one for each of the keys of all commands; returns their numbers."""
        self.started_ns = self.dispatch.node.clock_ns()
        last = {key: index for index, key in enumerate(keys)}
        for index, key in enumerate(keys):
            member = last[key]
            if member != index:
                self._earlier.setdefault(member, []).append(index)
        return sorted(last.values())

    def take(self, index: int, data: bytes) -> None:
        self.replies[index] = data
        self.left -= 1
        earlier = self._earlier.get(index)
        if earlier is not None:
            for other in earlier:
                self.replies[other] = data
            self.left -= len(earlier)
            node = self.dispatch.node
            self.command.count(len(earlier), node.clock_ns() - self.started_ns)
            node.runner.served_total += len(earlier)
        if not self.left:
            self.data = b"".join(self.replies)
            self.is_over = True
            self.dispatch.release(self)


class Answers:
    """Plain SETs that another node has forwarded: answered when all of them are done."""

    __slots__ = ("dispatch", "errors", "left", "number", "peer")

    def __init__(self, dispatch: Dispatch, peer: NodeId, number: bytes, count: int) -> None:
        self.dispatch = dispatch
        self.peer = peer
        self.number = number
        self.left = count
        self.errors: list[bytes] = []

    def take(self, index: int, data: bytes) -> None:
        if data != OK_BYTES:
            self.errors += (b"%d" % index, data)
        self.left -= 1
        if not self.left:
            self.dispatch.forwarding.answer_sets(self)


# Whose command it is, what it is a part of (None: a lone command), which part, and the command.
Member = tuple[Session, Any, int, list[bytes]]


class Group(Pending):
    """Members that are executed here. Each waits for one confirmation; `waits` counts those that are left."""

    __slots__ = (
        "command", "dispatch", "gone", "members", "now_ms", "places", "replies", "started_ns",
    )  # fmt: skip

    def __init__(self, dispatch: Dispatch, command: Command, now_ms: int) -> None:
        super().__init__()
        self.dispatch = dispatch
        self.now_ms = now_ms
        self.command = command
        self.is_blind = command.is_write
        self.members: list[Member] = []
        self.places: list[Place] = []
        self.replies: list[bytes] | None = None  # None: all OK.
        self.gone: dict[int, None] = {}  # Members that left.
        self.started_ns = dispatch.node.clock_ns()

    @property
    def may_be_twice(self) -> bool:
        """See `Operation.may_be_twice`. What a node forwards is a group of its own."""
        return isinstance(self.members[0][1], Answers)

    def settled(self) -> None:
        self.dispatch.grouping.finish_group(self)

    def stale(self) -> None:
        raise AssertionError("members go on alone")

    def failed(self, error: ClusterError) -> None:
        raise AssertionError("members fail alone")

    def again(self, attempt: int, place: Place) -> None:
        index = self._leave(place)
        if index is not None:
            self.dispatch.grouping.go_on_alone(self.members[index], ran_ms=self.now_ms)
            self.confirm(attempt)

    def fail(self, attempt: int, error: ClusterError, place: Place) -> None:
        index = self._leave(place)
        if index is not None:
            self.dispatch.grouping.fail_alone(self.members[index], self.command, error)
            self.confirm(attempt)

    def _leave(self, place: Place) -> int | None:
        for index, mine in enumerate(self.places):
            if mine == place and index not in self.gone:
                self.gone[index] = None
                return index
        return None


class Sets:
    """Plain SETs that another node executes."""

    __slots__ = ("deadline_s", "members", "now_ms", "number", "target")

    def __init__(
        self, target: NodeId, members: list[Member], number: int, now_ms: int, deadline_s: float
    ) -> None:
        self.target = target
        self.members = members
        self.number = number
        self.now_ms = now_ms
        self.deadline_s = deadline_s


class GroupLane:
    """Executes members. One per dispatch."""

    def __init__(self, dispatch: Dispatch, coordinator: Coordinator) -> None:
        self._dispatch = dispatch
        self._coordinator = coordinator

    def get(self, command: Command, members: list[Member], db: int, now_ms: int) -> list[Member]:
        """Answer plain GETs of slots that this node holds; returns those that are not plain after all."""
        dispatch = self._dispatch
        coordinator = self._coordinator
        batches = coordinator.batches
        context = dispatch.node.context
        store = context.store
        slots = store.active
        middles = MIDDLES[db]
        is_read_elsewhere = coordinator.quorums.r > 1
        group = Group(dispatch, command, now_ms)
        replies: list[bytes] = []
        places = group.places
        taken = group.members
        rest: list[Member] = []
        misses = 0
        for member in members:
            key = member[3][1]
            length = len(key)
            if length > KEY_BYTES_MAX:
                rest.append(member)
                continue
            slot = slot_of(key) if b"{" in key else crc_hqx(key, 0) & 16383
            row = xxh3_64_digest(key)[:6] + middles[length] + key
            raw = slots[slot].get(row)
            batch = batches[slot]
            if raw is None:
                try:
                    raw = store.lookup(slot, row)
                except (PageFault, EngineError):
                    rest.append(member)
                    continue
            if not batch.can_read:
                rest.append(member)
                continue
            if raw is None:
                misses += 1
                replies.append(_NULLS[member[0].is_resp3])
                dots = b""
            elif raw[0] != STRING or len(raw) > _RAW_BYTES_MAX:
                rest.append(member)
                continue
            else:
                replies.append(BULK_HEADS[len(raw) - HEADER_BYTES] + raw[HEADER_BYTES:] + CRLF)
                dots = raw[1:17]
            taken.append(member)
            places.append((slot, row))
            if is_read_elsewhere:
                if not batch.is_open:
                    coordinator.open(batch)
                batch.reads.append((group, 0, slot, row, dots))
                batch.questions += (QUESTION(slot, len(row), len(dots)), row, dots)
        context.hits += len(taken) - misses
        context.misses += misses
        group.replies = replies
        self._begin(group, len(taken) if is_read_elsewhere else 0)
        return rest

    def set(self, command: Command, members: list[Member], db: int, now_ms: int) -> list[Member]:
        """Do plain SETs of slots that this node coordinates; returns those that are not plain after all."""
        dispatch = self._dispatch
        coordinator = self._coordinator
        batches = coordinator.batches
        replica = dispatch.node.replica
        store = replica.store
        memtable = store.memtable
        memory = memtable.slots
        pieces = store.log.pieces
        counters = replica.clocks.own
        actor = replica.clocks.actor
        sole = replica.clocks.sole
        unsettled = replica.unsettled
        clock = replica.clock
        middles = MIDDLES[db]
        if coordinator.has_others:
            coordinator.seal()  # Rounds are in the order of the writes of a row.
        is_checked = coordinator.quorums.checks_all
        needed = coordinator.needed(coordinator.quorums, is_checked=is_checked)
        group = Group(dispatch, command, now_ms)
        places = group.places
        taken = group.members
        rest: list[Member] = []
        hlc = now_ms << 16
        if hlc <= clock.last:
            hlc = clock.last + 1
        weight_bytes = sent_bytes = 0
        for member in members:
            _, key, value = member[3]
            length = len(key)
            if length > KEY_BYTES_MAX or len(value) > VALUE_BYTES_MAX:
                rest.append(member)
                continue
            slot = slot_of(key) if b"{" in key else crc_hqx(key, 0) & 16383
            batch = batches[slot]
            if slot in unsettled or not batch.can_write:
                rest.append(member)
                continue
            row = xxh3_64_digest(key)[:6] + middles[length] + key
            counters[slot] = counter = counters[slot] + 1
            raw = _pack_header(STRING, actor, counter, hlc) + value
            hlc += 1
            sent_bytes += len(raw)
            envelope = ENVELOPE(COMPLETE, slot, len(row), len(raw))
            pieces += (envelope, row, raw)
            rows = memory[slot]
            old = rows.get(row)
            rows[row] = raw
            if old is not None:
                weight_bytes += len(raw) - len(old)
            else:
                weight_bytes += len(row) + len(raw) + ENTRY_OVERHEAD_BYTES
                store.forget_below(slot, row)
            if not batch.is_open:
                coordinator.open(batch)
            if sole[slot] != NOBODY:
                coordinator.note_context(batch, slot)
            if is_checked:
                batch.writes.append((group, 0, slot, row, raw))
                batch.pieces += (envelope, row, raw)
            else:
                batch.blind_writes.append((group, 0, slot, row, raw))
                batch.blind_pieces += (envelope, row, raw)
            taken.append(member)
            places.append((slot, row))
        clock.last = hlc - 1
        memtable.weight_bytes += weight_bytes
        if dispatch.node.tracking.is_active:  # For clients of other nodes: here there are none.
            dispatch.node.tracking.invalidate_keys(
                [member[3][1] for member in taken], None, is_own=True
            )
        self._begin(group, len(taken) if needed else 0)
        if sent_bytes > ROUND_BYTES_MAX // 16:
            coordinator.seal()
        return rest

    def _begin(self, group: Group, waits: int) -> None:
        if not group.members:
            return
        group.waits = waits
        if not waits:
            group.is_over = True
            group.settled()


def plain_slots(commands: list[list[bytes]]) -> list[Slot]:
    """The slots of the commands' first keys; -1 for a key that is too long to be plain."""
    return [
        (slot_of(args[1]) if b"{" in args[1] else crc_hqx(args[1], 0) & 16383)
        if len(args[1]) <= KEY_BYTES_MAX
        else -1
        for args in commands
    ]
