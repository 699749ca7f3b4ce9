"""Whole databases: reading them in slices, and counting their keys.

It decides nothing about single keys (`context.py`), and it answers no command (`commands/scan.py`).
Work on a whole database must not stop the loop, so everything here that can be long is a generator:

    yields None         a little was done: others may be served yields a PageFault  a page must be
    fetched before it can go on; it tries the same again when it is resumed

A `View` is one database as a command sees it: its number and the time are those of the command's
start, because the context is bound to other sessions while the command is suspended. Inside EXEC
the writes of earlier commands of the transaction are not in the store yet: the view lays them over
it.

`Counts` keeps the number of keys per slot and database. A slot's numbers hold while the replica
made no dot there and none of its keys has expired; so an idle server counts once, and a busy one
counts what changed.

Core: no I/O, time is an argument.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, replace
from itertools import compress, count, islice
from typing import TYPE_CHECKING, Final

from cluster.record import (
    DELETION,
    EXPIRY_HEADER,
    EXPIRY_HEADER_BYTES,
    HAS_EXPIRY,
    HEADER,
    HEADER_BYTES,
    MANY,
    RAW_ENCODING,
    STRING,
    TEXT_ENCODING,
    TYPE_MASK,
    decode,
)
from cluster.replica import Effect, Replica
from cluster.slot import (
    DATABASE_COUNT,
    HASH_BYTES,
    SLOT_COUNT,
    SYSTEM_SLOT,
    TAG_OFFSET,
    Key,
    Row,
    Slot,
    row_of,
    slot_of,
)
from engine.store import PageFault, Store

if TYPE_CHECKING:
    from respkv.context import Context

Raw = bytes  # An encoded record.
Step = PageFault | None

PAGE_ROWS: Final = 200  # Rows looked at between two yields.
FAULTS_MAX: Final = 16  # Of one impatient refresh.
LEAPS_MAX: Final = (
    16  # Looks into the store for the next slot. One that holds nothing does no harm.
)
TYPE_NAMES: Final = {STRING: b"string"}
# The kind bytes of nearly all records: live at any time.
PLAIN_KINDS: Final = frozenset((STRING, STRING | RAW_ENCODING, STRING | TEXT_ENCODING))
_NEVER: Final = 1 << 63


def is_live(raw: Raw, now_ms: int) -> bool:
    """Whether a record shows a value. Callers in a hurry look into PLAIN_KINDS first."""
    kind = raw[0]
    if kind in PLAIN_KINDS:
        return True
    if kind & MANY:
        return decode(raw).winner(now_ms) is not None
    if kind & TYPE_MASK == DELETION:
        return False
    return not kind & HAS_EXPIRY or _expiry_of(raw) > now_ms


def type_of(raw: Raw, now_ms: int) -> int:
    """The type of a live record."""
    if not raw[0] & MANY:
        return raw[0] & TYPE_MASK
    winner = decode(raw).winner(now_ms)
    assert winner is not None
    return winner.type


def _expiry_of(raw: Raw) -> int:
    return int.from_bytes(raw[HEADER_BYTES:EXPIRY_HEADER_BYTES], "little")


def is_in_memory(store: Store) -> bool:
    """Whether all rows are in `store.active`: a slot is one dict, and nothing is to be joined."""
    return not store.has_more


@dataclass(frozen=True, slots=True)
class Page:
    """Rows of a view, in order. `next_row` is where to go on, None at the slot's end.

    `looked_at` counts rows of other databases too. `is_split`: rows of the last row's hash follow.
    """

    rows: list[tuple[Row, Raw]]
    looked_at: int
    next_row: Row | None
    is_split: bool


class View:
    """One database as the command sees it that made this view."""

    __slots__ = ("counts", "db", "is_flushed", "now_ms", "overlay", "store")

    def __init__(self, ctx: Context) -> None:
        self.store = ctx.store
        self.counts = ctx.counts
        self.db = ctx.db
        self.now_ms = ctx.now_ms
        self.is_flushed = ctx.db in ctx.flushed  # By an earlier command of this EXEC.
        self.overlay: dict[Slot, dict[Row, Raw]] = {}
        for effects in (ctx.below, ctx.effects):
            for row, effect in effects.items():
                if effect[0] != SYSTEM_SLOT and row[TAG_OFFSET] == ctx.db:
                    self.overlay.setdefault(effect[0], {})[row] = encode_effect(effect)

    def get(self, key: Key) -> Raw | None:
        """The record of one key if it is live. Raises PageFault."""
        slot, row = slot_of(key), row_of(self.db, key)
        raw = self.overlay.get(slot, {}).get(row)
        if raw is None and not self.is_flushed:
            raw = self.store.get(slot, row)
        return raw if raw is not None and is_live(raw, self.now_ms) else None

    def page(self, slot: Slot, start: bytes, limit: int) -> Page:
        """About `limit` rows of a slot from `start` (a row or a hash) on, also dead ones.

        Raises PageFault.
        """
        if self.is_flushed:
            found: list[tuple[Row, Raw]] = []
            next_row = None
        else:
            found, next_row = self.store.scan(slot, start, limit)
        is_split = bool(
            found and next_row is not None and found[-1][0][:HASH_BYTES] == next_row[:HASH_BYTES]
        )
        rows = [item for item in found if item[0][TAG_OFFSET] == self.db]
        written = self.overlay.get(slot)
        if written:
            merged = dict(rows)
            for row, raw in written.items():
                if row >= start and (next_row is None or row < next_row):
                    merged[row] = raw
            rows = sorted(merged.items())
        return Page(rows, len(found), next_row, is_split)

    def may_hold(self, slot: Slot) -> bool:
        """Whether a slot may hold rows of this database."""
        if slot in self.overlay:
            return True
        return not self.is_flushed and (
            self.store.holds_slot(slot) and not self.counts.lacks(slot, self.db)
        )

    def next_slot(self, slot: Slot) -> Slot | None:
        """The first slot from `slot` on that may hold rows. Quick if all is in memory. Raises PageFault."""
        written = min((other for other in self.overlay if other >= slot), default=None)
        if self.is_flushed:
            return written
        stored: Slot | None = None
        for _ in range(LEAPS_MAX):
            stored = next_slot(self.store, self.counts.pass_lacking(slot, self.db))
            if stored is None or not self.counts.lacks(stored, self.db):
                break
            slot = stored
        if stored is None or written is None:
            return written if stored is None else stored
        return min(written, stored)

    def pages(self) -> Iterator[list[tuple[Row, Raw]] | PageFault]:
        """All rows in no order, also dead ones and, to save a list, those of other databases; and faults."""
        at = 0
        while True:
            try:
                slot = self.next_slot(at)
            except PageFault as fault:
                yield fault
                continue
            if slot is None:
                return
            at = slot + 1
            if self.is_flushed or slot in self.overlay:
                yield from self.pages_of(slot)
            else:
                yield from slot_pages(self.store, slot)

    def pages_of(self, slot: Slot) -> Iterator[list[tuple[Row, Raw]] | PageFault]:
        """As `pages`, of one slot and in order."""
        start: Row | None = b""
        while start is not None:
            try:
                page = self.page(slot, start, PAGE_ROWS)
            except PageFault as fault:
                yield fault
                continue
            yield page.rows
            start = page.next_row


def next_slot(store: Store, slot: Slot) -> Slot | None:
    """The first slot from `slot` on that has rows of keys. Raises PageFault."""
    if is_in_memory(store):
        occupied = compress(count(slot), islice(store.active, slot, SLOT_COUNT))
        return next(occupied, None)
    found = store.next_slot(slot) if slot < SLOT_COUNT else None
    return found if found is not None and found < SLOT_COUNT else None


def slot_pages(store: Store, slot: Slot) -> Iterator[list[tuple[Row, Raw]] | PageFault]:
    """The rows of a slot, of all databases, in no order, as lists of some PAGE_ROWS."""
    if is_in_memory(store):
        items = list(store.active[slot].items())
        if len(items) <= PAGE_ROWS:
            yield items
            return
        for at in range(0, len(items), PAGE_ROWS):
            yield items[at : at + PAGE_ROWS]
        return
    start: Row | None = b""
    limit = PAGE_ROWS
    while start is not None:
        try:
            rows, start = store.scan(slot, start, limit)
        except PageFault as fault:
            yield fault
            continue
        yield rows
        limit = min(2 * limit, 32 * PAGE_ROWS)  # A scan sorts the rest of the slot each time.


def encode_effect(effect: Effect) -> Raw:
    """A buffered write in the form of a record. Its dot is not minted yet: 0."""
    _, kind, expire_at_ms, payload = effect
    if expire_at_ms:
        return EXPIRY_HEADER.pack(kind | HAS_EXPIRY, 0, 0, 0, expire_at_ms) + payload
    return HEADER.pack(kind, 0, 0, 0) + payload


# Counting


@dataclass(slots=True)
class Tally:
    """Live keys of one database, in a slot or in all; `expiry_sum_ms` adds up their expiries."""

    keys: int = 0
    expires: int = 0
    expiry_sum_ms: int = 0

    def add(self, other: Tally, sign: int = 1) -> None:
        self.keys += sign * other.keys
        self.expires += sign * other.expires
        self.expiry_sum_ms += sign * other.expiry_sum_ms

    def mean_ttl_ms(self, now_ms: int) -> int:
        """The mean time to live of the keys that expire; 0 if none does."""
        return max(0, self.expiry_sum_ms // self.expires - now_ms) if self.expires else 0


@dataclass(slots=True)
class SlotTally:
    """Of one slot: a tally per database, right until the first expiry."""

    valid_until_ms: int
    databases: dict[int, Tally]

    def add(self, rows: list[tuple[Row, Raw]], now_ms: int) -> None:
        databases = self.databases
        for row, raw in rows:
            kind = raw[0]
            if kind not in PLAIN_KINDS and not is_live(raw, now_ms):
                continue
            tally = databases.get(row[TAG_OFFSET])
            if tally is None:
                tally = databases[row[TAG_OFFSET]] = Tally()
            tally.keys += 1
            if kind not in PLAIN_KINDS:
                self._add_expiry(tally, raw, now_ms)

    def _add_expiry(self, tally: Tally, raw: Raw, now_ms: int) -> None:
        if raw[0] & MANY:
            winner = decode(raw).winner(now_ms)
            at_ms = winner.expire_at_ms if winner is not None else 0
        else:
            at_ms = _expiry_of(raw) if raw[0] & HAS_EXPIRY else 0
        if at_ms:
            tally.expires += 1
            tally.expiry_sum_ms += at_ms
            self.valid_until_ms = min(self.valid_until_ms, at_ms)


_NOTHING: Final = SlotTally(_NEVER, {})


class Counts:
    """Keys per physical database, as far as they were counted. The context keeps the only one."""

    def __init__(self, replica: Replica) -> None:
        self._replica = replica
        self._seen = (
            array("q", [-1]) * SLOT_COUNT
        )  # The replica's counter of each slot when it was counted.
        self._unknown = SLOT_COUNT  # Slots that were never counted.
        self._slots: dict[Slot, SlotTally] = {}  # Those with keys.
        self._totals = [Tally() for _ in range(DATABASE_COUNT)]
        self._flushes = 0  # Counting that began before a flush is void.
        self._start = 0  # Where a refresh goes on that ran out of time: each slot has its turn.

    def __getitem__(self, db: int) -> Tally:
        """The last known numbers of a database."""
        return self._totals[db]

    def lacks(self, slot: Slot, db: int) -> bool:
        """Whether it is known that a slot holds no key of a database."""
        if self._seen[slot] != self._replica.change_count(slot):
            return False
        counted = self._slots.get(slot)
        return counted is None or db not in counted.databases

    def pass_lacking(self, slot: Slot, db: int) -> Slot:
        """The first slot from `slot` on of which it is not known that it lacks a database."""
        seen, count_of, slots = self._seen, self._replica.change_count, self._slots
        while slot < SLOT_COUNT and seen[slot] == count_of(slot):
            counted = slots.get(slot)
            if counted is not None and db in counted.databases:
                break
            slot += 1
        return slot

    def slots_of(self, db: int) -> dict[Slot, int]:
        """How many keys of a database each slot held when it was counted last."""
        return {
            slot: counted.databases[db].keys
            for slot, counted in self._slots.items()
            if db in counted.databases
        }

    def estimate(self, db: int) -> Tally:
        """As `[db]`, with the tables' own numbers where slots were never counted."""
        tally = self._totals[db]
        unknown, tables = self._unknown, self._replica.store.tables
        if not unknown or not tables:
            return tally
        stored = sum(table.meta.tags[db].live_count for table in tables if db in table.meta.tags)
        return replace(tally, keys=tally.keys + stored * unknown // SLOT_COUNT)

    def forget(self, dbs: set[int]) -> None:
        """Databases were emptied. Their keys are gone without a dot."""
        self._flushes += 1
        for slot, counted in list(self._slots.items()):
            for db in dbs & counted.databases.keys():
                del counted.databases[db]
            if not counted.databases:
                del self._slots[slot]
        for db in dbs:
            self._totals[db] = Tally()

    def dirty(self, now_ms: int) -> list[Slot]:
        """Slots that changed since they were counted."""
        seen, counters = self._seen, self._replica.changes()
        slots = []
        if seen != counters:
            slots = [
                s for s, (old, new) in enumerate(zip(seen, counters, strict=True)) if old != new
            ]
        slots += [
            slot
            for slot, counted in self._slots.items()
            if counted.valid_until_ms <= now_ms and seen[slot] == counters[slot]
        ]
        return slots

    def refresh(self, now_ms: int, *, is_patient: bool = True) -> Iterator[Step]:
        """Count what changed. Without patience, slots that need a page are left as they are.

        Then it ends after a few of these, since most slots of a large table do: the next refresh
        goes on behind them.
        """
        if self._unknown == SLOT_COUNT and is_in_memory(self._replica.store):
            self._install_empty()
        slots = self.dirty(now_ms)
        slots = [s for s in slots if s >= self._start] + [s for s in slots if s < self._start]
        count_of, store = self._replica.change_count, self._replica.store
        empty = range(0)  # Slots without rows, as of the last yield: there may be some after it.
        done = faults = 0
        for slot in slots:
            while slot not in empty:
                try:
                    found = next_slot(store, slot)
                except PageFault as fault:
                    if not is_patient:
                        break
                    yield fault
                    continue
                empty = range(slot, SLOT_COUNT if found is None else found)
                break
            if slot in empty:
                self._install(slot, count_of(slot), _NOTHING)
                done += 1
            else:
                for step in self._count(slot, now_ms):
                    if step is not None and not is_patient:
                        faults += 1
                        break
                    yield step
                    empty = range(0)
                # A slot costs as much as some rows, and far more if it has to be looked up in tables.
                done += 10 + len(store.active[slot]) if is_in_memory(store) else PAGE_ROWS
            if done >= PAGE_ROWS or faults > FAULTS_MAX:
                self._start = slot + 1
                if faults > FAULTS_MAX:
                    return
                yield None
                done, empty = 0, range(0)

    def _install_empty(self) -> None:
        """After a start: all slots without rows at once, which are most of them."""
        self._seen = self._replica.changes()
        self._unknown = 0
        for slot in compress(range(SLOT_COUNT), self._replica.store.active):
            self._seen[slot] = -1
            self._unknown += 1

    def _count(self, slot: Slot, now_ms: int) -> Iterator[Step]:
        """Count a slot. Writes meanwhile make it dirty again; a flush voids the count."""
        counter, flushes = self._replica.change_count(slot), self._flushes
        counted = SlotTally(_NEVER, {})
        for number, rows in enumerate(slot_pages(self._replica.store, slot)):
            if isinstance(rows, PageFault):
                yield rows
                continue
            if number:
                yield None
            counted.add(rows, now_ms)
        if flushes == self._flushes:
            self._install(slot, counter, counted)

    def _install(self, slot: Slot, counter: int, counted: SlotTally) -> None:
        if slot in self._slots:
            for db, tally in self._slots.pop(slot).databases.items():
                self._totals[db].add(tally, -1)
        if counted.databases:
            for db, tally in counted.databases.items():
                self._totals[db].add(tally)
            self._slots[slot] = counted
        if self._seen[slot] < 0:
            self._unknown -= 1
        self._seen[slot] = counter

    def of_slots(self, first: Slot, end: Slot, view: View) -> Generator[Step, None, int]:
        """Count the keys of some slots, `end` excluded, as far as they have changed."""
        seen, changes = self._seen[first:end], self._replica.changes()[first:end]
        dirty = [s for s, (a, b) in enumerate(zip(seen, changes, strict=True), first) if a != b]
        for slot, counted in list(self._slots.items()):
            if first <= slot < end and counted.valid_until_ms <= view.now_ms:
                dirty.append(slot)
        occupied = -1  # The first slot with rows from the one before on, as of the last yield.
        for number, slot in enumerate(sorted(dirty)):
            while occupied < slot:
                try:
                    found = next_slot(view.store, slot)
                except PageFault as fault:
                    yield fault
                else:
                    occupied = SLOT_COUNT if found is None else found
            if occupied > slot:
                self._install(slot, self._replica.change_count(slot), _NOTHING)
            else:
                yield from self._count(slot, view.now_ms)
                occupied = -1
            if number % PAGE_ROWS == PAGE_ROWS - 1:
                yield None
                occupied = -1
        return sum(count for slot, count in self.slots_of(view.db).items() if first <= slot < end)

    def exact(self, view: View) -> Iterator[Step]:
        """Count until nothing is dirty; then `self[view.db].keys` is right at that moment.

        Writes that keep coming would make that endless: what changes while the third pass runs may
        be missed.
        """
        for _ in range(3):
            if not self.dirty(view.now_ms):
                return
            yield from self.refresh(view.now_ms)


def counts(known: Counts, now_ms: int, is_time_up: Callable[[], bool]) -> dict[int, Tally]:
    """For INFO: a tally per physical database with keys, counted until the time is up.

    It never waits: slots whose pages are not in memory keep their last known numbers, and those
    that were never counted get their share of what the tables say.
    """
    for _ in known.refresh(now_ms, is_patient=False):
        if is_time_up():
            break
    return {db: tally for db in range(DATABASE_COUNT) if (tally := known.estimate(db)).keys}


__all__ = ["Counts", "Page", "Tally", "View", "counts", "is_live", "type_of"]
