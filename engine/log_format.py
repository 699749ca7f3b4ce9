"""The bytes of the commit log: positions, segments, frames and entries.

It does not know what a row or its raw bytes mean, and touches no file: `engine/log.py` writes the
segments, `engine/log_segment.py` reads one, and `engine/log_recovery.py` finds the log's end.

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

Core: plain data.
"""

import re
from dataclasses import dataclass
from struct import Struct
from typing import Final

from xxhash import xxh3_64_intdigest

COMPLETE: Final = 1
MARKER: Final = 2

_ENTRY = Struct("<BHII")
ENVELOPE: Final = _ENTRY.pack
"""`ENVELOPE(flags, slot, row_length, raw_length)`: the bytes before a row in a frame."""
ENVELOPE_BYTES: Final = _ENTRY.size
read_envelope: Final = _ENTRY.unpack
"""What `ENVELOPE` was given."""
read_envelope_at: Final = _ENTRY.unpack_from
"""The same, from bytes and an offset in them."""

FORMAT_VERSION: Final = 1
_HEADER_MAGIC = b"rkv-log\n"
_HEADER = Struct("<8sIIQQ")
_HEADER_CHECKSUM = Struct("<Q")
HEADER_BYTES: Final = _HEADER.size + _HEADER_CHECKSUM.size

FRAME_MAGIC: Final = 0x31564B52
FRAME_MAGIC_BYTES: Final = FRAME_MAGIC.to_bytes(4, "little")
_FRAME = Struct("<IIQQ")
FRAME_BYTES: Final = _FRAME.size
pack_frame_head: Final = _FRAME.pack
"""`pack_frame_head(FRAME_MAGIC, length, synced, checksum)`: the bytes before the payload."""
unpack_frame_head: Final = _FRAME.unpack_from
"""What `pack_frame_head` was given, from bytes and, if it is not 0, an offset in them."""
pack_covered: Final = Struct("<IQ").pack
"""`pack_covered(length, synced)`: the part of a frame's head that its checksum covers."""

SEGMENT_NAME: Final = re.compile(r"(\d{20})\.log")
SHORT_SUFFIX: Final = ".tmp"  # A leftover, to the next start.

Entry = tuple[int, int, bytes, bytes]
"""flags, slot, row, raw."""


@dataclass(frozen=True, slots=True)
class Segment:
    """A segment by its name and the position of its first frame."""

    name: str
    base: int


def segment_name(base: int) -> str:
    """Return the file name of the segment whose first frame is at position `base`."""
    return f"{base:020d}.log"


def short_name(base: int) -> str:
    """Return the file name of a short log (`engine/short_log.py`) in place of the log from position `base` on."""
    return segment_name(base) + SHORT_SUFFIX


def base_of(name: str) -> int:
    """Return the position of the first frame of the segment, or the short log, of this name."""
    found = SEGMENT_NAME.fullmatch(name.removesuffix(SHORT_SUFFIX))
    assert found, name
    return int(found[1])


def frame_offset(base: int, position: int) -> int:
    """Return where in the file the frame at `position` stands, in the segment from `base` on."""
    return HEADER_BYTES + position - base


def encode_header(base: int, synced: int) -> bytes:
    """Return a segment's header."""
    header = _HEADER.pack(_HEADER_MAGIC, FORMAT_VERSION, 0, base, synced)
    return header + _HEADER_CHECKSUM.pack(xxh3_64_intdigest(header))


def decode_header(data: bytes) -> tuple[int, int, int] | None:
    """Return version, base and synced; None if these bytes are no intact header."""
    if len(data) < HEADER_BYTES:
        return None
    magic, version, _, base, synced = _HEADER.unpack_from(data)
    expected, actual = header_checksums(data)
    if magic != _HEADER_MAGIC or actual != expected:
        return None
    return version, base, synced


def header_checksums(data: bytes) -> tuple[int, int]:
    """Return the checksum that these bytes of a header have, and the one that they say."""
    (actual,) = _HEADER_CHECKSUM.unpack_from(data, _HEADER.size)
    return xxh3_64_intdigest(data[: _HEADER.size]), actual


def checksum_of(length: int, synced: int, payload: bytes, position: int) -> int:
    """Return the checksum of a frame. `CommitLog.write_frame` has the same lines inline."""
    seed = xxh3_64_intdigest(pack_covered(length, synced), position)
    checksum: int = xxh3_64_intdigest(payload, seed)
    return checksum
