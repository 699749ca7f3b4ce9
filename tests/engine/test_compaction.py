"""The choice of tables: a golden table, and what it does to the number of tables in a long run."""

from __future__ import annotations

import random
from math import log2

import pytest

from engine.compaction import GONE_SHARE, TIER_COUNT, choose
from engine.manifest import Drop
from engine.sstable import TableMeta, TagCount

NOW_MS = 1000


def table(
    file_bytes: int,
    *,
    entries: int = 100,
    expired: int = 0,
    tags: dict[int, int] | None = None,
    position_max: int = 0,
) -> TableMeta:
    """`expired` entries expired before now, and none will; `tags` are entries by tag."""
    counts = tags or {0: entries}
    return TableMeta(
        entry_count=entries,
        live_count=entries,
        raw_bytes=file_bytes,
        position_min=0,
        position_max=position_max,
        expiring_count=expired,
        expiries_ms=(NOW_MS - 1, NOW_MS) if expired > 1 else (NOW_MS,) * expired,
        key_min=b"\0\0a",
        key_max=b"\0\0z",
        tags={tag: TagCount(count, count) for tag, count in counts.items()},
        block_count=1,
        file_bytes=file_bytes,
    )


GOLDEN = """
# sizes, newest first                 the merged ones
-                                     none
1                                     none
1 1 1                                 none
1 1 1 1                               0-3
1 1 1 1 1 1                           0-5
1 2 4 8                               0-3
1 3 9 27 81                           none
1 2 4 9                               none
1 1 1 3                               none
1 1 1 8 8 8 64 64 64                  none
1 1 1 8 8 8 8                         3-6
1 1 1 1 8 8 8 8                       0-3
8 1 1 1                               0-3
100 1 1 1 1                           0-4
100 1 1 1 300                         0-3
1 100 100 100 100                     1-4
2 3 5 9 100 100                       0-3
0 0 0 0                               0-3
0 0 0 5                               none
10 20 40 81                           none
10 20 40 80                           0-3
"""


@pytest.mark.parametrize("line", [line for line in GOLDEN.split("\n") if line and line[0] != "#"])
def test_golden_choices(line: str) -> None:
    sizes, _, expected = line.replace("-    ", "     ", 1).rpartition(" ")
    chosen = choose([table(int(size)) for size in sizes.split()], NOW_MS)
    shown = "none" if chosen is None else f"{chosen.start}-{chosen.stop - 1}"
    assert shown == expected


@pytest.mark.parametrize("seed", range(10))
def test_the_number_of_tables_stays_logarithmic_and_so_does_the_work(seed: int) -> None:
    """A long run of flushes of varied size: what a read may have to ask, and how often a byte is rewritten."""
    rng = random.Random(seed)
    tables: list[int] = []
    total = rewritten = most = 0
    for _ in range(4000):
        size = rng.choice([100, 100, 100, rng.randrange(1, 200)])
        tables.insert(0, size)
        total += size
        while (chosen := choose([table(size) for size in tables], NOW_MS)) is not None:
            merged = sum(tables[chosen])
            rewritten += merged
            tables[chosen] = [merged]
        most = max(most, len(tables))
        assert len(tables) <= (TIER_COUNT - 1) * (log2(total) + 1)
    assert most <= 30
    assert rewritten <= total * log2(total)


@pytest.mark.parametrize("seed", range(50))
def test_a_choice_is_a_run_of_neighbours_that_makes_fewer_or_smaller_tables(seed: int) -> None:
    rng = random.Random(seed)
    tables = [
        table(rng.randrange(1 << rng.randrange(1, 20)), expired=rng.choice([0, 0, 0, 20, 50]))
        for _ in range(rng.randrange(12))
    ]
    chosen = choose(tables, NOW_MS)
    if chosen is None:
        assert all(meta.expired_count(NOW_MS) <= 30 for meta in tables)
        return
    count = chosen.stop - chosen.start
    assert 0 <= chosen.start < chosen.stop <= len(tables)
    assert count >= TIER_COUNT or (
        count == 1 and tables[chosen.start].expired_count(NOW_MS) > GONE_SHARE * 100
    )


def test_a_table_that_mostly_expired_is_rewritten_alone() -> None:
    tables = [table(1), table(10, expired=30), table(100, expired=31)]
    assert choose(tables, NOW_MS) == slice(2, 3)
    assert choose(tables, NOW_MS - 2) is None
    assert choose(tables[:2], NOW_MS) is None


def test_tables_of_a_size_go_first() -> None:
    tables = [table(100, expired=100), table(1000), table(1), table(1), table(1), table(1)]
    assert choose(tables, NOW_MS) == slice(1, 6)


def test_a_table_that_was_mostly_dropped_is_rewritten_alone() -> None:
    tables = [table(1, position_max=9), table(10, tags={1: 31, 2: 69}, position_max=5)]
    assert choose(tables, NOW_MS, [Drop(6, 1)]) == slice(1, 2)
    assert choose(tables, NOW_MS, [Drop(6, 1), Drop(7, 1), Drop(6, 9)]) == slice(1, 2)
    assert choose(tables, NOW_MS, [Drop(10, 0)]) == slice(0, 1)
    # Written after the drop, too few, or another keyspace.
    assert choose(tables, NOW_MS, [Drop(5, 1)]) is None
    assert choose(tables, NOW_MS, [Drop(6, 9)]) is None
    few = table(10, tags={1: 30, 2: 70}, position_max=5)
    assert choose([few], NOW_MS, [Drop(6, 1)]) is None
    assert choose([few], NOW_MS, [Drop(6, 1), Drop(6, 2)]) == slice(0, 1)
