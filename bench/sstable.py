"""What SSTables cost, in µs a record or a call: building, finding, missing, scanning, merging.

At the end is what compression costs and saves: file, memory, and reads whose block is not cached.

    python -m bench.sstable [--records 100000] [--value-bytes 100] [--block-bytes 8192]

Each figure is the least CPU time of several runs, on files that the kernel has cached. The codec is
as cheap as one can be, so the figures are the engine's own. "get hit" is the whole way of a read
below the memtable for one table: hash, filter, index, block cache, search in the block. It is
measured with few keys, whose blocks the CPU's cache holds, and with many, where it does not.
"find" is the same without the block cache: each one reads a block from the kernel and decompresses
it.
"""

from __future__ import annotations

import argparse
import gc
import random
import tempfile
import time
import tracemalloc
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import chain
from unittest.mock import patch

from engine.bloom import candidates
from engine.cache import BlockCache, RowCache
from engine.codec import COMPLETE, Entry, Fate, Key
from engine.compression import Compression
from engine.disk import Disk, RealDisk
from engine.merge import merge, merge_groups
from engine.sstable import Table, TableWriter

REPEATS = 9
SOURCE_COUNT = 4
COMPRESSED: list[tuple[str, Compression]] = [
    ("none", "none"),
    ("lz4", "lz4"),
    ("zstd", "zstd"),
    ("zstd, dictionary", "zstd"),
]


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
    """Return the least CPU time of a run, for each of the `count` things that it does."""
    times = []
    for _ in range(REPEATS):
        began = time.process_time()
        work()
        times.append(time.process_time() - began)
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


def write_table(
    disk: Disk,
    name: str,
    entries: Iterable[Entry],
    block_bytes: int,
    compression: Compression = "lz4",
) -> None:
    writer = TableWriter(disk, name, block_bytes=block_bytes, compression=compression, codec=CODEC)
    for key, flags, raw in entries:
        writer.add_key(key, flags, raw)
    writer.finish(0, 0)


def read_from(table: Table, cache: BlockCache, key: Key) -> tuple[int, bytes] | None:
    """Find a key as the store does."""
    if not table.may_contain(key):
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


@dataclass(frozen=True, slots=True)
class Load:
    """What is measured on: a disk, the records, and how blocks are made."""

    disk: Disk
    rng: random.Random
    entries: list[Entry]
    block_bytes: int


def measure_building(load: Load) -> Iterator[str]:
    """Yield lines to print."""
    count = len(load.entries)

    def build() -> None:
        load.disk.remove("table")
        write_table(load.disk, "table", load.entries, load.block_bytes)

    write_table(load.disk, "table", load.entries, load.block_bytes)
    yield f"build                  {best_us(build, count):7.3f} µs a record"
    table = Table.open(load.disk, "table")
    meta = table.meta
    yield (
        f"    {meta.entry_count} records, {meta.raw_bytes} bytes, file {meta.file_bytes} bytes, "
        f"{meta.block_count} blocks, {table.memory_bytes} bytes in memory"
    )
    opening = best_us(lambda: Table.open(load.disk, "table").close(), 1)
    yield f"open                   {opening / 1000:7.3f} ms a table"
    scanning = best_us(lambda: exhaust(table.scan()), count)
    yield f"scan                   {scanning:7.3f} µs a record"


