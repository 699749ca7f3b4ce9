"""How blocks become smaller: by lz4, by zstd with a dictionary of the table's own, or not at all.

Not the format of blocks (`engine/block.py`), nor where a dictionary lies in a file
(`engine/sstable.py`). A `Packer` serves one writer; an `Unpacker` serves one table and all threads.

**What is stored.** lz4: the raw block format, without a size in front. zstd: one frame with its
content size, without checksum and dictionary number. Whatever gains less than 12 % is stored as it
is, so that reading it costs nothing.

**Dictionaries.** A block of a few KiB is too short for zstd to learn what records look like; a
dictionary trained on some blocks of the table says it beforehand. `train` learns from three of four
samples and measures on the fourth; the dictionary is used if it saves 3 % of the samples, its own
size included. Measured with blocks of 4 KiB: small JSON documents shrink to 42 % by lz4, 31 % by
zstd, and 25 % with a dictionary of 16 KiB, which is also faster to read (5.1 against 8.8 µs a block;
lz4 1.8). Level 3 took 1.5 times as long to write and gained nothing. Training takes 20 ms.

**Threads.** zstandard's objects crash when two threads use one at the same time (the interpreter's
lock is released meanwhile), and a new one for each block costs 10 µs. So those at rest lie in
`_idle`, at most one for each dictionary and `IDLE_MAX` in all: whoever needs one takes it out, which
is one step under the interpreter's lock, and puts it back when done. A dictionary is only read once
it is digested, which the constructor does, and may be shared.

**Claims.** A damaged length must not become a huge allocation. Every length is checked before, by
what the stored bytes can hold at most: lz4 255 times their size, zstd 128 KiB for each four bytes.

Core: pure and synchronous, but for the decompressors at rest, which are a cache. Sources: lz4 block
format; RFC 8878; the COVER algorithm (Liao, Petri, Moffat, Wirth) as it is in libzstd.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from itertools import count
from typing import Final, Literal

from lz4.block import LZ4BlockError
from lz4.block import compress as lz4_compress
from lz4.block import decompress as lz4_decompress
from zstandard import (
    DICT_TYPE_FULLDICT,
    ZstdCompressionDict,
    ZstdCompressor,
    ZstdDecompressor,
    ZstdError,
    frame_content_size,
    train_dictionary,
)

Compression = Literal["lz4", "zstd", "none"]

COMPRESSIONS: Final[tuple[Compression, ...]] = ("none", "lz4", "zstd")
"""Each at the number by which files name it."""

GAIN_MIN_PERCENT: Final = 12
ZSTD_LEVEL: Final = 1
DICTIONARY_BYTES_MAX: Final = 16 * 1024
DICTIONARY_GAIN_MIN_PERCENT: Final = 3
SAMPLES_BYTES: Final = 1024 * 1024
"""How much of a table a dictionary is trained from; no more is of use."""

IDLE_MAX: Final = 16
"""Decompressors at rest, of 96 KiB each."""

_SAMPLES_BYTES_MIN: Final = 64 * 1024
_SAMPLE_BYTES_MAX: Final = 64 * 1024  # In larger blocks a dictionary makes no difference.
_SAMPLE_COUNT_MIN: Final = 16
_SAMPLES_PER_DICTIONARY: Final = 32
_DIGESTED_BYTES: Final = 27 * 1024
"""What libzstd keeps of a dictionary besides its bytes: the tables of its entropy coders."""

_EMPTY_FRAME: Final = bytes.fromhex("28b52ffd2000010000")

_numbers = count(1)
_idle: OrderedDict[int, ZstdDecompressor] = OrderedDict()


class Packer:
    """Compresses the blocks of one table, in one thread."""

    __slots__ = ("_compress",)

    def __init__(self, compression: Compression, dictionary: bytes = b"") -> None:
        """Only zstd takes a dictionary."""
        assert not dictionary or compression == "zstd"
        self._compress: Callable[[bytes], bytes] | None = None
        if compression == "lz4":
            self._compress = partial(lz4_compress, store_size=False)
        elif compression == "zstd":
            known = ZstdCompressionDict(dictionary, DICT_TYPE_FULLDICT) if dictionary else None
            if known is not None:
                known.precompute_compress(level=ZSTD_LEVEL)
            self._compress = ZstdCompressor(
                ZSTD_LEVEL, dict_data=known, write_content_size=True, write_dict_id=False
            ).compress

    def pack(self, block: bytes) -> bytes:
        """Return the block compressed, which is shorter, or the block itself if it gains little."""
        if self._compress is None:
            return block
        smaller = self._compress(block)
        return smaller if len(smaller) * 100 <= len(block) * (100 - GAIN_MIN_PERCENT) else block


class Unpacker:
    """Decompresses the blocks of one table, in any number of threads.

    `unpack(stored, raw_length)` returns the block; it raises ValueError if that is not what
    `stored` holds, and then has taken no more memory than `stored` could have been worth.
    """

    __slots__ = ("dictionary_bytes", "memory_bytes", "unpack")

    def __init__(self, compression: Compression, dictionary: bytes = b"") -> None:
        """Raises ValueError if the dictionary is none."""
        self.unpack: Callable[[bytes, int], bytes] = _unpack_none
        if compression == "lz4":
            self.unpack = _unpack_lz4
        elif compression == "zstd":
            self.unpack = _ZstdUnpacker(dictionary).unpack
        self.dictionary_bytes = len(dictionary)
        self.memory_bytes = len(dictionary) + _DIGESTED_BYTES if dictionary else 0


class _ZstdUnpacker:
    """`number` is that of the dictionary among the decompressors at rest."""

    __slots__ = ("_dictionary", "_number")

    def __init__(self, dictionary: bytes) -> None:
        self._number = 0
        self._dictionary: ZstdCompressionDict | None = None
        if dictionary:
            self._number = next(_numbers)
            try:
                self._dictionary = ZstdCompressionDict(dictionary, DICT_TYPE_FULLDICT)
                # Digests the dictionary, before any two threads could do it.
                self._new().decompress(_EMPTY_FRAME)
            except (ZstdError, MemoryError):  # The latter is what it calls a bad dictionary.
                raise ValueError("not a zstd dictionary") from None

    def unpack(self, stored: bytes, raw_length: int) -> bytes:
        """Decompress; hot path of every read that misses the block cache."""
        if raw_length >> 17 > len(stored) >> 2:
            raise ValueError("more than zstd can compress")
        number = self._number
        worker = _idle.pop(number, None) or self._new()
        try:
            # A frame is believed when it says how large its content is.
            if frame_content_size(stored) != raw_length:
                raise ValueError("a frame of another size")
            block = worker.decompress(stored, allow_extra_data=False)
        except ZstdError as error:
            raise ValueError(str(error)) from None
        _idle[number] = worker
        if len(_idle) > IDLE_MAX:
            with suppress(KeyError):  # Other threads may have taken all of them since.
                _idle.popitem(last=False)
        return block

    def _new(self) -> ZstdDecompressor:
        return ZstdDecompressor(dict_data=self._dictionary)


def _unpack_lz4(stored: bytes, raw_length: int) -> bytes:
    if raw_length >> 8 > len(stored):
        raise ValueError("more than lz4 can compress")
    try:
        block: bytes = lz4_decompress(stored, uncompressed_size=raw_length)
    except LZ4BlockError as error:
        raise ValueError(str(error)) from None
    if len(block) != raw_length:
        raise ValueError("a block of another size")
    return block


def _unpack_none(stored: bytes, raw_length: int) -> bytes:
    raise ValueError("compressed in a table without compression")


def train(blocks: Sequence[bytes]) -> bytes:
    """Return a dictionary for zstd, or nothing if these blocks would gain too little by it.

    The same blocks always give the same dictionary.
    """
    samples = [block for block in blocks if len(block) <= _SAMPLE_BYTES_MAX]
    samples_bytes = sum(map(len, samples))
    if len(samples) < _SAMPLE_COUNT_MIN or samples_bytes < _SAMPLES_BYTES_MIN:
        return b""
    size = min(DICTIONARY_BYTES_MAX, samples_bytes // _SAMPLES_PER_DICTIONARY)
    lessons = [block for number, block in enumerate(samples) if number % 4]
    try:
        dictionary = train_dictionary(size, [*lessons], k=512, d=8, level=ZSTD_LEVEL).as_bytes()
    except ZstdError:  # Nothing occurs twice.
        return b""
    test = samples[::4]
    share = samples_bytes / sum(map(len, test))
    plain_bytes = share * sum(map(len, map(Packer("zstd").pack, test)))
    packed_bytes = share * sum(map(len, map(Packer("zstd", dictionary).pack, test)))
    gain_bytes = plain_bytes - packed_bytes - len(dictionary)
    return dictionary if gain_bytes * 100 >= plain_bytes * DICTIONARY_GAIN_MIN_PERCENT else b""
