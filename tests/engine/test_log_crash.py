"""The commit log in a crash loop, and bugs that the loop has to find.

The loop runs lives of a process on the simulated disk. Each life recovers, compares what it
gets with what was written before, writes, rolls, syncs and removes at random, and ends in a power
cut, a kill or a clean stop, at any point, also within recovery. Then bugs are planted, and the loop
must find each of them.
"""

import contextlib
import random
from collections.abc import Callable

import pytest

from engine import log, log_format, log_recovery
from engine.errors import DiskError, EngineError, LogFailedError, SyncError
from engine.log import CommitLog
from engine.log_format import COMPLETE, FRAME_BYTES, Entry, Segment
from engine.log_segment import read_segment
from tests.engine.segments import Replay, remove_before, replay, write
from tests.sim.disk import Faults, PowerCut, SimDisk


class CrashLoop:
    """Lives of one log on one simulated disk, and the memory of what must come back."""

    def __init__(self, seed: int, faults: Faults | None = None) -> None:
        self.rng = random.Random(f"crash loop {seed}")
        self.disk = SimDisk(random.Random(f"disk {seed}"), faults=faults)
        self.frames: dict[int, list[Entry]] = {}  # By end, of the live history.
        self.durable = 0
        self.start = 0
        self.recovered_count = 0
        self.lost_count = 0
        self._serial = 0

    def run(self, cycles: int) -> None:
        for _ in range(cycles):
            log = self._recover()
            try:
                self._live(log)
            except PowerCut:
                self.disk = self.disk.crash()
            except (SyncError, LogFailedError):
                self._end_process()

    def _recover(self) -> CommitLog:
        """Start, which the power may interrupt; check what came back; open the log."""
        self._plan_cut(chance=0.3, operations=8)
        while True:
            try:
                found = replay(self.disk, start=self.start)
                self._check(found)
                return CommitLog.open(self.disk, found.recovery)
            except PowerCut:
                self.disk = self.disk.crash()
            except (DiskError, LogFailedError):
                self._end_process()

    def _check(self, found: Replay) -> None:
        """No gap, nothing foreign, nothing changed, and all that was promised."""
        end = found.recovery.end
        assert end >= self.start
        assert end >= self.durable, "synced frames are lost"
        expected = {at: frame for at, frame in self.frames.items() if self.start < at <= end}
        assert found.frames == {at: frame for at, frame in expected.items() if frame}
        assert end in (self.start, *self.frames)
        self.recovered_count += len(expected)
        self.lost_count += sum(1 for at in self.frames if at > end)
        # What was cut off never happened, and what came back is promised from now on.
        self.frames = expected
        self.durable = end

    def _live(self, log: CommitLog) -> None:
        rng = self.rng
        sync_chance = rng.choice((0.0, 0.05, 0.3, 1.0))
        roll_chance = rng.choice((0.02, 0.2))
        self._plan_cut(chance=0.5, operations=60)
        self._plan_errors()
        for _ in range(rng.randrange(40)):
            self._write(log)
            if rng.random() < sync_chance:
                position = log.position
                assert log.sync() == position
                self.durable = position
            if rng.random() < roll_chance and log.segment_bytes:
                self._roll(log)
            if rng.random() < 0.03 and log.sealed:
                self._flush(log)
        if rng.random() < 0.15:
            self._close(log)
        self._end_process()

    def _close(self, log: CommitLog) -> None:
        self.frames[log.position + FRAME_BYTES] = []  # If there is one, it vouches for the others.
        position = log.position
        with contextlib.suppress(DiskError):
            log.close()
            self.durable = position

    def _write(self, log: CommitLog) -> None:
        entries = [self._entry() for _ in range(self.rng.choice((1, 1, 3, 16)))]
        size = FRAME_BYTES + sum(11 + len(row) + len(raw) for _, _, row, raw in entries)
        end = log.position + size
        # Remembered first: the power may go when the frame is written and not yet acknowledged.
        self.frames[end] = entries
        try:
            assert write(log, *entries) == end
        except DiskError:
            del self.frames[end]
            log.pieces.clear()  # Given up, so that a frame is what one call wrote.

    def _entry(self) -> Entry:
        self._serial += 1
        size = self.rng.choice((0, 5, 60, 700, 3000))
        return COMPLETE, self._serial % 16384, b"%d" % self._serial, self.rng.randbytes(size)

    def _roll(self, log: CommitLog) -> None:
        try:
            log.roll()
        except DiskError:
            assert log.failure is None

    def _flush(self, log: CommitLog) -> None:
        """Move what a sealed segment holds elsewhere, durably, and forget the log before it."""
        index = self.rng.randrange(len(log.sealed))
        segments = [*log.sealed, log.segment]
        base, end = segments[index].base, segments[index + 1].base
        wanted = [entry for at, frame in self.frames.items() if base < at <= end for entry in frame]
        if base >= self.start:
            assert list(read_segment(self.disk, segments[index].name)) == wanted
        self.start = max(self.start, end)
        remove_before(log, self.start)

    def _end_process(self) -> None:
        is_cut = self.rng.random() < 0.6
        self.disk = self.disk.crash() if is_cut else self.disk.kill()

    def _plan_cut(self, *, chance: float, operations: int) -> None:
        is_cut = self.rng.random() < chance
        self.disk.faults.power_cut_in = self.rng.randint(1, operations) if is_cut else None

    def _plan_errors(self) -> None:
        faults, rng = self.disk.faults, self.rng
        faults.has_short_writes = rng.random() < 0.3
        faults.write_error_in = rng.randint(1, 100) if rng.random() < 0.2 else None
        faults.sync_error_in = rng.randint(1, 100) if rng.random() < 0.2 else None


