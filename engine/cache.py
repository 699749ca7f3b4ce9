"""Two bounded caches: decoded blocks, and single rows.

Not a place where anything is made or read: who misses, reads and puts.

Both are least-recently-used by bytes. An `OrderedDict` does it, because its `move_to_end` is one
call in C; a plain dict would leave gaps at its front, which `next(iter(...))` has to pass each
time. What takes more than an eighth of a cache is not admitted: one huge value would drive out
everything else.

The block cache is keyed by table and block number. A table's number is never used for another
table, so a dropped table is never mistaken for a live one. Its blocks go some at a time, as others come:
to remove tens of thousands of them at once, when a compaction ends, would hold up whoever is served.

The row cache holds the joined, complete record of a key; `invalidate` is called before a write to
the key can be seen. It does not know expiry: the record does.

Core: pure and synchronous, for one thread.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Final

from engine.block import Block
from engine.codec import Key

BlockId = tuple[int, int]
"""Number of the table, number of the block in it."""

_SHARE_MAX: Final = 8
"""An item may take one part in so many of a cache."""

_DROPPED_PER_PUT: Final = 4
"""Blocks of dropped tables that go when one comes."""

_BLOCK_OVERHEAD_BYTES: Final = 350
"""A place in the block cache: key tuple and number, ordered and plain dict, the table's set."""

_ROW_OVERHEAD_BYTES: Final = 250
"""A place in the row cache: two bytes headers, node, dict slots."""


class BlockCache:
    """Decoded blocks of all tables, up to `bytes_max` of memory."""

    __slots__ = (
        "_blocks",
        "_by_table",
        "_dropped",
        "bytes_max",
        "bytes_used",
        "hit_count",
        "miss_count",
    )

    def __init__(self, bytes_max: int) -> None:
        self.bytes_max = bytes_max
        self.bytes_used = 0
        self.hit_count = 0
        self.miss_count = 0
        self._blocks: OrderedDict[BlockId, Block] = OrderedDict()
        self._by_table: dict[int, set[int]] = {}
        self._dropped: list[int] = []  # Tables of which blocks may be here still.

    def __len__(self) -> int:
        return len(self._blocks)

    def get(self, block_id: BlockId) -> Block | None:
        """Return the block if it is here. Hot path, measured by `bench/sstable.py`."""
        block = self._blocks.get(block_id)
        if block is None:
            self.miss_count += 1
            return None
        self._blocks.move_to_end(block_id)
        self.hit_count += 1
        return block

    def put(self, block_id: BlockId, block: Block) -> None:
        """Keep the block as the youngest; some of dropped tables make room, and then the oldest."""
        if block_id in self._blocks:
            self._remove(block_id)
        weight = block.weight_bytes + _BLOCK_OVERHEAD_BYTES
        if weight * _SHARE_MAX > self.bytes_max:
            return
        self._blocks[block_id] = block
        self._by_table.setdefault(block_id[0], set()).add(block_id[1])
        self.bytes_used += weight
        for _ in range(_DROPPED_PER_PUT if self._dropped else 0):
            self._remove_dropped()
        self._make_room()

    def resize(self, bytes_max: int) -> None:
        """Take another limit; the oldest make room if it is lower."""
        self.bytes_max = bytes_max
        self._make_room()

    def drop_table(self, table_id: int) -> None:
        """Nobody will ask for the blocks of a table any more."""
        self._dropped.append(table_id)

    def _make_room(self) -> None:
        while self.bytes_used > self.bytes_max:
            self._remove(next(iter(self._blocks)))

    def _remove_dropped(self) -> None:
        """Remove a block of a dropped table, if there are any."""
        if self._dropped:
            numbers = self._by_table.get(self._dropped[-1])
            if numbers:
                self._remove((self._dropped[-1], numbers.pop()))
            else:
                self._dropped.pop()

    def _remove(self, block_id: BlockId) -> None:
        block = self._blocks.pop(block_id)
        self.bytes_used -= block.weight_bytes + _BLOCK_OVERHEAD_BYTES
        table_id, block_no = block_id
        numbers = self._by_table[table_id]
        numbers.discard(block_no)
        if not numbers:
            del self._by_table[table_id]


class RowCache:
    """Complete records by key, up to `bytes_max` of memory. `by_key` has them, the oldest first."""

    __slots__ = ("by_key", "bytes_max", "bytes_used", "hit_count", "miss_count")

    def __init__(self, bytes_max: int) -> None:
        self.bytes_max = bytes_max
        self.bytes_used = 0
        self.hit_count = 0
        self.miss_count = 0
        self.by_key: OrderedDict[Key, bytes] = OrderedDict()

    def __len__(self) -> int:
        return len(self.by_key)

    def get(self, key: Key) -> bytes | None:
        """Return the record if it is here. Hot path, measured by `bench/sstable.py`."""
        raw = self.by_key.get(key)
        if raw is None:
            self.miss_count += 1
            return None
        self.by_key.move_to_end(key)
        self.hit_count += 1
        return raw

    def put(self, key: Key, raw: bytes) -> None:
        """Keep the record as the youngest, in place of an earlier one of the key."""
        self.invalidate(key)
        self.add(key, raw)

    def add(self, key: Key, raw: bytes) -> None:
        """As `put`, of a key that `get` has just not found. Hot: each look-up in tables ends here."""
        weight = len(key) + len(raw) + _ROW_OVERHEAD_BYTES
        if weight * _SHARE_MAX > self.bytes_max:
            return
        rows = self.by_key
        rows[key] = raw
        used = self.bytes_used + weight
        while used > self.bytes_max:
            key, raw = rows.popitem(last=False)
            used -= len(key) + len(raw) + _ROW_OVERHEAD_BYTES
        self.bytes_used = used

    def resize(self, bytes_max: int) -> None:
        """Take another limit; the oldest make room if it is lower."""
        self.bytes_max = bytes_max
        while self.bytes_used > bytes_max:
            self._forget(*self.by_key.popitem(last=False))

    def invalidate(self, key: Key) -> None:
        """Forget the record of a key, if it is here."""
        raw = self.by_key.pop(key, None)
        if raw is not None:
            self._forget(key, raw)

    def clear(self) -> None:
        """Forget everything: after a drop of a range, which names no keys."""
        self.by_key.clear()
        self.bytes_used = 0

    def _forget(self, key: Key, raw: bytes) -> None:
        self.bytes_used -= len(key) + len(raw) + _ROW_OVERHEAD_BYTES
