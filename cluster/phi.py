"""The failure detector: how sure this node is that a peer is dead, from the rhythm of its heartbeats.

It is one node's opinion and nothing more. It owns no member, removes none, and is never told to others;
what follows from an opinion (hints, stand-ins) is decided elsewhere.

For each peer it keeps the last intervals between heartbeats. Phi is how surprising the present silence
is: `-log10` of the probability that an interval is longer than the silence so far. Phi 8 means: one
interval in 10^8 would be this long, if intervals were distributed normally about their mean. Three things
keep that honest:

- a *minimum deviation*: a rhythm that was perfect so far must not make one late packet a death;
- a *first interval*: two made-up intervals stand in the window from the beginning, so that a peer that
  was heard only once is suspected in the end, too;
- a *local pause*: while this process stood still it heard nobody. Silence is counted on a clock that
  leaves such pauses out, so that waking up does not make everybody suspect.

A refused or reset connection is no statistics: `mark_unreachable` suspects the peer at once, until its
next heartbeat. Nor is anything else that was heard of the peer: `touch` begins the silence anew and
records no interval, so that a busy hour does not teach a rhythm that the quiet one after it breaks.

An interval that ended a suspicion is recorded as no longer than the silence at which the suspicion began.
So an hour of death does not make the detector blind, while a peer that really became slower is
believed after a few beats.

Invariants: intervals are whole microseconds, so that sums are exact however long a node runs; memory is 4
bytes for each interval, at most `window_count` of them a peer. Peers are as many as the caller names: the
membership table, which is bounded, calls `forget` for those it drops.

Core: time is an argument, in seconds of a clock that never goes back. Source: Hayashibara, Défago,
Yared, Katayama: The phi accrual failure detector. The exponential form that Cassandra uses needs 18 mean
intervals to reach phi 8. The normal one takes 5 s among 5 nodes that gossip once a second, and 8 s among
30, where news go more ways round (tests/cluster/test_gossip.py measures).
"""

from __future__ import annotations

from array import array
from dataclasses import dataclass, field
from math import erfc, inf, log10, sqrt
from typing import Final

Peer = str  # The name of a member.
Micros = int  # Microseconds, of an interval.

PHI_MAX: Final = 300.0  # Where a double runs out of small probabilities.
_SQRT2: Final = sqrt(2.0)
_INTERVAL_MAX: Final = 2**32 - 1  # More than an hour; what an array of 32 bits holds.


@dataclass(frozen=True, slots=True)
class PhiSettings:
    """How sure, from how much, and what to assume before anything was measured."""

    threshold: float = 8.0
    window_count: int = 1000
    first_interval_s: float = 2.0
    deviation_min_s: float = 0.5

    def __post_init__(self) -> None:
        if not 0 < self.threshold < PHI_MAX:
            raise ValueError(f"threshold must be above 0 and below {PHI_MAX:g}")
        if self.window_count < 2 or self.first_interval_s <= 0 or self.deviation_min_s <= 0:
            raise ValueError("window_count must be 2 or more, and the times above 0")


def phi_of(deviations: float) -> float:
    """Phi of a silence that is so many standard deviations longer than the mean interval."""
    probability = 0.5 * erfc(deviations / _SQRT2)
    return min(-log10(probability), PHI_MAX) if probability > 0 else PHI_MAX


def deviations_of(phi: float) -> float:
    """The inverse of `phi_of`, by bisection. A detector needs it once."""
    low, high = -40.0, 40.0
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if phi_of(middle) < phi else (low, middle)
    return high


@dataclass(slots=True)
class _Rhythm:
    """The heartbeats of one peer."""

    last_s: float  # On the clock without pauses.
    intervals: array[int]  # A ring, once it is full.
    next_index: int = 0
    sum: Micros = 0
    square_sum: int = 0
    is_marked: bool = False
    touched_s: float = -inf  # On the same clock: a sign of life that is no heartbeat.

    def add(self, interval: Micros, window_count: int) -> None:
        self.sum += interval
        self.square_sum += interval * interval
        if len(self.intervals) < window_count:
            self.intervals.append(interval)
            return
        old = self.intervals[self.next_index]
        self.sum -= old
        self.square_sum -= old * old
        self.intervals[self.next_index] = interval
        self.next_index = (self.next_index + 1) % window_count

    @property
    def mean_s(self) -> float:
        return self.sum / len(self.intervals) / 1e6

    @property
    def deviation_s(self) -> float:
        count = len(self.intervals)
        # Whole numbers to the last step: the difference of two large squares stays exact.
        return sqrt(self.square_sum * count - self.sum * self.sum) / count / 1e6


