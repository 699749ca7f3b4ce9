"""The benchmarks' own client."""

import pytest

from bench.connection import (
    Connection,
    ConnectionEnded,
    ErrorAnswered,
    Reply,
    encode_command,
    parse_info,
)
from tests.bench.scripted_server import scripted


def test_commands_are_arrays_of_bulk_strings() -> None:
    assert encode_command(b"SET", b"k", b"") == b"*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$0\r\n\r\n"


def test_info_is_read_without_headings() -> None:
    text = b"# Stats\r\nkeyspace_hits:12\r\n\r\nrole:master\r\nlist:a:b\r\n"
    assert parse_info(text) == {"keyspace_hits": "12", "role": "master", "list": "a:b"}


@pytest.mark.parametrize("is_cut", [False, True])
@pytest.mark.parametrize(
    ("wire", "reply"),
    [
        (b"+PONG\r\n", b"PONG"),
        (b":-12\r\n", -12),
        (b"$-1\r\n", None),
        (b"$0\r\n\r\n", b""),
        (b"$7\r\na\r\nb\r\nc\r\n", b"a\r\nb\r\nc"),
    ],
)
def test_replies_are_read_whole_and_byte_by_byte(wire: bytes, reply: Reply, is_cut: bool) -> None:
    pieces = [bytes([byte]) for byte in wire] if is_cut else [wire]
    with (
        scripted([*pieces, b"+next\r\n"], closes=True) as address,
        Connection(address) as connection,
    ):
        assert connection.command(b"PING") == reply
        assert connection.read_reply() == b"next"


def test_an_error_is_raised_with_its_text() -> None:
    with (
        scripted([b"-ERR bad \xff\r\n"], closes=True) as address,
        Connection(address) as connection,
        pytest.raises(ErrorAnswered, match=r"^ERR bad \\xff$"),
    ):
        connection.command(b"PING")


@pytest.mark.parametrize("wire", [b"", b"+PO", b"$5\r\nab"])
def test_an_end_within_a_reply_is_said(wire: bytes) -> None:
    with (
        scripted([wire], closes=True) as address,
        Connection(address) as connection,
        pytest.raises(ConnectionEnded),
    ):
        connection.command(b"PING")
