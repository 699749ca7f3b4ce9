"""The bit commands: replies as Redis gives them, and the fast ways against the obvious ones."""

from __future__ import annotations

import random
from typing import Any

import pytest

from cluster.record import RAW_ENCODING
from respkv.commands import bits
from respkv.commands.bits import Field, combine, count_bits, find_bit
from respkv.parser import Limits
from tests.respkv.commands.harness import START_MS, Server
from tests.respkv.commands.redis import needs_redis, play, redis

SYNTAX = b"-ERR syntax error"
NOT_AN_INTEGER = b"-ERR value is not an integer or out of range"
BAD_OFFSET = b"-ERR bit offset is not an integer or out of range"
BAD_BIT = b"-ERR bit is not an integer or out of range"
BAD_TYPE = b"-ERR Invalid bitfield type. Use something like i16 u8. Note that u64 is not supported but i64 is."
MAX, MIN = "9223372036854775807", "-9223372036854775808"
FOOBAR = "SET k foobar ; "  # 01100110 01101111 01101111 01100010 01100001 01110010
EDGES = "SET k '\xff\xf0\x00' ; "

REPLIES: list[tuple[str, Any]] = [
    # Single bits
    ("SETBIT k 7 1", 0),
    ("SETBIT k 7 1 ; GET k", b"\x01"),
    ("SETBIT k 7 1 ; SETBIT k 7 0", 1),
    ("SETBIT k 7 1 ; SETBIT k 7 0 ; GET k", b"\0"),
    ("SETBIT k 17 0 ; GET k", b"\0\0\0"),
    ("SET k ab ; SETBIT k 6 0 ; GET k", b"ab"),
    ("SET k ab ; SETBIT k 8 1 ; GET k", b"a\xe2"),
    ("SET k a ; SETBIT k 25 1 ; GET k", b"a\0\0\x40"),
    ("SETBIT k -1 1", BAD_OFFSET),
    ("SETBIT k a 1", BAD_OFFSET),
    ("SETBIT k 4294967296 1", BAD_OFFSET),
    ("SETBIT k '#1' 1", BAD_OFFSET),
    ("SETBIT k 1 2", BAD_BIT),
    ("SETBIT k 1 -1", BAD_BIT),
    ("SETBIT k 1 x", BAD_BIT),
    ("GETBIT k 0", 0),
    ("SET k a ; GETBIT k 1", 1),
    ("SET k a ; GETBIT k 0", 0),
    ("SET k a ; GETBIT k 7", 1),
    ("SET k a ; GETBIT k 4294967295", 0),
    ("GETBIT k 4294967296", BAD_OFFSET),
    ("GETBIT k ''", BAD_OFFSET),
    # BITCOUNT
    ("BITCOUNT k", 0),
    ("BITCOUNT k 1", 0),
    ("BITCOUNT k a b", 0),
    (FOOBAR + "BITCOUNT k", 26),
    (FOOBAR + "BITCOUNT k 0 0", 4),
    (FOOBAR + "BITCOUNT k 1 1", 6),
    (FOOBAR + "BITCOUNT k 1 1 BYTE", 6),
    (FOOBAR + "BITCOUNT k 5 30 bit", 17),
    (FOOBAR + "BITCOUNT k 1 1 BIT", 1),
    (FOOBAR + "BITCOUNT k 3 3 BIT", 0),
    (FOOBAR + "BITCOUNT k -8 -1 BIT", 4),
    (FOOBAR + "BITCOUNT k -2 -1", 7),
    (FOOBAR + "BITCOUNT k -1 -2", 0),
    (FOOBAR + "BITCOUNT k -100 -50", 4),
    (FOOBAR + "BITCOUNT k 3 2", 0),
    (FOOBAR + f"BITCOUNT k {MIN} {MAX}", 26),
    (FOOBAR + f"BITCOUNT k {MAX} {MAX}", 0),
    (FOOBAR + "BITCOUNT k 1", SYNTAX),
    (FOOBAR + "BITCOUNT k 1 2 x", SYNTAX),
    (FOOBAR + "BITCOUNT k 1 2 BIT BIT", SYNTAX),
    (FOOBAR + "BITCOUNT k a 2", NOT_AN_INTEGER),
    (FOOBAR + "BITCOUNT k 1 b x", NOT_AN_INTEGER),
    ("SET k '' ; BITCOUNT k", 0),
    ("SET k '' ; BITCOUNT k 0 -1", 0),
    # BITPOS
    ("BITPOS k 0", 0),
    ("BITPOS k 1", -1),
    ("BITPOS k 1 a b c", -1),
    ("BITPOS k 2", b"-ERR The bit argument must be 1 or 0."),
    ("BITPOS k x", NOT_AN_INTEGER),
    (EDGES + "BITPOS k 0", 12),
    (EDGES + "BITPOS k 1", 0),
    (EDGES + "BITPOS k 1 1", 8),
    (EDGES + "BITPOS k 1 2", -1),
    (EDGES + "BITPOS k 0 0 0", -1),
    (EDGES + "BITPOS k 0 0 0 BYTE", -1),
    (EDGES + "BITPOS k 1 9 -1 BIT", 9),
    (EDGES + "BITPOS k 1 12 -1 BIT", -1),
    (EDGES + "BITPOS k 0 3 11 BIT", -1),
    (EDGES + "BITPOS k 0 3 12 BIT", 12),
    (EDGES + "BITPOS k 0 14 13 BIT", -1),
    (EDGES + "BITPOS k 0 -1 -1", 16),
    (EDGES + "BITPOS k 0 3", -1),
    (EDGES + "BITPOS k 0 a", NOT_AN_INTEGER),
    (EDGES + "BITPOS k 0 1 2 x", SYNTAX),
    (EDGES + "BITPOS k 0 1 b x", SYNTAX),
    (EDGES + "BITPOS k 0 1 2 BIT x", SYNTAX),
    ("SET k '\xff\xff' ; BITPOS k 0", 16),
    ("SET k '\xff\xff' ; BITPOS k 0 1", 16),
    ("SET k '\xff\xff' ; BITPOS k 0 0 -1", -1),
    ("SET k '\xff\xff' ; BITPOS k 0 2", -1),
    ("SET k '' ; BITPOS k 0", -1),
    ("SET k '' ; BITPOS k 1 0 -1 BIT", -1),
    # BITOP
    ("MSET a abc b ab ; BITOP AND d a b", 3),
    ("MSET a abc b ab ; BITOP AND d a b ; GET d", b"ab\0"),
    ("MSET a a b b c c ; BITOP xor d a b c ; GET d", b"`"),
    ("MSET a '\x01' b '\x82\x01' ; BITOP OR d a b ; GET d", b"\x83\x01"),
    ("SET a '\x0f\x00' ; BITOP NOT d a ; GET d", b"\xf0\xff"),
    ("SET a ab ; BITOP AND d a none ; GET d", b"\0\0"),
    ("SET d x ; BITOP OR d none none", 0),
    ("SET d x ; BITOP OR d none none ; GET d", None),
    ("BITOP NOT d none", 0),
    ("SET k ab ; BITOP NOT k k ; GET k", b"\x9e\x9d"),
    ("BITOP NOT d a b", b"-ERR BITOP NOT must be called with a single source key."),
    ("BITOP NAND d a b", SYNTAX),
    ("BITOP AND d", b"-ERR wrong number of arguments for 'bitop' command"),
    # BITFIELD
    ("BITFIELD k", []),
    ("BITFIELD k GET u8 0", [0]),
    ("BITFIELD k GET u8 0 ; GET k", None),
    (
        "SET k '\xff\x0f' ; BITFIELD k GET u8 0 GET i8 0 GET u4 8 GET i5 11 GET u8 12 GET i64 100",
        [255, -1, 0, 15, 240, 0],
    ),
    ("SET k '\x01\x02\x03' ; BITFIELD k GET u8 #1 GET u8 #2 GET u4 #5", [2, 3, 3]),
    ("BITFIELD k SET u8 0 255 GET u8 0 SET i8 0 -2 GET u8 0", [0, 255, -1, 254]),
    ("BITFIELD k SET u8 4 255 ; GET k", b"\x0f\xf0"),
    ("BITFIELD k SET i64 1 -1 ; GET k", b"\x7f" + b"\xff" * 7 + b"\x80"),
    (f"BITFIELD k SET i64 0 {MIN} INCRBY i64 0 -1", [0, int(MAX)]),
    (f"BITFIELD k SET u63 0 {MAX} INCRBY u63 0 1", [0, 0]),
    ("BITFIELD k INCRBY u2 100 1 OVERFLOW SAT INCRBY u2 102 3 INCRBY u2 102 1", [1, 3, 3]),
    ("BITFIELD k INCRBY u4 0 17", [1]),
    ("BITFIELD k INCRBY u4 0 -1", [15]),
    ("BITFIELD k OVERFLOW sat INCRBY u4 0 -1 INCRBY i4 4 8 INCRBY i4 4 -100", [0, 7, -8]),
    (
        "BITFIELD k OVERFLOW FAIL INCRBY u4 0 -1 INCRBY i4 4 8 SET u4 8 16 GET u4 8",
        [None, None, None, 0],
    ),
    ("BITFIELD k OVERFLOW FAIL SET u4 8 16 ; GET k", b"\0\0"),
    ("BITFIELD k SET u8 0 -1 GET u8 0", [0, 255]),
    ("BITFIELD k OVERFLOW SAT SET u8 0 -1 GET u8 0", [0, 255]),
    ("BITFIELD k OVERFLOW SAT SET i8 0 -1000 GET i8 0", [0, -128]),
    ("BITFIELD k OVERFLOW SAT SET i8 0 -9223372036854775680 GET i8 0", [0, -128]),
    (
        "BITFIELD k OVERFLOW SAT SET i8 0 -9223372036854775681 GET i8 0",
        [0, 127],
    ),  # Redis' check wraps around.
    (f"BITFIELD k OVERFLOW SAT SET i8 0 {MIN} GET i8 0", [0, 127]),
    (f"BITFIELD k OVERFLOW SAT INCRBY i8 0 {MIN}", [-128]),
    (f"BITFIELD k OVERFLOW SAT INCRBY i8 0 -128 INCRBY i8 0 {MIN}", [-128, -128]),
    (f"BITFIELD k OVERFLOW SAT INCRBY u8 0 {MIN} SET u8 0 {MIN} GET u8 0", [0, 0, 255]),
    ("BITFIELD k OVERFLOW WRAP SET i8 0 200 GET i8 0", [0, -56]),
    (f"BITFIELD k OVERFLOW SAT INCRBY i64 0 {MAX} INCRBY i64 0 1", [int(MAX), int(MAX)]),
    ("BITFIELD k OVERFLOW SAT", []),
    ("BITFIELD k OVERFLOW", SYNTAX),
    ("BITFIELD k OVERFLOW x", b"-ERR Invalid OVERFLOW type specified"),
    ("BITFIELD k GET u8", SYNTAX),
    ("BITFIELD k SET u8 0", SYNTAX),
    ("BITFIELD k foo", SYNTAX),
    ("BITFIELD k SET u8 0 1 foo ; GET k", None),
    ("BITFIELD k GET u64 0", BAD_TYPE),
    ("BITFIELD k GET i65 0", BAD_TYPE),
    ("BITFIELD k GET u0 0", BAD_TYPE),
    ("BITFIELD k GET I8 0", BAD_TYPE),
    ("BITFIELD k GET '' 0", BAD_TYPE),
    ("BITFIELD k GET u 0", BAD_TYPE),
    ("BITFIELD k GET u8 -1", BAD_OFFSET),
    ("BITFIELD k GET u8 '#-1'", BAD_OFFSET),
    ("BITFIELD k GET u8 '#'", BAD_OFFSET),
    ("BITFIELD k GET u8 4294967296", BAD_OFFSET),
    ("BITFIELD k GET u8 '#536870912'", BAD_OFFSET),
    ("BITFIELD k GET u8 '#536870911'", [0]),
    ("BITFIELD k SET u8 0 x", NOT_AN_INTEGER),
    ("BITFIELD_RO k GET u8 0", [0]),
    ("BITFIELD_RO k OVERFLOW SAT GET u8 0", [0]),
    ("BITFIELD_RO k SET u8 0 1", b"-ERR BITFIELD_RO only supports the GET subcommand"),
    ("BITFIELD_RO k SET u8 0 1 ; GET k", None),
]


