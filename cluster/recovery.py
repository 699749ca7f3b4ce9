"""What a replica knows when it begins: taken back from the manifest's state, then learned from the log.

It reads no files and keeps no rows: while the engine's store is opened, it hands over the state as of the log's start
(`begin`), then each entry that it finds (`observe`). When all of it was read (`settle`), a replica begins with these
clocks, timestamps, expiries and open rows. Which actor it writes as is decided before the log is read: what another
actor did may have gaps, also where that was this node.

Core.
"""

from __future__ import annotations

from typing import Final

from cluster.clock import Actor, HybridClock, SlotClock
from cluster.delta import clock_of, joined, lacks
from cluster.delta_wire import decode_clock
from cluster.expiry import ExpiryIndex
from cluster.life import EARLIER_MAX, Life
from cluster.open_row import OpenRows
from cluster.record import CODEC, HEADER, HEADER_BYTES, MANY, decode
from cluster.replica_state import decode_state, encode_state
from cluster.slot import SYSTEM_SLOT, Row, Slot
from cluster.slot_clocks import ClocksState, SlotClocks

# And the slot as two bytes: rows of the system's slot with what was seen of a slot, see `Replica.join_clock`.
CLOCK_ROW: Final = b"clock"


class Recovery:
    """One per start. `new_actor`: as which the replica goes on if that is safer."""

    def __init__(self, new_actor: Actor) -> None:
        self.clocks = SlotClocks(new_actor)
        self.clock = HybridClock()
        self.expiry = ExpiryIndex()
        self.has_heard = False
        self.unsettled: dict[Slot, SlotClock] = {}  # The contexts that the slot's clock must reach.
        self.open_rows = OpenRows()
        self.origin = new_actor
        self.goes_on = False  # As the actor of the process before.
        self._before: Life | None = None
        self._mine: tuple[Actor, ...] = ()  # Of the processes before, the last one first.

    def capture(self) -> bytes:
        """The state to keep of a new folder."""
        rows = self.open_rows.rows
        return encode_state(self.clocks, self.clock.last, self.unsettled, self.origin, rows, [])

    def begin(self, state: bytes, before: Life | None, boot: str) -> None:
        """Take back the state, as the actor of the process before or a new one. `boot`: as in `Life`."""
        actor = self.clocks.actor
        self._before = before
        if before is not None:
            self._mine = (before.actor, *before.earlier)
        if before is not None and before.lost_nothing(boot):
            actor = before.actor
            self.goes_on = True
        self.restore(state)
        self.clocks.change_actor(actor)

    def restore(self, state: bytes) -> None:
        """Take back what `Replica.capture` gave."""
        kept = decode_state(state)
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
        packed = kept.open_writes or [b""] * len(kept.open_rows)  # Not kept before.
        rows = dict(zip(kept.open_rows, packed, strict=True))
        self.open_rows = OpenRows(rows, kept.together)

    def observe(self, slot: Slot, row: Row, raw: bytes) -> None:
        """Learn from an entry of the log: its dot is used, its timestamp is past, it may expire."""
        if slot == SYSTEM_SLOT:
            self._observe_mark(row, raw)
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
        for actor, counter, hlc in seen:
            self.has_heard |= actor != self.clocks.actor
            # Not where a write of this node comes back in a row that others have sent.
            is_mine = actor in self._mine and slot != SYSTEM_SLOT
            if is_mine and not self.clocks.covers(slot, (actor, counter)):
                self.open_rows.observe_write((slot, row), hlc)
            self.clocks.add(slot, (actor, counter))
            self.clock.observe(hlc)
        if at_ms := CODEC.expires_at_ms(raw):
            self.expiry.add(slot, row, at_ms)

    def _observe_mark(self, row: Row, raw: bytes) -> None:
        """What the replica noted for itself, in the system's slot."""
        if row.startswith(CLOCK_ROW) and len(row) == len(CLOCK_ROW) + 2:
            self.has_heard = True
            of_slot = int.from_bytes(row[len(CLOCK_ROW) :], "big")
            self.clocks.join(of_slot, decode_clock(raw[HEADER_BYTES:]))
        self.open_rows.observe_mark(row, raw)

    def settle(self) -> None:
        """All was read: forget which slots are no longer unsettled."""
        for slot, context in list(self.unsettled.items()):
            if not lacks(self.clocks.view(slot), context):
                del self.unsettled[slot]

    def life(self, boot: str, *, is_durable: bool) -> Life:
        """What is to be said of the process that begins now. It has what was promised if nothing was promised early."""
        before = self._before
        is_complete = (
            before is not None
            and before.is_complete
            and (before.is_durable or before.lost_nothing(boot))
        )
        history = 0 if before is None else before.history
        return Life(
            self.clocks.actor,
            boot,
            is_durable=is_durable,
            is_clean=False,
            is_complete=is_complete,
            earlier=self._earlier(),
            history=history if is_complete else history + 1,
        )

    def _earlier(self) -> tuple[Actor, ...]:
        """The actors of the processes before; while no write of theirs is open, only the last one counts."""
        known = self._mine if self.open_rows.is_any else self._mine[:1]
        others = [actor for actor in dict.fromkeys(known) if actor != self.clocks.actor]
        return tuple(others[:EARLIER_MAX])


def clock_row(slot: Slot) -> Row:
    """The system's row with what was seen of a slot."""
    return CLOCK_ROW + slot.to_bytes(2, "big")
