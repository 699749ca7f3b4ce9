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

Core: synchronous; time is an argument. PageFault goes to the caller before anything has changed.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from operator import add
from struct import Struct
from struct import error as StructError
from typing import Final, NamedTuple

import msgspec

from cluster import life
from cluster.clock import Actor, Counter, Dot, HybridClock, SlotClock
from cluster.delta import Outcome, clock_of, joined, lacks, settle, stripped, whole
from cluster.errors import ClusterError
from cluster.expiry import ExpiryIndex
from cluster.life import Life
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
from cluster.slot import DATABASE_COUNT, SLOT_COUNT, SYSTEM_SLOT, Row, Slot
from cluster.slot_clocks import CLOCK_COUNT, NOBODY, SEVERAL, ClocksState, SlotClocks
from engine.disk import Disk
from engine.log_format import COMPLETE, ENVELOPE
from engine.memtable import ENTRY_OVERHEAD_BYTES
from engine.store import Store, StoreSettings

# A write on its way: slot, kind byte, expiry (0: never), payload. A deletion is kind DELETION.
Effect = tuple[Slot, int, int, bytes]


class Beside(NamedTuple):
    """How a write leaves some versions of its row as they are: they are written once more, beside the new one."""

    stored: bytes  # The row, as it is stored; empty if there is none.
    kept: tuple[Version, ...]
    # What the author had seen beyond this slot's clock: it is superseded, here when it comes.
    seen: SlotClock | None

    @property
    def is_plain(self) -> bool:
        """Whether nothing stays, so that the entry is that of any other write."""
        return not self.kept and self.seen is None


UNCHECKED_ROW: Final = b"unchecked"  # Which row was written so last: see `open_at_start`.
OPEN_ROW: Final = b"open"  # And a slot and a row: see `note_open`.
CLOCK_ROW: Final = (
    b"clock"  # And the slot as two bytes: rows of the system's slot, see `join_clock`.
)
COUNTER_MAX: Final = (1 << 63) - 1  # What a column of `SlotClocks` holds.
RECENT_MAX: Final = 100_000  # Rows that are remembered while the log is read.
SKEW_MAX_MS: Final = 60_000  # What is timestamped further ahead does not advance this node's clock.

pack_header = HEADER.pack
pack_expiry_header = EXPIRY_HEADER.pack
_ENTRY: Final = Struct("<BHII")  # As `engine.log_format.ENVELOPE` packs it.
_DOTS: Final = Struct("<QQ")


@dataclass(eq=False)
class MalformedDelta(ClusterError):
    """What a peer sent is no delta. The caller closes the connection; deltas before it in a blob were taken."""

    reason: str

    def __str__(self) -> str:
        return f"malformed delta: {self.reason}"


@dataclass(frozen=True, slots=True)
class Conflict:
    """A delta that was refused: this row here holds what its author had not seen."""

    slot: Slot
    row: Row
    state: bytes  # The row with its whole context; empty if that is not decided yet.


class ReplicaState(msgspec.Struct, array_like=True):
    """What a replica must know of everything that the log no longer holds. Kept in the engine's manifest."""

    actor: Actor
    last_hlc: int
    counters: list[Counter]
    # The last dot of each other actor, by slot: other nodes, and this one's former incarnations.
    past: dict[Actor, list[Counter]] = {}
    # This is the state in a snapshot or backup: what it was taken of may go on writing as `actor`.
    is_copy: bool = False
    beyond: dict[Slot, list[Dot]] = {}
    unsettled: dict[Slot, tuple[list[Dot], list[Dot]]] = {}
    origin: Actor = 0  # The first actor of this data, of which copies are made too.
    open_rows: list[tuple[Slot, Row]] = []  # See `Replica.note_open`.


def state_of_copy(state: bytes) -> bytes:
    """The state to put into a copy of the data: whoever opens it writes as a new actor.

    Otherwise two nodes, or one node before and after a restore, would give the same dot to two
    different writes. Of a copy's state it is that state.
    """
    kept = msgspec.msgpack.decode(state, type=ReplicaState)
    return msgspec.msgpack.encode(msgspec.structs.replace(kept, is_copy=True))


