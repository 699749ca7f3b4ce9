"""One node's ordered store: commit log, memtables and tables behind one interface.

It is not concerned with what a row means: that is the codec's. It starts no task and no thread. The
shell that owns it

- calls `write()` once per tick: everything applied since goes to the log in one frame,
- runs `log.sync()` where its policy says so,
- asks `next_job()`, has the job done elsewhere (a worker process, a thread, or at once in a
  simulation), and hands the result to `prepare`, `write_manifest` (which blocks: in a thread) and
  `install`; or gives it up with `abandon`,
- may set `is_cleared_by_owner`, and then calls `clear_away` (in a thread) while `has_leavings`,
- fetches rows whose look-up raised `PageFault`: `fetch` in a thread, then `arrive`,
- holds back writes for `write_delay_s`, and while `is_stalled`.

    apply -> log.pieces, active memtable            (tick)
    active full -> frozen, log rolls                (write)
    frozen -> flush job -> table                    (next_job .. install)
    too many tables -> job: some are merged, moved a level down, or removed

Reading goes active, frozen (newest first), row cache, tables (`engine/levels.py`), joining deltas down
to the first complete entry. Pages that the kernel holds are read inline; others raise `PageFault`.

Dropping keyspaces (FLUSHALL) or slots is a marker in the log. Tables made from earlier positions hide
the dropped rows until a job has removed them (`engine/drop.py`).

What is dead is forgotten only up to `horizon_position`, which the owner sets: others may have to hear
of a deletion that is later. A single node leaves it at "everything".

Writes are slowed down before they have to be stopped: after each `write()`, `write_delay_s` says for
how long the owner should not take further writes. It grows from 0 as level 0 gets long or the
memtable fills while another one waits; after that comes `is_stalled`.

Who scans a slot over a long time takes `snapshot_scan`: the tables that it reads stay open, and on
the disk, until it is closed.

What is durable, and in what order:

- A table's bytes, then its name, then the manifest that names it. Only then are the log segments and
  the tables removed that it replaced. Before that a crash finds the old manifest and all it names.
- The manifest never runs ahead of the log. It holds the drops up to its `log_start`; later ones are
  in the log. If a crash cut the log before a marker that the manifest knew already, new writes would
  get positions before it, and the tables made of them would be hidden by it. For the same reason
  compaction removes only what durable markers dropped.
- Table names are never used twice, not even by a worker that outlives its killed server: each start
  takes numbers that no earlier start can have given out, and writes that into the manifest before
  it gives out any.

Sources: LevelDB's and Pebble's division of work; Cassandra's delta merging.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass, field
from typing import Final

from engine import compaction, manifest
from engine.cache import BlockCache, BlockId, RowCache
from engine.codec import Fate, RecordCodec
from engine.damage import (
    KEY_END,
    SET_ASIDE_SUFFIX,
    Damage,
    damage_at,
    damage_of_slot,
    lost,
)
from engine.disk import Disk
from engine.drop import DropIndex, Marker, hiding, with_marker
from engine.errors import CorruptionError, DiskError, EngineError, MissingFileError
from engine.job import EVERYTHING, SUFFIX, Job, JobResult
from engine.levels import NO_PINS, Levels, PageFault, Pages, Pins, Retirement
from engine.log import CommitLog
from engine.log_format import COMPLETE, ENVELOPE, MARKER
from engine.log_recovery import Recovery, recover
from engine.manifest import Drop, Manifest
from engine.memtable import Memtable, Row, Slot
from engine.scan import ALL_ROWS, SlotScan
from engine.setting import StoreSettings
from engine.sstable import TEMPORARY_SUFFIX, Block, Table
from engine.stats import LevelStats, StoreStats

ABSENT = b""  # In the row cache: no table holds this row.
LOCK_NAME = "lock"
FROZEN_MAX: Final = 2
OVERFULL_MEMTABLES: Final = 3  # In the place of one. Owners hold back writes at two.
# Slots of a memtable that was flushed, freed with each write of the log. All at once is a pause.
FREED_PER_WRITE: Final = 8
# Far more than jobs that one start can give up without finishing any.
TABLE_NUMBERS_PER_START: Final = 1_000_000


@dataclass(slots=True)
class Frozen:
    """A memtable on its way to a table, with the owner's state when it froze."""

    memtable: Memtable
    end_position: int
    state: bytes


