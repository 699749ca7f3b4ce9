"""The parser agrees with a real redis-server 7.0 on the same bytes: commands and error texts."""

import random
import socket
from collections.abc import Iterator

import pytest

from respkv.parser import Limits, Parser
from tests.respkv.test_parser import (
    BAD,
    BAD_BEFORE_AUTH,
    GOOD,
    encode,
    random_stream,
)
from tests.servers import RunningServer, redis_server

PREFIX = "ERR Protocol error: "
# Redis' own, so that only the parsing is compared.
REDIS = Limits(arguments_max=2**31 - 1)


@pytest.fixture(scope="module")
def redis() -> Iterator[RunningServer]:
    with redis_server() as server:
        yield server


@pytest.fixture(scope="module")
def redis_with_password() -> Iterator[RunningServer]:
    with redis_server() as server:
        with Replies(server) as replies:
            replies.send(b"CONFIG SET requirepass secret\n")
            assert replies.next() == "OK"
        yield server


class Replies:
    """One connection to a server, and what it has answered."""

    def __init__(self, server: RunningServer) -> None:
        self._socket = socket.create_connection((server.host, server.port), timeout=10)
        self._file = self._socket.makefile("rb")

    def __enter__(self) -> "Replies":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
        self._socket.close()

    def send(self, data: bytes) -> None:
        self._socket.sendall(data)

    def next(self) -> object:
        """The next reply, or None at the end of the connection. A byte is a character here."""
        try:
            line = self._file.readline()
        except ConnectionResetError:
            return None
        kind, text = line[:1], line[1:-2].decode("latin-1")
        match kind:
            case b"":
                return None
            case b"+" | b"-":
                return text
            case b":":
                return int(text)
            case b"$" if text == "-1":
                return "nil"
            case b"$":
                return self._file.read(int(text) + 2)[:-2].decode("latin-1")
            case b"*":
                return [self.next() for _ in range(int(text))]
            case _:
                raise AssertionError(line)


def assert_redis_agrees(server: RunningServer, stream: bytes, limits: Limits) -> None:
    """As many replies as commands, then our error and the end, or neither."""
    parser = Parser(limits)
    commands = parser.feed(stream)
    with Replies(server) as replies:
        replies.send(stream)
        for command in commands:
            reply = replies.next()
            assert reply is not None, command
            assert not str(reply).startswith(PREFIX), command
        if parser.error is not None:
            assert replies.next() == f"{PREFIX}{parser.error}"
            assert replies.next() is None
        elif not parser.buffered_bytes:
            # At a boundary on both sides: the next command is answered next.
            replies.send(encode(b"ECHO", b"boundary"))
            reply = replies.next()
            assert reply == "boundary" or str(reply).startswith("NOAUTH")


@pytest.mark.parametrize("stream", BAD)
def test_errors(redis: RunningServer, stream: bytes) -> None:
    assert_redis_agrees(redis, stream, REDIS)


@pytest.mark.parametrize("stream", BAD_BEFORE_AUTH)
def test_errors_before_auth(redis_with_password: RunningServer, stream: bytes) -> None:
    limits = Limits(arguments_max=2**31 - 1, is_authenticated=False)
    assert_redis_agrees(redis_with_password, stream, limits)


@pytest.mark.parametrize("stream", GOOD)
def test_commands(redis: RunningServer, stream: bytes) -> None:
    assert_redis_agrees(redis, stream, REDIS)


def test_error_text_is_the_table(redis: RunningServer) -> None:
    """So that the table itself is checked, and not only our reading of it."""
    for stream, text in BAD.items():
        with Replies(redis) as replies:
            replies.send(stream)
            last = None
            while (reply := replies.next()) is not None:
                last = reply
            assert last == PREFIX + text, stream[:100]


@pytest.mark.parametrize("byte", [byte for byte in range(1, 256) if byte != ord("$")])
def test_any_wrong_byte_is_quoted_alike(redis: RunningServer, byte: int) -> None:
    assert_redis_agrees(redis, b"*1\r\n%c1\r\n" % byte, REDIS)


def test_words_of_inline_commands(redis: RunningServer) -> None:
    rng = random.Random(7)
    broken = 0
    with Replies(redis) as replies:
        for _ in range(2000):
            line = bytes(rng.choices(b" \t\v\f\r\"'\\xnar1fG\xe9", k=rng.randrange(12)))
            line = b"RPUSH words first " + line + b"\n"
            parser = Parser()
            commands = parser.feed(line)
            if parser.error is not None:
                broken += 1
                assert_redis_agrees(redis, line, REDIS)
                continue
            replies.send(b"DEL words\n" + line + b"LRANGE words 0 -1\n")
            assert isinstance(replies.next(), int)
            words = [word.decode("latin-1") for word in commands[0][2:]]
            assert replies.next() == len(words)
            assert replies.next() == words
    assert 200 < broken < 1800


def test_mutated_streams(redis: RunningServer) -> None:
    rng = random.Random(11)
    for _ in range(1500):
        assert_redis_agrees(redis, random_stream(rng), REDIS)
