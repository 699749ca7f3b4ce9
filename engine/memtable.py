"""The memtable: what was written and is not in a table yet.

It is not ordered: rows live in one dict per slot, so that no dict grows large enough to pause the
process when it is resized, and sorting happens in the worker at flush, or for one slot when it is
scanned. Values are encoded records (`bytes`), which the garbage collector does not look at.

A large slot that is scanned page by page would be sorted for each page. So the order of the slots
scanned last is kept, and brought up to date at the next page: a dict keeps its rows in the order
of their first insertion, so that those which came since are its last ones. Writes, which are hot and
partly done elsewhere (`cluster/replica.py`), need not know of it; removals do.

`slots` holds complete entries only, so that a reader who finds a row there needs nothing else.
Entries that are deltas over older ones stand apart in `deltas`.

Core: no I/O.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterator
from itertools import islice
from typing import Final

from engine.codec import RecordCodec

Row = bytes
Slot = int

# What CPython spends on an entry besides the bytes themselves: two object headers, the dict's slot
# at its usual load.
ENTRY_OVERHEAD_BYTES: Final = 200

ORDERED_ROWS_MIN: Final = 256
"""The order of a smaller slot is not kept: sorting it costs microseconds."""

ORDERS_MAX: Final = 8
"""Of so many slots the order is kept."""

_FEW: Final = 16  # Rows that are put into a long list one by one; more are sorted into it.


class Memtable:
    """Rows by slot, written from log position `base_position` on. `weight_bytes` estimates the memory held."""

    __slots__ = ("_orders", "base_position", "deltas", "slots", "weight_bytes")

    def __init__(self, slot_count: int, base_position: int) -> None:
        self.slots: list[dict[Row, bytes]] = [{} for _ in range(slot_count)]
        self.deltas: dict[tuple[Slot, Row], bytes] = {}
        self.weight_bytes = 0
        self.base_position = base_position
        self._orders: dict[Slot, list[Row]] = {}

    def put(self, slot: Slot, row: Row, raw: bytes) -> bool:
        """Store a complete entry: it has seen what is here, so it is the join. True if the row was not here. Hot."""
        rows = self.slots[slot]
        old = rows.get(row)
        rows[row] = raw
        if old is not None:
            self.weight_bytes += len(raw) - len(old)
            return False
        self.weight_bytes += len(row) + len(raw) + ENTRY_OVERHEAD_BYTES
        if self.deltas:
            self.forget_delta(slot, row)
        return True

    def forget_delta(self, slot: Slot, row: Row) -> None:
        """A complete entry has come, which has seen the delta that may be here."""
        raw = self.deltas.pop((slot, row), None)
        if raw is not None:
            self.weight_bytes -= len(row) + len(raw) + ENTRY_OVERHEAD_BYTES

    def join(self, slot: Slot, row: Row, raw: bytes, codec: RecordCodec) -> None:
        """Join a delta, which may not have seen what is here or below."""
        old = self.slots[slot].get(row)
        if old is not None:
            self.put(slot, row, codec.join(raw, old))
            return
        old = self.deltas.get((slot, row))
        if old is not None:
            raw = codec.join(raw, old)
        self.weight_bytes += len(raw) + (
            ENTRY_OVERHEAD_BYTES + len(row) if old is None else -len(old)
        )
        self.deltas[slot, row] = raw

    def remove(self, slot: Slot, row: Row) -> None:
        """Forget a complete entry that shows nothing and hides nothing."""
        raw = self.slots[slot].pop(row)
        self.weight_bytes -= len(row) + len(raw) + ENTRY_OVERHEAD_BYTES
        order = self._orders.get(slot)
        if order is not None:
            place = bisect_left(order, row)
            if place < len(order) and order[place] == row:  # Else it came after the last page.
                del order[place]

    def drop(
        self, tags: frozenset[int] | None, codec: RecordCodec, slots: range | None = None
    ) -> list[dict[Row, bytes]]:
        """Remove the rows of some keyspaces (None: of all), in some slots or in all.

        Where all rows of a slot go, they are given back: freeing a million takes a while, which is
        for the owner to spread.
        """
        if slots is None:
            slots = range(len(self.slots))
        whole: list[dict[Row, bytes]] = []
        if tags is None:
            whole = self._take(slots)
        else:
            for slot in slots:
                rows = self.slots[slot]
                if rows:
                    self._orders.pop(slot, None)
                    for row in [row for row in rows if codec.tag(row) in tags]:
                        self.remove(slot, row)
        deltas = [key for key in self.deltas if key[0] in slots]
        for key in [key for key in deltas if tags is None or codec.tag(key[1]) in tags]:
            raw = self.deltas.pop(key)
            self.weight_bytes -= len(key[1]) + len(raw) + ENTRY_OVERHEAD_BYTES
        return whole

    def _take(self, slots: range) -> list[dict[Row, bytes]]:
        taken = [self.slots[slot] for slot in slots if self.slots[slot]]
        for slot in slots:
            if self.slots[slot]:
                self.slots[slot] = {}
                self._orders.pop(slot, None)
        # Whichever of both is fewer is counted.
        is_rest_counted = 2 * len(slots) > len(self.slots)
        counted = list(filter(None, self.slots)) if is_rest_counted else taken
        weight = sum(
            sum(map(len, rows)) + sum(map(len, rows.values())) + len(rows) * ENTRY_OVERHEAD_BYTES
            for rows in counted
        )
        if is_rest_counted:
            deltas = self.deltas.items()
            weight += sum(len(key[1]) + len(raw) + ENTRY_OVERHEAD_BYTES for key, raw in deltas)
        self.weight_bytes = weight if is_rest_counted else self.weight_bytes - weight
        return taken

    def rows_from(self, slot: Slot, start: Row, limit: int) -> list[tuple[Row, bytes]]:
        """Return the first `limit` complete entries of a slot from `start` on, in order."""
        rows = self.slots[slot]
        if not rows:
            return []
        order = sorted(rows) if len(rows) < ORDERED_ROWS_MIN else self._order_of(slot)
        first = bisect_left(order, start)
        return [(row, rows[row]) for row in order[first : first + limit]]

    def _order_of(self, slot: Slot) -> list[Row]:
        rows = self.slots[slot]
        order = self._orders.get(slot)
        if order is None:
            if len(self._orders) == ORDERS_MAX:
                del self._orders[next(iter(self._orders))]
            order = self._orders[slot] = sorted(rows)
            return order
        fresh = list(islice(reversed(rows), len(rows) - len(order)))
        if len(fresh) <= _FEW:
            for row in fresh:
                insort(order, row)
        else:
            order += fresh
            order.sort()  # It finds the run that is sorted already.
        return order

    def deltas_of(self, slot: Slot, start: Row) -> list[tuple[Row, bytes]]:
        """Return the deltas of a slot from `start` on, in order. It looks at those of all slots."""
        return sorted((r, raw) for (s, r), raw in self.deltas.items() if s == slot and r >= start)

    def entries_of(self, slot: Slot, start: Row) -> Iterator[tuple[Row, bytes, bool]]:
        """(row, raw, is complete) of a slot, in order, from `start` on."""
        rows = [(row, raw, True) for row, raw in self.slots[slot].items() if row >= start]
        rows += [(r, raw, False) for (s, r), raw in self.deltas.items() if s == slot and r >= start]
        rows.sort()
        return iter(rows)

    def next_slot(self, slot: Slot, nearest: Slot) -> Slot:
        """Return the first slot from `slot` on that has entries, if it is below `nearest`, or else that."""
        slots = self.slots
        for other in range(slot, nearest):
            if slots[other]:
                nearest = other
                break
        for other, _ in self.deltas:
            if slot <= other < nearest:
                nearest = other
        return nearest

    @property
    def entry_count(self) -> int:
        return sum(map(len, self.slots)) + len(self.deltas)
