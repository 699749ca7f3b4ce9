"""What one process has used, finer than `bench.process` reads it: for processes that are known by their id (shell).

CPU time comes from the process' own clock, in nanoseconds and without going through all of `/proc`.
Children are not included.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from bench.process import PROC, Pid


@dataclass(frozen=True, slots=True)
class Resident:
    """Memory of a process that is in RAM: all of it, and what belongs to no file."""

    rss_bytes: int
    anonymous_bytes: int

    def __add__(self, other: Resident) -> Resident:
        return Resident(
            self.rss_bytes + other.rss_bytes, self.anonymous_bytes + other.anonymous_bytes
        )


def process_cpu_s(pid: Pid) -> float:
    """CPU time of all threads of a process; 0 when it has ended."""
    # How Linux makes the clock id of a process: clock_getcpuclockid(3).
    try:
        return time.clock_gettime(~pid << 3 | 2)
    except OSError:
        return 0.0


def written_bytes(pid: Pid, proc: Path = PROC) -> int:
    """Bytes that a process has given to write calls; 0 when it has ended."""
    return _fields(proc / str(pid) / "io").get("wchar", 0)


def resident(pid: Pid, proc: Path = PROC) -> Resident:
    """Memory of a process now; nothing when it has ended."""
    fields = _fields(proc / str(pid) / "status")
    return Resident(fields.get("VmRSS", 0) * 1024, fields.get("RssAnon", 0) * 1024)


def _fields(path: Path) -> dict[str, int]:
    """The lines `name: number` of a file in /proc."""
    try:
        lines = path.read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return {}
    words = (line.split() for line in lines)
    return {
        each[0].rstrip(":"): int(each[1]) for each in words if len(each) > 1 and each[1].isdigit()
    }
