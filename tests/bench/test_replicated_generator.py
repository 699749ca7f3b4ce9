"""The generator against a server that answers, answers badly, pauses, or is silent."""

import dataclasses
import socket
import time

import pytest

from bench import replicated_generator
from bench.openloop_generator import GeneratorFailed
from bench.replicated_generator import Generator, Generators
from bench.replicated_load import Job, Pipelines, Wait
from bench.replicated_route import everything_at
from tests.bench.test_openloop_generator import at_once, serving

JOB = Job("SET", 1, None, (), 2, 100, 64, 0.2, None, 1)


def job(address: tuple[str, int], **changes: object) -> Job:
    changed = dataclasses.replace(JOB, **changes)  # type: ignore[arg-type]
    return dataclasses.replace(changed, route=everything_at(address))


@pytest.mark.parametrize("pipeline", [1, 16])
def test_a_closed_loop_gets_all_its_answers(pipeline: int) -> None:
    with serving(at_once, 2) as address:
        outcome = Generator(job(address, pipeline=pipeline)).run()
    assert outcome.answered_count > 100
    assert outcome.answered_count % pipeline == 0
    assert sum(outcome.latencies.values()) == outcome.answered_count
    assert (outcome.error_count, outcome.unanswered_count, outcome.missed_count) == (0, 0, 0)
    assert 0.2 <= outcome.wall_s < 1
    assert outcome.cpu_s > 0


def test_a_closed_loop_has_one_pipeline_under_way_for_each_connection() -> None:
    seen: list[int] = []

    def slow(connection: socket.socket, count: int) -> None:
        seen.append(count)
        time.sleep(0.02)
        at_once(connection, count)

    with serving(slow, 2) as address:
        outcome = Generator(job(address, pipeline=4)).run()
    assert set(seen) == {4}
    assert outcome.answered_count == sum(seen) <= 2 * 4 * 11
    assert min(outcome.latencies) >= 20_000


def test_a_fixed_rate_sends_what_is_due() -> None:
    with serving(at_once, 2) as address:
        outcome = Generator(job(address, pipeline=4, rate=4000)).run()
    assert outcome.answered_count == 800
    assert sum(outcome.lags.values()) == 200


def test_at_a_fixed_rate_a_pause_delays_all_that_was_due_in_it() -> None:
    paused: list[bool] = []

    def pausing(connection: socket.socket, count: int) -> None:
        if not paused:
            paused.append(True)
            time.sleep(0.15)
        at_once(connection, count)

    with serving(pausing) as address:
        outcome = Generator(job(address, rate=1000, connection_count=1)).run()
    late = sum(count for bound, count in outcome.latencies.items() if bound > 50_000)
    assert outcome.answered_count == 200
    assert 60 <= late <= 150


def test_a_late_generator_counts_from_when_it_was_due(monkeypatch: pytest.MonkeyPatch) -> None:
    encode, called = Pipelines.next, []

    def slow_once(pipelines: Pipelines, address: tuple[str, int]) -> bytes:
        called.append(address)
        if len(called) == 1:
            time.sleep(0.1)
        return encode(pipelines, address)

    monkeypatch.setattr(Pipelines, "next", slow_once)
    with serving(at_once, 2) as address:
        outcome = Generator(job(address, rate=1000)).run()
    assert sum(count for bound, count in outcome.latencies.items() if bound > 50_000) >= 40
    assert sum(count for bound, count in outcome.lags.items() if bound > 50_000) >= 40


def test_a_set_is_complete_when_its_wait_is_answered() -> None:
    def waiting(connection: socket.socket, count: int) -> None:
        connection.sendall(b"+OK\r\n" * 2)
        time.sleep(0.05)
        connection.sendall(b":2\r\n")

    with serving(waiting, 2) as address:
        outcome = Generator(job(address, pipeline=2, wait=Wait(16, 100))).run()
    assert outcome.error_count == 0
    assert min(outcome.latencies) >= 50_000


@pytest.mark.parametrize(
    ("changes", "answer", "words"),
    [
        ({}, b"-ERR no\r\n", "SET: ERR no"),
        ({}, b"$-1\r\n", "SET: None"),
        ({"command": "GET"}, b"$3\r\nabc\r\n", "GET: b'abc'"),
        ({"command": "GET"}, b"-TRYAGAIN\r\n", "GET: TRYAGAIN"),
        ({"wait": Wait(1, 5)}, b"+OK\r\n:0\r\n", "WAIT: N"),
    ],
)
def test_wrong_answers_are_errors(changes: dict[str, object], answer: bytes, words: str) -> None:
    with serving(lambda connection, count: connection.sendall(answer), 2) as address:
        outcome = Generator(job(address, **changes)).run()
    assert outcome.error_count == outcome.answered_count > 0
    assert dict(outcome.errors) == {words: outcome.error_count}
    assert outcome.hit_count == 0


@pytest.mark.parametrize(
    ("answer", "is_hit"), [(b"$64\r\n%b\r\n" % (b"v" * 64), True), (b"$-1\r\n", False)]
)
def test_found_and_missed_keys_are_counted(answer: bytes, is_hit: bool) -> None:
    with serving(lambda connection, count: connection.sendall(answer), 2) as address:
        outcome = Generator(job(address, command="GET")).run()
    assert outcome.error_count == 0
    found = (outcome.answered_count, 0) if is_hit else (0, outcome.answered_count)
    assert (outcome.hit_count, outcome.missed_count) == found


def test_what_is_not_answered_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replicated_generator, "DRAIN_S", 0.1)

    def half(connection: socket.socket, count: int) -> None:
        connection.sendall(b"+OK\r\n")

    with serving(half, 2) as address:
        outcome = Generator(job(address, pipeline=4)).run()
    assert (outcome.answered_count, outcome.unanswered_count) == (2, 6)


def test_answers_in_pieces() -> None:
    def pieces(connection: socket.socket, count: int) -> None:
        for at in range(5):
            connection.sendall(b"+OK\r\n"[at : at + 1])
            time.sleep(0.001)

    with serving(pieces, 2) as address:
        outcome = Generator(job(address)).run()
    assert outcome.answered_count > 5
    assert outcome.error_count == 0


@pytest.mark.parametrize("answer", [b"+OK\r\n+OK\r\n", None])
def test_a_broken_connection_ends_it(answer: bytes | None) -> None:
    def odd(connection: socket.socket, count: int) -> None:
        if answer is None:
            connection.shutdown(socket.SHUT_RDWR)
        else:
            connection.sendall(answer)

    with serving(odd, 2) as address, pytest.raises((GeneratorFailed, OSError)):
        Generator(job(address)).run()


def test_processes_share_a_job_and_report_failures() -> None:
    def babbling(connection: socket.socket, count: int) -> None:
        time.sleep(0.1)  # Until all have been accepted.
        connection.sendall(b"what\r\n")

    with Generators(2) as generators:
        with serving(at_once, 4) as address:
            outcome = generators.run(job(address, connection_count=4))
        assert outcome.answered_count > 100
        assert outcome.error_count == 0
        with (
            serving(babbling, 4) as address,
            pytest.raises(GeneratorFailed, match="not an answer"),
        ):
            generators.run(job(address, connection_count=4))
