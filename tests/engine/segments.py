"""Commit logs for tests: opened and written in a line, replayed, and their segments removed at once."""

from __future__ import annotations

from dataclasses import dataclass, field

from engine.disk import Disk
from engine.log import CommitLog
from engine.log_format import COMPLETE, FRAME_BYTES, HEADER_BYTES, Entry
from engine.log_recovery import Recovery, recover

ENTRY = (COMPLETE, 7, b"row", b"raw bytes")
FRAME_OF_ENTRY_BYTES = FRAME_BYTES + 11 + 3 + 9


@dataclass
class Replay:
    """What a recovery applied, frame by frame."""

    recovery: Recovery
    entries: list[Entry] = field(default_factory=list)
    frames: dict[int, list[Entry]] = field(default_factory=dict)


def replay(disk: Disk, *, start: int = 0, vouched: int = 0) -> Replay:
    entries: list[Entry] = []
    frames: dict[int, list[Entry]] = {}

    def apply(flags: int, slot: int, row: bytes, raw: bytes, position: int) -> None:
        entries.append((flags, slot, row, raw))
        frames.setdefault(position, []).append((flags, slot, row, raw))

    found = recover(disk, start=start, vouched=vouched, apply=apply)
    return Replay(found, entries, frames)


def open_log(disk: Disk, *, start: int = 0) -> CommitLog:
    return CommitLog.open(disk, replay(disk, start=start).recovery)


def write(log: CommitLog, *entries: Entry) -> int:
    for entry in entries:
        log.stage(*entry)
    return log.write()


def numbered(count: int) -> list[Entry]:
    return [(COMPLETE, n, b"row%d" % n, b"raw%d" % n) for n in range(count)]


def offset_of(frame: int) -> int:
    return HEADER_BYTES + frame * FRAME_OF_ENTRY_BYTES


def two_segments(disk: Disk, *, is_synced: bool) -> CommitLog:
    log = open_log(disk)
    write(log, ENTRY)
    write(log, ENTRY)
    if is_synced:
        log.sync()
    log.roll()
    write(log, ENTRY)
    return log


def remove_before(log: CommitLog, position: int) -> None:
    """Have the log forget its segments below `position`, and remove their files."""
    for name in log.forget_before(position):
        log._disk.remove(name)
