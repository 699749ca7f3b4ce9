"""The choice of tables: golden pictures of levels, and laws over long random runs."""

from __future__ import annotations

import random
from dataclasses import replace
from itertools import pairwise

import pytest

from engine.compaction import (
    DROPS_MAX,
    FANOUT_MAX,
    GONE_SHARE,
    L0_COUNT,
    Choice,
    Shape,
    choose,
    targets,
)
from engine.manifest import ALL_TAGS, Drop
from engine.sstable import TableMeta, TagCount

NOW_MS = 1000
SHAPE = Shape(base_bytes=40, l0_count=4, fanout_max=10)
Levels = list[list[TableMeta]]


def table(
    file_bytes: int = 10,
    keys: str = "az",
    *,
    entries: int = 100,
    dead: int = 0,
    expired: int = 0,
    tags: dict[int, int] | None = None,
    position_max: int = 0,
    slots: tuple[int, int] = (0, 0),
) -> TableMeta:
    """`expired` entries expired before now, and none will; `tags` are entries by tag."""
    counts = tags or {0: entries}
    return TableMeta(
        entry_count=entries,
        live_count=entries - dead,
        raw_bytes=file_bytes,
        position_min=0,
        position_max=position_max,
        expiring_count=expired,
        expiries_ms=(NOW_MS - 1, NOW_MS) if expired > 1 else (NOW_MS,) * expired,
        key_min=slots[0].to_bytes(2, "big") + keys[0].encode(),
        key_max=slots[1].to_bytes(2, "big") + keys[-1].encode(),
        tags={tag: TagCount(count, count) for tag, count in counts.items()},
        block_count=1,
        file_bytes=file_bytes,
    )


def pictured(picture: str) -> Levels:
    """`az*10 az*10 | am*20 nz*20`: levels of tables, each by its keys and its bytes."""
    return [
        [table(int(word[3:]), word[:2]) for word in level.split()] for level in picture.split("|")
    ]


def shown(choice: Choice | None) -> str:
    if choice is None:
        return "none"
    places = " ".join(f"{level}.{number}" for level, number in choice.inputs)
    return f"{choice.kind} {places} -> {choice.level}{' bottom' if choice.is_bottom else ''}"


# Of four tables in level 0, and 40 bytes at least in level 1.
GOLDEN = """
Nothing, or not enough
    |                                                    none
    az*9 az*9 az*9                                       none
    | am*20 nz*20                                        none
Level 0 goes down with all of level 1 that it overlaps
    az*9 az*9 az*9 az*9                                  compact 0.0 0.1 0.2 0.3 -> 1 bottom
    az*9 az*9 az*9 az*9 | am*20 nz*20                    compact 0.0 0.1 0.2 0.3 1.0 1.1 -> 1 bottom
    bc*9 bd*9 bc*9 bd*9 | aa*9 am*9 nz*9                 compact 0.0 0.1 0.2 0.3 1.1 -> 1 bottom
    az*9 az*9 az*9 az*9 | am*20 | nz*300                 compact 0.0 0.1 0.2 0.3 1.0 -> 1
    ab*9 ab*9 ab*9 ab*9 | am*20 | nz*300                 compact 0.0 0.1 0.2 0.3 1.0 -> 1 bottom
    ab*9 ab*9 ab*9 ab*9 | ap*20 | nz*300                 compact 0.0 0.1 0.2 0.3 1.0 -> 1
The oldest table takes with it what overlaps it, also over others, and leaves the rest
    xz*9 ac*9 bd*9 cf*9                                  compact 0.1 0.2 0.3 -> 1 bottom
    xz*9 ac*9 bd*9 ef*9 | eg*9                           compact 0.3 1.0 -> 1 bottom
    ef*9 ac*9 bd*9 eg*9 | aa*9                           compact 0.0 0.3 -> 1 bottom
What overlaps nothing is moved
    xz*9 ac*9 bd*9 ef*9                                  move 0.3 -> 1
    xz*9 ac*9 bd*9 ef*9 | gh*9                           move 0.3 -> 1
    xz*9 ac*9 bd*9 ef*9 | gh*9 | aj*300                  move 0.3 -> 1
A level above its target gives what costs least below
    | ae*30 fz*30 | ab*99 cd*99 fg*99                    compact 1.1 2.2 -> 2 bottom
    | ae*15 fz*50 | ab*99 cd*99 ez*130                   compact 1.1 2.2 -> 2 bottom
    | ae*90 fz*9 | ab*99 cd*99 fg*99                     compact 1.0 2.0 2.1 -> 2 bottom
    | ae*30 fz*30 | ab*99 cd*99 fg*99 | hh*700           compact 1.1 2.2 -> 2
    | ae*90 | ad*100 ee*20 | ab*50 xz*60                 compact 1.0 2.0 2.1 -> 2
... or what overlaps nothing, as much as is too much
    | ab*30 cd*30 ef*30 | ef*200                         move 1.0 1.1 -> 2
    | ab*90 cd*30 ef*30 gh*300                           move 1.0 1.1 1.2 1.3 -> 2
The fullest level first
    az*9 az*9 az*9 az*9 | az*90 | az*200                 compact 1.0 2.0 -> 2 bottom
    az*9 az*9 az*9 az*9 | az*40 | az*200                 compact 0.0 0.1 0.2 0.3 1.0 -> 1
"""


