"""The commit log: round trips, every kind of damage, full and failing disks, and the crash loop.

The crash loop runs lives of a process on the simulated disk. Each life recovers, compares what it
gets with what was written before, writes, rolls, syncs and removes at random, and ends in a power
cut, a kill or a clean stop, at any point, also within recovery. Then bugs are planted, and the loop
must find each of them.
"""

import contextlib
import random
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from engine import log as log_module
from engine.disk import Disk, RealDisk
from engine.errors import (
    CorruptionError,
    DiskError,
    DiskFullError,
    EngineError,
    LogFailedError,
    SyncError,
    UnknownFormatError,
)
from engine.log import (
    COMPLETE,
    ENVELOPE,
    FRAME_BYTES,
    HEADER_BYTES,
    MARKER,
    CommitLog,
    Entry,
    Recovery,
    Torn,
    list_segments,
    read_segment,
    recover,
    segment_name,
)
from tests.engine.segments import remove_before
from tests.sim.disk import Faults, PowerCut, SimDisk, SimFile

ENTRY = (COMPLETE, 7, b"row", b"raw bytes")
FRAME_OF_ENTRY_BYTES = FRAME_BYTES + 11 + 3 + 9


@pytest.fixture
def disk() -> SimDisk:
    return SimDisk(random.Random("log"))


@dataclass
class Replay:
    """What a recovery applied, frame by frame."""

    recovery: Recovery
    entries: list[Entry] = field(default_factory=list)
    frames: dict[int, list[Entry]] = field(default_factory=dict)


def replay(disk: Disk, *, start: int = 0) -> Replay:
    entries: list[Entry] = []
    frames: dict[int, list[Entry]] = {}

    def apply(flags: int, slot: int, row: bytes, raw: bytes, position: int) -> None:
        entries.append((flags, slot, row, raw))
        frames.setdefault(position, []).append((flags, slot, row, raw))

    return Replay(recover(disk, start=start, apply=apply), entries, frames)


def open_log(disk: Disk, *, start: int = 0) -> CommitLog:
    return CommitLog.open(disk, replay(disk, start=start).recovery)


def write(log: CommitLog, *entries: Entry) -> int:
    for entry in entries:
        log.stage(*entry)
    return log.write()


def numbered(count: int) -> list[Entry]:
    return [(COMPLETE, n, b"row%d" % n, b"raw%d" % n) for n in range(count)]


# -- Round trips ------------------------------------------------------------------------------


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


def test_pieces_are_what_stage_adds(disk: SimDisk) -> None:
    log = open_log(disk)
    log.stage(COMPLETE, 7, b"row", b"raw")
    staged = list(log.pieces)
    log.pieces.clear()
    log.pieces += (ENVELOPE(COMPLETE, 7, 3, 3), b"row", b"raw")
    assert log.pieces == staged
    log.write()
    assert replay(disk.kill()).entries == [(COMPLETE, 7, b"row", b"raw")]


def test_nothing_staged_writes_nothing(disk: SimDisk) -> None:
    log = open_log(disk)
    write(log, ENTRY)
    size = disk.size(log.segment.name)
    assert log.write() == log.position
    assert disk.size(log.segment.name) == size


def test_bytes_on_disk_are_as_documented(disk: SimDisk) -> None:
    """The layout is a promise to later versions. Worked out by hand from the docstring."""
    log = open_log(disk, start=0x1000)
    write(log, ENTRY)
    data = disk.open(segment_name(0x1000)).read(0, 1000)
    assert data[:32].hex(" ", 4) == (
        "726b762d 6c6f670a 01000000 00000000 00100000 00000000 00100000 00000000"
    )
    frame = data[HEADER_BYTES:]
    assert frame[:16].hex(" ", 4) == "524b5631 17000000 00100000 00000000"
    assert frame[24:] == bytes.fromhex("01 0700 03000000 09000000") + b"rowraw bytes"
    assert len(frame) == FRAME_OF_ENTRY_BYTES
    assert (HEADER_BYTES, FRAME_BYTES) == (40, 24)
    assert (data[32:40] + frame[16:24]).hex() == "12a4b75a1c27ea3e97e68ad35a82de02"


