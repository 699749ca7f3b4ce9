"""Waits: the sessions that WAIT and WAITAOF hold back until replicas have what they wrote.

Which replicas have it is found out by `cluster/arrival.py`, from the slots that a session wrote to. Those it remembers
as a mark for each eight slots (`note_written`): two kilobytes, made at the first write. What is counted are copies,
wherever the command was carried out: the first one is what Redis calls local, the others its replicas.

Core.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Final

from cluster.arrival import Arrival, Arrivals
from cluster.slot import SLOT_COUNT, Slot
from respkv.refusal import TOO_BUSY
from respkv.reply import Reply
from respkv.session import Block, Session

if TYPE_CHECKING:
    from respkv.node import Node

MARKED_SLOTS: Final = 8  # By one mark.
MARK_COUNT: Final = SLOT_COUNT // MARKED_SLOTS
# A mark: 1, or 2 once all replicas have what was written, though perhaps not on their disks.
_EVERYWHERE: Final = bytes.maketrans(b"\1", b"\2")


def note_written(session: Session, slots: Iterable[Slot]) -> None:
    """A command of a session writes to these slots. `respkv/grouping.py` has it inlined."""
    marks = session.written
    if marks is None:
        marks = session.written = bytearray(MARK_COUNT)
    for slot in slots:
        marks[slot >> 3] = 1


def note_flushed(session: Session) -> None:
    """It writes to all slots."""
    session.written = bytearray(b"\1" * MARK_COUNT)


def _written(session: Session, *, is_durable: bool) -> Iterator[Slot]:
    marks = session.written
    if marks is not None:
        for at, mark in enumerate(marks):
            if mark == 1 or (mark and is_durable):
                yield from range(at * MARKED_SLOTS, (at + 1) * MARKED_SLOTS)


class _Waiter:
    """A session that is held back. `reply` is what it hears if its time is up; known by its identity."""

    __slots__ = ("arrival", "is_met", "reply", "reply_of")

    def __init__(
        self, is_met: Callable[[int], bool], reply_of: Callable[[int], Reply], reply: Reply
    ) -> None:
        self.arrival: Arrival | None = None
        self.is_met = is_met
        self.reply_of = reply_of
        self.reply = reply


class Waits:
    """One per node of a cluster."""

    def __init__(self, node: Node, arrivals: Arrivals) -> None:
        self._node = node
        self._arrivals = arrivals
        self._waiters: dict[Session, _Waiter] = {}
        self._changed: dict[Session, None] = {}

    def wait(
        self,
        session: Session,
        seconds: float | None,
        *,
        is_met: Callable[[int], bool],
        reply_of: Callable[[int], Reply],
        is_durable: bool,
    ) -> Reply:
        """Have a session wait until so many copies of what it wrote exist. Raises Block, ReplyError.

        `reply_of` makes the answer of a number of copies, a new object each time. A number that is met by none is
        still counted, as far as it can be known at once.
        """
        slots = list(_written(session, is_durable=is_durable))
        if not slots:
            count = self._reachable_count()
            if is_met(count):
                return reply_of(count)
            raise Block(seconds, reply_of(count))
        if not self._arrivals.has_room:
            raise TOO_BUSY
        if is_met(0):
            longest = self._node.config.cluster.timeout_ms / 1000
            seconds = longest if seconds is None else min(seconds, longest)
        if session in self._waiters:
            self._end(session)  # Of a wait that ended with its time.
        waiter = _Waiter(is_met, reply_of, reply_of(0))
        self._waiters[session] = waiter
        waiter.arrival = self._arrivals.ask(
            slots,
            is_durable=is_durable,
            changed=lambda: self._changed.setdefault(session, None),
        )
        self._changed[session] = None
        raise Block(seconds, waiter.reply)

    def _reachable_count(self) -> int:
        topology = self._arrivals.topology
        n = max(map(len, set(topology.preferences)))
        return min(n, 1 + sum(map(topology.is_reachable, topology.peers)))

    def work(self, now_ms: int) -> None:
        """Within each tick: let sessions go on that have waited enough."""
        while self._changed:
            changed, self._changed = self._changed, {}
            for session in changed:
                self._look(session, now_ms)

    def _look(self, session: Session, now_ms: int) -> None:
        waiter = self._waiters.get(session)
        if waiter is None:
            return
        arrival = waiter.arrival
        assert arrival is not None
        wait = session.wait
        if wait is None or wait.reply is not waiter.reply:
            self._end(session)  # It was closed, unblocked, or its time is up.
            return
        count = arrival.count
        is_met = waiter.is_met(count)
        if is_met and waiter.is_met(0):
            is_met = self._arrivals.is_surveyed(arrival)
        wait.reply = waiter.reply = waiter.reply_of(count)
        if is_met:
            self._end(session)
            if arrival.is_everywhere and session.written is not None:
                is_durable = arrival.is_durable
                session.written = None if is_durable else session.written.translate(_EVERYWHERE)
            self._node.runner.long_way.unblock(session, wait.reply, now_ms)

    def _end(self, session: Session) -> None:
        arrival = self._waiters.pop(session).arrival
        assert arrival is not None
        self._arrivals.end(arrival)

    def tick(self) -> None:
        """Some times a second: forget those that wait no longer, and see who was surveyed."""
        for session in self._waiters:
            self._changed[session] = None
