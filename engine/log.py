"""The commit log: what was written since the last flush, in order, and how much of it is durable.

Shell over the disk seam (`engine/disk.py`): it reads no clock and runs no thread of its own. It
does not know what a row or its raw bytes mean, and it does not decide when to sync, to roll or to
remove.

Positions
    A position counts the bytes of all frames since the beginning of time. It only grows, over
    segments and restarts. A segment is named by the position of its first frame (`base`), and a
    frame at `position` stands at file offset `HEADER_BYTES + position - base`. What `write`
    returns, and what `recover` hands out with an entry, is the position of the *end* of its frame.

Bytes (little-endian, no padding)
    Segment `{base:020d}.log`: a header of 40 bytes, then frames until the end of the file.

        header   8s  magic b"rkv-log\\n"
                 I   format version, 1
                 I   zero
                 Q   base
                 Q   synced: a position known durable when the segment was made
                 Q   xxh3_64 of the 32 bytes before

        frame    I   magic 0x31564B52 (b"RKV1")
                 I   length of the payload
                 Q   synced: a position known durable when the frame was written
                 Q   xxh3_64 of the payload, seeded with the xxh3_64 of length and synced, which is
                     seeded with the position of the frame: bytes in a wrong place never verify
                 payload

        payload  entries, one after the other:
                 B   flags: COMPLETE = 1, MARKER = 2 (the drop of a range: no row, raw is opaque)
                 H   slot
                 I   length of the row
                 I   length of raw
                 row, raw

    One `write` makes one frame, and a frame is recovered as a whole or not at all.

What may be torn
    Between two syncs the operating system writes in any order. After a power cut any part of the
    unsynced bytes may be there: an early frame may be gone and a later one intact, a whole segment
    may be missing and its successor there. All this is normal, and recovery must not refuse it. A
    damaged frame that had been synced is corruption, and recovery must not hide it. The `synced`
    fields tell the two apart, over all segments together:

    - Frames are applied in order, from `start` to the first position P that has no valid frame: a
      bad frame, a bad header, a missing segment, or the end.
    - If anything valid after P says `synced` > P, then P was durable: `CorruptionError`.
    - If not, nothing from P on was ever promised. The log ends at P. The rest of that file is cut
      off and later segments are removed, durably and before anything new is written, so that what
      was cut off cannot come back between new frames.

    So `roll` needs no sync, and neither segment nor name has to be durable before the next one is
    used: `sync` does all files in order, then the names, and only then moves `synced`. `close` ends
    with an empty frame that vouches for everything before it. What nothing vouches for yet is the
    end of a log whose process was killed: damage there cannot be told from a torn write, and is cut
    off and reported.

Restart
    Recovery syncs each segment and drops it from the cache before it reads: frames of a killed
    process may only be in the kernel's memory, and after a failed sync the cache shows bytes that
    the disk does not have. So all that was applied is durable, and `synced` starts at the end. The
    log then goes on in a *new* segment. Appending to the last one would save a file, but would
    write behind a cut, where a second power cut can bring old sectors back; and a segment that is
    never reopened has one writer.

Sources: the recovery rules of SQLite's WAL and of LevelDB's log, and Rebello et al., "Can
Applications Recover from fsync Failures?" (2020), for why a failed sync is final.
"""

import contextlib
import re
import threading
from bisect import bisect_right
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from struct import Struct
from typing import Final

from xxhash import xxh3_64, xxh3_64_intdigest

from engine.disk import Disk, File
from engine.errors import (
    CorruptionError,
    DiskError,
    DiskFullError,
    EngineError,
    LogFailedError,
    SyncError,
    UnknownFormatError,
)

COMPLETE: Final = 1
MARKER: Final = 2

_ENTRY = Struct("<BHII")
ENVELOPE: Final = _ENTRY.pack
"""`ENVELOPE(flags, slot, row_length, raw_length)`: the bytes before a row in a frame."""
ENVELOPE_BYTES: Final = _ENTRY.size
read_envelope: Final = _ENTRY.unpack
"""What `ENVELOPE` was given."""

FORMAT_VERSION: Final = 1
_HEADER_MAGIC = b"rkv-log\n"
_HEADER = Struct("<8sIIQQ")
_HEADER_CHECKSUM = Struct("<Q")
HEADER_BYTES: Final = _HEADER.size + _HEADER_CHECKSUM.size

