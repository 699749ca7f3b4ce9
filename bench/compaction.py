"""What a choice of compactions costs: write, read and space amplification of strategies, without any I/O.

    python -m bench.compaction [--writes 100000] [--keys 40000] [--seed 1]

The real `engine.compaction.choose` runs over tables that are dicts of numbers. A memtable has a
thousand entries; all figures are ratios, so that only the ratio of data to memtable matters (40 by
default). Compaction is done at once, after each flush, until nothing is wanted.

    write    bytes of tables written for each byte flushed; a merged entry costs the worker about 2 µs
    read     tables that a look-up asks (each a look into a Bloom filter): the average, and the most
    space    bytes of tables for each byte that is live: at the end, and the most, with a job's output
             (in the second half of the run)
    job      the largest merge, in memtables: so long flushes wait

Strategies: `leveled` is what the store does. Others are the same with other numbers (`l0` tables of
level 0, `f` the largest factor between levels, `b` memtables in level 1), with LevelDB's fixed targets
(`fixed`), and the size-tiered merging that was here before.
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final
from unittest import mock

from engine import compaction
from engine.compaction import FANOUT_MAX, L0_COUNT, Choice, Shape, choose
from engine.sstable import TableMeta, TagCount

MEMTABLE_ENTRIES: Final = 1000
TABLE_ENTRIES: Final = 500
LIVE_BYTES: Final = 100
DEAD_BYTES: Final = 20
DEAD: Final = -1
EXPIRY_TIMES_MAX: Final = 65
SPACE_INTERVAL: Final = 16  # Half as many flushes: looking at the space takes long.

Rows = dict[int, int]
"""By key: 0 if it lives for ever, DEAD, or the time when it expires."""

Writes = Iterator[tuple[int, int]]
"""Key and what to write, as in `Rows`."""


@dataclass(slots=True)
class SimTable:
    """A table of numbers, and what it says of itself."""

    keys: list[int]
    rows: Rows
    meta: TableMeta

    @classmethod
    def of(cls, keys: list[int], rows: Rows, now: int) -> SimTable:
        values = [rows[key] for key in keys]
        dead = values.count(DEAD)
        expiries = sorted(value for value in values if value > 0)
        step = max(1, -(-len(expiries) // EXPIRY_TIMES_MAX))
        gone = dead + sum(value <= now for value in expiries)
        live = len(keys) - gone
        meta = TableMeta(
            entry_count=len(keys),
            live_count=live,
            raw_bytes=0,
            position_min=0,
            position_max=now,
            expiring_count=len(expiries),
            expiries_ms=tuple([*expiries[:-1:step], expiries[-1]] if expiries else ()),
            key_min=_key(keys[0]),
            key_max=_key(keys[-1]),
            tags={0: TagCount(len(keys), live)},
            block_count=1,
            file_bytes=LIVE_BYTES * live + DEAD_BYTES * gone,
        )
        return cls(keys, dict(zip(keys, values, strict=True)), meta)


def _key(number: int) -> bytes:
    """Numbers as keys: two bytes of slot, and the rest."""
    return number.to_bytes(8, "big")[2:]


@dataclass(slots=True)
class World:
    """The levels, and what was counted."""

    levels: list[list[SimTable]] = field(default_factory=lambda: [[]])
    flushed: Rows = field(default_factory=dict)  # What the tables have to show.
    now: int = 0
    flushed_bytes: int = 0
    compacted_bytes: int = 0
    probes: list[int] = field(default_factory=list)
    space_max: float = 0.0
    temporary_bytes: int = 0  # The most that a job wrote since `space_max` was looked at.
    job_bytes_max: int = 0
    moves: int = 0

    def flush(self, rows: Rows) -> None:
        table = SimTable.of(sorted(rows), rows, self.now)
        self.levels[0].insert(0, table)
        self.flushed.update(rows)
        self.flushed_bytes += table.meta.file_bytes

    def carry_out(self, choice: Choice, *, is_cut: bool) -> None:
        """Do what was chosen."""
        inputs = [self.levels[level][number] for level, number in choice.inputs]
        at = choice.inputs[0][1]
        made = inputs if choice.kind == "move" else self.merged(inputs, choice, is_cut=is_cut)
        if choice.kind == "move":
            self.moves += len(inputs)
        else:
            written = sum(table.meta.file_bytes for table in made)
            self.compacted_bytes += written
            read = sum(table.meta.file_bytes for table in inputs)
            self.job_bytes_max = max(self.job_bytes_max, read)
            self.temporary_bytes = max(self.temporary_bytes, written)
        gone = set(map(id, inputs))
        self.levels = [[t for t in level if id(t) not in gone] for level in self.levels]
        self.levels += [[] for _ in range(choice.level + 1 - len(self.levels))]
        target = self.levels[choice.level]
        if choice.level == 0:
            target[at:at] = made
        else:
            target += made
            target.sort(key=lambda table: table.keys[0])

    def merged(self, inputs: list[SimTable], choice: Choice, *, is_cut: bool) -> list[SimTable]:
        rows: Rows = {}
        for table in reversed(inputs):
            rows.update(table.rows)
        gone = [key for key, value in rows.items() if value and value <= self.now]
        for key in gone:
            if choice.is_bottom:
                del rows[key]
            else:
                rows[key] = DEAD
        keys = sorted(rows)
        step = TABLE_ENTRIES if is_cut and choice.level else max(1, len(keys))
        return [SimTable.of(keys[n : n + step], rows, self.now) for n in range(0, len(keys), step)]

    def space(self, extra_bytes: int = 0) -> float:
        live = sum(not value or value > self.now for value in self.flushed.values())
        held = sum(table.meta.file_bytes for level in self.levels for table in level)
        return (held + extra_bytes) / max(1, LIVE_BYTES * live)

    def look(self) -> None:
        """Count what a read would ask now."""
        self.probes.append(len(self.levels[0]) + sum(map(bool, self.levels[1:])))


Strategy = Callable[[World], Choice | None]


def leveled(base: float = 4, l0_count: int = L0_COUNT, fanout_max: float = FANOUT_MAX) -> Strategy:
    shape = Shape(int(base * MEMTABLE_ENTRIES * LIVE_BYTES), l0_count, fanout_max)
    return lambda world: choose(_metas(world), shape, world.now)


def fixed(base: float = 4, l0_count: int = 4, fanout: float = 10) -> Strategy:
    """As LevelDB has it: level n may have `base * fanout ** (n - 1)`, whatever the data takes."""
    shape = Shape(int(base * MEMTABLE_ENTRIES * LIVE_BYTES), l0_count, fanout)

    def targets(levels: Sequence[Sequence[TableMeta]], shape: Shape) -> list[float]:
        return [shape.base_bytes * fanout**n for n in range(len(levels))]

    def strategy(world: World) -> Choice | None:
        with mock.patch.object(compaction, "targets", targets):
            return choose(_metas(world), shape, world.now)

    return strategy


def size_tiered(world: World) -> Choice | None:
    """Neighbours in age of similar size, four of them: what the store did before it had levels."""
    tables = [table.meta for table in world.levels[0]]
    for start in range(len(tables)):
        size, stop = tables[start].file_bytes, start + 1
        while stop < len(tables) and tables[stop].file_bytes <= 2 * size:
            size = max(size, tables[stop].file_bytes)
            stop += 1
        if stop - start >= 4:
            inputs = [(0, number) for number in range(start, stop)]
            return Choice("compact", inputs, 0, is_bottom=stop == len(tables))
    for number, meta in enumerate(tables):
        if meta.expired_count(world.now) > 0.3 * meta.entry_count:
            return Choice("compact", [(0, number)], 0, is_bottom=number == len(tables) - 1)
    return None


def _metas(world: World) -> list[list[TableMeta]]:
    return [[table.meta for table in level] for level in world.levels]


STRATEGIES: Final[dict[str, Strategy]] = {
    "leveled": leveled(),
    "leveled l0=4": leveled(l0_count=4),
    "leveled l0=16": leveled(l0_count=16),
    "leveled f=4": leveled(fanout_max=4),
    "leveled f=16": leveled(fanout_max=16),
    "leveled b=8": leveled(base=8),
    "fixed f=10 l0=4": fixed(),
    "size-tiered": size_tiered,
}


# Workloads


def overwrites(rng: random.Random, keys: int) -> Writes:
    """Random keys, each written again and again."""
    while True:
        yield rng.randrange(keys), 0


def sequence(rng: random.Random, keys: int) -> Writes:
    """New keys in order: a transfer, slot by slot."""
    number = 0
    while True:
        yield number, 0
        number += 1


def skewed(rng: random.Random, keys: int) -> Writes:
    """Most writes go to few keys, which lie all over."""
    while True:
        yield int(keys * rng.random() ** 4) * 7919 % keys, 0


def deletes(rng: random.Random, keys: int) -> Writes:
    """Every second write deletes."""
    while True:
        yield rng.randrange(keys), 0 if rng.random() < 0.5 else DEAD


def expiries(rng: random.Random, keys: int) -> Writes:
    """New keys all over, which live for as long as half of the data is written."""
    now = 0
    while True:
        now += 1
        yield rng.randrange(1 << 40), now + keys // 2


WORKLOADS: Final = (overwrites, sequence, skewed, deletes, expiries)


def simulate(strategy: Strategy, writes: Writes, count: int) -> World:
    """Do so many writes, and all compactions that they call for."""
    world = World()
    memtable: Rows = {}
    for _ in range(count):
        key, value = next(writes)
        memtable[key] = value
        world.now += 1
        if len(memtable) == MEMTABLE_ENTRIES:
            world.flush(memtable)
            memtable = {}
            is_due = len(world.probes) % SPACE_INTERVAL == 0
            world.look()
            while (choice := strategy(world)) is not None:
                world.carry_out(choice, is_cut=strategy is not size_tiered)
            world.look()
            if is_due and world.now > count // 2:
                world.space_max = max(world.space_max, world.space(world.temporary_bytes))
                world.temporary_bytes = 0
    return world


def line_of(name: str, world: World) -> str:
    written = (world.flushed_bytes + world.compacted_bytes) / world.flushed_bytes
    probes = world.probes[len(world.probes) // 2 :]
    read = f"{sum(probes) / len(probes):5.1f} {max(probes):4d}"
    job = world.job_bytes_max / (MEMTABLE_ENTRIES * LIVE_BYTES)
    return (
        f"  {name:<17} {written:6.2f} {read}   {world.space():5.2f} {world.space_max:5.2f}"
        f" {job:7.1f} {world.moves:6d}"
    )


def check(world: World) -> None:
    """The tables show what was flushed last, and those of a deeper level do not overlap."""
    seen: Rows = {}
    for level in reversed(world.levels):
        for table in reversed(level):
            seen.update(table.rows)
    for key, value in world.flushed.items():
        is_live = not value or value > world.now
        found = seen.get(key, DEAD)
        assert found == value if is_live else found and found <= world.now, "a wrong version"
    for level in world.levels[1:]:
        ends = [key for table in level for key in (table.keys[0], table.keys[-1])]
        assert ends == sorted(ends), "tables of a level overlap"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--writes", type=int, default=100_000)
    parser.add_argument("--keys", type=int, default=40_000)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    began = time.monotonic()
    for workload in WORKLOADS:
        print(f"{workload.__name__}: {workload.__doc__}")
        print("  strategy           write  read  max   space   max     job  moves")
        for name, strategy in STRATEGIES.items():
            writes = workload(random.Random(arguments.seed), arguments.keys)
            world = simulate(strategy, writes, arguments.writes)
            check(world)
            print(line_of(name, world), flush=True)
    print(f"{arguments.writes} writes in {time.monotonic() - began:.0f} s")


if __name__ == "__main__":
    main()
