"""What becomes of checked writes that lost: rows whose write here was refused by too many.

From the refusal to the decision a row is *doomed*: commands on it wait, and nobody else is told of it. What others
hold is joined in, and then

    no other replica can have taken the write    it is taken back: what it replaced is there again, and it runs again
    a blind one (SET)                            runs again, and replaces what is there; but if a replica that is gone
                                                 may have taken it, others may have built upon that, and the error
                                                 says that nobody knows
    anything else                                an inquest finds out (`cluster/inquest.py`), or the error says that
                                                 nobody knows

What was built upon a lost write is lost with it.

Core.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from cluster.case import past_of, restored
from cluster.clock import Dot
from cluster.inquest import Closing
from cluster.record import Record, Version, decode
from cluster.round import ConflictLost, Place, WriteEntry, WriteRound
from cluster.slot import Slot
from engine.store import PageFault

if TYPE_CHECKING:
    from cluster.coordinator import Coordinator


class Conflicts:
    """One per coordinator."""

    def __init__(self, coordinator: Coordinator) -> None:
        self._coordinator = coordinator
        # By row. What was built upon them is not decided yet.
        self.doomed: dict[Place, list[WriteRound]] = {}

    def has_slot(self, slot: Slot) -> bool:
        return any(place[0] == slot for place in self.doomed)

    def lose(self, round_: WriteRound, place: Place) -> None:
        """A checked write lost its race: join the winner, and run again what was built upon the loser."""
        lost = self.doomed.setdefault(place, [])
        if round_ not in lost:
            lost.append(round_)
        self._judge(place)

    def _judge(self, place: Place) -> None:
        """Decide about a row whose writes were refused, unless that has to wait: till then it stays doomed."""
        if place not in self.doomed:
            return
        coordinator = self._coordinator
        coordinator.seal()  # What was built upon it in this tick is lost, too.
        rounds, entries, later = self._lost_with(place)
        is_blind = all(entry[0].is_blind for entry in entries)
        if not is_blind and not all(each.is_complete for each in rounds):
            return
        is_clean = all(each.is_clean(place) for each in rounds)
        contested = {(slot, row) for _, _, slot, row, _ in entries}
        # Of all rows that are lost together: what came of one of them was refused for another.
        states = {each: _states_of(rounds, each) for each in [place, *sorted(contested - {place})]}
        coordinator.replica.contested |= contested
        try:
            for each, others in states.items():
                coordinator.repairs.join(each, others)
            is_undone = (
                is_clean
                and not is_blind
                and place not in coordinator.inquest.cases
                and self._take_back(rounds, entries, states)
            )
        except PageFault as fault:
            coordinator.fetch(fault, lambda: self._judge(place))
            return
        finally:
            coordinator.replica.contested -= contested
        del self.doomed[place]
        for round_, number in later:
            round_.decided[number] = None
        deadline_s = rounds[0].deadline_s
        for entry in entries:
            round_ = next(each for each in rounds if entry in each.entries)
            if isinstance(entry[0], Closing):
                entry[0].note_refusals(entry[2:4], round_)
            self._end(round_, entry, is_undone=is_undone, deadline_s=deadline_s)

    def _lost_with(
        self, place: Place
    ) -> tuple[list[WriteRound], list[WriteEntry], list[tuple[WriteRound, int]]]:
        """The rounds that wrote a doomed row, and all entries that are lost with it.

        Also the numbers of those in rounds that were not lost themselves, but built upon it later.
        """
        rounds = list(self.doomed[place])
        entries = [
            entry
            for round_ in rounds
            for entry in round_.entries
            if round_.is_unit or (entry[2], entry[3]) == place
        ]
        first = min(round_.id for round_ in rounds)
        later: list[tuple[WriteRound, int]] = []
        for round_ in self._coordinator.writes.values():
            is_open = round_.is_checked and not round_.is_decided
            if round_.id > first and is_open and round_ not in rounds:
                found = [
                    number
                    for number, entry in enumerate(round_.entries)
                    if (entry[2], entry[3]) == place and number not in round_.decided
                ]
                if found:
                    rounds.append(round_)
                    later += [(round_, number) for number in found]
        return rounds, entries + [round_.entries[number] for round_, number in later], later

    def _end(
        self, round_: WriteRound, entry: WriteEntry, *, is_undone: bool, deadline_s: float
    ) -> None:
        """Have a command run again whose write was lost, or find out, or tell it that nobody knows."""
        coordinator = self._coordinator
        op, attempt, slot, row, raw = entry
        if is_undone or (op.is_blind and not (raw and round_.unreachable)):
            if raw and op.may_be_twice and not is_undone:
                coordinator.inquest.open(round_, entry)  # It may find that it need not run again.
            coordinator.retries_total += 1
            op.again(attempt, (slot, row))
            return
        if op.is_blind:
            if raw and (coordinator.is_many or op.may_be_twice):
                coordinator.inquest.open(round_, entry)
            # A replica that is gone may have taken it, and others may have built upon that.
            op.fail(attempt, ConflictLost(is_partial=True), (slot, row))
            return
        is_more = False  # Than a majority: that is not found out.
        if raw:
            coordinator.inquest.open(round_, entry)
            is_more = round_.needed >= coordinator.quorums.majority
        if is_more or not coordinator.inquest.attach(entry, deadline_s):
            op.fail(attempt, ConflictLost(is_partial=True), (slot, row))

    def _take_back(
        self,
        rounds: list[WriteRound],
        entries: list[WriteEntry],
        states: Mapping[Place, list[bytes]],
    ) -> bool:
        """Undo writes of rows that all others refused: what they replaced is there again, and what others have.

        What a blind write replaced was not kept. If it came first, and nobody said what he has instead, it
        stays: it runs again, and replaces all this. False if nothing can be undone. Raises PageFault, and has
        changed nothing then.
        """
        coordinator = self._coordinator
        dots: dict[Place, set[Dot]] = {}
        blind_dots: dict[Place, set[Dot]] = {}
        pasts: dict[Place, list[Record]] = {}
        for round_ in sorted(rounds, key=lambda each: each.id):
            for entry in round_.entries:
                op, _, slot, row, raw = entry
                if raw and entry in entries:
                    kind = blind_dots if op.is_blind else dots
                    kind.setdefault((slot, row), set()).update(decode(raw).dots)
                    if not op.is_blind:
                        pasts.setdefault((slot, row), []).append(past_of(round_, entry))
        held = {each: coordinator.repairs.record(each) for each in dots}
        shown: dict[Place, tuple[Version, ...]] = {}
        for each, own in dots.items():
            others = [decode(state) for state in states[each]]
            every = own | blind_dots.get(each, set())
            known = [past for past in pasts[each] if past.dots.isdisjoint(every)]
            if known or others:
                own |= every
            else:
                known = [past for past in pasts[each] if past.dots.isdisjoint(own)]
            if not known and not others:
                return False
            past = known[0] if known else Record(())
            if held[each].dots - every - past.dots.union(*(state.dots for state in others)):
                return False  # It came in another way, and nobody can say what of these it has replaced.
            shown[each] = restored(past, own, others, held[each])
        for (slot, row), versions in shown.items():
            if not held[slot, row].dots.isdisjoint(dots[slot, row]):
                coordinator.replica.put_back(slot, row, versions)
        return True

    def judge_all(self) -> None:
        """Answers have come, or will not come any more."""
        for place in list(self.doomed):
            if place in self.doomed:
                self._judge(place)


def _states_of(rounds: list[WriteRound], place: Place) -> list[bytes]:
    """What those hold who refused a row."""
    answers = (refused.get(place) for each in rounds for refused in each.answers.values())
    return [state for state in answers if state]
