"""What others wrote is shown to nobody before it counts, where a few of its replicas are no majority."""

from __future__ import annotations

import pytest

from cluster.batch import Quorums
from cluster.coordinator import Coordinator
from cluster.held import Held
from cluster.quorum_messages import SETTLED
from cluster.round import QuorumNotMet
from tests.cluster.cluster_world import TIMEOUT_S, Op, World, place_of
from tests.cluster.test_coordinator import LOSING, N5, judge, outcome, quiet, story

PLACE = place_of(b"k")


def cut_off(world: World, name: str, *others: str) -> None:
    """Messages between them are lost, and nobody knows."""
    world.cut |= {frozenset((name, other)) for other in others}


def holders(world: World) -> list[str]:
    return [name for name in world.names if world.nodes[name].coordinator.held.has(PLACE)]


def reads(world: World, *names: str) -> list[Op]:
    return [world.do(name, b"GET", b"k") for name in names]


def settled_everywhere(world: World) -> bool:
    return not holders(world) and not any(
        node.coordinator.inquest.cases for node in world.nodes.values()
    )


def taken_by_two() -> World:
    """Of an increment by 100 at `a` only `b` has heard; `a` has not heard of that."""
    world = quiet(N5)
    a, b, *others = world.names
    cut_off(world, a, *others)
    world.do(a, b"INCRBY", b"k", b"100")
    world.run(0.05)
    assert holders(world) == [b]
    return world


def test_what_a_majority_has_taken_is_settled_within_a_tick() -> None:
    world = quiet(N5)
    op = world.do(world.names[0], b"INCR", b"k")
    world.run(0.05)
    assert outcome(op) == 1
    assert settled_everywhere(world)
    found = reads(world, *world.names)
    world.run(0.05)
    assert list(map(outcome, found)) == [b"1"] * 5


def test_what_two_of_five_have_taken_is_shown_by_none_of_them() -> None:
    world = taken_by_two()
    a, b, c, d, e = world.names
    won = world.do(c, b"INCR", b"k")
    world.run(0.05)
    assert outcome(won) == 1
    found = reads(world, c, d, e)
    waits = world.do(b, b"GET", b"k")
    world.run(0.5)  # Some ask `a` or `b` first, which cannot tell.
    assert list(map(outcome, found)) == [b"1"] * 3
    assert outcome(waits) == "waits"
    world.run(2 * 1.5)  # `a` gives up, and `b` does not wait for it any longer.
    world.cut.clear()
    world.run(3.0)
    assert settled_everywhere(world)
    found = reads(world, a, b, c, d, e)
    world.run(0.2)
    assert list(map(outcome, found)) == [b"1"] * 5


def test_holders_end_what_their_author_cannot() -> None:
    """It is gone. Nobody contradicts: a majority takes its write, and then it is shown."""
    world = taken_by_two()
    a, b, *others = world.names
    found = reads(world, *others)
    world.run(0.5)
    assert list(map(outcome, found)) == [None] * 3
    for name in (b, *others):
        world.disconnect(a, name)
    world.run(1.0)
    found = reads(world, b, *others)
    world.run(0.1)
    assert list(map(outcome, found)) == [b"100"] * 4
    assert not holders(world)


def test_a_command_does_not_build_upon_what_is_held() -> None:
    world = taken_by_two()
    b = world.names[1]
    op = world.do(b, b"INCR", b"k")
    world.run(0.1)
    assert outcome(op) == "waits"
    world.cut.clear()
    world.run(3.0)
    found = world.do(b, b"GET", b"k")
    world.run(0.1)
    assert outcome(found) in (b"100", b"101")
    assert settled_everywhere(world)


def test_the_next_process_knows_what_was_held() -> None:
    world = taken_by_two()
    replica = world.nodes[world.names[1]].replica
    assert PLACE in replica.open_rows.rows
    world.cut.clear()
    world.run(4.0)
    assert settled_everywhere(world)
    assert not any(node.replica.open_rows.rows for node in world.nodes.values())


def test_with_a_small_r_a_read_waits_for_what_may_be_taken_back() -> None:
    quorums = Quorums(5, 2, 4)
    world = quiet(quorums)
    a, b, *others = world.names
    cut_off(world, a, *others)
    write = world.do(a, b"INCRBY", b"k", b"100")
    world.run(0.05)
    found = reads(world, a, b)  # Both have it, and two are enough for a read.
    world.run(0.2)
    assert list(map(outcome, found)) == ["waits"] * 2
    world.run(2.0)
    assert isinstance(outcome(write), QuorumNotMet)
    assert all(outcome(read) != b"100" for read in found)


