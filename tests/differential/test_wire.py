"""The tester's RESP reader: whole, byte by byte, cut anywhere; what is no RESP is refused."""

from __future__ import annotations

import socket

import pytest

from .wire import (
    Answer,
    Closed,
    Connection,
    Reply,
    ReplyReader,
    Unanswered,
    WireError,
    encode,
    quote,
    render,
)

REPLIES = (
    (b"+OK\r\n", "+OK"),
    (b"-ERR no\r\n", "-ERR no"),
    (b":-12\r\n", ":-12"),
    (b"$0\r\n\r\n", '$""'),
    (b"$4\r\na\r\nb\r\n", '$"a\\x0d\\x0ab"'),
    (b"$-1\r\n", "nil"),
    (b"*-1\r\n", "nil"),
    (b"_\r\n", "nil"),
    (b"*0\r\n", "*[]"),
    (b"*2\r\n$1\r\na\r\n*1\r\n:1\r\n", "*[$a, *[:1]]"),
    (b"%1\r\n+k\r\n#t\r\n", "%[+k, #t]"),
    (b"~2\r\n:1\r\n:2\r\n", "~[:1, :2]"),
    (b">2\r\n+invalidate\r\n_\r\n", ">[+invalidate, nil]"),
    (b",1.5\r\n", ",1.5"),
    (b"(123456789012345678901234567890\r\n", "(123456789012345678901234567890"),
    (b"=7\r\ntxt:abc\r\n", "=txt:abc"),
    (b"!5\r\nERR x\r\n", "!ERR x"),
)


@pytest.mark.parametrize(("raw", "shown"), REPLIES)
def test_a_reply_is_read_whole_and_in_pieces(raw: bytes, shown: str) -> None:
    for cut in range(len(raw) + 1):
        reader = ReplyReader()
        reader.feed(raw[:cut])
        early = reader.next()
        reader.feed(raw[cut:] + b"+next\r\n")
        reply = early or reader.next()
        assert reply is not None
        assert (early is not None) == (cut == len(raw))
        assert reply.raw == raw
        assert render(reply) == shown
        assert render(reader.next() or reply) == "+next"


def test_all_replies_are_read_byte_by_byte() -> None:
    reader = ReplyReader()
    read: list[bytes] = []
    for byte in b"".join(raw for raw, _ in REPLIES):
        reader.feed(bytes([byte]))
        while reply := reader.next():
            read.append(reply.raw)
    assert read == [raw for raw, _ in REPLIES]


def test_a_large_reply_is_remembered_but_not_mistaken() -> None:
    large = b"*8000\r\n" + b"$3\r\nabc\r\n" * 8000
    other = b"*8000\r\n" + b"$3\r\nabc\r\n" * 7999 + b"$3\r\nabd\r\n"
    reader = ReplyReader()
    for raw in (large, large, other, large):
        reader.feed(raw[:50_000])
        assert reader.next() is None
        reader.feed(raw[50_000:] + b"+OK\r\n")
        reply = reader.next()
        assert reply is not None
        assert reply.raw == raw
        assert render(reader.next() or reply) == "+OK"


@pytest.mark.parametrize(
    "raw",
    [
        b"?\r\n",
        b"$x\r\n",
        b"$-2\r\n",
        b"*1\r\n@\r\n",
        b"$1\r\nabc",
        b"$99999999999\r\n",
        b"*1\r\n" * 50,
        b"+" + b"x" * 70_000,
    ],
)
def test_what_is_no_reply_is_refused(raw: bytes) -> None:
    reader = ReplyReader()
    reader.feed(raw)
    with pytest.raises(WireError):
        reader.next()


def test_text_pairs_and_items() -> None:
    reader = ReplyReader()
    reader.feed(b"=7\r\ntxt:abc\r\n*4\r\n+a\r\n:1\r\n+b\r\n*0\r\n")
    verbatim, flat = reader.next(), reader.next()
    assert verbatim is not None
    assert flat is not None
    assert verbatim.text == b"abc"
    assert {name: str(value) for name, value in flat.pairs.items()} == {b"a": ":1", b"b": "*[]"}


def test_a_request_is_an_array_of_bulk_strings() -> None:
    assert encode([b"SET", b"", b"\r\n"]) == b"*3\r\n$3\r\nSET\r\n$0\r\n\r\n$2\r\n\r\n\r\n"


def test_an_argument_is_quoted_where_it_must_be() -> None:
    assert [quote(a) for a in (b"plain", b"", b"a b", b'"\\\x00')] == [
        "plain",
        '""',
        '"a b"',
        '"\\"\\\\\\x00"',
    ]


@pytest.fixture
def pair() -> tuple[Connection, socket.socket]:
    listener = socket.create_server(("127.0.0.1", 0))
    connection = Connection(*listener.getsockname(), timeout_s=0.05)
    server, _ = listener.accept()
    listener.close()
    return connection, server


def test_pushes_are_kept_apart_from_the_reply_they_precede(
    pair: tuple[Connection, socket.socket],
) -> None:
    connection, server = pair
    server.sendall(b">1\r\n+one\r\n+first\r\n+second\r\n>1\r\n+late\r\n")
    push = Reply(">", [Reply("+", b"one", b"+one\r\n")], b">1\r\n+one\r\n")
    assert connection.receive() == Answer(Reply("+", b"first", b"+first\r\n"), (push,))
    assert connection.receive() == Answer(Reply("+", b"second", b"+second\r\n"))


def test_a_server_that_says_nothing_is_noticed(pair: tuple[Connection, socket.socket]) -> None:
    connection, server = pair
    server.sendall(b"$5\r\nab")
    with pytest.raises(Unanswered) as caught:
        connection.receive()
    assert caught.value.got == b"$5\r\nab"


def test_a_server_that_hangs_up_is_noticed(pair: tuple[Connection, socket.socket]) -> None:
    connection, server = pair
    server.sendall(b"+bye\r\n$3\r\n")
    server.close()
    assert connection.receive().reply.text == b"bye"
    assert connection.await_close() == b"$3\r\n"
    with pytest.raises(Closed):
        connection.receive()