@dataclass(slots=True)
class Prepared:
    """A manifest on its way to the disk, and the new tables that it names, once they are open."""

    manifest: Manifest
    made: list[str]
    tables: list[Table] = field(default_factory=list)


class Store:
    """See the module's docstring. Made by `Store.open`."""

    def __init__(
        self,
        disk: Disk,
        codec: RecordCodec,
        settings: StoreSettings,
        current: Manifest,
        levels: Levels,
    ) -> None:
        self.disk = disk
        self.codec = codec
        self.settings = settings
        self.manifest = current
        self.levels = levels
        self.tables = levels.tables  # All of them.
        self.frozen: list[Frozen] = []  # Newest first.
        self.memtable = Memtable(settings.slot_count, current.log_start)
        self.active = self.memtable.slots  # Hot: read and written directly by slot and row.
        self.rows = RowCache(settings.row_cache_bytes)
        self.blocks = BlockCache(settings.block_cache_bytes)
        self._is_replaying = True  # The log, of which all is durable then.
        self.log: CommitLog
        self.recovery: Recovery
        self.stats = StoreStats()
        self.horizon_position = EVERYTHING  # Up to here what is dead may be forgotten.
        self.write_delay_s = 0.0  # For which the owner should not take further writes.
        self._pages = Pages(disk, self.blocks, self.stats)
        self._pages.table_ids = {table.id for table in levels.tables}
        self._drop_index = DropIndex(current.drops)
        self._replaced_from = self._replaced_until = 0  # Positions: see `_durable_drops`.
        self.capture: Callable[[], bytes] = bytes  # The owner's state, asked for at each freeze.
        self._job: Job | None = None
        self._next_table = current.next_table
        self.freeze_failure: DiskError | None = None  # Why a full memtable is not frozen.
        self._garbage: list[str] = []  # Files that may go once the next manifest is durable.
        # Files of what was replaced: tables, and segments of the log by name.
        self._leavings: list[Table | str] = []
        self.is_cleared_by_owner = False  # Who calls `clear_away`; else it is done at once.
        self._lacks_room = False  # There is no room for the compaction that is wanted.
        self._retirement = Retirement()
        self._dead: list[
            dict[Row, bytes]
        ] = []  # Rows that nobody looks at: freed little by little.
        self._set_aside: set[str] = (
            set()
        )  # Damaged tables, to be kept for people when they are replaced.

    # Life

    @classmethod
    def open(
        cls,
        disk: Disk,
        codec: RecordCodec,
        settings: StoreSettings,
        *,
        initial_state: bytes,
        observe: Callable[[Slot, Row, bytes], None],
        restore: Callable[[bytes], None],
    ) -> Store:
        """Lock the folder, read the manifest, open the tables and replay the log.

        `restore` gets the owner's state as of the log's start, then `observe` each entry that is
        replayed. Raises LockedError, UnknownFormatError, CorruptionError, DiskError; nothing that
        is damaged or of another version has been touched then.
        """
        disk.lock(LOCK_NAME)
        current = manifest.read(disk)
        if current is None:
            current = Manifest(manifest.FORMAT_VERSION, 0, 0, [[]], [], initial_state)
            manifest.write(disk, current)
        store = cls(disk, codec, settings, current, _open_levels(disk, current))
        restore(current.state)
        store.recovery = recover(disk, start=current.log_start, apply=store._replayer(observe))
        cls._remove_leftovers(disk, current)
        store._take_table_numbers(current)
        store.log = CommitLog.open(disk, store.recovery)
        store._is_replaying = False
        return store

    def _take_table_numbers(self, current: Manifest) -> None:
        """Begin a range of numbers that no earlier start used, durably."""
        self._next_table += TABLE_NUMBERS_PER_START - self._next_table % TABLE_NUMBERS_PER_START
        # The drops as they were: those found in the log since are in the log.
        manifest.write(
            self.disk, self._manifest_with(current.log_start, current.levels, current.state)
        )

    @staticmethod
    def _remove_leftovers(disk: Disk, current: Manifest) -> None:
        """Tables of jobs that never finished, and files that a finished one had replaced."""
        live = set(current.tables)
        for name in disk.names():
            if name.endswith(TEMPORARY_SUFFIX) or (name.endswith(SUFFIX) and name not in live):
                disk.remove(name)

    def _replayer(
        self, observe: Callable[[Slot, Row, bytes], None]
    ) -> Callable[[int, Slot, Row, bytes, int], None]:
        def apply(flags: int, slot: Slot, row: Row, raw: bytes, position: int) -> None:
            if flags & MARKER:
                self._drop(Marker.decode(row, raw), position)
            elif flags & COMPLETE:
                self.memtable.put(slot, row, raw)
                observe(slot, row, raw)
            else:
                self.memtable.join(slot, row, raw, self.codec)
                observe(slot, row, raw)

        return apply

    def resize(self, settings: StoreSettings) -> None:
        """Take other settings. The limits hold from now on; blocks and compression for tables made from now on."""
        self.settings = settings
        self.rows.resize(settings.row_cache_bytes)
        self.blocks.resize(settings.block_cache_bytes)

    def close(self) -> None:
        """Sync the log and close all files. Raises EngineError, with all closed, if what is left cannot be written."""
        try:
            self.log.close()
        finally:
            left = [left for left in self._leavings if isinstance(left, Table)]
            for table in [*self.tables, *self._retirement.all(), *left]:
                table.close()

    # Writing

    def apply(self, slot: Slot, row: Row, raw: bytes, *, is_complete: bool = True) -> None:
        """Stage an entry for the log and join it into the memtable. Hot: every write ends here."""
        if is_complete:
            self.log.pieces += (ENVELOPE(COMPLETE, slot, len(row), len(raw)), row, raw)
            if self.memtable.put(slot, row, raw):
                self.forget_below(slot, row)
        else:
            self.log.pieces += (ENVELOPE(0, slot, len(row), len(raw)), row, raw)
            self.memtable.join(slot, row, raw, self.codec)
            self.rows.invalidate(row)

    def forget_below(self, slot: Slot, row: Row) -> None:
        """A row is complete in the memtable, and was not there before: what was joined or cached of it is void."""
        if self.memtable.deltas:
            self.memtable.forget_delta(slot, row)
        if self.tables:
            self.rows.invalidate(row)

    def drop(self, tags: list[int]) -> None:
        """Remove all rows of some keyspaces, as of now. Staged like any write: nothing is written to the disk yet."""
        self._stage_drop(Marker(frozenset(tags)))

    def drop_slots(self, first: Slot, last: Slot) -> None:
        """Remove all rows of the slots from `first` to `last`, as `drop` does."""
        assert 0 <= first <= last < self.settings.slot_count
        self._stage_drop(Marker(None, first, last))

    def _stage_drop(self, marker: Marker) -> None:
        self.log.stage(MARKER, 0, *marker.encode())
        # Above the end of every frozen memtable, and not above the end of the frame that the marker
        # will be in.
        self._drop(marker, self.log.position + 1)

    def _drop(self, marker: Marker, position: int) -> None:
        slots = range(marker.slot_min, min(marker.slot_max + 1, self.settings.slot_count))
        for memtable in self._memtables():
            self._dead += memtable.drop(marker.tags, self.codec, slots)
        self.rows.clear()
        if self.tables or self.frozen:
            base = self.memtable.base_position
            before = self.manifest.drops
            self.manifest.drops = with_marker(before, marker, position, base)
            self._note_replaced(set(before).difference(self.manifest.drops), position)

    def _note_replaced(self, replaced: Set[Drop], position: int) -> None:
        """A drop has taken in earlier ones, which come back with their own positions if a crash takes it."""
        if replaced:
            if self._replaced_until <= self.log_durable:
                self._replaced_from = position
            self._replaced_from = min([self._replaced_from, *(drop.position for drop in replaced)])
            self._replaced_until = position

    @property
    def log_durable(self) -> int:
        """Up to here, what is in the log or was in it is durable."""
        if self._is_replaying:
            return EVERYTHING
        return max(self.log.synced, self.manifest.log_start)

    def _memtables(self) -> list[Memtable]:
        """Newest first."""
        return [self.memtable, *(frozen.memtable for frozen in self.frozen)]

    def write(self) -> int:
        """Write what was applied to the log in one frame; freeze the memtable if it is full. Returns the log's end.

        On DiskError what was applied stays staged, and the next call tries again. Raises
        LogFailedError.
        """
        position = self.log.write()
        if self._dead:
            del self._dead[-FREED_PER_WRITE:]
        memtable = self.memtable
        if (
            memtable.weight_bytes > self.settings.memtable_bytes
            or position - memtable.base_position > self.settings.log_bytes_max
        ) and self.freeze_failure is None:
            self._freeze_if_possible()
        if self.frozen or self.write_delay_s or self._level_0_pressure() > 0.0:
            self._set_delay()
            self.stats.delays += self.write_delay_s > 0.0
        return position

    def _level_0_pressure(self) -> float:
        return self.settings.level_0_pressure(len(self.levels.levels[0]))

    def _set_delay(self) -> None:
        pressure = self._level_0_pressure()
        if len(self.frozen) >= FROZEN_MAX - 1:  # The next freeze stops all writes.
            memtable = self.memtable
            logged_bytes = self.log.position - memtable.base_position
            of_memtable = self.settings.memtable_pressure(memtable.weight_bytes, logged_bytes)
            pressure = max(pressure, of_memtable)
        self.write_delay_s = self.settings.write_delay_max_s * min(1.0, max(0.0, pressure))

    def _freeze_if_possible(self) -> None:
        if len(self.frozen) < FROZEN_MAX:
            try:
                self.freeze()
            except DiskError as error:
                self.freeze_failure = error  # `next_job` tries again: it is called now and then.

    def freeze(self) -> None:
        """Close the memtable and its log segments, and begin new ones. On DiskError everything stays as it was."""
        self.log.write()
        if (
            self.log.segment_bytes
        ):  # Not so after a recovery: the replayed segments are sealed already.
            self.log.roll()
        self.frozen.insert(0, Frozen(self.memtable, self.log.position, self.capture()))
        self.memtable = Memtable(self.settings.slot_count, self.log.position)
        self.active = self.memtable.slots
        if self.is_stalled:
            self.stats.stalls += 1

    @property
    def is_stalled(self) -> bool:
        """Too much waits for the worker: the owner holds back writes until a job is done.

        Not for a compaction that will not come, because there is no room for it.
        """
        return (
            len(self.frozen) >= FROZEN_MAX
            # Could not be frozen for want of room.
            or self.memtable.weight_bytes > 2 * self.settings.memtable_bytes
            or (self._level_0_pressure() >= 1.0 and not self._lacks_room)
        )

    @property
    def is_overfull(self) -> bool:
        """Writes that the owner cannot hold back should be refused: memory holds several times its share."""
        return self.memtable.weight_bytes > OVERFULL_MEMTABLES * self.settings.memtable_bytes

    def free(self, is_time_up: Callable[[], bool]) -> None:
        """Give back memory of what was flushed or dropped, until `is_time_up`: for when nobody writes."""
        while self._dead and not is_time_up():
            self._dead.pop()

    def forget(self, slot: Slot, row: Row, now_ms: int) -> bool:
        """Give back the payload of an entry that has expired.

        It is not logged: whoever reads the log sees it expired.
        """
        raw = self.active[slot].get(row)
        if raw is None or self.codec.fate(row, raw, now_ms) is not Fate.DEAD:
            return False
        is_at_bottom = not self.frozen and not self.tables
        if is_at_bottom and self.log.position < self.horizon_position:
            self.memtable.remove(slot, row)
        else:
            self.memtable.put(slot, row, self.codec.stub(raw))
        return True

    # Reading

    @property
    def pinned(self) -> Mapping[BlockId, Block]:
        """The pages that the command waited for which runs now: its owner sets and resets them."""
        return self._pages.pinned

    @pinned.setter
    def pinned(self, pins: Mapping[BlockId, Block]) -> None:
        self._pages.pinned = pins

    def get(self, slot: Slot, row: Row) -> bytes | None:
        """The state of a row, or None. Raises PageFault if the answer is not in memory."""
        raw = self.active[slot].get(row)
        return raw if raw is not None else self.lookup(slot, row)

    def lookup(self, slot: Slot, row: Row) -> bytes | None:
        """As `get`, for a row that has no complete entry in the active memtable."""
        if not (self.tables or self.frozen or self.memtable.deltas or self.manifest.damages):
            return None  # As `has_more`: every miss comes by here.
        above = self.memtable.deltas.get((slot, row))
        for frozen in self.frozen:
            raw = frozen.memtable.slots[slot].get(row)
            if raw is not None:
                return raw if above is None else self.codec.join(above, raw)
            raw = frozen.memtable.deltas.get((slot, row))
            if raw is not None:
                above = raw if above is None else self.codec.join(above, raw)
        below = self._lookup_tables(slot, row) if self.tables or self.manifest.damages else None
        if above is None or below is None:
            return above if below is None else below
        return self.codec.join(above, below)

    def read_now(self, slot: Slot, row: Row) -> bytes | None:
        """As `get`, waiting for the disk: for the start, not for serving."""
        pins: Pins = {}
        self.pinned = pins
        try:
            while True:
                try:
                    return self.get(slot, row)
                except PageFault as fault:
                    fault.resolve(pins)
        finally:
            self.pinned = NO_PINS

    def _lookup_tables(self, slot: Slot, row: Row) -> bytes | None:
        cached = self.rows.get(row)
        if cached is not None:
            return cached or None
        pages = self._pages
        if pages.awaited and not pages.pinned:
            pages.refuse_missing(row)
        key = slot.to_bytes(2, "big") + row
        try:
            if self.manifest.damages:
                raw = self._lookup_beside_damage(slot, key)
            elif self.manifest.drops:
                tag = self.codec.tag(row)
                raw = self.levels.lookup(key, pages, self.codec, self._drops(), tag)
            else:
                raw = self.levels.lookup(key, pages, self.codec)
        except PageFault as fault:
            pages.note_missing(row, fault)
            raise
        if len(row) + len(raw or ABSENT) < self.rows.bytes_max >> 4:
            self.rows.put(row, raw or ABSENT)
        return raw

    def _lookup_beside_damage(self, slot: Slot, key: bytes) -> bytes | None:
        drops, tag = self._drops(), self.codec.tag(key[2:])
        damage = damage_at(self.manifest.damages, key)
        if damage is not None and drops is not None and drops.hides(slot, tag, damage.position):
            damage = None  # What was lost had been dropped.
        return self.levels.lookup(key, self._pages, self.codec, drops, tag, damage)

    def _drops(self) -> DropIndex | None:
        drops = self.manifest.drops
        if not drops:
            return None
        if self._drop_index.drops is not drops:  # Each change makes a new list.
            self._drop_index = DropIndex(drops)
        return self._drop_index

    # Scanning

    def scan(
        self, slot: Slot, start: Row, limit: int
    ) -> tuple[list[tuple[Row, bytes]], Row | None]:
        """Up to `limit` rows of a slot from `start` on, in order, and where to go on (None: the slot is done).

        Rows whose state is dead are among them. Raises PageFault, LostDataError.
        """
        self._refuse_lost(slot)
        if not self.tables and not self.frozen and not self.memtable.deltas:
            rows = self.memtable.rows_from(slot, start, limit + 1)
        else:
            scan = self._slot_scan(slot, start, self.levels.runs_of(slot), chunk_rows=limit + 1)
            rows = scan.page(limit + 1)
        return (rows, None) if len(rows) <= limit else (rows[:limit], rows[limit][0])

    def snapshot_scan(self, slot: Slot) -> SlotScan:
        """All rows of a slot as they are now, in order, however they change meanwhile.

        For internal users who take their time. It costs references to what memtables have of the
        slot. The owner closes it, or reads it to its end: until then its tables take room.
        """
        self._refuse_lost(slot)
        runs = self.levels.runs_of(slot)
        tables = [table for run in runs for table in run]
        self._retirement.hold(tables)
        return self._slot_scan(slot, b"", runs, on_close=lambda: self._release(tables))

    def _refuse_lost(self, slot: Slot) -> None:
        damage = damage_of_slot(self.manifest.damages, slot)
        if damage is not None:
            raise lost(damage)

    def _slot_scan(
        self,
        slot: Slot,
        start: Row,
        runs: Sequence[Sequence[Table]],
        *,
        chunk_rows: int = ALL_ROWS,
        on_close: Callable[[], None] | None = None,
    ) -> SlotScan:
        drops = self._drops()
        return SlotScan(
            self._memtables(),
            runs,
            slot,
            start,
            pages=self._pages,
            hidden={} if drops is None else drops.of_slot(slot),
            codec=self.codec,
            chunk_rows=chunk_rows,
            on_close=on_close,
        )

    def holds_slot(self, slot: Slot) -> bool:
        """Whether a slot may have rows: cheap, for skipping empty ones."""
        if self.manifest.damages and damage_of_slot(self.manifest.damages, slot) is not None:
            return True  # Who looks for them hears of it.
        if any(memtable.slots[slot] or memtable.deltas for memtable in self._memtables()):
            return True
        return bool(self.tables) and self.levels.holds_slot(slot)

    def next_slot(self, slot: Slot) -> Slot | None:
        """The first slot from `slot` on that has rows, dead ones among them, or None. Raises PageFault.

        For scans over all slots: a table of few rows is not asked for each slot.
        """
        memtables = self._memtables()
        if any(memtable.slots[slot] for memtable in memtables):
            return slot
        slot_count = self.settings.slot_count
        # Tables first: they leave few slots to look for in the memtables.
        nearest = self.levels.next_slot(slot, slot_count, self._pages)
        for damage in self.manifest.damages:  # Who scans them hears of it.
            if damage.slots.stop > slot:
                nearest = min(nearest, max(slot, damage.slots.start))
        for memtable in memtables:
            slots = memtable.slots
            for other in range(slot, nearest):
                if slots[other]:
                    nearest = other
                    break
            for other, _ in memtable.deltas:
                if slot <= other < nearest:
                    nearest = other
        return nearest if nearest < slot_count else None

    # Background work

    def next_job(self, now_ms: int, room_bytes: int = 1 << 62) -> Job | None:
        """What should be done now, one at a time: the oldest flush first, then a compaction. None if nothing, or busy.

        A compaction that may need more than `room_bytes` of disk is not begun. A flush is: it is
        what gives room.
        """
        if self._job is not None:
            return None
        if self.freeze_failure is not None:
            self.freeze_failure = None
            self._freeze_if_possible()
        if self.frozen:
            oldest = self.frozen[-1]
            start, end = oldest.memtable.base_position, oldest.end_position
            inputs = [segment.name for segment in self.log.sealed if start <= segment.base < end]
            self._job = self._make_job(
                "flush", inputs, oldest.memtable.base_position, oldest.end_position
            )
        else:
            self._choose(now_ms, room_bytes)
        if self._job is not None:
            self._job.now_ms = now_ms
            self._job.horizon_position = self.horizon_position
            if self._job.kind == "flush":
                self._job.is_bottom = not self.tables
        return self._job

    def _choose(self, now_ms: int, room_bytes: int) -> None:
        levels = self.levels.levels
        choice = compaction.choose(
            [[table.meta for table in level] for level in levels],
            self.settings.shape,
            now_ms,
            self._durable_drops(),
            self.horizon_position,
        )
        tables = [levels[level][number] for level, number in choice.inputs] if choice else []
        self._lacks_room = (
            choice is not None
            and choice.kind == "compact"
            and sum(table.meta.file_bytes for table in tables) > room_bytes
        )
        if choice is None or self._lacks_room:
            return
        job = self._job = self._make_job(choice.kind, [table.name for table in tables], 0, 0)
        job.is_bottom = choice.is_bottom
        job.level = choice.level
        # A table of level 0 stays one: each costs every read a look.
        job.table_bytes = self.settings.table_bytes if choice.level else 0

    def _make_job(self, kind: str, inputs: list[str], start: int, end: int) -> Job:
        name = f"{self._next_table:016d}{SUFFIX}"
        self._next_table += 1
        return Job(
            kind=kind,
            inputs=inputs,
            output=name,
            position_min=start,
            position_max=end,
            drops=self._durable_drops(),
            block_bytes=self.settings.block_bytes,
            compression=self.settings.compression,
            is_bottom=False,
            now_ms=0,
        )

    def _durable_drops(self) -> list[Drop]:
        """The drops that compaction may carry out: a crash cannot take their markers back.

        Nor those after a drop that stands in the list only as a part of a later one, which is not
        durable: the output would say a position above it, and so not be hidden when it comes back.
        """
        durable = self.log_durable
        if self._replaced_until > durable:
            durable = max(self.manifest.log_start, min(durable, self._replaced_from - 1))
        return [drop for drop in self.manifest.drops if drop.position <= durable]

    def abandon(self, job: Job) -> None:
        """The job failed, or was lost with its worker, who is gone: it will be given again."""
        assert job is self._job
        self._job = None
        with contextlib.suppress(DiskError):  # What is not found now is removed at the next start.
            for name in self.disk.names():
                if not name.startswith(job.output.removesuffix(SUFFIX)):
                    continue
                if name.endswith(TEMPORARY_SUFFIX):
                    self._remove(name)
                else:
                    # The manifest may have reached the disk and only its confirmation failed: then
                    # this table is in use.
                    self._garbage.append(name)

    def prepare(self, job: Job, result: JobResult) -> Prepared:
        """The manifest that makes a finished job's output live: for `write_manifest`, then `install`."""
        log_start, state = self.manifest.log_start, self.manifest.state
        if job.kind == "flush":
            log_start, state = self.frozen[-1].end_position, self.frozen[-1].state
        levels = self.levels.names_after(job, result)
        new = self._manifest_with(log_start, levels, state)
        new.damages = [*new.damages, *result.damages]
        return Prepared(new, result.tables)

    def _manifest_with(self, log_start: int, names: list[list[str]], state: bytes) -> Manifest:
        drops = [drop for drop in self.manifest.drops if drop.position <= log_start]
        version = manifest.FORMAT_VERSION
        damages = list(self.manifest.damages)
        return Manifest(version, log_start, self._next_table, names, drops, state, damages)

    def write_manifest(self, prepared: Prepared) -> None:
        """Open the new tables, and make the manifest that names them durable. Blocks: for a thread.

        Raises EngineError; then the old manifest holds, or the new one does, and both have all that
        they name: the caller abandons the job.
        """
        try:
            # Opened first: a manifest must not name what cannot be read.
            for name in prepared.made:
                prepared.tables.append(Table.open(self.disk, name))
            self.disk.sync_names()
            manifest.write(self.disk, prepared.manifest)
        except EngineError:
            for table in prepared.tables:
                table.close()
            raise

    def install(self, job: Job, result: JobResult, prepared: Prepared) -> None:
        """Serve from the job's output, and remove what it replaced."""
        assert job is self._job
        written = prepared.manifest
        before = self.tables
        known = {table.name: table for table in [*before, *prepared.tables]}
        written.drops = self.manifest.drops
        self.manifest = written
        self.levels = Levels([[known[name] for name in level] for level in written.levels])
        self.tables = self.levels.tables
        self._pages.table_ids.update(table.id for table in prepared.tables)
        self._job = None
        live = {table.id for table in self.tables}
        self._retirement.add([table for table in before if table.id not in live])
        self._count(job, result, before, prepared.tables)
        if job.kind == "flush":
            self._forget_frozen(written.log_start)
        self._set_delay()
        self._retire_drops()
        if not self.tables or result.damages:
            self.rows.clear()  # `forget_below` relies on it.
        self._set_aside.update(damage.name for damage in result.damages)
        garbage, self._garbage = self._garbage, []
        self._leave(garbage)
        self._leave_retired()

    def _count(
        self, job: Job, result: JobResult, before: Sequence[Table], made: Sequence[Table]
    ) -> None:
        stats = self.stats
        bytes_made = sum(table.meta.file_bytes for table in made)
        if job.kind == "flush":
            stats.flushes += 1
            stats.bytes_flushed += bytes_made
            return
        if job.kind == "move":
            stats.tables_moved += len(job.inputs)
            return
        read = sum(table.meta.entry_count for table in before if table.name in job.inputs)
        stats.entries_dropped += read - result.entry_count
        stats.compactions += job.kind == "compact"
        stats.bytes_compacted += bytes_made

    def _release(self, tables: Sequence[Table]) -> None:
        """A scan no longer needs them."""
        self._retirement.release(tables)
        self._leave_retired()

    def _leave_retired(self) -> None:
        """Forget the tables that were replaced, as far as no scan reads them."""
        gone = self._retirement.due()
        for table in gone:
            self.blocks.drop_table(table.id)
            self._pages.table_ids.discard(table.id)
        self._leave(gone)

    def _leave(self, leavings: Sequence[Table | str]) -> None:
        self._leavings.extend(leavings)  # In place: another thread may take from it.
        if not self.is_cleared_by_owner:
            self.clear_away()

    @property
    def has_leavings(self) -> bool:
        """Whether `clear_away` has something to do."""
        return bool(self._leavings)

    def clear_away(self) -> None:
        """Close and remove the files of what was replaced. Blocks, for milliseconds a file: for a thread.

        The kernel frees all that a file has on the disk and in its cache. If it is done late, or not
        before a crash, the next start does it.
        """
        while self._leavings:  # The serving thread may add to it.
            left = self._leavings.pop(0)
            if isinstance(left, str):
                self._remove(left)
                continue
            left.close()
            if left.name in self._set_aside:
                self._set_aside.discard(left.name)
                set_aside(self.disk, left.name)
            else:
                self._remove(left.name)

    def _forget_frozen(self, log_start: int) -> None:
        frozen = self.frozen.pop()
        self._dead += filter(None, frozen.memtable.slots)
        # The row cache has the tables' state as it was below these.
        for _, row in frozen.memtable.deltas:
            self.rows.invalidate(row)
        self._leave(self.log.forget_before(log_start))

    def _remove(self, name: str) -> None:
        """Remove a file that no durable manifest names, now or at the next install."""
        try:
            self.disk.remove(name)
        except MissingFileError:
            pass
        except DiskError:
            self._garbage.append(name)

    def _retire_drops(self) -> None:
        """Forget drops that hide nothing: no table that is older has such rows."""
        if self.manifest.drops and not self.frozen:
            metas = [table.meta for table in self.tables]
            self.manifest.drops = hiding(self.manifest.drops, metas)

    def accept_damage(self) -> int:
        """Take all damages back, durably: from now on what is left is answered. Returns how many there were. Blocks.

        For when the data has come back from elsewhere, or is given up. What a lost entry had hidden
        may show again: an older value, or one that had been deleted. Not while a job runs.
        """
        assert self._job is None
        accepted = self.manifest.damages
        new = self._manifest_with(self.manifest.log_start, self.levels.names, self.manifest.state)
        new.damages = []
        manifest.write(self.disk, new)
        self.manifest.damages = []
        self.rows.clear()
        return len(accepted)

    @property
    def has_more(self) -> bool:
        """Whether a row that has no complete entry in the active memtable may be elsewhere, or lost."""
        return bool(self.tables or self.frozen or self.memtable.deltas or self.manifest.damages)

    def incomplete_slots(self) -> set[Slot]:
        """The slots of which damage may have taken something."""
        return {slot for damage in self.manifest.damages for slot in damage.slots}

    @property
    def is_busy(self) -> bool:
        """Whether a job is under way."""
        return self._job is not None

    @property
    def memtable_bytes(self) -> int:
        """Memory of the active and the frozen memtables, as estimated."""
        return self.memtable.weight_bytes + sum(f.memtable.weight_bytes for f in self.frozen)

    @property
    def memory_bytes(self) -> int:
        """Memory that data takes: memtables and caches."""
        return self.memtable_bytes + self.rows.bytes_used + self.blocks.bytes_used

    def level_stats(self) -> list[LevelStats]:
        """What each level holds, level 0 first."""
        return self.levels.stats()

    @property
    def table_bytes(self) -> int:
        return sum(table.meta.file_bytes for table in self.tables)


