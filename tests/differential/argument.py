"""Kinds of arguments: what a lower-case word of a template stands for.

Not the templates themselves (`command`), and no knowledge of any one command. A kind is a function from a seeded
generator to one argument or several. Valid kinds give valid arguments nearly always, edge values among them; kinds
that are meant to be refused say so in their name (`non-integer`, `past-s`).

Twenty keys, named by what they mostly hold. Commands move values between them, so any of them may hold anything, have
an expiry, or be absent. Near expiries are never drawn: the two servers' clocks would decide the reply.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Final

Random = random.Random
Drawn = bytes | tuple[bytes, ...]
Kind = Callable[[Random], Drawn]

INTEGER_KEYS: Final = (b"int:1", b"int:2", b"int:3", b"{tag}int")
FLOAT_KEYS: Final = (b"float:1", b"float:2", b"{tag}float")
TEXT_KEYS: Final = (b"text:1", b"text:2", b"text 3", b"")
BINARY_KEYS: Final = (b"bin:1", b"\x00bin\xff", b"bin\r\n3")
LONG_KEYS: Final = (b"long:1", b"long:2", b"{tag}long")
BITMAP_KEYS: Final = (b"bits:1", b"bits:2", b"bits*3")
KEYS: Final = INTEGER_KEYS + FLOAT_KEYS + TEXT_KEYS + BINARY_KEYS + LONG_KEYS + BITMAP_KEYS
MISSING_KEYS: Final = (b"missing:1", b"missing:2", b"{tag}missing")

EMBEDDED_BYTES_MAX = 44  # Redis calls a string up to this length `embstr`, a longer one `raw`.
INT64_MAX: Final = 2**63 - 1
INT64_MIN: Final = -(2**63)

_YEAR_2033_S = 2_000_000_000
_YEAR_2100_S = 4_102_444_800


def _number(value: int) -> bytes:
    return b"%d" % value


def _between(low: int, high: int) -> Kind:
    return lambda rng: _number(rng.randint(low, high))


def _one_of(*choices: bytes | int) -> Kind:
    arguments = [c if isinstance(c, bytes) else _number(c) for c in choices]
    return lambda rng: rng.choice(arguments)


def _key_of(own: tuple[bytes, ...]) -> Kind:
    """A key of this sort; one time in twenty any other, so that commands meet values that do not suit them."""
    return lambda rng: rng.choice(own) if rng.random() < 0.95 else rng.choice(KEYS)


def draw_key(rng: Random) -> bytes:
    """Any of the twenty keys. `MISSING_KEYS` are only read, and so never have a value."""
    return rng.choice(KEYS)


def draw_integer(rng: Random) -> bytes:
    """Integers that Redis keeps as such, with the edges of what is shared, 32 bits, 53 bits and 64 bits."""
    edges = (0, 1, -1, 9999, 10000, 2**31 - 1, -(2**31), 2**53, INT64_MAX, INT64_MIN, INT64_MIN + 1)
    if rng.random() < 0.15:
        return _number(rng.choice(edges))
    return _number(rng.randint(-(10 ** rng.randint(1, 12)), 10 ** rng.randint(1, 12)))


def draw_float(rng: Random) -> bytes:
    """Decimal numbers as people write them, and some as few do."""
    odd = (
        b"3.0e3",
        b"1e-7",
        b"0.1",
        b"-0",
        b"5.0",
        b"1E2",
        b".5",
        b"3.",
        b"123456789.123456789",
        b"1e17",
        b"-1e-17",
    )
    choice = rng.random()
    if choice < 0.15:
        return rng.choice(odd)
    if choice < 0.3:
        return _number(rng.randint(-1000, 1000))
    return b"%.*f" % (rng.randint(1, 8), rng.uniform(-1000, 1000))


def draw_text(rng: Random) -> bytes:
    """Short text, at times the longest that is embedded, at times empty, at times nearly a number."""
    if rng.random() < 0.12:
        return rng.choice(
            (b"", b"007", b"+5", b" 5", b"5 ", b"1.0", b"-0", b"x" * EMBEDDED_BYTES_MAX)
        )
    return "".join(rng.choices("abcdefgh ABC", k=rng.randint(1, EMBEDDED_BYTES_MAX))).encode()


def draw_binary(rng: Random) -> bytes:
    """Any bytes, CRLF among them."""
    if rng.random() < 0.1:
        return rng.choice((b"\r\n", b"\x00", b"+OK\r\n", b"$-1\r\n", b"\xff" * 8))
    return rng.randbytes(rng.randint(1, 60))


def draw_long(rng: Random) -> bytes:
    """More than what is embedded: 45 bytes, hundreds, rarely 20000."""
    length = (
        20_000
        if rng.random() < 0.02
        else rng.choice((EMBEDDED_BYTES_MAX + 1, rng.randint(46, 600)))
    )
    return "".join(rng.choices("abcdefgh", k=8)).encode() * (length // 8) + b"z" * (length % 8)


def draw_bitmap(rng: Random) -> bytes:
    """1 to 40 bytes: sparse, dense, all zeros or all ones."""
    length = rng.randint(1, 40)
    choice = rng.random()
    if choice < 0.1:
        return b"\x00" * length
    if choice < 0.2:
        return b"\xff" * length
    if choice < 0.5:
        return bytes(1 << rng.randint(0, 7) if rng.random() < 0.2 else 0 for _ in range(length))
    return rng.randbytes(length)


def draw_value(rng: Random) -> bytes:
    """A value of any of the sorts above."""
    sorts = (draw_integer, draw_float, draw_text, draw_binary, draw_long, draw_bitmap)
    return rng.choice(sorts)(rng)


_VALUES_BY_KEY: Final = (
    (INTEGER_KEYS, draw_integer),
    (FLOAT_KEYS, draw_float),
    (TEXT_KEYS, draw_text),
    (BINARY_KEYS, draw_binary),
    (LONG_KEYS, draw_long),
    (BITMAP_KEYS, draw_bitmap),
)


def draw_suitable_value(rng: Random, key: bytes) -> bytes:
    """A value of the sort that the key's name tells."""
    for keys, draw in _VALUES_BY_KEY:
        if key in keys:
            return draw(rng)
    return draw_value(rng)


