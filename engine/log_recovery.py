"""Recovery of the commit log: what of it is valid is replayed, and what is torn is cut off, or refused as damage.

Nothing is written to the log here: it goes on with `CommitLog.open`. The bytes are told in
`engine/log_format.py`.

What may be torn
    Between two syncs the operating system writes in any order. After a power cut any part of the
    unsynced bytes may be there: an early frame may be gone and a later one intact, a whole segment
    may be missing and its successor there. All this is normal, and recovery must not refuse it. A
    damaged frame that had been synced is corruption, and recovery must not hide it. The `synced`
    fields tell the two apart, over all segments together:

    - Frames are applied in order, from `start` to the first position P that has no valid frame: a
      bad frame, a bad header, a missing segment, or the end.
    - If anything valid after P says `synced` > P, then P was durable: `CorruptionError`.
    - The same if the caller knows that more than P was durable: what it holds of later positions would
      stay, though the log knows nothing of it (`vouched`).
    - If not, nothing from P on was ever promised. The log ends at P. The rest of that file is cut
      off and later segments are removed, durably and before anything new is written, so that what
      was cut off cannot come back between new frames.

    What nothing vouches for yet is the end of a log whose process was killed: damage there cannot
    be told from a torn write, and is cut off and reported.

Restart
    Recovery syncs each segment and drops it from the cache before it reads: frames of a killed
    process may only be in the kernel's memory, and after a failed sync the cache shows bytes that
    the disk does not have. So all that was applied is durable, and `synced` starts at the end. The
    log then goes on in a *new* segment. Appending to the last one would save a file, but would
    write behind a cut, where a second power cut can bring old sectors back; and a segment that is
    never reopened has one writer.

Shell over the disk seam, synchronous.

Sources: the recovery rules of SQLite's WAL and of LevelDB's log, and Rebello et al., "Can
Applications Recover from fsync Failures?" (2020), for what a cache may show after a failed sync.
"""

from collections.abc import Callable
from dataclasses import dataclass

from engine.disk import Disk, File
from engine.errors import CorruptionError
from engine.log_format import (
    FRAME_BYTES,
    FRAME_MAGIC_BYTES,
    HEADER_BYTES,
    Segment,
    checksum_of,
    decode_header,
    frame_offset,
    segment_name,
    unpack_frame_head,
)
from engine.log_segment import (
    READ_BYTES,
    bad_frame,
    bad_header,
    entries_of,
    frames_of,
    list_segments,
    path_of,
    read_header,
)

Apply = Callable[[int, int, bytes, bytes, int], None]
"""Told each recovered entry: flags, slot, row, raw, and the position of the end of its frame."""


@dataclass(frozen=True, slots=True)
class Torn:
    """What was cut off, never having been durable: `bytes_count` bytes at `offset` of `name`."""

    name: str
    offset: int
    bytes_count: int


@dataclass(frozen=True, slots=True)
class Recovery:
    """What `recover` found. `end` is where the log goes on; all before it is durable.

    `segments` are the files that remain, oldest first, also those wholly below `start`.
    """

    start: int
    end: int
    frame_count: int
    entry_count: int
    torn: tuple[Torn, ...]
    segments: tuple[Segment, ...]


def recover(disk: Disk, *, start: int, apply: Apply, vouched: int = 0) -> Recovery:
    """Replay everything from position `start` on, in order, and cut off what is torn.

    `start` is the end of a frame, as `write` returned it, or the base of a segment: everything
    below is durable elsewhere, and is neither read nor missed. Up to `vouched` the log was durable, as
    the caller knows from elsewhere, and must reach so far. Raises `CorruptionError` if
    something is damaged that had been durable: then the entries before it were applied, and no file
    was changed. Raises `UnknownFormatError` for the segment of another version. Both mean that the
    node must not start on this log.
    """
    replay, rest = _replayed(disk, start, apply, vouched)
    torn = _cut(disk, rest, replay.end)
    remaining = _remove_empty(disk, replay.end)
    disk.sync_names()
    return Recovery(start, replay.end, replay.frame_count, replay.entry_count, torn, remaining)


def examine(disk: Disk, *, start: int, apply: Apply, vouched: int = 0) -> Recovery:
    """Do as `recover`, and change no file: `torn` is what a recovery would cut off.

    For tools that look at a folder which no process uses. Raises as `recover` does.
    """
    replay, rest = _replayed(disk, start, apply, vouched)
    torn = tuple(_torn_of(disk, segment, replay.end) for segment in rest)
    kept = tuple(segment for segment in list_segments(disk) if segment.base < replay.end)
    lost = tuple(each for each in torn if each.bytes_count)
    return Recovery(start, replay.end, replay.frame_count, replay.entry_count, lost, kept)


def _replayed(
    disk: Disk, start: int, apply: Apply, vouched: int
) -> "tuple[_Replay, list[Segment]]":
    """Apply all that is valid, and return the segments from the end of the log on."""
    segments = list_segments(disk)
    # Begin in the last segment that can hold `start`; what comes before ends at or below it.
    first = max((i for i, s in enumerate(segments) if s.base <= start), default=0)
    replay = _Replay(disk, start, apply)
    index = first
    while index < len(segments) and replay.run(segments[index]):
        index += 1
    rest = segments[index:]
    _refuse_if_vouched(disk, rest, replay.end, vouched)
    return replay, rest


