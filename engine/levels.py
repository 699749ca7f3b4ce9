"""The live tables in their order, and how a key is looked up in them.

Not the choice of what is merged (`engine/compaction.py`), and not what changes them: a `Levels` never
changes, and the store takes another one when a job is installed.

Level 0 is read from its newest table to its oldest. A deeper level is a run of tables whose keys do
not overlap, so that bisection over their largest keys finds the only one that can have a key. What an
upper level has of a key is newer than what a deeper one has; deltas are joined on the way down, and
the first complete entry ends it. Drops hide what is in tables made before them.

`Pages` are the blocks of tables in memory. A block that the kernel has is read inline; another one
raises `PageFault`: the caller runs `fetch` in a thread and `arrive` in the serving thread, and asks
again. `Pins` keep what a command waited for until it is done.

Shell, thin: it reads blocks, without waiting.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, pairwise, takewhile
from operator import attrgetter
from typing import Final

from engine.bloom import candidates
from engine.cache import BlockCache, BlockId
from engine.codec import COMPLETE, Key, RecordCodec, Row
from engine.damage import Damage, lost
from engine.disk import Disk, File
from engine.drop import DropIndex
from engine.errors import EngineError
from engine.job import Job, JobResult
from engine.sstable import Block, Table
from engine.stats import LevelStats, StoreStats

Pins = dict[BlockId, Block]
"""Blocks that a command waited for, kept for it until it is done: however small the caches are, it gets on."""

AWAITED_MAX: Final = 1024
"""Rows whose missing page is known."""

NO_PINS: Final[Mapping[BlockId, Block]] = {}


class PageFault(Exception):
    """A row or a page of a slot is not in memory.

    The caller runs `fetch` (or `fetch_all`, for several) in a thread, then `arrive` in the serving
    thread, and asks again.
    """

    def __init__(self, pages: Pages, table: Table, number: int, pins: Pins | None = None) -> None:
        super().__init__()
        self._pages = pages
        self._table = table
        self._number = number
        self._pins = pins  # Of the scan that faulted.
        self._block: Block | None = None
        self._failure: EngineError | None = None

    @property
    def block_id(self) -> BlockId:
        """What names the page: two faults may wait for the same one."""
        return self._table.id, self._number

    @property
    def page(self) -> tuple[Table, int]:
        """The table, and the number of the block in it."""
        return self._table, self._number

    def fetch(self) -> None:
        """Read the page, waiting for the disk. What goes wrong is raised by `arrive`."""
        fetch_all([self])

    def arrive(self, pins: Pins | None = None) -> None:
        """Keep what was fetched, also in the caller's `pins`, which it shows to the store (`Store.pinned`).

        That the table was replaced meanwhile is no error. Otherwise raises EngineError if the page
        could not be read.
        """
        block_id = self.block_id
        self._pages.awaited.clear()
        if block_id[0] not in self._pages.table_ids:
            return
        if self._failure is not None:
            raise self._failure
        block, self._block = self._block, None
        assert block is not None, "fetch() comes first"
        self._pages.cache.put(block_id, block)
        for kept in (pins, self._pins):
            if kept is not None:
                kept[block_id] = block

    def resolve(self, pins: Pins | None = None) -> None:
        """Both, for those who may wait."""
        self.fetch()
        self.arrive(pins)

    def _read(self, file: File) -> None:
        try:
            stored = file.read(*self._table.extent(self._number))
            self._block = self._table.decode(self._number, stored)
        except EngineError as error:
            self._failure = error


def fetch_all(faults: Sequence[PageFault]) -> None:
    """Read the pages of several faults, waiting for the disk: as `fetch` for each, and cheaper.

    Each page is read once, and in the order of the files. All are announced to the kernel before
    the first is waited for, so that the disk can work at them together.
    """
    ordered = sorted(faults, key=attrgetter("block_id"))
    files: dict[int, File] = {}
    try:
        readable = []
        for fault in ordered:
            table = fault._table
            try:
                file = files.get(table.id)
                if file is None:
                    file = files[table.id] = fault._pages.disk.open(table.name)
            except EngineError as error:
                fault._failure = error
                continue
            if len(ordered) > 1:
                file.will_read(*table.extent(fault._number))
            readable.append(fault)
        read: PageFault | None = None
        for fault in readable:
            if read is not None and read.block_id == fault.block_id:
                fault._block, fault._failure = read._block, read._failure
                continue
            fault._read(files[fault._table.id])
            read = fault
    finally:
        for file in files.values():
            file.close()


@dataclass(slots=True)
class Pages:
    """The blocks of open tables, as far as they are in memory."""

    disk: Disk
    cache: BlockCache
    stats: StoreStats
    pinned: Mapping[BlockId, Block] = field(
        default_factory=lambda: NO_PINS
    )  # Of the command that runs now.
    table_ids: set[int] = field(default_factory=set)  # Of open tables.
    # What look-ups of rows found missing since a page last arrived. A command that faults is tried
    # again at once, the long way, and its page need not be looked for again.
    awaited: dict[Row, tuple[Table, int]] = field(default_factory=dict)

    def block(self, table: Table, number: int, pins: Pins | None = None) -> Block:
        """Return a block. Raises PageFault. Hot: each look-up in a table ends here."""
        block_id = (table.id, number)
        block = self.cache.get(block_id)
        if block is None:
            if self.pinned and (block := self.pinned.get(block_id)) is not None:
                return block
            if pins and (block := pins.get(block_id)) is not None:
                return block
            self.stats.table_reads += 1
            try:
                block = table.load(number, cached_only=True)
            except EngineError:
                block = None  # `fetch` meets the same error, and tells whoever waits for the page.
            if block is None:
                self.stats.faults += 1
                raise PageFault(self, table, number, pins)
            self.cache.put(block_id, block)
        return block

    def refuse_missing(self, row: Row) -> None:
        """Raise PageFault if this row's look-up has just found its page missing: for those who have no pins yet."""
        known = self.awaited.get(row)
        if known is not None:
            raise PageFault(self, *known)  # Kept in no variable: its traceback would keep it alive.

    def note_missing(self, row: Row, fault: PageFault) -> None:
        """A row's look-up faulted."""
        if len(self.awaited) >= AWAITED_MAX:
            self.awaited.clear()
        self.awaited[row] = fault.page


