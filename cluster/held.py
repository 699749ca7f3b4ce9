"""Writes of other nodes that this replica has taken, and of which it does not know yet whether they count.

Only where a row has more than three replicas. With three, a write that its author and one other have taken is on a
majority. With more it may be on a few that are none, and yet be shown by one of them, and later lose against
one that a majority took. So a replica *holds* each checked write of another node: the row is answered to nobody, and
no command builds upon it, until the author says that the write is *settled*:

    SETTLED id place*    of the WRITE with this number all rows, or only these

An author that cannot say so is not waited for: if it is gone, or silent for longer than it may work on a write, this
node opens an inquest of its own (`cluster/inquest.py`), which has a majority take the write, or finds that another has
overtaken it. The replicas of a row do that one after the other, so that they do not meet.

A write that has seen a held one is settled no earlier than that one: with the later, all before it are.

Core: time is an argument.
"""

from __future__ import annotations

from collections.abc import Set
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from cluster.clock import Dot, SlotClock
from cluster.delta import clock_of
from cluster.delta_wire import delta_of, entries_of, unpack_place
from cluster.open_row import OpenWrites
from cluster.quorum_messages import UNIT, dots_of, number_of
from cluster.record import unpack_dots
from cluster.ring import NodeId
from cluster.round import Place, WriteEntry
from cluster.slot import Slot

if TYPE_CHECKING:
    from cluster.coordinator import Coordinator

TURN_S: Final = 0.1  # From one replica to the next, where the author is gone.
SILENCE_FACTOR: Final = 1.5  # How much longer than the time of a round an author may be silent.
EARLY_MAX: Final = 1024  # Settled before they came.
OPENED_MAX: Final = 128  # Inquests in one tick.

Message = tuple[NodeId, int]  # A WRITE: whose it is, and its number.


@dataclass(frozen=True, slots=True)
class Write:
    """Of one row, in one message. `seen`: what its author had seen of the slot."""

    dots: frozenset[Dot]
    seen: SlotClock
    since_s: float


@dataclass(slots=True, eq=False)
class Hold:
    """The held writes of one row, in the order in which they came. Each has seen those before."""

    writes: dict[Message, Write] = field(default_factory=dict)
    waiting: list[WriteEntry] = field(default_factory=list)

    @property
    def dots(self) -> set[Dot]:
        return {dot for write in self.writes.values() for dot in write.dots}

    @property
    def open_writes(self) -> OpenWrites:
        seen = SlotClock()
        for write in self.writes.values():
            seen.join(write.seen)
        return OpenWrites(frozenset(self.dots), seen)


