"""The commit log as it is written: round trips, segments that come and go, full and failing disks, two threads."""

import random
import threading
from pathlib import Path

import pytest

from engine import log as log_module
from engine.disk import RealDisk
from engine.errors import DiskError, DiskFullError, LogFailedError, SyncError
from engine.log_format import COMPLETE, FRAME_BYTES, HEADER_BYTES, MARKER, Entry, segment_name
from engine.log_recovery import Recovery
from engine.log_segment import read_segment
from tests.engine.segments import (
    ENTRY,
    FRAME_OF_ENTRY_BYTES,
    numbered,
    open_log,
    remove_before,
    replay,
    write,
)
from tests.sim.disk import SimDisk, SimFile


@pytest.fixture
def disk() -> SimDisk:
    return SimDisk(random.Random("log"))


# -- Round trips -----------------------------------------------------------------------------


def test_new_log_is_empty(disk: SimDisk) -> None:
    log = open_log(disk)
    assert (log.position, log.synced, log.segment_bytes) == (0, 0, 0)
    assert log.segment.name == "00000000000000000000.log"
    assert replay(disk.kill()).recovery == Recovery(0, 0, 0, 0, (), ())


@pytest.mark.parametrize(
    "entries",
    [
        [ENTRY],
        [(MARKER, 16383, b"", b"opaque")],
        [(0, 0, b"", b"")],
        [(COMPLETE | MARKER, 65535, b"r" * 70000, b"v" * 3_000_000), ENTRY],
        numbered(500),
    ],
)
def test_written_entries_are_recovered(disk: SimDisk, entries: list[Entry]) -> None:
    log = open_log(disk)
    end = write(log, *entries)
    assert end == log.position == log.segment_bytes
    found = replay(disk.kill())
    assert found.frames == {end: entries}
    assert found.recovery.end == end
    assert (found.recovery.frame_count, found.recovery.entry_count) == (1, len(entries))
    assert found.recovery.torn == ()


def test_nothing_staged_writes_nothing(disk: SimDisk) -> None:
    log = open_log(disk)
    write(log, ENTRY)
    size = disk.size(log.segment.name)
    assert log.write() == log.position
    assert disk.size(log.segment.name) == size


@pytest.mark.parametrize("length", [-1, 0, 1, 100_000])
def test_a_long_entry_is_written_as_any_other(length: int) -> None:
    """It is not copied into its frame, which shows nowhere: the bytes are those of the usual way."""
    raw = bytes(range(256)) * 1024
    raw += b"x" * (log_module._LONG_PIECE_BYTES + length - len(raw))
    entry = (COMPLETE, 7, b"row", raw[: log_module._LONG_PIECE_BYTES + length])
    contents = []
    for filler in ([], [(COMPLETE, 0, b"", b"")]):
        disk = SimDisk(random.Random(0))
        log = open_log(disk)
        write(log, entry, *filler)
        file = disk.open(segment_name(0))
        contents.append(file.read(HEADER_BYTES + FRAME_BYTES, len(entry[3]) + 14))
        assert replay(disk.kill()).entries == [entry, *filler]
    assert contents[0] == contents[1]


@pytest.mark.parametrize("others", [[], [ENTRY]])
def test_a_long_frame_that_could_not_be_written_leaves_nothing(
    disk: SimDisk, others: list[Entry]
) -> None:
    log = open_log(disk)
    write(log, ENTRY)
    before = disk.size(segment_name(0))
    long = (COMPLETE, 8, b"long", bytes(log_module._LONG_PIECE_BYTES))
    for fault in (1, 2):  # Its head, then the entry itself.
        disk.faults.write_error_in = fault
        with pytest.raises(DiskError):
            write(log, *([long, *others] if fault == 1 else []))
        assert disk.size(segment_name(0)) == before
    log.write()
    assert replay(disk.kill()).entries == [ENTRY, long, *others]


def test_position_goes_on_after_a_restart(disk: SimDisk) -> None:
    first = open_log(disk)
    end = write(first, ENTRY)
    disk = disk.kill()
    second = open_log(disk)
    assert second.position == second.synced == end
    assert second.segment.base == end
    write(second, ENTRY)
    assert list(replay(disk.kill()).frames) == [end, 2 * end]


def test_restarts_without_writes_leave_no_files(disk: SimDisk) -> None:
    write(open_log(disk), ENTRY)
    for _ in range(3):
        disk = disk.kill()
        open_log(disk)
    assert disk.names() == [segment_name(0), segment_name(FRAME_OF_ENTRY_BYTES)]


# -- Segments --------------------------------------------------------------------------------


def test_roll_seals_a_segment_and_goes_on(disk: SimDisk) -> None:
    log = open_log(disk)
    log.stage(*ENTRY)
    assert log.roll() == segment_name(0)
    assert log.segment.base == log.position == FRAME_OF_ENTRY_BYTES
    write(log, ENTRY, ENTRY)
    assert [segment.base for segment in log.sealed] == [0]
    assert list(read_segment(disk, segment_name(0))) == [ENTRY]
    assert replay(disk.kill()).entries == [ENTRY] * 3


