"""What a load consists of, and what answers it expects."""

import dataclasses

import hiredis
import pytest

from bench.replicated_load import (
    ERROR_TEXTS_MAX,
    OK,
    VALUE,
    WAITED,
    Job,
    Outcome,
    Pipelines,
    Wait,
    divided,
    pattern,
    together,
)
from bench.replicated_route import SlotRange, everything_at
from cluster.slot import slot_of

A, B = ("127.0.0.1", 7100), ("127.0.0.1", 7101)
JOB = Job("SET", 4, None, everything_at(A), 10, 100, 8, 1.0, None, 1)


def commands(data: bytes) -> list[list[bytes]]:
    reader = hiredis.Reader()
    reader.feed(data)
    found = []
    while (one := reader.gets()) is not False:
        found.append(one)
    return found


@pytest.mark.parametrize(
    ("command", "wait", "answers"),
    [
        ("GET", None, [(VALUE, 1)] * 4),
        ("SET", None, [(OK, 1)] * 4),
        ("SET", Wait(1, 9), [(OK, 0), (WAITED, 1)] * 4),
        ("SET", Wait(16, 9), [(OK, 0)] * 4 + [(WAITED, 4)]),
        ("SET", Wait(3, 9), [(OK, 0)] * 3 + [(WAITED, 3), (OK, 0), (WAITED, 1)]),
    ],
)
def test_the_pattern_names_an_answer_for_each_command(
    command: str, wait: Wait | None, answers: list[tuple[int, int]]
) -> None:
    job = dataclasses.replace(JOB, command=command, wait=wait)
    assert pattern(job) == answers
    kinds = {b"GET": VALUE, b"SET": OK, b"WAIT": WAITED}
    sent = [kinds[words[0]] for words in commands(Pipelines(job).next(A))]
    assert sent == [kind for kind, _ in answers]
    assert sum(complete for _, complete in answers) == job.pipeline


@pytest.mark.parametrize("pipeline", [1, 4])
def test_a_set_has_a_key_and_a_value_of_the_length_asked_for(pipeline: int) -> None:
    job = dataclasses.replace(JOB, pipeline=pipeline)
    sent = commands(Pipelines(job).next(A))
    assert [words[0] for words in sent] == [b"SET"] * pipeline
    assert all(len(name) == 16 and len(value) == 8 for _, name, value in sent)


def test_wait_asks_for_one_replica_within_its_time() -> None:
    job = dataclasses.replace(JOB, pipeline=1, wait=Wait(1, 250))
    assert commands(Pipelines(job).next(A))[1] == [b"WAIT", b"1", b"250"]


def test_all_keys_come_up_and_only_at_their_node() -> None:
    route = (SlotRange(0, 8000, A), SlotRange(8001, 16383, B))
    pipelines = Pipelines(dataclasses.replace(JOB, command="GET", route=route))
    at_a = {words[1] for _ in range(1000) for words in commands(pipelines.next(A))}
    at_b = {words[1] for _ in range(1000) for words in commands(pipelines.next(B))}
    assert len(at_a | at_b) == 100
    assert all(slot_of(name) <= 8000 for name in at_a)
    assert all(slot_of(name) > 8000 for name in at_b)


def test_connections_take_turns_among_the_nodes() -> None:
    route = (SlotRange(0, 8191, A), SlotRange(8192, 16383, B))
    turns = Pipelines(dataclasses.replace(JOB, route=route, key_count=10_000)).addresses(10)
    assert sorted(turns[:2]) == [A, B]
    assert (turns.count(A), turns.count(B)) == (5, 5)


def test_pipelines_are_due_at_the_rate_of_operations() -> None:
    assert dataclasses.replace(JOB, pipeline=16, rate=1600).pipelines_per_s == 100
    assert dataclasses.replace(JOB, pipeline=16, rate=5).pipelines_per_s == 1


def test_generators_divide_a_job() -> None:
    parts = divided(dataclasses.replace(JOB, connection_count=50, rate=1000), 3)
    assert [each.connection_count for each in parts] == [16, 17, 17]
    assert sum(each.rate or 0 for each in parts) == 1000
    assert len({each.seed for each in parts}) == 3
    assert [each.rate for each in divided(JOB, 2)] == [None, None]


def test_outcomes_of_several_generators() -> None:
    one = Outcome(10, 1, 8, 2, latencies={5: 10}, lags={1: 3}, cpu_s=0.5, wall_s=2.0)
    two = Outcome(20, 0, 20, latencies={5: 1, 7: 19}, gave_up=True, cpu_s=0.7, wall_s=1.0)
    one.add_error("ERR a")
    two.add_error("ERR a")
    both = together([one, two])
    assert (both.answered_count, both.unanswered_count) == (30, 1)
    assert (both.hit_count, both.missed_count) == (28, 2)
    assert (both.latencies, both.lags) == ({5: 11, 7: 19}, {1: 3})
    assert (both.error_count, dict(both.errors), both.gave_up) == (2, {"ERR a": 2}, True)
    assert (both.cpu_s, both.wall_s) == (0.7, 2.0)


def test_errors_that_differ_in_numbers_are_one() -> None:
    outcome = Outcome()
    outcome.add_error("MOVED 12 127.0.0.1:7001")
    outcome.add_error("MOVED 3999 127.0.0.1:7002")
    assert list(outcome.errors.values()) == [2]


def test_texts_of_errors_are_bounded() -> None:
    outcome = Outcome()
    for number in range(100):
        outcome.add_error("x" * number)
    assert outcome.error_count == outcome.errors.total() == 100
    assert len(outcome.errors) == ERROR_TEXTS_MAX + 1
