"""One node's ordered store: commit log, memtables and tables behind one interface.

It is not concerned with what a row means: that is the codec's. It starts no task and no thread. The
shell that owns it

- calls `write()` once per tick: everything applied since goes to the log in one frame,
- runs `log.sync()` where its policy says so,
- asks `next_flush()` and `next_compaction()`, or `next_job()` for either, has the job done elsewhere (a
  worker process, a thread, or at once in a simulation), and hands the result to `prepare`, `write_manifest`
  (which blocks: in a thread) and `install`, for one job at a time; or gives it up with `abandon`,
- may set `leavings.is_cleared_by_owner`, and then calls `leavings.clear_away` (in a thread) while it
  `has_files`,
- fetches rows whose look-up raised `PageFault`: `fetch` in a thread, then `arrive`,
- holds back writes for `write_delay_s`, and while `is_stalled`.

    apply -> log.pieces, active memtable            (tick)
    active full -> frozen, log rolls                (write)
    frozen -> short log, if that pays               (shorten)
    frozen -> flush job -> table                    (next_flush .. install)
    too many tables -> job: some are merged, moved a level down, or removed

Reading goes active, frozen (newest first), and then row cache and tables (`engine/table_reader.py`),
joining deltas down to the first complete entry. Pages that the kernel holds are read inline; others
raise `PageFault`. Which job is next is decided in `engine/schedule.py`.

Dropping keyspaces (FLUSHALL) or slots is a marker in the log. Tables made from earlier positions hide
the dropped rows until a job has removed them (`engine/drop.py`).

What is dead is forgotten only up to `horizon_position`, which the owner sets: others may have to hear
of a deletion that is later. A single node leaves it at "everything".

Writes are slowed down before they have to be stopped: after each `write()`, `write_delay_s` says for
how long the owner should not take further writes. It grows from 0 as level 0 gets long or the
memtable fills while another one waits; after that comes `is_stalled`.

What is durable, and in what order:

- A table's bytes, then its name, then the manifest that names it. Only then are the log segments and
  the tables removed that it replaced. Before that a crash finds the old manifest and all it names.
- The manifest never runs ahead of the log. It holds the drops up to its `log_start`; later ones are
  in the log. If a crash cut the log before a marker that the manifest knew already, new writes would
  get positions before it, and the tables made of them would be hidden by it. For the same reason
  compaction removes only what durable markers dropped, and a start is refused where damage has cut the
  log before one of them (`engine/drop.py`), or before what was there when damage was accepted.
- A start's range of table names, before any of them is given out (`engine/schedule.py`).

Sources: LevelDB's and Pebble's division of work; Cassandra's delta merging.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final

from engine import manifest
from engine.cache import BlockId
from engine.codec import Fate, RecordCodec
from engine.damage import damage_of_slot
from engine.disk import Disk
from engine.drop import Marker, Replacements, hiding, vouched, with_marker
from engine.errors import DiskError, EngineError
from engine.job import EVERYTHING, Job, JobResult
from engine.leavings import Leavings
from engine.levels import NO_PINS, Levels, PageFault, Pins
from engine.log import CommitLog
from engine.log_format import COMPLETE, ENVELOPE, MARKER
from engine.log_recovery import Recovery, recover
from engine.manifest import Drop, Manifest
from engine.memtable import Memtable, Row, Slot
from engine.opening import open_levels, remove_leftovers
from engine.scan import SlotScan
from engine.schedule import Schedule, Terms
from engine.setting import StoreSettings
from engine.short_log import WORTH_FROM, ShortLog
from engine.sstable import Block, Table
from engine.stats import LevelStats, StoreStats
from engine.table_reader import TableReader

LOCK_NAME = "lock"
FROZEN_MAX: Final = 2
OVERFULL_MEMTABLES: Final = 3  # In the place of one. Owners hold back writes at two.
# Slots of a memtable that was flushed, freed with each write of the log: all at once is a pause. More with a long
# write, such that all are gone when a part in so many of the next memtable has come.
FREED_PER_WRITE: Final = 8
FREED_IN_PART: Final = 4


@dataclass(slots=True)
class Frozen:
    """A memtable on its way to a table, with the owner's state when it froze."""

    memtable: Memtable
    end_position: int
    state: bytes
    short_log: ShortLog | None = None
    may_shorten: bool = True

    def is_log_long(self, times: float) -> bool:
        """Whether the log is so many times larger than the memtable."""
        memtable = self.memtable
        return self.end_position - memtable.base_position > times * memtable.weight_bytes


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
        self._is_replaying = True  # The log, of which all is durable then.
        self.log: CommitLog
        self.recovery: Recovery
        self.stats = StoreStats()
        self.horizon_position = EVERYTHING  # Up to here what is dead may be forgotten.
        self.write_delay_s = 0.0  # For which the owner should not take further writes.
        self.leavings = Leavings(disk)
        self._reader = TableReader(
            disk, codec, settings, current, levels, self.leavings, self.stats
        )
        # Parts of the reader, which hot paths reach in one step.
        self.rows = self._reader.rows
        self.blocks = self._reader.blocks
        self._pages = self._reader.pages
        self._lookup_tables = self._reader.lookup
        self._replacements = Replacements()
        self.capture: Callable[[], bytes] = bytes  # The owner's state, asked for at each freeze.
        self._schedule = Schedule(current.next_table)
        self._prepared: Job | None = None  # Whose manifest is on its way.
        self.freeze_failure: DiskError | None = None  # Why a full memtable is not frozen.
        # Rows that nobody looks at: freed little by little.
        self._dead: list[dict[Row, bytes]] = []
        self._set_delay()

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
        store = cls(disk, codec, settings, current, open_levels(disk, current))
        restore(current.state)
        store.recovery = recover(
            disk,
            start=current.log_start,
            vouched=vouched(current, [table.meta for table in store.tables]),
            apply=store._replayer(observe),
        )
        remove_leftovers(disk, current)
        store._take_table_numbers(current)
        store.log = CommitLog.open(disk, store.recovery)
        store._is_replaying = False
        return store

    def _take_table_numbers(self, current: Manifest) -> None:
        """Begin a range of numbers that no earlier start used, durably."""
        self._schedule.take_numbers()
        # The drops as they were: those found in the log since are in the log.
        manifest.write(
            self.disk, self._manifest_with(current.log_start, current.levels, current.state)
        )

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
        self._reader.resize(settings)
        self._set_delay()

    def close(self) -> None:
        """Sync the log and close all files. Raises EngineError, with all closed, if what is left cannot be written."""
        try:
            self.log.close()
        finally:
            for frozen in self.frozen:
                if frozen.short_log is not None:
                    frozen.short_log.close()
            self._reader.close()
            self.leavings.close()

    # Writing

    def apply(self, slot: Slot, row: Row, raw: bytes, *, is_complete: bool = True) -> None:
        """Stage an entry for the log and join it into the memtable. Hot: every write ends here."""
        if is_complete:
            self.log.pieces += (ENVELOPE(COMPLETE, slot, len(row), len(raw)), row, raw)
            if self.memtable.put(slot, row, raw) and self.tables:  # As `forget_below`.
                self.rows.invalidate(row)
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
        for frozen in self.frozen:
            if frozen.short_log is None or not frozen.short_log.is_complete:
                # The table must have what goes: a crash may take the marker back.
                self._drop_short_log(frozen)
        self.rows.clear()
        if self.tables or self.frozen:
            base = self.memtable.base_position
            before = self.manifest.drops
            self.manifest.drops = with_marker(before, marker, position, base)
            replaced = set(before).difference(self.manifest.drops)
            if replaced:
                self._replacements.note(replaced, position, self.log_durable)

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
        log = self.log
        before = log.position
        position = log.write_frame() if log.pieces else before
        memtable, settings = self.memtable, self.settings
        if self._dead:
            part = FREED_IN_PART * (position - before) / settings.memtable_bytes
            del self._dead[-max(FREED_PER_WRITE, int(part * settings.slot_count)) :]
        weight_bytes = memtable.weight_bytes
        logged_bytes = position - memtable.base_position
        if (
            weight_bytes > settings.memtable_bytes or logged_bytes > settings.log_bytes_max
        ) and self.freeze_failure is None:
            self._freeze_if_possible()
        # Level 0 only grows with `install`, which sets the delay, and of a memtable the first half
        # is free (`StoreSettings.memtable_pressure`): most writes find that out here.
        if self.write_delay_s or (
            self.frozen
            and (
                2 * weight_bytes > settings.memtable_bytes
                or 2 * logged_bytes > settings.log_bytes_max
            )
        ):
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
                self.freeze_failure = error  # `next_flush` tries again: it is called now and then.

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
        return self.waits_for_flush or self.waits_for_compaction

    @property
    def waits_for_flush(self) -> bool:
        """Memtables take all the memory that they may."""
        return (
            len(self.frozen) >= FROZEN_MAX
            # Could not be frozen for want of room.
            or self.memtable.weight_bytes > 2 * self.settings.memtable_bytes
        )

    @property
    def waits_for_compaction(self) -> bool:
        """Level 0 has all the tables that it may."""
        return self._level_0_pressure() >= 1.0 and not self._schedule.lacks_room

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
        """As `get`, for a row that has no complete entry in the active memtable. Hot."""
        deltas = self.memtable.deltas  # Mostly empty, which is cheaper to see than to look into it.
        if not deltas and not self.frozen:
            if self.tables or self.manifest.damages:
                return self._lookup_tables(slot, row)
            return None
        above = deltas.get((slot, row)) if deltas else None
        for frozen in self.frozen:
            raw = frozen.memtable.slots[slot].get(row)
            if raw is not None:
                return raw if above is None else self.codec.join(above, raw)
            deltas = frozen.memtable.deltas
            raw = deltas.get((slot, row)) if deltas else None
            if raw is not None:
                above = raw if above is None else self.codec.join(above, raw)
        if not (self.tables or self.manifest.damages):
            return above
        below = self._lookup_tables(slot, row)
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

    # Scanning

    def scan(
        self, slot: Slot, start: Row, limit: int
    ) -> tuple[list[tuple[Row, bytes]], Row | None]:
        """Up to `limit` rows of a slot from `start` on, in order, and where to go on (None: the slot is done).

        Rows whose state is dead are among them. Raises PageFault, LostDataError.
        """
        self._reader.refuse_lost(slot)
        if not self.tables and not self.frozen and not self.memtable.deltas:
            rows = self.memtable.rows_from(slot, start, limit + 1)
        else:
            scan = self._reader.page_scan(self._memtables(), slot, start, limit + 1)
            rows = scan.page(limit + 1)
        return (rows, None) if len(rows) <= limit else (rows[:limit], rows[limit][0])

    def snapshot_scan(self, slot: Slot) -> SlotScan:
        """All rows of a slot as they are now, in order, however they change meanwhile.

        For internal users who take their time. It costs references to what memtables have of the
        slot. The owner closes it, or reads it to its end: until then its tables take room.
        """
        self._reader.refuse_lost(slot)
        return self._reader.snapshot_scan(self._memtables(), slot)

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
        nearest = self._reader.next_slot(slot, slot_count)
        for memtable in memtables:
            nearest = memtable.next_slot(slot, nearest)
        return nearest if nearest < slot_count else None

    # Background work

    def next_job(self, now_ms: int, room_bytes: int = 1 << 62) -> Job | None:
        """What should be done now: a flush, or else a compaction, neither beside another one of its kind."""
        return self.next_flush(now_ms) or self.next_compaction(now_ms, room_bytes)

    def next_flush(self, now_ms: int) -> Job | None:
        """The flush of the oldest frozen memtable. None if there is none, or one is under way."""
        if self._schedule.flush is not None:
            return None
        if self.freeze_failure is not None:
            self.freeze_failure = None
            self._freeze_if_possible()
        if not self.frozen:
            return None
        oldest = self.frozen[-1]
        start, end = oldest.memtable.base_position, oldest.end_position
        short = oldest.short_log
        if short is not None and short.is_complete:
            inputs = [short.name]
        else:
            inputs = [segment.name for segment in self.log.sealed if start <= segment.base < end]
        return self._schedule.give_flush(inputs, start, end, self.levels, self._terms(now_ms))

    def shorten(self, worth_from: float = WORTH_FROM) -> bool:
        """Write some of a short log for the next flush, if that pays. True: there is more to write.

        Owners call it before `next_flush`, again and again, with other work between.
        """
        if self._schedule.flush is not None or not self.frozen:
            return False
        oldest = self.frozen[-1]
        short = oldest.short_log
        try:
            if short is None:
                if not (oldest.may_shorten and oldest.is_log_long(worth_from)):
                    return False
                short = oldest.short_log = ShortLog(self.disk, oldest.memtable)
            elif not short.is_complete:
                short.write_frame()
        except DiskError:  # The flush reads the log.
            oldest.short_log, oldest.may_shorten = None, False
            return False
        return not short.is_complete

    def next_compaction(self, now_ms: int, room_bytes: int = 1 << 62) -> Job | None:
        """The compaction that is most needed. None if none is, or one is under way.

        One that may need more than `room_bytes` of disk is not begun. (A flush is: it is what gives room.)
        """
        if self._schedule.compaction is not None:
            return None
        return self._schedule.give_compaction(self.levels, room_bytes, self._terms(now_ms))

    @property
    def must_hurry(self) -> bool:
        """Whether the compaction under way should no longer keep to its budget."""
        return self._schedule.must_hurry(self.levels, self.settings)

    def _terms(self, now_ms: int) -> Terms:
        return Terms(self.settings, self._durable_drops(), self.horizon_position, now_ms)

    def _durable_drops(self) -> list[Drop]:
        """The drops that compaction may carry out: a crash cannot take their markers back."""
        current = self.manifest
        return self._replacements.durable(current.drops, self.log_durable, current.log_start)

    def abandon(self, job: Job) -> None:
        """The job failed, or was lost with its worker, who is gone: it will be given again."""
        self._end(job)
        self.leavings.add_output(job)
        if job.kind == "flush":  # It is repeated from the log.
            self._drop_short_log(self.frozen[-1])

    def _drop_short_log(self, frozen: Frozen) -> None:
        """Remove it at once: the disk may be full."""
        short, frozen.short_log = frozen.short_log, None
        frozen.may_shorten = False
        if short is not None:
            short.discard()

    def _end(self, job: Job) -> None:
        self._schedule.end(job)
        if self._prepared is job:
            self._prepared = None

    def prepare(self, job: Job, result: JobResult) -> Prepared:
        """The manifest that makes a finished job's output live: for `write_manifest`, then `install`.

        From here to `install`, or to `abandon`, no other job is prepared: it would undo this one.
        """
        assert self._prepared is None, "a manifest is on its way"
        self._prepared = job
        log_start, state = self.manifest.log_start, self.manifest.state
        if job.kind == "flush":
            log_start, state = self.frozen[-1].end_position, self.frozen[-1].state
        levels = self.levels.names_after(job, result)
        new = self._manifest_with(log_start, levels, state)
        new.damages = [*new.damages, *result.damages]
        new.vouched = max(new.vouched, self._carried_out_by(job))
        return Prepared(new, result.tables)

    def _manifest_with(self, log_start: int, names: list[list[str]], state: bytes) -> Manifest:
        drops = [drop for drop in self.manifest.drops if drop.position <= log_start]
        version = manifest.FORMAT_VERSION
        damages = list(self.manifest.damages)
        return Manifest(
            version,
            log_start,
            self._schedule.next_table,
            names,
            drops,
            state,
            damages,
            self.manifest.vouched,
        )

    def _carried_out_by(self, job: Job) -> int:
        """The position of the last drop that a job has carried out, or 0."""
        if job.kind == "move":  # Its tables stay as they are.
            return 0
        read = [table.meta for table in self.tables if table.name in job.inputs]
        return max((drop.position for drop in hiding(job.drops, read)), default=0)

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
        assert self._prepared is job, "another job was prepared meanwhile"
        self._end(job)
        written = prepared.manifest
        before = self.tables
        known = {table.name: table for table in [*before, *prepared.tables]}
        written.drops = self.manifest.drops
        self.manifest = written
        self.levels = Levels([[known[name] for name in level] for level in written.levels])
        self.tables = self.levels.tables
        self._reader.show(written, self.levels)
        read = [table.meta for table in before if table.name in job.inputs]
        made = [table.meta for table in prepared.tables]
        self.stats.note_job(job.kind, read, made, result.entry_count)
        if job.kind == "flush":
            self._forget_frozen(written.log_start)
        self._set_delay()
        self._retire_drops()
        if not self.tables or result.damages:
            self.rows.clear()  # `forget_below` relies on it.
        self.leavings.keep_damaged(damage.name for damage in result.damages)
        self.leavings.release_doubtful()
        self._reader.leave_retired()

    def _forget_frozen(self, log_start: int) -> None:
        frozen = self.frozen.pop()
        if frozen.short_log is not None:
            frozen.short_log.close()
            self.leavings.add([frozen.short_log.name])
        self._dead += filter(None, frozen.memtable.slots)
        # The row cache has the tables' state as it was below these.
        for _, row in frozen.memtable.deltas:
            self.rows.invalidate(row)
        self.leavings.add(self.log.forget_before(log_start))

    def _retire_drops(self) -> None:
        """Forget drops that hide nothing: no table that is older has such rows."""
        if self.manifest.drops and not self.frozen:
            metas = [table.meta for table in self.tables]
            self.manifest.drops = hiding(self.manifest.drops, metas)

    def accept_damage(self) -> int:
        """Take all damages back, durably: from now on what is left is answered. Returns how many there were. Blocks.

        For when the data has come back from elsewhere, or is given up. What a lost entry had hidden
        may show again: an older value, or one that had been deleted. Not while a job runs.

        What came back may stand in the log alone, so that is synced first.
        """
        assert not self.is_busy
        self.log.write()
        self.log.sync()
        accepted = self.manifest.damages
        new = self._manifest_with(self.manifest.log_start, self.levels.names, self.manifest.state)
        new.damages = []
        new.vouched = max(new.vouched, self.log.synced)
        manifest.write(self.disk, new)
        self.manifest.damages = []
        self.manifest.vouched = new.vouched
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
        return self._schedule.is_busy

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


__all__ = [
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
