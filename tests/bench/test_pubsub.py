"""The generator of published messages: it must notice what is missing, doubled or out of order."""

from __future__ import annotations

import socket

import pytest

from bench import pubsub
from bench.connection import ConnectionEnded, ErrorAnswered, encode_command
from bench.pubsub import Expected, Listener, Measured, Misheard, Publisher, parse_options, table


def message(payload: bytes) -> bytes:
    return encode_command(b"message", pubsub.CHANNEL, payload)


def heard(*payloads: bytes) -> Listener:
    """A listener that expects 0, 1 and 2 and receives these."""
    ours, theirs = socket.socketpair()
    expected = Expected()
    for number in range(3):
        expected.add(b"%d" % number)
    listener = Listener(ours, expected)
    with ours, theirs:
        theirs.sendall(b"".join(map(message, payloads)))
        listener.receive()
    return listener


def test_messages_in_order_are_counted() -> None:
    assert not heard(b"0", b"1").has_all
    assert heard(b"0", b"1", b"2").has_all


@pytest.mark.parametrize(
    "payloads", [(b"1",), (b"0", b"0"), (b"0", b"2"), (b"0", b"1", b"2", b"2")]
)
def test_anything_else_ends_the_run(payloads: tuple[bytes, ...]) -> None:
    with pytest.raises(Misheard):
        heard(*payloads)


def test_a_closed_listener_ends_the_run() -> None:
    ours, theirs = socket.socketpair()
    with ours:
        theirs.close()
        with pytest.raises(ConnectionEnded):
            Listener(ours, Expected()).receive()


def test_an_answer_that_is_not_the_number_of_listeners_ends_the_run() -> None:
    expected = Expected()
    publisher = Publisher([], expected, size=20)
    ours, theirs = socket.socketpair()
    publisher._sockets = [ours]
    with ours, theirs:
        theirs.sendall(b":7\r\n:7\r\n")
        publisher.say(2, 7)
        assert publisher.count == 2
        assert expected.stream == message(b"0000000000..........") + message(
            b"0000000001.........."
        )
        theirs.sendall(b":6\r\n")
        with pytest.raises(ErrorAnswered):
            publisher.say(1, 7)


def test_the_table_shows_costs_of_messages_and_deliveries() -> None:
    runs = [Measured("redis", 10, 1, 1000, cpu_s, 2.0) for cpu_s in (0.1, 0.2, 0.3)]
    line = table(runs).splitlines()[-1].split()
    assert line == ["redis", "10", "1", "200.0", "(100.0-300.0)", "20.00", "(10.00-30.00)", "500"]


def test_options() -> None:
    options = parse_options(["--listeners", "5,6", "--only", "cluster"])
    assert (options.listeners, options.only, options.cluster_listeners) == ([5, 6], "cluster", 1000)