def test_frames_larger_than_a_read_are_recovered(disk: SimDisk) -> None:
    """Frames of many sizes end before, at and after the edge of what is read at once."""
    rng = random.Random(3)
    log = open_log(disk)
    written = {}
    for _ in range(60):
        entry = (COMPLETE, 1, b"r", rng.randbytes(rng.choice((1, 100, 70_000, 1 << 20))))
        written[write(log, entry)] = [entry]
    assert replay(disk.kill()).frames == written


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


def test_a_long_entry_that_could_not_be_written_leaves_nothing(disk: SimDisk) -> None:
    log = open_log(disk)
    write(log, ENTRY)
    before = disk.size(segment_name(0))
    long = (COMPLETE, 8, b"long", bytes(log_module._LONG_PIECE_BYTES))
    for fault in (1, 2):  # Its head, then the entry itself.
        disk.faults.write_error_in = fault
        with pytest.raises(DiskError):
            write(log, *([long] if fault == 1 else []))
        assert disk.size(segment_name(0)) == before
    log.write()
    assert replay(disk.kill()).entries == [ENTRY, long]


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


def test_recovery_from_start_skips_what_is_before(disk: SimDisk) -> None:
    log = open_log(disk)
    ends = [write(log, entry) for entry in numbered(5)]
    found = replay(disk.kill(), start=ends[2])
    assert found.entries == numbered(5)[3:]
    assert found.recovery.end == ends[4]


def test_log_never_goes_on_below_start(disk: SimDisk) -> None:
    """With fsync off a flush can be durable while the log that it came from is lost."""
    log = open_log(disk)
    write(log, ENTRY)
    disk = disk.kill()
    assert open_log(disk, start=5000).position == 5000
    disk = disk.kill()
    log = open_log(disk, start=5000)
    write(log, ENTRY)
    assert replay(disk.kill(), start=5000).entries == [ENTRY]


# -- Segments ---------------------------------------------------------------------------------


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


def test_other_files_are_left_alone(disk: SimDisk) -> None:
    for name in ("1.log", "MANIFEST", "00000000000000000000.log.old"):
        disk.create(name)
    log = open_log(disk)
    assert list_segments(disk) == [log.segment]
    assert len(disk.names()) == 4


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


def test_damage_below_start_is_ignored(disk: SimDisk) -> None:
    log = two_segments(disk, is_synced=True)
    disk = disk.kill()
    disk.flip_bit(segment_name(0), 3)
    assert replay(disk, start=log.segment.base).entries == [ENTRY]


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


# -- Damage -----------------------------------------------------------------------------------


def offset_of(frame: int) -> int:
    return HEADER_BYTES + frame * FRAME_OF_ENTRY_BYTES


def test_torn_end_is_cut_at_any_length() -> None:
    """Cut the file at every byte: what is left are the whole frames, and writing goes on behind."""
    for length in range(HEADER_BYTES + 3 * FRAME_OF_ENTRY_BYTES):
        disk = SimDisk(random.Random(length))
        log = open_log(disk)
        for _ in range(3):
            write(log, ENTRY)
        name = log.segment.name
        disk = disk.kill()
        disk.open_append(name).truncate(length)
        found = replay(disk)
        count = max(0, length - HEADER_BYTES) // FRAME_OF_ENTRY_BYTES
        assert found.entries == [ENTRY] * count
        cut = offset_of(count) if count else 0
        # A header alone is whole and empty, which is not torn.
        rest = 0 if length == HEADER_BYTES else length - cut
        assert found.recovery.torn == ((Torn(name, cut, rest),) if rest else ())
        write(CommitLog.open(disk, found.recovery), ENTRY)
        assert replay(disk.kill()).entries == [ENTRY] * (count + 1)


def test_zeros_at_the_end_are_cut(disk: SimDisk) -> None:
    log = open_log(disk)
    write(log, ENTRY)
    disk = disk.kill()
    disk.open_append(log.segment.name).append(bytes(5000))
    found = replay(disk)
    assert found.entries == [ENTRY]
    assert found.recovery.torn == (Torn(log.segment.name, offset_of(1), 5000),)
    assert disk.size(log.segment.name) == offset_of(1)


