"""The limits of a store, and how near to them it is.

Core: plain data and arithmetic.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from engine.compaction import L0_COUNT, Shape
from engine.sstable import Compression

LEVEL_1_MEMTABLES: Final = 4
"""The least target of level 1, in memtables, where it is not said."""


@dataclass(frozen=True, slots=True)
class StoreSettings:
    """Limits in bytes. `log_bytes_max`: a memtable is flushed when its log grew to this, however small it is.

    `table_bytes`: where compaction cuts its output. `level_1_bytes`: the least target of level 1.
    `compaction_bytes_per_s`: so much compaction reads as long as it is not behind (0: as fast as it can).
    `l0_count`: so many tables of level 0 are merged into it. Writes are delayed, by up to
    `write_delay_max_s`, from `l0_slow_count` tables of level 0 on, and stopped at `l0_stop_count`.
    """

    memtable_bytes: int
    row_cache_bytes: int
    block_cache_bytes: int
    log_bytes_max: int
    block_bytes: int = 8192
    compression: Compression = "lz4"
    slot_count: int = 16385
    table_bytes: int = 32 << 20
    compaction_bytes_per_s: int = 0
    level_1_bytes: int | None = None
    l0_count: int = L0_COUNT
    write_delay_max_s: float = 0.05
    l0_slow_count: int = 2 * L0_COUNT
    l0_stop_count: int = 5 * L0_COUNT

    @property
    def shape(self) -> Shape:
        """What compaction aims at."""
        level_1_bytes = self.level_1_bytes
        if level_1_bytes is None:
            level_1_bytes = LEVEL_1_MEMTABLES * self.memtable_bytes
        return Shape(level_1_bytes, self.l0_count)

    def level_0_pressure(self, table_count: int) -> float:
        """From 0, where writes need not wait for compaction, to 1, where they stop for it. Below 0: far from it."""
        return (table_count - self.l0_slow_count) / max(1, self.l0_stop_count - self.l0_slow_count)

    def memtable_pressure(self, weight_bytes: int, logged_bytes: int) -> float:
        """The same for a memtable, when the one before it is not flushed yet: from half of its size on."""
        weight = weight_bytes / max(1, self.memtable_bytes)
        logged = logged_bytes / max(1, self.log_bytes_max)
        return 2 * max(weight, logged) - 1
