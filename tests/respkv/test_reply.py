"""Replies on the wire, in both versions of the protocol, read back by a small decoder of this file."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from respkv.reply import (
    NO_REPLY,
    NULL_ARRAY,
    OK,
    Encoded,
    Push,
    Reply,
    ReplyError,
    SetReply,
    Simple,
    Verbatim,
    encode,
    format_double,
    invalid_expire,
    wrong_arity,
)

NULL = ("null",)


class Decoder:
    """RESP2 and RESP3, each value as its type's sign and its content: `("$", b"v")`. Slow and plain."""

    def __init__(self, data: bytes) -> None:
        self.data = data

    def line(self) -> bytes:
        line, separator, self.data = self.data.partition(b"\r\n")
        assert separator, "a line without an end"
        assert b"\n" not in line
        assert b"\r" not in line
        return line

    def bulk(self, length: int) -> bytes:
        value, end, self.data = (
            self.data[:length],
            self.data[length : length + 2],
            self.data[length + 2 :],
        )
        assert end == b"\r\n"
        return value

    def value(self) -> Any:
        line = self.line()
        sign, rest = chr(line[0]), line[1:]
        match sign:
            case "+" | "-":
                return (sign, rest)
            case ":":
                return (sign, int(rest))
            case ",":
                return (sign, float(rest))
            case "#":
                return (sign, {b"t": True, b"f": False}[rest])
            case "_":
                assert rest == b""
                return NULL
            case "$" | "*" if rest == b"-1":
                return (*NULL, sign)
            case "$" | "=":
                return (sign, self.bulk(int(rest)))
            case "*" | "~" | ">":
                return (sign, [self.value() for _ in range(int(rest))])
            case "%":
                return (sign, [(self.value(), self.value()) for _ in range(int(rest))])
        raise AssertionError(f"unknown type {sign}")


def decoded(reply: Reply, *, resp3: bool) -> Any:
    decoder = Decoder(encode(reply, resp3=resp3))
    value = decoder.value()
    assert decoder.data == b"", "more than one reply"
    return value


BULK_KEY = ("$", b"k")
CASES: list[tuple[Reply, Any, Any]] = [
    # A handler's value, then what it is in RESP2 and in RESP3.
    (b"", ("$", b""), ("$", b"")),
    (b"a\r\nb", ("$", b"a\r\nb"), ("$", b"a\r\nb")),
    (b"x" * 5000, ("$", b"x" * 5000), ("$", b"x" * 5000)),
    (OK, ("+", b"OK"), ("+", b"OK")),
    (Simple(b"PONG"), ("+", b"PONG"), ("+", b"PONG")),
    (0, (":", 0), (":", 0)),
    (1023, (":", 1023), (":", 1023)),
    (1024, (":", 1024), (":", 1024)),
    (-1, (":", -1), (":", -1)),
    (2**63 - 1, (":", 2**63 - 1), (":", 2**63 - 1)),
    (-(2**63), (":", -(2**63)), (":", -(2**63))),
    (None, (*NULL, "$"), NULL),
    (NULL_ARRAY, (*NULL, "*"), NULL),
    (True, (":", 1), ("#", True)),
    (False, (":", 0), ("#", False)),
    (1.5, ("$", b"1.5"), (",", 1.5)),
    ([], ("*", []), ("*", [])),
    ([b"a", 1, None], ("*", [("$", b"a"), (":", 1), (*NULL, "$")]), ("*", [("$", b"a"), (":", 1), NULL])),
    ([[b"a"], []], ("*", [("*", [("$", b"a")]), ("*", [])]), ("*", [("*", [("$", b"a")]), ("*", [])])),
    ({}, ("*", []), ("%", [])),
    ({b"k": 1}, ("*", [BULK_KEY, (":", 1)]), ("%", [(BULK_KEY, (":", 1))])),
    (SetReply([b"k"]), ("*", [BULK_KEY]), ("~", [BULK_KEY])),
    (Push([b"k", None]), ("*", [BULK_KEY, (*NULL, "$")]), (">", [BULK_KEY, NULL])),
    (Verbatim(b"text\r\n"), ("$", b"text\r\n"), ("=", b"txt:text\r\n")),
    (Verbatim(b"# x", b"mkd"), ("$", b"# x"), ("=", b"mkd:# x")),
    (ReplyError("ERR no"), ("-", b"ERR no"), ("-", b"ERR no")),
    ([OK, ReplyError("ERR no")], ("*", [("+", b"OK"), ("-", b"ERR no")]), ("*", [("+", b"OK"), ("-", b"ERR no")])),
    (Encoded(b"*1\r\n+x\r\n"), ("*", [("+", b"x")]), ("*", [("+", b"x")])),
]  # fmt: skip


