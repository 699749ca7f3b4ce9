"""How long a command's calls took, counted in buckets: for LATENCY HISTOGRAM and INFO latencystats.

It keeps no single call. Up to 65 microseconds, where nearly all calls are, buckets are 256 nanoseconds wide and stand
in a list, so that the runner counts a call with one index, `fine[elapsed_ns >> FINE_SHIFT] += 1` (0.04 microseconds);
beyond the list's end it calls `add_slow`. Longer calls fall into sixteen buckets per power of two, kept by their upper
bound.

Core: no I/O.

Source: the idea of linear buckets within powers of two is that of HdrHistogram.
"""

from __future__ import annotations

from math import ceil
from typing import Final

FINE_SHIFT: Final = 8
FINE_COUNT: Final = 256
_COARSE_BITS: Final = 5  # Of a longer duration this many leading bits tell.
_FIRST_POWER: Final = 10  # LATENCY HISTOGRAM begins with 1024 nanoseconds.


class Histogram:
    """Durations of one command. Hot: the runner writes to `fine` itself."""

    __slots__ = ("coarse", "fine")

    def __init__(self) -> None:
        self.fine = [0] * FINE_COUNT
        self.coarse: dict[int, int] = {}  # Upper bound in nanoseconds -> calls.

    def add(self, elapsed_ns: int, count: int = 1) -> None:
        """Count `count` calls that took so long each."""
        try:
            self.fine[elapsed_ns >> FINE_SHIFT] += count
        except IndexError:
            self.add_slow(elapsed_ns, count)

    def add_slow(self, elapsed_ns: int, count: int = 1) -> None:
        """As `add`, beyond the end of `fine`."""
        shift = elapsed_ns.bit_length() - _COARSE_BITS
        bound_ns = (elapsed_ns >> shift) + 1 << shift
        self.coarse[bound_ns] = self.coarse.get(bound_ns, 0) + count

    @property
    def count(self) -> int:
        return sum(self.fine) + sum(self.coarse.values())

    def clear(self) -> None:
        """Forget all calls, in place: the runner may hold `fine`."""
        self.fine[:] = [0] * FINE_COUNT
        self.coarse.clear()

    def buckets(self) -> list[tuple[int, int]]:
        """(upper bound in nanoseconds, calls below it and above the one before), those with calls, in order."""
        fine = [(at + 1 << FINE_SHIFT, count) for at, count in enumerate(self.fine) if count]
        return fine + sorted(self.coarse.items())

    def percentiles_us(self, percents: tuple[float, ...]) -> list[float]:
        """For each of `percents`, increasing: a bound in microseconds below which so many calls stayed."""
        total = self.count
        wanted = [max(1, ceil(total * percent / 100)) for percent in percents]
        found: list[float] = []
        seen = 0
        for bound_ns, count in self.buckets():
            seen += count
            while len(found) < len(wanted) and seen >= wanted[len(found)]:
                found.append(bound_ns / 1000)
        return found

    def by_powers_us(self) -> dict[int, int]:
        """Calls up to 1, 2, 4, 8, 16, 33, ... microseconds, cumulative; only where one was added."""
        powers: dict[int, int] = {}
        power, seen = _FIRST_POWER, 0
        for bound_ns, count in self.buckets():
            while bound_ns > 1 << power:
                power += 1
            seen += count
            powers[_shown_us(power)] = seen
        return powers


def _shown_us(power: int) -> int:
    """A power of two of nanoseconds as Redis labels it: the end of its bucket of two digits, in microseconds."""
    return ((1 << power) + (1 << power - 7) - 1) // 1000
