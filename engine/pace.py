"""How fast a compaction may read: a budget of bytes a second, so that it leaves the disk and the CPU to others.

Not when there is one: the schedule gives it with the job, and none where compaction is behind.

Core: time is an argument. Source: Cassandra's limit of compaction throughput.
"""

from __future__ import annotations

from typing import Final

BURST_S: Final = 0.25
"""What was not read in time (a flush came between, or others had the CPU) is caught up with, for so long."""


class Pace:
    """One per compaction. `bytes_per_s` 0: no budget."""

    __slots__ = ("_bytes_per_s", "_free_s")

    def __init__(self, bytes_per_s: int, now_s: float) -> None:
        self._bytes_per_s = bytes_per_s
        self._free_s = now_s  # Then all that was read is paid for.

    def rest_s(self, byte_count: int, now_s: float) -> float:
        """So many more bytes were read: for how long to read nothing now."""
        if not self._bytes_per_s:
            return 0.0
        self._free_s = max(self._free_s, now_s - BURST_S) + byte_count / self._bytes_per_s
        return max(0.0, self._free_s - now_s)

    def lift(self) -> None:
        """It is in a hurry now: no budget any more."""
        self._bytes_per_s = 0
