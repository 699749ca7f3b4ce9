"""Background jobs as plain data, and the one function that does them: a log's segments or some tables become tables.

It runs wherever it is called: in the worker process (`engine/worker.py`), or at once in tests and
the simulation. A job is repeatable: it reads immutable files and writes new ones, whose names the
store forgets if the job is lost.

A job's first table has the name that the store gave it, `NUMBER.sst`; where the output is cut, the
others are `NUMBER-1.sst`, `NUMBER-2.sst` and so on, in the order of their keys. A cut is between
keys; a key has one entry in the output.
"""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Callable, Iterator
from itertools import chain
from typing import Final, cast

import msgspec

from engine.codec import Entry, RecordCodec, Row
from engine.damage import Damage
from engine.disk import Disk
from engine.drop import DropIndex, Marker, hiding
from engine.errors import CorruptionError, DiskError, EngineError
from engine.log_format import COMPLETE, MARKER
from engine.log_segment import read_frames
from engine.manifest import Drop
from engine.merge import Drops, groups_of, merge_groups
from engine.sstable import SCAN_READ_BYTES, Compression, OnDamage, Table, TableWriter

EVERYTHING: Final = (1 << 63) - 1
"""As a horizon: whatever is dead may be forgotten."""

SUFFIX: Final = ".sst"


class Job(msgspec.Struct):
    """One thing to do in the background, by its `kind`:

    - "flush": log segments, oldest first, become one table of level 0;
    - "compact": tables, newest first, become tables of `level`;
    - "move": tables become tables of `level` as they are;
    - "remove": tables of which nothing is left to see go.

    The last two need no work: only the manifest changes. The positions are those of a flush. What
    is dead is forgotten at the bottom, if all of it was made up to `horizon_position`. Tables are
    cut at `table_bytes`, if that is not 0. A compaction reads no more than `bytes_per_s`, if that is not 0.
    """

    kind: str
    inputs: list[str]
    output: str
    position_min: int
    position_max: int
    drops: list[Drop]
    block_bytes: int
    compression: Compression
    is_bottom: bool
    now_ms: int
    horizon_position: int = EVERYTHING
    table_bytes: int = 0
    level: int = 0
    bytes_per_s: int = 0

    def output_name(self, number: int) -> str:
        """Return the name of the table `number`, counted from 0."""
        return (
            self.output if number == 0 else f"{self.output.removesuffix(SUFFIX)}-{number}{SUFFIX}"
        )


class JobResult(msgspec.Struct):
    """The tables made, in the order of their keys: none if nothing was left."""

    tables: list[str]
    entry_count: int
    damages: list[Damage] = []  # Blocks of the inputs that could not be read, and were left out.


def load_codec(path: str) -> RecordCodec:
    """The codec named by import path, `module:attribute`, so that a worker process loads the same one."""
    module, _, attribute = path.partition(":")
    return cast(RecordCodec, getattr(importlib.import_module(module), attribute))


def run_job(
    disk: Disk, job: Job, codec: RecordCodec, pause: Callable[[int], None] | None = None
) -> JobResult:
    """Do a job. Raises EngineError; then nothing is left behind, as far as the disk lets it be removed.

    A compaction calls `pause` after each group of entries that it has read, with their bytes: what is more urgent can
    be done there.

    The tables' bytes are durable when it returns, their names are not: that is for
    `Store.write_manifest`.
    """
    if job.kind == "flush":
        writer = _Writer(disk, job, codec, job.position_min, job.position_max)
        return writer.write(_flushed(disk, job, codec))
    if job.kind != "compact":
        return JobResult([], 0)
    tables: list[Table] = []
    damages: list[Damage] = []
    try:
        tables += (Table.open(disk, name) for name in job.inputs)
        metas = [table.meta for table in tables]
        position_max = max(meta.position_max for meta in metas)
        groups = merge_groups(
            [
                _with_pauses(table.groups(on_damage=_noting(table, damages)), pause)
                for table in tables
            ],
            codec,
            now_ms=job.now_ms,
            is_bottom=job.is_bottom,
            may_forget=position_max <= job.horizon_position,
            drops=_drop_test(tables, job, codec),
        )
        # What was carried out must not be asked of the output again.
        positions = [drop.position for drop in hiding(job.drops, metas)]
        position_min = min(meta.position_min for meta in metas)
        writer = _Writer(disk, job, codec, position_min, max([position_max, *positions]))
        result = writer.write(groups)
        result.damages = damages
        return result
    finally:
        for table in tables:
            table.close()


def _with_pauses(
    groups: Iterator[list[Entry]], pause: Callable[[int], None] | None
) -> Iterator[list[Entry]]:
    for group in groups:
        if pause is not None:
            # What one read gave; nearly always about as much as one may.
            pause(SCAN_READ_BYTES if len(group) > 1 else len(group[0][2]))
        yield group


