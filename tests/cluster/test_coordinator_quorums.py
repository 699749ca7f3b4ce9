"""Operations with quorums of their own, beside each other; and rows of which the winner alone is kept."""

from __future__ import annotations

from collections import Counter as Tally

import pytest

from cluster.batch import Quorums
from cluster.quorum_messages import READ, WRITE
from cluster.record import STRING, Record, Version, decode
from tests.cluster.bus import infos
from tests.cluster.cluster_world import Weather, World, place_of
from tests.cluster.test_coordinator import LOSING, N3, N5, REORDERING, judge, quiet, story

LOOSE = Quorums(3, 3, 1)
A, B, C = (info.name for info in infos(3))


@pytest.mark.parametrize(
    ("kind", "quorums", "mixed", "writers", "weather"),
    [
        ("increments", N3, (N3, Quorums(3, 3, 3), Quorums(3, 2, 3)), 2, REORDERING),
        ("all", N3, (N3, Quorums(3, 3, 2)), 2, REORDERING),
        ("all", N3, (N3, Quorums(3, 3, 3)), 1, LOSING),
        ("all", N5, (N5, Quorums(5, 3, 4), Quorums(5, 4, 3)), 1, LOSING),
        # Increments are checked by a majority, whatever W is.
        ("increments", N3, (N3, Quorums(3, 2, 1)), 2, REORDERING),
    ],
)
def test_majorities_of_all_sizes_hold_together(
    kind: str, quorums: Quorums, mixed: tuple[Quorums, ...], writers: int, weather: Weather
) -> None:
    met: Tally[str] = Tally()
    for seed in range(10):
        world = story(seed, quorums, kind, writers, weather, mixed=mixed)
        judge(world)
        met += world.met
    assert met["answered"] > 350, met


def sent(world: World, verb: bytes) -> list[str]:
    return [target for _, source, target, message in world.log if message[0] == verb]


def test_each_operation_asks_as_many_as_it_needs() -> None:
    world = quiet()
    for quorums, asked in ((Quorums(3, 1, 1), 0), (N3, 1), (Quorums(3, 3, 3), 2)):
        world.mixed = (quorums,)
        world.log.clear()
        world.do(A, b"GET", b"k")
        world.run(0.3)
        assert len(sent(world, READ)) == asked


def test_a_write_counts_the_answers_that_it_needs_and_others_do_not_wait_for_it() -> None:
    world = quiet()
    world.disconnect(A, C)
    world.mixed = (Quorums(3, 2, 3),)
    all_of_them = world.do(A, b"SET", b"k", b"1")
    world.mixed = (N3,)
    usual = world.do(A, b"SET", b"k", b"2")
    world.run(0.3)
    assert usual.outcome == b"OK"
    assert "needs 3 replicas" in str(all_of_them.outcome)


def test_rounds_are_in_the_order_of_the_writes_of_a_row() -> None:
    """Two writes of one row in one tick, the second one in a batch that was opened before the first."""
    world = quiet()
    node = world.nodes[A]
    all_three = Quorums(3, 2, 3)
    world.weather = Weather(delay_s=0.001, linger=1.0)  # The tick does not end by itself.
    world.log.clear()
    for key, quorums in ((b"{k}1", all_three), (b"{k}2", N3), (b"{k}2", all_three)):
        world.mixed = (quorums,)
        world.do(A, b"INCRBY", key, b"1")
    rows = [entry[3] for round_ in node.coordinator.writes.values() for entry in round_.entries]
    assert rows == [place_of(b"{k}1")[1], place_of(b"{k}2")[1]]
    node.end_tick()
    rounds = list(node.coordinator.writes.values())
    assert [len(round_.entries) for round_ in rounds] == [1, 1, 1]
    assert [round_.needed for round_ in rounds] == [2, 1, 2]
    assert len(sent(world, WRITE)) == 6


def test_what_has_the_same_quorums_shares_a_message() -> None:
    world = quiet()
    node = world.nodes[A]
    world.weather = Weather(delay_s=0.001, linger=1.0)
    world.log.clear()
    for number in range(20):
        world.mixed = ((Quorums(3, 3, 3), N3)[number % 2],)
        world.do(A, b"SET", b"{k}%d" % number, b"v")
    node.end_tick()
    assert len(sent(world, WRITE)) == 4
    assert not node.coordinator.has_others


def test_interned_quorums_are_the_usual_ones() -> None:
    coordinator = quiet().nodes[A].coordinator
    assert coordinator.quorums_of(2, 2) is coordinator.quorums
    assert coordinator.quorums_of(1, 3) is coordinator.quorums_of(1, 3)


# The winner alone


def versions_of(world: World, key: bytes) -> list[list[bytes]]:
    slot, row = place_of(key)
    found = []
    for node in world.nodes.values():
        raw = node.replica.store.get(slot, row)
        found.append([version.payload for version in decode(raw).versions] if raw else [])
    return found


def partition(world: World, *, keeps_one: bool) -> None:
    """Two sides write the same key, then they hear of each other."""
    for node in world.nodes.values():
        node.replica.keeps_one = (lambda row: True) if keeps_one else None
    for peer in (B, C):
        world.disconnect(A, peer)
    world.do(A, b"SET", b"k", b"early")
    world.run(0.2)
    world.do(B, b"SET", b"k", b"late")
    world.run(0.2)
    world.settle()
    for name in world.names:
        world.do(name, b"GET", b"k")
        world.run(0.5)


@pytest.mark.parametrize("keeps_one", [False, True])
def test_siblings_are_kept_unless_the_last_writer_wins(*, keeps_one: bool) -> None:
    world = quiet(LOOSE)
    partition(world, keeps_one=keeps_one)
    kept = [b"late"] if keeps_one else [b"late", b"early"]
    assert versions_of(world, b"k") == [kept] * 3
    if keeps_one:
        # A replica that hears of the loser only now ends like the others.
        early = Record((Version((world.nodes[A].replica.actor, 1), 1, STRING, b"early"),))
        for node in world.nodes.values():
            node.replica.merge(*place_of(b"k"), early, node.coordinator.now_ms)
        assert versions_of(world, b"k") == [kept] * 3
        world.do(C, b"SET", b"k", b"later")
        world.run(0.5)
        assert versions_of(world, b"k") == [[b"later"]] * 3


@pytest.mark.parametrize("weather", [REORDERING, LOSING])
def test_replicas_that_keep_one_end_alike_and_with_one(weather: Weather) -> None:
    met: Tally[str] = Tally()
    for seed in range(20):
        world = story(seed, LOOSE, "all", 3, weather, keeps_one=True)
        for key in (b"k0", b"k1"):
            for name in world.names:
                world.do(name, b"GET", key)
                world.run(0.5)
            found = versions_of(world, key)
            assert found[0] == found[1] == found[2], (seed, found)
            met["one"] += len(found[0]) == 1
            met["more"] += len(found[0]) > 1
    assert met["one"] > 30, met


@pytest.mark.parametrize("kind", ["increments", "locks"])
def test_keeping_one_loses_no_update_of_a_majority(kind: str) -> None:
    for seed in range(20):
        judge(story(seed, N3, kind, 2, REORDERING, keeps_one=True))
