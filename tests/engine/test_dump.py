"""Entries of files as tools get them."""

from __future__ import annotations

import random

from engine.dump import Found, entries_of, kind_of
from engine.errors import CorruptionError
from tests.engine.test_snapshot import flush, open_store
from tests.engine.toy import register
from tests.sim.disk import SimDisk


def filled() -> tuple[SimDisk, str, str]:
    """A disk, its table and its segment. The table has rows of slots 1 and 2, the segment a drop as well."""
    disk = SimDisk(random.Random(1))
    store = open_store(disk)
    for slot in (1, 2):
        for number in range(10):
            store.apply(slot, b"a%d" % number, register(number))
    flush(store)
    store.apply(3, b"b", register(1), is_complete=False)
    store.drop([7])
    store.write()
    (table,) = (name for name in disk.names() if name.endswith(".sst"))
    return disk, table, store.log.segment.name


def test_files_are_known_by_their_names() -> None:
    names = ("manifest", "0000000000000001.sst", "00000000000000000000.log", "lock", "x.sst.tmp")
    assert [kind_of(name) for name in names] == ["manifest", "table", "segment", None, None]


def test_a_table_gives_its_entries_in_order() -> None:
    disk, table, _ = filled()
    expected = [
        Found(slot, b"a%d" % number, True, False, register(number))
        for slot in (1, 2)
        for number in range(10)
    ]
    assert list(entries_of(disk, table)) == expected
    assert list(entries_of(disk, table, (2, b"a3"))) == expected[13:]
    assert list(entries_of(disk, table, (3, b""))) == []


def test_a_segment_gives_entries_and_markers_as_they_were_written() -> None:
    disk, _, segment = filled()
    assert list(entries_of(disk, segment)) == [
        Found(3, b"b", False, False, register(1)),
        Found(0, b"", False, True, bytes([7])),
    ]


def test_what_is_damaged_stands_among_the_entries() -> None:
    disk, table, segment = filled()
    whole = list(entries_of(disk, table))
    disk.flip_bit(table, 3)
    first, *rest = entries_of(disk, table)
    assert isinstance(first, CorruptionError)
    assert rest == whole[-len(rest) :]
    assert rest
    disk.flip_bit(segment, disk.size(segment) - 1)
    assert [type(each) for each in entries_of(disk, segment)] == [CorruptionError]
    disk.flip_bit(table, disk.size(table) - 1)
    assert [type(each) for each in entries_of(disk, table)] == [CorruptionError]
