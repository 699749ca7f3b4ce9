"""Rows with writes of this node of which nobody knows whether they count, kept over restarts.

Not how it is found out (`cluster/inquest.py`). Such a row is *open*. That it is, and that it is no longer, stands in
the log as a row of the system's slot; what is open when the log is cut is in the state that the manifest keeps.

    open + slot and row    a value: the row is open; a deletion: it is known now. The value may say which writes in
                           the row are open, and what those had seen (`OpenWrites`)
    unchecked              the place of the row that was written so last
    looked into            the process that begins now has noted above what the ones before it had left open

A process that did not end well may have had writes under way that it could not note. So the rows that it wrote in
its last moments count as open as well, until a later one says that it has looked. Those that were written unchecked
do not: such a write stays, whatever others have. Rows that one command wrote stand in the log with one timestamp, one
after the other, and those that are open when it is cut are in the manifest's state as such: they are judged together
after a start, too.

Core: it writes nothing itself, `Replica.note_open` does.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Final

from cluster.clock import Dot, Hlc, SlotClock
from cluster.delta_wire import decode_clock, encode_clock, pack_place, unpack_place
from cluster.record import DELETION, HEADER_BYTES, pack_dots, unpack_dots
from cluster.slot import Row, Slot

UNCHECKED_ROW: Final = b"unchecked"
OPEN_ROW: Final = b"open"
LOOKED_ROW: Final = b"looked into"
RECENT_MAX: Final = (
    100_000  # Rows that are remembered while the log is read; for a while twice as many.
)


@dataclass(frozen=True, slots=True)
class OpenWrites:
    """Which writes of a row are open, and what they had seen: their node's own, or those that it holds of others."""

    dots: frozenset[Dot]
    seen: SlotClock

    def packed(self) -> bytes:
        dots = pack_dots(self.dots)
        return len(dots).to_bytes(2, "little") + dots + encode_clock(self.seen)

    @classmethod
    def unpack(cls, packed: bytes) -> OpenWrites:
        end = 2 + int.from_bytes(packed[:2], "little")
        return cls(unpack_dots(packed[2:end]), decode_clock(packed[end:]))


@dataclass(frozen=True, slots=True)
class UnderWay:
    """What a process has begun and not ended. `rows`: with writes that may yet be taken back; nothing is noted of them.

    `together`: of these and of the open rows, those that one command wrote.
    """

    rows: Sequence[tuple[Slot, Row]] = ()
    together: Sequence[Sequence[tuple[Slot, Row]]] = ()


class OpenRows:
    """One per replica. By row the packed `OpenWrites`, or nothing where they are to be found."""

    def __init__(
        self,
        rows: Mapping[tuple[Slot, Row], bytes] | None = None,
        together: Iterable[Sequence[tuple[Slot, Row]]] = (),
    ) -> None:
        self.rows: dict[tuple[Slot, Row], bytes] = dict(rows or {})
        # Found at recovery: when they were written. Nobody has looked yet whether they are open.
        self._recent: dict[tuple[Slot, Row], Hlc] = {}
        self._last: tuple[tuple[Slot, Row], Hlc] | None = None  # The last of these.
        # Of all of these, what one command wrote.
        self._together: list[list[tuple[Slot, Row]]] = list(map(list, together))

    def change(self, place: tuple[Slot, Row], packed: bytes | None) -> bool:
        """A row is open, or (None) known. Whether that is new, and has to be logged."""
        if self.rows.get(place) == packed:
            return False
        if packed is None:
            del self.rows[place]
        else:
            self.rows[place] = packed
        return True

    def observe_mark(self, row: Row, raw: bytes) -> None:
        """Learn from an entry of the system's slot, found at recovery, if it is one of these."""
        if row == UNCHECKED_ROW:
            self._recent.pop(unpack_place(raw[HEADER_BYTES:]), None)
        if row == LOOKED_ROW:
            self._recent.clear()
        if row.startswith(OPEN_ROW):
            packed = None if raw[0] == DELETION else raw[HEADER_BYTES:]
            self.change(unpack_place(row[len(OPEN_ROW) :]), packed)

    def observe_write(self, place: tuple[Slot, Row], hlc: Hlc) -> None:
        """A write of a process before was found at recovery."""
        recent = self._recent
        recent.pop(place, None)
        recent[place] = hlc
        if len(recent) > 2 * RECENT_MAX:
            # Many at once: what is deleted at the front of a dict is passed by each later look at its first one.
            self._recent = dict(islice(recent.items(), RECENT_MAX, None))
        last, self._last = self._last, (place, hlc)
        if last is None or last[1] != hlc:
            return
        if self._together and self._together[-1][-1] == last[0]:
            self._together[-1].append(place)
        else:
            self._together.append([last[0], place])
        if len(self._together) > 2 * RECENT_MAX:
            del self._together[:RECENT_MAX]

    def written_together(self) -> list[list[tuple[Slot, Row]]]:
        """The rows that one command wrote, for each that wrote several and was found at recovery."""
        return self._together

    @property
    def is_any(self) -> bool:
        """Whether anything that processes before wrote is open, or may be."""
        return bool(self.rows or self._recent)

    def at_start(self, within_ms: int) -> dict[tuple[Slot, Row], bytes]:
        """The rows that processes before may have left open: noted, or written in their last moments."""
        recent = self._recent
        last = max(recent.values(), default=0)
        found = [place for place, hlc in recent.items() if hlc >= last - (within_ms << 16)]
        return {**dict.fromkeys(found, b""), **self.rows}

    def forget_found(self) -> None:
        """Who had to know what was found at recovery has asked: give its memory back."""
        self._recent = {}
        self._together = []


def open_row(place: tuple[Slot, Row]) -> Row:
    """The system's row that says of a row whether it is open."""
    return OPEN_ROW + pack_place(*place)