@pytest.mark.parametrize(
    "line", [line.strip() for line in GOLDEN.split("\n") if line.startswith("    ")]
)
def test_golden_choices(line: str) -> None:
    picture, _, expected = line.partition("  ")
    assert shown(choose(pictured(picture), SHAPE, NOW_MS)) == expected.strip()


def test_targets_grow_evenly_to_what_all_data_takes() -> None:
    def of(total_bytes: int) -> list[int]:
        return [round(n) for n in targets([[table(total_bytes)]], replace(SHAPE, base_bytes=10))]

    assert of(0) == of(10) == []
    assert of(11) == of(99) == [10]
    assert of(101) == [10, 32]
    assert of(1000) == [10, 100]
    assert of(10_000) == [10, 100, 1000]
    # A level that is there counts, also when the data would need fewer.
    assert targets([[], [], [], [table(10)]], SHAPE) == [40, 40]


def test_deletions_go_down_before_what_hides_nothing() -> None:
    """By their bytes level 1 is small, and its second table the one to take."""
    full, stubs = table(25, "ae"), table(14, "fz", dead=90)
    below = [table(150, "ae"), table(160, "fz")]
    assert choose([[], [full, replace(stubs, live_count=100)], below], SHAPE, NOW_MS) is None
    chosen = choose([[], [full, stubs], below], SHAPE, NOW_MS)
    assert shown(chosen) == "compact 1.1 2.1 -> 2 bottom"


# What is gone


def test_a_table_that_mostly_expired_is_rewritten_where_it_is() -> None:
    levels = [[table(1), table(10, expired=30)], [table(30, expired=31)]]
    assert shown(choose(levels, SHAPE, NOW_MS)) == "compact 1.0 -> 1 bottom"
    assert choose(levels, SHAPE, NOW_MS - 2) is None
    levels = [[table(1), table(10, expired=31)], [table(30)]]
    assert shown(choose(levels, SHAPE, NOW_MS)) == "compact 0.1 -> 0"
    levels = [[table(1), table(10, expired=31), table(1, "bc")]]
    assert shown(choose(levels, SHAPE, NOW_MS)) == "compact 0.1 -> 0"
    assert shown(choose([*levels[:1], []], SHAPE, NOW_MS)) == "compact 0.1 -> 0"
    levels = [[table(1, "bc"), table(10, expired=31)]]
    assert shown(choose(levels, SHAPE, NOW_MS)) == "compact 0.1 -> 0 bottom"


