"""Verification: is everything in a data folder or a snapshot as it was written?

It repairs nothing and changes nothing. It looks at bytes and order, not at what records mean.

    manifest   its checksum; that all tables that it names are there
    tables     every checksum; that keys increase and are as many as the table says; that no two
               tables hold the same key where the order of reading would not tell which is newer
    log        every checksum from the manifest's `log_start` on; that no segment is missing. A torn
               end, of a node that was killed, is no damage: it is reported apart, unless the
               manifest or a table vouches for what stood there. A snapshot or its backup, on which
               no node was started, has none
    the rest   files that nothing names: leftovers of a job, which the next start removes

A table whose footer, index, filter or meta is damaged is reported once: without them its blocks
cannot be found. Of other tables each damaged block is reported. Of the log the first damage is
found as a start would find it, then that of each later segment.

The kernel answers from its cache what it holds; `is_cold` has it read the disk itself. A folder that
a node uses is for the caller to refuse: files come and go there.

Shell over the disk seam, synchronous.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import combinations, pairwise
from typing import Final

from engine import manifest
from engine.disk import Disk
from engine.drop import vouched
from engine.errors import CorruptionError, MissingFileError
from engine.log_format import Segment
from engine.log_recovery import Torn, examine
from engine.log_segment import list_segments, read_segment
from engine.manifest import Manifest
from engine.snapshot import NOTE
from engine.sstable import Table

LOCK_NAME: Final = "lock"
_EXPECTED: Final = frozenset({manifest.NAME, LOCK_NAME, NOTE})

Told = Callable[[str, int], None]
"""Told of progress: the file's name, and how many bytes more were checked."""


@dataclass(frozen=True, slots=True)
class Damage:
    """What is wrong with a file. `offset` is where the damaged unit begins."""

    name: str
    offset: int
    what: str

    def __str__(self) -> str:
        return f"{self.name} at offset {self.offset}: {self.what}"


@dataclass(slots=True)
class Report:
    """What verification found. The folder is sound if there are no damages."""

    table_count: int = 0
    segment_count: int = 0
    entry_count: int = 0
    checked_bytes: int = 0
    damages: list[Damage] = field(default_factory=list)
    torn: tuple[Torn, ...] = ()
    strays: list[str] = field(default_factory=list)

    @property
    def is_sound(self) -> bool:
        return not self.damages


def files_of(disk: Disk, current: Manifest) -> list[str]:
    """The files that make up a data folder, but for the manifest: tables, then segments, oldest first."""
    return [*current.tables, *(segment.name for segment in list_segments(disk))]


def verify(
    disk: Disk,
    *,
    current: Manifest | None = None,
    is_cold: bool = False,
    told: Told = lambda name, count: None,
) -> Report:
    """Check a folder, by its own manifest or by the one that it is to get (`current`).

    Raises DiskError if it cannot be read, UnknownFormatError if it is of another version.
    """
    report = Report()
    if current is None:
        current = _read_manifest(disk, report)
        if current is None:
            return report
    metas: dict[str, Table] = {}
    try:
        for name in current.tables:
            table = _check_table(disk, name, report, is_cold=is_cold, told=told)
            if table is not None:
                metas[name] = table
        for level, names in enumerate(current.levels):
            opened = [metas[name] for name in names if name in metas]
            report.damages += _overlaps(level, opened)
    finally:
        for table in metas.values():
            table.close()
    durable = vouched(current, [table.meta for table in metas.values()])
    _check_log(disk, current, durable, report, told)
    known = {*_EXPECTED, *files_of(disk, current)}
    report.strays = [each for each in disk.names() if each not in known and "." in each]
    return report


def _read_manifest(disk: Disk, report: Report) -> Manifest | None:
    try:
        current = manifest.read(disk)
    except CorruptionError as error:
        report.damages.append(_damage(error))
        return None
    if current is None:
        report.damages.append(Damage(manifest.NAME, 0, "there is none: this is no data folder"))
        return None
    report.checked_bytes += disk.size(manifest.NAME)
    return current