class Levels:
    """The live tables at one time. `tables` are all of them, level by level."""

    __slots__ = ("_newest", "_runs", "levels", "tables")

    def __init__(self, levels: Sequence[Sequence[Table]]) -> None:
        self.levels: list[list[Table]] = [list(level) for level in levels] or [[]]
        self.tables: list[Table] = list(chain.from_iterable(self.levels))
        self._newest = self.levels[0]
        # For look-ups: the largest keys of each deeper level that has tables, and the tables.
        self._runs = [
            ([table.meta.key_max for table in run], run) for run in self.levels[1:] if run
        ]
        assert all(
            left.meta.key_max < right.meta.key_min
            for _, run in self._runs
            for left, right in pairwise(run)
        ), "tables of a deeper level overlap"

    @property
    def names(self) -> list[list[str]]:
        """The tables by name, as the manifest lists them."""
        return [[table.name for table in level] for level in self.levels]

    def names_after(self, job: Job, result: JobResult) -> list[list[str]]:
        """Return the tables by name without a job's inputs and with its output."""
        if job.kind == "flush":
            newest, *deeper = self.names
            return [result.tables + newest, *deeper]
        gone = set(job.inputs)
        inputs = [table for table in self.tables if table.name in gone]
        kept = [[table for table in level if table.name not in gone] for level in self.levels]
        kept += [[] for _ in range(job.level + 1 - len(kept))]
        target = kept[job.level]
        if job.kind == "move":
            target += inputs
            target.sort(key=lambda table: table.meta.key_min)
        names = [[table.name for table in level] for level in kept]
        if job.kind == "compact":
            if job.level == 0:
                at = self.names[0].index(job.inputs[0])
            else:
                key_min = min(table.meta.key_min for table in inputs)
                at = bisect_left(target, key_min, key=lambda table: table.meta.key_max)
            names[job.level][at:at] = result.tables
        while len(names) > 1 and not names[-1]:
            names.pop()
        return names

    def stats(self) -> list[LevelStats]:
        """Return what each level holds, level 0 first."""
        return [
            LevelStats(
                len(level),
                sum(table.meta.file_bytes for table in level),
                sum(table.meta.entry_count for table in level),
            )
            for level in self.levels
        ]

    def lookup(
        self,
        key: Key,
        pages: Pages,
        codec: RecordCodec,
        drops: DropIndex | None = None,
        tag: int = 0,
        damage: Damage | None = None,
    ) -> bytes | None:
        """Join the entries of a key from newest to oldest. Raises PageFault.

        Hot. `tag` is the keyspace of the row, which matters only where there are drops. With a
        `damage` of the key, only entries that are certainly younger count: raises LostDataError if
        they are not enough.
        """
        state: bytes | None = None
        tables = self._newest
        if self._runs:
            tables = tables[:]
            for key_maxes, run in self._runs:
                place = bisect_left(key_maxes, key)
                if place < len(run):
                    tables.append(run[place])
        if damage is not None:  # What is older than an older table is not asked either.
            since = damage.position
            tables = list(takewhile(lambda table: table.meta.position_min >= since, tables))
        for table in candidates(tables, key):
            if drops is not None and drops.hides(
                int.from_bytes(key[:2], "big"), tag, table.meta.position_max
            ):
                continue
            number = table.block_of(key)
            if number is None:
                continue
            found = pages.block(table, number).find(key)
            if found is None:
                continue
            flags, raw = found
            state = raw if state is None else codec.join(state, raw)
            if flags & COMPLETE:
                return state
        if damage is not None:
            raise lost(damage)
        return state

    def runs_of(self, slot: int) -> list[list[Table]]:
        """Return the tables that may have rows of a slot: lists of tables by key, the newest list first."""
        key_min, key_end = slot.to_bytes(2, "big"), (slot + 1).to_bytes(2, "big")
        found = [
            [table]
            for table in self._newest
            if table.meta.key_min < key_end and table.meta.key_max >= key_min
        ]
        for key_maxes, run in self._runs:
            first = bisect_left(key_maxes, key_min)
            end = first
            while end < len(run) and run[end].meta.key_min < key_end:
                end += 1
            if first < end:
                found.append(run[first:end])
        return found

    def holds_slot(self, slot: int) -> bool:
        """Whether a table may have rows of a slot: cheap."""
        return bool(self.runs_of(slot))

    def next_slot(self, slot: int, nearest: int, pages: Pages) -> int:
        """Return the first slot from `slot` on that has entries, if it is below `nearest`, or else that.

        Raises PageFault.
        """
        prefix = slot.to_bytes(2, "big")
        tables = list(self._newest)
        for key_maxes, run in self._runs:
            first = bisect_left(key_maxes, prefix)
            tables += run[first : first + 1]
        for table in tables:
            if table.meta.key_min > prefix:  # Known without a page.
                nearest = min(nearest, int.from_bytes(table.meta.key_min[:2], "big"))
                continue
            number = table.block_of(prefix)
            while number is not None and number < table.block_count:
                entry = next(pages.block(table, number).entries(prefix), None)
                if entry is not None:
                    nearest = min(nearest, int.from_bytes(entry[0][:2], "big"))
                    break
                number += 1
            if nearest == slot:
                break
        return nearest


class Retirement:
    """Tables that were replaced, for as long as a scan reads them. They stay open, and on the disk."""

    __slots__ = ("_held", "_replaced")

    def __init__(self) -> None:
        self._held: Counter[int] = Counter()  # How many scans read a table, by its id.
        self._replaced: list[Table] = []

    def hold(self, tables: Sequence[Table]) -> None:
        """A scan begins to read them."""
        self._held.update(table.id for table in tables)

    def release(self, tables: Sequence[Table]) -> None:
        """A scan has ended."""
        self._held.subtract(table.id for table in tables)
        self._held = +self._held

    def add(self, tables: Sequence[Table]) -> None:
        """They were replaced."""
        self._replaced += tables

    def due(self) -> list[Table]:
        """Give out those that nobody reads, each once: to be closed and removed."""
        due = [table for table in self._replaced if table.id not in self._held]
        self._replaced = [table for table in self._replaced if table.id in self._held]
        return due

    def all(self) -> list[Table]:
        """Return those that still wait."""
        return self._replaced
