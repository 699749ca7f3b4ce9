"""What one replica has seen of every slot: a clock per slot, in little memory.

Nearly all that a replica sees of a slot was written by one or a few actors, without gaps. What this
replica writes itself has no gaps ever, and is one number per slot in an array, which the hot path of
writes counts up by itself (`own`). What came from others is kept for the slots that have any, and
dots beyond a gap for the few slots that have one.

It decides nothing about rows (`cluster/delta.py` does), and writes nothing: each clock is logged with
the entries that it covers, and all of them are captured when a memtable freezes.

Core.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator

import msgspec

from cluster.clock import Actor, Counter, Dot, SlotClock
from cluster.slot import SLOT_COUNT, Slot

# One more than there are slots of keys: the system's own.
CLOCK_COUNT = SLOT_COUNT + 1


class ClocksState(msgspec.Struct, array_like=True):
    """All clocks, as they are kept in the engine's manifest."""

    actor: Actor
    own: list[Counter]
    others: dict[Slot, list[Dot]]
    beyond: dict[Slot, list[Dot]]


class SlotClocks:
    """The clocks of one replica, which mints dots as `actor`."""

    __slots__ = ("_rest", "actor", "own")

    def __init__(self, actor: Actor) -> None:
        self.actor = actor
        # The last dot of `actor`, by slot. An array: a list would hold as many objects, far apart.
        self.own: array[Counter] = array("q", bytes(8 * CLOCK_COUNT))
        self._rest: dict[Slot, SlotClock] = {}  # Of other actors.

    def covers(self, slot: Slot, dot: Dot) -> bool:
        if dot[0] == self.actor:
            return dot[1] <= self.own[slot]
        rest = self._rest.get(slot)
        return rest is not None and rest.covers(dot)

    def add(self, slot: Slot, dot: Dot) -> None:
        """See a dot. One of this actor that was not minted here can only be one that was forgotten:

        it is taken as the last, so that it is never given out again.
        """
        if dot[0] == self.actor:
            self.own[slot] = max(self.own[slot], dot[1])
            return
        rest = self._rest.get(slot)
        if rest is None:
            rest = self._rest[slot] = SlotClock()
        rest.add(dot)

    def join(self, slot: Slot, clock: SlotClock) -> None:
        """See what another clock has seen."""
        others = SlotClock(
            {actor: counter for actor, counter in clock.base.items() if actor != self.actor},
            {dot for dot in clock.beyond if dot[0] != self.actor},
        )
        if counter := clock.base.get(self.actor, 0):
            self.own[slot] = max(self.own[slot], counter)
        if others.base or others.beyond:
            self._rest.setdefault(slot, SlotClock()).join(others)

    def clock(self, slot: Slot) -> SlotClock:
        """The clock of a slot, as a copy."""
        rest = self._rest.get(slot)
        clock = SlotClock() if rest is None else SlotClock(dict(rest.base), set(rest.beyond))
        if counter := self.own[slot]:
            clock.base[self.actor] = counter
        return clock

    def has_others(self, slot: Slot) -> bool:
        """Whether anybody but this actor has written to the slot: if not, the short form of a record says all."""
        return slot in self._rest

    def slots(self) -> Iterator[Slot]:
        """Those of which anything was seen, in order."""
        return (slot for slot in range(CLOCK_COUNT) if self.own[slot] or slot in self._rest)

    def change_actor(self, actor: Actor) -> None:
        """Mint as another actor from now on; what the old one did stays seen."""
        for slot, counter in enumerate(self.own):
            if counter:
                self._rest.setdefault(slot, SlotClock()).join(SlotClock({self.actor: counter}))
        self.actor = actor
        self.own = array("q", bytes(8 * CLOCK_COUNT))

    def capture(self) -> ClocksState:
        frozen = {slot: rest.freeze() for slot, rest in sorted(self._rest.items())}
        return ClocksState(
            self.actor,
            list(self.own),
            {slot: list(base) for slot, (base, _) in frozen.items() if base},
            {slot: list(beyond) for slot, (_, beyond) in frozen.items() if beyond},
        )

    @classmethod
    def restore(cls, state: ClocksState) -> SlotClocks:
        clocks = cls(state.actor)
        clocks.own = array("q", state.own)
        for slot in {**state.others, **state.beyond}:
            clocks._rest[slot] = SlotClock(
                dict(state.others.get(slot, ())), set(state.beyond.get(slot, ()))
            )
        return clocks