@pytest.mark.parametrize("seed", range(10))
def test_crash_loop(seed: int) -> None:
    loop = CrashLoop(seed)
    loop.run(60)
    assert loop.recovered_count > 100, "the loop recovers too little to show anything"
    assert loop.lost_count > 10, "the power cuts lose too little to show anything"


Plant = Callable[[pytest.MonkeyPatch, Faults], None]


def plant_sync_that_does_nothing(_: pytest.MonkeyPatch, faults: Faults) -> None:
    faults.ignores_sync = True


def plant_names_that_are_not_synced(_: pytest.MonkeyPatch, faults: Faults) -> None:
    faults.ignores_sync_names = True


def plant_checksum_that_is_not_checked(patch: pytest.MonkeyPatch, _: Faults) -> None:
    for module in (log, log_format):
        patch.setattr(module, "xxh3_64_intdigest", lambda data, seed=0: 0)


def plant_cut_that_keeps_what_is_torn(patch: pytest.MonkeyPatch, _: Faults) -> None:
    patch.setattr(log_recovery, "_cut", lambda disk, rest, end: ())


def plant_cache_that_is_believed(patch: pytest.MonkeyPatch, _: Faults) -> None:
    patch.setattr("tests.sim.disk.SimFile.drop_cache", lambda self: None)


def plant_gap_that_is_applied(patch: pytest.MonkeyPatch, _: Faults) -> None:
    def run(self: log_recovery._Replay, segment: Segment) -> bool:
        self.end = max(self.end, segment.base)
        return original(self, segment)

    original = log_recovery._Replay.run
    patch.setattr(log_recovery._Replay, "run", run)


@pytest.mark.parametrize(
    "plant",
    [
        plant_sync_that_does_nothing,
        plant_names_that_are_not_synced,
        plant_checksum_that_is_not_checked,
        plant_cut_that_keeps_what_is_torn,
        plant_cache_that_is_believed,
        plant_gap_that_is_applied,
    ],
)
def test_crash_loop_finds_planted_bugs(plant: Plant, monkeypatch: pytest.MonkeyPatch) -> None:
    faults = Faults()
    plant(monkeypatch, faults)

    def run_all() -> None:
        for seed in range(200):
            CrashLoop(seed, faults).run(60)

    with pytest.raises((AssertionError, EngineError)):
        run_all()
