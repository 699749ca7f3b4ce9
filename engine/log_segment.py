"""Reading a segment of the commit log: its frames up to the first that is not whole, and what is wrong with that.

Where the log ends, and whether it may end there, is for `engine/log_recovery.py`. A reader of a
*sealed* segment (`read_segment`) takes no damage for an end. The bytes are told in
`engine/log_format.py`.

Shell over the disk seam, synchronous. It changes nothing.
"""

from collections.abc import Iterator
from typing import Final

from engine.disk import Disk, File
from engine.errors import CorruptionError, UnknownFormatError
from engine.log_format import (
    ENVELOPE_BYTES,
    FORMAT_VERSION,
    FRAME_BYTES,
    FRAME_MAGIC,
    HEADER_BYTES,
    SEGMENT_NAME,
    Entry,
    Segment,
    base_of,
    checksum_of,
    decode_header,
    frame_offset,
    header_checksums,
    read_envelope_at,
    segment_name,
    unpack_frame_head,
)

READ_BYTES: Final = 1 << 20
"""So much of a file is read at once, and more only for a longer frame."""


def list_segments(disk: Disk) -> list[Segment]:
    """Return the segments in the folder, oldest first."""
    names = (name for name in disk.names() if SEGMENT_NAME.fullmatch(name))
    return [Segment(name, base_of(name)) for name in names]


def read_segment(disk: Disk, name: str) -> Iterator[Entry]:
    """Yield all entries of a sealed segment in order. Raises as `read_frames`."""
    for entries in read_frames(disk, name):
        yield from entries


def read_frames(disk: Disk, name: str) -> Iterator[list[Entry]]:
    """Yield the entries of each frame of a sealed segment. Raises `CorruptionError` at any bad frame.

    For the flush, also in another process. A segment that is sealed and was written or recovered by
    the running process has no torn end.
    """
    file = disk.open(name)
    try:
        base = base_of(name)
        end = base
        if not read_header(disk, file, base):
            raise bad_header(disk, file)
        for position, payload in frames_of(file, base, base):
            end = position + FRAME_BYTES + len(payload)
            yield entries_of(disk, name, base, position, payload)
        if frame_offset(base, end) < file.size:
            raise bad_frame(disk, file, base, end)
    finally:
        file.close()


def read_header(disk: Disk, file: File, base: int) -> bool:
    """Is the header intact? Raises if it is, and yet not the header of this segment and version."""
    header = decode_header(file.read(0, HEADER_BYTES))
    if header is None:
        return False
    version, actual, _ = header
    if version != FORMAT_VERSION:
        raise UnknownFormatError(path_of(disk, file.name), version, FORMAT_VERSION)
    if actual != base:
        raise CorruptionError(path_of(disk, file.name), 0, segment_name(base), segment_name(actual))
    return True


def frames_of(file: File, base: int, position: int) -> Iterator[tuple[int, bytes]]:
    """Yield position and payload of the frames from `position` to the first that is not valid."""
    chunk = b""
    at = 0
    offset = frame_offset(base, position)
    while True:
        if len(chunk) - at < FRAME_BYTES:
            chunk = file.read(offset, READ_BYTES)
            at = 0
            if len(chunk) < FRAME_BYTES:
                return
        magic, length, synced, checksum = unpack_frame_head(chunk, at)
        size = FRAME_BYTES + length
        # The length is believed only as far as the file reaches.
        if magic != FRAME_MAGIC or offset + size > file.size:
            return
        if len(chunk) - at < size:
            chunk = file.read(offset, max(size, READ_BYTES))
            at = 0
        payload = chunk[at + FRAME_BYTES : at + size]
        if checksum_of(length, synced, payload, position) != checksum:
            return
        yield position, payload
        position += size
        offset += size
        at += size


def entries_of(disk: Disk, name: str, base: int, position: int, payload: bytes) -> list[Entry]:
    """Return the entries of a frame."""
    entries = []
    at = 0
    size = len(payload)
    unpack = read_envelope_at
    while at < size:
        if at + ENVELOPE_BYTES > size:
            break
        flags, slot, row_length, raw_length = unpack(payload, at)
        row_at = at + ENVELOPE_BYTES
        raw_at = row_at + row_length
        at = raw_at + raw_length
        if at > size:
            break
        entries.append((flags, slot, payload[row_at:raw_at], payload[raw_at:at]))
    else:
        return entries
    # The checksum holds, so this was written so: by a broken program, or not by this one.
    path = path_of(disk, name)
    raise CorruptionError(path, frame_offset(base, position), "whole entries", "an entry cut short")


def bad_header(disk: Disk, file: File) -> CorruptionError:
    """Say what is wrong with a segment's header."""
    data = file.read(0, HEADER_BYTES)
    if len(data) < HEADER_BYTES:
        return CorruptionError(path_of(disk, file.name), 0, "a segment header", "a shorter file")
    expected, actual = header_checksums(data)
    return CorruptionError(path_of(disk, file.name), 0, expected, actual)


def bad_frame(disk: Disk, file: File, base: int, position: int) -> CorruptionError:
    """Say what is wrong with the frame at `position`: the first check that it fails."""
    path = path_of(disk, file.name)
    offset = frame_offset(base, position)
    head = file.read(offset, FRAME_BYTES)
    if len(head) < FRAME_BYTES:
        return CorruptionError(path, offset, "a frame", "the end of the file")
    magic, length, synced, checksum = unpack_frame_head(head)
    if magic != FRAME_MAGIC:
        return CorruptionError(path, offset, FRAME_MAGIC, magic)
    if offset + FRAME_BYTES + length > file.size:
        rest = file.size - offset - FRAME_BYTES
        return CorruptionError(path, offset, f"{length} bytes of payload", f"{rest} bytes")
    payload = file.read(offset + FRAME_BYTES, length)
    return CorruptionError(path, offset, checksum, checksum_of(length, synced, payload, position))


def path_of(disk: Disk, name: str) -> str:
    """Return how an error names a file."""
    return f"{disk.path}/{name}"