@pytest.mark.parametrize("is_cold", [False, True], ids=["warm", "cold"])
@pytest.mark.parametrize(("script", "reply"), REPLIES, ids=[script for script, _ in REPLIES])
def test_replies(script: str, reply: Any, is_cold: bool) -> None:
    assert Server().play(script, is_cold=is_cold) == reply


@needs_redis
def test_redis_answers_the_same() -> None:
    with redis() as connection:
        for script, reply in REPLIES:
            assert play(connection, script) == reply, script


def test_an_offset_in_fields_that_exceeds_64_bits_is_refused() -> None:
    """Redis multiplies without a check, and writes at bit 0."""
    assert Server().play("BITFIELD k SET i4 '#4611686018427387904' 1") == BAD_OFFSET


@pytest.mark.parametrize(
    ("script", "is_raw"),
    [
        ("SETBIT k 1 1", True),
        ("SET k a ; SETBIT k 1 1", True),
        ("BITFIELD k SET u8 0 1", True),
        ("BITFIELD k OVERFLOW FAIL SET u2 0 9", True),
        ("SET k a ; BITFIELD k OVERFLOW FAIL SET u2 0 9", True),
        ("SET k a ; BITFIELD k GET u2 0", False),
        ("SET a 1 ; BITOP OR k a", True),
        ("SET a 1 ; BITOP NOT k a", True),
    ],
)
def test_what_was_changed_in_place_is_marked_raw(script: str, is_raw: bool) -> None:
    server = Server()
    server.play(script)
    version = server.version(b"k")
    assert version is not None
    assert (version.encoding == RAW_ENCODING) == is_raw