@dataclass(slots=True)
class FailureDetector:
    """The rhythm of each peer, and what it says now."""

    settings: PhiSettings = field(default_factory=PhiSettings)
    _rhythms: dict[Peer, _Rhythm] = field(default_factory=dict)
    _paused_s: float = 0.0
    _limit: float = 0.0  # Suspected from so many deviations above the mean.

    def __post_init__(self) -> None:
        self._limit = deviations_of(self.settings.threshold)

    def heartbeat(self, peer: Peer, now_s: float) -> None:
        """The peer was alive: its heartbeat counter has moved. The first one begins to watch it."""
        rhythm = self._rhythms.get(peer)
        if rhythm is None:
            self._rhythms[peer] = self._begin(now_s)
            return
        interval_s = now_s - self._paused_s - rhythm.last_s
        interval = int(min(max(interval_s, 0.0), self._patience_s(rhythm)) * 1e6)
        rhythm.add(min(interval, _INTERVAL_MAX), self.settings.window_count)
        rhythm.last_s = now_s - self._paused_s
        rhythm.is_marked = False

    def touch(self, peer: Peer, now_s: float) -> None:
        """The peer was heard at that time, by something that has no rhythm. One not watched stays so."""
        rhythm = self._rhythms.get(peer)
        if rhythm is not None:
            rhythm.touched_s = max(rhythm.touched_s, now_s - self._paused_s)
            rhythm.is_marked = False

    def restart(self, peer: Peer, now_s: float) -> None:
        """The peer is a new process: the silence before it says nothing about the rhythm it will have."""
        self._rhythms[peer] = self._begin(now_s)

    def mark_unreachable(self, peer: Peer) -> None:
        """A connection to the peer was refused or reset. A peer that is not watched stays so."""
        rhythm = self._rhythms.get(peer)
        if rhythm is not None:
            rhythm.is_marked = True

    def forget(self, peer: Peer) -> None:
        self._rhythms.pop(peer, None)

    def observe_local_pause(self, seconds: float) -> None:
        """This process stood still for so long up to now, and could have heard nobody."""
        if seconds < 0:
            raise ValueError("a pause cannot be negative")
        self._paused_s += seconds

    def is_suspect(self, peer: Peer, now_s: float) -> bool:
        """Whether phi has reached the threshold. A peer that is not watched is not suspected."""
        rhythm = self._rhythms.get(peer)
        if rhythm is None:
            return False
        return rhythm.is_marked or self._silence_s(rhythm, now_s) >= self._patience_s(rhythm)

    def phi(self, peer: Peer, now_s: float) -> float:
        """How surprising the silence is; infinite for a marked peer, 0 for one that is not watched."""
        rhythm = self._rhythms.get(peer)
        if rhythm is None:
            return 0.0
        if rhythm.is_marked:
            return inf
        silence_s = self._silence_s(rhythm, now_s)
        return phi_of((silence_s - rhythm.mean_s) / self._deviation_s(rhythm))

    def patience_s(self, peer: Peer) -> float:
        """The silence at which this peer becomes suspect. Infinite if it is not watched."""
        rhythm = self._rhythms.get(peer)
        return inf if rhythm is None else self._patience_s(rhythm)

    def _begin(self, now_s: float) -> _Rhythm:
        first = int(self.settings.first_interval_s * 1e6)
        rhythm = _Rhythm(now_s - self._paused_s, array("I"))
        for interval in (first // 2, first + first // 2):
            rhythm.add(interval, self.settings.window_count)
        return rhythm

    def _silence_s(self, rhythm: _Rhythm, now_s: float) -> float:
        local_s = now_s - self._paused_s
        if local_s < rhythm.last_s:
            # A heartbeat was counted within a pause that was reported later. The silence begins now.
            rhythm.last_s = local_s
        rhythm.touched_s = min(rhythm.touched_s, local_s)
        return local_s - max(rhythm.last_s, rhythm.touched_s)

    def _deviation_s(self, rhythm: _Rhythm) -> float:
        return max(rhythm.deviation_s, self.settings.deviation_min_s)

    def _patience_s(self, rhythm: _Rhythm) -> float:
        return rhythm.mean_s + self._limit * self._deviation_s(rhythm)