def test_stubs_are_worth_rewriting_only_at_the_bottom_and_up_to_the_horizon() -> None:
    levels = [[], [table(30, dead=31, position_max=7)]]
    assert shown(choose(levels, SHAPE, NOW_MS, (), 7)) == "compact 1.0 -> 1 bottom"
    assert choose(levels, SHAPE, NOW_MS, (), 6) is None
    assert choose([*levels, [table(30)]], SHAPE, NOW_MS, (), 7) is None
    assert shown(choose([*levels, [table(30, "AZ")]], SHAPE, NOW_MS, (), 7)).startswith("compact 1")
    few = [[], [table(30, dead=20, expired=11, position_max=7)]]
    assert shown(choose(few, SHAPE, NOW_MS, (), 7)) == "compact 1.0 -> 1 bottom"
    assert choose(few, SHAPE, NOW_MS - 2, (), 7) is None


def test_a_table_of_which_all_was_dropped_is_removed_unread() -> None:
    one, two = table(tags={1: 60, 2: 40}, position_max=5), table(tags={1: 100}, position_max=5)
    assert shown(choose([[one, two]], SHAPE, NOW_MS, [Drop(6, 1), Drop(6, 2)])) == (
        "remove 0.0 0.1 -> 0"
    )
    assert shown(choose([[one], [two]], SHAPE, NOW_MS, [Drop(6, ALL_TAGS)])).startswith("remove")
    assert shown(choose([[table(position_max=6), two]], SHAPE, NOW_MS, [Drop(6, 1)])) == (
        "remove 0.1 -> 0"
    )
    slots = table(slots=(3, 5), position_max=5)
    assert shown(choose([[slots]], SHAPE, NOW_MS, [Drop(6, ALL_TAGS, 3, 5)])) == "remove 0.0 -> 0"
    partly = [Drop(6, ALL_TAGS, 3, 4), Drop(6, ALL_TAGS, 4, 4)]  # As many slots, and not all.
    assert shown(choose([[slots]], SHAPE, NOW_MS, partly)) == "compact 0.0 -> 0 bottom"


def test_a_table_that_was_mostly_dropped_is_rewritten_alone() -> None:
    def chosen(drops: list[Drop], tags: dict[int, int]) -> str:
        levels = [[table(1, position_max=9), table(10, tags=tags, position_max=5)]]
        return shown(choose(levels, SHAPE, NOW_MS, drops))

    assert chosen([Drop(6, 1)], {1: 31, 2: 69}) == "compact 0.1 -> 0 bottom"
    assert chosen([Drop(6, 1), Drop(7, 1), Drop(6, 9)], {1: 31, 2: 69}).startswith("compact 0.1")
    # Written after the drop, too few, or another keyspace.
    assert chosen([Drop(5, 1)], {1: 31, 2: 69}) == "none"
    assert chosen([Drop(6, 9)], {1: 31, 2: 69}) == "none"
    assert chosen([Drop(6, 1)], {1: 30, 2: 70}) == "none"


def test_slots_count_by_their_share_of_the_table() -> None:
    levels = [[table(slots=(10, 19), position_max=5)]]
    assert choose(levels, SHAPE, NOW_MS, [Drop(6, ALL_TAGS, 0, 12)]) is None
    assert choose(levels, SHAPE, NOW_MS, [Drop(6, ALL_TAGS, 20, 99)]) is None
    assert choose(levels, SHAPE, NOW_MS, [Drop(6, ALL_TAGS, 0, 13)]) is not None
    assert choose(levels, SHAPE, NOW_MS, [Drop(6, ALL_TAGS, s, s) for s in (10, 12, 14, 16)])


def test_many_drops_do_not_lie_about_for_ever() -> None:
    levels = [[table(slots=(10, 9999), position_max=5)]]
    drops = [Drop(6, ALL_TAGS, 2 * slot, 2 * slot) for slot in range(5, 5 + DROPS_MAX)]
    assert choose(levels, SHAPE, NOW_MS, drops) is None
    drops.append(Drop(6, ALL_TAGS, 20_000, 20_000))
    assert shown(choose(levels, SHAPE, NOW_MS, drops)) == "compact 0.0 -> 0 bottom"


