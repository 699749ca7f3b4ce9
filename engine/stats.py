"""What a store counts and what its levels hold: plain data for whoever shows it.

Core: plain data.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from engine.table_meta import TableMeta


@dataclass(slots=True)
class StoreStats:
    """Counted since the start.

    `delays` counts writes of the log after which the owner was asked to slow down. `bytes_flushed` and
    `bytes_compacted` are of the tables that flushes and compactions wrote; `entries_dropped` went
    into jobs and did not come out: superseded, dropped, dead; `tables_moved` went down a level as
    they were.
    """

    flushes: int = 0
    compactions: int = 0
    faults: int = 0
    table_reads: int = 0
    expired: int = 0
    stalls: int = 0
    delays: int = 0
    bytes_flushed: int = 0
    bytes_compacted: int = 0
    entries_dropped: int = 0
    tables_moved: int = 0

    def note_job(
        self,
        kind: str,
        read: Sequence[TableMeta],
        made: Sequence[TableMeta],
        entry_count: int,
    ) -> None:
        """A job made tables with `entry_count` entries of the tables that it read; a flush read none."""
        bytes_made = sum(table.file_bytes for table in made)
        if kind == "flush":
            self.flushes += 1
            self.bytes_flushed += bytes_made
            return
        if kind == "move":
            self.tables_moved += len(read)
            return
        self.entries_dropped += sum(table.entry_count for table in read) - entry_count
        self.compactions += kind == "compact"
        self.bytes_compacted += bytes_made

    @property
    def write_amplification(self) -> float:
        """How many bytes of tables were written for each byte that was flushed."""
        if not self.bytes_flushed:
            return 0.0
        return (self.bytes_flushed + self.bytes_compacted) / self.bytes_flushed


@dataclass(frozen=True, slots=True)
class LevelStats:
    """What one level holds."""

    table_count: int
    file_bytes: int
    entry_count: int
