"""The parser against an obvious second one, however its bytes are cut.

Run as a program, this file prints what a command costs.
"""

import random
import re
import time
import tracemalloc
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from respkv import parser as parser_module
from respkv.parser import (
    Limits,
    Parser,
    ProtocolError,
    may_be_lone,
    parse_lone,
    split_words,
)

MIB = 1024 * 1024
SMALL = Limits(arguments_max=20_000, bulk_bytes_max=300_000, inline_bytes_max=200)


def encode(*arguments: bytes) -> bytes:
    parts = [b"*%d\r\n" % len(arguments)]
    parts += [b"$%d\r\n%b\r\n" % (len(argument), argument) for argument in arguments]
    return b"".join(parts)


# ---- The obvious parser: it reads the whole stream anew each time.


class Incomplete(Exception):
    pass


@dataclass
class Parsed:
    commands: list[list[bytes]]
    error: str | None
    held_bytes: int


def parse_obviously(stream: bytes, limits: Limits) -> Parsed:
    commands = []
    offset = 0
    try:
        while offset < len(stream):
            command, offset = obvious_command(stream, offset, limits)
            if command:
                commands.append(command)
    except Incomplete:
        return Parsed(commands, None, len(stream) - offset)
    except ProtocolError as error:
        return Parsed(commands, str(error), 0)
    return Parsed(commands, None, 0)


def obvious_command(stream: bytes, offset: int, limits: Limits) -> tuple[list[bytes], int]:
    if stream[offset : offset + 1] != b"*":
        line = obvious_line(stream, offset, b"\n", limits, "too big inline request")
        offset += len(line) + 1
        if line.endswith(b"\r"):
            line = line[:-1]
        return obvious_words(line), offset
    line = obvious_line(stream, offset, b"\r", limits, "too big mbulk count string")
    count = obvious_number(line[1:])
    if count is None or count > limits.arguments_max:
        raise ProtocolError("invalid multibulk length")
    if count > 10 and not limits.is_authenticated:
        raise ProtocolError("unauthenticated multibulk length")
    offset += len(line) + 2
    arguments = []
    for _ in range(count):
        line = obvious_line(stream, offset, b"\r", limits, "too big bulk count string")
        if not line.startswith(b"$"):
            got = stream[offset : offset + 1].replace(b"\r", b" ").replace(b"\n", b" ")
            raise ProtocolError(f"expected '$', got '{got.decode('latin-1')}'")
        length = obvious_number(line[1:])
        if length is None or not 0 <= length <= limits.bulk_bytes_max:
            raise ProtocolError("invalid bulk length")
        if length > 16384 and not limits.is_authenticated:
            raise ProtocolError("unauthenticated bulk length")
        offset += len(line) + 2
        if offset + length + 2 > len(stream):
            raise Incomplete
        arguments.append(stream[offset : offset + length])
        offset += length + 2
    return arguments, offset


def obvious_line(stream: bytes, offset: int, end: bytes, limits: Limits, fault: str) -> bytes:
    visible = stream[offset:].split(b"\0")[0]
    line = visible.split(end)[0]
    if end not in visible or len(line) > limits.inline_bytes_max:
        if len(stream) - offset > limits.inline_bytes_max:
            raise ProtocolError(fault)
        raise Incomplete
    if end == b"\r" and offset + len(line) + 2 > len(stream):
        raise Incomplete
    return line


def obvious_number(text: bytes) -> int | None:
    if not re.fullmatch(rb"-?[0-9]+", text) or str(int(text)).encode() != text:
        return None
    return int(text) if -(2**63) <= int(text) < 2**63 else None


def obvious_words(line: bytes) -> list[bytes]:
    blanks = b" \t\n\v\f\r"
    words: list[bytes] = []
    rest = list(line)
    while True:
        while rest and rest[0] in blanks:
            rest.pop(0)
        if not rest:
            return words
        word = bytearray()
        while rest and rest[0] not in b" \t\n\r":
            char = rest.pop(0)
            if char not in b"\"'":
                word.append(char)
                continue
            word += obvious_quoted(rest, quote=char)
            if rest and rest[0] not in blanks:
                raise ProtocolError("unbalanced quotes in request")
            break
        words.append(bytes(word))


def obvious_quoted(rest: list[int], *, quote: int) -> bytes:
    word = bytearray()
    named = {ord("n"): 10, ord("r"): 13, ord("t"): 9, ord("b"): 8, ord("a"): 7}
    while rest:
        char = rest.pop(0)
        if char == quote:
            return bytes(word)
        if char != ord("\\") or not rest:
            word.append(char)
        elif quote == ord("'"):
            word.append(rest.pop(0) if rest[0] == quote else char)
        elif re.match(rb"x[0-9a-fA-F]{2}", bytes(rest[:3])):
            word.append(int(bytes(rest[1:3]), 16))
            del rest[:3]
        else:
            char = rest.pop(0)
            word.append(named.get(char, char))
    raise ProtocolError("unbalanced quotes in request")