class Replica:
    """The records of all slots at this node."""

    store: Store

    def __init__(self, actor: Actor) -> None:
        self.expiry = ExpiryIndex()
        self.clock = HybridClock()
        self.clocks = SlotClocks(actor)
        self.heard: array[int] = array("q", bytes(8 * CLOCK_COUNT))  # Changes by others, by slot.
        self.has_heard = False
        self.unsettled: dict[Slot, SlotClock] = {}  # The contexts that the slot's clock must reach.
        self.life = Life(actor, "", is_durable=False, is_clean=False, is_complete=True)
        self.lost_data = False  # What the process before had promised may not be here.
        # Called before anything of others is joined: what goes out must not claim to have seen it.
        self.before_hearing: Callable[[], None] = lambda: None
        # Called with each row that others have changed, while somebody wants to know.
        self.others_changed: Callable[[Row], None] | None = None
        # Called with each row that may have expired now, before its memory is given back.
        self.expiry_came: Callable[[Slot, Row], None] | None = None
        # Whether a row holds a write of this node that may be taken back: then nobody is told of it.
        self.is_undecided: Callable[[Slot, Row], bool] = lambda slot, row: False
        # Called with each row that may have got several versions by a join.
        self.has_siblings: Callable[[Slot, Row], None] = lambda slot, row: None
        # What others are told in their inquests of a row that is undecided; None: that it is. Raises PageFault.
        self.testimony: Callable[[Slot, Row], tuple[bytes, bytes] | None] = lambda slot, row: None
        self.origin = actor
        # Whether only the winner of a row's siblings is kept: see `_winner_alone`.
        self.keeps_one: Callable[[Row], bool] | None = None
        # Rows of which a write of this node was lost, and is about to be taken back.
        self.contested: set[tuple[Slot, Row]] = set()
        # Rows with writes of this node of which nobody knows whether they count: see `note_open`.
        self.open_rows: dict[tuple[Slot, Row], None] = {}
        # Those that are not decided yet: the log that tells of them may be gone when the next process looks.
        self.rows_under_way: Callable[[], Iterable[tuple[Slot, Row]]] = tuple
        self._recent: dict[tuple[Slot, Row], int] = {}  # Found at recovery: when they were written.
        self._new_actor = actor
        self._before: Life | None = None

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
        replica = cls(new_actor)
        replica.store = Store.open(
            disk,
            CODEC,
            settings,
            initial_state=replica.capture(),
            observe=replica.observe,
            restore=lambda state: replica._restore_from(disk, state, boot),
        )
        replica._settle_unsettled()
        before = replica._before
        replica.lost_data = before is None or not (before.is_durable or before.lost_nothing(boot))
        is_complete = before is not None and before.is_complete and not replica.lost_data
        replica.life = Life(
            replica.actor,
            boot,
            is_durable=is_durable,
            is_clean=False,
            is_complete=is_complete,
            earlier=replica._earlier(),
        )
        life.write(disk, replica.life)
        replica.store.capture = replica.capture
        return replica

    def _restore_from(self, disk: Disk, state: bytes, boot: str) -> None:
        """The folder is locked now."""
        self._before = life.read(disk)
        if self._before is not None and self._before.lost_nothing(boot):
            self._new_actor = self._before.actor
        self.restore(state)
        # Before the log is read: what another actor did may have gaps, also where that was this node.
        self.clocks.change_actor(self._new_actor)

    @property
    def actor(self) -> Actor:
        return self.clocks.actor

    @property
    def actors(self) -> frozenset[Actor]:
        """This process' actor and those of the ones before."""
        return frozenset((self.actor, *self.life.earlier))

    def _earlier(self) -> tuple[Actor, ...]:
        """The actors of the processes before; while no write of theirs is open, only the last one counts."""
        before = self._before
        if before is None:
            return ()
        known = (before.actor, *before.earlier) if self.open_rows else (before.actor,)
        return tuple(actor for actor in dict.fromkeys(known) if actor != self.actor)

    @property
    def is_complete(self) -> bool:
        """Whether all that this node ever promised is here: see `cluster/life.py`."""
        return self.life.is_complete

    def note(self, *, is_complete: bool | None = None, is_durable: bool | None = None) -> None:
        """Have it on the disk that the replica is complete now, or how it acknowledges. Raises DiskError."""
        changed = self.life
        if is_complete is not None:
            changed = msgspec.structs.replace(changed, is_complete=is_complete)
        if is_durable is not None:
            changed = msgspec.structs.replace(changed, is_durable=is_durable)
        if changed != self.life:
            life.write(self.store.disk, changed)
            self.life = changed

    def doubt(self) -> None:
        """The log has failed: what this process did may be lost, though the machine goes on. Raises DiskError.

        The next start is then one as after a power cut.
        """
        changed = msgspec.structs.replace(self.life, boot="")
        life.write(self.store.disk, changed)
        self.life = changed

    def close(self) -> None:
        """Sync and close everything; the next start goes on where this ended. Raises EngineError.

        After a failure of the log it does not: nobody knows what the disk has.
        """
        is_clean = self.store.log.failure is None
        self.store.close()
        if is_clean:
            life.write(self.store.disk, msgspec.structs.replace(self.life, is_clean=True))

    def capture(self) -> bytes:
        """The state to keep, as `restore` takes it."""
        clocks = self.clocks.capture()
        unsettled = {}
        for slot, clock in sorted(self.unsettled.items()):
            base, beyond = clock.freeze()
            unsettled[slot] = (list(base), list(beyond))
        return msgspec.msgpack.encode(
            ReplicaState(
                clocks.actor,
                self.clock.last,
                clocks.own,
                clocks.columns,
                False,
                clocks.beyond,
                unsettled,
                self.origin,
                list(dict.fromkeys((*self.open_rows, *self.rows_under_way()))),
            )
        )

    def restore(self, state: bytes) -> None:
        """Take back what `capture` gave."""
        kept = msgspec.msgpack.decode(state, type=ReplicaState)
        self.origin = kept.origin or kept.actor
        self.clock.observe(kept.last_hlc)
        self.clocks = SlotClocks.restore(
            ClocksState(kept.actor, kept.counters, kept.past, kept.beyond)
        )
        self.has_heard = bool(kept.past)
        self.unsettled = {
            slot: SlotClock(dict(base), set(beyond))
            for slot, (base, beyond) in kept.unsettled.items()
        }
        self.open_rows = dict.fromkeys(kept.open_rows)

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
            hlc += 1
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
        clock.last = hlc - 1
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
        unpack, unpack_header = _ENTRY.unpack_from, HEADER.unpack_from
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
                    if actor in (NOBODY, clocks.actor):
                        raise MalformedDelta("a dot of this node's own actor")
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
        if len(result.versions) > 1 and self.keeps_one is not None and self.keeps_one(row):
            result = self._winner_alone(slot, row, result, delta, clock)
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

    def _winner_alone(
        self, slot: Slot, row: Row, result: Record, delta: Record, clock: SlotClock
    ) -> Record:
        """The winner of a row of which no siblings are kept, as if it had seen the others.

        This is no other join: the others are dropped, and their dots stay seen, as those of what was
        superseded do. Wherever one of them still is, the join drops it as soon as it meets this state, and
        the winner of more versions is the winner of the winners: so all replicas end alike, in whatever
        order they hear. It needs no dot of its own, and makes no event.

        Not while a version is a write of this node that may be taken back: what it beat would be gone.
        """
        if (slot, row) in self.contested or self.is_undecided(slot, row):
            return result
        live = [version for version in result.versions if version.type != DELETION]
        kept = (live or result.versions)[:1]
        seen = SlotClock(dict(result.context), set(result.beyond))
        for version in (*result.versions, *delta.versions):
            seen.add(version.dot)
        return stripped(tuple(kept), joined(seen, clock_of(delta)), clock, delta.dots)

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

    def _settle_unsettled(self) -> None:
        for slot in list(self.unsettled):
            self._expect(slot, SlotClock())

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

    def note_open(self, slot: Slot, row: Row, now_ms: int, *, is_open: bool) -> None:
        """Have it in the log that nobody knows what came of a write of a row, or that it is known now."""
        if is_open != ((slot, row) in self.open_rows):
            if is_open:
                self.open_rows[slot, row] = None
            else:
                del self.open_rows[slot, row]
            name = OPEN_ROW + pack_place(slot, row)
            self.write({name: (SYSTEM_SLOT, STRING if is_open else DELETION, 0, b"")}, now_ms)

    def open_at_start(self, within_ms: int) -> list[tuple[Slot, Row]]:
        """The rows that the process before may have left open: noted, or written in its last moments. Once.

        Not those that were written beside siblings: such a write stays, whatever others have.
        """
        recent, self._recent = self._recent, {}
        last = max(recent.values(), default=0)
        found = [place for place, hlc in recent.items() if hlc >= last - (within_ms << 16)]
        return list(dict.fromkeys((*self.open_rows, *found)))

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
        row = CLOCK_ROW + slot.to_bytes(2, "big")
        self.write({row: (SYSTEM_SLOT, STRING, 0, encode_clock(self.clocks.clock(slot)))}, now_ms)

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

    def observe(self, slot: Slot, row: Row, raw: bytes) -> None:
        """Learn from an entry found at recovery: its dot is used, its timestamp is past, it may expire."""
        if slot == SYSTEM_SLOT and row.startswith(CLOCK_ROW) and len(row) == len(CLOCK_ROW) + 2:
            self.has_heard = True
            of_slot = int.from_bytes(row[len(CLOCK_ROW) :], "big")
            self.clocks.join(of_slot, decode_clock(raw[HEADER_BYTES:]))
        context: SlotClock | None = None
        if raw[0] & MANY:
            record = decode(raw)
            seen = [(v.dot[0], v.dot[1], v.hlc) for v in record.versions]
            context = clock_of(record)
        else:
            actor, counter, hlc = HEADER.unpack_from(raw)[1:]
            seen = [(actor, counter, hlc)]
            # What the short form implies may be missing as well.
            if self.clocks.is_after_gap(slot, (actor, counter)):
                context = SlotClock({actor: counter})
        if context is not None and slot != SYSTEM_SLOT:
            expected = self.unsettled.get(slot)
            self.unsettled[slot] = context if expected is None else joined(expected, context)
        if slot == SYSTEM_SLOT and row == UNCHECKED_ROW:
            place = unpack_place(raw[HEADER_BYTES:])
            self._recent.pop(place, None)
        if slot == SYSTEM_SLOT and row.startswith(OPEN_ROW):
            place = unpack_place(row[len(OPEN_ROW) :])
            if raw[0] == DELETION:
                self.open_rows.pop(place, None)
            else:
                self.open_rows[place] = None
        for actor, counter, hlc in seen:
            self.has_heard |= actor != self.clocks.actor
            is_mine = self._before is not None and actor == self._before.actor
            # Not where a write of this node comes back in a row that others have sent.
            if is_mine and slot != SYSTEM_SLOT and not self.clocks.covers(slot, (actor, counter)):
                self._note_recent((slot, row), hlc)
            self.clocks.add(slot, (actor, counter))
            self.clock.observe(hlc)
        if at_ms := CODEC.expires_at_ms(raw):
            self.expiry.add(slot, row, at_ms)

    def _note_recent(self, place: tuple[Slot, Row], hlc: int) -> None:
        recent = self._recent
        recent.pop(place, None)
        recent[place] = hlc
        while len(recent) > RECENT_MAX:
            del recent[next(iter(recent))]


