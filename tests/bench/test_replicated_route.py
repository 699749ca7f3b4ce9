"""Which key goes where."""

import pytest

from bench.load import key
from bench.replicated_route import (
    RouteUnusable,
    SlotRange,
    everything_at,
    keys_by_address,
    parse_cluster_slots,
    shared_out,
)
from cluster.slot import slot_of

A, B, C = ("127.0.0.1", 7100), ("127.0.0.1", 7101), ("127.0.0.1", 7102)


def entry(first: int, last: int, *ports: int, host: bytes | None = b"127.0.0.1") -> list[object]:
    return [first, last, *([host, port, b"id", []] for port in ports)]


def test_the_first_node_of_a_range_gets_its_keys() -> None:
    reply = [entry(8000, 16383, 7101, 7100, 7102), entry(0, 7999, 7100, 7101, 7102)]
    assert parse_cluster_slots(reply, C) == (SlotRange(0, 7999, A), SlotRange(8000, 16383, B))


@pytest.mark.parametrize("host", [b"", b"?", None])
def test_without_a_host_it_is_the_one_that_was_asked(host: bytes | None) -> None:
    (one,) = parse_cluster_slots([entry(0, 16383, 7100, host=host)], ("10.0.0.1", 7102))
    assert one.address == ("10.0.0.1", 7100)


@pytest.mark.parametrize(
    ("reply", "words"),
    [
        ([], "slot 0 is not covered"),
        ([entry(0, 16382, 7100)], "slot 16383 is not covered"),
        ([entry(1, 16383, 7100)], "slot 0"),
        ([entry(0, 100, 7100), entry(102, 16383, 7101)], "slot 101"),
        ([entry(0, 100, 7100), entry(100, 16383, 7101)], "slot 101"),
        ([entry(0, 16384, 7100)], "slot 16385"),
        ([entry(0, 16383)], "cannot be read"),
        ([5], "cannot be read"),
        (RuntimeError("ERR no cluster"), "ERR no cluster"),
    ],
)
def test_a_reply_that_does_not_cover_every_slot_once(reply: object, words: str) -> None:
    with pytest.raises(RouteUnusable, match=words):
        parse_cluster_slots(reply, A)


def test_every_key_goes_to_the_node_of_its_slot() -> None:
    route = (SlotRange(0, 5000, A), SlotRange(5001, 9000, B), SlotRange(9001, 16383, A))
    found = keys_by_address(route, 1000)
    assert sorted([*found[A], *found[B]]) == [key(number) for number in range(1000)]
    assert all(5001 <= slot_of(name) <= 9000 for name in found[B])
    assert not any(5001 <= slot_of(name) <= 9000 for name in found[A])


def test_through_one_node_all_keys_go_to_it() -> None:
    assert len(keys_by_address(everything_at(A), 50)[A]) == 50


@pytest.mark.parametrize(
    ("count", "weights", "shares"),
    [
        (50, {A: 1}, {A: 50}),
        (50, {A: 100, B: 100, C: 100}, {A: 17, B: 17, C: 16}),
        (10, {A: 60, B: 30, C: 10}, {A: 6, B: 3, C: 1}),
        (4, {A: 1000, B: 1, C: 1}, {A: 2, B: 1, C: 1}),
        (3, {A: 1000, B: 1, C: 1}, {A: 1, B: 1, C: 1}),
    ],
)
def test_connections_follow_the_keys(
    count: int, weights: dict[tuple[str, int], int], shares: dict[tuple[str, int], int]
) -> None:
    assert shared_out(count, weights) == shares


def test_too_few_connections_are_refused() -> None:
    with pytest.raises(RouteUnusable, match="2 connections"):
        shared_out(2, {A: 1, B: 1, C: 1})
