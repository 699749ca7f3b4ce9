"""The generator against a server that answers, pauses, or is silent."""

import contextlib
import dataclasses
import socket
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from bench import openloop_generator
from bench.connection import Address
from bench.openloop_generator import Generator, GeneratorFailed, GeneratorProcess
from bench.openloop_histogram import merged, percentile_ms
from bench.openloop_schedule import Load

LOAD = Load(
    rate=500,
    seconds=0.4,
    key_count=100,
    value_bytes=64,
    hot_share=0.0,
    hot_keys=1,
    write_share=1.0,
    connection_count=1,
)

Answer = Callable[[socket.socket, int], None]
"""Is called with the connection and how many commands have just come."""


@contextlib.contextmanager
def serving(answer: Answer, connection_count: int = 1) -> Iterator[Address]:
    def serve_one(connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            while data := connection.recv(1 << 16):
                answer(connection, data.count(b"SET"))

    def serve() -> None:
        for _ in range(connection_count):
            connection, _ = listener.accept()
            threading.Thread(target=serve_one, args=(connection,), daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=serve, daemon=True).start()
        yield listener.getsockname()


def at_once(connection: socket.socket, count: int) -> None:
    connection.sendall(b"+OK\r\n" * count)


def test_everything_is_sent_and_answered() -> None:
    with serving(at_once) as address:
        sent = Generator(address, LOAD).run()
    assert (sent.sent_count, sent.answered_count, sent.unanswered_count) == (200, 200, 0)
    assert sum(merged(sent.windows).values()) == sum(sent.writes.values()) == 200
    assert sent.reads == {}
    assert sum(sent.lags.values()) == 400
    assert sent.cpu_s > 0


def test_a_pause_shows_in_all_requests_that_were_due_in_it() -> None:
    paused = threading.Event()

    def pausing(connection: socket.socket, count: int) -> None:
        if not paused.is_set():
            paused.set()
            time.sleep(0.2)
        at_once(connection, count)

    with serving(pausing) as address:
        sent = Generator(address, LOAD).run()
    # A closed loop would see one slow answer. Here half of the run was due while nothing came back.
    late = sum(count for bound, count in sent.writes.items() if bound > 50_000)
    assert late >= 60
    assert (percentile_ms(sent.writes, 1.0) or 0) >= 190


def test_what_is_never_answered_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openloop_generator, "DRAIN_S", 0.1)
    with serving(lambda connection, count: None) as address:
        sent = Generator(address, LOAD).run()
    assert (sent.answered_count, sent.unanswered_count) == (0, 200)
    assert min(merged(sent.windows)) >= 100_000


def test_it_gives_up_when_nothing_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openloop_generator, "DRAIN_S", 0.1)
    monkeypatch.setattr(openloop_generator, "BACKLOG_BYTES_MAX", 1000)

    def never_reading(connection: socket.socket, count: int) -> None:
        time.sleep(2)

    big = dataclasses.replace(LOAD, value_bytes=100_000)
    with serving(never_reading) as address:
        sent = Generator(address, big).run()
    assert sent.gave_up
    assert sent.sent_count < 200


def test_errors_and_missed_keys_are_counted() -> None:
    def odd(connection: socket.socket, count: int) -> None:
        connection.sendall(b"-ERR no\r\n" * count)

    with serving(odd) as address:
        sent = Generator(address, LOAD).run()
    assert (sent.error_count, sent.first_error) == (200, "ERR no")

    with serving(lambda c, n: c.sendall(b"$-1\r\n" * n)) as address:
        assert Generator(address, LOAD).run().missed_count == 200


def test_a_closed_connection_ends_it() -> None:
    def closing(connection: socket.socket, count: int) -> None:
        connection.shutdown(socket.SHUT_RDWR)

    with serving(closing) as address, pytest.raises((GeneratorFailed, OSError)):
        Generator(address, LOAD).run()


def test_in_a_process_of_its_own() -> None:
    load = dataclasses.replace(LOAD, connection_count=3)
    with serving(at_once, 3) as address:
        sent = GeneratorProcess(address, load).result()
    assert (sent.sent_count, sent.answered_count) == (200, 200)


def test_a_process_that_cannot_connect_says_so() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = listener.getsockname()
    with pytest.raises(GeneratorFailed, match="ConnectionRefusedError"):
        GeneratorProcess(address, LOAD)
