"""Which requests are due, and when."""

import dataclasses

import hiredis
import pytest

from bench.load import key
from bench.openloop_schedule import (
    GET_TEMPLATE,
    Load,
    Requests,
    due_until,
    highest_rate,
    loading,
    reading,
)

LOAD = Load(
    rate=1000,
    seconds=2.5,
    key_count=10_000,
    value_bytes=1024,
    hot_share=0.9,
    hot_keys=10,
    write_share=0.25,
    connection_count=2,
)


def parsed(data: bytes) -> list[list[bytes]]:
    reader = hiredis.Reader()
    reader.feed(data)
    found = []
    while (command := reader.gets()) is not False:
        found.append(command)
    return found


@pytest.mark.parametrize("rate", [1, 999, 1000, 1001, 20_000, 12_345])
def test_a_second_has_its_rate_spread_evenly(rate: int) -> None:
    counts = [due_until(tick + 1, rate) - due_until(tick, rate) for tick in range(3000)]
    assert sum(counts) == 3 * rate
    assert max(counts) - min(counts) <= 1


def test_requests_have_their_shares() -> None:
    requests = Requests(LOAD)
    made = [requests.next() for _ in range(4000)]
    commands = parsed(b"".join(data for data, _ in made))
    assert [command[0] == b"SET" for command in commands] == [is_write for _, is_write in made]
    assert sum(is_write for _, is_write in made) == pytest.approx(1000, abs=120)
    hot = {key(number) for number in range(10)}
    assert sum(command[1] in hot for command in commands) == pytest.approx(3600, abs=100)
    assert {len(command[2]) for command in commands if len(command) == 3} == {1024}
    assert len({command[2] for command in commands if len(command) == 3}) > 900


def test_without_a_hot_share_all_keys_are_alike() -> None:
    requests = Requests(dataclasses.replace(LOAD, hot_share=0.0))
    commands = parsed(b"".join(requests.next()[0] for _ in range(4000)))
    assert len({command[1] for command in commands}) > 3000


def test_reading_asks_for_the_first_keys_once() -> None:
    batches = list(reading(25, 10))
    assert [count for _, count in batches] == [10, 10, 5]
    asked = b"".join(batch for batch, _ in batches)
    assert asked == b"".join(GET_TEMPLATE % key(number) for number in range(25))


def test_loading_writes_every_key_once() -> None:
    batches = list(loading(25, 100, 10))
    assert [count for _, count in batches] == [10, 10, 5]
    commands = parsed(b"".join(data for data, _ in batches))
    assert [command[1] for command in commands] == [key(number) for number in range(25)]
    assert {len(command[2]) for command in commands} == {100}


@pytest.mark.parametrize("limit", [0, 1, 900, 20_000, 33_000, 170_000])
def test_the_search_comes_close_from_below(limit: int) -> None:
    highest, tried = highest_rate(lambda rate: rate <= limit, 20_000, 40)
    assert highest <= limit
    assert highest >= 0.95 * limit - 1
    assert tried[0] == 20_000
    assert len(tried) == len(set(tried)) <= 40


def test_the_search_is_bounded() -> None:
    highest, tried = highest_rate(lambda rate: True, 1000, 4)
    assert (highest, tried) == (8000, [1000, 2000, 4000, 8000])