_FRAME_MAGIC = 0x31564B52
_FRAME_MAGIC_BYTES = _FRAME_MAGIC.to_bytes(4, "little")
_FRAME = Struct("<IIQQ")
FRAME_BYTES: Final = _FRAME.size
_pack_frame = _FRAME.pack
# The part of a frame's head that its checksum covers.
_pack_covered = Struct("<IQ").pack

_SEGMENT_NAME = re.compile(r"(\d{20})\.log")
_READ_BYTES = 1 << 20
# A piece this long is written by itself: copying it into the frame would cost more than the call.
_LONG_PIECE_BYTES = 1 << 18

Apply = Callable[[int, int, bytes, bytes, int], None]
"""Told each recovered entry: flags, slot, row, raw, and the position of the end of its frame."""

Entry = tuple[int, int, bytes, bytes]
"""flags, slot, row, raw."""


@dataclass(frozen=True, slots=True)
class Segment:
    """A segment by its name and the position of its first frame."""

    name: str
    base: int


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


class CommitLog:
    """The log of this process, open for writing. Made by `CommitLog.open` after `recover`.

    One thread stages, writes, rolls and forgets. `sync` may run in another one meanwhile, and calls
    of it wait for each other. Hot callers extend `pieces` themselves, which is what `stage` does.
    """

    __slots__ = (
        "_disk",
        "_file",
        "_has_new_names",
        "_sealed",
        "_segment",
        "_segment_synced",
        "_sync_lock",
        "_unsynced",
        "failure",
        "pieces",
        "position",
        "synced",
    )

    # Of the next frame: an envelope, a row and raw for each entry, or several entries as one piece.
    pieces: list[bytes]
    position: int  # The end of what was written.
    synced: int  # The end of what is durable.
    failure: EngineError | None  # Why the log takes nothing any more.

    def __init__(self, disk: Disk, recovery: Recovery) -> None:
        """Use `CommitLog.open`."""
        self._disk = disk
        self.pieces = []
        self.position = self.synced = recovery.end
        self.failure = None
        self._sealed = list(recovery.segments)
        # Open files that may hold unsynced bytes, oldest first, the current one last. The syncing
        # thread copies and shortens this list while the writing thread appends to it: each of these
        # is one step under the interpreter's lock.
        self._unsynced: list[File] = []
        self._sync_lock = threading.Lock()
        self._has_new_names = False
        self._start_segment()

    @classmethod
    def open(cls, disk: Disk, recovery: Recovery) -> "CommitLog":
        """Go on after `recovery`, in a new segment. Raises `DiskError`."""
        return cls(disk, recovery)

    @property
    def segment(self) -> Segment:
        """The segment that is written now."""
        return self._segment

    @property
    def segment_bytes(self) -> int:
        """The bytes of frames in the current segment: the measure for `roll`."""
        return self.position - self._segment.base

    @property
    def sealed(self) -> tuple[Segment, ...]:
        """The segments that are not written any more and not removed yet, oldest first."""
        return tuple(self._sealed)

    def stage(self, flags: int, slot: int, row: bytes, raw: bytes) -> None:
        """Add one entry to the next frame."""
        self.pieces += (ENVELOPE(flags, slot, len(row), len(raw)), row, raw)

    def write(self) -> int:
        """Write all that is staged as one frame, and return `position`, which is now its end.

        Nothing staged: nothing is written. On `DiskError` (`DiskFullError`) nothing of the frame
        remains in the file, the entries stay staged, and the next `write` tries again: the caller
        has them in memory already, so a log that forgot them would contradict it. On
        `LogFailedError` the log does not go on. More than 4 GiB in one frame raise `struct.error`:
        the caller's limits are far below.
        """
        pieces = self.pieces
        if not pieces:
            return self.position
        if len(pieces) == 3 and len(pieces[2]) >= _LONG_PIECE_BYTES:
            position = self._write_long_frame(pieces)  # Nearly always, a long one is alone.
        else:
            position = self._write_frame(b"".join(pieces))
        pieces.clear()
        return position

    def _write_frame(self, payload: bytes) -> int:
        if self.failure is not None:
            raise LogFailedError(self._disk.path, str(self.failure))
        position = self.position
        length = len(payload)
        synced = self.synced
        seed = xxh3_64_intdigest(_pack_covered(length, synced), position)
        head = _pack_frame(_FRAME_MAGIC, length, synced, xxh3_64_intdigest(payload, seed))
        self._append((head + payload,))
        self.position = position = position + FRAME_BYTES + length
        return position

    def _write_long_frame(self, pieces: list[bytes]) -> int:
        """As `_write_frame`, for one long entry, which is not copied: the same bytes in two calls."""
        if self.failure is not None:
            raise LogFailedError(self._disk.path, str(self.failure))
        envelope, row, raw = pieces
        length = len(envelope) + len(row) + len(raw)
        synced = self.synced
        seed = xxh3_64_intdigest(_pack_covered(length, synced), self.position)
        checksum = xxh3_64(seed=seed)
        for piece in pieces:
            checksum.update(piece)
        head = _pack_frame(_FRAME_MAGIC, length, synced, checksum.intdigest())
        self._append((head + envelope + row, raw))
        self.position += FRAME_BYTES + length
        return self.position

    def _append(self, parts: tuple[bytes, ...]) -> None:
        try:
            for part in parts:
                self._file.append(part)
        except DiskError as error:
            self._undo_append(error)
            raise

    def _undo_append(self, cause: DiskError) -> None:
        """Cut off what a failed append left, or give up: frames must follow each other."""
        try:
            self._file.truncate(HEADER_BYTES + self.segment_bytes)
        except DiskError as error:
            self.failure = error
            raise LogFailedError(self._disk.path, str(error)) from cause

    def roll(self) -> str:
        """Seal the current segment, go on in a new one, and return the name of the sealed one.

        Staged entries are written to the old one first. Neither of the two is durable before the
        next `sync`: that would block the caller, and recovery does not need it. An empty segment is
        not sealed, because the new one would have its name: `ValueError`. On `DiskError` the log
        goes on in the current segment.
        """
        self.write()
        if self.failure is not None:
            raise LogFailedError(self._disk.path, str(self.failure))
        if not self.segment_bytes:
            raise ValueError("the current segment holds nothing to seal")
        sealed = self._segment
        self._start_segment()
        self._sealed.append(sealed)
        return sealed.name

    def _start_segment(self) -> None:
        segment = Segment(segment_name(self.position), self.position)
        file = self._disk.create(segment.name)
        try:
            synced = self.synced
            file.append(_encode_header(segment.base, synced))
        except DiskError as cause:
            self._undo_create(file, cause)
            raise
        # In this order: once `sync` sees the file, it also sees that a name is new.
        self._has_new_names = True
        self._unsynced.append(file)
        self._segment = segment
        self._segment_synced = synced  # What its header vouches for.
        self._file = file

    def _undo_create(self, file: File, cause: DiskError) -> None:
        """Take back a segment that got no header.

        Durably: the log goes on in the old segment, and a file that comes back after a power cut
        would stand in the middle of it.
        """
        try:
            file.close()
            self._disk.remove(file.name)
            self._disk.sync_names()
        except DiskError as error:
            self.failure = error
            raise LogFailedError(self._disk.path, str(error)) from cause

    def sync(self) -> int:
        """Make durable all that was written before this call; return `synced`.

        May run in another thread while the log is written. Raises `SyncError` the first time that
        it fails and `LogFailedError` ever after: a failed sync must not be tried again.
        """
        with self._sync_lock:
            if self.failure is not None:
                raise LogFailedError(self._disk.path, str(self.failure))
            target = self.position  # Before the files: they hold at least what this covers.
            if target == self.synced:
                return target
            files = list(self._unsynced)
            try:
                for file in files:
                    file.sync()
                if self._has_new_names:
                    self._has_new_names = False  # First: `roll` may set it meanwhile.
                    self._disk.sync_names()
            except SyncError as error:
                self.failure = error
                raise
            self._drop_files(files[:-1])
            self.synced = target
            return target

    def _drop_files(self, files: list[File]) -> None:
        """Close sealed files. The caller holds the lock, so that none of them is being synced."""
        for file in files:
            self._unsynced.remove(file)
            file.close()

    def forget_before(self, position: int) -> list[str]:
        """Give up the sealed segments that lie wholly below `position`, and return their names, oldest first.

        The caller removes the files, in a thread if it likes: that takes a while for large ones. All
        their entries must be durable elsewhere, and so must be the `start` >= `position` of the next
        recovery: then it is harmless that the removal itself is late, or not synced. A file that is
        being synced right now is closed by the next `sync` or call of this.
        """
        ends = [segment.base for segment in self._sealed[1:]] + [self._segment.base]
        count = bisect_right(ends, position) if self._sealed else 0
        names = [segment.name for segment in self._sealed[:count]]
        del self._sealed[:count]
        if self._sync_lock.acquire(blocking=False):
            try:
                kept = {segment.name for segment in self._sealed} | {self._segment.name}
                self._drop_files([file for file in self._unsynced if file.name not in kept])
            finally:
                self._sync_lock.release()
        return names

    def close(self) -> None:
        """Write and sync what is left, vouch for it with an empty frame, and close all files.

        A log that failed is only closed.
        """
        try:
            if self.failure is None:
                self.write()
                self.sync()
                if self.segment_bytes or self._segment_synced < self.position:
                    self._vouch()
        finally:
            with self._sync_lock:
                self._drop_files(list(self._unsynced))
                self.failure = self.failure or _Closed()

    def _vouch(self) -> None:
        """End with an empty frame, which says that all before it is durable. Worth no error."""
        with contextlib.suppress(DiskFullError):
            self._write_frame(b"")
            self.sync()


