"""Blocks: what goes in is found, and nothing else."""

from __future__ import annotations

import struct
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.block import Block, encode_block
from engine.codec import Entry

# Few letters, so that keys contain one another and each other's borders.
tight_keys = st.binary(min_size=2, max_size=6).map(lambda key: bytes(b & 1 for b in key))
any_keys = st.one_of(tight_keys, st.binary(min_size=2, max_size=40))
contents = st.dictionaries(any_keys, st.tuples(st.integers(0, 255), st.binary(max_size=30)))


def encoded(entries: list[Entry]) -> bytes:
    keys, flags, raws = zip(*entries, strict=True) if entries else ((), (), ())
    return encode_block(keys, flags, raws)


def entries_of(content: dict[bytes, tuple[int, bytes]]) -> list[Entry]:
    return [(key, *content[key]) for key in sorted(content)]


@settings(max_examples=300, deadline=None)
@given(contents, st.lists(any_keys))
def test_a_block_answers_like_a_dict(
    content: dict[bytes, tuple[int, bytes]], others: list[bytes]
) -> None:
    block = Block(encoded(entries_of(content)))
    for key in [*content, *others]:
        assert block.find(key) == content.get(key)


@settings(max_examples=200, deadline=None)
@given(contents, any_keys)
def test_entries_come_in_order_from_the_start_key(
    content: dict[bytes, tuple[int, bytes]], start: bytes
) -> None:
    entries = entries_of(content)
    block = Block(encoded(entries))
    assert len(block) == len(entries)
    assert block.to_list() == entries
    assert list(block.entries()) == entries
    assert list(block.entries(start)) == [entry for entry in entries if entry[0] >= start]


CASES = {
    "inside another": ([b"aaXYbb", b"zz"], b"XY"),
    "across two": ([b"aaX", b"bb"], b"Xb"),
    "start of another": ([b"aab", b"zz"], b"aa"),
    "end of another": ([b"aab", b"zz"], b"ab"),
    "in a record": ([b"aa", b"zz"], b"RECORD"),
    "above all": ([b"aa", b"bb"], b"zz"),
    "in the last": ([b"aa", b"bXYb"], b"XY"),
}


@pytest.mark.parametrize(("keys", "asked"), CASES.values(), ids=CASES)
def test_bytes_that_only_look_like_a_key_are_not_found(keys: list[bytes], asked: bytes) -> None:
    assert Block(encoded([(key, 1, b"RECORD") for key in keys])).find(asked) is None


@pytest.mark.parametrize("keys", [[b"aXYb", b"cc", b"XY"], [b"aX", b"Yb", b"XY"]])
def test_a_key_is_found_behind_a_place_that_looks_like_it(keys: list[bytes]) -> None:
    keys = sorted(keys, key=lambda key: (key == b"XY", key))
    keys = [b"A" + key if key != b"XY" else key for key in keys]
    assert keys == sorted(keys)
    block = Block(encoded([(key, 1, b"of " + key) for key in keys]))
    assert block.find(b"XY") == (1, b"of XY")


@pytest.mark.parametrize("size", [0, 65_000, 65_519, 65_520, 65_521, 65_522, 66_000, 1 << 20])
def test_blocks_around_64_kib(size: int) -> None:
    entries = [(b"key", 1, bytes(size)), (b"kez", 0, b"x")][: 1 if size else 2]
    block = Block(encoded(entries))
    assert block.to_list() == entries
    assert block.find(b"key") == (1, bytes(size))


def test_narrow_and_wide_are_both_reached() -> None:
    def header(size: int) -> int:
        return int.from_bytes(encoded([(b"key", 1, bytes(size))])[:4], "little")

    narrow_max = 0xFFFF - len(encoded([(b"key", 1, b"")]))
    assert header(narrow_max) == 1
    assert header(narrow_max + 1) == 1 | 1 << 31


def test_the_layout_is_as_documented() -> None:
    entries = [(b"\x00\x01a", 1, b"one"), (b"\x00\x01b", 0, b""), (b"\x00\x02", 1, b"three")]
    data = encoded(entries)
    count, *bounds = struct.unpack_from("<I7H", data)
    assert count == 3
    assert list(data[18:21]) == [1, 0, 1]
    pieces = [data[start:end] for start, end in pairwise(bounds)]
    assert pieces == [b"\x00\x01a", b"\x00\x01b", b"\x00\x02", b"one", b"", b"three"]
    assert bounds[0] == 21
    assert bounds[-1] == len(data)


def test_weight_covers_the_data() -> None:
    data = encoded([(b"key", 1, bytes(5000))])
    assert len(data) < Block(data).weight_bytes < len(data) + 1000


@given(contents)
def test_right_blocks_have_no_defect(content: dict[bytes, tuple[int, bytes]]) -> None:
    block = Block(encoded(entries_of(content)))
    assert (block.defect() is None) == (len(content) > 0)


@pytest.mark.parametrize("keys", [[b"aa", b"aa"], [b"ab", b"aa"], [b"aaa", b"aa"]])
def test_keys_out_of_order_are_a_defect(keys: list[bytes]) -> None:
    block = Block(encode_block(keys, [1, 1], [b"x", b"y"]))
    assert block.defect() == "a block with keys out of order"


def test_bounds_that_lead_elsewhere_are_a_defect() -> None:
    data = encode_block([b"aa", b"bb", b"cc"], [1, 1, 1], [b"x", b"y", b"z"])
    bounds = struct.unpack_from("<7H", data, 4)
    for number in range(7):
        for change in (-3, 3):
            wrong = [*bounds]
            wrong[number] += change
            block = Block(data[:4] + struct.pack("<7H", *wrong) + data[18:])
            assert block.defect() is not None
    for other in (data + b"!", data[:-1]):
        assert "with bounds" in (Block(other).defect() or "")


def test_too_few_bytes_are_an_error_or_a_defect() -> None:
    data = encode_block([b"aa", b"bb"], [1, 1], [b"x", b"y"])
    for length in range(len(data)):
        try:
            assert Block(data[:length]).defect() is not None
        except (ValueError, IndexError):
            continue
