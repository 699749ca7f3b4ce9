"""What becomes of reads that were not confirmed at once: who was asked holds something else, or is late.

If it holds another state of a row, both sides join what the other has. The command runs again if that changed what
it saw; if it saw a write that is not decided yet, it waits for that one; and it asks again if only the other was
behind. Who is late, or cannot answer, is not waited for: another replica is asked, and the same again where there is no
other.

The first questions, and the answer that all is the same, are the coordinator's own (`cluster/coordinator.py`).

Core.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from cluster.delta_wire import MalformedDelta, record_of
from cluster.quorum_messages import QUESTION, dots_of, number_of
from cluster.ring import NodeId
from cluster.round import ConflictLost, ReadEntry, ReadRound

if TYPE_CHECKING:
    from cluster.coordinator import Coordinator


class Unconfirmed:
    """One per coordinator."""

    def __init__(self, coordinator: Coordinator) -> None:
        self._coordinator = coordinator

    def take_states(self, peer: NodeId, message: list[bytes]) -> None:
        """A peer does not hold the same. Raises MalformedDelta."""
        reads = self._coordinator.reads
        round_ = reads.get(number_of(message))
        if round_ is None or round_.peer != peer:
            return
        states: dict[int, bytes] = {}
        for at in range(2, len(message) - 1, 2):
            if not message[at].isdigit():
                raise MalformedDelta("a state without a number")
            if message[at + 1]:
                record_of(message[at + 1])
            states[int(message[at])] = message[at + 1]
        del reads[round_.id]
        for number, entry in enumerate(round_.entries):
            state = states.get(number)
            if state is None:
                entry[0].confirm(entry[1])
            else:
                self._differ(round_, entry, state)

    def _differ(self, round_: ReadRound, entry: ReadEntry, state: bytes) -> None:
        """The peer holds another state of a row that was read."""
        coordinator, repairs = self._coordinator, self._coordinator.repairs
        op, attempt, slot, row, dots = entry
        peer, place = round_.peer, (slot, row)

        def merged(raw: bytes | None) -> None:
            is_behind = dots_of(raw) != dots_of(state or None)
            if dots_of(raw) != dots:
                if is_behind:
                    repairs.send(peer, place)
                if op.written == attempt and not op.is_blind:
                    # It wrote beside what it read, and that is not taken back.
                    op.fail(attempt, ConflictLost(is_partial=True), place)
                    return
                coordinator.retries_total += 1
                op.again(attempt, place)
            elif not is_behind:
                op.confirm(attempt)
            elif not coordinator.undecided.attach(
                op, attempt, place, coordinator.now_s + coordinator.timeout_s
            ):
                # And ask again: it may have taken meanwhile what has overtaken this.
                repairs.send(peer, place)
                number = coordinator.ask_state(peer, place, dots)
                coordinator.reads[number] = replace(
                    round_,
                    id=number,
                    entries=[entry],
                    retry_s=coordinator.now_s + coordinator.retry_s,
                )

        repairs.merge(place, [state] if state else [], merged)

    def ask_another(self, read: ReadRound, *, is_late: bool = True) -> None:
        """Its peer is late or cannot answer. Should it answer yet, that is not waited for any more."""
        coordinator = self._coordinator
        peers = coordinator.batches[read.entries[0][2]].peers
        candidates = [
            peer for peer in peers if peer not in read.used and coordinator.can_confirm(peer)
        ]
        late = (*read.late, read.peer) if read.peer else read.late
        if not candidates:
            # Nobody else: ask the same again, since questions or answers may be lost. Not those that were
            # asked by another round of these rows: they would count twice.
            if not is_late:
                return  # It has just answered.
            if not any(map(coordinator.can_confirm, late)):
                read.retry_s = coordinator.now_s + coordinator.retry_s
                return
            for peer in late:
                read.used.pop(peer, None)  # Rounds of several of its rows may have done so.
            late = ()
        coordinator.reads.pop(read.id, None)
        questions: list[bytes] = []
        for _, _, slot, row, dots in read.entries:
            questions += (QUESTION(slot, len(row), len(dots)), row, dots)
        coordinator.ask(peers, read.used, read.entries, questions, read.needed)
        asked = next(reversed(coordinator.reads.values()))
        asked.deadline_s, asked.late = read.deadline_s, late
