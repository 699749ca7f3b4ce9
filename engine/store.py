"""One node's ordered store: commit log, memtables and tables behind one interface.

It is not concerned with what a row means: that is the codec's. It starts no task and no thread. The
shell that owns it

- calls `write()` once per tick: everything applied since goes to the log in one frame,
- runs `log.sync()` where its policy says so,
- asks `next_job()`, has the job done elsewhere (a worker process, a thread, or at once in a
  simulation), and hands the result to `prepare`, `write_manifest` (which blocks: in a thread) and
  `install`; or gives it up with `abandon`,
- fetches rows whose look-up raised `PageFault`: `fetch` in a thread, then `arrive`,
- holds back writes while `is_stalled`.

    apply -> log.pieces, active memtable            (tick)
    active full -> frozen, log rolls                (write)
    frozen -> flush job -> table                    (next_job .. install)
    many tables -> compaction job -> one table

Reading goes active, frozen (newest first), row cache, tables (newest first) through their Bloom
filters, joining deltas down to the first complete entry. Pages that the kernel holds are read
inline; others raise `PageFault`.

Dropping keyspaces (FLUSHALL) is a marker in the log. A table made from earlier positions hides the
dropped rows until a compaction has removed them; `drops` lists such markers.

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
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final

from engine import compaction, manifest
from engine.cache import BlockCache, BlockId, RowCache
from engine.codec import Fate, RecordCodec
from engine.disk import Disk
from engine.errors import DiskError, EngineError, MissingFileError
from engine.job import Job, JobResult
from engine.log import COMPLETE, ENVELOPE, MARKER, CommitLog, Recovery, recover
from engine.manifest import Drop, Manifest
from engine.memtable import Memtable, Row, Slot
from engine.sstable import TEMPORARY_SUFFIX, Block, Compression, Table, hash_of

ABSENT = b""  # In the row cache: no table holds this row.
LOCK_NAME = "lock"
FROZEN_MAX: Final = 2
# Far more than jobs that one start can give up without finishing any.
TABLE_NUMBERS_PER_START: Final = 1_000_000

Pins = dict[BlockId, Block]
"""Blocks that a command waited for, kept for it until it is done: however small the caches are, it gets on."""

NO_PINS: Final[Mapping[BlockId, Block]] = {}


class PageFault(Exception):
    """A row or a page of a slot is not in memory.

    The caller runs `fetch` in a thread, then `arrive` in the serving thread, and asks again.
    """

    def __init__(self, store: Store, table: Table, number: int) -> None:
        super().__init__()
        self._store = store
        self._table = table
        self._number = number
        self._block: Block | None = None
        self._missing: MissingFileError | None = None

    def fetch(self) -> None:
        """Read the page, waiting for the disk. Raises EngineError."""
        try:
            self._block = self._table.load_alone(self._store.disk, self._number)
        except MissingFileError as error:
            self._missing = error

    def arrive(self, pins: Pins | None = None) -> None:
        """Keep what was fetched, also in the caller's `pins`, which it shows to the store (`Store.pinned`).

        That the table was replaced meanwhile is no error. Raises MissingFileError if it was not,
        and its file is gone.
        """
        if self._table not in self._store.tables:
            return
        if self._missing is not None:
            raise self._missing
        block, self._block = self._block, None
        assert block is not None, "fetch() comes first"
        block_id = (self._table.id, self._number)
        self._store.blocks.put(block_id, block)
        if pins is not None:
            pins[block_id] = block

    def resolve(self, pins: Pins | None = None) -> None:
        """Both, for those who may wait."""
        self.fetch()
        self.arrive(pins)


@dataclass(frozen=True, slots=True)
class StoreSettings:
    """Limits in bytes. `log_bytes_max`: a memtable is flushed when its log grew to this, however small it is."""

    memtable_bytes: int
    row_cache_bytes: int
    block_cache_bytes: int
    log_bytes_max: int
    block_bytes: int = 8192
    compression: Compression = "lz4"
    slot_count: int = 16385


@dataclass(slots=True)
class StoreStats:
    """Counted since the start."""

    flushes: int = 0
    compactions: int = 0
    faults: int = 0
    table_reads: int = 0
    expired: int = 0
    stalls: int = 0


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
        tables: list[Table],
    ) -> None:
        self.disk = disk
        self.codec = codec
        self.settings = settings
        self.manifest = current
        self.tables = tables  # Newest first.
        self.frozen: list[Frozen] = []  # Newest first.
        self.memtable = Memtable(settings.slot_count, current.log_start)
        self.active = self.memtable.slots  # Hot: read and written directly by slot and row.
        self.rows = RowCache(settings.row_cache_bytes)
        self.blocks = BlockCache(settings.block_cache_bytes)
        self.pinned: Mapping[BlockId, Block] = NO_PINS  # Of the command that runs now.
        self.log: CommitLog
        self.recovery: Recovery
        self.stats = StoreStats()
        self.capture: Callable[[], bytes] = bytes  # The owner's state, asked for at each freeze.
        self._job: Job | None = None
        self._next_table = current.next_table
        self.freeze_failure: DiskError | None = None  # Why a full memtable is not frozen.
        self._garbage: list[str] = []  # Files that may go once the next manifest is durable.

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
            current = Manifest(manifest.FORMAT_VERSION, 0, 0, [], [], initial_state)
            manifest.write(disk, current)
        tables = [Table.open(disk, name) for name in current.tables]
        store = cls(disk, codec, settings, current, tables)
        restore(current.state)
        store.recovery = recover(disk, start=current.log_start, apply=store._replayer(observe))
        cls._remove_leftovers(disk, current)
        store._take_table_numbers(current)
        store.log = CommitLog.open(disk, store.recovery)
        return store

    def _take_table_numbers(self, current: Manifest) -> None:
        """Begin a range of numbers that no earlier start used, durably."""
        self._next_table += TABLE_NUMBERS_PER_START - self._next_table % TABLE_NUMBERS_PER_START
        # The drops as they were: those found in the log since are in the log.
        manifest.write(
            self.disk, self._manifest_with(current.log_start, current.tables, current.state)
        )

    @staticmethod
    def _remove_leftovers(disk: Disk, current: Manifest) -> None:
        """Tables of jobs that never finished, and files that a finished one had replaced."""
        for name in disk.names():
            if name.endswith(".tmp") or (name.endswith(".sst") and name not in current.tables):
                disk.remove(name)

    def _replayer(
        self, observe: Callable[[Slot, Row, bytes], None]
    ) -> Callable[[int, Slot, Row, bytes, int], None]:
        def apply(flags: int, slot: Slot, row: Row, raw: bytes, position: int) -> None:
            if flags & MARKER:
                self._drop(raw, position)
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
            for table in self.tables:
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
        marker = bytes(tags)
        self.log.stage(MARKER, 0, b"", marker)
        # Above the end of every frozen memtable, and not above the end of the frame that the marker
        # will be in.
        self._drop(marker, self.log.position + 1)

    def _drop(self, marker: bytes, position: int) -> None:
        tags = frozenset(marker)
        self.memtable.drop(tags, self.codec)
        for frozen in self.frozen:
            frozen.memtable.drop(tags, self.codec)
        self.rows.clear()
        if self.tables or self.frozen:
            # Earlier ones of this memtable are covered: its flush makes them durable all at once.
            base = self.memtable.base_position
            kept = [d for d in self.manifest.drops if d.tag not in tags or d.position <= base]
            self.manifest.drops = kept + [Drop(position, tag) for tag in sorted(tags)]

    def write(self) -> int:
        """Write what was applied to the log in one frame; freeze the memtable if it is full. Returns the log's end.

        On DiskError what was applied stays staged, and the next call tries again. Raises
        LogFailedError.
        """
        position = self.log.write()
        memtable = self.memtable
        if (
            memtable.weight_bytes > self.settings.memtable_bytes
            or position - memtable.base_position > self.settings.log_bytes_max
        ) and self.freeze_failure is None:
            self._freeze_if_possible()
        return position

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
        """Too much waits for a flush: the owner holds back writes until one is done."""
        return (
            len(self.frozen) >= FROZEN_MAX
            # Could not be frozen for want of room.
            or self.memtable.weight_bytes > 2 * self.settings.memtable_bytes
        )

    def forget(self, slot: Slot, row: Row, now_ms: int) -> bool:
        """Give back the payload of an entry that has expired.

        It is not logged: whoever reads the log sees it expired.
        """
        raw = self.active[slot].get(row)
        if raw is None or self.codec.fate(row, raw, now_ms) is not Fate.DEAD:
            return False
        if not self.frozen and not self.tables:
            self.memtable.remove(slot, row)
        else:
            self.memtable.put(slot, row, self.codec.stub(raw))
        return True

    # Reading

    def get(self, slot: Slot, row: Row) -> bytes | None:
        """The state of a row, or None. Raises PageFault if the answer is not in memory."""
        raw = self.active[slot].get(row)
        return raw if raw is not None else self.lookup(slot, row)

    def lookup(self, slot: Slot, row: Row) -> bytes | None:
        """As `get`, for a row that has no complete entry in the active memtable."""
        if not self.tables and not self.frozen and not self.memtable.deltas:
            return None
        above = self.memtable.deltas.get((slot, row))
        for frozen in self.frozen:
            raw = frozen.memtable.slots[slot].get(row)
            if raw is not None:
                return raw if above is None else self.codec.join(above, raw)
            raw = frozen.memtable.deltas.get((slot, row))
            if raw is not None:
                above = raw if above is None else self.codec.join(above, raw)
        below = self._lookup_tables(slot, row) if self.tables else None
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
        raw = self._read_tables(slot.to_bytes(2, "big") + row)
        if len(row) + len(raw or ABSENT) < self.rows.bytes_max >> 4:
            self.rows.put(row, raw or ABSENT)
        return raw

    def _read_tables(self, key: bytes) -> bytes | None:
        """Join the entries of a key from newest to oldest. Raises PageFault."""
        hashed = hash_of(key)
        state: bytes | None = None
        for table in self.tables:
            if not table.may_contain_hash(hashed) or self._is_dropped(table, key[2:]):
                continue
            number = table.block_of(key)
            if number is None:
                continue
            found = self._block(table, number).find(key)
            if found is None:
                continue
            flags, raw = found
            state = raw if state is None else self.codec.join(state, raw)
            if flags & COMPLETE:
                break
        return state

    def _block(self, table: Table, number: int) -> Block:
        block_id = (table.id, number)
        block = self.blocks.get(block_id)
        if block is None:
            if self.pinned and (block := self.pinned.get(block_id)) is not None:
                return block
            self.stats.table_reads += 1
            try:
                block = table.load(number, cached_only=True)
            except EngineError:
                block = None  # `fetch` meets the same error, and tells whoever waits for the page.
            if block is None:
                self.stats.faults += 1
                raise PageFault(self, table, number)
            self.blocks.put(block_id, block)
        return block

    def _is_dropped(self, table: Table, row: Row) -> bool:
        drops = self.manifest.drops
        if not drops:
            return False
        tag = self.codec.tag(row)
        return any(d.tag == tag and table.meta.position_max < d.position for d in drops)

    # Scanning

    def scan(
        self, slot: Slot, start: Row, limit: int
    ) -> tuple[list[tuple[Row, bytes]], Row | None]:
        """Up to about `limit` rows of a slot from `start` on, in order, and where to go on (None: the slot is done).

        Rows whose state is dead are among them. Raises PageFault.
        """
        if not self.tables and not self.frozen and not self.memtable.deltas:
            rows = sorted(item for item in self.active[slot].items() if item[0] >= start)
            return (rows, None) if len(rows) <= limit else (rows[:limit], rows[limit][0])
        merged: dict[Row, tuple[bytes, bool]] = {}
        end: Row | None = None  # Beyond this, some source has more than was read.
        sources: list[Iterator[tuple[Row, bytes, bool]]] = [self.memtable.entries_of(slot, start)]
        sources += [frozen.memtable.entries_of(slot, start) for frozen in self.frozen]
        sources += [self._entries_of_table(table, slot, start) for table in self.tables]
        for source in sources:
            for count, (row, raw, is_complete) in enumerate(source):
                if count > limit:
                    end = row if end is None or row < end else end
                    break
                above = merged.get(row)
                if above is None:
                    merged[row] = (raw, is_complete)
                elif not above[1]:
                    merged[row] = (self.codec.join(above[0], raw), is_complete)
        rows = sorted((row, raw) for row, (raw, _) in merged.items() if end is None or row < end)
        if len(rows) > limit:
            return rows[:limit], rows[limit][0]
        return rows, end

    def _entries_of_table(
        self, table: Table, slot: Slot, start: Row
    ) -> Iterator[tuple[Row, bytes, bool]]:
        prefix = slot.to_bytes(2, "big")
        number = table.block_of(prefix + start)
        while number is not None and number < table.block_count:
            block = self._block(table, number)
            for key, flags, raw in block.entries(prefix + start):
                if key[:2] != prefix:
                    return
                if not self._is_dropped(table, key[2:]):
                    yield key[2:], raw, bool(flags & COMPLETE)
            number += 1

    def holds_slot(self, slot: Slot) -> bool:
        """Whether a slot may have rows: cheap, for skipping empty ones."""
        if self.active[slot] or self.memtable.deltas:
            return True
        if any(frozen.memtable.slots[slot] or frozen.memtable.deltas for frozen in self.frozen):
            return True
        low, high = slot.to_bytes(2, "big"), (slot + 1).to_bytes(2, "big")
        return any(table.meta.key_min < high and table.meta.key_max >= low for table in self.tables)

    def next_slot(self, slot: Slot) -> Slot | None:
        """The first slot from `slot` on that has rows, dead ones among them, or None. Raises PageFault.

        For scans over all slots: a table of few rows is not asked for each slot.
        """
        memtables = [self.memtable, *(frozen.memtable for frozen in self.frozen)]
        if any(memtable.slots[slot] for memtable in memtables):
            return slot
        nearest = self.settings.slot_count
        prefix = slot.to_bytes(2, "big")
        for table in self.tables:  # First: they leave few slots to look for in the memtables.
            number = table.block_of(prefix)
            while number is not None and number < table.block_count:
                entry = next(self._block(table, number).entries(prefix), None)
                if entry is not None:
                    nearest = min(nearest, int.from_bytes(entry[0][:2], "big"))
                    break
                number += 1
            if nearest == slot:
                return slot
        for memtable in memtables:
            slots = memtable.slots
            for other in range(slot, nearest):
                if slots[other]:
                    nearest = other
                    break
            for other, _ in memtable.deltas:
                if slot <= other < nearest:
                    nearest = other
        return nearest if nearest < self.settings.slot_count else None

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
            metas = [table.meta for table in self.tables]
            chosen = compaction.choose(metas, now_ms, self._durable_drops())
            if chosen is not None:
                tables = self.tables[chosen]
                if sum(table.meta.file_bytes for table in tables) <= room_bytes:
                    self._job = self._make_job("compact", [table.name for table in tables], 0, 0)
        if self._job is not None:
            self._job.is_bottom = (self._job.kind == "flush" and not self.tables) or (
                self._job.kind == "compact" and self._job.inputs[-1] == self.tables[-1].name
            )
            self._job.now_ms = now_ms
        return self._job

    def _make_job(self, kind: str, inputs: list[str], start: int, end: int) -> Job:
        name = f"{self._next_table:016d}.sst"
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
        """The drops that compaction may carry out: a crash cannot take their markers back."""
        durable = max(self.log.synced, self.manifest.log_start)
        return [drop for drop in self.manifest.drops if drop.position <= durable]

    def abandon(self, job: Job) -> None:
        """The job failed, or was lost with its worker, who is gone: it will be given again."""
        assert job is self._job
        self._job = None
        self._remove(job.output + TEMPORARY_SUFFIX)
        # The manifest may have reached the disk and only its confirmation failed: then this table
        # is in use.
        self._garbage.append(job.output)

    def prepare(self, job: Job, result: JobResult) -> Prepared:
        """The manifest that makes a finished job's output live: for `write_manifest`, then `install`."""
        names = [table.name for table in self.tables]
        log_start, state = self.manifest.log_start, self.manifest.state
        if job.kind == "flush":
            log_start, state = self.frozen[-1].end_position, self.frozen[-1].state
            names = result.tables + names
        else:
            at = names.index(job.inputs[0])
            names[at : at + len(job.inputs)] = result.tables
        return Prepared(self._manifest_with(log_start, names, state), result.tables)

    def _manifest_with(self, log_start: int, names: list[str], state: bytes) -> Manifest:
        drops = [drop for drop in self.manifest.drops if drop.position <= log_start]
        version = manifest.FORMAT_VERSION
        return Manifest(version, log_start, self._next_table, names, drops, state)

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
        known = {table.name: table for table in [*self.tables, *prepared.tables]}
        replaced = [table for table in self.tables if table.name not in written.tables]
        written.drops = self.manifest.drops
        self.manifest = written
        self.tables = [known[name] for name in written.tables]
        self._job = None
        if job.kind == "flush":
            self._forget_frozen(written.log_start)
        else:
            self.stats.compactions += 1
        self._retire_drops()
        if not self.tables:
            self.rows.clear()  # `forget_below` relies on it.
        for table in replaced:
            self.blocks.drop_table(table.id)
            table.close()
        garbage, self._garbage = self._garbage, []
        for name in garbage + [table.name for table in replaced]:
            self._remove(name)

    def _forget_frozen(self, log_start: int) -> None:
        frozen = self.frozen.pop()
        # The row cache has the tables' state as it was below these.
        for _, row in frozen.memtable.deltas:
            self.rows.invalidate(row)
        self.stats.flushes += 1
        with contextlib.suppress(DiskError):  # The next flush tries again.
            self.log.remove_before(log_start)

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
        self.manifest.drops = [
            drop
            for drop in self.manifest.drops
            if self.frozen
            or any(
                table.meta.position_max < drop.position and drop.tag in table.meta.tags
                for table in self.tables
            )
        ]

    @property
    def memtable_bytes(self) -> int:
        """Memory of the active and the frozen memtables, as estimated."""
        return self.memtable.weight_bytes + sum(f.memtable.weight_bytes for f in self.frozen)

    @property
    def memory_bytes(self) -> int:
        """Memory that data takes: memtables and caches."""
        return self.memtable_bytes + self.rows.bytes_used + self.blocks.bytes_used

    @property
    def table_bytes(self) -> int:
        return sum(table.meta.file_bytes for table in self.tables)


__all__ = [
    "ABSENT",
    "NO_PINS",
    "EngineError",
    "PageFault",
    "Pins",
    "Store",
    "StoreSettings",
    "StoreStats",
]
