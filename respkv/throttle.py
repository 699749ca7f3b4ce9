"""Write stalls: how writes are held back while the store's worker cannot keep up.

It holds nothing itself: the runner lets commands that write wait while `is_on`, and reads go on. The
store says how urgent it is. First writes are *delayed*: after each tick that wrote, further writes
wait for a moment, so that they come in fewer and larger batches, and clients that wait for replies
slow down. When the store has no room left they are *stopped* until a job is done.

Core: time is an argument, in seconds of a clock that never goes back. Source of the idea: LevelDB's
and RocksDB's write stalls.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class Throttle:
    """The state, and for how long writes have been held back since the start."""

    is_on: bool = False
    until_s: float = 0.0  # The end of a delay.
    delayed_s: float = 0.0
    stopped_s: float = 0.0
    _position: int = 0  # The log's end when a delay began: a tick that wrote nothing begins none.
    _is_stopped: bool = False
    _since_s: float = 0.0

    def wrote(self, position: int, delay_s: float, now_s: float) -> None:
        """A tick has ended with the log at `position`, and the store asks for a delay."""
        if position != self._position:
            self._position = position
            self.until_s = now_s + delay_s

    def update(self, now_s: float, *, is_stopped: bool) -> bool:
        """Look again, and return whether writes are held back from now on."""
        if self.is_on:
            passed_s = now_s - self._since_s
            if self._is_stopped:
                self.stopped_s += passed_s
            else:
                self.delayed_s += passed_s
        self._since_s = now_s
        self._is_stopped = is_stopped
        self.is_on = is_stopped or now_s < self.until_s
        return self.is_on

    def wakes_at_s(self) -> float:
        """When to look again, whatever happens: the end of a delay."""
        return self.until_s if self.is_on and not self._is_stopped else float("inf")