def _pair(rng: Random) -> Drawn:
    key = rng.choice(KEYS)
    return key, draw_suitable_value(rng, key)


def _non_integer(rng: Random) -> bytes:
    texts = (
        b"abc",
        b"",
        b"1.5",
        b"1e3",
        b" 1",
        b"1 ",
        b"+1",
        b"01",
        b"0x10",
        b"--1",
        b"-",
        b"9223372036854775808",
    )
    return rng.choice(
        (*texts, b"-9223372036854775809", b"99999999999999999999999999", b"1\x00", b"nan")
    )


def _non_float(rng: Random) -> bytes:
    return rng.choice(
        (b"abc", b"", b" 1", b"1 ", b"1.2.3", b"nan", b"1e", b"1e5000", b"0x", b"--1", b"1,5")
    )


def _pattern(rng: Random) -> bytes:
    return rng.choice(_PATTERNS)


_PATTERNS: Final = (
    *(
        b"*",
        b"int:*",
        b"*:1",
        b"t?xt:*",
        b"[a-f]*",
        b"[^i]*",
        b"[i-b]*",
        b"{tag}*",
        b"",
        b"?",
        b"**",
        b"*t*",
    ),
    *(
        b"bits\\*3",
        b"text 3",
        b"[\\b]*",
        b"*[0-9",
        b"nothing",
        b"*\r\n*",
        b"\\",
        b"*\\",
        b"int:[1-2]",
        b"[",
        b"[^]*",
    ),
)


def _bit_type(rng: Random) -> bytes:
    sign, most = rng.choice(((b"u", 63), (b"i", 64)))
    return sign + _number(
        rng.choice((1, 2, 3, 4, 5, 7, 8, 9, 16, 31, 32, 33, most, rng.randint(1, most)))
    )


def _several(kind: Kind, most: int) -> Kind:
    def draw(rng: Random) -> Drawn:
        drawn: list[bytes] = []
        for _ in range(rng.randint(1, most)):
            one = kind(rng)
            drawn.extend(one if isinstance(one, tuple) else (one,))
        return tuple(drawn)

    return draw


