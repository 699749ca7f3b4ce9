"""Background jobs as plain data, and the one function that does them: a log's segments or some tables become a table.

It runs wherever it is called: in the worker process (`engine/worker.py`), or at once in tests and
the simulation. A job is repeatable: it reads immutable files and writes one new one, whose name the
store forgets if the job is lost.
"""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Iterator
from typing import cast

import msgspec

from engine.codec import RecordCodec
from engine.disk import Disk
from engine.errors import DiskError, EngineError
from engine.log import COMPLETE, MARKER, read_segment
from engine.manifest import Drop
from engine.merge import Drops, groups_of, merge_groups
from engine.sstable import Compression, Table, TableWriter

Entry = tuple[bytes, int, bytes]


class Job(msgspec.Struct):
    """`kind` is "flush" (inputs: log segments, oldest first) or "compact" (inputs: tables, newest first)."""

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


class JobResult(msgspec.Struct):
    """The tables made: none if nothing was left."""

    tables: list[str]
    entry_count: int


def load_codec(path: str) -> RecordCodec:
    """The codec named by import path, `module:attribute`, so that a worker process loads the same one."""
    module, _, attribute = path.partition(":")
    return cast(RecordCodec, getattr(importlib.import_module(module), attribute))


def run_job(disk: Disk, job: Job, codec: RecordCodec) -> JobResult:
    """Do a job. Raises EngineError; then nothing is left behind, as far as the disk lets it be removed.

    The table's bytes are durable when it returns, its name is not: that is for
    `Store.write_manifest`.
    """
    if job.kind == "flush":
        return _write(
            disk, job, codec, _flushed(disk, job, codec), job.position_min, job.position_max
        )
    tables: list[Table] = []
    try:
        tables += (Table.open(disk, name) for name in job.inputs)
        groups = merge_groups(
            [table.groups() for table in tables],
            codec,
            now_ms=job.now_ms,
            is_bottom=job.is_bottom,
            drops=_drop_test(tables, job, codec),
        )
        position_min = min(table.meta.position_min for table in tables)
        position_max = max(table.meta.position_max for table in tables)
        return _write(disk, job, codec, groups, position_min, position_max)
    finally:
        for table in tables:
            table.close()


def _write(
    disk: Disk,
    job: Job,
    codec: RecordCodec,
    groups: Iterator[list[Entry]],
    position_min: int,
    position_max: int,
) -> JobResult:
    writer = TableWriter(
        disk,
        job.output,
        block_bytes=job.block_bytes,
        compression=job.compression,
        codec=codec,
        now_ms=job.now_ms,
    )
    count = 0
    add = writer.add_key
    try:
        for group in groups:
            for key, flags, raw in group:
                add(key, flags, raw)
            count += len(group)
        if count == 0:
            writer.discard()
            return JobResult([], 0)
        writer.finish(position_min, position_max)
    except EngineError:
        # What a full disk needs least is half a table.
        with contextlib.suppress(DiskError):
            writer.discard()
        raise
    return JobResult([job.output], count)


def _flushed(disk: Disk, job: Job, codec: RecordCodec) -> Iterator[list[Entry]]:
    """The segments' entries, joined and in order: what the memtable held."""
    state: dict[bytes, tuple[int, bytes]] = {}
    for name in job.inputs:
        for flags, slot, row, raw in read_segment(disk, name):
            if flags & MARKER:
                dropped = frozenset(raw)
                state = {k: v for k, v in state.items() if codec.tag(k[2:]) not in dropped}
                continue
            key = slot.to_bytes(2, "big") + row
            if flags & COMPLETE:
                state[key] = (COMPLETE, raw)
            else:
                old = state.get(key)
                state[key] = (0, raw) if old is None else (old[0], codec.join(raw, old[1]))
    source = groups_of((key, *state[key]) for key in sorted(state))
    return merge_groups([source], codec, now_ms=job.now_ms, is_bottom=job.is_bottom)


def _drop_test(tables: list[Table], job: Job, codec: RecordCodec) -> Drops | None:
    dropped = [
        frozenset(d.tag for d in job.drops if table.meta.position_max < d.position)
        for table in tables
    ]
    if not any(dropped):
        return None
    return lambda source, key: codec.tag(key[2:]) in dropped[source]