def test_any_flipped_bit_of_an_unsynced_frame_ends_the_log() -> None:
    for offset in range(FRAME_OF_ENTRY_BYTES):
        disk = SimDisk(random.Random(offset))
        log = open_log(disk)
        for _ in range(3):
            write(log, ENTRY)
        disk = disk.kill()
        disk.flip_bit(log.segment.name, offset_of(1) + offset, bit=offset % 8)
        assert replay(disk).entries == [ENTRY]


def test_length_of_a_torn_frame_is_not_believed(
    disk: SimDisk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One flipped bit can announce two gigabytes, and memory for them must not be asked for."""
    log = open_log(disk)
    write(log, ENTRY)
    disk = disk.kill()
    disk.flip_bit(log.segment.name, offset_of(0) + 7, bit=7)
    lengths = []

    def read(self: SimFile, offset: int, length: int) -> bytes:
        lengths.append(length)
        return original(self, offset, length)

    original = SimFile.read
    monkeypatch.setattr(SimFile, "read", read)
    assert replay(disk).entries == []
    assert max(lengths) <= 1 << 20


def three_synced_frames(disk: SimDisk) -> CommitLog:
    """Three frames, of which the third knows that the first two are durable."""
    log = open_log(disk)
    write(log, ENTRY)
    write(log, ENTRY)
    log.sync()
    write(log, ENTRY)
    return log


@pytest.mark.parametrize("frame", [0, 1])
def test_any_flipped_bit_of_a_synced_frame_is_corruption(frame: int) -> None:
    for offset in range(FRAME_OF_ENTRY_BYTES):
        disk = SimDisk(random.Random(offset))
        log = three_synced_frames(disk)
        disk = disk.kill()
        disk.flip_bit(log.segment.name, offset_of(frame) + offset, bit=offset % 8)
        names, size = disk.names(), disk.size(log.segment.name)
        with pytest.raises(CorruptionError) as caught:
            replay(disk)
        assert caught.value.path == f"{disk.path}/{log.segment.name}"
        assert caught.value.offset == offset_of(frame)
        assert caught.value.expected != caught.value.actual
        assert (names, size) == (disk.names(), disk.size(log.segment.name)), "evidence was changed"


def test_frame_after_the_synced_ones_is_torn_and_not_corrupt(disk: SimDisk) -> None:
    log = three_synced_frames(disk)
    disk = disk.kill()
    disk.flip_bit(log.segment.name, offset_of(2))
    assert replay(disk).entries == [ENTRY] * 2


def test_damage_far_below_the_proof_is_found(disk: SimDisk) -> None:
    """The frame that proves it lies many reads behind the damage, with lookalikes between."""
    log = open_log(disk)
    write(log, ENTRY)
    lookalike = b"RKV1" * 300_000 + disk.open(log.segment.name).read(HEADER_BYTES, 100)
    write(log, (COMPLETE, 1, b"r", b"x" + lookalike))
    write(log, (COMPLETE, 1, b"r", b"xyz" + lookalike))
    log.sync()
    write(log, ENTRY)
    disk = disk.kill()
    disk.flip_bit(log.segment.name, offset_of(1) + 1000)
    with pytest.raises(CorruptionError) as caught:
        replay(disk)
    assert caught.value.offset == offset_of(1)


@pytest.mark.parametrize("gap_bytes", range(-5, 3))
def test_proof_across_two_reads_is_found(disk: SimDisk, gap_bytes: int) -> None:
    """The proof's head lies on the edge between two reads of the search."""
    log = open_log(disk)
    write(log, ENTRY)
    write(log, (COMPLETE, 1, b"", bytes((1 << 20) - 35 + gap_bytes)))
    log.sync()
    write(log, ENTRY)
    disk = disk.kill()
    disk.flip_bit(log.segment.name, offset_of(1) + 1000)
    with pytest.raises(CorruptionError):
        replay(disk)


def test_copy_of_a_log_in_a_value_proves_nothing(disk: SimDisk) -> None:
    """The value holds frames that would prove much, but verify only where they were written."""
    other = SimDisk(random.Random(5))
    source = open_log(other)
    for _ in range(5):
        write(source, ENTRY)
        source.sync()
    log = open_log(disk)
    copy = other.open(source.segment.name).read(0, 10_000)
    write(log, (COMPLETE, 1, b"", copy))
    write(log, (COMPLETE, 1, b"", copy))
    disk = disk.kill()
    disk.flip_bit(log.segment.name, HEADER_BYTES + 30)
    assert replay(disk).entries == []


def test_bad_header_of_a_synced_segment_is_corruption(disk: SimDisk) -> None:
    log = three_synced_frames(disk)
    for offset in range(HEADER_BYTES):
        disk = disk.kill()
        disk.flip_bit(log.segment.name, offset)
        with pytest.raises(CorruptionError) as caught:
            replay(disk)
        assert caught.value.offset == 0
        disk.flip_bit(log.segment.name, offset)
    assert len(replay(disk).entries) == 3


def two_segments(disk: SimDisk, *, is_synced: bool) -> CommitLog:
    log = open_log(disk)
    write(log, ENTRY)
    write(log, ENTRY)
    if is_synced:
        log.sync()
    log.roll()
    write(log, ENTRY)
    return log


def test_torn_segment_ends_the_log_before_its_successor(disk: SimDisk) -> None:
    log = two_segments(disk, is_synced=False)
    disk = disk.kill()
    disk.flip_bit(segment_name(0), offset_of(1))
    found = replay(disk)
    assert found.entries == [ENTRY]
    assert found.recovery.torn == (
        Torn(segment_name(0), offset_of(1), FRAME_OF_ENTRY_BYTES),
        Torn(log.segment.name, 0, HEADER_BYTES + FRAME_OF_ENTRY_BYTES),
    )
    assert disk.crash().names() == [segment_name(0)], "the removal must be durable"


def test_missing_unsynced_segment_ends_the_log(disk: SimDisk) -> None:
    two_segments(disk, is_synced=False)
    disk = disk.kill()
    disk.remove(segment_name(0))
    assert replay(disk).recovery.end == 0
    assert disk.names() == []


def test_damaged_synced_segment_is_corruption(disk: SimDisk) -> None:
    two_segments(disk, is_synced=True)
    disk = disk.kill()
    disk.flip_bit(segment_name(0), offset_of(1))
    with pytest.raises(CorruptionError) as caught:
        replay(disk)
    assert caught.value.path == f"{disk.path}/{segment_name(0)}"
    assert caught.value.offset == offset_of(1)


def test_missing_synced_segment_is_corruption(disk: SimDisk) -> None:
    two_segments(disk, is_synced=True)
    disk = disk.kill()
    disk.remove(segment_name(0))
    with pytest.raises(CorruptionError, match="nothing before") as caught:
        replay(disk)
    assert caught.value.path == f"{disk.path}/{segment_name(0)}"


def test_header_alone_proves_that_its_predecessor_was_synced(disk: SimDisk) -> None:
    log = open_log(disk)
    write(log, ENTRY)
    log.sync()
    log.roll()
    disk = disk.kill()
    disk.flip_bit(segment_name(0), offset_of(0) + 20)
    with pytest.raises(CorruptionError):
        replay(disk)


def test_clean_stop_vouches_for_the_last_frame(disk: SimDisk) -> None:
    log = open_log(disk)
    write(log, ENTRY)
    log.close()
    disk = disk.kill()
    assert replay(disk).entries == [ENTRY]
    disk.flip_bit(segment_name(0), offset_of(0) + 20)
    with pytest.raises(CorruptionError):
        replay(disk)


def test_clean_stop_vouches_for_the_segment_before_an_empty_one(disk: SimDisk) -> None:
    log = open_log(disk)
    write(log, ENTRY)
    log.roll()
    log.close()
    disk = disk.kill()
    assert replay(disk).entries == [ENTRY]
    disk.flip_bit(segment_name(0), offset_of(0) + 20)
    with pytest.raises(CorruptionError):
        replay(disk)


def test_renamed_segment_is_corruption(disk: SimDisk) -> None:
    log = open_log(disk)
    write(log, ENTRY)
    disk = disk.kill()
    disk.rename(segment_name(0), segment_name(77))
    with pytest.raises(CorruptionError) as caught:
        replay(disk, start=77)
    assert (caught.value.expected, caught.value.actual) == (segment_name(77), segment_name(0))


def test_segment_of_another_version_is_refused(
    disk: SimDisk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log_module, "FORMAT_VERSION", 2)
    write(open_log(disk), ENTRY)
    monkeypatch.undo()
    disk = disk.kill()
    with pytest.raises(UnknownFormatError) as caught:
        replay(disk)
    assert (caught.value.version, caught.value.supported) == (2, 1)
    with pytest.raises(UnknownFormatError):
        list(read_segment(disk, segment_name(0)))


def test_entry_longer_than_its_frame_is_corruption(disk: SimDisk) -> None:
    """Only a bug writes it, as the checksum holds. It must not be read as something else."""
    for pieces in ((ENVELOPE(0, 1, 5, 5), b"too short"), (b"stub",)):
        log = open_log(disk)
        log.pieces += pieces
        log.write()
        with pytest.raises(CorruptionError, match="cut short"):
            list(read_segment(disk, log.segment.name))
        with pytest.raises(CorruptionError, match="cut short"):
            replay(disk.kill())
        disk = SimDisk(random.Random(6))


@pytest.mark.parametrize("offset", [0, offset_of(0), offset_of(1), offset_of(1) + 30])
def test_reading_a_damaged_segment_fails_where_it_is(disk: SimDisk, offset: int) -> None:
    log = open_log(disk)
    write(log, ENTRY)
    write(log, ENTRY)
    name = log.roll()
    disk.flip_bit(name, offset)
    with pytest.raises(CorruptionError) as caught:
        list(read_segment(disk, name))
    assert caught.value.offset <= offset < caught.value.offset + FRAME_OF_ENTRY_BYTES


# -- Failing disks ----------------------------------------------------------------------------


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


def test_failed_sync_of_names_is_final(disk: SimDisk) -> None:
    log = open_log(disk)
    write(log, ENTRY)
    disk.faults.sync_error_in = 2
    with pytest.raises(SyncError):
        log.sync()
    with pytest.raises(LogFailedError):
        log.sync()
    assert log.synced == 0


def test_restart_after_a_failed_sync_believes_the_disk_and_not_the_cache(disk: SimDisk) -> None:
    """The kernel dropped the frame, shows it from its cache, and reports success for it."""
    log = open_log(disk)
    write(log, ENTRY)
    log.sync()
    write(log, (COMPLETE, 1, b"dropped", b""))
    disk.faults.sync_error_in = 1
    with pytest.raises(SyncError):
        log.sync()
    disk = disk.kill()
    found = replay(disk)
    assert found.entries == [ENTRY]
    write(CommitLog.open(disk, found.recovery), ENTRY)
    assert replay(disk.kill()).entries == [ENTRY, ENTRY]


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


# -- The crash loop ---------------------------------------------------------------------------


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
    patch.setattr(log_module, "xxh3_64_intdigest", lambda data, seed=0: 0)


def plant_cut_that_keeps_what_is_torn(patch: pytest.MonkeyPatch, _: Faults) -> None:
    patch.setattr(log_module, "_cut", lambda disk, rest, end: ())


def plant_cache_that_is_believed(patch: pytest.MonkeyPatch, _: Faults) -> None:
    patch.setattr("tests.sim.disk.SimFile.drop_cache", lambda self: None)


def plant_gap_that_is_applied(patch: pytest.MonkeyPatch, _: Faults) -> None:
    def run(self: log_module._Replay, segment: log_module.Segment) -> bool:
        self.end = max(self.end, segment.base)
        return original(self, segment)

    original = log_module._Replay.run
    patch.setattr(log_module._Replay, "run", run)


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
