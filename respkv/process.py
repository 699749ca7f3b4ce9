"""The process as the operating system sees it: memory, CPU time, names. A seam: nothing else asks for these.

Shell. Linux is assumed: `/proc`.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import resource
import sys
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class CpuTimes:
    """Seconds of CPU since the start, by who used them. `main` is the thread that serves."""

    system_s: float
    user_s: float
    children_system_s: float
    children_user_s: float
    main_system_s: float
    main_user_s: float


class Process(Protocol):
    """What INFO and MEMORY need to know of the process."""

    pid: int
    executable: str
    system: str
    memory_total_bytes: int

    def rss_bytes(self) -> int:
        """Memory of the process that is in RAM."""

    def cpu_times(self) -> CpuTimes:
        """CPU time so far. `main` is the thread of the caller."""

    def trim(self) -> bool:
        """Give free memory back to the system. False if the C library cannot. May take long: for a thread."""


class RealProcess:
    """This process."""

    def __init__(self) -> None:
        self.pid = os.getpid()
        self.executable = sys.executable
        self.system = f"{platform.system()} {platform.release()} {platform.machine()}"
        self._page_bytes = os.sysconf("SC_PAGE_SIZE")
        self.memory_total_bytes = os.sysconf("SC_PHYS_PAGES") * self._page_bytes

    def rss_bytes(self) -> int:
        with open("/proc/self/statm", "rb") as file:
            return int(file.read().split()[1]) * self._page_bytes

    def cpu_times(self) -> CpuTimes:
        own = resource.getrusage(resource.RUSAGE_SELF)
        children = resource.getrusage(resource.RUSAGE_CHILDREN)
        main = resource.getrusage(resource.RUSAGE_THREAD)
        return CpuTimes(
            own.ru_stime, own.ru_utime, children.ru_stime, children.ru_utime, main.ru_stime, main.ru_utime
        )  # fmt: skip

    def trim(self) -> bool:
        with contextlib.suppress(AttributeError, OSError):  # Not the GNU C library.
            ctypes.CDLL(None).malloc_trim(0)
            return True
        return False


def boot_id() -> str:
    """Names the run of the machine: it changes with each start of the kernel. Empty where there is no such name."""
    with contextlib.suppress(OSError), open("/proc/sys/kernel/random/boot_id") as file:
        return file.read(64).strip()
    return ""


def allow_files(needed: int) -> int:
    """Raise the limit on open files to `needed` if it is lower, as far as that is allowed; returns the limit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    unlimited = resource.RLIM_INFINITY
    if soft == unlimited or soft >= needed:
        return needed
    try:  # As root the hard limit can be raised too.
        resource.setrlimit(
            resource.RLIMIT_NOFILE, (needed, hard if hard == unlimited else max(hard, needed))
        )
    except (ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        return hard
    return needed