def pack_place(slot: Slot, row: Row) -> bytes:
    """A row and its slot, as messages and the log name them."""
    return slot.to_bytes(2, "big") + row


def unpack_place(key: bytes) -> tuple[Slot, Row]:
    """Raises MalformedDelta."""
    slot = int.from_bytes(key[:2], "big")
    if len(key) < 9 or slot >= SLOT_COUNT:
        raise MalformedDelta("no such row")
    return slot, key[2:]


def entries_of(blob: bytes) -> Iterator[tuple[int, Slot, Row, bytes]]:
    """Flags, slot, row and record of each log entry in a blob. Raises MalformedDelta. `accept` has it inlined."""
    at, size = 0, len(blob)
    while at < size:
        if at + _ENTRY.size > size:
            raise MalformedDelta("an entry cut short")
        flags, slot, row_length, raw_length = _ENTRY.unpack_from(blob, at)
        row_at = at + _ENTRY.size
        raw_at = row_at + row_length
        at = raw_at + raw_length
        if at > size or raw_length < HEADER_BYTES or row_length < 7 or slot >= SLOT_COUNT:
            raise MalformedDelta("an entry with impossible lengths")
        yield flags, slot, blob[row_at:raw_at], blob[raw_at:at]


def delta_of(raw: bytes, context: SlotClock | None) -> Record:
    """A write as a delta: the short form means all that its actor did before, and `context` says the rest.

    Raises MalformedDelta.
    """
    record = record_of(raw)
    if context is None:
        return record
    return Record(record.versions, *joined(context, clock_of(record)).freeze())


