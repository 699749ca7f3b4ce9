"""What becomes of write rounds that not all peers take: decided row by row, as far as their answers say.

    accepted      enough have taken a row. Those that refused it get the joined row, as does this node. But what one
                  of the others has seen as gone already need not have won: then the error says that nobody knows
    lost          too many have refused it: that is a conflict (`cluster/conflict.py`)
    unreached     too few can still answer: the error says so, and an inquest finds out (`cluster/inquest.py`)

A round that all take needs none of this: the coordinator accepts it as a whole (`cluster/coordinator.py`).

Core.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from cluster.record import decode
from cluster.ring import NodeId
from cluster.round import ConflictLost, Place, QuorumNotMet, Verdict, WriteEntry, WriteRound
from cluster.slot import Row, Slot

if TYPE_CHECKING:
    from cluster.coordinator import Coordinator


class Unaccepted:
    """One per coordinator."""

    def __init__(self, coordinator: Coordinator) -> None:
        self._coordinator = coordinator

    def judge(self, round_: WriteRound) -> None:
        """Decide row by row, where some were refused or some peer is lost."""
        lost: dict[Place, None] = {}
        for number, (_, _, slot, row, _) in enumerate(round_.entries):
            place = (slot, row)
            verdict = round_.verdict(place)
            if round_.is_decided or number in round_.decided:
                if verdict is Verdict.ACCEPTED and round_.refusal_count(place):
                    self._spread(round_, place)
                continue
            if verdict is Verdict.OPEN:
                continue
            round_.decided[number] = None
            if verdict is Verdict.ACCEPTED:
                self._coordinator.tell_settled(round_, [place])
                if round_.refusal_count(place):
                    self._spread(round_, place)
                if round_.needed:
                    self.confirm(round_, number)
            elif verdict is Verdict.UNREACHED:
                self.give_up(round_, round_.entries[number])
            else:
                lost[place] = None
        if len(round_.decided) == len(round_.entries):
            round_.is_decided = True
        for place in lost:
            self._coordinator.conflicts.lose(round_, place)

    def give_up(self, round_: WriteRound, entry: WriteEntry) -> None:
        """Nobody knows whether enough replicas have this row: answer that, and find out."""
        op, attempt, slot, row, raw = entry
        coordinator = self._coordinator
        # A blind one just writes again; where a few may hold it, they have to be told. One that may stand
        # elsewhere, too, could come back over what has replaced it there.
        is_alone = op.is_blind and not (coordinator.is_many or op.may_be_twice)
        if raw and round_.is_checked and not is_alone:
            coordinator.inquest.open(round_, entry)
        error = QuorumNotMet(round_.needed + 1, len(round_.answers) + 1, True)
        op.fail(attempt, error, (slot, row))

    def _spread(self, round_: WriteRound, place: Place) -> None:
        """A write was accepted, and refused by some: they get the joined row, as does this node."""
        for peer, refused in round_.answers.items():
            state = refused.pop(place, None)
            if state is not None:
                self._coordinator.repairs.merge(
                    place, [state] if state else [], partial(self._repair_after, peer, place)
                )

    def _repair_after(self, peer: NodeId, place: Place, _: bytes | None) -> None:
        self._coordinator.repairs.send(peer, place)

    def confirm(self, round_: WriteRound, number: int) -> None:
        """Enough replicas have taken a row. But what one of them has seen as gone already need not have won."""
        op, attempt, slot, row, raw = round_.entries[number]
        if raw and number in round_.contradicted:
            held = self._coordinator.replica.store.active[slot].get(row)
            if held is None or decode(held).dots.isdisjoint(decode(raw).dots):
                op.fail(attempt, ConflictLost(is_partial=True), (slot, row))
                return
        op.confirm(attempt)

    def note_siblings(self, slot: Slot, row: Row) -> None:
        """A row in which there is an undecided write of this node has become one of several versions.

        A SET may replace them all now, and then nobody finds a conflict any more.
        """
        place = (slot, row)
        for round_ in self._coordinator.writes.values():
            if round_.needed and not round_.is_decided:
                for number, entry in enumerate(round_.entries):
                    if entry[4] and (entry[2], entry[3]) == place:
                        round_.contradicted[number] = None