KINDS: Final[dict[str, Kind]] = {
    "key": draw_key,
    "keys": _several(draw_key, 4),
    "integer-key": _key_of(INTEGER_KEYS),
    "float-key": _key_of(FLOAT_KEYS),
    "number-key": _key_of(INTEGER_KEYS + FLOAT_KEYS),
    "text-key": _key_of(TEXT_KEYS),
    "long-key": _key_of(LONG_KEYS),
    "bitmap-key": _key_of(BITMAP_KEYS),
    "missing-key": _one_of(*MISSING_KEYS),
    "pair": _pair,
    "pairs": _several(_pair, 4),
    # Values.
    "value": draw_value,
    "text": draw_text,
    "long": draw_long,
    "bitmap": draw_bitmap,
    "integer": draw_integer,
    "small": _between(-1000, 1000),
    "float": draw_float,
    # `long double` of x86-64 holds these; they print as hundreds of digits.
    "huge-float": _one_of(
        b"1e300", b"-1e308", b"1e1000", b"1e4000", b"1e-300", b"1e-4900", b"5e17", b"1e20"
    ),
    "infinity": _one_of(b"inf", b"-inf", b"+inf", b"infinity", b"1e4933"),
    "near-overflow": _one_of(INT64_MAX, INT64_MAX - 1, INT64_MIN, INT64_MIN + 1),
    "lcs-a": _one_of(b"ohmytext", b"abcdefgabcdefg", b"", b"xabcyabcz", b"aaaa" * 20),
    "lcs-b": _one_of(b"mynewtext", b"gfedcbaabcdefg", b"zzz", b"abcabc", b"aaba" * 20),
    # Expiries: far away or long past.
    "ttl-s": _between(1_000, 1_000_000_000),
    "ttl-ms": _between(1_000_000, 10**12),
    "at-s": _between(_YEAR_2033_S, _YEAR_2100_S),
    "at-ms": _between(_YEAR_2033_S * 1000, _YEAR_2100_S * 1000),
    "past-s": _between(1, 1_600_000_000),
    "past-ms": _between(1, 1_600_000_000_000),
    "not-positive": _one_of(0, -1, -1000, -(2**31), INT64_MIN // 1000, INT64_MIN),
    "too-far": _one_of(INT64_MAX, INT64_MAX // 1000 + 1, INT64_MAX // 1000, INT64_MAX - 1),
    # Places in a string, and in its bits.
    "index": _one_of(*range(-12, 13), 40, 44, 45, 100, -100, 10_000, -10_000, INT64_MAX, INT64_MIN),
    "offset": _one_of(*range(60), 100, 600, 3000),
    "far-offset": _one_of(512 * 1024 * 1024, INT64_MAX, INT64_MAX - 1, 2**32),
    "bit-offset": _one_of(*range(80), 255, 256, 1000, 2047),
    "far-bit-offset": _one_of(2**32, 2**32 + 1, INT64_MAX, -1, -8, INT64_MIN),
    "bit": _one_of(0, 1),
    "bit-type": _bit_type,
    "bad-bit-type": _one_of(
        b"u0", b"u64", b"i65", b"i0", b"x8", b"u", b"", b"8", b"u-1", b"i1.5", b"u8 "
    ),
    "hash-offset": lambda rng: b"#%d" % rng.randint(0, 12),
    "bad-bit-offset": _one_of(
        b"#", b"#-1", b"-1", b"abc", b"#4294967296", b"4294967296", b"9223372036854775807", b"1.5"
    ),
    # Databases and iteration.
    "database": _between(0, 15),
    "other-database": _between(1, 15),
    "bad-database": _one_of(16, -1, 100, INT64_MAX, b"abc", b"", b"1.0", b"99999999999999999999"),
    "pattern": _pattern,
    "count": _one_of(1, 2, 3, 5, 10, 100, 1000),
    "cursor-error": _one_of(b"abc", b"-", b" 0", b"1x", b"99999999999999999999999"),
    # Refused.
    "non-integer": _non_integer,
    "non-float": _non_float,
    "bad-bit": _one_of(2, -1, b"abc", b"", b"01", b"1.0", INT64_MAX),
    "junk": _one_of(b"FOO", b"", b"NXX", b"\x00", b"*", b"EXX", b"0", b"a b", b"'\"\\"),
    "word": _one_of(b"hello", b"", b"a b", b"\r\n", b"\x00\xff", b"x" * 50, b"42"),
    "name": _one_of(b"tester", b"a-name", b"x", b"name:1"),
    "bad-name": _one_of(b"a b", b"a\nb", b"\x01", b"caf\xc3\xa9", b"\x7f"),
}
