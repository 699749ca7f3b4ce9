"""Compression: there and back, never more than was asked for, and dictionaries only where they pay."""

from __future__ import annotations

import random
import tracemalloc

import pytest
import zstandard

from engine import compression
from engine.compression import (
    COMPRESSIONS,
    DICTIONARY_BYTES_MAX,
    IDLE_MAX,
    Compression,
    Packer,
    Unpacker,
    train,
)


def blocks_of(rng: random.Random, count: int) -> list[bytes]:
    """Return blocks of some KiB that have much in common."""
    words = [rng.randbytes(rng.randrange(4, 16)).hex().encode() for _ in range(300)]
    return [b" ".join(rng.choices(words, k=250)) for _ in range(count)]


@pytest.mark.parametrize("kind", COMPRESSIONS)
@pytest.mark.parametrize("seed", range(3))
def test_what_is_packed_is_unpacked(kind: Compression, seed: int) -> None:
    rng = random.Random(seed)
    blocks = [*blocks_of(rng, 5), bytes(1 << 20), b"x" * 300]
    packer, unpacker = Packer(kind), Unpacker(kind)
    for block in blocks:
        packed = packer.pack(block)
        assert len(packed) < len(block) or packed is block
        if packed is not block:
            assert unpacker.unpack(packed, len(block)) == block
    assert (packer.pack(blocks[0]) is blocks[0]) == (kind == "none")
    assert (unpacker.memory_bytes, unpacker.dictionary_bytes) == (0, 0)


@pytest.mark.parametrize("kind", COMPRESSIONS)
def test_what_gains_little_stays_as_it_is(kind: Compression) -> None:
    noise = random.Random(1).randbytes(4000)
    for block in (noise, noise + bytes(400), b"a"):
        assert Packer(kind).pack(block) is block
    if kind != "none":
        assert len(Packer(kind).pack(noise + bytes(1000))) < 4400


def test_a_dictionary_says_what_blocks_have_in_common() -> None:
    blocks = blocks_of(random.Random(1), 400)
    dictionary = train(blocks)
    assert 0 < len(dictionary) <= DICTIONARY_BYTES_MAX
    packer, unpacker = Packer("zstd", dictionary), Unpacker("zstd", dictionary)
    packed = [packer.pack(block) for block in blocks]
    plain = [Packer("zstd").pack(block) for block in blocks]
    assert sum(map(len, packed)) + len(dictionary) < 0.97 * sum(map(len, plain))
    pairs = zip(packed, blocks, strict=True)
    assert all(unpacker.unpack(stored, len(block)) == block for stored, block in pairs)
    assert unpacker.dictionary_bytes == len(dictionary)
    assert unpacker.memory_bytes > len(dictionary)


def test_the_same_samples_give_the_same_dictionary() -> None:
    blocks = blocks_of(random.Random(1), 200)
    assert train(blocks) == train(list(blocks)) != b""


@pytest.mark.parametrize(
    "blocks",
    [
        [],
        [b"short"] * 1000,
        [bytes(100_000)] * 20,
        [bytes(4096)] * 200,
        [b"the same"] * 20_000,
        blocks_of(random.Random(1), 15),
        [random.Random(seed).randbytes(4096) for seed in range(200)],
        [random.Random(seed).randbytes(100) * 40 for seed in range(200)],
    ],
    ids=["none", "few bytes", "too large", "zeros", "tiny", "few blocks", "noise", "repeats"],
)
def test_no_dictionary_where_it_would_gain_nothing(blocks: list[bytes]) -> None:
    assert train(blocks) == b""


def test_a_small_table_gets_a_small_dictionary() -> None:
    blocks = blocks_of(random.Random(1), 40)
    total = sum(map(len, blocks))
    assert total < 250_000
    assert 0 < len(train(blocks)) <= total // 32


