"""What a node does when another one asks it about slots as a whole: list, count, pick at random, remove.

Each question becomes a task (`respkv/gather_task.py`). It makes sure that this replica has what was acknowledged
(`respkv/gather_survey.py`), for a few windows at first and more with every step, and reads them then. It ends
early and says how far it got, when it has done or found enough for one message.

Keys are removed by ordinary replicated deletions: some hundred rows are deleted here and sent to the other
replicas, and the next ones when enough of them have acknowledged. What was written while the flush went on
may stay; what was acknowledged before it goes.

Core: time is an argument.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import replace
from itertools import accumulate
from typing import TYPE_CHECKING, Final

from cluster.coordinator import Coordinator
from cluster.errors import ClusterError
from cluster.record import DELETION
from cluster.round import ConflictLost, Pending, QuorumNotMet
from cluster.slot import DATABASE_COUNT, HASH_BYTES, TAG_OFFSET, Key, Row, Slot
from engine.store import PageFault
from respkv.commands.scan import Search, exists, random_key, scan_rows
from respkv.gather_clock import WINDOW_SLOTS, Window
from respkv.gather_survey import Surveys
from respkv.gather_task import LATER, Step, Steps, Task
from respkv.gather_wire import (
    ALL_DATABASES,
    COUNT,
    END,
    FLUSH,
    HASH_BITS,
    RANDOM,
    SCAN,
    Answer,
    Position,
    Question,
    Stretch,
    behind,
)
from respkv.keyspace import View, is_live, next_slot
from respkv.reply import ReplyError
from respkv.session import Session

if TYPE_CHECKING:
    from respkv.node import Node

CHUNK_ROWS: Final = 200  # Listed at a time.
ANSWER_BYTES_MAX: Final = 1 << 20
ANSWER_S: Final = 0.2  # Longer ones are answered in parts.
REMOVAL_ROWS: Final = 256  # On their way to other replicas at a time.
STRIDE_WINDOWS_MAX: Final = 64
TRIES: Final = 8
BUSY_S: Final = 0.01

LATE: Final = ReplyError("TIMEOUT the node was asked too late to remove keys")

Give = Callable[[Answer], None]


class Removals:
    """Rows that were deleted here, on their way to the other replicas."""

    __slots__ = ("count", "error", "wake")

    def __init__(self, wake: Callable[[], None]) -> None:
        self.count = 0  # Not decided yet.
        self.error: ClusterError | None = None
        self.wake = wake

    def ended(self, error: ClusterError | None = None) -> None:
        self.error = self.error or error
        self.count -= 1
        if not self.count:
            self.wake()


class Removal(Pending):
    """One of these rows: each has its own fate."""

    __slots__ = ("removals",)

    def __init__(self, removals: Removals) -> None:
        super().__init__()
        self.is_blind = True  # What was not removed is removed again.
        self.removals = removals

    def settled(self) -> None:
        self.removals.ended()

    def stale(self) -> None:
        self.is_over = True  # If it is there still, another one removes it.
        self.removals.ended()

    def failed(self, error: ClusterError) -> None:
        self.removals.ended(None if isinstance(error, ConflictLost) else error)


class Answers:
    """One per node."""

    def __init__(
        self,
        node: Node,
        coordinator: Coordinator,
        surveys: Surveys,
        wake: Callable[[Task], None],
        text_of: Callable[[ClusterError], ReplyError],
    ) -> None:
        self._node = node
        self._coordinator = coordinator
        self._surveys = surveys
        self._wake = wake
        self._text_of = text_of

    def steps(self, task: Task, question: Question, expires_ms: int, give: Give) -> Steps:
        """The work for one question. `give` gets the answer; errors are raised as ReplyError."""
        kind = question.kind
        if kind == FLUSH:
            return self._flush(task, question, expires_ms, give)
        return {SCAN: self._scan, COUNT: self._count, RANDOM: self._random}[kind](
            task, question, give
        )

    def _view(self, db: int) -> View:
        node = self._node
        context = node.context
        assert not context.effects, "somebody is within a command"
        context.db, context.now_ms = node.databases[db % DATABASE_COUNT], node.now_ms()
        return View(context)

    # Reading

    def _scan(self, task: Task, question: Question, give: Give) -> Steps:
        search = Search.parse(question.arguments)
        left = question.count
        keys: list[Key] = []
        size = rows = 0
        until_s = self._node.now_s + ANSWER_S
        for stride in strides(question.stretches):
            yield from self._surveys.made_sure(task, spans_of(stride))
            view = self._view(question.db)
            for start, end in stride:
                at = start
                while at < end:
                    if search.key is not None:
                        if (yield from exists(view, search.key)):
                            keys.append(search.key)
                        at = END
                        continue
                    chunk = replace(search, count=min(left, CHUNK_ROWS), slot=None)
                    position, found, looked_at = yield from scan_rows(
                        view, at, chunk, end >> HASH_BITS
                    )
                    keys += found  # type: ignore[arg-type]  # All of them are bytes.
                    size += sum(map(len, found))  # type: ignore[arg-type]
                    rows += looked_at
                    left -= looked_at
                    at = position or end
                    if left <= 0 or size >= ANSWER_BYTES_MAX or self._node.now_s >= until_s:
                        give(Answer(next_of(question.stretches, at), rows, keys))
                        return
        give(Answer(END, rows, keys))

    def _count(self, task: Task, question: Question, give: Give) -> Steps:
        count = 0
        until_s = self._node.now_s + ANSWER_S
        for stride in strides(question.stretches, first_windows=STRIDE_WINDOWS_MAX):
            yield from self._surveys.made_sure(task, spans_of(stride))
            view = self._view(question.db)
            for first, end in spans_of(stride):
                count += yield from view.counts.of_slots(first, end, view)
            if self._node.now_s >= until_s:
                give(Answer(next_of(question.stretches, stride[-1][1]), count))
                return
        give(Answer(END, count))

    def _random(self, task: Task, question: Question, give: Give) -> Steps:
        """A key by the last known counts of slots: who asks has had them counted just before."""
        rng = self._node.rng
        view = self._view(question.db)
        counts = view.counts.slots_of(view.db)
        slots = [
            slot for first, end in spans_of(question.stretches) for slot in range(first, end)
            if slot in counts
        ]  # fmt: skip
        weights = list(accumulate(counts[slot] for slot in slots))
        for _ in range(TRIES if slots else 0):
            slot = rng.choices(slots, cum_weights=weights)[0]
            yield from self._surveys.made_sure(task, [(slot, slot + 1)])
            key = yield from random_key(self._view(question.db), slot, rng)
            if key is not None:
                give(Answer(END, 1, (key,)))
                return
        give(Answer(END, 0))

    # Removing

    def _flush(self, task: Task, question: Question, expires_ms: int, give: Give) -> Steps:
        node = self._node
        databases = node.databases
        dbs = frozenset(databases if question.db == ALL_DATABASES else [databases[question.db]])
        removed = 0
        until_s = node.now_s + ANSWER_S
        victims: list[tuple[Slot, Row]] = []
        position: Position = 0
        for stride in strides(question.stretches):
            yield from self._surveys.made_sure(task, spans_of(stride))
            view = self._view(0)
            for start, end in stride:
                at = start
                while at < end:
                    page = yield from _page(view, at, end, dbs)
                    at, found = page
                    victims += found
                    if len(victims) >= REMOVAL_ROWS:
                        yield from self._remove(task, victims, expires_ms)
                        removed += len(victims)
                        victims = []
                    else:
                        yield None
                    if node.now_s >= until_s:
                        position = next_of(question.stretches, at)
                        break
                if position:
                    break
            if position:
                break
        yield from self._remove(task, victims, expires_ms)
        # What an earlier attempt removed may not have got to the others.
        done = [
            (s, min(e, position or END)) for s, e in question.stretches if s < (position or END)
        ]
        yield from self._surveys.spread(task, spans_of(done))
        give(Answer(position or END, removed + len(victims)))

    def _remove(
        self,
        task: Task,
        victims: list[tuple[Slot, Row]],
        expires_ms: int,
    ) -> Steps:
        """Delete rows, and wait until enough replicas have it. Raises ReplyError."""
        node = self._node
        while True:
            try:
                live = self._live(victims)
            except PageFault as fault:
                yield fault
                continue
            if not live:
                return
            if node.now_ms() > expires_ms:
                raise LATE
            if node.refusal is not None:
                raise node.refusal
            ready = live if not node.runner.gate.is_stalled else []
            ready = [each for each in ready if not self._must_wait(*each)]
            if not ready:
                task.until_s = node.now_s + BUSY_S
                yield LATER
                continue
            quorums = self._coordinator.survey_quorums
            for slot in dict.fromkeys(slot for slot, _ in ready):
                lack = self._coordinator.lack(
                    slot, quorums, is_write=True, is_checked=True, is_blind=True
                )
                if lack is not None:
                    raise unreached(lack)
            removals = Removals(lambda: self._wake(task))
            try:
                self._delete(removals, ready)
            except PageFault as fault:
                node.context.drop()
                yield fault
                continue
            while removals.count:
                yield LATER
            if removals.error is not None:
                raise self._text_of(removals.error)

    def _live(self, victims: list[tuple[Slot, Row]]) -> list[tuple[Slot, Row]]:
        store, now_ms = self._node.store, self._node.now_ms()
        return [
            (slot, row)
            for slot, row in victims
            if (raw := store.get(slot, row)) is not None and is_live(raw, now_ms)
        ]

    def _must_wait(self, slot: Slot, row: Row) -> bool:
        return self._coordinator.must_wait(slot, row, self._node.store.get(slot, row))

    def _delete(self, removals: Removals, rows: list[tuple[Slot, Row]]) -> None:
        """One attempt. Raises PageFault, with nothing changed."""
        node = self._node
        context = node.context
        agent = Session(0, "", "", node.limits, node.now_s, authenticated=True)
        context.bind(agent, node.now_ms())
        for slot, row in rows:
            context.effects[row] = (slot, DELETION, 0, b"")
        if node.tracking.is_active:
            node.tracking.invalidate(context.effects, context.flushed, agent)
        written: list[tuple[Slot, Row, bytes]] = []
        quorums = self._coordinator.survey_quorums
        context.commit(written)
        for write in written:  # Each by itself: one that is refused holds up no other.
            removal = Removal(removals)
            self._coordinator.begin(removal, (), (write,), quorums=quorums, is_checked=True)
            removals.count += removal.waits > 0


def unreached(lack: QuorumNotMet) -> ReplyError:
    what = "writes need" if lack.is_write else "reads need"
    return ReplyError(
        f"NOREPLICAS {what} {lack.needed} replicas of these keys, and {lack.answered} can be reached"
    )


def _page(
    view: View, at: Position, end: Position, dbs: frozenset[int]
) -> Generator[Step, None, tuple[Position, list[tuple[Slot, Row]]]]:
    """The next rows of keys to be removed, and where to go on."""
    store, now_ms = view.store, view.now_ms
    slot = at >> HASH_BITS
    start = (at & ((1 << HASH_BITS) - 1)).to_bytes(HASH_BYTES, "big")
    while True:
        try:
            if not any(start):
                occupied = next_slot(store, slot)
                if occupied is None or occupied << HASH_BITS >= end:
                    return end, []
                slot = occupied
            rows, after = store.scan(slot, start, CHUNK_ROWS)
            # Rows of one hash stay together, for a position has no more than that.
            while after is not None and rows and after[:HASH_BYTES] == rows[-1][0][:HASH_BYTES]:
                more, after = store.scan(slot, after, 1)
                rows += more
        except PageFault as fault:
            yield fault
            continue
        found = [
            (slot, row) for row, raw in rows if row[TAG_OFFSET] in dbs and is_live(raw, now_ms)
        ]
        if after is None:
            return (slot + 1) << HASH_BITS, found
        return slot << HASH_BITS | int.from_bytes(after[:HASH_BYTES], "big"), found


def strides(stretches: Iterable[Stretch], *, first_windows: int = 1) -> Iterator[list[Stretch]]:
    """Stretches cut into steps of about one window of slots, then four, and so on."""
    room = first_windows * WINDOW_SLOTS
    stride: list[Stretch] = []
    taken = 0
    for start, end in stretches:
        while start < end:
            cut = min(end, ((start >> HASH_BITS) + room - taken) << HASH_BITS)
            stride.append((start, cut))
            taken += (cut >> HASH_BITS) - (start >> HASH_BITS)
            start = cut
            if taken >= room:
                yield stride
                stride, taken = [], 0
                room = min(4 * room, STRIDE_WINDOWS_MAX * WINDOW_SLOTS)
    if stride:
        yield stride


def spans_of(stretches: Iterable[Stretch]) -> list[Window]:
    """The slots of stretches."""
    return [(start >> HASH_BITS, end >> HASH_BITS) for start, end in stretches]


def next_of(stretches: Iterable[Stretch], position: Position) -> Position:
    """Where stretches go on at or behind a position; END if they do not."""
    left = behind(list(stretches), position)
    return left[0][0] if left else END
