"""Evening out: nodes that hold too much of a table hand parts of it to nodes that hold too little.

It knows rows (one per slot), how much each node holds and should hold, and from a subclass who may
take over a row from whom. Where no node above its quota can give to a given node below it, a *path*
of nodes does: each hands one row to the next, and only the ends change their counts. Paths are found
breadth first from all givers at once, so they are short, and each is used as often as it can be.
This is Ford and Fulkerson's maximum flow with nodes as vertices: if quotas can be met, they are.

Core: no I/O, deterministic.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from cluster.slot import Slot

Row = list[int]  # The replicas of a slot, as numbers of nodes.


@dataclass(slots=True)
class Flow(ABC):
    """`counts` are kept up to date while rows change hands; `quota` is the aim."""

    rows: list[Row]
    counts: list[int]
    quota: Sequence[int]

    @abstractmethod
    def holders(self, slot: Slot) -> Sequence[int]:
        """Who holds this slot and may give it away."""

    @abstractmethod
    def takers(self, slot: Slot, giver: int, among: Mapping[int, None]) -> Sequence[int]:
        """Those of `among` who could take this slot from the giver."""

    @abstractmethod
    def hand_over(self, slot: Slot, giver: int, taker: int) -> None:
        """Change the row of this slot."""

    def settle(self) -> None:
        """Hand over until each node has its quota, or no path is left."""
        while self._is_uneven() and self._round():
            pass

    def _is_uneven(self) -> bool:
        pairs = list(zip(self.counts, self.quota, strict=True))
        return any(count < quota for count, quota in pairs) and any(
            count > quota for count, quota in pairs
        )

    def _round(self) -> bool:
        """Find paths to all nodes below their quota, and use them; False if nothing could move."""
        held: list[list[Slot]] = [[] for _ in self.counts]
        for slot in range(len(self.rows)):
            for holder in self.holders(slot):
                held[holder].append(slot)
        has_moved = False
        parents, ends = self._paths(held)
        for end in ends:
            path = [end]
            while (parent := parents[path[-1]]) >= 0:
                path.append(parent)
            has_moved |= self._push(path, held)
        return has_moved

    def _paths(self, held: list[list[Slot]]) -> tuple[list[int], list[int]]:
        """From whom each node would take (-1: from nobody), and the nodes below quota, nearest first."""
        pairs = list(zip(self.counts, self.quota, strict=True))
        parents = [-1] * len(pairs)
        reached = [index for index, (count, quota) in enumerate(pairs) if count > quota]
        among = {index: None for index, (count, quota) in enumerate(pairs) if count <= quota > 0}
        wanted = sum(1 for count, quota in pairs if count < quota)
        ends: list[int] = []
        for giver in reached:  # Grows while it is walked: breadth first.
            for slot in held[giver]:
                for taker in self.takers(slot, giver, among):
                    del among[taker]
                    parents[taker] = giver
                    reached.append(taker)
                    if self.counts[taker] < self.quota[taker]:
                        ends.append(taker)
                if not among:
                    break
            if len(ends) == wanted:
                break
        return parents, ends

    def _push(self, path: list[int], held: list[list[Slot]]) -> bool:
        """Move along a path, given from its end to its start, as often as both allow.

        The step at the end comes first: should a later one fail, the gap has only moved to another
        node, and the next round looks from there.
        """
        end, start = path[0], path[-1]
        places = [0] * len(path)  # How far the slots of each giver were looked through.
        has_moved = False
        while self.counts[end] < self.quota[end] and self.counts[start] > self.quota[start]:
            for step in range(len(path) - 1):
                taker, giver = path[step], path[step + 1]
                slot, places[step] = self._slot_for(giver, taker, held[giver], places[step])
                if slot is None:
                    return has_moved
                self.hand_over(slot, giver, taker)
                self.counts[giver] -= 1
                self.counts[taker] += 1
            has_moved = True
        return has_moved

    def _slot_for(
        self, giver: int, taker: int, held: list[Slot], place: int
    ) -> tuple[Slot | None, int]:
        """The next slot from `place` on that can go from one to the other, and the place after it."""
        one = {taker: None}
        while place < len(held):
            slot = held[place]
            place += 1
            if giver in self.holders(slot) and self.takers(slot, giver, one):
                return slot, place
        return None, place
