"""Which tables to merge: a pure function of what the tables say of themselves.

Size-tiered: neighbours in age of similar size are merged, so that the number of tables grows with
the logarithm of the data. A table whose entries have mostly expired, or been dropped, is rewritten
alone, so that space comes back without a read.

Core.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from engine.manifest import Drop
from engine.sstable import TableMeta

TIER_COUNT: Final = 4  # Neighbours of one tier that are merged together.
GONE_SHARE: Final = 0.3  # Of a table's entries, from which it is rewritten alone.


def choose(tables: Sequence[TableMeta], now_ms: int, drops: Sequence[Drop] = ()) -> slice | None:
    """The slice of `tables` (newest first) to merge now, or None.

    `drops` are those that the merge will carry out, and no others: a table that stays as it is
    would be chosen for ever.
    """
    for start in range(len(tables)):
        size = max(tables[start].file_bytes, 1)
        stop = start + 1
        while stop < len(tables) and tables[stop].file_bytes <= 2 * size:
            size = max(size, tables[stop].file_bytes)
            stop += 1
        if stop - start >= TIER_COUNT:
            return slice(start, stop)
    for index, table in enumerate(tables):
        gone = max(table.expired_count(now_ms), _dropped_count(table, drops))
        if gone > GONE_SHARE * max(table.entry_count, 1):
            return slice(index, index + 1)
    return None


def _dropped_count(table: TableMeta, drops: Sequence[Drop]) -> int:
    tags = {drop.tag for drop in drops if table.position_max < drop.position}
    return sum(count.entry_count for tag, count in table.tags.items() if tag in tags)