def measure_gets(load: Load, key_count: int) -> Iterator[str]:
    """Yield lines to print: reads of `key_count` random keys, whose blocks are cached."""
    table = Table.open(load.disk, "table")
    cache = BlockCache(1 << 30)
    hits = [entry[0] for entry in load.rng.sample(load.entries, key_count)]
    misses = [key[:-1] + b"x" for key in hits]
    assert all(read_from(table, cache, key) for key in hits)

    def gets(keys: list[Key]) -> None:
        for key in keys:
            read_from(table, cache, key)

    hit_us = best_us(lambda: gets(hits), key_count)
    miss_us = best_us(lambda: gets(misses), key_count)
    yield f"get hit                {hit_us:7.3f} µs, block cached, {key_count} keys"
    yield f"get miss               {miss_us:7.3f} µs"

    def ask(table_count: int) -> None:
        tables = [table] * table_count
        for key in misses:
            for _ in candidates(tables, key):
                pass

    one_us, many_us = best_us(lambda: ask(1), key_count), best_us(lambda: ask(11), key_count)
    false_count = sum(map(table.may_contain, misses))
    yield f"    one filter         {one_us:7.3f} µs a key"
    yield f"    another filter     {(many_us - one_us) / 10:7.3f} µs a table after that"
    yield f"    false positives    {false_count / key_count * 100:7.3f} %"


def measure_parts(load: Load) -> Iterator[str]:
    """Yield lines to print: what a read consists of."""
    table = Table.open(load.disk, "table")

    def load_all() -> None:
        for block_no in range(table.block_count):
            table.load(block_no, cached_only=True)

    loading = best_us(load_all, table.block_count)
    yield f"load block             {loading:7.3f} µs, held by the kernel"
    block = table.load(0, cached_only=False)
    assert block is not None
    in_block = [entry[0] for entry in block.to_list()]
    finding = best_us(lambda: exhaust(map(block.find, in_block)), len(in_block))
    yield f"find in block          {finding:7.3f} µs"

    cache = BlockCache(1 << 30)
    block_ids = [(table.id, number) for number in range(table.block_count)]
    for block_id in block_ids:
        cache.put(block_id, block)
    load.rng.shuffle(block_ids)
    cached_us = best_us(lambda: exhaust(map(cache.get, block_ids)), len(block_ids))
    yield f"block cache get        {cached_us:7.3f} µs"
    rows = RowCache(1 << 30)
    for key in in_block:
        rows.put(key, b"raw")
    cached_us = best_us(lambda: exhaust(map(rows.get, in_block)), len(in_block))
    yield f"row cache get          {cached_us:7.3f} µs"


def measure_compression(load: Load, key_count: int) -> Iterator[str]:
    """Yield lines to print: reads that miss the block cache, and what a table takes."""
    hits = [entry[0] for entry in load.rng.sample(load.entries, key_count)]
    misses = [key[:-1] + b"x" for key in hits]
    count = len(load.entries)
    yield "                        build     find     miss     load     open     file   memory"
    yield "                     µs/record µs, no cache  µs  µs/block       ms        %  a 1000 blocks"
    for title, compression in COMPRESSED:
        learns = title == "zstd, dictionary"
        with nullcontext() if learns else patch("engine.sstable.train", lambda blocks: b""):

            def build(compression: Compression = compression) -> None:
                load.disk.remove("packed")
                write_table(load.disk, "packed", load.entries, load.block_bytes, compression)

            write_table(load.disk, "packed", load.entries, load.block_bytes, compression)
            building = best_us(build, count)
        table = Table.open(load.disk, "packed")

        def finds(keys: list[Key], table: Table = table) -> None:
            for key in keys:
                if table.may_contain(key):
                    block_no = table.block_of(key)
                    if block_no is not None:
                        block = table.load(block_no, cached_only=False)
                        assert block is not None
                        block.find(key)

        def loads(table: Table = table) -> None:
            for block_no in range(table.block_count):
                table.load(block_no, cached_only=False)

        opening = best_us(lambda: Table.open(load.disk, "packed").close(), 1) / 1000
        size = 100 * table.meta.file_bytes / table.meta.raw_bytes
        memory = table.memory_bytes / table.block_count * 1000
        yield (
            f"{title:17} {building:11.3f} {best_us(lambda: finds(hits), key_count):8.3f} "
            f"{best_us(lambda: finds(misses), key_count):8.3f} "
            f"{best_us(loads, table.block_count):8.3f} {opening:8.3f} {size:8.1f} {memory:8.0f}"
        )
        if table.dictionary_bytes:
            yield f"    a dictionary of {table.dictionary_bytes} bytes"
        elif learns:
            yield "    no dictionary: it would not pay"
        table.close()
        load.disk.remove("packed")


