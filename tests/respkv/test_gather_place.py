"""Which rows a command touches."""

from __future__ import annotations

import pytest

from cluster.slot import row_of, slot_of
from respkv.command import TABLE
from respkv.commands import load
from respkv.gather_place import places_of

load()
DATABASES = [0, 5, *range(2, 5), 1, *range(6, 16)]  # 1 and 5 have changed places.


@pytest.mark.parametrize(
    ("words", "rows"),
    [
        (b"GET k", [(0, b"k")]),
        (b"MSET k v l w", [(0, b"k"), (0, b"l")]),
        (b"RENAME k l", [(0, b"k"), (0, b"l")]),
        (b"MOVE k 1", [(0, b"k"), (5, b"k")]),
        (b"MOVE k 16", [(0, b"k")]),
        (b"MOVE k x", [(0, b"k")]),
        (b"COPY k l", [(0, b"k"), (0, b"l")]),
        (b"COPY k l REPLACE", [(0, b"k"), (0, b"l")]),
        (b"COPY k l DB 1", [(0, b"k"), (5, b"l")]),
        (b"COPY k k db 2 REPLACE", [(0, b"k"), (2, b"k")]),
        (b"COPY k l REPLACE DB 1 DB 3", [(0, b"k"), (3, b"l")]),
        (b"COPY k l DB", [(0, b"k"), (0, b"l")]),
    ],
)
def test_places(words: bytes, rows: list[tuple[int, bytes]]) -> None:
    args = words.split()
    places = places_of(TABLE.resolve(args), args, 0, DATABASES)
    assert places == [(slot_of(key), row_of(db, key)) for db, key in rows]
