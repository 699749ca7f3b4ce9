"""The live tables as reads see them: looked up through the row cache, scanned, and open while a scan reads them.

Not what changes them: the store shows each new manifest with its tables (`show`), and what it changes
in that manifest counts at once. Not memtables: what they have of a row is newer, and the store joins it
to what is found here; scans get them handed in.

The row cache has the state of a row below all memtables; the store invalidates it. Drops hide what stands
in tables from earlier positions (`engine/drop.py`). Of what damage took, reads are refused
(`engine/damage.py`).

A scan that lives on reads its tables until it is closed. Those that are replaced meanwhile are *retired*:
they stay open, and on the disk, and are left to `engine/leavings.py` when the last scan has ended.

Shell, thin: it reads blocks, without waiting.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from engine.cache import BlockCache, RowCache
from engine.codec import RecordCodec
from engine.damage import damage_at, damage_of_slot, lost
from engine.disk import Disk
from engine.drop import DropIndex
from engine.leavings import Leavings
from engine.levels import Levels, PageFault, Pages, Retirement
from engine.manifest import Manifest
from engine.memtable import Memtable, Row, Slot
from engine.scan import ALL_ROWS, SlotScan
from engine.setting import StoreSettings
from engine.sstable import Table
from engine.stats import StoreStats

ABSENT: Final = b""  # In the row cache: no table holds this row.


class TableReader:
    """See the module's docstring."""

    __slots__ = (
        "_codec",
        "_drop_index",
        "_leavings",
        "_levels",
        "_manifest",
        "_retirement",
        "blocks",
        "pages",
        "rows",
    )

    def __init__(
        self,
        disk: Disk,
        codec: RecordCodec,
        settings: StoreSettings,
        current: Manifest,
        levels: Levels,
        leavings: Leavings,
        stats: StoreStats,
    ) -> None:
        self.rows = RowCache(settings.row_cache_bytes)
        self.blocks = BlockCache(settings.block_cache_bytes)
        self.pages = Pages(disk, self.blocks, stats)
        self.pages.table_ids = {table.id for table in levels.tables}
        self._codec = codec
        self._manifest = current
        self._levels = levels
        self._drop_index = DropIndex(current.drops)
        self._retirement = Retirement()
        self._leavings = leavings

    # What there is to read

    def show(self, current: Manifest, levels: Levels) -> None:
        """Read from these tables from now on. What they replace is retired until `leave_retired`."""
        before, self._levels, self._manifest = self._levels.tables, levels, current
        live = {table.id for table in levels.tables}
        self.pages.table_ids.update(live)
        self._retirement.add([table for table in before if table.id not in live])

    def leave_retired(self) -> None:
        """Forget the tables that were replaced, as far as no scan reads them."""
        gone = self._retirement.due()
        for table in gone:
            self.blocks.drop_table(table.id)
            self.pages.table_ids.discard(table.id)
        self._leavings.add(gone)

    def _release(self, tables: Sequence[Table]) -> None:
        """A scan no longer needs them."""
        self._retirement.release(tables)
        self.leave_retired()

    def resize(self, settings: StoreSettings) -> None:
        """Take other sizes of the caches."""
        self.rows.resize(settings.row_cache_bytes)
        self.blocks.resize(settings.block_cache_bytes)

    def close(self) -> None:
        """Close all tables, also those that a scan reads."""
        for table in [*self._levels.tables, *self._retirement.all()]:
            table.close()

    # Looking up

    def lookup(self, slot: Slot, row: Row) -> bytes | None:
        """The state of a row below the memtables, or None. Hot. Raises PageFault, LostDataError."""
        rows = self.rows
        cached = rows.by_key.get(row)
        if cached is not None:  # As `RowCache.get`, whose call would cost as much as all of this.
            rows.by_key.move_to_end(row)
            rows.hit_count += 1
            return cached or None
        rows.miss_count += 1
        pages = self.pages
        if pages.awaited and not pages.pinned:
            pages.refuse_missing(row)
        key = slot.to_bytes(2, "big") + row
        try:
            if self._manifest.damages:
                raw = self._lookup_beside_damage(slot, key)
            elif self._manifest.drops:
                tag = self._codec.tag(row)
                raw = self._levels.lookup(key, pages, self._codec, self._drops(), tag)
            else:
                raw = self._levels.lookup(key, pages, self._codec)
        except PageFault as fault:
            pages.note_missing(row, fault)
            raise
        rows.add(row, raw or ABSENT)
        return raw

    def _lookup_beside_damage(self, slot: Slot, key: bytes) -> bytes | None:
        drops, tag = self._drops(), self._codec.tag(key[2:])
        damage = damage_at(self._manifest.damages, key)
        if damage is not None and drops is not None and drops.hides(slot, tag, damage.position):
            damage = None  # What was lost had been dropped.
        return self._levels.lookup(key, self.pages, self._codec, drops, tag, damage)

    def _drops(self) -> DropIndex | None:
        drops = self._manifest.drops
        if not drops:
            return None
        if self._drop_index.drops is not drops:  # Each change makes a new list.
            self._drop_index = DropIndex(drops)
        return self._drop_index

    # Scanning

    def refuse_lost(self, slot: Slot) -> None:
        """Raise LostDataError if damage may have taken something of a slot."""
        damage = damage_of_slot(self._manifest.damages, slot)
        if damage is not None:
            raise lost(damage)

    def page_scan(
        self, memtables: Sequence[Memtable], slot: Slot, start: Row, rows_max: int
    ) -> SlotScan:
        """A scan of one page of up to `rows_max` rows of a slot, from `start` on."""
        runs = self._levels.runs_of(slot)
        return self._scan(memtables, slot, start, runs, chunk_rows=rows_max)

    def snapshot_scan(self, memtables: Sequence[Memtable], slot: Slot) -> SlotScan:
        """A scan of all rows of a slot as they are now. Its tables stay open until it is closed."""
        runs = self._levels.runs_of(slot)
        tables = [table for run in runs for table in run]
        self._retirement.hold(tables)
        return self._scan(memtables, slot, b"", runs, on_close=lambda: self._release(tables))

    def _scan(
        self,
        memtables: Sequence[Memtable],
        slot: Slot,
        start: Row,
        runs: Sequence[Sequence[Table]],
        *,
        chunk_rows: int = ALL_ROWS,
        on_close: Callable[[], None] | None = None,
    ) -> SlotScan:
        drops = self._drops()
        return SlotScan(
            memtables,
            runs,
            slot,
            start,
            pages=self.pages,
            hidden={} if drops is None else drops.of_slot(slot),
            codec=self._codec,
            chunk_rows=chunk_rows,
            on_close=on_close,
        )

    def next_slot(self, slot: Slot, slot_count: int) -> Slot:
        """The first slot from `slot` on that has rows in tables or in damages, or `slot_count`. Raises PageFault."""
        nearest = self._levels.next_slot(slot, slot_count, self.pages)
        for damage in self._manifest.damages:  # Who scans them hears of it.
            if damage.slots.stop > slot:
                nearest = min(nearest, max(slot, damage.slots.start))
        return nearest
