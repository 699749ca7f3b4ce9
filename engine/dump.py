"""What stands in a file, entry by entry, for tools that show it to people.

It does not say what rows and records mean, and writes nothing. A file that is damaged gives what can
be read of it: a table all blocks that are whole, a segment all before the damage. What cannot be read
is among the entries, as the `CorruptionError` that says where.

Shell over the disk seam, synchronous.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

from engine.codec import COMPLETE, SLOT_BYTES, Row
from engine.disk import Disk
from engine.errors import CorruptionError
from engine.log_format import MARKER
from engine.log_segment import read_segment
from engine.memtable import Slot
from engine.sstable import Table

Kind = Literal["table", "segment", "manifest"]
_SUFFIXES: Final[tuple[tuple[str, Kind], ...]] = ((".sst", "table"), (".log", "segment"))


@dataclass(frozen=True, slots=True)
class Found:
    """An entry of a table or a segment. Of a marker `raw` is all there is."""

    slot: Slot
    row: Row
    is_complete: bool
    is_marker: bool
    raw: bytes


Finding: TypeAlias = Found | CorruptionError


def kind_of(name: str) -> Kind | None:
    """What a file is, by its name."""
    if name == "manifest":
        return "manifest"
    return next((kind for suffix, kind in _SUFFIXES if name.endswith(suffix)), None)


def entries_of(disk: Disk, name: str, start: tuple[Slot, Row] | None = None) -> Iterator[Finding]:
    """All entries of a table, from `start` on, in order of keys; or of a segment, in order of writing.

    Raises what the disk raises, and UnknownFormatError.
    """
    if kind_of(name) == "table":
        return _of_table(disk, name, start)
    return _of_segment(disk, name)


def _of_segment(disk: Disk, name: str) -> Iterator[Finding]:
    try:
        for flags, slot, row, raw in read_segment(disk, name):
            yield Found(slot, row, bool(flags & COMPLETE), bool(flags & MARKER), raw)
    except CorruptionError as error:
        yield error


def _of_table(disk: Disk, name: str, start: tuple[Slot, Row] | None) -> Iterator[Finding]:
    try:
        table = Table.open(disk, name)
    except CorruptionError as error:
        yield error
        return
    first = b"" if start is None else start[0].to_bytes(SLOT_BYTES, "big") + start[1]
    try:
        block_no = table.block_of(first) if first else 0
        for number in range(table.block_count if block_no is None else block_no, table.block_count):
            try:
                block = table.load(number, cached_only=False)
            except CorruptionError as error:
                yield error
                continue
            assert block is not None
            for key, flags, raw in block.entries(first):
                slot = int.from_bytes(key[:SLOT_BYTES], "big")
                yield Found(slot, key[SLOT_BYTES:], bool(flags & COMPLETE), False, raw)
    finally:
        table.close()