class _Closed(EngineError):
    """The failure of a log that was closed."""

    def __str__(self) -> str:
        return "the log was closed."


def segment_name(base: int) -> str:
    """Return the file name of the segment whose first frame is at position `base`."""
    return f"{base:020d}.log"


def recover(disk: Disk, *, start: int, apply: Apply) -> Recovery:
    """Replay everything from position `start` on, in order, and cut off what is torn.

    `start` is the end of a frame, as `write` returned it, or the base of a segment: everything
    below is durable elsewhere, and is neither read nor missed. Raises `CorruptionError` if
    something is damaged that had been durable: then the entries before it were applied, and no file
    was changed. Raises `UnknownFormatError` for the segment of another version. Both mean that the
    node must not start on this log.
    """
    replay, rest = _replayed(disk, start, apply)
    torn = _cut(disk, rest, replay.end)
    remaining = _remove_empty(disk, replay.end)
    disk.sync_names()
    return Recovery(start, replay.end, replay.frame_count, replay.entry_count, torn, remaining)


def examine(disk: Disk, *, start: int, apply: Apply) -> Recovery:
    """Do as `recover`, and change no file: `torn` is what a recovery would cut off.

    For tools that look at a folder which no process uses. Raises as `recover` does.
    """
    replay, rest = _replayed(disk, start, apply)
    torn = tuple(_torn_of(disk, segment, replay.end) for segment in rest)
    kept = tuple(segment for segment in list_segments(disk) if segment.base < replay.end)
    lost = tuple(each for each in torn if each.bytes_count)
    return Recovery(start, replay.end, replay.frame_count, replay.entry_count, lost, kept)


