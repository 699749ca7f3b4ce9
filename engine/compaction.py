"""Which tables to merge: a pure function of what the tables say of themselves.

**Levels.** Level 0 holds what was flushed, newest first, overlapping. Each deeper level is a run of
tables whose keys do not overlap. Level 0 is merged into level 1 when it has `l0_count` tables; a
deeper level has a target of bytes, and what is above it goes down, table by table, into those of the
next level that it overlaps.

**The shape** is lazier than LevelDB's, because its prices are other ones here. Merging costs Python
about 2 µs an entry, and flushes wait for the same worker; a table of level 0 costs a read one more
look-up in a Bloom filter, 0.1 µs beside the 3 µs of the read. `bench/compaction.py` shows what follows:

- Level 0 gathers 8 tables and not 4. What level 1 already holds is rewritten at each merge, so that
  twice as many at a time cost that half as often: a fifth to a quarter of all that is written. With 16
  it would be a little less, but merges get so large that flushes wait for them.
- Targets are not powers of ten. They grow evenly from level 1 to what all data takes, by a factor of
  at most `fanout_max`, and the deepest level has none. So there is never a level that has just begun
  or is just above its target, which costs most, and the upper levels are small beside the last.
- A level above its target gives the table for which the fewest bytes below have to be rewritten. That
  needs no memory of where it was the last time, and writes less than going round by key.
- A table that overlaps nothing below is moved: only the manifest changes. Loading in order of keys
  (a transfer, slot by slot) costs no merging at all.

Size-tiered merging, which was here before, writes a fifth to a half less. But its space is that of
all the versions that it keeps (up to twice the data, and three times while it merges it), and its
jobs are as large as the data, while flushes wait.

**What is gone.** A table of which all has been dropped is removed unread. One whose entries have mostly
expired or been dropped is rewritten alone, so that space comes back without a read. At the bottom
the dead are left out, up to the horizon; so a table there is rewritten also when many of its entries
are stubs and the horizon has passed it. A deletion takes little room and hides a lot below, so it
counts toward a level's size as much as what it may hide: deletions go down early.

Core. Sources: O'Neil et al., the log-structured merge tree; LevelDB's levels; RocksDB's level sizes
that follow the data and its choice by least overlap; Pebble's compensated sizes; Dayan and
Idreos, "Dostoevsky", on lazy levels.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from math import ceil, log
from operator import attrgetter
from typing import Final

from engine.drop import hidden_count, is_hidden
from engine.job import EVERYTHING
from engine.manifest import Drop
from engine.sstable import TableMeta

L0_COUNT: Final = 8  # Tables of level 0 that are merged into level 1 together.
FANOUT_MAX: Final = 10.0  # How many times the level above it a level may be.
GONE_SHARE: Final = 0.3  # Of a table's entries, from which it is rewritten alone.
DROPS_MAX: Final = 64  # Drops that may wait until their tables are merged anyway.
LEVELS_MAX: Final = 16  # A bound for the arithmetic: data never gets there.

Place = tuple[int, int]
"""A table by its level and its number in it."""

_key_min = attrgetter("key_min")
_key_max = attrgetter("key_max")


@dataclass(frozen=True, slots=True)
class Shape:
    """How the levels should be. `base_bytes` is the least target of level 1."""

    base_bytes: int
    l0_count: int = L0_COUNT
    fanout_max: float = FANOUT_MAX


@dataclass(frozen=True, slots=True)
class Choice:
    """What to do: a job's kind, the tables from newest to oldest, the level where the output belongs."""

    kind: str
    inputs: list[Place]
    level: int
    is_bottom: bool = False


@dataclass(frozen=True, slots=True)
class _State:
    """What a choice is made from."""

    levels: Sequence[Sequence[TableMeta]]
    now_ms: int
    drops: Sequence[Drop]
    horizon_position: int

    def overlapping(self, level: int, key_min: bytes, key_max: bytes) -> range:
        """The numbers of the tables of a deeper level that have such keys."""
        if level >= len(self.levels):
            return range(0)
        tables = self.levels[level]
        first = bisect_left(tables, key_min, key=_key_max)
        return range(first, max(first, bisect_right(tables, key_max, key=_key_min)))

    def is_bottom(self, inputs: list[Place], level: int) -> bool:
        """Whether no table outside of the inputs holds older entries of their keys.

        Such are the deeper levels of the output's, and of level 0 what is older than an input.
        """
        metas = [self.levels[of][number] for of, number in inputs]
        key_min, key_max = min(map(_key_min, metas)), max(map(_key_max, metas))
        if any(
            self.overlapping(deeper, key_min, key_max)
            for deeper in range(level + 1, len(self.levels))
        ):
            return False
        newest = min((number for of, number in inputs if of == 0), default=len(self.levels[0]))
        return not any(
            (0, number) not in inputs and _overlaps(self.levels[0][number], key_min, key_max)
            for number in range(newest + 1, len(self.levels[0]))
        )


def choose(
    levels: Sequence[Sequence[TableMeta]],
    shape: Shape,
    now_ms: int,
    drops: Sequence[Drop] = (),
    horizon_position: int = EVERYTHING,
) -> Choice | None:
    """Return what to do with the tables of `levels` now, or None.

    `levels[0]` is newest first and there even if it is empty, the others are by key. `drops` are
    those that the job will carry out, and no others: a table that stays as it is would be chosen
    for ever.
    """
    state = _State(levels, now_ms, drops, horizon_position)
    return _removal(state) or _overflow(state, shape) or _rewriting(state)