def test_empty_segment_is_not_rolled(disk: SimDisk) -> None:
    with pytest.raises(ValueError, match="nothing to seal"):
        open_log(disk).roll()


def test_segments_below_a_position_are_removed(disk: SimDisk) -> None:
    log = open_log(disk)
    for entry in numbered(4):
        write(log, entry)
        log.roll()
    ends = [segment.base for segment in log.sealed][1:]
    remove_before(log, ends[1] - 1)
    assert [segment.base for segment in log.sealed] == [ends[0], ends[1], ends[2]]
    remove_before(log, log.position)
    assert log.sealed == ()
    assert disk.names() == [log.segment.name]
    remove_before(log, log.position + 1000)  # Never the current one.
    assert disk.names() == [log.segment.name]
    assert log.sync() == log.position
    start = log.position
    write(log, ENTRY)
    assert replay(disk.kill(), start=start).entries == [ENTRY]


def test_segments_of_earlier_lives_are_removed_too(disk: SimDisk) -> None:
    write(open_log(disk), ENTRY)
    disk = disk.kill()
    log = open_log(disk)
    remove_before(log, log.position)
    assert disk.names() == [log.segment.name]


@pytest.mark.parametrize("is_synced", [False, True])
def test_files_are_closed_when_synced_or_removed(tmp_path: Path, is_synced: bool) -> None:
    """A leak of descriptors would stop the node after some thousand segments."""
    log = open_log(RealDisk(str(tmp_path / "data")))
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(20):
        write(log, ENTRY)
        log.roll()
        if is_synced:
            log.sync()
        else:
            remove_before(log, log.position)
    assert len(list(Path("/proc/self/fd").iterdir())) == before
    log.close()
    assert len(list(Path("/proc/self/fd").iterdir())) == before - 1


def test_names_are_synced_only_after_a_roll(disk: SimDisk) -> None:
    """The sync of a folder is as slow as that of a file, and `always` would pay for both."""
    log = open_log(disk)
    write(log, ENTRY)
    log.sync()
    write(log, ENTRY)
    disk.faults.sync_error_in = 2
    log.sync()  # Of the file alone.
    write(log, ENTRY)
    with pytest.raises(SyncError):
        log.sync()


# -- Failing disks ---------------------------------------------------------------------------


@pytest.mark.parametrize("has_short_writes", [False, True])
def test_full_disk_refuses_a_frame_and_the_log_goes_on(
    disk: SimDisk, has_short_writes: bool
) -> None:
    log = open_log(disk)
    end = write(log, ENTRY)
    disk.faults.has_short_writes = has_short_writes
    disk.faults.capacity_bytes = disk.size(log.segment.name) + 20
    waiting = (0, 1, b"waits", b"")
    for _ in range(2):
        with pytest.raises(DiskFullError) as caught:
            write(log, *(() if log.pieces else (waiting,)))
        assert 0 < caught.value.needed <= FRAME_BYTES + 16
        assert log.position == end
        assert disk.size(log.segment.name) == HEADER_BYTES + end
    disk.faults.capacity_bytes = None
    write(log, ENTRY)
    assert log.pieces == []
    assert replay(disk.kill()).entries == [ENTRY, waiting, ENTRY]


def test_short_writes_alone_do_no_harm(disk: SimDisk) -> None:
    disk.faults.has_short_writes = True
    log = open_log(disk)
    write(log, *numbered(50))
    assert replay(disk.kill()).entries == numbered(50)


def test_failed_write_is_undone(disk: SimDisk) -> None:
    log = open_log(disk)
    disk.faults.write_error_in = 1
    with pytest.raises(DiskError):
        write(log, ENTRY)
    assert log.position == 0
    log.write()
    assert replay(disk.kill()).entries == [ENTRY]


def test_failed_write_that_cannot_be_undone_fails_the_log(disk: SimDisk) -> None:
    log = open_log(disk)
    end = write(log, ENTRY)
    disk.faults.write_error_in = 1
    disk.faults.is_lasting = True
    with pytest.raises(LogFailedError):
        write(log, ENTRY)
    disk.faults.write_error_in = None
    for operate in (log.sync, log.roll, lambda: write(log, ENTRY)):
        with pytest.raises(LogFailedError):
            operate()
    assert log.position == end
    assert replay(disk.kill()).entries == [ENTRY]


def test_roll_on_a_full_disk_leaves_the_log_as_it_was(disk: SimDisk) -> None:
    log = open_log(disk)
    write(log, ENTRY)
    for room in (0, 10):
        disk.faults.capacity_bytes = disk.size(log.segment.name) + room
        with pytest.raises(DiskFullError):
            log.roll()
        assert disk.names() == [log.segment.name]
    disk.faults.capacity_bytes = None
    write(log, ENTRY)
    log.roll()
    write(log, ENTRY)
    log.sync()
    assert replay(disk.crash()).entries == [ENTRY] * 3


