"""The Bloom filter: never a false negative, few false positives, and a format that stays."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from xxhash import xxh3_128

from engine.bloom import BITS_PER_KEY, WORD_BYTES, BloomBuilder, BloomFilter, Words, candidates


def filter_of(keys: list[bytes]) -> bytes:
    builder = BloomBuilder()
    builder.add_all(keys)
    return builder.finish()


@pytest.mark.parametrize("count", [0, 1, 153, 154, 5000])
def test_every_added_key_is_found(count: int) -> None:
    keys = [b"key %d" % number for number in range(count)]
    bloom = BloomFilter(filter_of(keys))
    assert all(bloom.may_contain(key) for key in keys)


def test_keys_may_come_in_several_calls() -> None:
    builder = BloomBuilder()
    builder.add_all([b"a", b"b"])
    builder.add_all([])
    builder.add_all([b"c"])
    assert builder.finish() == filter_of([b"a", b"b", b"c"])


@pytest.mark.parametrize("count", [100, 1000, 20_000])
def test_false_positives_stay_near_one_percent(count: int) -> None:
    bloom = BloomFilter(filter_of([b"in %d" % number for number in range(count)]))
    asked = 50_000
    false = sum(bloom.may_contain(b"out %d" % number) for number in range(asked))
    assert false / asked < 0.012


def test_false_positives_do_not_follow_the_keys_form() -> None:
    keys = [number.to_bytes(8, "big") for number in range(20_000)]
    bloom = BloomFilter(filter_of(keys))
    others = [number.to_bytes(8, "big") for number in range(20_000, 70_000)]
    assert sum(bloom.may_contain(key) for key in others) / len(others) < 0.012


def test_an_empty_filter_contains_nothing() -> None:
    bloom = BloomFilter(filter_of([]))
    assert not any(bloom.may_contain(b"%d" % number) for number in range(1000))


@pytest.mark.parametrize(("count", "words"), [(0, 1), (1, 1), (153, 1), (154, 2), (1536, 10)])
def test_the_size_follows_the_number_of_keys(count: int, words: int) -> None:
    data = filter_of([b"%d" % number for number in range(count)])
    assert len(data) == words * WORD_BYTES
    assert len(data) * 8 >= count * BITS_PER_KEY


def test_the_format_is_as_documented() -> None:
    keys = [b"key %d" % number for number in range(1000)]
    data = filter_of(keys)
    words = len(data) // 192
    expected = bytearray(len(data))
    for key in keys:
        digest = xxh3_128(key).digest()
        word = int.from_bytes(digest[8:16], "little") % words
        for section in range(6):
            bit = 256 * section + digest[section]
            expected[192 * word + bit // 8] |= 1 << bit % 8
    assert data == bytes(expected)


def test_the_hash_is_the_same_for_ever() -> None:
    data = filter_of([b"\x12\x34some key"])
    bits = int.from_bytes(data, "little")
    assert [bit for bit in range(1536) if bits >> bit & 1] == [85, 432, 515, 923, 1072, 1499]


@dataclass
class Named:
    name: str
    words: Words


def test_many_filters_are_asked_in_their_order() -> None:
    contents = [[b"a", b"b"], [], [b"b"], [b"x", b"a"]]
    many = [Named(f"{at}", BloomFilter(filter_of(keys)).words) for at, keys in enumerate(contents)]
    assert [each.name for each in candidates(many, b"a")] == ["0", "3"]
    assert [each.name for each in candidates(many, b"b")] == ["0", "2"]
    assert not list(candidates(many, b"c"))


@pytest.mark.parametrize("section", range(6))
def test_every_section_is_looked_at(section: int) -> None:
    key = b"some key"
    bits = int.from_bytes(filter_of([key]), "little")
    bit = 256 * section + xxh3_128(key).digest()[section]
    assert bits >> bit & 1
    assert BloomFilter(bits.to_bytes(WORD_BYTES, "little")).may_contain(key)
    assert not BloomFilter((bits ^ 1 << bit).to_bytes(WORD_BYTES, "little")).may_contain(key)


def test_memory_is_accounted() -> None:
    data = filter_of([b"%d" % number for number in range(10_000)])
    assert len(data) <= BloomFilter(data).memory_bytes < 1.1 * len(data)
