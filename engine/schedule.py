"""Which background job is next: its inputs, its terms, and a name for its output.

A flush and a compaction may be under way together, one of each: a flush that waited for a compaction would let the
memtables fill, and hold up writes. Neither changes what the other reads: a flush takes segments of the log, a
compaction tables, and what the flush adds is newer than all of these.

Not what makes it necessary: the store brings what is to be flushed, and `engine/compaction.py` chooses
what is merged, moved or removed. Not how a job is done (`engine/job.py`), and not how its result becomes
live (`Store.install`).

Table names are never used twice, not even by a worker that outlives its killed server: each start takes
numbers that no earlier start can have given out (`take_numbers`), and the store writes that into the
manifest before any of them is given out.

Core: it decides, and does nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from engine import compaction
from engine.job import SUFFIX, Job
from engine.levels import Levels
from engine.manifest import Drop
from engine.setting import StoreSettings

# Far more than jobs that one start can give up without finishing any.
TABLE_NUMBERS_PER_START: Final = 1_000_000


@dataclass(frozen=True, slots=True)
class Terms:
    """What a job may do: carry out `drops`, and forget what is dead up to the horizon, as of `now_ms`."""

    settings: StoreSettings
    drops: list[Drop]
    horizon_position: int
    now_ms: int


class Schedule:
    """Gives out jobs, and knows those that are under way."""

    __slots__ = ("compaction", "flush", "lacks_room", "next_table")

    def __init__(self, next_table: int) -> None:
        self.flush: Job | None = None  # Those that are under way.
        self.compaction: Job | None = None
        self.lacks_room = False  # There is no room for the compaction that is wanted.
        self.next_table = next_table  # The number of the next output.

    @property
    def is_busy(self) -> bool:
        return self.flush is not None or self.compaction is not None

    def take_numbers(self) -> None:
        """Begin a range of numbers that no earlier start used."""
        self.next_table += TABLE_NUMBERS_PER_START - self.next_table % TABLE_NUMBERS_PER_START

    def give_flush(
        self, segments: list[str], start: int, end: int, levels: Levels, terms: Terms
    ) -> Job:
        """Give out the flush of these segments of the log, which hold the positions from `start` to `end`."""
        assert self.flush is None
        job = self.flush = self._give("flush", segments, start, end, terms)
        job.is_bottom = not levels.tables
        return job

    def give_compaction(self, levels: Levels, room_bytes: int, terms: Terms) -> Job | None:
        """Give out what compaction chooses, if anything. Not what may need more than `room_bytes` of disk."""
        assert self.compaction is None
        choice = compaction.choose(
            [[table.meta for table in level] for level in levels.levels],
            terms.settings.shape,
            terms.now_ms,
            terms.drops,
            terms.horizon_position,
        )
        tables = [levels.levels[level][number] for level, number in choice.inputs] if choice else []
        self.lacks_room = (
            choice is not None
            and choice.kind == "compact"
            and sum(table.meta.file_bytes for table in tables) > room_bytes
        )
        if choice is None or self.lacks_room:
            return None
        job = self.compaction = self._give(
            choice.kind, [table.name for table in tables], 0, 0, terms
        )
        job.is_bottom = choice.is_bottom
        job.level = choice.level
        # A table of level 0 stays one: each costs every read a look.
        job.table_bytes = terms.settings.table_bytes if choice.level else 0
        if not _is_behind(levels, terms.settings):
            job.bytes_per_s = terms.settings.compaction_bytes_per_s
        return job

    def must_hurry(self, levels: Levels, settings: StoreSettings) -> bool:
        """Whether the compaction under way has a budget, and is too slow with it."""
        job = self.compaction
        return job is not None and job.bytes_per_s > 0 and _is_behind(levels, settings)

    def _give(self, kind: str, inputs: list[str], start: int, end: int, terms: Terms) -> Job:
        name = f"{self.next_table:016d}{SUFFIX}"
        self.next_table += 1
        return Job(
            kind=kind,
            inputs=inputs,
            output=name,
            position_min=start,
            position_max=end,
            drops=terms.drops,
            block_bytes=terms.settings.block_bytes,
            compression=terms.settings.compression,
            is_bottom=False,
            now_ms=terms.now_ms,
            horizon_position=terms.horizon_position,
        )

    def end(self, job: Job) -> None:
        """A job was installed, or given up."""
        if job is self.flush:
            self.flush = None
        else:
            assert job is self.compaction
            self.compaction = None


def _is_behind(levels: Levels, settings: StoreSettings) -> bool:
    """Whether level 0 grows beyond where it is merged: long before writes are held up."""
    return len(levels.levels[0]) > settings.l0_count
