"""Calendar clocks compared: whose is off, by how much, and whether it is this node's own.

It sets no clock and mints no timestamp. A node whose clock is off must not coordinate, since the
latest timestamp wins, and must not expire. `cluster/membership.py` brings the samples, and the node asks.

A *sample* is what a round trip says of a peer: its calendar when it sent, and how long the way may have
taken. Half the round trip is taken off, and the error is no more than that half. Of a peer's last few
samples the one with the shortest trip counts, as in NTP. Trips longer than the bound say nothing.

A sample is kept as how far the peer's calendar is ahead of *this node's clock that never goes back*, so
that a jump of its own calendar shows at once in all offsets.

The *median* is taken over all clocks, this node's too: with three nodes, one that is off does not move
it. Of two clocks that differ nobody can say which is wrong, and each is off by half of the difference.
Samples of a peer that is away stay good for a minute. A node that has none left keeps its last
verdict about itself, so that isolation does not make a bad clock a good one.

Core: a sink; times are arguments. Source: Mills, the clock filter of NTP.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from statistics import median
from typing import Final

from cluster.gossip_message import NodeId
from cluster.member_event import ClockBack, ClockOff

SAMPLE_COUNT: Final = (
    4  # Of each peer. A jump of its clock is seen when so many have come, at the latest.
)
SAMPLE_AGE_MAX_MS: Final = 60_000.0
BACK_SHARE: Final = (
    0.75  # A clock is good again within this share of the bound, so that it does not flap.
)


@dataclass(frozen=True, slots=True)
class _Sample:
    trip_ms: float
    ahead_ms: float  # The peer's calendar, less this node's clock that never goes back.
    at_ms: float  # By that clock.


@dataclass(slots=True)
class PeerClocks:
    """The calendars of this node and of its peers. `off` names those that are off, in no order that means anything."""

    me: NodeId
    bound_ms: int
    ahead_ms: float  # This node's own calendar, less its clock that never goes back.
    off: dict[NodeId, None] = field(default_factory=dict)
    _samples: dict[NodeId, deque[_Sample]] = field(default_factory=dict)

    def add(self, peer: NodeId, *, wall_ms: float, trip_ms: float, now_ms: float) -> None:
        """The peer's calendar said `wall_ms` when it sent what arrived now, after a round trip so long."""
        if trip_ms <= self.bound_ms:
            ahead_ms = wall_ms + trip_ms / 2 - now_ms
            samples = self._samples.setdefault(peer, deque(maxlen=SAMPLE_COUNT))
            samples.append(_Sample(trip_ms, ahead_ms, now_ms))

    def forget(self, peer: NodeId) -> None:
        """What the peer's clock said is void: it is a new process, perhaps on another machine."""
        self._samples.pop(peer, None)

    def offset_ms(self, name: NodeId) -> int | None:
        """How far a node's calendar is ahead of the median; None if nothing is known of it."""
        aheads = self._aheads()
        return round(aheads[name] - median(aheads.values())) if name in aheads else None

    def lead_ms(self, peer: NodeId) -> float:
        """How far a peer's calendar is ahead of this node's own; 0 if nothing is known of it."""
        aheads = self._aheads()
        return aheads.get(peer, self.ahead_ms) - self.ahead_ms

    def judge(self, now_ms: float, wall_ms: float) -> list[ClockOff | ClockBack]:
        """Compare all clocks; tell whose verdict has changed. To be called once a second or so."""
        self.ahead_ms = wall_ms - now_ms
        for peer in list(self._samples):
            if now_ms - self._samples[peer][-1].at_ms > SAMPLE_AGE_MAX_MS:
                del self._samples[peer]
        aheads = self._aheads()
        if len(aheads) == 1:
            self.off = {self.me: None} if self.me in self.off else {}
            return []
        middle = median(aheads.values())
        events: list[ClockOff | ClockBack] = []
        was_off, self.off = self.off, {}
        for name, ahead_ms in aheads.items():
            offset_ms = round(ahead_ms - middle)
            bound_ms = self.bound_ms * (BACK_SHARE if name in was_off else 1)
            if abs(offset_ms) > bound_ms:
                self.off[name] = None
                if name not in was_off:
                    events.append(ClockOff(name, offset_ms))
            elif name in was_off:
                events.append(ClockBack(name, offset_ms))
        return events

    def _aheads(self) -> dict[NodeId, float]:
        aheads = {self.me: self.ahead_ms}
        for peer, samples in self._samples.items():
            aheads[peer] = min(samples, key=lambda sample: sample.trip_ms).ahead_ms
        return aheads
