"""One node's replica: records in the engine's store, and what it has seen of each slot.

It knows no commands and no sockets. A write of its own gets a dot of this replica's actor and a hybrid
timestamp, is encoded once, and the same bytes go to the commit log, the memtable and, if there are
others, to them. It needs no read: its context is the slot's clock, so it has seen all that is here.

What others wrote comes in three forms:

    accept        deltas as they were logged elsewhere, with the context of their slots. Nearly always
                  they follow what is here and are taken without looking at a row.
    repair        a row's whole state, joined with what is here
    join_clock    all that a clock covers is here now

A slot is *unsettled* while some stored row has a context that the slot's clock does not cover: a delta
overtook another one. A write there has to pass on that context, so it reads its row first.

What it knows when it begins is found out by `cluster/recovery.py`, and what is kept of that between
processes is in `cluster/replica_state.py` and `cluster/life.py`. What a delta does to a row is decided in
`cluster/delta.py`; the forms of deltas are in `cluster/delta_wire.py`.

Core: synchronous; time is an argument. PageFault goes to the caller before anything has changed.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from operator import add
from typing import Final

import msgspec

from cluster import life
from cluster.clock import Actor, Counter, Dot, SlotClock
from cluster.delta import Outcome, clock_of, joined, lacks, settle, stripped, whole, winner_alone
from cluster.delta_wire import (
    ENTRY,
    MalformedDelta,
    delta_of,
    encode_clock,
    entries_of,
    pack_place,
    record_of,
)
from cluster.life import Life
from cluster.open_row import LOOKED_ROW, UNCHECKED_ROW, OpenWrites, UnderWay, open_row
from cluster.record import (
    CODEC,
    DELETION,
    EXPIRY_HEADER,
    EXPIRY_HEADER_BYTES,
    HAS_EXPIRY,
    HEADER,
    HEADER_BYTES,
    MANY,
    STRING,
    Record,
    Version,
    decode,
    decode_version,
    encode,
)
from cluster.recovery import Recovery, clock_row
from cluster.replica_state import encode_state
from cluster.sibling import Beside
from cluster.slot import DATABASE_COUNT, SLOT_COUNT, SYSTEM_SLOT, Row, Slot
from cluster.slot_clocks import CLOCK_COUNT, NOBODY, SEVERAL
from cluster.witness import Mark
from engine.disk import Disk
from engine.log_format import COMPLETE, ENVELOPE
from engine.memtable import ENTRY_OVERHEAD_BYTES
from engine.store import Store, StoreSettings

# A write on its way: slot, kind byte, expiry (0: never), payload. A deletion is kind DELETION.
Effect = tuple[Slot, int, int, bytes]

SKEW_MAX_MS: Final = 60_000  # What is timestamped further ahead does not advance this node's clock.

pack_header = HEADER.pack
pack_expiry_header = EXPIRY_HEADER.pack


@dataclass(frozen=True, slots=True)
class Conflict:
    """A delta that was refused: this row here holds what its author had not seen."""

    slot: Slot
    row: Row
    state: bytes  # The row with its whole context; empty if that is not decided yet.


class Replica:
    """The records of all slots at this node."""

    def __init__(self, store: Store, recovery: Recovery, own_life: Life) -> None:
        """It begins with what `recovery` found, which is its own from now on."""
        self.store = store
        self.life = own_life
        self.goes_on = recovery.goes_on  # As the actor of the process before.
        self._is_doubted = False
        self.expiry = recovery.expiry
        self.clock = recovery.clock
        self.clocks = recovery.clocks
        self.heard: array[int] = array("q", bytes(8 * CLOCK_COUNT))  # Changes by others, by slot.
        self.has_heard = recovery.has_heard
        self.unsettled = recovery.unsettled  # The contexts that the slot's clock must reach.
        # Called before anything of others is joined: what goes out must not claim to have seen it.
        self.before_hearing: Callable[[], None] = lambda: None
        # Called with each row that others have changed, while somebody wants to know.
        self.others_changed: Callable[[Row], None] | None = None
        # Called with each row that may have expired now, before its memory is given back.
        self.expiry_came: Callable[[Slot, Row], None] | None = None
        # Whether a row holds a write of this node that may be taken back: then nobody is told of it.
        self.is_undecided: Callable[[Slot, Row], bool] = lambda slot, row: False
        # Whether what others wrote may have been dropped by a node that had taken it (`cluster/held.py`).
        self.may_be_dropped = False
        # Called with each row that may have got several versions by a join.
        self.has_siblings: Callable[[Slot, Row], None] = lambda slot, row: None
        # What others are told in their inquests of a row that is undecided; None: that it is. Raises PageFault.
        self.testimony: Callable[[Slot, Row], tuple[bytes, bytes] | None] = lambda slot, row: None
        self.origin = recovery.origin
        # Whether only the winner of a row's siblings is kept: see `cluster.delta.winner_alone`.
        self.keeps_one: Callable[[Row], bool] | None = None
        # Rows of which a write of this node was lost, and is about to be taken back.
        self.contested: set[tuple[Slot, Row]] = set()
        self.open_rows = recovery.open_rows
        # What is not decided yet: the log that tells of it may be gone when the next process looks.
        self.under_way: Callable[[], UnderWay] = UnderWay

    @classmethod
    def open(
        cls,
        disk: Disk,
        settings: StoreSettings,
        new_actor: Actor,
        *,
        boot: str = "this",
        is_durable: bool = False,
    ) -> Replica:
        """Open the data folder, or begin one as `new_actor`, as which it goes on too if that is safer.

        `boot` names the run of the machine; `is_durable`: acknowledgements will wait for the disk.
        Raises EngineError.
        """
        recovery = Recovery(new_actor)
        store = Store.open(
            disk,
            CODEC,
            settings,
            initial_state=recovery.capture(),
            observe=recovery.observe,
            # Read then: the folder is locked.
            restore=lambda state: recovery.begin(state, life.read(disk), boot),
        )
        recovery.settle()
        replica = cls(store, recovery, recovery.life(boot, is_durable=is_durable))
        life.write(disk, replica.life)
        store.capture = replica.capture
        return replica

    @property
    def actor(self) -> Actor:
        return self.clocks.actor

    @property
    def actors(self) -> frozenset[Actor]:
        """This process' actor and those of the ones before."""
        return frozenset((self.actor, *self.life.earlier))

    @property
    def is_complete(self) -> bool:
        """Whether all that this node ever promised is here: see `cluster/life.py`."""
        return self.life.is_complete

    @property
    def mark(self) -> Mark:
        """How far this node has got: a restart finds it at least there, unless it finds that something may be lost."""
        log = self.store.log
        return self.life.history, log.synced if self.life.is_durable else log.position

    def note(self, *, is_complete: bool | None = None, is_durable: bool | None = None) -> None:
        """Have it on the disk that the replica is complete now, or how it acknowledges. Raises DiskError."""
        changed = self.life
        if is_complete is not None:
            changed = msgspec.structs.replace(changed, is_complete=is_complete)
        if is_durable is not None:
            changed = msgspec.structs.replace(changed, is_durable=is_durable)
        self._rewrite(changed)

    def begin_history(self, number: int) -> None:
        """Others know more of this node than it does: it is incomplete, also after a restart. Raises DiskError.

        Then it is incomplete all the same, and only the disk does not know.
        """
        self.life = msgspec.structs.replace(self.life, is_complete=False, history=number)
        life.write(self.store.disk, self.life)

    def _rewrite(self, changed: Life) -> None:
        if changed != self.life:
            life.write(self.store.disk, changed)
            self.life = changed

    def doubt(self) -> None:
        """What this process did may be lost, though the machine goes on. Raises DiskError.

        The next start is then one as after a power cut.
        """
        self._is_doubted = True
        self._rewrite(msgspec.structs.replace(self.life, boot=""))

    def close(self) -> None:
        """Sync and close everything; the next start goes on where this ended. Raises EngineError.

        Not so after a failure of the log, or another doubt: nobody knows what the disk has.
        """
        is_clean = self.store.log.failure is None and not self._is_doubted
        self.store.close()
        if is_clean:
            life.write(self.store.disk, msgspec.structs.replace(self.life, is_clean=True))

    def capture(self) -> bytes:
        """The state to keep, as `Recovery.restore` takes it."""
        under_way = self.under_way()
        rows = {**dict.fromkeys(under_way.rows, b""), **self.open_rows.rows}
        return encode_state(
            self.clocks, self.clock.last, self.unsettled, self.origin, rows, under_way.together
        )

    def changes(self) -> array[int]:
        """A count for each slot that grows with every change: to see which changed."""
        if not self.has_heard:
            return self.clocks.own[:SLOT_COUNT]
        own = self.clocks.own
        return array("q", map(add, own[:SLOT_COUNT], self.heard))

    def change_count(self, slot: Slot) -> int:
        """The same for one slot."""
        return self.clocks.own[slot] + self.heard[slot]

    def write(
        self,
        effects: dict[Row, Effect],
        now_ms: int,
        written: list[tuple[Slot, Row, bytes]] | None = None,
        beside: dict[Row, Beside] | None = None,
    ) -> None:
        """Give each write a dot and a timestamp, encode it, stage it for the log and put it into the memtable.

        All rows of one call have the same timestamp: so the log tells what was written together (`OpenRows`).
        What others have to be sent is appended to `written`. `beside` says of rows that are written unchecked
        what stays there; others are replaced. Raises PageFault, with nothing changed, if a slot is unsettled and
        the row is not in memory.

        Hot: every SET ends here, so what `Store.apply` and `Memtable.put` do for a complete entry
        is written out once more; `Store.apply` is the form to read (bench/serving.py measures,
        tests/cluster/test_replica.py compares).
        """
        store = self.store
        stored: dict[Row, bytes] = {}
        if self.unsettled:
            for row, effect in effects.items():
                if effect[0] in self.unsettled:
                    stored[row] = store.get(effect[0], row) or b""
        if beside:
            stored.update((row, each.stored) for row, each in beside.items() if not each.is_plain)
        memtable = store.memtable
        slots = memtable.slots
        pieces = store.log.pieces
        counters = self.clocks.own
        actor = self.clocks.actor
        clock = self.clock
        hlc = now_ms << 16
        if hlc <= clock.last:
            hlc = clock.last + 1
        for row, (slot, kind, expire_at_ms, payload) in effects.items():
            counters[slot] = counter = counters[slot] + 1
            if expire_at_ms:
                head = pack_expiry_header(kind | HAS_EXPIRY, actor, counter, hlc, expire_at_ms)
                self.expiry.add(slot, row, expire_at_ms)
            else:
                head = pack_header(kind, actor, counter, hlc)
            raw = head + payload
            if row in stored:
                raw = self._with_context(
                    slot, raw, stored[row], beside.get(row) if beside else None
                )
            if written is not None:
                written.append((slot, row, raw))
            pieces += (ENVELOPE(COMPLETE, slot, len(row), len(raw)), row, raw)
            rows = slots[slot]
            old = rows.get(row)
            rows[row] = raw
            if old is not None:
                memtable.weight_bytes += len(raw) - len(old)
            else:
                memtable.weight_bytes += len(row) + len(raw) + ENTRY_OVERHEAD_BYTES
                store.forget_below(slot, row)
        if effects:
            clock.last = hlc
        for row in beside or ():
            place = pack_place(effects[row][0], row)
            self.write({UNCHECKED_ROW: (SYSTEM_SLOT, STRING, 0, place)}, now_ms)

    def _with_context(self, slot: Slot, raw: bytes, stored: bytes, beside: Beside | None) -> bytes:
        """A write in an unsettled slot, or beside others: with all that the slot and its row have seen.

        What only its author has seen goes into the row's context, and not into the slot's clock: that would
        claim rows which have not come. All of it stands in one entry of the log, so that a crash leaves
        the versions before, or those after.
        """
        context = self.clocks.clock(slot)
        if stored:
            context.join(clock_of(decode(stored)))
        version = decode_version(raw)
        if beside is None:
            return encode(Record((version,), *context.freeze()))
        versions = sorted((version, *beside.kept), key=lambda each: each.rank, reverse=True)
        if beside.seen is not None:
            context.join(beside.seen)
            self._expect(slot, context)
        return encode(Record(tuple(versions), *context.freeze()))

    # What others wrote

    def accept(
        self,
        blob: bytes,
        contexts: dict[Slot, SlotClock],
        now_ms: int,
        *,
        is_checked: bool,
        start: int = 0,
    ) -> Iterator[Conflict]:
        """Take deltas as another replica has logged them: `blob` holds its log entries from `start` on.

        `contexts` says for a slot what the deltas' author had seen there of actors other than itself.
        `is_checked`: a delta is refused, and its conflict given, if the row here holds a live dot
        that its author had not seen. Raises PageFault: fetch it and go on with a new call; what was
        taken already is not taken again. Raises MalformedDelta.

        Hot for deltas that follow what is here (bench/replicated.py).
        """
        self.before_hearing()
        store = self.store
        clocks = self.clocks
        own, sole, beyond = clocks.own, clocks.sole, clocks.beyond
        unsettled, heard = self.unsettled, self.heard
        others_changed = self.others_changed
        self.has_heard = True
        clock = self.clock
        hlc_max = (now_ms + SKEW_MAX_MS) << 16
        memtable, pieces = store.memtable, store.log.pieces
        memory = memtable.slots
        at, size = start, len(blob)
        logged = start  # Before this, what was taken as it came stands in `pieces`.
        unpack, unpack_header = ENTRY.unpack_from, HEADER.unpack_from
        column_of: Actor = SEVERAL  # Which none is: NOBODY has to be looked at.
        column: array[Counter] = own
        try:
            while at < size:
                if at + 11 > size:
                    raise MalformedDelta("an entry cut short")
                flags, slot, row_length, raw_length = unpack(blob, at)
                row_at = at + 11
                raw_at = row_at + row_length
                end = raw_at + raw_length
                if end > size or raw_length < HEADER_BYTES or row_length < 7 or slot >= SLOT_COUNT:
                    raise MalformedDelta("an entry with impossible lengths")
                row = blob[row_at:raw_at]
                raw = blob[raw_at:end]
                kind, actor, counter, hlc = unpack_header(raw)
                if actor != column_of and not kind & MANY:
                    if actor == NOBODY or (actor == clocks.actor and counter > own[slot]):
                        raise MalformedDelta("a dot of this node's own actor")
                    if actor != clocks.actor:  # Else another ends what this node has begun.
                        column, column_of = clocks.column(actor), actor
                if (
                    kind & MANY
                    or column[slot] != counter - 1
                    or own[slot]
                    or (sole[slot] != actor and sole[slot] != NOBODY)
                    or slot in contexts
                    or slot in beyond
                    or slot in unsettled
                    or flags != COMPLETE
                ):
                    delta = record_of(raw)
                    if not kind & MANY:
                        delta = delta_of(raw, contexts.get(slot))
                    if logged < at:  # In order.
                        pieces.append(blob[logged:at])
                    logged = at  # Should it fault: this one was not taken.
                    conflict = self._accept_slowly(slot, row, delta, is_checked, hlc_max)
                    logged = at = end
                    if conflict is not None:
                        yield conflict
                    continue
                if kind & HAS_EXPIRY:
                    if raw_length < EXPIRY_HEADER_BYTES:
                        raise MalformedDelta("a record cut short")
                    at_ms = int.from_bytes(raw[HEADER_BYTES:EXPIRY_HEADER_BYTES], "little")
                    self.expiry.add(slot, row, at_ms)
                column[slot] = counter
                sole[slot] = actor
                heard[slot] += 1
                if clock.last < hlc <= hlc_max:
                    clock.last = hlc
                # What `Store.apply` does; the log gets all of them in one piece.
                rows = memory[slot]
                old = rows.get(row)
                rows[row] = raw
                if old is not None:
                    memtable.weight_bytes += raw_length - len(old)
                else:
                    memtable.weight_bytes += row_length + raw_length + ENTRY_OVERHEAD_BYTES
                    store.forget_below(slot, row)
                at = end
                if others_changed is not None:
                    others_changed(row)
        finally:
            if logged < at:
                pieces.append(blob if at - logged == size else blob[logged:at])

    def refusals(self, blob: bytes, contexts: dict[Slot, SlotClock]) -> list[Conflict]:
        """What `accept` would refuse of a blob, of which nothing is applied. Raises PageFault, MalformedDelta."""
        conflicts = []
        for _, slot, row, raw in entries_of(blob):
            delta = delta_of(raw, contexts.get(slot))
            conflict, _ = self._check(slot, row, delta, self.clocks.clock(slot))
            if conflict is not None:
                conflicts.append(conflict)
        return conflicts

    def _check(
        self, slot: Slot, row: Row, delta: Record, clock: SlotClock
    ) -> tuple[Conflict | None, Record | None]:
        """Whether a delta's author had not seen something that is live here; and the row, if that was read."""
        context = clock_of(delta)
        if not lacks(context, clock):
            return None, None
        raw = self.store.get(slot, row)
        at_hand = Record(()) if raw is None else decode(raw)
        mine = {version.dot for version in delta.versions}
        # One that came before and is gone, or that was overtaken, was superseded by something that had seen it.
        is_gone = mine.isdisjoint(at_hand.dots) and all(
            clock.covers(dot) or at_hand.has_seen(dot) for dot in mine
        )
        if self.may_be_dropped:
            if mine <= at_hand.dots:
                return None, at_hand  # It was taken before: whatever came beside it since.
            # Only what its own author wrote later tells that it was built upon.
            actors = {version.dot[0] for version in at_hand.versions}
            is_gone = is_gone and all(dot[0] in actors for dot in mine)
        unseen = [v for v in at_hand.versions if not context.covers(v.dot)]
        if not is_gone and any(v.dot not in mine for v in unseen):
            state = b"" if self.is_undecided(slot, row) else encode(whole(at_hand, clock))
            return Conflict(slot, row, state), at_hand
        return None, at_hand

    def _accept_slowly(
        self, slot: Slot, row: Row, delta: Record, is_checked: bool, hlc_max: int
    ) -> Conflict | None:
        clock = self.clocks.view(slot)
        at_hand: Record | None = None
        if is_checked:
            conflict, at_hand = self._check(slot, row, delta, clock)
            if conflict is not None:
                return conflict
        self._join(slot, row, delta, clock, at_hand, hlc_max)
        return None

    def repair(self, slot: Slot, row: Row, record: Record, now_ms: int) -> bool:
        """Join a row's whole state, as `cluster.delta.whole` gives it. True if anything was new. Raises PageFault."""
        self.before_hearing()
        self.has_heard = True
        clock = self.clocks.view(slot)
        hlc_max = (now_ms + SKEW_MAX_MS) << 16
        return self._join(slot, row, record, clock, None, hlc_max)

    def merge(self, slot: Slot, row: Row, record: Record, now_ms: int) -> bytes | None:
        """As `repair`, and the row as it is then. Raises PageFault."""
        raw = self.store.get(slot, row)
        self.before_hearing()
        self.has_heard = True
        at_hand = Record(()) if raw is None else decode(raw)
        hlc_max = (now_ms + SKEW_MAX_MS) << 16
        self._join(slot, row, record, self.clocks.view(slot), at_hand, hlc_max)
        return self.store.get(slot, row)

    def _join(
        self,
        slot: Slot,
        row: Row,
        delta: Record,
        clock: SlotClock,
        at_hand: Record | None,
        hlc_max: int,
    ) -> bool:
        outcome, result = settle(delta, clock, at_hand)
        is_one_kept = (
            outcome is Outcome.DELTA and self.keeps_one is not None and self.keeps_one(row)
        )
        if outcome is Outcome.READ or is_one_kept:
            raw = self.store.get(slot, row)
            at_hand = Record(()) if raw is None else decode(raw)
            outcome, result = settle(delta, clock, at_hand)
        if outcome is Outcome.IGNORE:
            return False
        assert result is not None
        if (
            len(result.versions) > 1
            and self.keeps_one is not None
            and self.keeps_one(row)
            # Not while a version is a write of this node that may be taken back: what it beat would be gone.
            and (slot, row) not in self.contested
            and not self.is_undecided(slot, row)
        ):
            result = winner_alone(result, delta, clock)
        self.heard[slot] += 1
        raw = encode(result)
        if outcome is Outcome.DELTA or len(result.versions) > 1:
            self.has_siblings(slot, row)
        self.store.apply(slot, row, raw, is_complete=outcome is Outcome.COMPLETE)
        if self.others_changed is not None:
            self.others_changed(row)
        is_in_log = delta.dots <= result.dots
        self._note_record(slot, row, delta, hlc_max)
        if not is_in_log:  # Something was dead already when it came.
            self._log_clock(slot, (hlc_max >> 16) - SKEW_MAX_MS)
        if at_ms := CODEC.expires_at_ms(raw):
            self.expiry.add(slot, row, at_ms)
        return True

    def _note_record(self, slot: Slot, row: Row, delta: Record, hlc_max: int) -> None:
        """Its dots are seen, its timestamps are past, its context is to be reached."""
        for version in delta.versions:
            self.clocks.add(slot, version.dot)
            if version.hlc <= hlc_max:
                self.clock.observe(version.hlc)
        self._expect(slot, clock_of(delta))

    def _expect(self, slot: Slot, context: SlotClock) -> None:
        """A stored row has this context: the slot is unsettled until its clock covers it."""
        expected = self.unsettled.get(slot)
        if expected is not None:
            context = joined(expected, context)
        if lacks(self.clocks.view(slot), context):
            self.unsettled[slot] = context
        elif expected is not None:
            del self.unsettled[slot]

    def put_back(self, slot: Slot, row: Row, versions: tuple[Version, ...]) -> None:
        """Have a row show these versions, of which it may have lost some: a write of this node is taken back.

        Nobody else may have taken that write, or have been told of it. Raises PageFault.
        """
        self._replace(slot, row, versions)

    def rewrite(
        self, slot: Slot, row: Row, versions: tuple[Version, ...], now_ms: int
    ) -> frozenset[Dot]:
        """The same under new dots, which are given: a write of this node that keeps values and timestamps.

        Raises PageFault.
        """
        self.before_hearing()
        own, actor = self.clocks.own, self.clocks.actor
        renewed = []
        for version in versions:
            own[slot] += 1
            renewed.append(replace(version, dot=(actor, own[slot])))
        self._replace(slot, row, tuple(renewed))
        return frozenset(version.dot for version in renewed)

    def _replace(self, slot: Slot, row: Row, versions: tuple[Version, ...]) -> None:
        raw = self.store.get(slot, row)
        record = Record(()) if raw is None else decode(raw)
        clock = self.clocks.view(slot)
        self.heard[slot] += 1
        raw = encode(stripped(versions, joined(clock_of(record), clock), clock))
        self.store.apply(slot, row, raw)
        if self.others_changed is not None:
            self.others_changed(row)
        if at_ms := CODEC.expires_at_ms(raw):
            self.expiry.add(slot, row, at_ms)

    def note_open(
        self, slot: Slot, row: Row, now_ms: int, writes: OpenWrites | None = None
    ) -> None:
        """Have it in the log that nobody knows what came of writes of a row."""
        self._change_open((slot, row), now_ms, b"" if writes is None else writes.packed())

    def note_known(self, slot: Slot, row: Row, now_ms: int) -> None:
        """What was noted is over."""
        self._change_open((slot, row), now_ms, None)

    def note_looked(self, now_ms: int) -> None:
        """All that processes before this one may have left open has been noted."""
        self.write({LOOKED_ROW: (SYSTEM_SLOT, STRING, 0, b"")}, now_ms)

    def _change_open(self, place: tuple[Slot, Row], now_ms: int, packed: bytes | None) -> None:
        if self.open_rows.change(place, packed):
            kind = DELETION if packed is None else STRING
            self.write({open_row(place): (SYSTEM_SLOT, kind, 0, packed or b"")}, now_ms)

    def join_clock(self, slot: Slot, clock: SlotClock, now_ms: int) -> None:
        """All that a clock covers is here now. Logged as a row of the system's slot."""
        if not lacks(self.clocks.clock(slot), clock):
            return
        self.before_hearing()
        self.has_heard = True
        self.clocks.join(slot, clock)
        self.heard[slot] += 1
        self._expect(slot, SlotClock())
        self._log_clock(slot, now_ms)

    def _log_clock(self, slot: Slot, now_ms: int) -> None:
        """Have it in the log what was seen of a slot beside the dots of stored rows."""
        packed = encode_clock(self.clocks.clock(slot))
        self.write({clock_row(slot): (SYSTEM_SLOT, STRING, 0, packed)}, now_ms)

    def state_of(self, slot: Slot, row: Row) -> bytes:
        """A row with its whole context, for others; empty if there is no trace of it. Raises PageFault."""
        raw = self.store.get(slot, row)
        if raw is None:
            return b""
        return encode(whole(decode(raw), self.clocks.clock(slot)))

    def flush(self, databases: list[int]) -> None:
        """Drop all rows of the given physical databases."""
        if len(databases) == DATABASE_COUNT:
            self.store.drop_slots(0, SLOT_COUNT - 1)  # No row has to be looked at.
        else:
            self.store.drop(databases)

    def expire(self, now_ms: int, is_time_up: Callable[[], bool]) -> int:
        """Give back what has expired in memory, until `is_time_up`. Returns how many rows."""
        count = 0
        again = []
        for slot, row in self.expiry.due(now_ms):
            if self.expiry_came is not None:
                self.expiry_came(slot, row)
            if self.store.forget(slot, row, now_ms):
                count += 1
            else:
                raw = self.store.active[slot].get(row)
                if raw is not None and (at_ms := CODEC.expires_at_ms(raw)):
                    again.append((slot, row, at_ms))
            if is_time_up():
                break
        for slot, row, at_ms in again:
            self.expiry.add(slot, row, at_ms)
        return count
