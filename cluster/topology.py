"""Who is in the cluster, who owns which slot, and who can be reached: what routing asks.

It decides nothing about membership. The members and the claim come from the ownership epoch; who can
be reached comes from connections and gossip (`cluster/membership.py`). Being out of reach changes
where requests go, and never who owns a slot.

Core.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from blake3 import blake3

from cluster.claim import Claim, Preference
from cluster.placement import claim as claim_of
from cluster.ring import Member, NodeId
from cluster.slot import SLOT_COUNT, Slot

ID_BYTES = 20
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class NodeInfo:
    """One member as the configuration describes it. `host` is what others connect to."""

    name: NodeId
    host: str
    client_port: int
    cluster_port: int
    bus_port: int
    zone: str = ""
    data_centre: str = ""
    weight: int = 1

    @property
    def id(self) -> str:
        """40 hexadecimal digits, as Redis Cluster names nodes."""
        return blake3(b"respkv node " + self.name.encode()).digest(ID_BYTES).hex()


class Topology:
    """The cluster as this node sees it. `preferences[slot]` is the preference list, the primary first.

    A node that is *incomplete* may have lost what it had promised: it is reached, and does not coordinate.

    With several data centres a node's own comes first in its lists.
    """

    def __init__(
        self, me: NodeId, nodes: Sequence[NodeInfo], n: int, *, claim: Claim | None = None
    ) -> None:
        """`n` replicas in each data centre. Without a claim, the first one is computed."""
        self.me = me
        self.nodes = {node.name: node for node in sorted(nodes, key=lambda node: node.name)}
        self.epoch = 1
        centres = sorted({node.data_centre for node in nodes})
        if claim is None:
            members = [
                Member(node.name, node.weight, node.zone, node.data_centre) for node in nodes
            ]
            claim = claim_of(members, dict.fromkeys(centres, n), None)
        self.claim = claim
        mine = self.nodes[me].data_centre
        order = [mine, *(centre for centre in centres if centre != mine)]
        self.preferences: list[Preference] = _joined(claim, order)
        self._lists = list(
            dict.fromkeys(self.preferences)
        )  # The different ones: far fewer than slots.
        numbers = {replicas: number for number, replicas in enumerate(self._lists)}
        self._list_of = [numbers[replicas] for replicas in self.preferences]
        self.unreachable: dict[NodeId, None] = {}
        self.incomplete: dict[NodeId, None] = {}
        self.coordinators: list[NodeId | None] = []
        self.changes = 0  # How often the view of who can be reached has changed.
        self._choose()

    def replicas(self, slot: Slot) -> Preference:
        return self.preferences[slot]

    def coordinator(self, slot: Slot) -> NodeId | None:
        """The first replica of a slot that can be reached and is complete; None if none is."""
        return self.coordinators[slot]

    def candidates(self, slot: Slot) -> list[NodeId]:
        """The replicas that could coordinate a slot, the coordinator first."""
        return [name for name in self.preferences[slot] if self.is_fit(name)]

    def is_fit(self, name: NodeId) -> bool:
        """Whether a member could coordinate."""
        return name not in self.unreachable and name not in self.incomplete

    def is_reachable(self, name: NodeId) -> bool:
        return name not in self.unreachable

    def owns(self, slot: Slot) -> bool:
        """Whether this node is a replica of a slot."""
        return self.me in self.preferences[slot]

    @property
    def peers(self) -> list[NodeId]:
        """All other members, in order."""
        return [name for name in self.nodes if name != self.me]

    def mark(self, name: NodeId, *, is_reachable: bool) -> bool:
        """A member is within reach or not; True if that is news."""
        assert name != self.me
        if name not in self.nodes or is_reachable is self.is_reachable(name):
            return False
        if is_reachable:
            del self.unreachable[name]
        else:
            self.unreachable[name] = None
        self.changes += 1
        self._choose()
        return True

    def mark_complete(self, name: NodeId, *, is_complete: bool) -> bool:
        """A member, or this node, has all that it promised, or not; True if that is news."""
        if name not in self.nodes or is_complete is (name not in self.incomplete):
            return False
        if is_complete:
            del self.incomplete[name]
        else:
            self.incomplete[name] = None
        self.changes += 1
        self._choose()
        return True

    def by_slot(self, of: Callable[[Preference], T]) -> list[T]:
        """What a function makes of each slot's preference list, by slot. It is called once for each different list."""
        made = list(map(of, self._lists))
        return list(map(made.__getitem__, self._list_of))

    def _choose(self) -> None:
        self.coordinators = self.by_slot(lambda replicas: next(filter(self.is_fit, replicas), None))


def _joined(claim: Claim, order: Sequence[str]) -> list[Preference]:
    tables = [claim.tables[name] for name in order if name in claim.tables]
    if len(tables) == 1:
        return list(tables[0])
    whole: dict[Preference, Preference] = {}
    lists = []
    for slot in range(SLOT_COUNT):
        replicas = tuple(node for table in tables for node in table[slot])
        lists.append(whole.setdefault(replicas, replicas))
    return lists
