"""Which rows hold writes that may have to be taken back.

Nobody else may be told of such a row: what was built upon it elsewhere could not be taken back. It is one with

    a write in a round      of which too few answers have come, and some of them count
    a write that lost       and is *doomed* (`cluster/conflict.py`)
    an open inquest         (`cluster/inquest.py`)
    a held write            of another node, that may have to be taken back (`cluster/held.py`)

It only looks; others decide. What was gathered is sealed before: it is then in a round.

Core.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from cluster.conflict import Conflicts
from cluster.held import Held
from cluster.inquest import Inquest
from cluster.open_row import UnderWay
from cluster.round import Pending, Place, WriteEntry, WriteRound
from cluster.slot import Row, Slot


class Undecided:
    """One per coordinator, whose rounds of writes are `rounds`, in order; `seal` is its own."""

    def __init__(
        self,
        rounds: dict[int, WriteRound],
        conflicts: Conflicts,
        inquest: Inquest,
        held: Held,
        seal: Callable[[], None],
    ) -> None:
        self._rounds = rounds
        self._conflicts = conflicts
        self._doomed = conflicts.doomed
        self._inquest = inquest
        self._cases = inquest.cases
        self._held = held
        self._seal = seal

    def is_hidden(self, slot: Slot, row: Row) -> bool:
        """Whether nobody else may be told of a row. Asked of every row that another node confirms a read of."""
        place = (slot, row)
        return place in self._cases or self._held.has(place) or self.round_of(place) is not None

    def round_of(self, place: Place) -> WriteRound | None:
        """The last write of a row that may have to be taken back, but for those of inquests."""
        self._seal()
        if place in self._doomed:
            return self._doomed[place][-1]
        for round_, entry in self.writes():
            if (entry[2], entry[3]) == place:
                return round_
        return None

    def writes(self) -> Iterator[tuple[WriteRound, WriteEntry]]:
        """What was written in rounds of which somebody's answer counts, and may yet be refused; the latest first."""
        for round_ in reversed(self._rounds.values()):
            if round_.needed and not round_.is_decided:
                for number, entry in enumerate(round_.entries):
                    if entry[4] and number not in round_.decided:
                        yield round_, entry

    def pending_write(self, place: Place) -> WriteRound | None:
        """The last checked write of a row that is not decided."""
        for round_ in reversed(self._rounds.values()):
            if not round_.is_decided and not round_.is_unit:
                for number, entry in enumerate(round_.entries):
                    if (entry[2], entry[3]) == place and number not in round_.decided:
                        return round_
        return None

    def under_way(self) -> UnderWay:
        """The rows with checked writes of this node that may yet have to be taken back."""
        self._seal()
        rows = []
        units: dict[WriteRound, None] = {}  # The rounds that one command wrote.
        for round_, entry in self.writes():
            if round_.is_checked:
                rows.append((entry[2], entry[3]))
            if round_.is_unit:
                units[round_] = None
        for place, lost in self._doomed.items():
            rows.append(place)
            units.update((each, None) for each in lost if each.is_unit)
        written = [[(slot, row) for _, _, slot, row, raw in each.entries if raw] for each in units]
        together = [each for each in (*written, *self._inquest.groups()) if len(each) > 1]
        return UnderWay(rows, together)

    def has_slot(self, slot: Slot) -> bool:
        """Whether `is_hidden` is true of some row of a slot."""
        self._seal()
        if any(each.has_slot(slot) for each in (self._conflicts, self._inquest, self._held)):
            return True
        return any(entry[2] == slot for _, entry in self.writes())

    def attach(self, op: Pending, attempt: int, place: Place, deadline_s: float) -> bool:
        """Have a command that only read a row wait for the write that it saw; False if that is decided."""
        entry = (op, attempt, *place, b"")
        if self._inquest.attach(entry, deadline_s) or self._held.attach(entry):
            return True
        round_ = self.round_of(place)
        if round_ is not None:
            round_.entries.append((op, attempt, *place, b""))
        return round_ is not None
