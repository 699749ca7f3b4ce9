"""How far a long command is: a line that is rewritten on a terminal, a line now and then elsewhere.

    backup: 3.2 GiB of 12.0 GiB (26 %), 410.0 MiB/s, 22 s left

Core: the clock and where to write are handed in.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

TERMINAL_INTERVAL_S: Final = 0.2
LINE_INTERVAL_S: Final = 10.0
_UNITS: Final = ("B", "KiB", "MiB", "GiB", "TiB")


def bytes_text(count: float) -> str:
    """A number of bytes for people: `3.2 GiB`."""
    unit = 0
    while count >= 1024 and unit < len(_UNITS) - 1:
        count /= 1024
        unit += 1
    return f"{count:.0f} {_UNITS[0]}" if unit == 0 else f"{count:.1f} {_UNITS[unit]}"


def count_text(count: float) -> str:
    """A number of things for people: `1,234,567`."""
    return f"{count:,.0f}"


class Progress:
    """One task of `total` steps, 0 if nobody knows how many. `shown` turns a number of them into text."""

    def __init__(
        self,
        title: str,
        total: int,
        *,
        shown: Callable[[float], str],
        write: Callable[[str], object],
        clock_s: Callable[[], float],
        is_terminal: bool,
    ) -> None:
        self._title = title
        self._total = total
        self._shown = shown
        self._write = write
        self._clock_s = clock_s
        self._is_terminal = is_terminal
        self._interval_s = TERMINAL_INTERVAL_S if is_terminal else LINE_INTERVAL_S
        self._started_s = self._told_s = clock_s()
        self._width = 0
        self.done = 0

    def add(self, count: int) -> None:
        """So much more is done."""
        self.done += count
        now_s = self._clock_s()
        if now_s - self._told_s >= self._interval_s:
            self._told_s = now_s
            self._tell(self.line(now_s))

    def line(self, now_s: float) -> str:
        elapsed_s = max(now_s - self._started_s, 1e-9)
        rate = self.done / elapsed_s
        text = f"{self._title}: {self._shown(self.done)}"
        if self._total:
            percent = min(100, 100 * self.done // self._total)
            text += f" of {self._shown(self._total)} ({percent} %)"
        text += f", {self._shown(rate)}/s"
        if self._total > self.done and rate > 0:
            text += f", {(self._total - self.done) / rate:.0f} s left"
        return text

    def end(self) -> None:
        """Leave the line of a terminal."""
        if self._is_terminal and self._width:
            self._write("\r" + " " * self._width + "\r")
            self._width = 0

    def _tell(self, line: str) -> None:
        if self._is_terminal:
            self._write("\r" + line.ljust(self._width))
            self._width = max(self._width, len(line))
        else:
            self._write(line + "\n")