class Held:
    """One per coordinator."""

    def __init__(self, coordinator: Coordinator) -> None:
        self._coordinator = coordinator
        self._holds: dict[Place, Hold] = {}
        self._slots: dict[Slot, int] = {}  # Rows, by slot.
        self._places: dict[Message, dict[Place, None]] = {}  # In the order in which they came.
        self._units: dict[Message, None] = {}  # Those that are all or nothing.
        # Settled, and not here yet: which rows, or all if none are named.
        self._early: dict[Message, frozenset[Place]] = {}

    def has(self, place: Place) -> bool:
        return place in self._holds

    def has_slot(self, slot: Slot) -> bool:
        return slot in self._slots

    def dots(self, place: Place) -> set[Dot]:
        """What is held of a row."""
        hold = self._holds.get(place)
        return hold.dots if hold else set()

    # What comes in

    def note(
        self,
        peer: NodeId,
        number: int,
        flags: bytes,
        blob: bytes,
        contexts: dict[Slot, SlotClock],
    ) -> None:
        """Hold the rows of a checked WRITE, so far as they were taken and show what was written.

        A message that is worked on in several steps is noted after each.
        """
        message = (peer, number)
        early = self._early.get(message)
        if early is not None and not early:
            return
        coordinator = self._coordinator
        replica, now_s = coordinator.replica, coordinator.now_s
        for _, slot, row, raw in entries_of(blob):
            place = (slot, row)
            stored = replica.store.active[slot].get(row)
            if stored is None or (early is not None and place in early):
                continue
            delta = delta_of(raw, contexts.get(slot))
            if delta.dots.isdisjoint(unpack_dots(dots_of(stored))):
                continue
            hold = self._holds.get(place)
            if hold is None:
                hold = self._holds[place] = Hold()
                self._slots[slot] = self._slots.get(slot, 0) + 1
            if message not in hold.writes:
                hold.writes[message] = Write(delta.dots, clock_of(delta), now_s)
                # The next process has to know it, too.
                replica.note_open(slot, row, coordinator.now_ms, hold.open_writes)
                self._places.setdefault(message, {})[place] = None
                if flags == UNIT:
                    self._units[message] = None

    def settle(self, peer: NodeId, arguments: list[bytes]) -> None:
        """The author says what of a WRITE counts. Raises MalformedDelta."""
        message = (peer, number_of(arguments))
        places = list(map(unpack_place, arguments[2:]))
        held = self._places.get(message)
        if held is None:
            self._note_early(message, frozenset(places))
            return
        for place in places or list(held):
            hold = self._holds.get(place)
            if hold is not None and message in hold.writes:
                self._settle_up_to(place, hold, message)

    def _note_early(self, message: Message, places: frozenset[Place]) -> None:
        if len(self._early) >= EARLY_MAX:
            del self._early[next(iter(self._early))]
        before = self._early.get(message, places)
        self._early[message] = before | places if before and places else frozenset()

    def _settle_up_to(self, place: Place, hold: Hold, message: Message) -> None:
        for each in list(hold.writes):
            self._drop(place, hold, each)
            if each == message:
                break
        if not hold.writes:
            self.release(place)

    def _drop(self, place: Place, hold: Hold, message: Message) -> None:
        del hold.writes[message]
        places = self._places[message]
        del places[place]
        if not places:
            del self._places[message]
            self._units.pop(message, None)

    def purge(self, place: Place, known: Set[Dot]) -> None:
        """An inquest knows what became of these writes: what it said is forgotten, and what the row shows no more."""
        hold = self._holds.get(place)
        if hold is None:
            return
        stored = self._coordinator.replica.store.active[place[0]].get(place[1])
        for message, write in list(hold.writes.items()):
            is_shown = stored is None or not write.dots.isdisjoint(unpack_dots(dots_of(stored)))
            if write.dots <= known or not is_shown:
                self._drop(place, hold, message)
        if not hold.writes:
            self.release(place)

    def release(self, place: Place, *, is_known: bool = True) -> None:
        """What is held of a row, if anything, is known now, or (not `is_known`) an inquest holds it."""
        hold = self._holds.pop(place, None)
        if hold is None:
            return
        for message in list(hold.writes):
            self._drop(place, hold, message)
        slot = place[0]
        self._slots[slot] -= 1
        if not self._slots[slot]:
            del self._slots[slot]
        if is_known:
            coordinator = self._coordinator
            coordinator.replica.note_known(*place, coordinator.now_ms)
        for op, attempt, *_ in hold.waiting:
            op.again(attempt, place)

    def attach(self, entry: WriteEntry) -> bool:
        """Have a command that only read a row run again when it is known; False if nothing is held."""
        hold = self._holds.get((entry[2], entry[3]))
        if hold is not None:
            hold.waiting.append(entry)
        return hold is not None

    # What takes too long

    def tick(self, now_s: float) -> None:
        """Open inquests about what no author will settle."""
        coordinator = self._coordinator
        silence_s = SILENCE_FACTOR * coordinator.timeout_s
        opened = 0
        for message, places in list(self._places.items()):
            if opened >= OPENED_MAX:
                break
            if message not in self._places:
                continue
            first = next(iter(places))
            since_s = self._holds[first].writes[message].since_s
            if now_s - since_s < TURN_S:
                break  # They are in order.
            is_gone = not coordinator.topology.is_reachable(message[0])
            turn_s = TURN_S * (1 + self._turn(first[0], message[0]))
            if now_s - since_s >= (turn_s if is_gone else silence_s):
                opened += len(places)
                self._open(message, list(places))

    def _turn(self, slot: Slot, author: NodeId) -> int:
        topology = self._coordinator.topology
        names = [name for name in topology.preferences[slot] if name != author]
        return names.index(topology.me)

    def _open(self, message: Message, places: list[Place]) -> None:
        """An inquest takes the place of what was held of these rows, which belong together if they are a unit."""
        groups = [places] if message in self._units else [[place] for place in places]
        coordinator = self._coordinator
        deadline_s = coordinator.now_s + coordinator.timeout_s
        for group in groups:
            coordinator.inquest.open_held(
                {place: self._holds[place].open_writes for place in group}
            )
            for place in group:
                hold = self._holds[place]
                waiting, hold.waiting = hold.waiting, []
                self.release(place, is_known=False)
                for entry in waiting:
                    coordinator.inquest.attach(entry, deadline_s)
