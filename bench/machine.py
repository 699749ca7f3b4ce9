"""Where a benchmark ran: facts about the machine, and how busy it was with other things.

Noise is what the machine did beside the benchmark while it ran: busy time of all cores less that of
this process' tree, which holds the servers and the load generator. Time in interrupts belongs to
it: most kernels charge it to the process that it interrupts, so the tree's time holds its share,
and leaving it out would hide as much noise as the traffic makes interrupts.
"""

from __future__ import annotations

import datetime
import os
import platform
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.process import PROC, TICKS_PER_S, compiled_modules, tree_cpu
from bench.server import Server

PACKAGES = ("respkv", "engine", "cluster")
NOISE_SHARE_MAX = 0.05


@dataclass(frozen=True, slots=True)
class Facts:
    """What a reader needs to judge or repeat the figures."""

    date: str
    cpu_model: str
    core_count: int
    kernel: str
    python: str
    versions: dict[str, str]
    compiled: list[str]


@dataclass(frozen=True, slots=True)
class Activity:
    """A reading: when, how long all cores were busy, and how long with this benchmark."""

    at_s: float
    busy_s: float
    own_s: float


def parse_cpu_model(cpuinfo: str) -> str:
    """Return the processor's name from `/proc/cpuinfo`."""
    for line in cpuinfo.splitlines():
        name, _, value = line.partition(":")
        if name.strip() in ("model name", "Model", "Hardware"):
            return value.strip()
    return "unknown"


def parse_busy_s(stat: str) -> float:
    """Return the time that all cores worked or were lost to the host, from `/proc/stat`."""
    fields = stat.split("\n", 1)[0].split()
    assert fields[0] == "cpu"
    user, nice, system, _idle, _iowait, irq, softirq, steal = map(int, fields[1:9])
    return (user + nice + system + irq + softirq + steal) / TICKS_PER_S


def other_share(before: Activity, after: Activity, core_count: int) -> float:
    """Return the share of the machine that something else used between two readings."""
    available_s = (after.at_s - before.at_s) * core_count
    other_s = (after.busy_s - before.busy_s) - (after.own_s - before.own_s)
    return max(0.0, other_s / available_s)


def read_activity() -> Activity:
    return Activity(
        at_s=time.monotonic(),
        busy_s=parse_busy_s((PROC / "stat").read_text()),
        own_s=tree_cpu(os.getpid()).total_s,
    )


def core_count() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0))


def load_average() -> tuple[float, float, float]:
    return os.getloadavg()


def read_facts(servers: Sequence[Server]) -> Facts:
    """Collect the facts; `servers` are running, so that what they loaded can be seen."""
    root = Path(__file__).resolve().parent.parent
    packages = [root / package for package in PACKAGES]
    compiled: list[str] = []
    for server in servers:
        if server.name == "respkv":
            compiled = compiled_modules((PROC / str(server.pid) / "maps").read_text(), packages)
    return Facts(
        date=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        cpu_model=parse_cpu_model((PROC / "cpuinfo").read_text()),
        core_count=core_count(),
        kernel=platform.release(),
        python=f"{platform.python_implementation()} {platform.python_version()}",
        versions={server.name: server.version for server in servers},
        compiled=compiled,
    )