@pytest.mark.parametrize(
    ("script", "is_kept"),
    [
        ("SETBIT k 100 1", True),
        ("SETBIT k 1 1", True),
        ("BITFIELD k SET u8 0 9", True),
        ("BITOP NOT k k", False),
    ],
)
def test_expiry_is_kept_where_the_value_is_changed(script: str, is_kept: bool) -> None:
    server = Server()
    server.play("SET k a PX 10 ; " + script)
    version = server.version(b"k")
    assert version is not None
    assert version.expire_at_ms == (START_MS + 10 if is_kept else 0)


@pytest.mark.parametrize(
    "script", ["SETBIT k 1 1", "BITFIELD k SET u8 0 97", "BITFIELD k OVERFLOW FAIL SET u2 0 9"]
)
@pytest.mark.parametrize("value", ["APPEND k a", "SET k " + "a" * 45], ids=["marked", "long"])
def test_what_changes_nothing_writes_nothing(script: str, value: str) -> None:
    server = Server()
    server.play("SET k '' ; " + value)
    before = server.version(b"k")
    server.play(script)
    assert server.version(b"k") == before


def test_a_string_may_grow_to_the_limit_and_no_further() -> None:
    server = Server()
    server.node.limits = Limits(bulk_bytes_max=8)
    assert server.play("SETBIT k 63 1") == 0
    assert server.play("SETBIT k 64 1") == BAD_OFFSET
    assert server.play("BITFIELD k SET u8 64 1") == BAD_OFFSET
    assert server.play("BITFIELD k SET u8 '#8' 1") == BAD_OFFSET
    assert server.play("BITFIELD k SET u8 '#7' 255") == [1]


