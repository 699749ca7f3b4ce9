"""Arrival: on how many replicas is all that was written so far? What WAIT and WAITAOF ask.

It moves no data: a write is on its way to all replicas already, and what got lost the exchange brings. Nor does it
know which writes are meant: only the slots of them. It finds out by clocks, in two steps:

1. Every replica of the slots says what it has seen of them. A write that was answered is on W replicas, so the clocks
   of N-W+1 together cover it: their join is the *target*. Replicas that are incomplete may have forgotten what they
   promised, and do not count among these.
2. A replica has all once its clocks cover the targets. Most do so in their first answer; the others are asked to
   answer when they do, and, if that is wanted, when the disk has it.

The target may hold more than what is meant, namely what others wrote into the same slots at the same time. So the
number is never too high.

Slots with the same replicas are asked for together, up to `SLOTS_PER_PART`: a *part*. A replica counts for a part
when it has all of it, and the number is that of the part with the fewest. Messages:

    ARRIVAL.ASK number slots              u16 each
    ARRIVAL.CLOCKS number flags clock*    flags: 1 complete, 2 all of it is on the disk
    ARRIVAL.UNTIL number is_durable slots clock*
    ARRIVAL.HERE number

What is not answered is asked again, so messages may be lost or come twice; a replica forgets what it was asked to
watch if it is not asked again.

Core: time is an argument.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from struct import error as StructError
from struct import pack, unpack
from typing import Final

from cluster.clock import SlotClock
from cluster.delta import joined, lacks
from cluster.delta_wire import MalformedDelta, decode_clock, encode_clock
from cluster.replica import Replica
from cluster.ring import NodeId
from cluster.slot import SLOT_COUNT, Slot
from cluster.topology import Topology
from cluster.transport import Transport

PREFIX: Final = b"ARRIVAL."
ASK: Final = b"ARRIVAL.ASK"
CLOCKS: Final = b"ARRIVAL.CLOCKS"
UNTIL: Final = b"ARRIVAL.UNTIL"
HERE: Final = b"ARRIVAL.HERE"

SLOTS_PER_PART: Final = 512
SLOTS_MAX: Final = 1 << 16  # Of all questions together.
WATCHED_MAX: Final = 4096  # Parts of other nodes that are watched.
AGAIN_S: Final = 0.25  # Then what is not answered is asked again,
FORGET_S: Final = 1.0  # and what is not asked again is forgotten.
_COMPLETE: Final = 1
_DURABLE: Final = 2

Promise = Callable[[NodeId, Sequence[bytes]], None]


@dataclass(slots=True, eq=False)
class Part:
    """Slots with the same replicas, and who has all that was written to them."""

    number: int
    slots: tuple[Slot, ...]
    replicas: tuple[NodeId, ...]
    arrival: Arrival
    asked_s: float
    seen: list[SlotClock]  # What anybody has seen; the targets, once `is_fixed`.
    answers: dict[NodeId, tuple[int, list[SlotClock]]] = field(default_factory=dict)
    is_fixed: bool = False
    here: dict[NodeId, None] = field(default_factory=dict)


@dataclass(slots=True, eq=False)
class Arrival:
    """A question under way. `changed` is called whenever `count` may have grown."""

    is_durable: bool
    changed: Callable[[], None]
    parts: list[Part] = field(default_factory=list)

    @property
    def count(self) -> int:
        """The number of replicas that have all, whoever wrote it included; 0 if nobody can know."""
        return min(len(part.here) for part in self.parts)

    @property
    def is_everywhere(self) -> bool:
        return all(len(part.here) == len(part.replicas) for part in self.parts)


@dataclass(slots=True, eq=False)
class _Watched:
    """What this replica was asked to wait for."""

    slots: list[Slot]  # What has not come yet.
    targets: list[SlotClock]
    is_durable: bool
    until_s: float
    is_syncing: bool = False


class Arrivals:
    """One per node: its own questions, and those of others."""

    def __init__(
        self,
        topology: Topology,
        replica: Replica,
        transport: Transport,
        *,
        w: int,
        first_id: int,
        promise: Promise,
        when_durable: Callable[[Callable[[], None]], None],
    ) -> None:
        """`promise`: see `cluster/participant.py`. `when_durable` calls once all that is here now is on the disk."""
        self.topology = topology
        self.replica = replica
        self.transport = transport
        self.w = w
        self.now_s = 0.0
        self._promise = promise
        self._when_durable = when_durable
        self._next_id = first_id
        self._parts: dict[int, Part] = {}
        self._slot_count = 0
        self._watched: dict[tuple[NodeId, bytes], _Watched] = {}

    # Asking

    @property
    def has_room(self) -> bool:
        return self._slot_count < SLOTS_MAX

    @property
    def is_idle(self) -> bool:
        return not self._parts and not self._watched

    def ask(
        self, slots: Iterable[Slot], *, is_durable: bool, changed: Callable[[], None]
    ) -> Arrival:
        """Begin to count the replicas that have all that was written to some slots by now. `end` it."""
        by_replicas: dict[tuple[NodeId, ...], list[Slot]] = {}
        for slot in slots:
            by_replicas.setdefault(self.topology.preferences[slot], []).append(slot)
        arrival = Arrival(is_durable, changed)
        for replicas, some in by_replicas.items():
            for at in range(0, len(some), SLOTS_PER_PART):
                self._next_id += 1
                mine = tuple(some[at : at + SLOTS_PER_PART])
                clocks = [SlotClock() for _ in mine]
                part = Part(self._next_id, mine, replicas, arrival, self.now_s, clocks)
                arrival.parts.append(part)
                self._parts[part.number] = part
                self._slot_count += len(mine)
        for part in arrival.parts:
            for name in part.replicas:
                self._ask(part, name)
        return arrival

    def end(self, arrival: Arrival) -> None:
        """Nobody waits for it any more."""
        for part in arrival.parts:
            if self._parts.pop(part.number, None) is not None:
                self._slot_count -= len(part.slots)

    def is_surveyed(self, arrival: Arrival) -> bool:
        """Whether all that can be reached have said what they have seen."""
        return all(
            name in part.here or name in part.answers or not self._is_reachable(name)
            for part in arrival.parts
            for name in part.replicas
        )

    def _is_reachable(self, name: NodeId) -> bool:
        return name == self.topology.me or self.topology.is_reachable(name)

    def _ask(self, part: Part, name: NodeId) -> None:
        number = b"%d" % part.number
        slots = pack(f"<{len(part.slots)}H", *part.slots)
        if not part.is_fixed:
            self._send(name, (ASK, number, slots))
            return
        durable = b"1" if part.arrival.is_durable else b"0"
        self._send(name, (UNTIL, number, durable, slots, *map(encode_clock, part.seen)))

    def _send(self, name: NodeId, message: Sequence[bytes]) -> None:
        if name == self.topology.me:
            self.receive(name, list(message))
        else:
            self.transport.send(name, message)

    def _take_clocks(self, name: NodeId, message: list[bytes]) -> None:
        part = self._parts.get(_number(message))
        if part is None or name not in part.replicas or name in part.answers:
            return
        clocks = [decode_clock(clock) for clock in message[3:]]
        if len(clocks) != len(part.slots):
            raise MalformedDelta("not as many clocks as slots")
        flags = int(message[2])
        if part.is_fixed:
            part.answers[name] = (flags, [])
            self._compare(part, name, flags, clocks)
            return
        part.seen = [joined(a, b) for a, b in zip(part.seen, clocks, strict=True)]
        part.answers[name] = (flags, clocks)
        complete = sum(1 for its_flags, _ in part.answers.values() if its_flags & _COMPLETE)
        if complete < max(1, len(part.replicas) - self.w + 1):
            return
        part.is_fixed = True
        for other, (its_flags, its_clocks) in list(part.answers.items()):
            part.answers[other] = (its_flags, [])
            self._compare(part, other, its_flags, its_clocks)

    def _compare(self, part: Part, name: NodeId, flags: int, clocks: list[SlotClock]) -> None:
        """What a replica had seen when it answered, and the target."""
        is_behind = any(lacks(mine, all_) for mine, all_ in zip(clocks, part.seen, strict=True))
        if is_behind or (part.arrival.is_durable and not flags & _DURABLE):
            self._ask(part, name)
            part.arrival.changed()
        else:
            self._arrive(part, name)

    def _arrive(self, part: Part, name: NodeId) -> None:
        part.here[name] = None
        part.arrival.changed()

    # Answering

    def receive(self, peer: NodeId, message: list[bytes]) -> None:
        """A message of another node, or of this one to itself. Raises MalformedDelta, ValueError, IndexError."""
        verb = message[0]
        if verb == ASK:
            self._tell(peer, message)
        elif verb == CLOCKS:
            self._take_clocks(peer, message)
        elif verb == UNTIL:
            self._watch(peer, message)
        elif verb == HERE:
            part = self._parts.get(_number(message))
            if part is not None and part.is_fixed and peer in part.replicas:
                self._arrive(part, peer)
        else:
            raise ValueError("no such verb")

    def _answer(self, peer: NodeId, message: Sequence[bytes]) -> None:
        if peer == self.topology.me:
            self.receive(peer, list(message))
        else:
            self._promise(peer, message)

    def _tell(self, peer: NodeId, message: list[bytes]) -> None:
        clocks = self.replica.clocks
        log = self.replica.store.log
        flags = _COMPLETE if self.topology.me not in self.topology.incomplete else 0
        if not log.pieces and log.synced == log.position:
            flags |= _DURABLE
        seen = [encode_clock(clocks.view(slot)) for slot in _slots(message[2])]
        self._answer(peer, (CLOCKS, message[1], b"%d" % flags, *seen))

    def _watch(self, peer: NodeId, message: list[bytes]) -> None:
        key = (peer, message[1])
        watched = self._watched.get(key)
        if watched is not None:
            watched.until_s = self.now_s + FORGET_S
            return
        if len(self._watched) >= WATCHED_MAX:
            return  # It will be asked again.
        slots = _slots(message[3])
        targets = [decode_clock(clock) for clock in message[4:]]
        if len(targets) != len(slots):
            raise MalformedDelta("not as many clocks as slots")
        self._watched[key] = watched = _Watched(
            slots, targets, message[2] == b"1", self.now_s + FORGET_S
        )
        self._look(key, watched)

    def _look(self, key: tuple[NodeId, bytes], watched: _Watched) -> None:
        """Answer if all has come."""
        clocks = self.replica.clocks
        while watched.slots:
            if lacks(clocks.view(watched.slots[-1]), watched.targets[-1]):
                return
            watched.slots.pop()
            watched.targets.pop()
        if not watched.is_durable:
            self._say_here(key)
        elif not watched.is_syncing:
            watched.is_syncing = True
            self._when_durable(lambda: self._say_here(key))

    def _say_here(self, key: tuple[NodeId, bytes]) -> None:
        if self._watched.pop(key, None) is not None:
            peer, number = key
            self._answer(peer, (HERE, number))

    def work(self) -> None:
        """Within each tick: has come what others wait for?"""
        for key, watched in list(self._watched.items()):
            self._look(key, watched)

    def tick(self, now_s: float) -> None:
        """Some times a second."""
        self.now_s = now_s
        for key, watched in list(self._watched.items()):
            if watched.until_s <= now_s:
                del self._watched[key]
        for part in self._parts.values():
            if part.asked_s + AGAIN_S > now_s:
                continue
            part.asked_s = now_s
            for name in part.replicas:
                is_silent = part.is_fixed or name not in part.answers
                if name not in part.here and is_silent and self._is_reachable(name):
                    self._ask(part, name)
            if not part.is_fixed:
                # Who was incomplete may be complete now.
                part.answers = {n: a for n, a in part.answers.items() if a[0] & _COMPLETE}


def _number(message: list[bytes]) -> int:
    if len(message) < 2 or not message[1].isdigit():
        raise MalformedDelta("a message without a number")
    return int(message[1])


def _slots(packed: bytes) -> list[Slot]:
    """Raises MalformedDelta."""
    try:
        slots = list(unpack(f"<{len(packed) // 2}H", packed))
    except StructError as error:
        raise MalformedDelta("slots cut short") from error
    if any(slot >= SLOT_COUNT for slot in slots):
        raise MalformedDelta("no such slot")
    return slots
