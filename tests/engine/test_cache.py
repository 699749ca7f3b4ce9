"""Caches: bounded, least recently used first, and never a wrong answer."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from engine.block import Block, encode_block
from engine.cache import BlockCache, RowCache


def block(size: int = 1000) -> Block:
    return Block(encode_block([b"key"], [1], [bytes(size)]))


def test_a_block_is_found_until_it_is_pushed_out() -> None:
    cache = BlockCache(20_000)
    first = block()
    cache.put((1, 0), first)
    assert cache.get((1, 0)) is first
    assert cache.get((1, 1)) is None
    assert cache.get((2, 0)) is None
    for number in range(1, 100):
        cache.put((1, number), block())
    assert cache.get((1, 0)) is None
    assert cache.get((1, 99)) is not None
    assert (cache.hit_count, cache.miss_count) == (2, 3)


def test_a_block_in_use_stays() -> None:
    cache = BlockCache(20_000)
    cache.put((1, 0), block())
    for number in range(1, 100):
        cache.put((1, number), block())
        assert cache.get((1, 0)) is not None


def test_the_blocks_of_a_dropped_table_make_room_first() -> None:
    cache = BlockCache(20_000)
    weight = filled(cache, 1, 5)
    while cache.bytes_used + weight <= cache.bytes_max:
        cache.put((2, len(cache)), block())
    youngest = len(cache) - 1
    cache.drop_table(2)
    cache.drop_table(3)
    # As many as the dropped table had: none of the live ones goes for them, though they are older.
    for number in range(5, youngest + 1):
        cache.put((1, number), block())
        assert cache.bytes_used <= cache.bytes_max
    assert all(cache.get((1, number)) is not None for number in range(youngest + 1))
    assert all(cache.get((2, number)) is None for number in range(youngest + 1))
    cache.put((1, youngest + 1), block())
    assert cache.get((1, 0)) is None


def test_the_blocks_of_a_dropped_table_go_as_others_come() -> None:
    cache = BlockCache(100_000)
    weight = filled(cache, 1, 50)
    cache.drop_table(1)
    assert len(cache) == 50  # Not at once: that would take long for many.
    for number in range(1, 20):
        cache.put((2, number), block())
        assert len(cache) >= 50 - 4 * number
    assert len(cache) == 19
    assert cache.bytes_used == 19 * weight
    assert all(cache.get((2, number)) is not None for number in range(1, 20))


def test_a_cache_of_dropped_tables_can_be_emptied() -> None:
    cache = BlockCache(100_000)
    filled(cache, 1, 50)
    cache.drop_table(1)
    cache.resize(0)
    assert (cache.bytes_used, len(cache)) == (0, 0)


def test_a_block_that_comes_after_its_table_was_dropped_goes_with_it() -> None:
    cache = BlockCache(20_000)
    filled(cache, 1, 100)
    cache.drop_table(1)
    cache.put((1, 3), block())
    filled(cache, 2, 100)
    assert cache.get((1, 3)) is None
    assert cache.bytes_used <= cache.bytes_max


def filled(cache: BlockCache, table_id: int, count: int) -> int:
    """Put blocks of a table; returns what one weighs."""
    for number in range(count):
        cache.put((table_id, number), block())
    return cache.bytes_used // len(cache)


def test_a_huge_block_does_not_drive_out_the_others() -> None:
    cache = BlockCache(20_000)
    cache.put((1, 0), block())
    cache.put((1, 1), block(15_000))
    assert cache.get((1, 0)) is not None
    assert cache.get((1, 1)) is None


@pytest.mark.parametrize("seed", range(3))
def test_the_block_cache_keeps_its_bound_and_its_sum(seed: int) -> None:
    rng = random.Random(seed)
    cache = BlockCache(50_000)
    put: dict[tuple[int, int], Block] = {}
    for _ in range(3000):
        block_id = (rng.randrange(4), rng.randrange(50))
        match rng.randrange(10):
            case 0:
                cache.drop_table(block_id[0])
            case 1 | 2 | 3 | 4:
                put[block_id] = block(rng.choice([10, 1000, 4000, 60_000]))
                cache.put(block_id, put[block_id])
            case _:
                assert cache.get(block_id) in (None, put.get(block_id))
        assert 0 <= cache.bytes_used <= cache.bytes_max
        held = [id for id in put if id in cache._blocks]
        assert len(held) == len(cache)
        assert cache.bytes_used >= sum(put[id].weight_bytes for id in held)


def test_a_row_is_found_until_it_is_invalidated() -> None:
    rows = RowCache(10_000)
    rows.put(b"key", b"raw")
    assert rows.get(b"key") == b"raw"
    rows.put(b"key", b"other")
    assert rows.get(b"key") == b"other"
    rows.invalidate(b"key")
    rows.invalidate(b"key")
    assert rows.get(b"key") is None
    assert (rows.hit_count, rows.miss_count) == (2, 1)
    assert rows.bytes_used == 0


def test_an_empty_record_is_a_record() -> None:
    rows = RowCache(10_000)
    rows.put(b"key", b"")
    assert rows.get(b"key") == b""
    rows.invalidate(b"key")
    assert rows.get(b"key") is None
    assert rows.bytes_used == 0


def test_a_record_too_large_for_the_cache_replaces_its_older_self() -> None:
    rows = RowCache(10_000)
    rows.put(b"key", b"old")
    rows.put(b"key", bytes(9000))
    assert rows.get(b"key") is None


def use_again(rows: RowCache) -> None:
    rows.get(b"0")


def put_again(rows: RowCache) -> None:
    rows.put(b"0", bytes(100))


@pytest.mark.parametrize("use", [use_again, put_again])
def test_a_row_in_use_stays(use: Callable[[RowCache], None]) -> None:
    rows = RowCache(10_000)
    rows.put(b"0", bytes(100))
    for number in range(1, 200):
        rows.put(b"%d" % number, bytes(100))
        use(rows)
    assert rows.get(b"0") is not None
    assert rows.get(b"1") is None


@pytest.mark.parametrize("seed", range(3))
def test_the_row_cache_keeps_its_bound_and_its_sum(seed: int) -> None:
    rng = random.Random(seed)
    rows = RowCache(10_000)
    put: dict[bytes, bytes] = {}
    for _ in range(3000):
        key = b"%d" % rng.randrange(60)
        match rng.randrange(20):
            case 0:
                rows.clear()
            case 1 | 2 | 3:
                rows.invalidate(key)
                put.pop(key, None)
            case 4 | 5 | 6 | 7 | 8 | 9:
                put[key] = rng.randbytes(rng.choice([0, 10, 500, 9000]))
                rows.put(key, put[key])
            case _:
                assert rows.get(key) in (None, put.get(key))
        assert rows.bytes_used <= rows.bytes_max
        assert rows.bytes_used >= sum(len(key) + len(raw) for key, raw in rows.by_key.items())
    rows.clear()
    assert (rows.bytes_used, len(rows)) == (0, 0)


def test_a_smaller_limit_holds_at_once_and_the_youngest_stay() -> None:
    blocks, rows = BlockCache(100_000), RowCache(100_000)
    for number in range(20):
        blocks.put((1, number), block())
        rows.put(b"%d" % number, bytes(1000))
    blocks.resize(10_000)
    rows.resize(10_000)
    for cache in (blocks, rows):
        assert 0 < cache.bytes_used <= cache.bytes_max == 10_000
    assert blocks.get((1, 19)) is not None
    assert blocks.get((1, 0)) is None
    assert rows.get(b"19") is not None
    assert rows.get(b"0") is None
