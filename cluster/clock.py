"""Time and causality: dots, slot clocks and the hybrid logical clock.

An event is a *dot* (actor, counter), counted per actor and slot, strictly increasing and never
reset. A *slot clock* is what a replica has seen of a slot: a version vector, and the dots beyond
its gaps. The *hybrid logical clock* gives each version a timestamp near real time that never goes
backwards: 48 bits of milliseconds, 16 bits of a count.

Core: time is an argument. Sources: Almeida et al., Dotted Version Vectors; Goncalves et al.,
DottedDB; Kulkarni et al., HLC.
"""

from __future__ import annotations

from dataclasses import dataclass, field

Actor = int  # A node's incarnation, 64 bits, minted at random.
Counter = int  # 1 and up, per actor and slot.
Dot = tuple[Actor, Counter]
Hlc = int  # milliseconds << 16 | count


@dataclass(slots=True)
class SlotClock:
    """The dots that a replica has seen of one slot.

    `base[actor]` says that all counters up to it were seen; `beyond` holds the dots seen after a
    gap.
    """

    base: dict[Actor, Counter] = field(default_factory=dict)
    beyond: set[Dot] = field(default_factory=set)

    def covers(self, dot: Dot) -> bool:
        return dot[1] <= self.base.get(dot[0], 0) or dot in self.beyond

    def add(self, dot: Dot) -> None:
        """Record a dot; gaps that it closes move into the base."""
        actor, counter = dot
        if counter <= self.base.get(actor, 0):
            return
        self.beyond.add(dot)
        upto = self.base.get(actor, 0)
        while (actor, upto + 1) in self.beyond:
            upto += 1
            self.beyond.discard((actor, upto))
        if upto:
            self.base[actor] = upto

    def freeze(self) -> tuple[tuple[Dot, ...], tuple[Dot, ...]]:
        """Base and the dots beyond it, sorted: the causal context that a record carries."""
        return tuple(sorted(self.base.items())), tuple(sorted(self.beyond))

    def join(self, other: SlotClock) -> None:
        """See what the other has seen."""
        for actor, counter in other.base.items():
            if counter > self.base.get(actor, 0):
                self.base[actor] = counter
        # Each is added again: the base may have reached it, or what comes before it.
        dots = self.beyond | other.beyond
        self.beyond = set()
        for dot in dots:
            self.add(dot)


@dataclass(slots=True)
class HybridClock:
    """Timestamps for versions: strictly increasing here, near `now_ms`, past everything that was joined."""

    last: Hlc = 0

    def mint(self, now_ms: int) -> Hlc:
        physical = now_ms << 16
        self.last = physical if physical > self.last else self.last + 1
        return self.last

    def observe(self, seen: Hlc) -> None:
        if seen > self.last:
            self.last = seen
