"""The index: it finds as a bisection of bytes objects does, for all keys that there may be."""

from __future__ import annotations

import itertools
import random
import struct
from bisect import bisect_right

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from engine.table_index import (
    BLOCK_BYTES_MAX,
    IndexBuilder,
    TableIndex,
    decode_index,
    head_of,
    separator_of,
)

# Few kinds of bytes, so that keys share prefixes and end in zeros.
short_keys = st.text("\0\1\xff", max_size=11).map(lambda text: text.encode("latin-1"))
any_keys = short_keys | st.binary(max_size=20) | short_keys.map(lambda key: b"\0\1shared" + key)


def built(borders: list[tuple[bytes, bytes]]) -> bytes:
    builder = IndexBuilder()
    builder.add_block(10, 20, 1)
    for number, (low, high) in enumerate(borders):
        builder.add_border(low, high)
        builder.add_block(10 + number, 30 + number, number << 40)
    assert len(builder) == len(borders) + 1
    return builder.finish()


def version_1(separators: list[bytes]) -> bytes:
    """Return an index as version 1 wrote it."""
    n = len(separators) + 1
    columns = [
        struct.pack(f"<{n}I", *range(1, n + 1)),
        struct.pack(f"<{n}I", *range(101, n + 101)),
        struct.pack(f"<{n}Q", *range(n)),
        struct.pack(f"<{n - 1}I", *map(len, separators)),
    ]
    return b"".join([*columns, *separators])


@given(st.sets(any_keys, min_size=1), st.lists(any_keys))
@example({b"", b"\0", b"\0\0", bytes(7), bytes(8), bytes(9)}, [])
@example({b"\1234567", b"\12345678", b"\1234567\0", b"\1234567\xff"}, [])
def test_blocks_are_found_as_among_separators(keys: set[bytes], others: list[bytes]) -> None:
    ordered = sorted(keys)
    borders = list(itertools.pairwise(ordered))
    separators = [separator_of(low, high) for low, high in borders]
    indexes = [
        decode_index(built(borders), len(ordered), version=2),
        decode_index(version_1(separators), len(ordered), version=1),
    ]
    for index in indexes:
        assert len(index) == len(ordered)
        assert [index.separator(i) for i in range(len(borders))] == separators
        assert [index.block_of(key) for key in ordered] == list(range(len(ordered)))
        for key in (*others, *separators):
            assert index.block_of(key) == bisect_right(separators, key)


@given(st.sets(any_keys, min_size=1), any_keys, any_keys)
def test_blocks_between_hold_all_keys_between(keys: set[bytes], a: bytes, b: bytes) -> None:
    ordered = sorted(keys)
    index = decode_index(built(list(itertools.pairwise(ordered))), len(ordered), 2)
    low, high = min(a, b), max(a, b)
    found = index.blocks_between(low, high)
    between = [number for number, key in enumerate(ordered) if low <= key < high]
    assert set(between) <= set(found)
    assert len(found) <= len(between) + 2


def test_a_block_that_begins_at_the_end_of_a_range_is_not_in_it() -> None:
    index = decode_index(built([(b"\0\1x", b"\0\2y"), (b"\0\2z", b"\0\3")]), 3, version=2)
    assert [index.separator(number) for number in range(2)] == [b"\0\2", b"\0\3"]
    ranges = [index.blocks_between(bytes([0, slot]), bytes([0, slot + 1])) for slot in range(5)]
    assert ranges == [range(1), range(1), range(1, 2), range(2, 3), range(2, 3)]


@given(any_keys, any_keys)
def test_heads_are_in_the_order_of_keys(a: bytes, b: bytes) -> None:
    low, high = min(a, b), max(a, b)
    assert head_of(low) <= head_of(high)
    if head_of(low) == head_of(high) and low != high:
        assert head_of(low) & 255 == 255
        assert low[:7] == high[:7]


@given(any_keys, any_keys)
def test_a_separator_is_the_shortest_prefix_above(a: bytes, b: bytes) -> None:
    low, high = min(a, b), max(a, b)
    if low == high:
        return
    separator = separator_of(low, high)
    assert high.startswith(separator)
    assert low < separator <= high
    assert separator[:-1] <= low


@pytest.mark.parametrize("seed", range(3))
def test_long_runs_of_one_head(seed: int) -> None:
    """The rows of collections: all alike for tens of bytes."""
    rng = random.Random(seed)
    keys = sorted(
        rng.choice([b"\0\1hashes", b"\0\1hashes of one key", b"\0\2"]) + rng.randbytes(4)
        for _ in range(3000)
    )
    borders = list(zip(keys[:-1:3], keys[1::3], strict=False))
    separators = [separator_of(low, high) for low, high in borders]
    index = decode_index(built(borders), len(separators) + 1, version=2)
    for key in [*keys, *(rng.choice(keys)[:-1] + rng.randbytes(2) for _ in range(500))]:
        assert index.block_of(key) == bisect_right(separators, key)


def test_columns() -> None:
    index = decode_index(built([(b"a", b"b"), (b"b", b"c")]), 3, version=2)
    assert list(index.offsets) == [0, 10, 20, 31]
    assert list(index.raw_lengths) == [20, 30, 31]
    assert list(index.checksums) == [1, 0, 1 << 40]
    old = decode_index(version_1([b"a", b"b"]), 3, version=1)
    assert list(old.offsets) == [0, 1, 3, 6]
    assert list(old.raw_lengths) == [101, 102, 103]


def test_an_empty_index() -> None:
    for version in (1, 2):
        index = decode_index(b"", 0, version)
        assert (len(index), list(index.offsets), index.block_of(b"any key")) == (0, [0], 0)


def test_files_of_4_gib_and_more() -> None:
    builder = IndexBuilder()
    for number in range(5):
        builder.add_block(1 << 30, 1 << 30, number)
    builder_borders = [(b"%d" % n, b"%d" % (n + 1)) for n in range(4)]
    for border in builder_borders:
        builder.add_border(*border)
    index = decode_index(builder.finish(), 5, version=2)
    assert list(index.offsets) == [number << 30 for number in range(6)]


def test_what_it_should_not_say_is_an_error() -> None:
    data = built([(b"a", b"b"), (b"shared prefix a", b"shared prefix b")])
    assert isinstance(decode_index(data, 3, version=2), TableIndex)
    for wrong in [data[:length] for length in range(len(data))] + [data + b"\0"]:
        with pytest.raises(ValueError, match="an index"):
            decode_index(wrong, 3, version=2)
    for count in (0, 2, 4, (1 << 32) - 1):
        with pytest.raises(ValueError, match="an index"):
            decode_index(data, count, version=2)
    huge = data[:12] + struct.pack("<I", BLOCK_BYTES_MAX + 1) + data[16:]
    with pytest.raises(ValueError, match=f"a block of {BLOCK_BYTES_MAX + 1} bytes"):
        decode_index(huge, 3, version=2)


def test_memory_is_accounted() -> None:
    rng = random.Random(1)
    keys = sorted(rng.randbytes(12) for _ in range(5000))
    index = decode_index(built(list(itertools.pairwise(keys))), 5000, version=2)
    assert 24 * 5000 <= index.memory_bytes < 24 * 5000 + 500
    keys = [b"\0\1a long prefix" + key for key in keys]
    index = decode_index(built(list(itertools.pairwise(keys))), 5000, version=2)
    tails_bytes = sum(len(index.separator(number)) - 7 for number in range(4999))
    assert 28 * 5000 + tails_bytes <= index.memory_bytes < 28 * 5000 + tails_bytes + 600