# -- Damage -------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["lz4", "zstd"])
def test_nonsense_is_an_error(kind: Compression) -> None:
    rng = random.Random(1)
    block = blocks_of(rng, 1)[0]
    packed = Packer(kind).pack(block)
    unpack = Unpacker(kind).unpack
    wrong = [
        (packed, len(block) - 1),
        (packed, len(block) + 1),
        (packed[:-1], len(block)),
        (packed[: len(packed) // 2], len(block)),
        (packed + b"\0" * 9, len(block)),
        (b"", len(block)),
        (b"", 0),
        (rng.randbytes(1000), 4096),
    ]
    for stored, raw_length in wrong:
        with pytest.raises(ValueError, match=r"\w"):
            unpack(stored, raw_length)
    assert unpack(packed, len(block)) == block
    for _ in range(2000):
        at = rng.randrange(len(packed))
        garbled = packed[:at] + rng.randbytes(1) + packed[at + 1 :]
        try:
            assert len(unpack(garbled, len(block))) == len(block)
        except ValueError:
            continue


def test_without_compression_nothing_is_compressed() -> None:
    with pytest.raises(ValueError, match="without compression"):
        Unpacker("none").unpack(b"abc", 4)


def test_what_was_packed_with_a_dictionary_needs_it() -> None:
    blocks = blocks_of(random.Random(1), 400)
    packed = Packer("zstd", train(blocks)).pack(blocks[0])
    with pytest.raises(ValueError, match=r"\w"):
        Unpacker("zstd").unpack(packed, len(blocks[0]))


@pytest.mark.parametrize("cut", [8, 20, 60])
def test_a_dictionary_that_is_none_is_an_error(cut: int) -> None:
    dictionary = train(blocks_of(random.Random(1), 400))
    for wrong in (dictionary[:cut], dictionary[4:], b"x" * cut, dictionary[:8] + b"\xff" * cut):
        with pytest.raises(ValueError, match="not a zstd dictionary"):
            Unpacker("zstd", wrong)


@pytest.mark.parametrize("kind", ["lz4", "zstd"])
def test_a_claim_costs_no_more_than_the_bytes_can_be_worth(kind: Compression) -> None:
    unpack = Unpacker(kind).unpack
    # The frame itself claims a GiB, and so does the index.
    head = zstandard.ZstdCompressor().compressobj(size=1 << 30).compress(b"x") or b""
    frame = b"\x28\xb5\x2f\xfd\xa0" + (1 << 30).to_bytes(4, "little") + b"\1\0\0"
    assert zstandard.frame_content_size(frame) == 1 << 30
    tracemalloc.start()
    try:
        for stored in (head + frame, frame, b"\0" * 100):
            with pytest.raises(ValueError, match=r"\w"):
                unpack(stored, 1 << 30)
            with pytest.raises(ValueError, match=r"\w"):
                unpack(stored, 4096)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("kind", ["lz4", "zstd"])
@pytest.mark.parametrize("length", [1 << 17, (1 << 17) + 1, 5_000_000, 1 << 26])
def test_honest_claims_are_believed(kind: Compression, length: int) -> None:
    """The bounds on what bytes can be worth are not below what they are worth."""
    packed = Packer(kind).pack(bytes(length))
    assert Unpacker(kind).unpack(packed, length) == bytes(length)


# -- Decompressors at rest ----------------------------------------------------------------------


def test_decompressors_at_rest_are_few_and_used_again(monkeypatch: pytest.MonkeyPatch) -> None:
    made = []

    def counted(
        dict_data: zstandard.ZstdCompressionDict | None,
    ) -> zstandard.ZstdDecompressor:
        made.append(1)
        return zstandard.ZstdDecompressor(dict_data=dict_data)

    monkeypatch.setattr(compression, "ZstdDecompressor", counted)
    compression._idle.clear()
    blocks = blocks_of(random.Random(1), 200)
    dictionary = train(blocks)
    packed = Packer("zstd", dictionary).pack(blocks[0])
    made.clear()
    unpackers = [Unpacker("zstd", dictionary) for _ in range(IDLE_MAX + 5)]
    made.clear()
    for _ in range(10):
        unpackers[0].unpack(packed, len(blocks[0]))
    assert len(made) == 1
    for unpacker in unpackers:
        assert unpacker.unpack(packed, len(blocks[0])) == blocks[0]
    assert len(compression._idle) == IDLE_MAX
    made.clear()
    unpackers[-1].unpack(packed, len(blocks[0]))  # The youngest stayed.
    assert made == []
    unpackers[0].unpack(packed, len(blocks[0]))
    assert made == [1]
    compression._idle.clear()
