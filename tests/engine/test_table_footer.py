"""The footer of tables, in both versions, and what damage it notices by itself."""

from __future__ import annotations

import struct

import pytest
from xxhash import xxh3_64_intdigest

from engine.compression import COMPRESSIONS, Compression
from engine.errors import CorruptionError, UnknownFormatError
from engine.table_footer import FOOTER_BYTES, Section, decode_footer, encode_footer

OFFSETS = [100, 108, 200, 300]
END = 400


def sealed(head: bytes, offset: int = END) -> bytes:
    return head + struct.pack("<Q", xxh3_64_intdigest(head, offset)) + b"RKVTABLE"


@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_what_is_encoded_is_decoded(compression: Compression) -> None:
    data = encode_footer(END, OFFSETS, compression, 7)
    assert len(data) == FOOTER_BYTES
    footer = decode_footer(data, END, "table")
    assert (footer.version, footer.compression, footer.block_count) == (2, compression, 7)
    assert footer.sections == (
        Section(100, 108),
        Section(108, 200),
        Section(200, 300),
        Section(300, 400),
    )


def test_the_format_is_as_documented() -> None:
    number = {"none": 0, "lz4": 1, "zstd": 2}
    for compression in COMPRESSIONS:
        head = struct.pack("<QQQQQQII", *OFFSETS, number[compression], 0, 7, 2)
        assert encode_footer(END, OFFSETS, compression, 7) == sealed(head)


def test_version_1() -> None:
    data = sealed(struct.pack("<QQQQQQII", 100, 200, 300, 11, 12, 13, 7, 1))
    footer = decode_footer(data, END, "table")
    assert (footer.version, footer.compression, footer.block_count) == (1, "lz4", 7)
    empty = Section(100, 100, xxh3_64_intdigest(b"", 100))
    rest = (Section(100, 200, 11), Section(200, 300, 12), Section(300, 400, 13))
    assert footer.sections == (empty, *rest)


def test_every_flipped_bit_is_noticed() -> None:
    data = encode_footer(END, OFFSETS, "zstd", 7)
    for bit in range(8 * len(data)):
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        with pytest.raises(CorruptionError) as caught:
            decode_footer(bytes(flipped), END, "table")
        assert (caught.value.path, caught.value.offset) == ("table", END)


def test_another_place_or_length_is_noticed() -> None:
    data = encode_footer(END, OFFSETS, "zstd", 7)
    for wrong, offset in [(data, END + 1), (data, -1), (data[1:], END), (b"", END)]:
        with pytest.raises(CorruptionError):
            decode_footer(wrong, offset, "table")


@pytest.mark.parametrize(
    "numbers",
    [
        [100, 99, 200, 300, 2, 0],
        [100, 200, 150, 300, 2, 0],
        [100, 108, 200, 401, 2, 0],
        [1 << 63, 108, 200, 300, 2, 0],
        [100, 108, 200, 300, 3, 0],
    ],
)
def test_sections_that_cannot_be_are_damage(numbers: list[int]) -> None:
    with pytest.raises(CorruptionError, match="sections one after the other"):
        decode_footer(sealed(struct.pack("<QQQQQQII", *numbers, 7, 2)), END, "table")


@pytest.mark.parametrize("version", [0, 3, 1 << 31])
def test_other_versions_are_not_called_damage(version: int) -> None:
    data = sealed(struct.pack("<QQQQQQII", *OFFSETS, 1, 0, 7, version))
    with pytest.raises(UnknownFormatError):
        decode_footer(data, END, "table")