# Long runs


def carried_out(levels: Levels, choice: Choice) -> Levels:
    """What a job makes of it: merged tables have all bytes, and are cut where they are large."""
    gone = set(choice.inputs)
    inputs = [levels[level][number] for level, number in choice.inputs]
    after = [
        [meta for number, meta in enumerate(tables) if (level, number) not in gone]
        for level, tables in enumerate(levels)
    ]
    after += [[] for _ in range(choice.level + 1 - len(after))]
    made = inputs
    if choice.kind == "compact":
        low = min(int.from_bytes(meta.key_min, "big") for meta in inputs)
        high = max(int.from_bytes(meta.key_max, "big") for meta in inputs)
        total = sum(meta.file_bytes for meta in inputs)
        count = min(max(1, total // 20), high - low + 1)
        bounds = [low + (high - low + 1) * n // count for n in range(count + 1)]
        made = [spanning(bounds[n], bounds[n + 1] - 1, total // count) for n in range(count)]
    after[choice.level] = sorted(after[choice.level] + made, key=lambda meta: meta.key_min)
    return after


def spanning(low: int, high: int, file_bytes: int) -> TableMeta:
    meta = table(file_bytes)
    return replace(meta, key_min=low.to_bytes(4, "big"), key_max=high.to_bytes(4, "big"))


@pytest.mark.parametrize("seed", range(8))
def test_the_levels_stay_in_order_and_in_shape(seed: int) -> None:
    """Of flushes of any size and width: each choice is allowed, they end, and every level is within its target."""
    rng = random.Random(seed)
    levels: Levels = [[]]
    flushed = written = 0
    for _ in range(400):
        low = rng.randrange(1 << 20)
        width = rng.choice([1 << 20, 1 << 20, 1 << 12, 1])
        meta = spanning(low, min(low + width, (1 << 20) + 1), rng.randrange(1, 20))
        levels = [[meta, *levels[0]], *levels[1:]]
        flushed += meta.file_bytes
        for _ in range(300):
            choice = choose(levels, SHAPE, NOW_MS)
            if choice is None:
                break
            check_choice(levels, choice)
            if choice.kind == "compact":
                written += sum(levels[level][n].file_bytes for level, n in choice.inputs)
            levels = carried_out(levels, choice)
        else:
            pytest.fail("it never ends")
        assert len(levels[0]) < SHAPE.l0_count
        for target, tables in zip(targets(levels, SHAPE), levels[1:], strict=False):
            assert sum(meta.file_bytes for meta in tables) <= target
        for tables in levels[1:]:
            for left, right in pairwise(tables):
                assert left.key_max < right.key_min
    assert len(levels) > 2
    assert written < 12 * flushed


def check_choice(levels: Levels, choice: Choice) -> None:
    """Nothing newer goes below something older, and the bottom is one."""
    inputs = set(choice.inputs)
    for level, number in inputs:
        meta = levels[level][number]
        assert level <= choice.level
        # Older versions above the output, and all of the output's level, must take part.
        for other, tables in enumerate(levels[: choice.level + 1]):
            for n, older in enumerate(tables):
                is_older = other > level or (other == level == 0 and n > number)
                if (other, n) not in inputs and is_older and choice.level > 0:
                    assert not (older.key_min <= meta.key_max and meta.key_min <= older.key_max)
    if choice.is_bottom:
        low = min(levels[level][n].key_min for level, n in inputs)
        high = max(levels[level][n].key_max for level, n in inputs)
        for tables in levels[choice.level + 1 :]:
            assert not any(meta.key_min <= high and low <= meta.key_max for meta in tables)


def test_the_numbers_that_the_docstring_speaks_of() -> None:
    assert (L0_COUNT, FANOUT_MAX, GONE_SHARE) == (8, 10.0, 0.3)
    shape = Shape(40)
    assert choose([[table(1)] * (L0_COUNT - 1)], shape, NOW_MS) is None
    assert choose([[table(1)] * L0_COUNT], shape, NOW_MS) is not None
