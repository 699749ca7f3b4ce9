"""When a server flushed or compacted, and which latencies belong to that."""

import dataclasses

import pytest

from bench.openloop_watch import Sample, busy_periods, split, was_busy
from bench.process_clock import Resident

MS = 1_000_000


def sample(at_ms: int, **changes: int | float) -> Sample:
    quiet = Sample(
        at_ns=at_ms * MS,
        flushes=3,
        compactions=1,
        frozen=0,
        stalls=0,
        worker_pid=7,
        worker_cpu_s=5.0,
        memory=Resident(1, 1),
    )
    return dataclasses.replace(quiet, **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "is_busy"),
    [
        ({}, False),
        ({"worker_cpu_s": 5.001}, False),
        ({"worker_cpu_s": 5.03}, True),
        ({"flushes": 4}, True),
        ({"compactions": 2}, True),
        ({"frozen": 1}, True),
        ({"worker_pid": 8, "worker_cpu_s": 0.0}, True),
    ],
)
def test_what_counts_as_busy(changes: dict[str, float], is_busy: bool) -> None:
    assert was_busy(sample(0), sample(50, **changes)) is is_busy


def test_a_memtable_that_was_frozen_at_the_begin_counts() -> None:
    assert was_busy(sample(0, frozen=1), sample(50))


def test_periods_that_touch_are_one() -> None:
    frozen = [0, 1, 1, 0, 0, 0, 1, 0]
    samples = [sample(50 * number, frozen=count) for number, count in enumerate(frozen)]
    assert busy_periods(samples) == [(0, 150 * MS), (250 * MS, 350 * MS)]


def test_windows_that_overlap_a_period_are_busy() -> None:
    windows = [{1: 1}, {2: 1}, {3: 1}, {4: 1}, {5: 1}]  # Of 50 ms each, from 1000 ms on.
    quiet, busy = split(windows, 1000 * MS, [(900 * MS, 1000 * MS), (1060 * MS, 1110 * MS)])
    assert busy == {2: 1, 3: 1}
    assert quiet == {1: 1, 4: 1, 5: 1}


def test_a_long_period_covers_many_windows() -> None:
    quiet, busy = split([{1: 1}] * 10, 0, [(90 * MS, 310 * MS)])
    assert (quiet, busy) == ({1: 4}, {1: 6})


def test_without_periods_all_is_quiet() -> None:
    assert split([{1: 1}, {1: 2}], 0, []) == ({1: 3}, {})
