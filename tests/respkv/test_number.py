"""Numbers: every spelling that Redis takes or refuses, and the extended floats against exact fractions, C and Redis."""

from __future__ import annotations

import ctypes
import platform
import random
from fractions import Fraction

import pytest

from respkv.number import (
    INT64_MAX,
    INT64_MIN,
    Extended,
    extended,
    floating,
    integer,
    integer_or_none,
)
from respkv.reply import OUT_OF_RANGE, ReplyError, format_double
from tests.differential.wire import encode
from tests.respkv.commands.redis import needs_redis, redis

INTEGERS = (
    b"0",
    b"1",
    b"-1",
    b"10",
    b"9223372036854775807",
    b"-9223372036854775808",
    b"999999999999999999",
)
NO_INTEGERS = (
    *(
        b"",
        b"-",
        b"+1",
        b"-0",
        b"00",
        b"01",
        b"-01",
        b" 1",
        b"1 ",
        b"1\n",
        b"1_0",
        b"1.0",
        b"1e3",
        b"0x1",
        b"a",
    ),
    *(
        b"9223372036854775808",
        b"-9223372036854775809",
        b"99999999999999999999",
        b"1" * 5000,
        b"1\0",
        b"\xd9\xa1",
    ),
)


@pytest.mark.parametrize("text", INTEGERS)
def test_integers_are_read(text: bytes) -> None:
    assert integer(text) == int(text)
    assert integer_or_none(text) == int(text)


@pytest.mark.parametrize("text", NO_INTEGERS)
def test_what_is_no_integer_is_refused(text: bytes) -> None:
    with pytest.raises(ReplyError, match="value is not an integer or out of range"):
        integer(text)
    with pytest.raises(ReplyError, match="index out of range"):
        integer(text, OUT_OF_RANGE)
    assert integer_or_none(text) is None


def test_the_limits_of_integers() -> None:
    assert integer(b"%d" % INT64_MAX) == 2**63 - 1
    assert integer(b"%d" % INT64_MIN) == -(2**63)


FLOATS = {
    b"0": 0.0,
    b"-1.5": -1.5,
    b"+3": 3.0,
    b".5": 0.5,
    b"5.": 5.0,
    b"1e3": 1000.0,
    b"1E-2": 0.01,
    b"0.1": 0.1,
    b"0x10": 16.0,
    b"-0X.8P1": -1.0,
    b"0x1p-1074": 5e-324,
    b"1e-320": 1e-320,
    b"0e999999999999": 0.0,
    b"1.7976931348623157e308": 1.7976931348623157e308,
    b"inf": float("inf"),
    b"+Infinity": float("inf"),
    b"-INF": float("-inf"),
}
# Refused as doubles and as extended floats.
NO_FLOATS = (
    *(
        b"",
        b".",
        b"-",
        b"e5",
        b"1e",
        b"1e+",
        b"1.2.3",
        b" 1",
        b"1 ",
        b"1_0",
        b"1,5",
        b"nan",
        b"-nan",
        b"abc",
    ),
    *(
        b"0x",
        b"0x.",
        b"0x1p",
        b"0xg",
        b"infi",
        b"1\0",
        b"1e5000",
        b"1e-5000",
        b"1e99999999999999",
        b"0x1p99999999999",
    ),
    *(b"1" * 5000 + b"x", b"0x" + b"1" * 5000),
)


@pytest.mark.parametrize(("text", "value"), FLOATS.items())
def test_floats_are_read(text: bytes, value: float) -> None:
    assert floating(text) == value


@pytest.mark.parametrize("text", [*NO_FLOATS, b"1e309", b"1e-400", b"0x1p1024", b"0x1p-1076"])
def test_what_is_no_float_is_refused(text: bytes) -> None:
    with pytest.raises(ReplyError, match="value is not a valid float"):
        floating(text)
    with pytest.raises(ReplyError, match="index out of range"):
        floating(text, OUT_OF_RANGE)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.1, b"0.10000000000000001"),
        (3.0, b"3"),
        (1e21, b"1e+21"),
        (-0.0, b"-0"),
        (float("-inf"), b"-inf"),
    ],
)
def test_doubles_are_written_with_17_digits(value: float, text: bytes) -> None:
    assert format_double(value) == text


# Extended floats


@pytest.mark.parametrize(
    "text", [*NO_FLOATS, b"1e4933", b"1e-4952", b"0x1p16384", b"0x1p-16446", b"0" * 5120]
)
def test_what_is_no_extended_float_is_refused(text: bytes) -> None:
    with pytest.raises(ReplyError, match="value is not a valid float"):
        extended(text)


SUMS = [
    (b"0.1", b"0.2", b"0.3"),
    (b"10.5", b"0.1", b"10.6"),
    (b"5.0e3", b"200", b"5200"),
    (b"3", b"-3", b"0"),
    (b"-0", b"-0", b"0"),
    (b"-1e-300", b"0", b"0"),
    (b"-1.5", b"0.25", b"-1.25"),
    (b"1e17", b"0.5", b"100000000000000000.5"),
    (b"1e19", b"0.25", b"10000000000000000000"),
    (b"1e-17", b"0", b"0.00000000000000001"),
    (b"5e-18", b"0", b"0"),
    (b"123456789.123456789", b"0", b"123456789.12345678899873747"),
    (b"18446744073709551615", b"1", b"18446744073709551616"),
    (b"18446744073709551616", b"1", b"18446744073709551616"),  # Half way: to the even one.
    (b"18446744073709551618", b"1", b"18446744073709551620"),
    (b"0x1p-16445", b"0x1p-16445", b"0"),
]


