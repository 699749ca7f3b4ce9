"""Reading a segment: which files are segments, and where a damaged one fails."""

import random

import pytest

from engine import log_format
from engine.errors import CorruptionError, UnknownFormatError
from engine.log_format import ENVELOPE, segment_name
from engine.log_segment import list_segments, read_segment
from tests.engine.segments import ENTRY, FRAME_OF_ENTRY_BYTES, offset_of, open_log, replay, write
from tests.sim.disk import SimDisk


@pytest.fixture
def disk() -> SimDisk:
    return SimDisk(random.Random("log"))


def test_other_files_are_left_alone(disk: SimDisk) -> None:
    for name in ("1.log", "MANIFEST", "00000000000000000000.log.old"):
        disk.create(name)
    log = open_log(disk)
    assert list_segments(disk) == [log.segment]
    assert len(disk.names()) == 4


def test_segment_of_another_version_is_refused(
    disk: SimDisk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log_format, "FORMAT_VERSION", 2)
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
