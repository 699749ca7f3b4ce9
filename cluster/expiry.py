"""Which rows expire when: so that what has expired gives its memory back without being read.

It decides nothing about what is visible: that is the record's expiry time, compared at each read.
Rows are kept by the second in which they may expire, each once, at its earliest time; when that has
come the row is looked at, and put back if it lives longer by now. So a key whose expiry is moved a
thousand times costs one entry.

Core: time is an argument.
"""

from __future__ import annotations

from collections.abc import Iterator
from heapq import heappop, heappush

from cluster.slot import Row, Slot


class ExpiryIndex:
    """Rows by the second of their expiry."""

    def __init__(self) -> None:
        self._second_of: dict[Row, int] = {}
        self._rows: dict[int, list[tuple[Slot, Row]]] = {}
        self._seconds: list[int] = []  # A heap of the keys of `_rows`.

    def __contains__(self, row: Row) -> bool:
        return row in self._second_of

    def __len__(self) -> int:
        return len(self._second_of)

    def add(self, slot: Slot, row: Row, expire_at_ms: int) -> None:
        """The row may expire then. Times are rounded up to seconds."""
        second = -(-expire_at_ms // 1000)
        known = self._second_of.get(row)
        if known is not None and known <= second:
            return
        self._second_of[row] = second
        rows = self._rows.get(second)
        if rows is None:
            self._rows[second] = [(slot, row)]
            heappush(self._seconds, second)
        else:
            rows.append((slot, row))

    def due(self, now_ms: int) -> Iterator[tuple[Slot, Row]]:
        """Rows whose time has come, each removed as it is given. Stop when the time for it is used up."""
        while self._seconds and self._seconds[0] * 1000 <= now_ms:
            second = self._seconds[0]
            rows = self._rows[second]
            while rows:
                slot, row = rows.pop()
                if self._second_of.get(row) == second:
                    del self._second_of[row]
                    yield slot, row
            heappop(self._seconds)
            del self._rows[second]

    def clear(self) -> None:
        self._second_of.clear()
        self._rows.clear()
        self._seconds.clear()
