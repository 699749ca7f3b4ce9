"""Background jobs as plain data, and the one function that does them: a log's segments or some tables become a table.

It runs wherever it is called: in the worker process (`engine/worker.py`), or at once in tests and the simulation. A job is
repeatable: it reads immutable files and writes one new one, whose name the store forgets if the job is lost.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from typing import cast

import msgspec

from engine.codec import RecordCodec
from engine.disk import Disk
from engine.log import COMPLETE, MARKER, read_segment
from engine.manifest import Drop
from engine.merge import merge
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
    """Do a job. Raises EngineError; then nothing was made."""
    if job.kind == "flush":
        entries = _flushed(disk, job, codec)
        position_min, position_max = job.position_min, job.position_max
        tables: list[Table] = []
    else:
        tables = [Table.open(disk, name) for name in job.inputs]
        position_min = min(table.meta.position_min for table in tables)
        position_max = max(table.meta.position_max for table in tables)
        entries = _merged(tables, job, codec)
    writer = TableWriter(
        disk, job.output, block_bytes=job.block_bytes, compression=job.compression, codec=codec
    )
    count = 0
    add = writer.add_key
    for key, flags, raw in entries:
        add(key, flags, raw)
        count += 1
    if count == 0:
        writer.discard()
        made = []
    else:
        writer.finish(position_min, position_max)
        made = [job.output]
    for table in tables:
        table.close()
    return JobResult(made, count)


def _flushed(disk: Disk, job: Job, codec: RecordCodec) -> Iterator[Entry]:
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
    source = ((key, *state[key]) for key in sorted(state))
    return merge([source], codec, now_ms=job.now_ms, is_bottom=job.is_bottom, drops=_never)


def _never(source: int, key: bytes) -> bool:
    return False


def _merged(tables: list[Table], job: Job, codec: RecordCodec) -> Iterator[Entry]:
    return merge(
        [table.scan(b"", None) for table in tables],
        codec,
        now_ms=job.now_ms,
        is_bottom=job.is_bottom,
        drops=_drop_test(tables, job, codec),
    )


def _drop_test(tables: list[Table], job: Job, codec: RecordCodec) -> Callable[[int, bytes], bool]:
    dropped = [
        frozenset(d.tag for d in job.drops if table.meta.position_max < d.position)
        for table in tables
    ]
    if not any(dropped):
        return _never
    return lambda source, key: codec.tag(key[2:]) in dropped[source]
