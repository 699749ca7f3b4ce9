"""The footer of a table: where its sections lie, and in which version and compression it is.

Not the sections, which `engine/sstable.py` names and reads.

**Format**, version 2: the last 72 bytes of the file, little endian.

     0  u64   offset of the dictionary, which is the length of all blocks
     8  u64   offset of the index
    16  u64   offset of the filter
    24  u64   offset of the meta
    32  u64   compression of the blocks: 0 none, 1 lz4, 2 zstd
    40  u64   zero
    48  u32   number of blocks
    52  u32   format version
    56  u64   xxh3_64 of the bytes 0 to 55 of the footer, seeded with its offset in the file
    64  8s    magic, "RKVTABLE"

Each section ends where the next one begins, the last one at the footer. The last eight bytes of a
section are the checksum of those before, xxh3_64 seeded with the offset of the section.

Version 1 had no dictionary and no other compression than lz4, and the checksums of the sections (of
all their bytes) stood in the footer:

     0  u64   offset of the index, which is the length of all blocks
     8  u64   offset of the filter
    16  u64   offset of the meta
    24  u64   checksum of the index
    32  u64   checksum of the filter
    40  u64   checksum of the meta

In every version the footer has this length and ends with version, checksum and magic.

Core: pure and synchronous.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from struct import Struct
from typing import Final

from xxhash import xxh3_64_intdigest

from engine.compression import COMPRESSIONS, Compression
from engine.errors import CorruptionError, UnknownFormatError

FORMAT_VERSION: Final = 2
FOOTER_BYTES: Final = 72
SECTION_END_BYTES: Final = 8
"""The checksum at the end of a section."""

_MAGIC: Final = b"RKVTABLE"
_FOOTER: Final = Struct("<QQQQQQII")
_END: Final = Struct("<Q8s")


@dataclass(frozen=True, slots=True)
class Section:
    """A part of the file. `checksum` is that of all of it; None: it ends with its own."""

    start: int
    end: int
    checksum: int | None = None


@dataclass(frozen=True, slots=True)
class Footer:
    """What a footer says. `sections` are dictionary, index, filter and meta."""

    version: int
    compression: Compression
    block_count: int
    sections: tuple[Section, Section, Section, Section]


def encode_footer(
    offset: int, section_offsets: list[int], compression: Compression, block_count: int
) -> bytes:
    """Return the footer that stands at `offset`, for sections that begin at these four."""
    number = COMPRESSIONS.index(compression)
    footer = _FOOTER.pack(*section_offsets, number, 0, block_count, FORMAT_VERSION)
    return footer + _END.pack(xxh3_64_intdigest(footer, offset), _MAGIC)


def decode_footer(data: bytes, offset: int, name: str) -> Footer:
    """Read the footer of the table `name`, which stands at `offset`.

    Raises CorruptionError and UnknownFormatError.
    """
    if offset < 0 or len(data) != FOOTER_BYTES:
        raise CorruptionError(name, 0, f"a footer of {FOOTER_BYTES} bytes", f"{len(data)}")
    *numbers, block_count, version = _FOOTER.unpack_from(data)
    expected, magic = _END.unpack_from(data, _FOOTER.size)
    if magic != _MAGIC:
        raise CorruptionError(name, offset, repr(_MAGIC), repr(magic))
    actual = xxh3_64_intdigest(data[: _FOOTER.size], offset)
    if actual != expected:
        raise CorruptionError(name, offset, expected, actual)
    if version not in (1, FORMAT_VERSION):
        raise UnknownFormatError(name, version, FORMAT_VERSION)
    starts, number = numbers[:4], numbers[4]
    checksums: list[int | None] = [None] * 4
    if version == 1:  # As if it had an empty dictionary.
        starts, number = [numbers[0], *numbers[:3]], COMPRESSIONS.index("lz4")
        checksums = [xxh3_64_intdigest(b"", numbers[0]), *numbers[3:]]
    bounds = [*starts, offset]
    if bounds != sorted(bounds) or number >= len(COMPRESSIONS):
        raise CorruptionError(name, offset, "sections one after the other", repr(numbers))
    dictionary, index, bloom, meta = [
        Section(start, end, checksum)
        for (start, end), checksum in zip(pairwise(bounds), checksums, strict=True)
    ]
    sections = (dictionary, index, bloom, meta)
    return Footer(version, COMPRESSIONS[number], block_count, sections)