@pytest.mark.parametrize(("a", "b", "total"), SUMS)
def test_sums_as_the_processor_makes_them(a: bytes, b: bytes, total: bytes) -> None:
    for first, second in ((a, b), (b, a)):
        found = extended(first).plus(extended(second))
        assert found is not None
        assert found.text() == total


def test_infinities_add_up_to_themselves_or_to_no_number() -> None:
    up, down, one = extended(b"inf"), extended(b"-Infinity"), extended(b"1")
    assert up.plus(one) == up
    assert one.plus(down) == down
    assert up.plus(up) == up
    assert up.plus(down) is None


def test_a_sum_that_is_too_large_is_infinite() -> None:
    largest = extended(b"1.18973149535723176502e4932")
    total = largest.plus(largest)
    assert total is not None
    assert total.is_infinite


def test_texts_of_thousands_of_digits() -> None:
    large = b"1" + b"0" * 4900
    assert extended(large) == extended(b"1e4900")
    text = extended(large).text()
    assert len(text) == 4901
    assert Fraction(int(text[:2450]) * 10**2451 + int(text[2450:])) == value_of(extended(large))
    assert extended(b"0." + b"3" * 5000) == extended(b"0." + b"3" * 40)


def value_of(number: Extended) -> Fraction:
    assert not number.is_infinite
    return Fraction(number.mantissa) * Fraction(2) ** number.exponent


def draw_text(rng: random.Random) -> bytes:
    """Any number: decimals as people write them, all magnitudes, hexadecimal."""
    kind = rng.random()
    if kind < 0.3:
        return b"%.*f" % (rng.randint(0, 18), rng.uniform(-1000, 1000))
    if kind < 0.5:
        return b"%d.%d" % (
            rng.randint(-(10 ** rng.randint(0, 20)), 10**9),
            rng.randint(0, 10 ** rng.randint(1, 25)),
        )
    if kind < 0.8:
        return b"%de%d" % (rng.randint(-99, 99), rng.randint(-4940, 4930))
    return b"0x%x.%xp%d" % (
        rng.getrandbits(rng.randint(1, 90)),
        rng.getrandbits(30),
        rng.randint(-16400, 16250),
    )


def test_sums_are_the_nearest_numbers() -> None:
    """Against exact fractions: no number with 64 bits is nearer, and a tie went to the even one."""
    rng = random.Random(1)
    for _ in range(500):
        # Near each other, or else the smaller one hardly counts.
        a = extended(
            b"%d.%de%d" % (rng.randint(-(10**12), 10**12), rng.getrandbits(60), rng.randint(-9, 9))
        )
        b = extended(
            b"%d.%de%d" % (rng.randint(-(10**12), 10**12), rng.getrandbits(60), rng.randint(-9, 9))
        )
        total = a.plus(b)
        assert total is not None
        exact = value_of(a) + value_of(b)
        error = abs(value_of(total) - exact)
        if error:
            assert total.mantissa.bit_length() in (64, 65)
            half_unit = Fraction(2) ** total.exponent / 2
            assert error <= half_unit
            assert error < half_unit or total.mantissa % 2 == 0


@pytest.mark.skipif(
    platform.machine() != "x86_64" or ctypes.sizeof(ctypes.c_longdouble) != 16,
    reason="C's long double is no x87 extended float here",
)
def test_texts_are_read_as_c_reads_them() -> None:
    libc = ctypes.CDLL(None)
    rng = random.Random(2)
    for _ in range(2000):
        text = draw_text(rng)
        memory = ctypes.create_string_buffer(16)
        assert libc.sscanf(text, b"%Lf", memory) == 1
        mantissa = int.from_bytes(memory.raw[:8], "little")
        sign_and_exponent = int.from_bytes(memory.raw[8:10], "little")
        exponent = max(sign_and_exponent & 0x7FFF, 1) - 16383 - 63
        expected = (
            Fraction(-mantissa if sign_and_exponent >> 15 else mantissa) * Fraction(2) ** exponent
        )
        assert value_of(extended(text)) == expected, text


@needs_redis
def test_sums_are_written_as_redis_writes_them() -> None:
    rng = random.Random(3)
    with redis() as connection:
        for _ in range(20):
            pairs = [(draw_text(rng), draw_text(rng)) for _ in range(50)]
            connection.send(
                b"".join(
                    encode([b"SET", b"k", a]) + encode([b"INCRBYFLOAT", b"k", b]) for a, b in pairs
                )
            )
            for a, b in pairs:
                assert connection.receive().reply.kind == "+"
                total = extended(a).plus(extended(b))
                assert total is not None
                assert connection.receive().reply.value == total.text(), (a, b)