@pytest.mark.parametrize(("reply", "resp2", "resp3"), CASES, ids=lambda case: repr(case)[:40])
def test_every_kind(reply: Reply, resp2: Any, resp3: Any) -> None:
    assert decoded(reply, resp3=False) == resp2
    assert decoded(reply, resp3=True) == resp3


def test_no_reply_is_nothing() -> None:
    assert encode(NO_REPLY, resp3=False) == encode(NO_REPLY, resp3=True) == b""


def test_an_encoded_reply_is_plain_bytes() -> None:
    assert type(encode(Encoded(b"+x\r\n"), resp3=True)) is bytes


@pytest.mark.parametrize("reply", [object(), "text", (1, 2)])
def test_what_is_no_reply_is_refused(reply: Any) -> None:
    with pytest.raises(TypeError, match="which is no reply"):
        encode(reply, resp3=True)


plain_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.binary() | st.floats(allow_nan=False),
    lambda values: st.lists(values) | st.dictionaries(st.binary(), values),
    max_leaves=20,
)  # fmt: skip


def expected(value: Any, *, resp3: bool) -> Any:
    match value:
        case None:
            return NULL if resp3 else (*NULL, "$")
        case bool():
            return ("#", value) if resp3 else (":", int(value))
        case int():
            return (":", value)
        case bytes():
            return ("$", value)
        case float():
            return (",", value) if resp3 else ("$", b"%.17g" % value)
        case list():
            return ("*", [expected(item, resp3=resp3) for item in value])
    pairs = [(expected(k, resp3=resp3), expected(v, resp3=resp3)) for k, v in value.items()]
    return ("%", pairs) if resp3 else ("*", [item for pair in pairs for item in pair])


@given(plain_values, st.booleans())
def test_values_nested_in_values(value: Any, resp3: bool) -> None:
    assert decoded(value, resp3=resp3) == expected(value, resp3=resp3)


# Doubles


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, b"0"),
        (-0.0, b"-0"),
        (3.0, b"3"),
        (-2.5, b"-2.5"),
        (0.1, b"0.10000000000000001"),  # As Redis 7.0; later versions write 0.1.
        (1e17, b"1e+17"),
        (123456789012345.0, b"123456789012345"),
        (1e-7, b"9.9999999999999995e-08"),
        (math.inf, b"inf"),
        (-math.inf, b"-inf"),
        (math.nan, b"nan"),
    ],
)
def test_doubles(value: float, text: bytes) -> None:
    assert format_double(value) == text


@given(st.floats(allow_nan=False))
def test_a_double_reads_back(value: float) -> None:
    assert float(format_double(value)) == value


# Errors


def test_an_error_has_a_code() -> None:
    assert ReplyError("WRONGTYPE Operation").code == b"WRONGTYPE"
    assert ReplyError(b"OOPS").code == b"OOPS"
    assert ReplyError("ERR é").line == "ERR é".encode()


@given(st.binary())
def test_an_error_is_one_line_whatever_it_quotes(quoted: bytes) -> None:
    error = ReplyError(b"ERR no '%b'" % quoted)
    assert decoded(error, resp3=False) == ("-", error.line)
    assert len(error.line) == len(b"ERR no ''") + len(quoted)


def test_line_breaks_of_an_error() -> None:
    assert ReplyError("ERR a\r\nb\r\n").line == b"ERR a  b"
    assert ReplyError("ERR a\n").line == b"ERR a"


def test_texts_that_commands_share() -> None:
    assert wrong_arity("CLIENT|ID").line == b"ERR wrong number of arguments for 'client|id' command"
    assert invalid_expire("SET").line == b"ERR invalid expire time in 'set' command"
