"""Latencies of requests, counted in buckets and by the time at which they were due (core).

It keeps no single latency: a long run has millions. A bucket is known by its upper bound in
microseconds; bounds are at most 1/32 apart (3 %). Time is cut into windows of 50 ms, so that the
counts of some periods can be told from those of others afterwards.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Final, TypeAlias

Counts: TypeAlias = dict[int, int]
"""Upper bound in microseconds -> how many latencies were at most that, and above the bound before."""

WINDOW_TICKS: Final = 50
_BITS: Final = 6  # Of a longer latency this many leading bits tell.


def bound_of(latency_us: int) -> int:
    """The upper bound of a latency's bucket."""
    shift = latency_us.bit_length() - _BITS
    if shift <= 0:
        return latency_us
    return ((latency_us - 1 >> shift) + 1) << shift


def merged(parts: Iterable[Mapping[int, int]]) -> Counts:
    total: Counts = {}
    for part in parts:
        for bound, count in part.items():
            total[bound] = total.get(bound, 0) + count
    return total


def percentile_ms(counts: Mapping[int, int], share: float) -> float | None:
    """A bound in milliseconds below which this share of all stayed; None without any."""
    total = sum(counts.values())
    if not total:
        return None
    wanted = max(1, math.ceil(total * share))
    seen = 0
    for bound in sorted(counts):
        seen += counts[bound]
        if seen >= wanted:
            return bound / 1000
    raise AssertionError("the counts changed")


class Recorder:
    """Counts latencies by window. Hot: once for each run of replies of one tick."""

    def __init__(self, window_count: int) -> None:
        self.windows: list[Counts] = [{} for _ in range(window_count)]

    def add(self, tick: int, latency_us: int, count: int) -> None:
        """`count` requests that were due at `tick` took so long each."""
        window = self.windows[tick // WINDOW_TICKS]
        bound = bound_of(latency_us)
        window[bound] = window.get(bound, 0) + count
