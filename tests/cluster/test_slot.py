"""Slots against Redis Cluster's known ones and a CRC16 written out; rows, their order and back."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.slot import (
    DATABASE_COUNT,
    HASH_BYTES,
    KEY_OFFSET,
    TAG_OFFSET,
    Key,
    hash_of,
    key_of,
    row_of,
    slot_of,
)

keys = st.binary(max_size=40) | st.binary(min_size=250, max_size=260)
databases = st.integers(0, DATABASE_COUNT - 1)


def crc16(data: bytes) -> int:
    """CRC16-XMODEM, bit by bit, from the Redis Cluster specification."""
    crc = 0
    for byte in data:
        crc ^= byte << 8
        for _ in range(8):
            crc = (crc << 1 ^ 0x1021 if crc & 0x8000 else crc << 1) & 0xFFFF
    return crc


@pytest.mark.parametrize(
    ("key", "slot"),
    [(b"foo", 12182), (b"bar", 5061), (b"hello", 866), (b"somekey", 11058), (b"", 0)],
)
def test_known_slots(key: Key, slot: int) -> None:
    assert slot_of(key) == slot


def test_the_check_value_of_the_specification() -> None:
    assert crc16(b"123456789") == 0x31C3
    assert slot_of(b"123456789") == 0x31C3 & 16383


@given(key=st.binary(max_size=300).filter(lambda key: b"{" not in key))
def test_a_key_without_braces_is_hashed_whole(key: Key) -> None:
    assert slot_of(key) == crc16(key) % 16384


@pytest.mark.parametrize(
    ("key", "hashed"),
    [
        (b"{user1000}.following", b"user1000"),
        (b"{user1000}.followers", b"user1000"),
        (b"before{tag}after", b"tag"),
        (b"foo{}{bar}", b"foo{}{bar}"),  # The first braces are empty: no tag at all.
        (b"foo{{bar}}zap", b"{bar"),
        (b"foo{bar}{zap}", b"bar"),
        (b"foo{bar", b"foo{bar"),
        (b"foo}bar{", b"foo}bar{"),
        (b"}{x}", b"x"),
        (b"{}", b"{}"),
        (b"{x}", b"x"),
    ],
)
def test_hash_tags(key: Key, hashed: bytes) -> None:
    assert slot_of(key) == crc16(hashed) % 16384


@given(db=databases, key=keys)
def test_a_row_gives_its_parts_back(db: int, key: Key) -> None:
    row = row_of(db, key)
    assert row[TAG_OFFSET] == db
    assert row[KEY_OFFSET:] == key
    assert key_of(row) == key
    assert hash_of(row).to_bytes(HASH_BYTES, "big") == row[:HASH_BYTES]


@pytest.mark.parametrize("length", [0, 1, 254, 255, 256, 257, 65536, 1 << 20])
def test_the_key_of_a_row_has_any_length_and_ends_before_the_element(length: int) -> None:
    key = b"k" * length
    row = row_of(3, key)
    assert len(row) == KEY_OFFSET + length
    assert key_of(row) == key
    assert key_of(row + b"element") == key


@given(db=databases, key=keys, other_db=databases, other=keys)
def test_rows_are_ordered_by_hash_then_database(
    db: int, key: Key, other_db: int, other: Key
) -> None:
    a, b = row_of(db, key), row_of(other_db, other)
    assert (a == b) == ((db, key) == (other_db, other))
    if hash_of(a) != hash_of(b):
        assert (a < b) == (hash_of(a) < hash_of(b))
    elif db != other_db:
        assert (a < b) == (db < other_db)


@given(db=databases, key=keys, element=st.binary(max_size=20), other=keys)
def test_no_row_of_another_key_stands_among_the_elements_of_a_key(
    db: int, key: Key, element: bytes, other: Key
) -> None:
    header = row_of(db, key)
    stranger = row_of(db, other)
    if other != key:
        assert not stranger.startswith(header)
        assert not (header <= stranger <= header + element)
