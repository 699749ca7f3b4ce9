"""Recovery of the commit log: every kind of damage, told apart as torn or corrupt."""

import random

import pytest

from engine.errors import CorruptionError, SyncError
from engine.log import CommitLog
from engine.log_format import COMPLETE, HEADER_BYTES, segment_name
from engine.log_recovery import Torn, examine
from tests.engine.segments import (
    ENTRY,
    FRAME_OF_ENTRY_BYTES,
    numbered,
    offset_of,
    open_log,
    replay,
    two_segments,
    write,
)
from tests.sim.disk import SimDisk, SimFile


@pytest.fixture
def disk() -> SimDisk:
    return SimDisk(random.Random("log"))


def test_frames_larger_than_a_read_are_recovered(disk: SimDisk) -> None:
    """Frames of many sizes end before, at and after the edge of what is read at once."""
    rng = random.Random(3)
    log = open_log(disk)
    written = {}
    for _ in range(60):
        entry = (COMPLETE, 1, b"r", rng.randbytes(rng.choice((1, 100, 70_000, 1 << 20))))
        written[write(log, entry)] = [entry]
    assert replay(disk.kill()).frames == written


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


def test_damage_below_start_is_ignored(disk: SimDisk) -> None:
    log = two_segments(disk, is_synced=True)
    disk = disk.kill()
    disk.flip_bit(segment_name(0), 3)
    assert replay(disk, start=log.segment.base).entries == [ENTRY]


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


# -- What others know to have been durable ----------------------------------------------------


@pytest.mark.parametrize("offset", range(FRAME_OF_ENTRY_BYTES))
def test_a_flipped_bit_before_what_is_vouched_for_is_corruption(offset: int) -> None:
    """Nothing in the log says that its last frame was durable, and the caller does."""
    disk = SimDisk(random.Random(offset))
    log = open_log(disk)
    write(log, ENTRY)
    end = write(log, ENTRY)
    disk = disk.kill()
    flip = disk.flip_bit(log.segment.name, offset_of(1) + offset, bit=offset % 8)
    names, size = disk.names(), disk.size(log.segment.name)
    for recovery in (replay, examined):
        with pytest.raises(CorruptionError) as caught:
            recovery(disk, vouched=end)
        assert caught.value.path == f"{disk.path}/{log.segment.name}"
        assert caught.value.offset == offset_of(1)
        assert (names, size) == (disk.names(), disk.size(log.segment.name)), "evidence was changed"
    flip.heal()
    assert replay(disk, vouched=end).entries == [ENTRY] * 2


def examined(disk: SimDisk, *, vouched: int) -> None:
    examine(disk, start=0, vouched=vouched, apply=lambda *entry: None)


@pytest.mark.parametrize("count", [0, 1, 2])
def test_a_log_that_is_cut_short_is_refused_only_below_what_is_vouched_for(count: int) -> None:
    """Between two frames there is nothing to see, and nothing to cut."""
    for vouched in range(3 * FRAME_OF_ENTRY_BYTES + 1):
        disk = SimDisk(random.Random(vouched))
        log = open_log(disk)
        for _ in range(3):
            write(log, ENTRY)
        disk = disk.kill()
        disk.open_append(log.segment.name).truncate(offset_of(count))
        end = count * FRAME_OF_ENTRY_BYTES
        if vouched <= end:
            assert replay(disk, vouched=vouched).entries == [ENTRY] * count
            continue
        with pytest.raises(CorruptionError) as caught:
            replay(disk, vouched=vouched)
        assert caught.value.path == f"{disk.path}/{segment_name(end)}"
        assert caught.value.expected == f"the log up to position {vouched}"
        assert caught.value.actual == f"its end at {end}"


@pytest.mark.parametrize("lost", [0, 1])
def test_a_lost_segment_before_what_is_vouched_for_is_named(disk: SimDisk, lost: int) -> None:
    log = two_segments(disk, is_synced=False)
    names, end = [segment_name(0), log.segment.name], log.position
    disk = disk.kill()
    file = disk.lose(names[lost])
    with pytest.raises(CorruptionError) as caught:
        replay(disk, vouched=end)
    assert caught.value.path == f"{disk.path}/{names[lost]}"
    assert caught.value.offset == 0
    file.heal()
    assert replay(disk, vouched=end).entries == [ENTRY] * 3


@pytest.mark.parametrize("has_more", [False, True])
def test_a_torn_segment_below_the_start_is_not_named_for_what_is_lost(
    disk: SimDisk, has_more: bool
) -> None:
    """What was in it is durable elsewhere, so that nobody may have synced it."""
    log = two_segments(disk, is_synced=False)
    start = log.segment.base
    lost = log.segment.name
    log.sync()
    if has_more:
        log.roll()
        write(log, ENTRY)
    disk = disk.kill()
    disk.open_append(segment_name(0)).truncate(HEADER_BYTES - 1)
    file = disk.lose(lost)
    with pytest.raises(CorruptionError) as caught:
        replay(disk, start=start, vouched=0 if has_more else start + 1)
    assert caught.value.path == f"{disk.path}/{lost}"
    file.heal()
    assert replay(disk, start=start).entries == [ENTRY] * (1 + has_more)


def test_what_is_torn_after_what_is_vouched_for_is_cut(disk: SimDisk) -> None:
    log = open_log(disk)
    end = write(log, ENTRY)
    write(log, ENTRY)
    disk = disk.kill()
    disk.flip_bit(log.segment.name, offset_of(1))
    found = replay(disk, vouched=end)
    assert found.entries == [ENTRY]
    assert found.recovery.torn == (Torn(log.segment.name, offset_of(1), FRAME_OF_ENTRY_BYTES),)


# -- The crash loop ---------------------------------------------------------------------------


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