def _open_levels(disk: Disk, current: Manifest) -> Levels:
    """Open all tables. One that is damaged is set aside, and its keys become a damage of the manifest.

    Raises UnknownFormatError, and DiskError: a file that is not there may come back with its disk.
    """
    levels: list[list[Table]] = []
    damaged: list[tuple[int, int, CorruptionError]] = []
    for number, names in enumerate(current.levels):
        opened: list[Table] = []
        for name in names:
            try:
                opened.append(Table.open(disk, name))
            except CorruptionError as error:
                damaged.append((number, len(opened), error))
        levels.append(opened)
    names_damaged = []
    for number, place, found in damaged:
        # A deeper level is a run: what was lost lies between its neighbours.
        run = levels[number] if number else []
        key_min = run[place - 1].meta.key_max if 0 < place <= len(run) else b""
        key_max = run[place].meta.key_min if place < len(run) else KEY_END
        reason = f"expected {found.expected}, found {found.actual}"
        name = found.path.rpartition("/")[2]
        names_damaged.append(name)
        current.damages.append(
            Damage(key_min, key_max, current.log_start, name, found.offset, reason)
        )
    if names_damaged:
        current.levels = [[table.name for table in level] for level in levels]
        manifest.write(disk, current)
        for name in names_damaged:
            set_aside(disk, name)
    return Levels(levels)


def set_aside(disk: Disk, name: str) -> None:
    """Keep a damaged file under a name that nothing reads."""
    with contextlib.suppress(DiskError):  # It stays where it is, or has gone: no data hangs on it.
        disk.rename(name, name + SET_ASIDE_SUFFIX)


__all__ = [
    "ABSENT",
    "NO_PINS",
    "EngineError",
    "LevelStats",
    "PageFault",
    "Pins",
    "SlotScan",
    "Store",
    "StoreSettings",
    "StoreStats",
]