def _replayed(disk: Disk, start: int, apply: Apply) -> "tuple[_Replay, list[Segment]]":
    """Apply all that is valid, and return the segments from the end of the log on."""
    segments = list_segments(disk)
    # Begin in the last segment that can hold `start`; what comes before ends at or below it.
    first = max((i for i, s in enumerate(segments) if s.base <= start), default=0)
    replay = _Replay(disk, start, apply)
    index = first
    while index < len(segments) and replay.run(segments[index]):
        index += 1
    _refuse_if_vouched(disk, segments[index:], replay.end)
    return replay, segments[index:]


def read_segment(disk: Disk, name: str) -> Iterator[Entry]:
    """Yield all entries of a sealed segment in order. Raises `CorruptionError` at any bad frame.

    For the flush, also in another process. A segment that is sealed and was written or recovered by
    the running process has no torn end.
    """
    file = disk.open(name)
    try:
        base = _base_of(name)
        end = base
        if not _read_header(disk, file, base):
            raise _bad_header(disk, file)
        for position, payload in _frames(file, base, base):
            end = position + FRAME_BYTES + len(payload)
            yield from _entries(disk, name, base, position, payload)
        if _offset(base, end) < file.size:
            raise _bad_frame(disk, file, base, end)
    finally:
        file.close()


