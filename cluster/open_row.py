"""Rows with writes of this node of which nobody knows whether they count, kept over restarts.

Not how it is found out (`cluster/inquest.py`). Such a row is *open*. That it is, and that it is no longer, stands in
the log as a row of the system's slot; what is open when the log is cut is in the state that the manifest keeps.

    open + slot and row    a value: the row is open; a deletion: it is known now
    unchecked              the place of the row that was written so last

A process that did not end well may have had writes under way that it could not note. So the rows that it wrote in
its last moments count as open as well. Those that were written unchecked do not: such a write stays, whatever others
have.

Core: it writes nothing itself, `Replica.note_open` does.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice
from typing import Final

from cluster.clock import Hlc
from cluster.delta_wire import pack_place, unpack_place
from cluster.record import DELETION, HEADER_BYTES
from cluster.slot import Row, Slot

UNCHECKED_ROW: Final = b"unchecked"
OPEN_ROW: Final = b"open"
RECENT_MAX: Final = (
    100_000  # Rows that are remembered while the log is read; for a while twice as many.
)


class OpenRows:
    """One per replica."""

    def __init__(self, rows: Iterable[tuple[Slot, Row]] = ()) -> None:
        self.rows: dict[tuple[Slot, Row], None] = dict.fromkeys(rows)
        self._recent: dict[tuple[Slot, Row], Hlc] = {}  # Found at recovery: when they were written.

    def change(self, place: tuple[Slot, Row], *, is_open: bool) -> bool:
        """Whether that is new, and has to be logged."""
        if is_open == (place in self.rows):
            return False
        if is_open:
            self.rows[place] = None
        else:
            del self.rows[place]
        return True

    def observe_mark(self, row: Row, raw: bytes) -> None:
        """Learn from an entry of the system's slot, found at recovery, if it is one of these."""
        if row == UNCHECKED_ROW:
            self._recent.pop(unpack_place(raw[HEADER_BYTES:]), None)
        if row.startswith(OPEN_ROW):
            self.change(unpack_place(row[len(OPEN_ROW) :]), is_open=raw[0] != DELETION)

    def observe_write(self, place: tuple[Slot, Row], hlc: Hlc) -> None:
        """A write of the process before was found at recovery."""
        recent = self._recent
        recent.pop(place, None)
        recent[place] = hlc
        if len(recent) > 2 * RECENT_MAX:
            # Many at once: what is deleted at the front of a dict is passed by each later look at its first one.
            self._recent = dict(islice(recent.items(), RECENT_MAX, None))

    def at_start(self, within_ms: int) -> list[tuple[Slot, Row]]:
        """The rows that the process before may have left open: noted, or written in its last moments. Once."""
        recent, self._recent = self._recent, {}
        last = max(recent.values(), default=0)
        found = [place for place, hlc in recent.items() if hlc >= last - (within_ms << 16)]
        return list(dict.fromkeys((*self.rows, *found)))


def open_row(place: tuple[Slot, Row]) -> Row:
    """The system's row that says of a row whether it is open."""
    return OPEN_ROW + pack_place(*place)
