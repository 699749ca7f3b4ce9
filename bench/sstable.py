"""What SSTables cost, in µs a record or a call: building, finding, missing, scanning, merging.

    python -m bench.sstable [--records 100000] [--value-bytes 100] [--block-bytes 8192]

Each figure is the least of several runs, on files in a temporary folder that the kernel has cached.
The codec is as cheap as one can be, so the figures are the engine's own. "get hit" is the whole way
of a read below the memtable for one table: hash, filter, index, block cache, search in the block.
"""

from __future__ import annotations

import argparse
import gc
import random
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence

from engine.bloom import hash_of
from engine.cache import BlockCache, RowCache
from engine.codec import COMPLETE, Entry, Fate, Key
from engine.disk import Disk, RealDisk
from engine.merge import merge, merge_groups
from engine.sstable import Table, TableWriter

REPEATS = 9
SOURCE_COUNT = 4


class CheapCodec:
    """Answers every question with the same constant."""

    def join(self, newer: bytes, older: bytes) -> bytes:
        return newer

    def fate(self, row: bytes, raw: bytes, now_ms: int) -> Fate:
        return Fate.LIVE

    def expires_at_ms(self, raw: bytes) -> int:
        return 0

    def stub(self, raw: bytes) -> bytes:
        return raw

    def tag(self, row: bytes) -> int:
        return 0


CODEC = CheapCodec()


def best_us(work: Callable[[], object], count: int) -> float:
    """Return the least time of a run, for each of the `count` things that it does."""
    times = []
    for _ in range(REPEATS):
        began = time.perf_counter()
        work()
        times.append(time.perf_counter() - began)
    return min(times) / count * 1e6


