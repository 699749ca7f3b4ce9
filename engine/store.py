"""One node's ordered store: commit log, memtables and tables behind one interface.

It is not concerned with what a row means: that is the codec's. It starts no task and no thread. The shell that owns it

- calls `write()` once per tick: everything applied since goes to the log in one frame,
- runs `log.sync()` where its policy says so,
- asks `next_job()`, has the job done elsewhere (a worker process, a thread, or at once in a simulation), and hands the result
  to `prepare` (whose manifest it writes, blocking) and `install`,
- fetches rows whose look-up raised `PageFault`, in a thread.

    apply -> log.pieces, active memtable            (tick)
    active full -> frozen, log rolls                (write)
    frozen -> flush job -> table                    (next_job .. install)
    many tables -> compaction job -> one table

Reading goes active, frozen (newest first), row cache, tables (newest first) through their Bloom filters, joining deltas down to
the first complete entry. Pages that the kernel holds are read inline; others raise `PageFault`.

Dropping keyspaces (FLUSHALL) is a marker in the log. A table made from earlier positions hides the dropped rows until a
compaction has removed them; `drops` lists such markers.

Sources: LevelDB's and Pebble's division of work; Cassandra's delta merging.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from engine import compaction, manifest
from engine.cache import BlockCache, RowCache
from engine.codec import Fate, RecordCodec
from engine.disk import Disk
from engine.errors import EngineError
from engine.job import Job, JobResult
from engine.log import COMPLETE, ENVELOPE, MARKER, CommitLog, Recovery, recover
from engine.manifest import Drop, Manifest
from engine.memtable import Memtable, Row, Slot
from engine.sstable import Block, Compression, Table, hash_of

ABSENT = b""  # In the row cache: no table holds this row.
LOCK_NAME = "lock"


class PageFault(Exception):
    """A row or a page of a slot is not in memory. The caller has `fetch()` run in a thread, and asks again."""

    def __init__(self, fetch: Callable[[], None]) -> None:
        super().__init__()
        self.fetch = fetch


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


@dataclass(slots=True)
class Frozen:
    """A memtable on its way to a table, with the owner's state when it froze."""

    memtable: Memtable
    end_position: int
    state: bytes
    drops: list[Drop] = field(default_factory=list)


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
        self.log: CommitLog
        self.recovery: Recovery
        self.stats = StoreStats()
        self.capture: Callable[[], bytes] = bytes  # The owner's state, asked for at each freeze.
        self._job: Job | None = None
        self._next_table = current.next_table

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

        `restore` gets the owner's state as of the log's start, then `observe` each entry that is replayed. Raises
        LockedError, UnknownFormatError, CorruptionError, DiskError.
        """
        disk.lock(LOCK_NAME)
        current = manifest.read(disk)
        if current is None:
            current = Manifest(manifest.FORMAT_VERSION, 0, 1, [], [], initial_state)
            manifest.write(disk, current)
        cls._remove_leftovers(disk, current)
        tables = [Table.open(disk, name) for name in current.tables]
        store = cls(disk, codec, settings, current, tables)
        restore(current.state)
        store.recovery = recover(disk, start=current.log_start, apply=store._replayer(observe))
        store.log = CommitLog.open(disk, store.recovery)
        return store

    @staticmethod
    def _remove_leftovers(disk: Disk, current: Manifest) -> None:
        """Tables of jobs that never finished, and log segments that a flush had replaced."""
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

    def close(self) -> None:
        """Close files. What was not synced stays with the kernel."""
        self.log.close()
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
            self.memtable.deltas.pop((slot, row), None)
        if self.tables:
            self.rows.invalidate(row)

    def drop(self, tags: list[int]) -> None:
        """Remove all rows of some keyspaces, as of now."""
        self.write()  # So that the marker's position is above everything applied before it.
        marker = bytes(tags)
        self.log.stage(MARKER, 0, b"", marker)
        self._drop(marker, self.log.position + 1)
        self.write()

    def _drop(self, marker: bytes, position: int) -> None:
        tags = frozenset(marker)
        self.memtable.drop(tags, self.codec)
        for frozen in self.frozen:
            frozen.memtable.drop(tags, self.codec)
        self.rows.clear()
        if self.tables or self.frozen:
            self.manifest.drops += [Drop(position, tag) for tag in sorted(tags)]

    def write(self) -> int:
        """Write what was applied to the log in one frame; freeze the memtable if it is full. Returns the log's end."""
        position = self.log.write()
        memtable = self.memtable
        if (
            memtable.weight_bytes > self.settings.memtable_bytes
            or position - memtable.base_position > self.settings.log_bytes_max
        ) and not self.is_stalled:
            self.freeze()
        return position

    def freeze(self) -> None:
        """Close the memtable and its log segments, and begin new ones."""
        self.log.write()
        if (
            self.log.segment_bytes
        ):  # Not so after a recovery: the replayed segments are sealed already.
            self.log.roll()
        self.frozen.insert(0, Frozen(self.memtable, self.log.position, self.capture()))
        self.memtable = Memtable(self.settings.slot_count, self.log.position)
        self.active = self.memtable.slots

    @property
    def is_stalled(self) -> bool:
        """Two memtables wait for their flush: the owner holds back writes until one is done."""
        return len(self.frozen) >= 2

    def forget(self, slot: Slot, row: Row, now_ms: int) -> bool:
        """Give back the payload of an entry that has expired. It is not logged: whoever reads the log sees it expired."""
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
        while True:
            try:
                return self.get(slot, row)
            except PageFault as fault:
                fault.fetch()

    def _lookup_tables(self, slot: Slot, row: Row) -> bytes | None:
        cached = self.rows.get(row)
        if cached is not None:
            return cached or None
        raw = self._read_tables(slot.to_bytes(2, "big") + row, cached_only=True)
        if len(row) + len(raw or ABSENT) < self.rows.bytes_max >> 4:
            self.rows.put(row, raw or ABSENT)
        return raw

    def _read_tables(self, key: bytes, *, cached_only: bool) -> bytes | None:
        """Join the entries of a key from newest to oldest. Raises PageFault if `cached_only` and a block is not there."""
        hashed = hash_of(key)
        state: bytes | None = None
        for table in self.tables:
            if not table.may_contain_hash(hashed) or self._is_dropped(table, key[2:]):
                continue
            number = table.block_of(key)
            if number is None:
                continue
            found = self._block(table, number, cached_only=cached_only).find(key)
            if found is None:
                continue
            flags, raw = found
            state = raw if state is None else self.codec.join(state, raw)
            if flags & COMPLETE:
                break
        return state

    def _block(self, table: Table, number: int, *, cached_only: bool) -> Block:
        block = self.blocks.get((table.id, number))
        if block is None:
            self.stats.table_reads += 1
            block = table.load(number, cached_only=cached_only)
            if block is None:
                self.stats.faults += 1
                raise PageFault(lambda: self._fetch(table, number))
            self.blocks.put((table.id, number), block)
        return block

    def _fetch(self, table: Table, number: int) -> None:
        """In a thread: bring a block into the kernel's cache and ours. A table that was replaced meanwhile is no error."""
        if table in self.tables:
            block = table.load(number, cached_only=False)
            assert block is not None
            self.blocks.put((table.id, number), block)

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
            block = self._block(table, number, cached_only=True)
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

    # Background work

    def next_job(self, now_ms: int) -> Job | None:
        """What should be done now, one at a time: the oldest flush first, then a compaction. None if nothing, or busy."""
        if self._job is not None:
            return None
        if self.frozen:
            oldest = self.frozen[-1]
            start, end = oldest.memtable.base_position, oldest.end_position
            inputs = [segment.name for segment in self.log.sealed if start <= segment.base < end]
            self._job = self._make_job(
                "flush", inputs, oldest.memtable.base_position, oldest.end_position
            )
        else:
            chosen = compaction.choose([table.meta for table in self.tables], now_ms)
            if chosen is not None:
                inputs = [table.name for table in self.tables[chosen]]
                self._job = self._make_job("compact", inputs, 0, 0)
        if self._job is not None:
            self._job.is_bottom = (
                self._job.kind == "flush"
                and not self.tables
                or (self._job.kind == "compact" and self._job.inputs[-1] == self.tables[-1].name)
            )
            self._job.now_ms = now_ms
        return self._job

    def _make_job(self, kind: str, inputs: list[str], start: int, end: int) -> Job:
        name = f"{self._next_table:010d}.sst"
        self._next_table += 1
        return Job(
            kind=kind,
            inputs=inputs,
            output=name,
            position_min=start,
            position_max=end,
            drops=list(self.manifest.drops),
            block_bytes=self.settings.block_bytes,
            compression=self.settings.compression,
            is_bottom=False,
            now_ms=0,
        )

    def abandon(self, job: Job) -> None:
        """The job was lost with its worker: it will be given again."""
        assert job is self._job
        self._job = None

    def prepare(self, job: Job, result: JobResult) -> Manifest:
        """The manifest that makes a finished job's output live. The caller writes it (it blocks), then calls `install`."""
        names = [table.name for table in self.tables]
        log_start, state = self.manifest.log_start, self.manifest.state
        if job.kind == "flush":
            log_start, state = self.frozen[-1].end_position, self.frozen[-1].state
            names = result.tables + names
        else:
            at = names.index(job.inputs[0])
            names[at : at + len(job.inputs)] = result.tables
        return Manifest(
            manifest.FORMAT_VERSION,
            log_start,
            self._next_table,
            names,
            list(self.manifest.drops),
            state,
        )

    def write_manifest(self, prepared: Manifest) -> None:
        """Make a prepared manifest durable. Blocks: for a thread."""
        self.disk.sync_names()
        manifest.write(self.disk, prepared)

    def install(self, job: Job, result: JobResult, written: Manifest) -> None:
        """Serve from the job's output. Raises CorruptionError if it cannot be opened."""
        made = [Table.open(self.disk, name) for name in result.tables]
        known = {table.name: table for table in self.tables} | {table.name: table for table in made}
        replaced = [table for table in self.tables if table.name not in written.tables]
        written.drops = self.manifest.drops  # Drops since `prepare` are in the log above its start.
        self.manifest = written
        self.tables = [known[name] for name in written.tables]
        self._retire_drops()
        if job.kind == "flush":
            self.frozen.pop()
            self.log.remove_before(written.log_start)
            self.stats.flushes += 1
        else:
            self.stats.compactions += 1
        for table in replaced:
            self.blocks.drop_table(table.id)
            table.close()
            self.disk.remove(table.name)
        self._job = None

    def _retire_drops(self) -> None:
        """Forget drops that no table is older than."""
        oldest = min((table.meta.position_max for table in self.tables), default=None)
        self.manifest.drops = [
            drop
            for drop in self.manifest.drops
            if self.frozen or (oldest is not None and oldest < drop.position)
        ]

    @property
    def table_bytes(self) -> int:
        return sum(table.meta.file_bytes for table in self.tables)


__all__ = ["ABSENT", "EngineError", "PageFault", "Store", "StoreSettings", "StoreStats"]
