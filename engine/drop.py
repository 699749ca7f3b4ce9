"""Drops: the rows of a keyspace, or of a range of slots, that are gone at once.

Not a deletion of single rows: those are records. A drop is a *marker* in the log, told apart from
entries by a flag, and a `Drop` in the manifest for as long as a table lies about that has such rows.

**Rule of positions.** A drop has the log position of its marker. It hides what stands in tables
that were made from earlier positions (`position_max` below it), and nothing in others: what was
written after it must stay. What memtables held is removed from them at once. Compaction carries a
drop out; its output then says a `position_max` not below the drop's, so that it is not asked again.

**What was carried out is not taken back.** So a job carries out only drops whose markers are durable,
and the log cannot end before one of them but by damage: then what the tables hold is not what the log
says, and new writes would get positions that are taken. The manifest and the output's `position_max`
vouch for these markers (`vouched`), and recovery refuses a log that ends before them.

**Marker**, as an entry of the log:

    slot   0
    row    empty: all slots; else two bytes first slot, two bytes last slot, big endian
    raw    the tags, one byte each; none: all tags

Markers for all slots are the ones that format 1 had.

Drops of one keyspace that lie side by side are made one where that hides nothing else, so that
releasing many slots one after the other does not make the list long.

Core: pure and synchronous.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from math import ceil
from struct import Struct
from typing import Final

from engine.codec import SLOT_MAX
from engine.manifest import ALL_TAGS, Drop, Manifest
from engine.table_meta import TableMeta

_SLOTS: Final = Struct(">HH")


@dataclass(frozen=True, slots=True)
class Marker:
    """What the log says of a drop. `tags` None: every keyspace."""

    tags: frozenset[int] | None
    slot_min: int = 0
    slot_max: int = SLOT_MAX

    def encode(self) -> tuple[bytes, bytes]:
        """Return row and raw of the log's entry."""
        is_everywhere = (self.slot_min, self.slot_max) == (0, SLOT_MAX)
        assert self.tags or (self.tags is None and not is_everywhere), "an empty raw would lie"
        row = b"" if is_everywhere else _SLOTS.pack(self.slot_min, self.slot_max)
        return row, bytes(sorted(self.tags or ()))

    @classmethod
    def decode(cls, row: bytes, raw: bytes) -> Marker:
        """Read the log's entry."""
        if not row:
            return cls(frozenset(raw))
        slot_min, slot_max = _SLOTS.unpack(row)
        return cls(frozenset(raw) or None, slot_min, slot_max)

    def covers(self, slot: int, tag: int) -> bool:
        """Whether rows of this slot and keyspace are dropped."""
        return self.slot_min <= slot <= self.slot_max and (self.tags is None or tag in self.tags)

    def drops(self, position: int) -> list[Drop]:
        """What the manifest lists for it."""
        tags = [ALL_TAGS] if self.tags is None else sorted(self.tags)
        return [Drop(position, tag, self.slot_min, self.slot_max) for tag in tags]


class DropIndex:
    """The drops of a manifest, asked by slot and keyspace: what every read from a table does."""

    __slots__ = ("_by_slot", "drops")

    def __init__(self, drops: Sequence[Drop]) -> None:
        """Index a list that does not change any more."""
        self.drops = drops
        self._by_slot: dict[int, Mapping[int, int]] = {}

    def of_slot(self, slot: int) -> Mapping[int, int]:
        """Return the position of the last drop of each tag (ALL_TAGS among them) in a slot."""
        latest = self._by_slot.get(slot)
        if latest is None:
            found: dict[int, int] = {}
            for drop in self.drops:
                if drop.slot_min <= slot <= drop.slot_max:
                    found[drop.tag] = max(drop.position, found.get(drop.tag, 0))
            latest = self._by_slot[slot] = found
        return latest

    def hides(self, slot: int, tag: int, position_max: int) -> bool:
        """Whether rows of this slot and keyspace are gone from a table made up to `position_max`."""
        latest = self.of_slot(slot)
        return position_max < latest.get(tag, 0) or position_max < latest.get(ALL_TAGS, 0)


