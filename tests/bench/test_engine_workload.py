"""What the engines are asked to keep."""

import random

import pytest

from bench.engine_workload import (
    FILL,
    GET_HIT,
    GET_MISS,
    HOT_MIN,
    KEY_BYTES,
    MISS_BASE,
    OVERWRITE,
    OVERWRITE_HOT,
    SCAN,
    Cache,
    Values,
    key_of,
    numbers,
    write_buffer_for,
)
from cluster.record import CODEC, STRING, decode
from cluster.slot import SLOT_COUNT
from engine.codec import Fate


def chosen(phase: str, cache: Cache, count: int) -> list[int]:
    return list(numbers(phase, cache, count, random.Random(1)))


def test_keys_differ_and_have_a_slot_and_a_database() -> None:
    keys = [key_of(number) for number in range(2000)]
    assert len(set(keys)) == 2000
    assert {len(key) for key in keys} == {KEY_BYTES}
    assert all(int.from_bytes(key[:2], "big") < SLOT_COUNT for key in keys)
    assert {CODEC.tag(key[2:]) for key in keys} == {0}
    assert keys != sorted(keys)


@pytest.mark.parametrize("value_bytes", [32, 100, 1024])
def test_values_have_their_length_and_are_records(value_bytes: int) -> None:
    values = Values(value_bytes, random.Random(1))
    made = [values.make() for _ in range(100)]
    assert {len(each) for each in made} == {value_bytes}
    assert len(set(made)) == 100
    assert {version.type for each in made for version in decode(each).versions} == {STRING}
    assert CODEC.fate(key_of(1)[2:], made[0], 1 << 40) is Fate.LIVE


def test_a_value_is_a_fragment_twice() -> None:
    value = Values(125, random.Random(1)).make()
    assert value[25:75] == value[75:125]


def test_fill_writes_every_record_once() -> None:
    assert chosen(FILL, "large", 1000) == list(range(1000))


def test_overwrites_are_as_many_and_of_all_or_of_the_hot_ones() -> None:
    everywhere = chosen(OVERWRITE, "large", 5000)
    hot = chosen(OVERWRITE_HOT, "large", 5000)
    assert len(everywhere) == len(hot) == 5000
    assert max(hot) < HOT_MIN < max(everywhere) < 5000


def test_reads_with_a_large_cache_stay_among_few_records() -> None:
    assert max(chosen(GET_HIT, "large", 5000)) < HOT_MIN < max(chosen(GET_HIT, "tiny", 5000))


def test_misses_are_of_records_that_were_never_written() -> None:
    assert min(chosen(GET_MISS, "tiny", 5000)) >= MISS_BASE > 5000


def test_scans_repeat_few_slots_with_a_large_cache_only() -> None:
    assert len(set(chosen(SCAN, "large", 5000))) == SLOT_COUNT // 100
    assert len(set(chosen(SCAN, "tiny", 5000))) == len(chosen(SCAN, "tiny", 5000)) == 1000


@pytest.mark.parametrize(
    ("count", "size_mib"), [(10, 1), (250_000, 4), (1_000_000, 16), (9_000_000, 16)]
)
def test_write_buffers(count: int, size_mib: int) -> None:
    assert write_buffer_for(count) == size_mib << 20