def test_roll_that_cannot_be_undone_fails_the_log(disk: SimDisk) -> None:
    log = open_log(disk)
    write(log, ENTRY)
    disk.faults.write_error_in = 1
    disk.faults.sync_error_in = 1
    with pytest.raises(LogFailedError):
        log.roll()
    with pytest.raises(LogFailedError):
        write(log, ENTRY)
    assert replay(disk.kill()).entries == [ENTRY]


def test_failed_sync_is_final(disk: SimDisk) -> None:
    log = open_log(disk)
    end = write(log, ENTRY)
    log.sync()
    write(log, ENTRY)
    disk.faults.sync_error_in = 1
    with pytest.raises(SyncError):
        log.sync()
    for operate in (log.sync, log.write, log.roll, lambda: write(log, ENTRY)):
        if operate == log.write:
            log.stage(*ENTRY)
        with pytest.raises(LogFailedError, match="restart the node"):
            operate()
    assert log.synced == end
    log.close()
    assert replay(disk.crash()).entries == [ENTRY]


def test_failed_write_back_is_final(disk: SimDisk) -> None:
    """The kernel tells of a failure once: a sync after it would say that all is well."""
    log = open_log(disk)
    write(log, ENTRY)
    disk.faults.sync_error_in = 1
    with pytest.raises(SyncError):
        log.write_back()
    for operate in (log.sync, log.write_back, lambda: write(log, ENTRY)):
        with pytest.raises(LogFailedError, match="restart the node"):
            operate()
    assert log.synced == 0


def test_what_is_written_back_is_not_durable_yet(disk: SimDisk) -> None:
    log = open_log(disk)
    end = write(log, ENTRY)
    log.write_back()
    assert log.synced == 0
    assert log.sync() == end


def test_failed_sync_of_names_is_final(disk: SimDisk) -> None:
    log = open_log(disk)
    write(log, ENTRY)
    disk.faults.sync_error_in = 2
    with pytest.raises(SyncError):
        log.sync()
    with pytest.raises(LogFailedError):
        log.sync()
    assert log.synced == 0


def test_closed_log_takes_nothing(disk: SimDisk) -> None:
    log = open_log(disk)
    log.stage(*ENTRY)
    log.close()
    with pytest.raises(LogFailedError, match="closed"):
        write(log, ENTRY)
    assert replay(disk.crash()).entries == [ENTRY]


def test_log_closes_on_a_full_disk(disk: SimDisk) -> None:
    log = open_log(disk)
    write(log, ENTRY)
    disk.faults.capacity_bytes = 0
    log.close()
    assert replay(disk.crash()).entries == [ENTRY]


def test_sync_runs_while_another_thread_writes(tmp_path: Path) -> None:
    """On a real disk: `synced` never passes what was written, and everything comes back."""
    disk = RealDisk(str(tmp_path / "data"))
    log = open_log(disk)
    is_done = threading.Event()
    failures: list[BaseException] = []

    def sync_on_and_on() -> None:
        try:
            while not is_done.is_set():
                before = log.position
                log.write_back()
                assert before <= log.sync() <= log.position
        except BaseException as error:
            failures.append(error)

    syncer = threading.Thread(target=sync_on_and_on)
    syncer.start()
    written = {}
    start = 0
    for n in range(2000):
        entry = (COMPLETE, n, b"row%d" % n, b"raw")
        written[write(log, entry)] = [entry]
        if n % 20 == 0:
            log.roll()
        if n % 170 == 0:
            start = log.sealed[-1].base
            remove_before(log, start)
    is_done.set()
    syncer.join()
    assert failures == []
    log.close()
    expected = {end: frame for end, frame in written.items() if end > start}
    assert replay(disk, start=start).frames == expected


# -- Room for what comes ---------------------------------------------------------------------


def test_what_comes_until_the_next_sync_has_room_already(
    disk: SimDisk, monkeypatch: pytest.MonkeyPatch
) -> None:
    reserved: dict[str, int] = {}
    asked = 0

    def reserve(file: SimFile, length: int) -> None:
        nonlocal asked
        asked += 1
        reserved[file.name] = length

    monkeypatch.setattr(SimFile, "reserve", reserve)
    log = open_log(disk)
    for number in range(200):
        write(log, *numbered(100))
        if number > 1:
            assert disk.size(log.segment.name) <= reserved[log.segment.name]
        log.sync()
    assert asked < 80, "once for several syncs"
    log.roll()
    write(log, *numbered(100))
    log.sync()
    assert reserved[log.segment.name] > disk.size(log.segment.name)
    # Not far more than that.
    assert reserved[log.sealed[0].name] < 2 * disk.size(log.sealed[0].name)
