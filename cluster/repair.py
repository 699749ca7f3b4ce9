"""Repairs: what others sent is joined into the row here, and who lacks some of a row is sent all of it.

Not who lacks what: readers and refused writers find that out. What nobody reads or writes is found by an exchange
(`cluster/exchange.py`).

Core.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from cluster.delta_wire import pack_place
from cluster.quorum_messages import REPAIR
from cluster.record import Record, decode
from cluster.ring import NodeId
from cluster.round import Place, WriteRound
from engine.store import PageFault

if TYPE_CHECKING:
    from cluster.coordinator import Coordinator


class Repairs:
    """One per coordinator."""

    def __init__(self, coordinator: Coordinator) -> None:
        self._coordinator = coordinator
        self.sent_total = 0

    def send(self, peer: NodeId, place: Place) -> None:
        """Send a row's whole state to a peer that lacks some of it."""
        coordinator = self._coordinator
        if coordinator.undecided.is_hidden(*place):
            return  # Its decision will see to it.
        try:
            state = coordinator.replica.state_of(*place)
        except PageFault as fault:
            coordinator.fetch(fault, lambda: self.send(peer, place))
            return
        if not state:
            return  # There is nothing to tell.
        self.sent_total += 1
        number = coordinator.new_id()
        coordinator.writes[number] = WriteRound(
            number, (peer,), 1, [], coordinator.now_s + coordinator.timeout_s, False, len(state)
        )
        coordinator.in_flight_bytes += len(state)
        coordinator.outbox.append((peer, (REPAIR, b"%d" % number, pack_place(*place), state)))

    def merge(
        self, place: Place, states: list[bytes], then: Callable[[bytes | None], None]
    ) -> None:
        """Join what others sent into the row here, fetching it first if need be; then go on with it."""
        try:
            raw = self.join(place, states)
        except PageFault as fault:
            self._coordinator.fetch(fault, lambda: self.merge(place, states, then))
            return
        then(raw)

    def record(self, place: Place) -> Record:
        """A row as it is stored here. Raises PageFault."""
        raw = self._coordinator.replica.store.get(*place)
        return Record(()) if raw is None else decode(raw)

    def join(self, place: Place, states: Sequence[bytes]) -> bytes | None:
        """Join what others sent into the row here, which is given. Raises PageFault."""
        coordinator = self._coordinator
        raw: bytes | None = coordinator.replica.store.get(*place)
        for state in states:
            raw = coordinator.replica.merge(*place, decode(state), coordinator.now_ms)
        return raw