class _Replay:
    """Applies segment after segment, and knows the end of what is valid and without a gap."""

    def __init__(self, disk: Disk, start: int, apply: Apply) -> None:
        self.end = start
        self.frame_count = 0
        self.entry_count = 0
        self._disk = disk
        self._apply = apply
        self._is_first = True

    def run(self, segment: Segment) -> bool:
        """Apply a segment; False if the log ends in it, or before it."""
        is_next = segment.base <= self.end if self._is_first else segment.base == self.end
        self._is_first = False
        if not is_next:
            return False
        file = self._disk.open(segment.name)
        try:
            # Read what the disk has, and not what memory remembers (see "Restart" above).
            file.sync()
            file.drop_cache()
            if not read_header(self._disk, file, segment.base):
                return False
            self._apply_frames(file, segment)
            return frame_offset(segment.base, self.end) >= file.size
        finally:
            file.close()

    def _apply_frames(self, file: File, segment: Segment) -> None:
        apply = self._apply
        for position, payload in frames_of(file, segment.base, self.end):
            end = position + FRAME_BYTES + len(payload)
            entries = entries_of(self._disk, segment.name, segment.base, position, payload)
            for flags, slot, row, raw in entries:
                apply(flags, slot, row, raw, end)
            self.entry_count += len(entries)
            self.frame_count += 1
            self.end = end


def _refuse_if_vouched(disk: Disk, rest: list[Segment], end: int, vouched: int) -> None:
    """Raise `CorruptionError` if `vouched` or anything in `rest` shows that bytes after `end` were durable."""
    if end < vouched or any(_vouches(disk, segment, end) for segment in rest):
        raise _corruption(disk, rest, end, vouched)


def _vouches(disk: Disk, segment: Segment, end: int) -> bool:
    file = disk.open(segment.name)
    try:
        return _is_vouched(file, segment.base, end)
    finally:
        file.close()


def _corruption(disk: Disk, rest: list[Segment], end: int, vouched: int) -> CorruptionError:
    """Name the damage that ended the log at `end`: in a segment of `rest`, or that there is none."""
    # One that ends below the start may be torn, and has nothing of what is missing.
    behind = [s for s in rest if s.base >= end or disk.size(s.name) > frame_offset(s.base, end)]
    missing = path_of(disk, segment_name(end))
    if not behind:
        expected = f"the log up to position {vouched}"
        return CorruptionError(missing, 0, expected, f"its end at {end}")
    segment = behind[0]
    if segment.base > end:
        return CorruptionError(missing, 0, "this segment", f"nothing before {segment.name}")
    file = disk.open(segment.name)
    try:
        if read_header(disk, file, segment.base):
            return bad_frame(disk, file, segment.base, end)
        return bad_header(disk, file)
    finally:
        file.close()


def _cut(disk: Disk, rest: list[Segment], end: int) -> tuple[Torn, ...]:
    """Cut the first of `rest` at `end`, and remove the others. The caller syncs the names."""
    torn = []
    for segment in rest:
        lost = _torn_of(disk, segment, end)
        if lost.offset == 0:
            disk.remove(segment.name)
        elif lost.bytes_count:
            _truncate(disk, segment.name, lost.offset)
        if lost.bytes_count:
            torn.append(lost)
    return tuple(torn)


def _torn_of(disk: Disk, segment: Segment, end: int) -> Torn:
    """What is to be cut off a segment, maybe nothing, if the log ends at `end`."""
    size = disk.size(segment.name)
    offset = frame_offset(segment.base, end) if segment.base < end else 0
    return Torn(segment.name, offset, max(0, size - offset))


def _truncate(disk: Disk, name: str, length: int) -> None:
    file = disk.open_append(name)
    try:
        file.truncate(length)
        file.sync()
    finally:
        file.close()


def _remove_empty(disk: Disk, end: int) -> tuple[Segment, ...]:
    """Remove the segment that begins at `end`: it is empty, and the next one has its name."""
    segments = list_segments(disk)
    if segments and segments[-1].base == end:
        disk.remove(segments.pop().name)
    return tuple(segments)


def _is_vouched(file: File, base: int, end: int) -> bool:
    """Does anything valid in this segment, after `end`, say that more than `end` is durable?

    Frames are looked for at every offset, because the length of a damaged one cannot be trusted. A
    frame's checksum holds only at its own position, so that a value which contains a copy of a log
    is not taken for one.
    """
    header = decode_header(file.read(0, HEADER_BYTES))
    if header is not None and header[1] == base and end < header[2] <= base:
        return True
    offset = max(frame_offset(base, end), HEADER_BYTES)
    while offset < file.size:
        chunk = file.read(offset, READ_BYTES)
        at = chunk.find(FRAME_MAGIC_BYTES)
        while at >= 0:
            if _frame_vouches(file, base, base + offset + at - HEADER_BYTES, end):
                return True
            at = chunk.find(FRAME_MAGIC_BYTES, at + 1)
        # The magic may lie across two chunks.
        offset += max(len(chunk) - len(FRAME_MAGIC_BYTES) + 1, 1)
    return False


def _frame_vouches(file: File, base: int, position: int, end: int) -> bool:
    """Is there a valid frame at `position` that knows more than `end` to be durable?"""
    offset = frame_offset(base, position)
    head = file.read(offset, FRAME_BYTES)
    if len(head) < FRAME_BYTES:
        return False
    length: int
    synced: int
    checksum: int
    _, length, synced, checksum = unpack_frame_head(head)
    # Only a frame that matters is read, so that a tail full of the magic costs no more than one
    # pass.
    if not end < synced <= position or offset + FRAME_BYTES + length > file.size:
        return False
    payload = file.read(offset + FRAME_BYTES, length)
    return checksum == checksum_of(length, synced, payload, position)
