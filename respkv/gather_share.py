"""Which node is asked for which slots, by a command on the whole keyspace of a cluster.

It asks nobody (`respkv/gather_question.py`). For a read that is this node where it holds the slots, otherwise the
first node that can coordinate them; for the removal of keys always the latter. Nodes that had no answer before are
avoided where there is another one.

Core: a function of the topology, and of what it was asked last.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from itertools import groupby
from typing import Final

from cluster.ring import NodeId
from cluster.slot import SLOT_COUNT, Slot
from cluster.topology import Topology
from respkv.gather_wire import HASH_BITS, Stretch
from respkv.reply import ReplyError

NO_REPLICA: Final = ReplyError("NOREPLICAS no replica of some of the slots can be reached now")

Run = tuple[Slot, Slot, NodeId | None]  # Slots, the end excluded, and who is asked for them.


class Shares:
    """One per node of a cluster. `reads_anywhere`: whether this node may read what it does not coordinate."""

    def __init__(self, topology: Topology, *, reads_anywhere: bool) -> None:
        self._topology = topology
        self._reads_anywhere = reads_anywhere
        self._runs_of: tuple[object, list[Run]] = (None, [])

    def _runs(self, avoided: Iterable[NodeId], *, is_write: bool) -> list[Run]:
        """All slots, by who is asked for them."""
        topology = self._topology
        avoid = tuple(avoided)
        key = (topology.epoch, topology.changes, avoid, is_write)
        if self._runs_of[0] == key:
            return self._runs_of[1]
        chosen = {
            replicas: self._choose(slot, avoid, is_write=is_write)
            for replicas, slot in zip(topology.preferences, range(SLOT_COUNT), strict=True)
        }
        runs: list[Run] = []
        first = 0
        for name, group in groupby(chosen[replicas] for replicas in topology.preferences):
            end = first + sum(1 for _ in group)
            runs.append((first, end, name))
            first = end
        self._runs_of = (key, runs)
        return runs

    def _choose(self, slot: Slot, avoid: Sequence[NodeId], *, is_write: bool) -> NodeId | None:
        """This node if it holds the slot and may read there, else the first that can coordinate it."""
        topology = self._topology
        candidates = topology.candidates(slot)
        fresh = [name for name in candidates if name not in avoid] or candidates
        if not is_write and topology.me in fresh and self._reads_anywhere:
            return topology.me
        return fresh[0] if fresh else None

    def split(
        self, left: list[Stretch], avoid: Iterable[NodeId], *, is_write: bool
    ) -> dict[NodeId, list[Stretch]]:
        """What each node is asked for. Raises ReplyError if nobody can be asked for some of it."""
        runs = self._runs(avoid, is_write=is_write)
        shares: dict[NodeId, list[Stretch]] = {}
        for start, end in left:
            at = bisect_right(runs, start >> HASH_BITS, key=lambda run: run[0]) - 1
            while at < len(runs) and runs[at][0] << HASH_BITS < end:
                first, after, name = runs[at]
                if name is None:
                    raise NO_REPLICA
                stretch = (max(start, first << HASH_BITS), min(end, after << HASH_BITS))
                shares.setdefault(name, []).append(stretch)
                at += 1
        return shares

    def first(
        self, left: list[Stretch], avoid: Iterable[NodeId]
    ) -> tuple[NodeId, tuple[Stretch, ...]]:
        """Who is asked next, and for what lies before the slots of others. Raises ReplyError."""
        runs = self._runs(avoid, is_write=False)
        at = bisect_right(runs, left[0][0] >> HASH_BITS, key=lambda run: run[0]) - 1
        _, after, name = runs[at]
        if name is None:
            raise NO_REPLICA
        end = after << HASH_BITS
        return name, tuple((start, min(stop, end)) for start, stop in left if start < end)