# Two implementations


def as_bits(value: bytes) -> list[int]:
    return [byte >> 7 - at & 1 for byte in value for at in range(8)]


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that small values have several chunks."""
    monkeypatch.setattr(bits, "CHUNK_BYTES", 4)
    monkeypatch.setattr(bits, "BLANK_CHUNKS", (bytes(4), b"\xff" * 4))


def draw_value(rng: random.Random) -> bytes:
    """Up to 20 bytes, mostly long rows of equal bits."""
    blank = rng.choice((b"\0", b"\xff"))
    value = bytearray(blank * rng.randint(0, 20))
    for _ in range(rng.randint(0, 2)):
        if value:
            value[rng.randrange(len(value))] ^= 1 << rng.randrange(8)
    return bytes(value)


@pytest.mark.usefixtures("small_chunks")
def test_counting_and_searching_against_a_list_of_bits() -> None:
    rng = random.Random(4)
    for _ in range(3000):
        value = draw_value(rng)
        if not value:
            continue
        first, last = sorted((rng.randrange(len(value) * 8), rng.randrange(len(value) * 8)))
        part = as_bits(value)[first : last + 1]
        assert count_bits(value, first, last) == sum(part)
        for bit in (0, 1):
            expected = first + part.index(bit) if bit in part else -1
            assert find_bit(value, bit, first, last) == expected, (value, bit, first, last)


@pytest.mark.usefixtures("small_chunks")
def test_combining_against_bytes_one_by_one() -> None:
    rng = random.Random(5)
    for _ in range(1000):
        sources = [rng.randbytes(rng.randint(0, 14)) for _ in range(rng.randint(1, 4))]
        length = max(map(len, sources))
        for operation in bits.OPERATIONS.values():
            expected = bytearray(length)
            for at in range(length):
                column = [source[at] if at < len(source) else 0 for source in sources]
                expected[at] = column[0]
                for byte in column[1:]:
                    expected[at] = operation(expected[at], byte)
            assert combine(operation, sources) == bytes(expected)


def test_fields_against_a_list_of_bits() -> None:
    rng = random.Random(6)
    for _ in range(2000):
        width = rng.choice((1, 3, 8, 13, 33, 63))
        field = Field(offset=rng.randint(0, 40), bits=width, is_signed=rng.random() < 0.5)
        value = bytearray(rng.randbytes(field.bytes_end + rng.randint(0, 3)))
        number = rng.randint(field.minimum, field.maximum)
        before = as_bits(bytes(value))
        field.write(value, number)
        after = as_bits(bytes(value))
        end = field.offset + width
        assert after[: field.offset] + after[end:] == before[: field.offset] + before[end:]
        pattern = int("".join(map(str, after[field.offset : end])), 2)
        assert pattern == number % (1 << width)
        assert field.read(value) == number
