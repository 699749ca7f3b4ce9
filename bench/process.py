"""What a tree of processes costs: CPU time and resident memory, from Linux' /proc.

It starts and ends nothing (that is `bench.server`). The directory is an argument, so that tests
write their own.

CPU time of a tree is the sum of `utime + stime + cutime + cstime` over its live processes. The
last two hold what ended children used, once their parent has waited for them; a child that nobody
has waited for is still listed (a zombie) with its own times. So a worker or a fork that ends
between two readings is counted once. What is lost: a descendant whose parent ended first, since
init adopts it.

All threads are included: the stat file of a process, unlike that of a task, sums them.

Source: proc(5), `/proc/PID/stat`, `/proc/PID/status` and `/proc/PID/maps`.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

Pid: TypeAlias = int
"""A process id."""

PROC = Path("/proc")
TICKS_PER_S = os.sysconf("SC_CLK_TCK")
READING_ATTEMPTS_MAX = 20


@dataclass(frozen=True, slots=True)
class CpuTime:
    """Processor time, split as the kernel does."""

    user_s: float
    system_s: float

    @property
    def total_s(self) -> float:
        return self.user_s + self.system_s

    def __add__(self, other: CpuTime) -> CpuTime:
        return CpuTime(self.user_s + other.user_s, self.system_s + other.system_s)

    def __sub__(self, other: CpuTime) -> CpuTime:
        return CpuTime(self.user_s - other.user_s, self.system_s - other.system_s)


@dataclass(frozen=True, slots=True)
class ProcessStat:
    """One process: its parent, and the CPU time of itself and of its ended children."""

    parent: Pid
    cpu: CpuTime


def parse_stat(text: str) -> ProcessStat:
    """Read a line of `/proc/PID/stat`."""
    # The name stands in parentheses and may hold spaces and parentheses: count from its end.
    fields = text[text.rindex(")") + 1 :].split()
    utime, stime, cutime, cstime = (int(field) / TICKS_PER_S for field in fields[11:15])
    return ProcessStat(parent=int(fields[1]), cpu=CpuTime(utime + cutime, stime + cstime))


def tree(parents: Mapping[Pid, Pid], root: Pid) -> frozenset[Pid]:
    """Return `root` and all its descendants, given each process' parent."""
    children: dict[Pid, list[Pid]] = {}
    for pid, parent in parents.items():
        children.setdefault(parent, []).append(pid)
    found: set[Pid] = set()
    waiting = [root] if root in parents else []
    while waiting:
        pid = waiting.pop()
        if pid not in found:
            found.add(pid)
            waiting.extend(children.get(pid, ()))
    return frozenset(found)


def read_tree(root: Pid, proc: Path = PROC) -> dict[Pid, ProcessStat]:
    """Return the live processes of a tree; empty when the root has ended.

    A child that ends between the reading of its parent and its own would be missed, and one that is
    waited for between them counted twice: read again until two readings list the same processes.
    """
    processes = _read_tree_once(root, proc)
    for _ in range(READING_ATTEMPTS_MAX):
        again = _read_tree_once(root, proc)
        if again.keys() == processes.keys():
            return again
        processes = again
    return processes


def tree_cpu(root: Pid, proc: Path = PROC) -> CpuTime:
    """Return what a process, its descendants and their ended children have used so far."""
    return sum((stat.cpu for stat in read_tree(root, proc).values()), CpuTime(0.0, 0.0))


def parse_memory(status_text: str) -> tuple[int, int]:
    """Return resident bytes now and at their peak (VmRSS, VmHWM) from `/proc/PID/status`.

    A process that has ended but was not waited for has neither line and holds nothing.
    """
    values = {"VmRSS": 0, "VmHWM": 0}
    for line in status_text.splitlines():
        name, _, rest = line.partition(":")
        if name in values:
            values[name] = int(rest.split()[0]) * 1024
    return values["VmRSS"], values["VmHWM"]


def resident_bytes(root: Pid, proc: Path = PROC) -> int:
    """Return the resident memory of a tree of processes."""
    return sum(_memory(pid, proc)[0] for pid in read_tree(root, proc))


def peak_bytes(pid: Pid, proc: Path = PROC) -> int:
    """Return the highest resident memory that one process ever had, as the kernel saw it."""
    return _memory(pid, proc)[1]


def compiled_modules(maps_text: str, packages: Iterable[Path]) -> list[str]:
    """Return the shared objects below `packages` that a process has loaded, from its `maps` file.

    mypyc puts a package's shared part (`HASH__mypyc.*.so`) beside it, so that counts as well.
    """
    directories = list(packages)
    found = set()
    for line in maps_text.splitlines():
        fields = line.split(maxsplit=5)
        path = Path(fields[5]) if len(fields) == 6 else Path()
        if path.suffix != ".so":
            continue
        is_inside = any(directory in path.parents for directory in directories)
        is_shared_part = "__mypyc" in path.name and any(
            path.parent == directory.parent for directory in directories
        )
        if is_inside or is_shared_part:
            found.add(path.name)
    return sorted(found)


def _read_tree_once(root: Pid, proc: Path) -> dict[Pid, ProcessStat]:
    stats: dict[Pid, ProcessStat] = {}
    for entry in os.listdir(proc):
        if entry.isdigit():
            try:
                stats[int(entry)] = parse_stat((proc / entry / "stat").read_text())
            except (FileNotFoundError, ProcessLookupError):
                continue  # It ended since the directory was listed.
    members = tree({pid: stat.parent for pid, stat in stats.items()}, root)
    return {pid: stats[pid] for pid in members}


def _memory(pid: Pid, proc: Path) -> tuple[int, int]:
    try:
        return parse_memory((proc / str(pid) / "status").read_text())
    except (FileNotFoundError, ProcessLookupError):
        return 0, 0
