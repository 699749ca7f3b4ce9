"""The bytes of the commit log are as they are documented."""

import random

import pytest

from engine.log_format import COMPLETE, ENVELOPE, FRAME_BYTES, HEADER_BYTES, segment_name
from tests.engine.segments import ENTRY, FRAME_OF_ENTRY_BYTES, open_log, replay, write
from tests.sim.disk import SimDisk


@pytest.fixture
def disk() -> SimDisk:
    return SimDisk(random.Random("log"))


def test_pieces_are_what_stage_adds(disk: SimDisk) -> None:
    log = open_log(disk)
    log.stage(COMPLETE, 7, b"row", b"raw")
    staged = list(log.pieces)
    log.pieces.clear()
    log.pieces += (ENVELOPE(COMPLETE, 7, 3, 3), b"row", b"raw")
    assert log.pieces == staged
    log.write()
    assert replay(disk.kill()).entries == [(COMPLETE, 7, b"row", b"raw")]


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