class Replacements:
    """Drops that stand in a list only as a part of a later one, which is not durable yet.

    If a crash takes the later one, they come back with their own positions. So for as long as that may
    be, no compaction carries out drops from the first of them on: its output would say a position
    above it, and so not be hidden when it comes back.
    """

    __slots__ = ("_first", "_last")

    def __init__(self) -> None:
        self._first = self._last = 0  # Positions: of the first replaced, and of who replaced last.

    def note(self, replaced: Set[Drop], position: int, log_durable: int) -> None:
        """The drop at `position` has taken in these."""
        if self._last <= log_durable:
            self._first = position
        self._first = min([self._first, *(drop.position for drop in replaced)])
        self._last = position

    def durable(self, drops: Iterable[Drop], log_durable: int, log_start: int) -> list[Drop]:
        """Return the drops that no crash can take or change. The manifest has those up to `log_start`."""
        if self._last > log_durable:
            log_durable = max(log_start, min(log_durable, self._first - 1))
        return [drop for drop in drops if drop.position <= log_durable]


def with_marker(drops: Sequence[Drop], marker: Marker, position: int, base: int) -> list[Drop]:
    """Return the drops with a marker's.

    Those after `base`, where the memtable began that is written now, are replaced by a later one
    that covers them, and joined with one beside them. No table ends between the two positions, so
    that the later position hides the same rows; and the memtable's flush makes them durable at once.
    """
    kept = list(drops)
    for new in marker.drops(position):
        slot_min, slot_max = new.slot_min, new.slot_max
        rest = []
        for old in kept:
            is_near = old.slot_min <= slot_max + 1 and slot_min <= old.slot_max + 1
            is_inside = slot_min <= old.slot_min and old.slot_max <= slot_max
            if old.position <= base or not (
                (old.tag == new.tag and is_near) or (new.tag == ALL_TAGS and is_inside)
            ):
                rest.append(old)
            else:
                slot_min = min(slot_min, old.slot_min)
                slot_max = max(slot_max, old.slot_max)
        kept = [*rest, Drop(position, new.tag, slot_min, slot_max)]
    return kept


def hidden_count(table: TableMeta, drops: Iterable[Drop]) -> int:
    """Return about how many entries of a table are hidden: exact where drops take all slots.

    A table says what it holds by keyspace and not by slot; its entries are taken to be spread evenly.
    """
    shares: dict[int, float] = {}
    for drop in drops:
        if share := _hidden_share(drop, table):
            shares[drop.tag] = min(1.0, shares.get(drop.tag, 0.0) + share)
    if not shares:
        return 0
    least = shares.get(ALL_TAGS, 0.0)
    hidden = [of.entry_count * max(shares.get(tag, least), least) for tag, of in table.tags.items()]
    return ceil(sum(hidden))


def is_hidden(table: TableMeta, drops: Sequence[Drop]) -> bool:
    """Whether certainly all of a table is hidden: then it can go without being read."""
    whole = {drop.tag for drop in drops if _hidden_share(drop, table) == 1.0}
    return ALL_TAGS in whole or (bool(whole) and whole >= table.tags.keys())


def hiding(drops: Iterable[Drop], tables: Sequence[TableMeta]) -> list[Drop]:
    """Return the drops that may hide something in some table."""
    return [drop for drop in drops if any(_hidden_share(drop, table) for table in tables)]


def vouched(current: Manifest, tables: Iterable[TableMeta]) -> int:
    """Return up to where the log was durable, as a manifest and its live tables say."""
    return max([current.vouched, *(table.position_max for table in tables)])


def _hidden_share(drop: Drop, table: TableMeta) -> float:
    """Return which part of a table's slots a drop takes; 0.0 where it hides nothing."""
    if table.position_max >= drop.position:
        return 0.0
    if drop.tag != ALL_TAGS and drop.tag not in table.tags:
        return 0.0
    first = int.from_bytes(table.key_min[:2], "big")
    last = int.from_bytes(table.key_max[:2], "big")
    common = min(last, drop.slot_max) - max(first, drop.slot_min) + 1
    return max(0, common) / (last - first + 1)