# ---- Feeding in every way.


def pieces(stream: bytes, cuts: list[int]) -> Iterator[bytes]:
    edges = [0, *sorted(cut for cut in cuts if cut <= len(stream)), len(stream)]
    for start, end in pairwise(edges):
        yield stream[start:end]


def feed_as_a_socket_does(parser: Parser, piece: bytes) -> list[list[bytes]]:
    """Large arguments go to their place with `bulk_buffer`, everything else through `feed`."""
    commands: list[list[bytes]] = []
    while piece:
        room = parser.bulk_buffer()
        if room is None:
            return commands + parser.feed(piece)
        count = min(len(room), len(piece))
        assert count
        room[:count] = piece[:count]
        piece = piece[count:]
        commands += parser.bulk_filled(count)
    return commands


def check(
    stream: bytes, cuts: list[int], limits: Limits | None = None, *, by_socket: bool = False
) -> Parsed:
    """Cut so, the commands, the error and what is held are the obvious ones after each piece."""
    limits = limits or Limits()
    parser = Parser(limits)
    commands = []
    fed = b""
    expected = parse_obviously(b"", limits)
    for piece in pieces(stream, cuts):
        fed += piece
        commands += feed_as_a_socket_does(parser, piece) if by_socket else parser.feed(piece)
        expected = parse_obviously(fed, limits)
        assert commands == expected.commands
        assert (parser.error and str(parser.error)) == expected.error
        assert parser.buffered_bytes == expected.held_bytes
        assert all(type(word) is bytes for command in commands for word in command)
    return expected


def check_all_cuts(stream: bytes, limits: Limits | None = None) -> Parsed:
    """Whole, byte by byte, and in two at each place."""
    parsed = check(stream, [], limits)
    check(stream, list(range(len(stream))), limits)
    for cut in range(len(stream)):
        check(stream, [cut], limits)
        check(stream, [cut], limits, by_socket=True)
    return parsed