def made_entries(rng: random.Random, count: int, value_bytes: int) -> list[Entry]:
    """Return records like small JSON documents, under keys like those of a server."""
    entries: dict[Key, Entry] = {}
    for number in range(count):
        slot = rng.randrange(16384).to_bytes(2, "big")
        key = slot + rng.randbytes(6) + b"\0user:%d" % number
        filler = rng.randbytes(max(0, value_bytes - 50) // 2).hex().encode()
        raw = b'{"name":"user %d","balance":%d,"note":"%b"}' % (number, number * 37, filler)
        entries[key] = (key, COMPLETE, raw)
    return [entries[key] for key in sorted(entries)]


def write_table(disk: Disk, name: str, entries: Sequence[Entry], block_bytes: int) -> None:
    writer = TableWriter(disk, name, block_bytes=block_bytes, compression="lz4", codec=CODEC)
    for key, flags, raw in entries:
        writer.add_key(key, flags, raw)
    writer.finish(0, len(entries))


def read_from(table: Table, cache: BlockCache, key: Key) -> tuple[int, bytes] | None:
    """Find a key as the store does."""
    if not table.may_contain_hash(hash_of(key)):
        return None
    block_no = table.block_of(key)
    if block_no is None:
        return None
    block = cache.get((table.id, block_no))
    if block is None:
        block = table.load(block_no, cached_only=True) or table.load(block_no, cached_only=False)
        assert block is not None
        cache.put((table.id, block_no), block)
    return block.find(key)


def exhaust(items: Iterator[object]) -> None:
    deque(items, maxlen=0)


def measure(disk: Disk, records: int, value_bytes: int, block_bytes: int) -> Iterator[str]:
    """Yield lines to print."""
    rng = random.Random(1)
    entries = made_entries(rng, records, value_bytes)
    numbers = iter(range(1000))

    def build() -> None:
        write_table(disk, f"build-{next(numbers)}", entries, block_bytes)

    yield f"build                  {best_us(build, records):7.3f} µs a record"

    write_table(disk, "table", entries, block_bytes)
    table = Table.open(disk, "table")
    meta = table.meta
    yield (
        f"    {meta.entry_count} records, {meta.raw_bytes} bytes, file {meta.file_bytes} bytes, "
        f"{meta.block_count} blocks, {table.memory_bytes} bytes in memory"
    )
    opening = best_us(lambda: Table.open(disk, "table").close(), 1)
    yield f"open                   {opening / 1000:7.3f} ms a table"

    hits = [entry[0] for entry in rng.sample(entries, min(20_000, records))]
    misses = [key[:-1] + b"x" for key in hits]
    cache = BlockCache(1 << 30)
    found = [read_from(table, cache, key) for key in hits]
    assert all(found)
    hashes = list(map(hash_of, misses))
    false_count = sum(map(table.may_contain_hash, hashes))

    def gets(keys: list[Key]) -> Callable[[], None]:
        def work() -> None:
            for key in keys:
                read_from(table, cache, key)

        return work

    def probes() -> None:
        for hashed in hashes:
            table.may_contain_hash(hashed)

    def hashing() -> None:
        for key in misses:
            hash_of(key)

    count = len(hits)
    yield f"get hit, block cached  {best_us(gets(hits), count):7.3f} µs"
    yield f"get miss               {best_us(gets(misses), count):7.3f} µs"
    yield f"    hash_of            {best_us(hashing, count):7.3f} µs a key"
    yield f"    filter             {best_us(probes, count):7.3f} µs a table after that"
    yield f"    false positives    {false_count / count * 100:7.3f} %"

    def loads() -> None:
        for block_no in range(table.block_count):
            table.load(block_no, cached_only=True)

    yield f"load block             {best_us(loads, table.block_count):7.3f} µs, page cached"

    block = table.load(0, cached_only=False)
    assert block is not None
    in_block = [entry[0] for entry in block.to_list()]

    def finds() -> None:
        for key in in_block:
            block.find(key)

    yield f"find in block          {best_us(finds, len(in_block)):7.3f} µs"

    block_ids = [(table.id, rng.randrange(table.block_count)) for _ in range(count)]
    rows = RowCache(1 << 30)
    for key in hits:
        rows.put(key, b"raw")

    def cache_gets() -> None:
        for block_id in block_ids:
            cache.get(block_id)

    def row_gets() -> None:
        for key in hits:
            rows.get(key)

    yield f"block cache get        {best_us(cache_gets, count):7.3f} µs"
    yield f"row cache get          {best_us(row_gets, count):7.3f} µs"

    yield f"scan                   {best_us(lambda: exhaust(table.scan()), records):7.3f} µs a record"

    # Random parts of the records, a tenth of them in two sources.
    sources: list[list[Entry]] = [[] for _ in range(SOURCE_COUNT)]
    for entry in entries:
        for number in rng.sample(range(SOURCE_COUNT), 2 if rng.random() < 0.1 else 1):
            sources[number].append(entry)
    total = sum(map(len, sources))
    for number, part in enumerate(sources):
        write_table(disk, f"source-{number}", part, block_bytes)
    tables = [Table.open(disk, f"source-{number}") for number in range(SOURCE_COUNT)]
    halves = [[part[at : at + 500] for at in range(0, len(part), 500)] for part in sources]

    def merge_memory() -> None:
        groups = [iter(half) for half in halves]
        exhaust(merge_groups(groups, CODEC, now_ms=1, is_bottom=True))

    def merge_entries() -> None:
        exhaust(merge([iter(part) for part in sources], CODEC, now_ms=1, is_bottom=True))

    def merge_tables() -> None:
        groups = [table.groups() for table in tables]
        exhaust(merge_groups(groups, CODEC, now_ms=1, is_bottom=True))

    def compact() -> None:
        groups = [table.groups() for table in tables]
        writer = TableWriter(
            disk,
            f"compacted-{next(numbers)}",
            block_bytes=block_bytes,
            compression="lz4",
            codec=CODEC,
        )
        for group in merge_groups(groups, CODEC, now_ms=1, is_bottom=True):
            for key, flags, raw in group:
                writer.add_key(key, flags, raw)
        writer.finish(0, total)

    yield f"merge, of groups       {best_us(merge_memory, total):7.3f} µs a record, {SOURCE_COUNT} sources"
    yield f"merge, of entries      {best_us(merge_entries, total):7.3f} µs a record"
    yield f"read and merge         {best_us(merge_tables, total):7.3f} µs a record"
    yield f"whole compaction       {best_us(compact, total):7.3f} µs a record"


def main() -> None:
    """Measure, and print."""
    parser = argparse.ArgumentParser(description="What SSTables cost, in microseconds.")
    parser.add_argument("--records", type=int, default=100_000)
    parser.add_argument("--value-bytes", type=int, default=100)
    parser.add_argument("--block-bytes", type=int, default=8192)
    given = parser.parse_args()
    gc.disable()  # As in the serving process and in the worker.
    with tempfile.TemporaryDirectory(prefix="respkv-bench-") as folder:
        disk = RealDisk(folder)
        for line in measure(disk, given.records, given.value_bytes, given.block_bytes):
            print(line, flush=True)
        disk.close()


if __name__ == "__main__":
    main()