def record_of(raw: bytes) -> Record:
    """A record that came from elsewhere. Raises MalformedDelta."""
    try:
        record = decode(raw)
        is_whole = encode(record) == raw
    except (StructError, IndexError) as error:
        raise MalformedDelta("a record cut short") from error
    if not is_whole:
        raise MalformedDelta("a record with lengths that do not fit")
    _check_dots((*(version.dot for version in record.versions), *record.context, *record.beyond))
    return record


def _check_dots(dots: Iterable[Dot]) -> None:
    for actor, counter in dots:
        if actor == NOBODY or not 0 < counter <= COUNTER_MAX:
            raise MalformedDelta("an impossible dot")


def encode_clock(clock: SlotClock) -> bytes:
    """Two bytes for the number of actors, then each with its counter; then the single dots."""
    base, beyond = clock.freeze()
    parts = [len(base).to_bytes(2, "little"), *(_DOTS.pack(*dot) for dot in base)]
    return b"".join([*parts, *(_DOTS.pack(*dot) for dot in beyond)])


def decode_clock(data: bytes) -> SlotClock:
    """Raises MalformedDelta."""
    count = int.from_bytes(data[:2], "little")
    if len(data) < 2 + count * _DOTS.size or (len(data) - 2) % _DOTS.size:
        raise MalformedDelta("a clock cut short")
    dots: list[Dot] = list(_DOTS.iter_unpack(data[2:]))
    _check_dots(dots)
    return SlotClock(dict(dots[:count]), set(dots[count:]))