def targets(levels: Sequence[Sequence[TableMeta]], shape: Shape) -> list[float]:
    """Return how many bytes each level from 1 on may have; the deepest, which may have all, is left out."""
    total_bytes = sum(meta.file_bytes for meta in chain.from_iterable(levels))
    ratio = max(1.0, total_bytes / max(shape.base_bytes, 1))
    deepest = max([1, *(n for n in range(1, len(levels)) if levels[n])])
    wanted = min(LEVELS_MAX, 1 + ceil(log(ratio) / log(shape.fanout_max)))
    last = max(deepest, wanted)
    factor = ratio ** (1 / max(1, last - 1))
    return [max(shape.base_bytes, 1) * factor**n for n in range(last - 1)]


def _removal(state: _State) -> Choice | None:
    """All of what a drop has emptied: no table is read for that."""
    if not state.drops:
        return None
    gone = [place for place, meta in _places(state.levels) if is_hidden(meta, state.drops)]
    return Choice("remove", gone, 0) if gone else None


def _overflow(state: _State, shape: Shape) -> Choice | None:
    """What goes down from the level that is fullest by its measure, of equals the upper one."""
    fullest = len(state.levels[0]) / shape.l0_count
    chosen, chosen_excess = (0, 0.0) if fullest >= 1.0 else (-1, 0.0)
    for level, target in enumerate(targets(state.levels, shape), 1):
        if level == len(state.levels):
            break
        extra = _average_below(state.levels, level)
        size = sum(meta.file_bytes + extra * _dead(meta) for meta in state.levels[level])
        if size > target and size / target > fullest:
            fullest = size / target
            chosen, chosen_excess = level, size - target
    if chosen < 0:
        return None
    return _from_level(state, chosen, chosen_excess) if chosen else _from_level_0(state)


def _from_level_0(state: _State) -> Choice:
    """The oldest table, with all that overlap: an older version must not stay above a newer one."""
    tables = state.levels[0]
    chosen = {len(tables) - 1}
    key_min, key_max = tables[-1].key_min, tables[-1].key_max
    is_growing = True
    while is_growing:
        is_growing = False
        for number, meta in enumerate(tables):
            if number not in chosen and _overlaps(meta, key_min, key_max):
                chosen.add(number)
                key_min, key_max = min(key_min, meta.key_min), max(key_max, meta.key_max)
                is_growing = True
    above = [(0, number) for number in sorted(chosen)]
    below = [(1, number) for number in state.overlapping(1, key_min, key_max)]
    if len(above) == 1 and not below:
        return Choice("move", above, 1)
    inputs = above + below
    return Choice("compact", inputs, 1, state.is_bottom(inputs, 1))


def _from_level(state: _State, level: int, excess: float) -> Choice:
    """Tables that overlap nothing below, as many as are too many; or else the cheapest one."""
    tables = state.levels[level]
    below = state.levels[level + 1] if level + 1 < len(state.levels) else []
    extra = _average_below(state.levels, level)
    free: list[Place] = []
    best, least = 0, float("inf")
    for number, meta in enumerate(tables):
        under = state.overlapping(level + 1, meta.key_min, meta.key_max)
        if not under:
            free.append((level, number))
            excess -= meta.file_bytes
            if excess <= 0:
                break
        cost = sum(below[n].file_bytes for n in under) / (meta.file_bytes + extra * _dead(meta) + 1)
        if cost < least:
            best, least = number, cost
    if free:
        return Choice("move", free, level + 1)
    meta = tables[best]
    under = state.overlapping(level + 1, meta.key_min, meta.key_max)
    inputs = [(level, best), *((level + 1, number) for number in under)]
    return Choice("compact", inputs, level + 1, state.is_bottom(inputs, level + 1))


def _rewriting(state: _State) -> Choice | None:
    """A table of which much is gone, rewritten where it is."""
    share = GONE_SHARE if len(state.drops) <= DROPS_MAX else 0.0
    for place, meta in _places(state.levels):
        expired = meta.expired_count(state.now_ms)
        dropped = hidden_count(meta, state.drops) if state.drops else 0
        stubs = _dead(meta) if meta.position_max <= state.horizon_position else 0
        enough = GONE_SHARE * max(meta.entry_count, 1)
        if max(expired, dropped, expired + stubs) <= enough and dropped <= share * meta.entry_count:
            continue
        is_bottom = state.is_bottom([place], place[0])
        if max(expired, dropped) > enough or dropped > share * meta.entry_count or is_bottom:
            return Choice("compact", [place], place[0], is_bottom)
    return None


def _places(levels: Sequence[Sequence[TableMeta]]) -> Iterator[tuple[Place, TableMeta]]:
    for level, tables in enumerate(levels):
        for number, meta in enumerate(tables):
            yield (level, number), meta


def _overlaps(meta: TableMeta, key_min: bytes, key_max: bytes) -> bool:
    return meta.key_min <= key_max and key_min <= meta.key_max


def _dead(meta: TableMeta) -> int:
    """How many stubs a table has, as of writing."""
    return meta.entry_count - meta.live_count


def _average_below(levels: Sequence[Sequence[TableMeta]], level: int) -> float:
    """How many bytes an entry of the deeper levels has."""
    below = list(chain.from_iterable(levels[level + 1 :]))
    entry_count = sum(meta.entry_count for meta in below)
    return sum(meta.file_bytes for meta in below) / entry_count if entry_count else 0.0
