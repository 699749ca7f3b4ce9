"""The participant: what a replica does with what coordinators at other nodes ask of it.

It answers the messages that `cluster/quorum_messages.py` describes: it takes or refuses writes, joins rows,
and says whether it holds what a reader saw. It decides nothing about quorums.

An answer is a promise: it leaves when what it speaks of is in the log, and with fsync `always` on the
disk (`promise` of the caller sees to that). A message that has to read a row from the disk is taken up
again when the page is there; until then, and for a while after, the same message is known by its number,
so that one that comes twice is answered once and alike.

A replica that is *incomplete* takes writes, and answers no questions: others would count on what it may
have lost. One whose disk cannot keep up takes no more writes than fit into memory: it gets them later,
when clocks are compared.

Core.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from cluster.clock import SlotClock
from cluster.delta_wire import MalformedDelta, decode_clock, pack_place, record_of, unpack_place
from cluster.held import Held
from cluster.inquest import INQUEST
from cluster.quorum_messages import (
    ACK,
    INCOMPLETE,
    NOT,
    OVERFULL,
    QUESTION_HEAD,
    READ,
    REPAIR,
    SAME,
    SETTLED,
    STATES,
    UNCHECKED,
    UNDECIDED,
    UNIT,
    UNREADABLE,
    WRITE,
    dots_of,
)
from cluster.record import MANY
from cluster.replica import Replica
from cluster.ring import NodeId
from cluster.round import Fetch
from cluster.slot import SLOT_COUNT, Slot
from engine.errors import EngineError
from engine.store import PageFault

ANSWERS_MAX: Final = 512  # Remembered of each peer.

Answer = Sequence[bytes]


class Participant:
    """One per node."""

    def __init__(
        self,
        replica: Replica,
        *,
        promise: Callable[[NodeId, Answer], None],
        fetch: Fetch,
        held: Held | None = None,
    ) -> None:
        """`promise` sends an answer once all that was applied by now is as safe as it has to be.

        `held`: where rows have so many replicas that what others write has to be held.
        """
        self.replica = replica
        self.now_ms = 0
        self._promise = promise
        self._fetch = fetch
        self._held = held
        # By peer, the answer to each message by its number; None while it is being worked on.
        self._answers: dict[NodeId, dict[bytes, Answer | None]] = {}

    def receive(self, peer: NodeId, message: list[bytes]) -> bool:
        """Take a request; False if the message is none. Raises MalformedDelta."""
        verb = message[0]
        if verb == READ:
            if len(message) < 3:
                raise MalformedDelta("a message with too few arguments")
            self._read(peer, message)
        elif verb == WRITE:
            if self._is_first(peer, message, 5):
                self._write(peer, message, {})
        elif verb == REPAIR:
            if self._is_first(peer, message, 4):
                self._repair(peer, message)
        elif verb == SETTLED:
            if self._held is not None:
                self._held.settle(peer, message)
        else:
            return False
        return True

    def _is_first(self, peer: NodeId, message: list[bytes], length_min: int) -> bool:
        """Whether this message has to be worked on; if not, its answer is given again if there is one."""
        if len(message) < length_min:
            raise MalformedDelta("a message with too few arguments")
        answers = self._answers.setdefault(peer, {})
        number = message[1]
        if number in answers:
            answer = answers[number]
            if answer is not None:
                self._promise(peer, answer)
            return False
        if len(answers) >= ANSWERS_MAX:
            del answers[next(iter(answers))]
        answers[number] = None
        return True

    def _answer(self, peer: NodeId, message: list[bytes], answer: Answer) -> None:
        answers = self._answers.get(peer)
        if answers is not None and message[1] in answers:
            answers[message[1]] = answer
        self._promise(peer, answer)

    def _write(self, peer: NodeId, message: list[bytes], refused: dict[bytes, bytes]) -> None:
        _, number, flags, packed, blob = message[:5]
        is_checked = flags != UNCHECKED
        replica = self.replica
        if replica.store.is_overfull:
            self._answer(peer, message, (NOT, number, OVERFULL))
            return
        contexts = decode_contexts(packed)
        held = self._held if is_checked else None
        try:
            if flags == UNIT:
                for conflict in replica.refusals(blob, contexts):
                    refused[pack_place(conflict.slot, conflict.row)] = conflict.state
            if not refused or flags != UNIT:
                taken = replica.accept(
                    blob, contexts, self.now_ms, is_checked=is_checked and flags != UNIT
                )
                for conflict in taken:
                    refused[pack_place(conflict.slot, conflict.row)] = conflict.state
        except PageFault as fault:
            if held is not None:
                held.note(peer, int(number), flags, blob, contexts)
            self._fetch(fault, lambda: self._write(peer, message, refused))
            return
        except EngineError:
            self._answer(peer, message, (NOT, number, UNREADABLE))
            return
        if held is not None:
            held.note(peer, int(number), flags, blob, contexts)
        parts = [part for item in refused.items() for part in item]
        self._answer(peer, message, (ACK, number, *parts))

    def _repair(self, peer: NodeId, message: list[bytes]) -> None:
        try:
            for at in range(2, len(message) - 1, 2):
                slot, row = unpack_place(message[at])
                self.replica.repair(slot, row, record_of(message[at + 1]), self.now_ms)
        except PageFault as fault:
            self._fetch(fault, lambda: self._repair(peer, message))
        except EngineError:
            self._answer(peer, message, (NOT, message[1], UNREADABLE))
        else:
            self._answer(peer, message, (ACK, message[1]))

    def _read(self, peer: NodeId, message: list[bytes]) -> None:
        number = message[1]
        replica = self.replica
        if not replica.is_complete:
            self._promise(peer, (NOT, number, INCOMPLETE))
            return
        store = replica.store
        blob = message[2]
        states: list[bytes] = []
        try:
            active, unpack = store.active, QUESTION_HEAD.unpack_from
            at = count = 0
            while at < len(blob):
                if at + QUESTION_HEAD.size > len(blob):
                    raise MalformedDelta("a question cut short")
                slot, row_length, dots_length = unpack(blob, at)
                row_at = at + QUESTION_HEAD.size
                dots_at = row_at + row_length
                at = dots_at + dots_length
                if slot >= SLOT_COUNT or at > len(blob):
                    raise MalformedDelta("a question with impossible lengths")
                row = blob[row_at:dots_at]
                raw = active[slot].get(row)
                if raw is None:
                    raw = store.lookup(slot, row)
                if blob[dots_at:at] != (raw[1:17] if raw and not raw[0] & MANY else dots_of(raw)):
                    state = replica.state_of(slot, row)
                    if replica.is_undecided(slot, row):
                        told = replica.testimony(slot, row) if INQUEST in message[3:] else None
                        if told is None:
                            self._promise(peer, (NOT, number, UNDECIDED))
                            return
                        states += (b"%d" % count, *told)
                    else:
                        states += (b"%d" % count, state)
                count += 1
        except PageFault as fault:
            self._fetch(fault, lambda: self._read(peer, message))
            return
        except EngineError:
            self._promise(peer, (NOT, number, UNREADABLE))
            return
        self._promise(peer, (STATES, number, *states) if states else (SAME, number))


def decode_contexts(packed: bytes) -> dict[Slot, SlotClock]:
    """Raises MalformedDelta."""
    contexts: dict[Slot, SlotClock] = {}
    at = 0
    while at < len(packed):
        slot = int.from_bytes(packed[at : at + 2], "little")
        length = int.from_bytes(packed[at + 2 : at + 4], "little")
        at += 4
        if at + length > len(packed) or slot >= SLOT_COUNT:
            raise MalformedDelta("a context cut short")
        contexts[slot] = decode_clock(packed[at : at + length])
        at += length
    return contexts
