"""What INFO tells of a node's course that no other part counts: rates of the last moments, and the peak of memory.

It counts no command and no byte: totals are handed to it, some ten times a second.

Core: time is an argument.
"""

from __future__ import annotations

from collections import deque
from typing import Final

SAMPLES_MAX: Final = 17  # The first and the last of so many give the rate: of 1.6 s.
SAMPLE_INTERVAL_S: Final = 0.1


class Rate:
    """How fast a total grows, per second, over the last samples."""

    __slots__ = ("_samples",)

    def __init__(self) -> None:
        self._samples: deque[tuple[float, int]] = deque(maxlen=SAMPLES_MAX)

    def add(self, now_s: float, total: int) -> None:
        """A total that is smaller than the last one begins anew: it was reset."""
        if self._samples and total < self._samples[-1][1]:
            self._samples.clear()
        self._samples.append((now_s, total))

    @property
    def per_second(self) -> float:
        if len(self._samples) < 2:
            return 0.0
        (start_s, start), (end_s, end) = self._samples[0], self._samples[-1]
        return (end - start) / (end_s - start_s) if end_s > start_s else 0.0


class Stats:
    """One per node. `startup_bytes`: what the process held before there was any data."""

    __slots__ = ("_sampled_s", "commands", "input", "output", "peak_bytes", "startup_bytes")

    def __init__(self, startup_bytes: int) -> None:
        self.startup_bytes = startup_bytes
        self.peak_bytes = startup_bytes
        self.commands = Rate()
        self.input = Rate()
        self.output = Rate()
        self._sampled_s = float("-inf")

    def is_due(self, now_s: float) -> bool:
        return now_s - self._sampled_s >= SAMPLE_INTERVAL_S

    def sample(self, now_s: float, commands: int, bytes_in: int, bytes_out: int) -> None:
        """The totals at some moment."""
        self._sampled_s = now_s
        self.commands.add(now_s, commands)
        self.input.add(now_s, bytes_in)
        self.output.add(now_s, bytes_out)

    def see_memory(self, used_bytes: int) -> int:
        """Returns the peak."""
        self.peak_bytes = max(self.peak_bytes, used_bytes)
        return self.peak_bytes
