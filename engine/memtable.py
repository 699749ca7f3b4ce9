"""The memtable: what was written and is not in a table yet.

It is not ordered: rows live in one dict per slot, so that no dict grows large enough to pause the
process when it is resized, and sorting happens in the worker at flush, or for one slot when it is
scanned. Values are encoded records (`bytes`), which the garbage collector does not look at.

`slots` holds complete entries only, so that a reader who finds a row there needs nothing else.
Entries that are deltas over older ones stand apart in `deltas`.

Core: no I/O.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from engine.codec import RecordCodec

Row = bytes
Slot = int

# What CPython spends on an entry besides the bytes themselves: two object headers, the dict's slot
# at its usual load.
ENTRY_OVERHEAD_BYTES: Final = 200


class Memtable:
    """Rows by slot, written from log position `base_position` on. `weight_bytes` estimates the memory held."""

    __slots__ = ("base_position", "deltas", "slots", "weight_bytes")

    def __init__(self, slot_count: int, base_position: int) -> None:
        self.slots: list[dict[Row, bytes]] = [{} for _ in range(slot_count)]
        self.deltas: dict[tuple[Slot, Row], bytes] = {}
        self.weight_bytes = 0
        self.base_position = base_position

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

    def drop(self, tags: frozenset[int], codec: RecordCodec) -> None:
        """Remove the rows of some keyspaces."""
        for slot, rows in enumerate(self.slots):
            if rows:
                for row in [row for row in rows if codec.tag(row) in tags]:
                    self.remove(slot, row)
        for slot, row in [key for key in self.deltas if codec.tag(key[1]) in tags]:
            raw = self.deltas.pop((slot, row))
            self.weight_bytes -= len(row) + len(raw) + ENTRY_OVERHEAD_BYTES

    def entries_of(self, slot: Slot, start: Row) -> Iterator[tuple[Row, bytes, bool]]:
        """(row, raw, is complete) of a slot, in order, from `start` on."""
        rows = [(row, raw, True) for row, raw in self.slots[slot].items() if row >= start]
        rows += [(r, raw, False) for (s, r), raw in self.deltas.items() if s == slot and r >= start]
        rows.sort()
        return iter(rows)

    @property
    def entry_count(self) -> int:
        return sum(map(len, self.slots)) + len(self.deltas)