@pytest.fixture
def small_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make small things large, so that short streams reach what only large ones would."""
    monkeypatch.setattr(parser_module, "LARGE_BULK_BYTES_MIN", 5)
    monkeypatch.setattr(parser_module, "LARGE_BULK_STEP_BYTES", 7)
    monkeypatch.setattr(parser_module, "_FAST_CHUNK_BYTES_MAX", 40)
    monkeypatch.setattr(parser_module, "_READER_BYTES_KEPT_MAX", 20)


GOOD: dict[bytes, list[list[bytes]]] = {
    b"": [],
    b"*1\r\n$4\r\nPING\r\n": [[b"PING"]],
    b"*2\r\n$3\r\nGET\r\n$1\r\nk\r\n*1\r\n$4\r\nPING\r\n": [[b"GET", b"k"], [b"PING"]],
    b"*1\r\n$0\r\n\r\n": [[b""]],
    b"*0\r\n*-1\r\n*-7\r\n*1\r\n$1\r\na\r\n*0\r\n*1\r\n$1\r\nb\r\n*-1\r\n": [[b"a"], [b"b"]],
    b"PING\r\n": [[b"PING"]],
    b"PING\n": [[b"PING"]],
    b"\r\n\n \t \r\nPING\r\n\r\n": [[b"PING"]],
    b"\rPING\n": [[b"PING"]],
    b"PING\r\r\n": [[b"PING"]],
    b"+PING\r\n": [[b"+PING"]],
    b"$4\r\nPING\r\n": [[b"$4"], [b"PING"]],
    b">1\r\n$4\r\nPING\r\n": [[b">1"], [b"$4"], [b"PING"]],
    b"*1\r\n$4\r\nPING\r\nPING\r\n*1\r\n$4\r\nPING\r\n": [[b"PING"]] * 3,
    b"PING\r\n*1\r\n$4\r\nPING\r\nPING\r\n": [[b"PING"]] * 3,
    encode(b"PING") + b"~1\r\n$4\r\nPING\r\n": [[b"PING"], [b"~1"], [b"$4"], [b"PING"]],
    encode(b"PING") + b"|1\r\n$1\r\na\r\n$1\r\nb\r\n" + encode(b"PING"): [
        *[[b"PING"], [b"|1"], [b"$1"], [b"a"], [b"$1"], [b"b"], [b"PING"]],
    ],
    encode(b"PING") + b">1\r\n$4\r\nPING\r\n": [[b"PING"], [b">1"], [b"$4"], [b"PING"]],
    encode(b"PING") + b"%1\r\n$1\r\na\r\n$1\r\nb\r\n": [
        *[[b"PING"], [b"%1"], [b"$1"], [b"a"], [b"$1"], [b"b"]],
    ],
    encode(b"PING") + b"$0\r\n\r\n" + encode(b"PING"): [[b"PING"], [b"$0"], [b"PING"]],
    b"\n*1\r\n$4\r\nPING\r\n\r\n*1\r\n$4\r\nPING\r\n": [[b"PING"]] * 2,
    b" *1\r\n": [[b"*1"]],
    # Redis steps over two bytes, whatever they are.
    b"*1\rX$4\rYPINGZZ*1\r\n$1\r\na\r\n": [[b"PING"], [b"a"]],
    b"*1\r\n$4\r\nPING\n\n*1\r\n$1\r\na\r\n": [[b"PING"], [b"a"]],
    # Values that look like protocol.
    encode(b"SET", b"+k", b"=1\r\n*2\r\n$3\r\n") + encode(b"*1", b"$1", b"~1", b">2", b"%", b"|"): [
        [b"SET", b"+k", b"=1\r\n*2\r\n$3\r\n"],
        [b"*1", b"$1", b"~1", b">2", b"%", b"|"],
    ],
    encode(b"a\r", b"\nb", b"\0", b"(5\r\n") + encode(b"x"): [
        [b"a\r", b"\nb", b"\0", b"(5\r\n"],
        [b"x"],
    ],
    encode(b"SET", b"k", b"*123456") + encode(b"GET", b"k") + b"PING\n": [
        [b"SET", b"k", b"*123456"],
        [b"GET", b"k"],
        [b"PING"],
    ],
    encode(b"SET", b"~4294967294", b">999999999\r\n") + encode(b"GET", b"%123456\r", b"|99999"): [
        [b"SET", b"~4294967294", b">999999999\r\n"],
        [b"GET", b"%123456\r", b"|99999"],
    ],
    encode(*[b"%d" % number for number in range(12)]): [[b"%d" % number for number in range(12)]],
}


@pytest.mark.parametrize("stream", GOOD)
def test_good_streams(stream: bytes) -> None:
    parsed = check_all_cuts(stream)
    assert parsed == Parsed(GOOD[stream], None, 0)


# Input, then Redis' text. The end-to-end test sends each to a real redis-server.
BAD: dict[bytes, str] = {
    b"*x\r\n": "invalid multibulk length",
    b"*\r\n": "invalid multibulk length",
    b"*+1\r\n": "invalid multibulk length",
    b"*01\r\n": "invalid multibulk length",
    b"*-0\r\n": "invalid multibulk length",
    b"*-\r\n": "invalid multibulk length",
    b"* 1\r\n": "invalid multibulk length",
    b"*1 \r\n": "invalid multibulk length",
    b"*1\n$4\r\nPING\r\n": "invalid multibulk length",
    b"*2147483648\r\n": "invalid multibulk length",
    b"*9223372036854775808\r\n": "invalid multibulk length",
    b"*-9223372036854775809\r\n": "invalid multibulk length",
    b"*111111111111111111111111\r\n": "invalid multibulk length",
    b"*1\r\n$x\r\n": "invalid bulk length",
    b"*1\r\n$\r\n": "invalid bulk length",
    b"*1\r\n$-1\r\n": "invalid bulk length",
    b"*1\r\n$04\r\nPING\r\n": "invalid bulk length",
    b"*1\r\n$+4\r\nPING\r\n": "invalid bulk length",
    b"*1\r\n$536870913\r\n": "invalid bulk length",
    b"*1\r\n$9223372036854775808\r\n": "invalid bulk length",
    b"*1\r\n$4\nPING\r\n": "invalid bulk length",
    b"*2\r\n$3\r\nGET\r\n:1\r\n": "expected '$', got ':'",
    b"*3\r\n$3\r\nGET\r\n:1\r\n": "expected '$', got ':'",
    b"*1\r\n+PING\r\n": "expected '$', got '+'",
    b"*1\r\n-PING\r\n": "expected '$', got '-'",
    b"*1\r\n*1\r\n$4\r\nPING\r\n": "expected '$', got '*'",
    b"*1\r\n*2147483647\r\n": "expected '$', got '*'",
    b"*1\r\n%1\r\n$1\r\na\r\n$1\r\nb\r\n": "expected '$', got '%'",
    b"*1\r\n%2147483647\r\n": "expected '$', got '%'",
    b"*1\r\n|2147483647\r\n": "expected '$', got '|'",
    b"*1\r\n>999999999\r\n": "expected '$', got '>'",
    b"*1\r\n~4294967294\r\n": "expected '$', got '~'",
    b"*2\r\n$1\r\na\r\n~4294967294\r\n": "expected '$', got '~'",
    b"*2\r\n$1\r\naXX>4294967294\r\n": "expected '$', got '>'",
    b"*1\r\n$4\r\nPING\r\n*1\r\n~4294967294\r\n": "expected '$', got '~'",
    b"*1\r\n=8\r\ntxt:PING\r\n": "expected '$', got '='",
    b"*1\r\n(123\r\n": "expected '$', got '('",
    b"*1\r\n_\r\n": "expected '$', got '_'",
    b"*1\r\n#t\r\n": "expected '$', got '#'",
    b"*1\r\n,1.5\r\n": "expected '$', got ','",
    b"*1\r\n\r\n": "expected '$', got ' '",
    b"*1\r\n\nA\r\n": "expected '$', got ' '",
    b"*1\r\n\xe9\r\n": "expected '$', got '\xe9'",
    b"*1\r\n$4\r\nPING\r\n*1\r\n+PING\r\n": "expected '$', got '+'",
    # hiredis takes these for plain commands: the two bytes after a bulk are not its concern.
    b"*2\r\n$4\r\nECHOXX+PING\r\n": "expected '$', got '+'",
    b"*2\r\n+PING\r\n$3\r\n\r\n$\r\n": "expected '$', got '+'",
    b"*3\r\n$4\r\nPI\r\n$X+PING\r\n=5\r\n$$$:a\r\n": "expected '$', got '+'",
    b'PING "\r\n': "unbalanced quotes in request",
    b'PING "a"b\r\n': "unbalanced quotes in request",
    b"PING 'a\r\n": "unbalanced quotes in request",
    b"PING 'a\\'\r\n": "unbalanced quotes in request",
    b"PING 'a''b'\r\n": "unbalanced quotes in request",
    b'PING "a\\"\r\n': "unbalanced quotes in request",
    b'PING "a\\\r\n': "unbalanced quotes in request",
    b"PING\r\n*1\r\n$4\r\nPING\r\n'\n": "unbalanced quotes in request",
    b"*" + b"1" * 70_000: "too big mbulk count string",
    b"*1\0\r\n" + b"1" * 70_000: "too big mbulk count string",
    b"*1\r\n$" + b"1" * 70_000: "too big bulk count string",
    b"*1\r\n$4\0\r\n" + b"1" * 70_000: "too big bulk count string",
    b"A" * 70_000: "too big inline request",
    b"A\0\r\n" + b"A" * 70_000: "too big inline request",
}
REDIS = Limits(arguments_max=2**31 - 1)

BAD_BEFORE_AUTH: dict[bytes, str] = {
    b"*11\r\n": "unauthenticated multibulk length",
    b"*1048577\r\n": "unauthenticated multibulk length",
    b"*2147483648\r\n": "invalid multibulk length",
    b"*2\r\n$4\r\nAUTH\r\n$16385\r\n": "unauthenticated bulk length",
    b"*2\r\n$4\r\nAUTH\r\n$536870913\r\n": "invalid bulk length",
    encode(b"PING") + encode(*[b"a"] * 11): "unauthenticated multibulk length",
    encode(b"AUTH", b"a" * 16385): "unauthenticated bulk length",
}


@pytest.mark.parametrize("stream", BAD)
def test_bad_streams(stream: bytes) -> None:
    check(stream, [1, 3, 5, 9, 1000, 65_000], REDIS)
    if len(stream) < 1000:
        check_all_cuts(stream, REDIS)
    assert check(stream, [], REDIS).error == BAD[stream]


@pytest.mark.parametrize("stream", BAD_BEFORE_AUTH)
def test_bad_streams_before_auth(stream: bytes) -> None:
    unauthenticated = Limits(arguments_max=2**31 - 1, is_authenticated=False)
    check(stream, list(range(0, len(stream), 999)), unauthenticated)
    if len(stream) < 1000:
        check_all_cuts(stream, unauthenticated)
    assert check(stream, [], unauthenticated).error == BAD_BEFORE_AUTH[stream]


@pytest.mark.parametrize("stream", [stream for stream in {**GOOD, **BAD} if len(stream) < 1000])
@pytest.mark.usefixtures("small_steps")
def test_streams_in_small_steps(stream: bytes) -> None:
    check_all_cuts(stream, REDIS)


def test_nothing_is_parsed_after_an_error() -> None:
    parser = Parser()
    assert parser.feed(encode(b"PING") + b"*x\r\n" + encode(b"PING")) == [[b"PING"]]
    assert str(parser.error) == "invalid multibulk length"
    assert parser.feed(encode(b"PING")) == []
    assert parser.buffered_bytes == 0
    assert parser.bulk_buffer() is None


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (b"", []),
        (b" \t\v\f\r ", []),
        (b"a  b\tc", [b"a", b"b", b"c"]),
        (b"a\vb c\fd", [b"a\vb", b"c\fd"]),
        (b"\va", [b"a"]),
        (b"a\rb", [b"a", b"b"]),
        (b"\"\" ''", [b"", b""]),
        (b'a"b c" d', [b"ab c", b"d"]),
        (b"a'b c'\vd", [b"ab c", b"d"]),
        (rb'"\n\r\t\b\a\x00\xfF\q\"\\"', [b'\n\r\t\b\a\x00\xffq"\\']),
        (rb'"\x4" "\xg1" "\x"', [b"x4", b"xg1", b"x"]),
        (rb"'\n\'\a' x", [rb"\n'\a", b"x"]),
        (rb"'a\\' x", None),  # In single quotes a backslash guards no other backslash.
        (rb"\n \"", None),
        (rb"a\b", [rb"a\b"]),
        (b"\xe9 \xff", [b"\xe9", b"\xff"]),
    ],
)
def test_words_of_an_inline_command(line: bytes, words: list[bytes] | None) -> None:
    assert split_words(line) == words


@given(st.text(alphabet=" \t\v\f\r\"'\\xnar1fGé", max_size=30))
def test_words_are_the_obvious_ones(text: str) -> None:
    line = text.encode("latin-1")
    try:
        expected: list[bytes] | None = obvious_words(line)
    except ProtocolError:
        expected = None
    assert split_words(line) == expected


# ---- Limits.


def test_limits_are_met_exactly() -> None:
    count = Limits(arguments_max=3)
    assert check_all_cuts(encode(b"a", b"b", b"c"), count).error is None
    assert check_all_cuts(encode(*[b""] * 4), count).error == "invalid multibulk length"
    size = Limits(bulk_bytes_max=5)
    assert check_all_cuts(encode(b"a", b"12345"), size).error is None
    assert check_all_cuts(encode(b"a", b"123456"), size).error == "invalid bulk length"
    line = Limits(inline_bytes_max=8)
    assert check_all_cuts(b"1234567\r\n12345678\n", line).error is None
    assert check_all_cuts(b"12345678\r\n", line).error == "too big inline request"


def test_default_limit_of_arguments_is_one_mebi() -> None:
    assert check(b"*1048576\r\n", []).error is None
    assert check(b"*1048577\r\n", []).error == "invalid multibulk length"


def test_before_auth_little_is_allowed() -> None:
    limits = Limits.unauthenticated()
    command = [b"AUTH", b"p" * 16384]
    assert check(encode(*command), [7, 100, 5000], limits).commands == [command]
    assert check(encode(*[b"a"] * 10), [3], limits).error is None


def test_one_command_at_a_time_until_auth() -> None:
    secret = [b"SET", b"k", b"v" * 20_000]
    parser = Parser(Limits.unauthenticated())
    parser.one_at_a_time = True
    stream = encode(b"PING") + b"\r\n*0\r\nAUTH pw\r\n" + encode(*secret) + encode(b"GET", b"k")
    assert parser.feed(stream) == [[b"PING"]]
    assert parser.feed(b"") == [[b"AUTH", b"pw"]]
    assert parser.error is None
    parser.limits = Limits()
    parser.one_at_a_time = False
    assert parser.feed(b"") == [secret, [b"GET", b"k"]]
    assert parser.feed(b"") == []
    assert parser.buffered_bytes == 0


def test_without_auth_the_rest_is_refused() -> None:
    parser = Parser(Limits.unauthenticated())
    parser.one_at_a_time = True
    assert parser.feed(encode(b"PING") + encode(b"SET", b"k", b"v" * 20_000)) == [[b"PING"]]
    assert parser.error is None
    assert parser.feed(b"") == []
    assert str(parser.error) == "unauthenticated bulk length"


@given(st.data())
@settings(max_examples=50)
def test_one_at_a_time_gives_the_same_commands(data: st.DataObject) -> None:
    stream = b"".join(data.draw(st.lists(FRAGMENTS, max_size=8)))
    expected = parse_obviously(stream, SMALL)
    parser = Parser(SMALL)
    parser.one_at_a_time = True
    commands = []
    for piece in pieces(stream, data.draw(cuts_of(stream))):
        found = parser.feed(piece)
        while found:
            assert len(found) == 1
            commands += found
            found = parser.feed(b"")
    assert commands == expected.commands
    assert (parser.error and str(parser.error)) == expected.error


def test_announcements_reserve_nothing() -> None:
    streams = [
        encode(b"PING") + b"*2147483647\r\n",
        b"*2147483647\r\n",
        b"*1\r\n*2147483647\r\n",
        b"*2147483647\r\n$1\r\na\r\n",
        b"*1\r\n$536870912\r\n",
    ]
    for stream in streams:
        tracemalloc.start()
        parser = Parser(REDIS)
        parser.feed(stream)
        view = parser.bulk_buffer()
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert view is None or len(view) <= MIB
        assert peak < 2 * MIB + 200_000


# ---- The fast way is taken when it should be.


@pytest.fixture
def _no_slow_way(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(parser: Parser, data: bytes, **_: object) -> list[list[bytes]]:
        raise AssertionError("the slow way was taken")

    monkeypatch.setattr(Parser, "_feed_slowly", refuse)


@pytest.mark.usefixtures("_no_slow_way")
@pytest.mark.parametrize("value", [b"v" * 100, bytes(range(256)), b"+=~>%|(\r\n", b""])
@pytest.mark.parametrize("count", [1, 2, 16, 200])
def test_canonical_commands_go_the_fast_way(value: bytes, count: int) -> None:
    command = [b"SET", b"key", value]
    parser = Parser()
    for _ in range(3):
        assert parser.feed(encode(*command) * count) == [command] * count


@pytest.mark.parametrize(
    "command",
    [
        [b"SET", b"key", b"v" * 100],
        [b"SET", b"k" * 9, b"v" * 10],
        [b"SET", b"k" * 99, b"v" * 255],
        [b"SET", b"", b"v" * 256],
        [b"MGET", *[b"key"] * 8],
        [b"MGET", *[b"key"] * 9],
        [b"MGET", *[b"key"] * 98],
        [b"MGET", *[b"key"] * 99],
        [b"MGET", *[b"key"] * 300],
        [b"SET", b"+", b"=v"],
    ],
    ids=lambda command: f"{len(command)} of {len(command[-1])}",
)
def test_a_cut_command_is_the_only_slow_one(
    monkeypatch: pytest.MonkeyPatch, command: list[bytes]
) -> None:
    slow = 0
    next_command = Parser._next_command

    def counted(parser: Parser) -> list[bytes] | None:
        nonlocal slow
        found = next_command(parser)
        slow += found is not None
        return found

    monkeypatch.setattr(Parser, "_next_command", counted)
    stream = encode(*command) * 1000
    cuts = list(range(9_999, len(stream) - 1, 9_999))
    parser = Parser()
    commands = []
    for piece in pieces(stream, cuts):
        commands += parser.feed(piece)
    assert commands == [command] * 1000
    length = len(encode(*command))
    assert slow == sum(cut % length != 0 for cut in cuts)


# ---- Large arguments.


@pytest.mark.parametrize("length", [32 * 1024 - 1, 32 * 1024, MIB - 2, MIB - 1, MIB, 8 * MIB])
@pytest.mark.parametrize("chunk_bytes", [1000, 65_536, 3 * MIB])
def test_large_values_between_small_commands(length: int, chunk_bytes: int) -> None:
    value = random.Random(length).randbytes(length)
    command = [b"SET", b"k", value]
    small = [b"GET", b"k"]
    stream = (encode(*small) + encode(*command) + b"PING\r\n" + encode(*small)) * 2
    for feed in (Parser.feed, feed_as_a_socket_does):
        parser = Parser()
        commands: list[list[bytes]] = []
        for start in range(0, len(stream), chunk_bytes):
            commands += feed(parser, stream[start : start + chunk_bytes])
        assert commands == [small, command, [b"PING"], small] * 2
        assert type(commands[1][2]) is bytes
        assert parser.buffered_bytes == 0
        assert parser.bulk_buffer() is None


def test_room_is_made_as_bytes_come() -> None:
    parser = Parser()
    parser.feed(b"*2\r\n$3\r\nSET\r\n$%d\r\n" % (3 * MIB))
    header_bytes = parser.buffered_bytes
    lengths = []
    while (room := parser.bulk_buffer()) is not None:
        lengths.append(len(room))
        commands = parser.bulk_filled(len(room))
    assert lengths == [MIB, MIB, MIB, 2]
    assert commands == [[b"SET", bytes(3 * MIB)]]
    assert header_bytes == len(b"*2\r\n$3\r\nSET\r\n$3145728\r\n")


@pytest.mark.parametrize("length", [32 * 1024, MIB - 2, MIB - 1, MIB, 9 * MIB // 8, 3 * MIB])
@pytest.mark.parametrize("head", [b"h", b"head" * 6, bytes(range(33))])
def test_a_large_value_that_stays_where_it_lies(length: int, head: bytes) -> None:
    value = random.Random(length).randbytes(length)
    parser = Parser()
    for _ in range(2):
        parser.feed(encode(b"SET", b"k", value)[: -2 - length])
        assert parser.before_bulk == [b"SET", b"k"]
        [[name, key, bulk]] = received(parser, value + b"\r\n", as_it_is=True)
        assert (name, key) == (b"SET", b"k")
        assert not isinstance(bulk, bytes)  # But a `LargeBulk`.
        assert len(bulk) == length
        assert bulk[:99] == value[:99]
        record = head + bulk
        assert type(record) is bytes
        assert record == head + value
        assert bulk[7:99] == value[7:99]
        assert parser.is_at_rest
        assert parser.buffered_bytes == 0
        assert parser.feed(encode(b"PING")) == [[b"PING"]]


def test_only_a_last_argument_may_stay() -> None:
    value = bytes(MIB)
    parser = Parser()
    assert parser.before_bulk == []
    parser.feed(encode(b"SET", b"k", value, b"NX")[: -2 - len(value) - len(b"$2\r\nNX\r\n")])
    assert parser.before_bulk == []
    assert received(parser, value + b"\r\n", as_it_is=True) == []
    assert parser.feed(b"$2\r\nNX\r\n") == [[b"SET", b"k", value, b"NX"]]


def received(parser: Parser, data: bytes, *, as_it_is: bool) -> list[list[bytes]]:
    """Put all of `data` into the argument that is arriving."""
    commands: list[list[bytes]] = []
    while data:
        room = parser.bulk_buffer()
        assert room is not None
        count = min(len(room), len(data), 300_000)
        room[:count] = data[:count]
        data = data[count:]
        assert not commands
        commands = parser.bulk_filled(count, as_it_is=as_it_is)
    return commands


def test_views_may_be_kept_dropped_or_asked_for_again() -> None:
    value = random.Random(1).randbytes(2 * MIB)
    stream = encode(b"SET", value)
    parser = Parser()
    header_bytes = len(stream) - len(value) - 2
    assert parser.feed(stream[:header_bytes]) == []
    kept = []
    offset = header_bytes
    commands: list[list[bytes]] = []
    while not commands:
        room = parser.bulk_buffer()
        again = parser.bulk_buffer()  # As after a read that would have blocked.
        assert room is not None
        assert again is not None
        kept += [room, again]
        count = min(len(again), 70_000)
        again[:count] = stream[offset : offset + count]
        commands = parser.bulk_filled(count)
        offset += count
        assert parser.buffered_bytes == (0 if commands else offset)
        if not commands:
            kept.append(parser.bulk_buffer())  # type: ignore[arg-type]
            commands = parser.feed(stream[offset : offset + 999])
            offset += 999
    assert commands == [[b"SET", value]]


@pytest.mark.timeout(30)
def test_cost_is_linear_however_it_is_cut() -> None:
    # Quadratic ways would take minutes here.
    streams = [
        (encode(b"SET", b"v" * (8 * MIB)), 512),
        (encode(b"SET", b"v" * 30_000), 1),
        (encode(*[b"a"] * 50_000), 100),
        (b"PING\n" * 100_000, 5_000_000),
        (encode(b"PING") * 200_000, 5_000_000),
        ((b"PING\n" + encode(b"PING")) * 30_000, 5_000_000),
        (encode(b"SET", b"*123456") * 20_000, 5_000_000),
        (encode(b"SET", b"~123456") * 20_000, 5_000_000),
        (encode(b"SET", b">1234") * 20_000, 5_000_000),
        (b"A" * 65_000 + b"\n", 1),
        (b"*1\0" + b"1" * 65_000, 1),
    ]
    for stream, chunk_bytes in streams:
        parser = Parser()
        found = 0
        for start in range(0, len(stream), chunk_bytes):
            found += len(parser.feed(stream[start : start + chunk_bytes]))
        assert found or parser.buffered_bytes


def test_a_long_kept_rest_is_taken_apart_in_linear_time() -> None:
    parser = Parser()
    parser.one_at_a_time = True
    found = parser.feed(encode(b"PING") * 100_000)
    count = 0
    while found:
        count += 1
        found = parser.feed(b"")
    assert count == 100_000


# ---- Random streams.

WORDS = st.one_of(
    st.sampled_from(
        [b"SET", b"GET", b"", b"v" * 40, b"*123456", b">1234\r\n", b"$1\r\na\r\n", b"+OK\r\n"]
    ),
    st.binary(max_size=12),
    st.text(alphabet="*$+=~%|>(-:1\r\n a", max_size=8).map(str.encode),
)
MULTIBULKS = st.lists(WORDS, max_size=4).map(lambda words: encode(*words))
INLINES = st.text(alphabet=" ab\"'\\x41n\r\t", max_size=12).map(lambda text: text.encode() + b"\n")
ODDITIES = st.sampled_from([*[bad for bad in BAD if len(bad) < 100], *GOOD, b"\n", b"*0\r\n"])
FRAGMENTS = st.one_of(MULTIBULKS, MULTIBULKS, INLINES, ODDITIES)


def cuts_of(stream: bytes) -> st.SearchStrategy[list[int]]:
    return st.lists(st.integers(min_value=0, max_value=len(stream)), max_size=6)


@given(st.data())
@settings(max_examples=300, deadline=None)
def test_random_streams(data: st.DataObject) -> None:
    stream = b"".join(data.draw(st.lists(FRAGMENTS, max_size=8)))
    check(stream, data.draw(cuts_of(stream)), SMALL, by_socket=data.draw(st.booleans()))


def mutated(stream: bytes, rng: random.Random) -> bytes:
    data = bytearray(stream)
    for _ in range(rng.randrange(4)):
        offset = rng.randrange(len(data) + 1)
        chars = rng.choice([b"\r", b"\n", b"\r\n", b"*", b"$", b"+", b"=", b"(", b"~", b"1", b"\0"])
        match rng.randrange(4):
            case 0:
                data[offset:offset] = chars
            case 1:
                data[offset : offset + len(chars)] = chars
            case 2:
                del data[offset : offset + rng.randrange(3)]
            case 3:
                length = rng.randrange(20)
                data[offset:offset] = data[offset : offset + length]
    return bytes(data)


def random_stream(rng: random.Random) -> bytes:
    parts = []
    for _ in range(rng.randrange(1, 6)):
        words = [rng.choice([b"ECHO", b"a", b"", b"x" * 30]) for _ in range(rng.randrange(4))]
        parts.append(encode(*words) if rng.random() < 0.8 else b" ".join(words) + b"\r\n")
    return mutated(b"".join(parts), rng)


@pytest.mark.parametrize("seed", range(4))
def test_mutated_streams(seed: int) -> None:
    rng = random.Random(seed)
    broken = 0
    for _ in range(1000):
        stream = random_stream(rng)
        cuts = [rng.randrange(len(stream) + 1) for _ in range(rng.randrange(4))]
        broken += check(stream, cuts, SMALL, by_socket=rng.random() < 0.5).error is not None
    assert 100 < broken < 900


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.usefixtures("small_steps")
def test_mutated_streams_in_small_steps(seed: int) -> None:
    test_mutated_streams(seed + 100)


# ---- Costs, printed by `python -m tests.respkv.test_parser`.


@pytest.mark.parametrize("seed", range(300))
def test_chunks_of_many_sessions_at_once(seed: int) -> None:
    """Either the one command in each chunk, as its own parser would give it, or nothing."""
    rng = random.Random(f"lone-{seed}")
    names = (
        b"GET",
        b"SET",
        b"",
        b"*",
        b"$3\r\n",
        b"a+b",
        b"=(~|>%",
        b"x" * 300,
        b"a*1\r\n$4\r\nPING",
    )
    chunks = []
    for _ in range(rng.randrange(1, 40)):
        chunk = encode(*rng.choices(names, k=rng.choice((1, 2, 3, 3, 12))))
        if rng.random() < 0.02:
            chunk = mutated(chunk, rng)
        if rng.random() < 0.02:
            chunk = chunk[: rng.randrange(len(chunk))]
        if rng.random() < 0.02:
            chunk += rng.choice((b"\r\n", b"PING\r\n", encode(b"PING"), b"x"))
        if chunk and may_be_lone(chunk):
            chunks.append(chunk)
    if not chunks:
        return
    alone = []
    is_clean = True
    for chunk in chunks:
        parser = Parser()
        alone.append(parser.feed(chunk))
        is_clean = is_clean and parser.is_at_rest
    commands = parse_lone(chunks)
    if commands is not None:
        assert is_clean
        assert [[command] for command in commands] == alone
    elif is_clean:  # It gives up for a reason only.
        assert (
            any(len(each) != 1 for each in alone) or [encode(*each[0]) for each in alone] != chunks
        )
    # Nothing of it is left for the next.
    assert Parser().feed(encode(b"PING")) == [[b"PING"]]


def test_what_ends_in_another_chunk_is_not_taken_for_a_command() -> None:
    halves = [b"*2\r\n$3\r\nGET\r\n$5\r\nab", b"*1\r\n$1\r\nx\r\n"]
    assert parse_lone(halves) is None
    assert parse_lone([encode(b"PING"), encode(b"PING") + b"x"]) is None
    assert parse_lone([encode(b"GET", b"a")[:-1], b"*1\n$1\r\nx\r\n"]) is None
    # A second star is no second command, if no line break is before it; and hiredis asks for none behind a value.
    begun = b"*2\r\n$3\r\nGET\r\n$5\r\n"
    ended = b"*abcdxx*1\r\n$4\r\nPING\r\n"
    assert may_be_lone(begun)
    assert may_be_lone(ended)
    assert parse_lone([begun, ended]) is None
    value = [encode(b"SET", b"key", b"a*1\r\n$4\r\nPING\r\n"), encode(b"PING")]
    assert parse_lone(value) == [[b"SET", b"key", b"a*1\r\n$4\r\nPING\r\n"], [b"PING"]]


def best_us(run: Callable[[], object], count: int) -> float:
    """The least processor time of several runs, in microseconds for each of `count` things."""
    times = []
    for _ in range(15):
        start = time.process_time()
        run()
        times.append(time.process_time() - start)
    return min(times) * 1e6 / count


def print_costs() -> None:
    for name, value in (("text", b"v" * 100), ("binary", bytes(range(100)))):
        for pipeline in (1, 16, 500):
            stream = encode(b"SET", b"key:000000012345", value) * pipeline
            rounds = 20_000 // pipeline
            chunks = list(pieces(stream, list(range(65_536, len(stream), 65_536)))) * rounds
            cost = best_us(partial(feed_all, chunks), rounds * pipeline)
            print(f"SET of 100 bytes ({name}), pipeline {pipeline:3}: {cost:6.3f} us a command")
    for size in (1, 8, 64):
        for step in (65_536, MIB):
            cost = best_us(partial(receive, size * MIB, step), size)
            print(f"value of {size} MiB, {step} at once: {cost:6.0f} us a MiB")


def feed_all(chunks: list[bytes]) -> None:
    feed = Parser().feed
    for chunk in chunks:
        feed(chunk)


def receive(length: int, step: int) -> None:
    source = bytes(step)
    parser = Parser()
    parser.feed(b"*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$%d\r\n" % length)
    while (room := parser.bulk_buffer()) is not None:
        count = min(step, len(room))
        room[:count] = source[:count]
        parser.bulk_filled(count)


if __name__ == "__main__":
    print_costs()