def _damage(error: CorruptionError) -> Damage:
    name = error.path.rpartition("/")[2]
    expected, actual = (
        value if isinstance(value, str) else f"{value:#x}"
        for value in (error.expected, error.actual)
    )
    return Damage(name, error.offset, f"expected {expected}, found {actual}")


# Tables


def _check_table(
    disk: Disk, name: str, report: Report, *, is_cold: bool, told: Told
) -> Table | None:
    """Check all of a table; None if it cannot be opened."""
    report.table_count += 1
    try:
        if is_cold:
            drop_cache(disk, name)
        table = Table.open(disk, name)
    except MissingFileError:
        report.damages.append(
            Damage(name, 0, "the manifest names this table, and there is no file")
        )
        return None
    except CorruptionError as error:
        report.damages.append(_damage(error))
        return None
    size = disk.size(name)
    report.checked_bytes += size
    done = 0
    entry_count = 0
    is_whole = True
    last = b""
    for number in range(table.block_count):
        try:
            block = table.load(number, cached_only=False)
            assert block is not None
            entries = block.to_list()
        except CorruptionError as error:
            report.damages.append(_damage(error))
            is_whole = False
            continue
        for key, _, _ in entries:
            if key <= last:
                report.damages.append(Damage(name, 0, f"keys do not increase in block {number}"))
                break
            last = key
        entry_count += len(entries)
        upto = size * (number + 1) // table.block_count
        told(name, upto - done)
        done = upto
    told(name, size - done)
    report.entry_count += entry_count
    if is_whole and entry_count != table.meta.entry_count:
        what = f"expected {table.meta.entry_count} entries, found {entry_count}"
        report.damages.append(Damage(name, 0, what))
    return table


def _overlaps(level: int, tables: list[Table]) -> Iterator[Damage]:
    """Tables of a level that hold the same keys. In the first one they may, if the earlier one is the newer one."""
    if level == 0:
        pairs = list(combinations(tables, 2))
    else:
        pairs = list(pairwise(sorted(tables, key=lambda table: table.meta.key_min)))
    for a, b in pairs:
        if not (a.meta.key_min <= b.meta.key_max and b.meta.key_min <= a.meta.key_max):
            continue
        # Not by where they end: carrying out a drop moves that (`engine/drop.py`).
        if level == 0 and a.meta.position_min > b.meta.position_min:
            continue
        what = f"the keys of {b.name} overlap with this table's on level {level}"
        yield Damage(a.name, 0, what)


# The log


def _check_log(disk: Disk, current: Manifest, durable: int, report: Report, told: Told) -> None:
    """Check the log, of which all up to `durable` was durable."""
    segments = list_segments(disk)
    report.segment_count = len(segments)
    sizes = {segment.name: disk.size(segment.name) for segment in segments}
    try:
        found = examine(disk, start=current.log_start, vouched=durable, apply=lambda *entry: None)
        report.entry_count += found.entry_count
        if is_snapshot(disk):
            what = "expected the end of a snapshot's log, found bytes that do not verify"
            report.damages += (Damage(torn.name, torn.offset, what) for torn in found.torn)
        else:
            report.torn = found.torn
    except CorruptionError as error:
        first = _damage(error)
        report.damages.append(first)
        _check_later(disk, segments, first, report)
    for name, size in sizes.items():
        report.checked_bytes += size
        told(name, size)


def is_snapshot(disk: Disk) -> bool:
    """Whether the folder is a snapshot or a backup of one, and no node was ever started on it."""
    names = disk.names()
    return NOTE in names and LOCK_NAME not in names


def _check_later(disk: Disk, segments: list[Segment], first: Damage, report: Report) -> None:
    """The segments behind the first damage, each for itself; the last one may be torn."""
    for segment in segments[:-1]:
        if segment.name <= first.name:
            continue
        try:
            for _ in read_segment(disk, segment.name):
                report.entry_count += 1
        except CorruptionError as error:
            report.damages.append(_damage(error))


def drop_cache(disk: Disk, name: str) -> None:
    """Have the next reads of a file come from the disk."""
    file = disk.open(name)
    try:
        file.sync()  # What is not written out yet would stay in the cache.
        file.drop_cache()
    finally:
        file.close()