def measure_memory(load: Load, block_count: int) -> Iterator[str]:
    """Yield lines to print: an index of many blocks, as `tracemalloc` sees it."""
    rng = load.rng
    keys = sorted(rng.randbytes(8) + b"\0user:%d" % number for number in range(block_count))
    write_table(load.disk, "many", ((key, COMPLETE, b"v" * 8) for key in keys), 1)
    tracemalloc.start()
    table = Table.open(load.disk, "many")
    traced = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    index_bytes = table.index_bytes / table.block_count * 1000
    yield (
        f"memory                 {index_bytes:7.0f} bytes of index a 1000 blocks, {table.block_count} blocks; "
        f"{traced} bytes in all, said to be {table.memory_bytes}"
    )
    # Made anew, in the order of asking: to fetch keys from all over the memory is not its work.
    asked = [bytes(bytearray(key)) for key in rng.sample(keys, min(20_000, len(keys)))]

    def find_all(keys: list[Key]) -> None:
        exhaust(map(table.block_of, keys))

    yield (
        f"block_of               {best_us(lambda: find_all(asked[:300]), 300):7.3f} µs for 300 keys, "
        f"{best_us(lambda: find_all(asked), len(asked)):.3f} for {len(asked)}"
    )
    table.close()
    load.disk.remove("many")


def measure_merging(load: Load) -> Iterator[str]:
    """Yield lines to print: random parts of the records, a tenth of them in two sources."""
    sources: list[list[Entry]] = [[] for _ in range(SOURCE_COUNT)]
    for entry in load.entries:
        for number in load.rng.sample(range(SOURCE_COUNT), 2 if load.rng.random() < 0.1 else 1):
            sources[number].append(entry)
    total = sum(map(len, sources))
    for number, part in enumerate(sources):
        write_table(load.disk, f"source-{number}", part, load.block_bytes)
    tables = [Table.open(load.disk, f"source-{number}") for number in range(SOURCE_COUNT)]
    grouped = [list(table.groups()) for table in tables]

    def merged(groups: list[Iterator[list[Entry]]]) -> Iterator[list[Entry]]:
        return merge_groups(groups, CODEC, now_ms=1, is_bottom=True)

    def merge_entries() -> None:
        exhaust(merge([iter(part) for part in sources], CODEC, now_ms=1, is_bottom=True))

    def compact() -> None:
        entries = chain.from_iterable(merged([table.groups() for table in tables]))
        write_table(load.disk, "compacted", entries, load.block_bytes)
        load.disk.remove("compacted")

    groups_us = best_us(lambda: exhaust(merged(list(map(iter, grouped)))), total)
    yield f"merge                  {groups_us:7.3f} µs a record in, {SOURCE_COUNT} sources, groups"
    yield f"merge                  {best_us(merge_entries, total):7.3f} µs, single entries"
    reading = best_us(lambda: exhaust(merged([table.groups() for table in tables])), total)
    yield f"read and merge         {reading:7.3f} µs"
    yield f"read, merge and build  {best_us(compact, total):7.3f} µs"


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
        rng = random.Random(1)
        entries = made_entries(rng, given.records, given.value_bytes)
        load = Load(disk, rng, entries, given.block_bytes)
        lines = chain(
            measure_building(load),
            measure_gets(load, min(300, given.records)),
            measure_gets(load, min(20_000, given.records)),
            measure_parts(load),
            measure_memory(load, 10_000),
            measure_memory(load, 100_000),
            measure_merging(load),
            measure_compression(load, min(3000, given.records)),
        )
        for line in lines:
            print(line, flush=True)
        disk.close()


if __name__ == "__main__":
    main()
