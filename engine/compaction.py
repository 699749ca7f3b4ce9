"""Which tables to merge: a pure function of what the tables say of themselves.

Size-tiered: neighbours in age of similar size are merged, so that the number of tables grows with
the logarithm of the data. A table whose entries have mostly expired, or been dropped, is rewritten
alone, so that space comes back without a read.

Core.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from engine.sstable import TableMeta

TIER_COUNT: Final = 4  # Neighbours of one tier that are merged together.
EXPIRED_SHARE: Final = 0.3


def choose(tables: Sequence[TableMeta], now_ms: int) -> slice | None:
    """The slice of `tables` (newest first) to merge now, or None."""
    for start in range(len(tables)):
        size = max(tables[start].file_bytes, 1)
        stop = start + 1
        while stop < len(tables) and tables[stop].file_bytes <= 2 * size:
            size = max(size, tables[stop].file_bytes)
            stop += 1
        if stop - start >= TIER_COUNT:
            return slice(start, stop)
    for index, table in enumerate(tables):
        if table.expired_count(now_ms) > EXPIRED_SHARE * max(table.entry_count, 1):
            return slice(index, index + 1)
    return None
