"""Numbers as Redis reads and writes them: integers, doubles, and INCRBYFLOAT's extended floats.

It knows no command. A function that reads takes the argument's bytes and the `ReplyError` to raise
if they are no such number.

- `integer`: 64 bits with sign, in its one canonical spelling: no `+`, no leading zero, no blank, no
  `-0`.
- `floating`: what C's `strtod` takes as a whole: decimal, `0x` with binary exponent, `inf`. No
  blank, no NaN, nothing that overflows, nothing but zero that underflows to zero.
- `extended`: what C's `long double` holds on x86-64: 64 bits of mantissa and 15 of exponent.
  INCRBYFLOAT and HINCRBYFLOAT compute in it and print 17 decimals, so that 0.1 + 0.2 is `0.3`.
  Python has no such type. Here a number is an integer times a power of two, sums are exact, and
  rounding to 64 bits comes last, as the processor does it.

Core. Sources: C11, 7.22.1.3 (strtod); the x87 extended format in the Intel 64 architecture manual;
IEEE 754 (round half to even).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from math import inf, isinf
from typing import Final

from respkv.reply import NOT_A_FLOAT, NOT_AN_INTEGER, ReplyError

INT64_MAX: Final = 2**63 - 1
INT64_MIN: Final = -(2**63)
_INTEGER_BYTES_MAX: Final = 20  # The length of INT64_MIN.

_decimal = re.compile(
    rb"([+-]?)(?:([0-9]+)(?:\.([0-9]*))?|\.([0-9]+))(?:[eE]([+-]?[0-9]+))?"
).fullmatch
_hexadecimal = re.compile(
    rb"([+-]?)0[xX](?:([0-9a-fA-F]+)(?:\.([0-9a-fA-F]*))?|\.([0-9a-fA-F]+))(?:[pP]([+-]?[0-9]+))?"
).fullmatch
_infinity = re.compile(rb"([+-]?)(?:inf|infinity)", re.IGNORECASE).fullmatch


def integer(arg: bytes, error: ReplyError = NOT_AN_INTEGER) -> int:
    """The 64-bit integer that `arg` spells. Raises `error` for every other spelling. Hot: INCR."""
    if len(arg) <= _INTEGER_BYTES_MAX:
        try:
            value = int(arg)
        except ValueError:
            raise error from None
        # int() is lenient (` 1`, `+1`, `01`, `1_0`): printing it again shows if `arg` was canonical.
        if INT64_MIN <= value <= INT64_MAX and b"%d" % value == arg:
            return value
    raise error


def integer_or_none(arg: bytes) -> int | None:
    """As `integer`, for those who only ask whether it is one (OBJECT ENCODING)."""
    if len(arg) > _INTEGER_BYTES_MAX:
        return None
    try:
        value = int(arg)
    except ValueError:
        return None
    return value if INT64_MIN <= value <= INT64_MAX and b"%d" % value == arg else None


def floating(arg: bytes, error: ReplyError = NOT_A_FLOAT) -> float:
    """The double nearest to what `arg` spells, or an infinity. Raises `error` if out of range."""
    match = _decimal(arg)
    if match:
        value = float(arg)
    elif match := _hexadecimal(arg):
        try:
            value = float.fromhex(arg.decode())
        except OverflowError:
            raise error from None
    elif match := _infinity(arg):
        return -inf if match[1] == b"-" else inf
    else:
        raise error
    if isinf(value) or (value == 0 and _has_digit(match)):
        raise error
    return value


# Extended floats

MANTISSA_BITS: Final = 64
_EXPONENT_MIN: Final = -16445  # Of the last mantissa bit, for the smallest numbers.
_MAGNITUDE_BITS_MAX: Final = 16384  # Numbers from 2**16384 on overflow.
_DECIMAL_MAGNITUDE_MAX: Final = (
    4940  # Beyond 10**4933 all overflow; the exact border is found in binary.
)
_DECIMAL_MAGNITUDE_MIN: Final = -4960  # Below 10**-4951 all underflow.
_EXTENDED_TEXT_BYTES_MAX: Final = 5119  # Redis reads no longer one.
_EXPONENT_DIGITS_MAX: Final = 9
_DECIMALS: Final = 17
_DECIMAL_UNIT: Final = 10**_DECIMALS
# Python refuses to convert more than 4300 digits at a time.
_DIGITS_AT_ONCE: Final = 4000
_DIGITS_UNIT: Final = 10**_DIGITS_AT_ONCE


@dataclass(frozen=True, slots=True)
class Extended:
    """`mantissa` times two to the `exponent`, or an infinity of the mantissa's sign."""

    mantissa: int
    exponent: int = 0
    is_infinite: bool = False

    def plus(self, other: Extended) -> Extended | None:
        """The sum, rounded once; None if it is no number (infinities of different sign)."""
        if self.is_infinite or other.is_infinite:
            if self.is_infinite and other.is_infinite and self.mantissa != other.mantissa:
                return None
            return self if self.is_infinite else other
        exponent = min(self.exponent, other.exponent)
        total = (self.mantissa << self.exponent - exponent) + (
            other.mantissa << other.exponent - exponent
        )
        return _rounded(total, 1, exponent)

    def text(self) -> bytes:
        """Decimal notation with at most 17 decimals, never `-0`. Finite numbers only."""
        assert not self.is_infinite
        sign = b"-" if self.mantissa < 0 else b""
        size = abs(self.mantissa)
        if self.exponent >= 0:
            return sign + _digits_of(size << self.exponent)
        scaled = _divided(size * _DECIMAL_UNIT, 1 << -self.exponent)
        whole, decimals = divmod(scaled, _DECIMAL_UNIT)
        if not decimals:
            return sign + _digits_of(whole) if whole else b"0"
        return b"%b%b.%b" % (sign, _digits_of(whole), (b"%017d" % decimals).rstrip(b"0"))


