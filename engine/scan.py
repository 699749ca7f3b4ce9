"""Scanning a slot in order: the rows of memtables and tables merged, page by page.

Not the iteration over all slots, and not a view that hides the dead: they are among the rows.

A *source* is the entries of a slot in one place, in order: a memtable's, a table's of level 0, or a
deeper level's, whose tables come one after the other. Sources are ranked from newest to oldest. Each
has read one *chunk* ahead: a block, or less where a page is small. The smallest of the chunks' last
rows bounds what is known completely: up to it, all chunks are sorted together and the versions of
a row joined (as `engine/merge.py` does for compaction). Then who has nothing left reads its next chunk.

So a page costs about what it has rows, whatever the slot has, and a chunk per source.

**Two kinds.** A page of `Store.scan` is made and thrown away. A `SlotScan` of `Store.snapshot_scan`
lives as long as its owner wants, and shows the slot as it was when the scan began: memtables are
copied (references only), tables do not change, and those that compaction replaces meanwhile are kept
until `close`. Between pages, and after a PageFault, everything read ahead stays in it.

Shell, thin: it reads blocks, without waiting.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from operator import itemgetter
from types import TracebackType
from typing import Final, Self

from engine.codec import COMPLETE, RecordCodec
from engine.levels import PageFault, Pages, Pins
from engine.manifest import ALL_TAGS
from engine.memtable import Memtable, Row, Slot
from engine.merge import join_versions
from engine.sstable import Table

RowEntry = tuple[Row, int, bytes]
"""Row, flags and raw record."""

WHOLE_BLOCK_ROWS: Final = 64
"""From so many rows a chunk on, decoding all of a block is cheaper than entry by entry."""

ALL_ROWS: Final = 1 << 62
PAGE_ROWS: Final = 256

_row = itemgetter(0)


class _Source:
    """The entries of one place. `entries[at:]` is what is left of the chunk."""

    __slots__ = ("at", "entries", "is_done")

    def __init__(self, entries: list[RowEntry], *, is_done: bool = True) -> None:
        self.entries = entries
        self.at = 0
        self.is_done = is_done  # There is no further chunk.

    def fill(self) -> None:
        """Read the next chunk, where all of this one is taken. Raises PageFault."""

    def take(self, boundary: Row | None) -> list[RowEntry]:
        """Return what is left up to a row, inclusive; None: all."""
        first, end = self.at, len(self.entries)
        if boundary is not None:
            end = bisect_right(self.entries, boundary, first, key=_row)
        self.at = end
        return self.entries[first:end]


class _TableSource(_Source):
    """The entries of some tables, which follow each other."""

    __slots__ = (
        "_chunk_rows",
        "_hidden",
        "_number",
        "_pages",
        "_pins",
        "_start",
        "_tables",
        "_tag",
    )

    def __init__(
        self,
        tables: Sequence[Table],
        start: bytes,
        pages: Pages,
        pins: Pins | None,
        hidden: Mapping[int, int],
        tag: Callable[[Row], int],
        chunk_rows: int,
    ) -> None:
        super().__init__([], is_done=False)
        self._tables = list(reversed(tables))  # The next one last.
        self._number: int | None = None  # The block to read next; None: where `start` says.
        self._start = start
        self._pages = pages
        self._pins = pins
        self._hidden = hidden
        self._tag = tag
        self._chunk_rows = chunk_rows

    def fill(self) -> None:
        while self.at == len(self.entries) and not self.is_done:
            self._read()

    def _read(self) -> None:
        table = self._tables[-1] if self._tables else None
        if table is None:
            self.is_done = True
            return
        number = self._number if self._number is not None else table.block_of(self._start)
        if number is None or number == table.block_count:
            self._tables.pop()
            self._number = None
            return
        block = self._pages.block(table, number, self._pins)
        start = self._start
        if self._chunk_rows < WHOLE_BLOCK_ROWS:
            found = list(islice(block.entries(start), self._chunk_rows))
        else:
            found = block.to_list()
            if found[0][0] < start:
                del found[: bisect_left(found, start, key=_row)]
        if len(found) == self._chunk_rows < WHOLE_BLOCK_ROWS:
            self._number, self._start = number, found[-1][0] + b"\0"  # More of this block.
        else:
            self._number = number + 1
        if self._pins is not None:
            self._pins.clear()
        slot = start[:2]
        if found and found[-1][0][:2] != slot:
            self.is_done = True
            found = [entry for entry in found if entry[0][:2] == slot]
        self.entries, self.at = self._shown(table, found), 0

    def _shown(self, table: Table, found: list[tuple[bytes, int, bytes]]) -> list[RowEntry]:
        entries = [(key[2:], flags, raw) for key, flags, raw in found]
        position = table.meta.position_max
        gone = {tag for tag, dropped in self._hidden.items() if position < dropped}
        if ALL_TAGS in gone:
            return []
        if gone:
            entries = [entry for entry in entries if self._tag(entry[0]) not in gone]
        return entries


def _memory_sources(memtable: Memtable, slot: Slot, start: Row, limit: int) -> list[_Source]:
    rows = memtable.rows_from(slot, start, limit)
    complete: list[RowEntry] = [(row, COMPLETE, raw) for row, raw in rows]
    sources = []
    if complete:
        # A page has fewer rows than `limit`, so that a cut chunk is never taken to its end.
        sources.append(_Source(complete, is_done=len(rows) < limit))
    if memtable.deltas:
        deltas: list[RowEntry] = [(r, 0, raw) for r, raw in memtable.deltas_of(slot, start)]
        if deltas:
            sources.append(_Source(deltas))
    return sources


class SlotScan:
    """The rows of one slot, merged. See the module's docstring. Made by the store; closed by its owner, or at its end.

        with store.snapshot_scan(slot) as scan:
            while rows := scan.page(100):  # Raises PageFault: fetch, arrive, and ask again.
                ...

    `for row, raw in scan` is for those who may wait for the disk.
    """

    def __init__(
        self,
        memtables: Sequence[Memtable],
        runs: Sequence[Sequence[Table]],
        slot: Slot,
        start: Row,
        *,
        pages: Pages,
        hidden: Mapping[int, int],
        codec: RecordCodec,
        chunk_rows: int = ALL_ROWS,
        on_close: Callable[[], None] | None = None,
    ) -> None:
        """`memtables` and `runs` are newest first; `chunk_rows` bounds what is read ahead of a source.

        A bounded scan makes one page of fewer rows than that.
        """
        self._codec = codec
        self._on_close = on_close
        self._is_one_page = chunk_rows < ALL_ROWS
        self._ready: list[tuple[Row, bytes]] = []
        self._sources: list[_Source] = []
        for memtable in memtables:
            self._sources += _memory_sources(memtable, slot, start, chunk_rows)
        key = slot.to_bytes(2, "big") + start
        for run in runs:
            # A scan that lives on has its own pins: no cache has to keep what it waited for.
            pins: Pins | None = None if self._is_one_page else {}
            source = _TableSource(run, key, pages, pins, hidden, codec.tag, chunk_rows)
            self._sources.append(source)

    def page(self, limit: int) -> list[tuple[Row, bytes]]:
        """Return up to `limit` rows and their states, in order; none at the end. Raises PageFault."""
        ready = self._ready
        while len(ready) < limit and self._sources:
            ready += self._round()
        self._ready = ready[limit:]
        if not self._sources and not self._ready:
            self.close()
        return ready[:limit]

    def _round(self) -> list[tuple[Row, bytes]]:
        """The rows up to the next boundary."""
        for source in self._sources:
            if source.at == len(source.entries):
                source.fill()  # If it faults, no other source has been changed.
        sources = [source for source in self._sources if source.at < len(source.entries)]
        boundary = min(
            (source.entries[-1][0] for source in sources if not source.is_done), default=None
        )
        taken: list[RowEntry] = []
        for source in sources:
            taken += source.take(boundary)
        if len(sources) > 1:
            taken.sort(key=_row)  # Stable: the newest version of a row stays first.
            taken = join_versions(taken, self._codec)
        self._sources = [s for s in sources if s.at < len(s.entries) or not s.is_done]
        return [(row, raw) for row, _, raw in taken]

    def close(self) -> None:
        """Let the tables go that were kept for this scan. It has no more rows."""
        self._sources, self._ready = [], []
        on_close, self._on_close = self._on_close, None
        if on_close is not None:
            on_close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __iter__(self) -> Iterator[tuple[Row, bytes]]:
        """Yield all rows, waiting for the disk."""
        while True:
            try:
                rows = self.page(PAGE_ROWS)
            except PageFault as fault:
                fault.resolve()
                continue
            if not rows:
                return
            yield from rows