def _noting(table: Table, damages: list[Damage]) -> OnDamage:
    def note(block_no: int, error: CorruptionError) -> None:
        low, high = table.keys_of(block_no)
        reason = f"expected {error.expected}, found {error.actual}"
        position = table.meta.position_max
        damages.append(Damage(low, high, position, table.name, error.offset, reason))

    return note


class _Writer:
    """Writes the output of a job, in one table or several."""

    def __init__(
        self, disk: Disk, job: Job, codec: RecordCodec, position_min: int, position_max: int
    ) -> None:
        self._disk = disk
        self._job = job
        self._codec = codec
        self._positions = (position_min, position_max)
        self._done: list[str] = []
        self._current: TableWriter | None = None

    def write(self, groups: Iterator[list[Entry]]) -> JobResult:
        """Write all groups. On EngineError it removes what it has written."""
        count = 0
        self._writer()  # First, so that a disk that takes no file is noticed before the work is done.
        try:
            for group in groups:
                count += len(group)
                self._add(group)
            if count:
                self._finish()
            else:
                self._discard()
        except EngineError:
            # What a full disk needs least is half a table.
            self._discard()
            raise
        return JobResult(self._done, count)

    def _add(self, group: list[Entry]) -> None:
        writer = self._writer()
        limit = self._job.table_bytes
        if limit:
            group_bytes = sum(len(key) + len(raw) for key, _, raw in group)
            if writer.size_bytes + group_bytes >= limit:
                return self._add_with_cuts(group, limit)
        add = writer.add_key
        for key, flags, raw in group:
            add(key, flags, raw)
        return None

    def _add_with_cuts(self, group: list[Entry], limit: int) -> None:
        for key, flags, raw in group:
            writer = self._writer()
            if writer.size_bytes >= limit:
                self._finish()
                writer = self._writer()
            writer.add_key(key, flags, raw)

    def _writer(self) -> TableWriter:
        if self._current is None:
            self._current = TableWriter(
                self._disk,
                self._job.output_name(len(self._done)),
                block_bytes=self._job.block_bytes,
                compression=self._job.compression,
                codec=self._codec,
                now_ms=self._job.now_ms,
            )
        return self._current

    def _finish(self) -> None:
        if self._current is not None:
            self._current.finish(*self._positions)
            self._done.append(self._job.output_name(len(self._done)))
            self._current = None

    def _discard(self) -> None:
        with contextlib.suppress(DiskError):
            if self._current is not None:
                self._current.discard()
                self._current = None
        for name in self._done:
            with contextlib.suppress(DiskError):
                self._disk.remove(name)


def _flushed(disk: Disk, job: Job, codec: RecordCodec) -> Iterator[list[Entry]]:
    """The segments' entries, joined and in order: what the memtable held.

    Hot: a row that was written often is in the log as often.
    """
    complete: dict[int, dict[Row, bytes]] = {}  # By slot.
    deltas: dict[int, dict[Row, bytes]] = {}
    for flags, slot, row, raw in chain.from_iterable(
        entries for name in job.inputs for entries in read_frames(disk, name)
    ):
        rows = complete.get(slot)
        if rows is None:
            rows = complete[slot] = {}
            deltas[slot] = {}
        if flags == COMPLETE:
            rows[row] = raw
        elif flags & MARKER:
            marker = Marker.decode(row, raw)
            for slots in (complete, deltas):
                _drop(marker, slots, codec)
        elif row in rows:
            rows[row] = codec.join(raw, rows[row])
        else:
            old = deltas[slot].get(row)
            deltas[slot][row] = raw if old is None else codec.join(raw, old)
    source = groups_of(_in_order(complete, deltas))
    return merge_groups(
        [source],
        codec,
        now_ms=job.now_ms,
        is_bottom=job.is_bottom,
        may_forget=job.position_max <= job.horizon_position,
    )


def _drop(marker: Marker, slots: dict[int, dict[Row, bytes]], codec: RecordCodec) -> None:
    for slot, rows in slots.items():
        for row in [row for row in rows if marker.covers(slot, codec.tag(row))]:
            del rows[row]


def _in_order(
    complete: dict[int, dict[Row, bytes]], deltas: dict[int, dict[Row, bytes]]
) -> Iterator[Entry]:
    """The entries by key. A complete one stands for what was a delta before it."""
    for slot in sorted(complete):
        prefix = slot.to_bytes(2, "big")
        rows, others = complete[slot], deltas[slot]
        for row in sorted(rows.keys() | others.keys() if others else rows):
            if row in rows:
                yield prefix + row, COMPLETE, rows[row]
            else:
                yield prefix + row, 0, others[row]


def _drop_test(tables: list[Table], job: Job, codec: RecordCodec) -> Drops | None:
    if not hiding(job.drops, [table.meta for table in tables]):
        return None
    index = DropIndex(job.drops)
    positions = [table.meta.position_max for table in tables]
    return lambda source, key: index.hides(
        int.from_bytes(key[:2], "big"), codec.tag(key[2:]), positions[source]
    )