def extended(arg: bytes, error: ReplyError = NOT_A_FLOAT) -> Extended:
    """The extended float nearest to what `arg` spells. Raises `error` as `floating` does."""
    if len(arg) > _EXTENDED_TEXT_BYTES_MAX:
        raise error
    if match := _decimal(arg):
        value = _read_decimal(match)
    elif match := _hexadecimal(arg):
        value = _read_hexadecimal(match)
    elif match := _infinity(arg):
        return Extended(-1 if match[1] == b"-" else 1, is_infinite=True)
    else:
        raise error
    if value is None or value.is_infinite or (value.mantissa == 0 and _has_digit(match)):
        raise error
    return value


def _read_decimal(match: re.Match[bytes]) -> Extended | None:
    digits, shift = _significand(match)
    shift = _exponent(match) - shift
    if not digits:
        return Extended(0)
    # Checked before any power is computed: an exponent may have nine digits.
    if not _DECIMAL_MAGNITUDE_MIN <= len(digits) + shift <= _DECIMAL_MAGNITUDE_MAX:
        return None
    value = _number_of(digits)
    if match[1] == b"-":
        value = -value
    return _rounded(value * 10**shift, 1, 0) if shift >= 0 else _rounded(value, 10**-shift, 0)


def _read_hexadecimal(match: re.Match[bytes]) -> Extended | None:
    digits, shift = _significand(match)
    shift = _exponent(match) - 4 * shift
    value = int(digits, 16) if digits else 0
    if not value:
        return Extended(0)
    if not _EXPONENT_MIN - 1 <= value.bit_length() + shift <= _MAGNITUDE_BITS_MAX:
        return None
    return _rounded(-value if match[1] == b"-" else value, 1, shift)


def _significand(match: re.Match[bytes]) -> tuple[bytes, int]:
    """The digits without leading zeros, and how many of them stand behind the point."""
    behind: bytes = match[3] or match[4] or b""
    return ((match[2] or b"") + behind).lstrip(b"0"), len(behind)


def _exponent(match: re.Match[bytes]) -> int:
    text: bytes = match[5] or b"0"
    digits = text.lstrip(b"+-").lstrip(b"0")
    size = int(digits or b"0") if len(digits) <= _EXPONENT_DIGITS_MAX else 10**_EXPONENT_DIGITS_MAX
    return -size if text.startswith(b"-") else size


def _has_digit(match: re.Match[bytes]) -> bool:
    """Whether a digit of the significand is not zero: then so is the number, before rounding."""
    return bool(_significand(match)[0])


def _rounded(numerator: int, denominator: int, exponent: int) -> Extended:
    """The extended float nearest to numerator / denominator * 2**exponent."""
    size = abs(numerator)
    if not size:
        return Extended(0)
    # How many bits of the quotient are too many: this, or one less.
    drop = size.bit_length() - denominator.bit_length() + 1 - MANTISSA_BITS
    if drop < 0 and denominator == 1:
        drop = 0
    else:
        scaled, by = _shifted(size, denominator, drop)
        if scaled // by < 1 << MANTISSA_BITS - 1:
            drop -= 1
    drop = max(drop, _EXPONENT_MIN - exponent)  # The smallest numbers have fewer bits.
    mantissa = _divided(*_shifted(size, denominator, drop))
    exponent += drop
    if mantissa.bit_length() + exponent > _MAGNITUDE_BITS_MAX:
        return Extended(-1 if numerator < 0 else 1, is_infinite=True)
    return Extended(-mantissa if numerator < 0 else mantissa, exponent)


def _shifted(numerator: int, denominator: int, drop: int) -> tuple[int, int]:
    """The fraction divided by 2**drop."""
    return (numerator, denominator << drop) if drop > 0 else (numerator << -drop, denominator)


def _divided(numerator: int, denominator: int) -> int:
    """The quotient of positive integers, rounded half to even."""
    quotient, rest = divmod(numerator, denominator)
    rest *= 2
    if rest > denominator or (rest == denominator and quotient & 1):
        quotient += 1
    return quotient


def _number_of(digits: bytes) -> int:
    value = 0
    for start in range(0, len(digits), _DIGITS_AT_ONCE):
        part = digits[start : start + _DIGITS_AT_ONCE]
        value = value * 10 ** len(part) + int(part)
    return value


def _digits_of(value: int) -> bytes:
    if value < _DIGITS_UNIT:
        return b"%d" % value
    head, tail = divmod(value, _DIGITS_UNIT)
    return _digits_of(head) + (b"%d" % tail).rjust(_DIGITS_AT_ONCE, b"0")