def test_what_is_settled_before_it_comes_is_not_held() -> None:
    world = quiet(N5)
    a, b, *_ = world.names
    held = world.nodes[b].coordinator.held
    cut_off(world, a, *world.names[1:])
    world.do(a, b"INCR", b"k")
    message = next(each for _, _, to, each in world.log if to == b and each[0] == b"WRITE")
    held.settle(a, [SETTLED, message[1]])
    world.nodes[b].receive(a, message)
    world.run(0.01)
    assert not held.has(PLACE)


@pytest.mark.parametrize("forgetful", range(4))
@pytest.mark.parametrize(
    "key", [b"k", b"l", b"m", b"n"]
)  # Each with another first replica, perhaps.
def test_two_against_two_come_to_an_end_though_one_cannot_say(forgetful: int, key: bytes) -> None:
    """Each pair refuses what the other has taken, and an incomplete one answers no question"""
    world = quiet(Quorums(4, 3, 3))
    a, b, c, d = world.names
    cut_off(world, a, c, d)
    cut_off(world, b, c, d)
    ops = [world.do(a, b"INCRBY", key, b"1"), world.do(c, b"INCRBY", key, b"100")]
    world.run(TIMEOUT_S + 0.1)
    assert all(isinstance(outcome(op), QuorumNotMet) for op in ops)
    lost = world.names[forgetful]
    world.nodes[lost].replica.note(is_complete=False)
    for node in world.nodes.values():
        node.topology.mark_complete(lost, is_complete=False)
    world.cut.clear()
    world.run(20.0)
    assert settled_everywhere(world)
    assert len({world.nodes[name].value(key) for name in world.names}) == 1
    op = world.do(next(name for name in world.names if name != lost), b"INCR", key)
    world.run(0.2)
    assert outcome(op) in (1, 2, 101)


def test_three_replicas_need_none_of_this() -> None:
    world = quiet()
    world.do(world.names[0], b"INCR", b"k")
    world.run(0.1)
    assert not any(message[0] == SETTLED for _, _, _, message in world.log)
    assert not any(node.replica.open_rows.rows for node in world.nodes.values())


# Found by stories: which kind, quorums, writers and seed.
FOUND = [
    # An author took for confirmed what another had dropped: whoever drops a write has seen it.
    ("locks", N5, 3, 156),
    # A replica that had dropped a write said that it had taken it.
    ("increments", N5, 3, 22),
    # Each replica held one of several writes, and none could get a majority.
    ("all", N5, 3, 123),
    # So it was, and what came before all of them was nowhere any more.
    ("increments", N5, 3, 27),
    # The end of an inquest let go what came after its beginning.
    ("increments", Quorums(6, 4, 4), 3, 73),
    # An answer that was out of date was preferred to what all could see.
    ("increments", Quorums(4, 3, 3), 3, 134),
    # One that had dropped a write was counted among those who had taken it.
    ("increments", N5, 5, 113),
    ("all", Quorums(4, 2, 3), 3, 43),
]


@pytest.mark.parametrize(("kind", "quorums", "writers", "seed"), FOUND)
def test_what_was_found_is_not_found_again(
    kind: str, quorums: Quorums, writers: int, seed: int
) -> None:
    judge(story(seed, quorums, kind, writers, LOSING))


def nothing(*args: object, **named: object) -> None:
    return None


def never(*args: object) -> bool:
    return False


def some_stories() -> None:
    for seed in range(40):
        judge(story(seed, N5, "increments", 3, LOSING))


PLANTED = [
    ("nothing is held", Held, "note", nothing),
    ("others show what is held", Held, "has", never),
    ("all is as with three replicas", Coordinator, "is_many", property(never, nothing)),
]


@pytest.mark.parametrize(
    ("name", "owner", "function", "replacement"), PLANTED, ids=[each[0] for each in PLANTED]
)
def test_planted_bugs_are_found(
    name: str,
    owner: object,
    function: str,
    replacement: object,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(owner, function, replacement, raising=False)
    with pytest.raises(AssertionError):
        some_stories()