def list_segments(disk: Disk) -> list[Segment]:
    """Return the segments in the folder, oldest first."""
    names = (name for name in disk.names() if _SEGMENT_NAME.fullmatch(name))
    return [Segment(name, _base_of(name)) for name in names]


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
            if not _read_header(self._disk, file, segment.base):
                return False
            self._apply_frames(file, segment)
            return _offset(segment.base, self.end) >= file.size
        finally:
            file.close()

    def _apply_frames(self, file: File, segment: Segment) -> None:
        apply = self._apply
        for position, payload in _frames(file, segment.base, self.end):
            end = position + FRAME_BYTES + len(payload)
            entries = _entries(self._disk, segment.name, segment.base, position, payload)
            for flags, slot, row, raw in entries:
                apply(flags, slot, row, raw, end)
            self.entry_count += len(entries)
            self.frame_count += 1
            self.end = end


def _refuse_if_vouched(disk: Disk, rest: list[Segment], end: int) -> None:
    """Raise `CorruptionError` if anything in `rest` shows that bytes after `end` were durable."""
    for segment in rest:
        file = disk.open(segment.name)
        try:
            if _is_vouched(file, segment.base, end):
                raise _corruption(disk, rest[0], end)
        finally:
            file.close()


def _corruption(disk: Disk, segment: Segment, end: int) -> CorruptionError:
    """Name the damage that ended the log at `end`, in or before `segment`."""
    if segment.base > end:
        path = _path(disk, segment_name(end))
        return CorruptionError(path, 0, "this segment", f"nothing before {segment.name}")
    file = disk.open(segment.name)
    try:
        if _read_header(disk, file, segment.base):
            return _bad_frame(disk, file, segment.base, end)
        return _bad_header(disk, file)
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
    offset = _offset(segment.base, end) if segment.base < end else 0
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


def _frames(file: File, base: int, position: int) -> Iterator[tuple[int, bytes]]:
    """Yield position and payload of the frames from `position` to the first that is not valid."""
    chunk = b""
    at = 0
    offset = _offset(base, position)
    while True:
        if len(chunk) - at < FRAME_BYTES:
            chunk = file.read(offset, _READ_BYTES)
            at = 0
            if len(chunk) < FRAME_BYTES:
                return
        magic, length, synced, checksum = _FRAME.unpack_from(chunk, at)
        size = FRAME_BYTES + length
        # The length is believed only as far as the file reaches.
        if magic != _FRAME_MAGIC or offset + size > file.size:
            return
        if len(chunk) - at < size:
            chunk = file.read(offset, max(size, _READ_BYTES))
            at = 0
        payload = chunk[at + FRAME_BYTES : at + size]
        if _checksum(length, synced, payload, position) != checksum:
            return
        yield position, payload
        position += size
        offset += size
        at += size


def _is_vouched(file: File, base: int, end: int) -> bool:
    """Does anything valid in this segment, after `end`, say that more than `end` is durable?

    Frames are looked for at every offset, because the length of a damaged one cannot be trusted. A
    frame's checksum holds only at its own position, so that a value which contains a copy of a log
    is not taken for one.
    """
    header = _decode_header(file.read(0, HEADER_BYTES))
    if header is not None and header[1] == base and end < header[2] <= base:
        return True
    offset = max(_offset(base, end), HEADER_BYTES)
    while offset < file.size:
        chunk = file.read(offset, _READ_BYTES)
        at = chunk.find(_FRAME_MAGIC_BYTES)
        while at >= 0:
            if _frame_vouches(file, base, base + offset + at - HEADER_BYTES, end):
                return True
            at = chunk.find(_FRAME_MAGIC_BYTES, at + 1)
        # The magic may lie across two chunks.
        offset += max(len(chunk) - len(_FRAME_MAGIC_BYTES) + 1, 1)
    return False


def _frame_vouches(file: File, base: int, position: int, end: int) -> bool:
    """Is there a valid frame at `position` that knows more than `end` to be durable?"""
    offset = _offset(base, position)
    head = file.read(offset, FRAME_BYTES)
    if len(head) < FRAME_BYTES:
        return False
    length: int
    synced: int
    checksum: int
    _, length, synced, checksum = _FRAME.unpack(head)
    # Only a frame that matters is read, so that a tail full of the magic costs no more than one
    # pass.
    if not end < synced <= position or offset + FRAME_BYTES + length > file.size:
        return False
    payload = file.read(offset + FRAME_BYTES, length)
    return checksum == _checksum(length, synced, payload, position)


