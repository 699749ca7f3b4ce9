"""Looks at a server while it is loaded: its memory, and when it flushed or compacted (core, and a thread).

A *sample* is INFO's section `respkv` and both processes' memory and CPU time. Between two samples
there was a flush or a compaction if INFO counts one more, or has a frozen memtable, or the worker
process used CPU time: INFO counts a compaction at its end only, and the worker does nothing else.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final, TypeAlias

from bench.connection import Address, Connection, ConnectionEnded, ErrorAnswered
from bench.openloop_histogram import WINDOW_TICKS, Counts, merged
from bench.openloop_schedule import TICK_NS
from bench.process import Pid
from bench.process_clock import Resident, process_cpu_s, resident

SAMPLE_S: Final = 0.05
# Waiting for work costs the worker nothing, and its own threads next to nothing.
WORKING_SHARE: Final = 0.05

Period: TypeAlias = tuple[int, int]
"""Begin and end, in nanoseconds of the monotonic clock."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One look at the server."""

    at_ns: int
    flushes: int
    compactions: int
    frozen: int
    stalls: int
    worker_pid: int
    worker_cpu_s: float
    memory: Resident


def was_busy(before: Sample, after: Sample) -> bool:
    """Whether there was a flush or a compaction between two samples."""
    if after.flushes != before.flushes or after.compactions != before.compactions:
        return True
    if before.frozen or after.frozen:
        return True
    if after.worker_pid != before.worker_pid:
        return True
    worked_s = after.worker_cpu_s - before.worker_cpu_s
    return worked_s > WORKING_SHARE * (after.at_ns - before.at_ns) / 1e9


def busy_periods(samples: Sequence[Sample]) -> list[Period]:
    """The periods with flushes or compactions, in order; those that touch are one."""
    periods: list[Period] = []
    for before, after in pairwise(samples):
        if not was_busy(before, after):
            continue
        if periods and periods[-1][1] == before.at_ns:
            periods[-1] = (periods[-1][0], after.at_ns)
        else:
            periods.append((before.at_ns, after.at_ns))
    return periods


def split(
    windows: Sequence[Counts], began_ns: int, periods: Sequence[Period]
) -> tuple[Counts, Counts]:
    """The latencies of requests that were due in quiet windows, and of those due in busy ones."""
    length_ns = WINDOW_TICKS * TICK_NS
    quiet: list[Counts] = []
    busy: list[Counts] = []
    at = 0
    for number, window in enumerate(windows):
        begin = began_ns + number * length_ns
        while at < len(periods) and periods[at][1] <= begin:
            at += 1
        is_busy = at < len(periods) and periods[at][0] < begin + length_ns
        (busy if is_busy else quiet).append(window)
    return merged(quiet), merged(busy)


class Watch:
    """Takes samples in a thread between `__init__` and `stop`."""

    def __init__(self, address: Address, pid: Pid) -> None:
        self._address = address
        self._pid = pid
        self._samples: list[Sample] = []
        self._failure: BaseException | None = None
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def stop(self) -> list[Sample]:
        """All samples, oldest first. Raises what ended the watching."""
        self._stopped.set()
        self._thread.join()
        if self._failure is not None:
            raise self._failure
        return self._samples

    def _run(self) -> None:
        try:
            with Connection(self._address) as connection:
                while True:
                    self._samples.append(take_sample(connection, self._pid))
                    if self._stopped.wait(SAMPLE_S):
                        break
                self._samples.append(take_sample(connection, self._pid))
        except (OSError, ConnectionEnded, ErrorAnswered, KeyError) as error:
            self._failure = error


def take_sample(connection: Connection, pid: Pid) -> Sample:
    info = connection.info(b"respkv")
    worker = int(info["worker_pid"])
    memory = resident(pid)
    return Sample(
        at_ns=time.monotonic_ns(),
        flushes=int(info["flushes"]),
        compactions=int(info["compactions"]),
        frozen=int(info["memtables_frozen"]),
        stalls=int(info["stalls"]),
        worker_pid=worker,
        worker_cpu_s=process_cpu_s(worker) if worker else 0.0,
        memory=memory + resident(worker) if worker else memory,
    )
