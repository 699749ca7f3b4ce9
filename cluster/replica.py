"""One node's replica: records in the engine's store, and what it has seen of each slot.

It knows no commands and no sockets. Every write gets a dot of this replica's actor and a hybrid
timestamp, is encoded once, and the same bytes go to the commit log and the memtable. While this
node is the only actor, what it has seen of a slot is one counter; a write covers it wholly, so each
entry is complete and nothing has to be read before it.

Core: synchronous; time is an argument.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable

import msgspec

from cluster.clock import Actor, Counter, HybridClock
from cluster.expiry import ExpiryIndex
from cluster.record import (
    CODEC,
    EXPIRY_HEADER,
    HAS_EXPIRY,
    HEADER,
    MANY,
    decode,
)
from cluster.slot import DATABASE_COUNT, SLOT_COUNT, Row, Slot
from engine.disk import Disk
from engine.log import COMPLETE, ENVELOPE
from engine.memtable import ENTRY_OVERHEAD_BYTES
from engine.store import Store, StoreSettings

# A write on its way: slot, kind byte, expiry (0: never), payload. A deletion is kind DELETION.
Effect = tuple[Slot, int, int, bytes]

pack_header = HEADER.pack
pack_expiry_header = EXPIRY_HEADER.pack


class ReplicaState(msgspec.Struct, array_like=True):
    """What a replica must know of everything that the log no longer holds. Kept in the engine's manifest."""

    actor: Actor
    last_hlc: int
    counters: list[Counter]
    # The last dot of each other actor that wrote here, by slot: this node's former incarnations.
    past: dict[Actor, list[Counter]] = {}
    # This is the state in a snapshot or backup: what it was taken of may go on writing as `actor`.
    is_copy: bool = False


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
        self.actor = actor  # Of a new data folder; an old one brings its own.
        self.expiry = ExpiryIndex()
        self.clock = HybridClock()
        # The last dot of `actor`, by slot. An array: a list would hold as many objects, far apart.
        self.counters: array[Counter] = _no_counters()
        # The same of every other actor that entries here name.
        self.past: dict[Actor, array[Counter]] = {}

    @classmethod
    def open(cls, disk: Disk, settings: StoreSettings, new_actor: Actor) -> Replica:
        """Open the data folder, or begin one as `new_actor`; a copy's goes on as it. Raises EngineError."""
        replica = cls(new_actor)
        replica.store = Store.open(
            disk,
            CODEC,
            settings,
            initial_state=replica.capture(),
            observe=replica.observe,
            restore=replica.restore,
        )
        replica.store.capture = replica.capture
        return replica

    def capture(self) -> bytes:
        """The state to keep, as `restore` takes it."""
        return msgspec.msgpack.encode(
            ReplicaState(
                self.actor,
                self.clock.last,
                list(self.counters),
                {actor: list(counters) for actor, counters in self.past.items()},
            )
        )

    def restore(self, state: bytes) -> None:
        kept = msgspec.msgpack.decode(state, type=ReplicaState)
        self.clock.observe(kept.last_hlc)
        self.past = {actor: array("q", counters) for actor, counters in kept.past.items()}
        counters = array("q", kept.counters)
        if kept.is_copy and kept.actor != self.actor:
            self.past[kept.actor] = counters
        else:
            self.actor, self.counters = kept.actor, counters

    def write(self, effects: dict[Row, Effect], now_ms: int) -> None:
        """Give each write a dot and a timestamp, encode it, stage it for the log and put it into the memtable.

        Hot: every SET ends here, so what `Store.apply` and `Memtable.put` do for a complete entry
        is written out once more; `Store.apply` is the form to read (bench/serving.py measures,
        tests/cluster/test_replica.py compares).
        """
        store = self.store
        memtable = store.memtable
        slots = memtable.slots
        pieces = store.log.pieces
        counters = self.counters
        actor = self.actor
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
        if raw[0] & MANY:
            versions = decode(raw).versions
            seen = [(v.dot[0], v.dot[1], v.hlc) for v in versions]
        else:
            seen = [HEADER.unpack_from(raw)[1:]]
        for actor, counter, hlc in seen:
            counters = self.counters if actor == self.actor else self._past_of(actor)
            if counter > counters[slot]:
                counters[slot] = counter
            self.clock.observe(hlc)
        if at_ms := CODEC.expires_at_ms(raw):
            self.expiry.add(slot, row, at_ms)

    def _past_of(self, actor: Actor) -> array[Counter]:
        counters = self.past.get(actor)
        if counters is None:
            counters = self.past[actor] = _no_counters()
        return counters


def _no_counters() -> array[Counter]:
    return array("q", bytes(8 * (SLOT_COUNT + 1)))