def _entries(disk: Disk, name: str, base: int, position: int, payload: bytes) -> list[Entry]:
    """Return the entries of a frame."""
    entries = []
    at = 0
    size = len(payload)
    unpack = _ENTRY.unpack_from
    while at < size:
        if at + _ENTRY.size > size:
            break
        flags, slot, row_length, raw_length = unpack(payload, at)
        row_at = at + _ENTRY.size
        raw_at = row_at + row_length
        at = raw_at + raw_length
        if at > size:
            break
        entries.append((flags, slot, payload[row_at:raw_at], payload[raw_at:at]))
    else:
        return entries
    # The checksum holds, so this was written so: by a broken program, or not by this one.
    path = _path(disk, name)
    raise CorruptionError(path, _offset(base, position), "whole entries", "an entry cut short")


def _checksum(length: int, synced: int, payload: bytes, position: int) -> int:
    """Return the checksum of a frame. `_write_frame` has the same lines inline."""
    seed = xxh3_64_intdigest(_pack_covered(length, synced), position)
    checksum: int = xxh3_64_intdigest(payload, seed)
    return checksum


def _encode_header(base: int, synced: int) -> bytes:
    header = _HEADER.pack(_HEADER_MAGIC, FORMAT_VERSION, 0, base, synced)
    return header + _HEADER_CHECKSUM.pack(xxh3_64_intdigest(header))


def _decode_header(data: bytes) -> tuple[int, int, int] | None:
    """Return version, base and synced; None if these bytes are no intact header."""
    if len(data) < HEADER_BYTES:
        return None
    magic, version, _, base, synced = _HEADER.unpack_from(data)
    (checksum,) = _HEADER_CHECKSUM.unpack_from(data, _HEADER.size)
    if magic != _HEADER_MAGIC or checksum != xxh3_64_intdigest(data[: _HEADER.size]):
        return None
    return version, base, synced


def _read_header(disk: Disk, file: File, base: int) -> bool:
    """Is the header intact? Raises if it is, and yet not the header of this segment and version."""
    header = _decode_header(file.read(0, HEADER_BYTES))
    if header is None:
        return False
    version, actual, _ = header
    if version != FORMAT_VERSION:
        raise UnknownFormatError(_path(disk, file.name), version, FORMAT_VERSION)
    if actual != base:
        raise CorruptionError(_path(disk, file.name), 0, segment_name(base), segment_name(actual))
    return True


def _bad_header(disk: Disk, file: File) -> CorruptionError:
    data = file.read(0, HEADER_BYTES)
    expected = xxh3_64_intdigest(data[: _HEADER.size])
    if len(data) < HEADER_BYTES:
        return CorruptionError(_path(disk, file.name), 0, "a segment header", "a shorter file")
    (actual,) = _HEADER_CHECKSUM.unpack_from(data, _HEADER.size)
    return CorruptionError(_path(disk, file.name), 0, expected, actual)


def _bad_frame(disk: Disk, file: File, base: int, position: int) -> CorruptionError:
    """Say what is wrong with the frame at `position`: the first check that it fails."""
    path = _path(disk, file.name)
    offset = _offset(base, position)
    head = file.read(offset, FRAME_BYTES)
    if len(head) < FRAME_BYTES:
        return CorruptionError(path, offset, "a frame", "the end of the file")
    magic, length, synced, checksum = _FRAME.unpack(head)
    if magic != _FRAME_MAGIC:
        return CorruptionError(path, offset, _FRAME_MAGIC, magic)
    if offset + FRAME_BYTES + length > file.size:
        rest = file.size - offset - FRAME_BYTES
        return CorruptionError(path, offset, f"{length} bytes of payload", f"{rest} bytes")
    payload = file.read(offset + FRAME_BYTES, length)
    return CorruptionError(path, offset, checksum, _checksum(length, synced, payload, position))


def _offset(base: int, position: int) -> int:
    return HEADER_BYTES + position - base


def _base_of(name: str) -> int:
    found = _SEGMENT_NAME.fullmatch(name)
    assert found, name
    return int(found[1])


def _path(disk: Disk, name: str) -> str:
    return f"{disk.path}/{name}"
