"""The transport seam: how messages get from one node to another.

It promises little. A message arrives whole or not at all, and only from a peer that has proved who it
is. It may be lost without a word when a connection breaks; what was sent to a peer before and after a
break may arrive in any order. Real connections keep the order between two breaks; the simulated ones
of `tests/sim` lose, repeat and reorder, so nothing may depend on more than is said here.

A message is a list of byte strings, a *verb* first. The verbs stand with the parts that send them:
`cluster/membership.py`, `cluster/coordinator.py`, `cluster/exchange.py`.

There are two lanes. `send` is for what is small and has to be quick; `send_bulk` is for transfers,
has its own connection, and is refused (False) while the peer has not taken what was sent before.

Core: definitions only.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from cluster.ring import NodeId

Message = list[bytes]


class Transport(Protocol):
    """The way out. It never blocks and never raises for what the network does."""

    def send(self, peer: NodeId, message: Sequence[bytes]) -> None:
        """Send at the end of this tick; dropped without a word if there is no connection."""
        ...

    def send_bulk(self, peer: NodeId, message: Sequence[bytes]) -> bool:
        """As `send`, by the bulk connection. False if nothing was sent: it is full or not there."""
        ...

    def is_connected(self, peer: NodeId) -> bool:
        """Whether a message sent now has a chance."""
        ...

    def queued_bytes(self, peer: NodeId) -> int:
        """What was sent to a peer and has not left yet."""
        ...

    def flush(self) -> None:
        """The tick has ended: what was sent in it leaves."""
        ...


class Receiver(Protocol):
    """The way in: what the node does with what arrives. Called within a tick."""

    def receive(self, peer: NodeId, message: Message) -> None:
        """A message has come. Raises nothing: a malformed one is the peer's fault and is told to the log."""
        ...

    def connected(self, peer: NodeId) -> None:
        """Messages go both ways from now on."""
        ...

    def disconnected(self, peer: NodeId, *, is_refused: bool) -> None:
        """The connection broke (or, `is_refused`, nobody listens there): what was under way may be lost."""
        ...
