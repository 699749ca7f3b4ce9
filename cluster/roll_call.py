"""Whether all nodes of the cluster are here, as one of them sees it: the moment when every command is served.

It is not asked for any command: routing goes by the topology, and needs no more than a quorum. It is for who
has started a cluster and waits. A node takes connections long before it can answer anything: it has to be
connected with the others, and if it may have lost something, or is new, to compare its data with theirs.

A node has *joined* while these hold:

    it is complete itself, and its clock is right
    it reaches every other node
    each of them has said, since they were connected, that it is so too

The third is why there is something to keep. A peer that comes back is within reach with its first message,
whatever that is, and the topology has it as it was before it went.

When all nodes have joined, nobody takes another for one who cannot coordinate or confirm.

Core.
"""

from __future__ import annotations

from cluster.ring import NodeId
from cluster.topology import Topology


class RollCall:
    """One node's view. What it is told here the topology is told before."""

    def __init__(self, topology: Topology) -> None:
        self._topology = topology
        self._told: dict[NodeId, None] = {}  # Who has said how it is since it was connected.
        self._has_joined = False

    def connected(self, peer: NodeId) -> None:
        """A connection begins, or has ended: what the peer said before does not count."""
        self._told.pop(peer, None)
        self._has_joined = False

    disconnected = connected

    def told(self, peer: NodeId) -> None:
        """A peer has said whether it is complete."""
        self._told[peer] = None

    def has_joined(self) -> bool:
        """Whether this node has joined now."""
        topology = self._topology
        return all(
            topology.is_fit(name) and (name == topology.me or name in self._told)
            for name in topology.nodes
        )

    def is_news(self) -> bool:
        """Whether this node has joined since it was asked the last time. To be asked after each change."""
        before, self._has_joined = self._has_joined, self.has_joined()
        return self._has_joined and not before
