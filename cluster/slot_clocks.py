"""What one replica has seen of every slot: a clock per slot, in little memory.

Nearly all that a replica sees of a slot was written by one or a few actors, without gaps. So the clocks
are columns: one array of counters for each actor, by slot, of which the own one is counted up by the
hot path of writes itself (`own`). What this replica writes has no gaps ever. Dots beyond a gap are
kept for the few slots that have one.

`sole[slot]` is the only other actor that was seen there, NOBODY, or SEVERAL. It lets a replica take a
delta by a few comparisons where one coordinator writes a slot, which is the usual state.

It decides nothing about rows (`cluster/delta.py` does), and writes nothing: each clock is logged with
the entries that it covers, and all of them are captured when a memtable freezes.

Core.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from itertools import compress
from operator import or_
from typing import Final

import msgspec

from cluster.clock import Actor, Counter, Dot, SlotClock
from cluster.slot import SLOT_COUNT, Slot

# One more than there are slots of keys: the system's own.
CLOCK_COUNT: Final = SLOT_COUNT + 1
NOBODY: Final = 0  # No actor is called so: see `cluster/delta_wire.py`.
SEVERAL: Final = -1
_NONE: Final[set[Dot]] = set()  # Never changed.


class ClocksState(msgspec.Struct, array_like=True):
    """All clocks, as they are kept in the engine's manifest."""

    actor: Actor
    own: list[Counter]
    columns: dict[Actor, list[Counter]]
    beyond: dict[Slot, list[Dot]]


class SlotClocks:
    """The clocks of one replica, which mints dots as `actor`."""

    __slots__ = ("actor", "beyond", "columns", "own", "sole")

    def __init__(self, actor: Actor) -> None:
        self.actor = actor
        # The last dot of `actor`, by slot. An array: a list would hold as many objects, far apart.
        self.own: array[Counter] = no_counters()
        self.columns: dict[Actor, array[Counter]] = {}  # The same of each other actor.
        self.beyond: dict[Slot, set[Dot]] = {}  # Of other actors, after a gap.
        self.sole: list[Actor] = [NOBODY] * CLOCK_COUNT

    def covers(self, slot: Slot, dot: Dot) -> bool:
        actor, counter = dot
        if actor == self.actor:
            return counter <= self.own[slot]
        column = self.columns.get(actor)
        if column is not None and counter <= column[slot]:
            return True
        beyond = self.beyond.get(slot)
        return beyond is not None and dot in beyond

    def is_after_gap(self, slot: Slot, dot: Dot) -> bool:
        """Whether not all that its actor did before a dot was seen."""
        actor, counter = dot
        if actor == self.actor:
            return False
        column = self.columns.get(actor)
        return counter > (0 if column is None else column[slot]) + 1

    def column(self, actor: Actor) -> array[Counter]:
        """The counters of another actor, to be read; `add` writes them."""
        column = self.columns.get(actor)
        if column is None:
            column = self.columns[actor] = no_counters()
        return column

    def add(self, slot: Slot, dot: Dot) -> None:
        """See a dot. One of this actor that was not minted here can only be one that was forgotten:

        it is taken as the last, so that it is never given out again.
        """
        actor, counter = dot
        if actor == self.actor:
            self.own[slot] = max(self.own[slot], counter)
            return
        column = self.column(actor)
        last = column[slot]
        if counter <= last:
            return
        self._note(slot, actor)
        beyond = self.beyond.get(slot)
        if counter > last + 1:
            if beyond is None:
                beyond = self.beyond[slot] = set()
            beyond.add(dot)
            return
        if beyond is not None:
            while (actor, counter + 1) in beyond:
                counter += 1
                beyond.discard((actor, counter))
            if not beyond:
                del self.beyond[slot]
        column[slot] = counter

    def _note(self, slot: Slot, actor: Actor) -> None:
        sole = self.sole[slot]
        if sole != actor:
            self.sole[slot] = actor if sole == NOBODY else SEVERAL

    def join(self, slot: Slot, clock: SlotClock) -> None:
        """See what another clock has seen."""
        for actor, counter in clock.base.items():
            if actor == self.actor:
                self.own[slot] = max(self.own[slot], counter)
                continue
            column = self.column(actor)
            if counter > column[slot]:
                self._note(slot, actor)
                column[slot] = counter
        dots = clock.beyond | self.beyond.pop(slot, set())
        for dot in sorted(dots):  # Each again: the base may have reached it, or what is before it.
            self.add(slot, dot)

    def clock(self, slot: Slot) -> SlotClock:
        """The clock of a slot, as a copy."""
        clock = self.others(slot) if self.sole[slot] else SlotClock()
        if counter := self.own[slot]:
            clock.base[self.actor] = counter
        return clock

    def view(self, slot: Slot) -> SlotClock:
        """As `clock`, and not to be changed: single dots are not copied, of which there may be thousands."""
        base = {actor: c for actor, column in self.columns.items() if (c := column[slot])}
        if counter := self.own[slot]:
            base[self.actor] = counter
        return SlotClock(base, self.beyond.get(slot, _NONE))

    def others(self, slot: Slot) -> SlotClock:
        """What others than this actor did, as a copy."""
        sole = self.sole[slot]
        if sole == NOBODY:
            return SlotClock()
        base = {actor: c for actor, column in self.columns.items() if (c := column[slot])}
        return SlotClock(base, set(self.beyond.get(slot, ())))

    def has_others(self, slot: Slot) -> bool:
        """Whether anybody but this actor has written to the slot: if not, the short form of a record says all."""
        return self.sole[slot] != NOBODY

    def slots(self) -> Iterator[Slot]:
        """Those of which anything was seen, in order."""
        return compress(range(CLOCK_COUNT), map(or_, self.own, self.sole))

    def change_actor(self, actor: Actor) -> None:
        """Mint as another actor from now on; what the old one did stays seen."""
        if actor == self.actor:
            return
        past, self.own = self.own, no_counters()
        self.columns[self.actor] = past
        for slot, counter in enumerate(past):
            if counter:
                self._note(slot, self.actor)
        self.actor = actor
        if actor in self.columns:  # It was heard of before it was known to be this one.
            self.own = self.columns.pop(actor)
            self._look_again()

    def capture(self) -> ClocksState:
        return ClocksState(
            self.actor,
            list(self.own),
            {actor: list(column) for actor, column in self.columns.items()},
            {slot: sorted(dots) for slot, dots in sorted(self.beyond.items())},
        )

    @classmethod
    def restore(cls, state: ClocksState) -> SlotClocks:
        clocks = cls(state.actor)
        clocks.own = array("q", state.own)
        clocks.columns = {actor: array("q", column) for actor, column in state.columns.items()}
        clocks.beyond = {slot: set(dots) for slot, dots in state.beyond.items()}
        clocks._look_again()
        return clocks

    def _look_again(self) -> None:
        """Find out who wrote where."""
        self.sole = [NOBODY] * CLOCK_COUNT
        for actor, column in self.columns.items():
            for slot, counter in enumerate(column):
                if counter:
                    self._note(slot, actor)
        for slot, dots in self.beyond.items():
            for actor, _ in dots:
                self._note(slot, actor)


def no_counters() -> array[Counter]:
    return array("q", bytes(8 * CLOCK_COUNT))
