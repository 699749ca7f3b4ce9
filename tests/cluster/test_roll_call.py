"""A roll call by what it is told: when a node counts itself among all others, and when no longer."""

from __future__ import annotations

import pytest

from cluster.roll_call import RollCall
from cluster.topology import NodeInfo, Topology


def roll_call(*names: str) -> tuple[RollCall, Topology]:
    """The first node's, as it starts: complete, and with nobody within reach."""
    topology = Topology(names[0], [NodeInfo(name, name, 1, 2, 3) for name in names], 3)
    for peer in topology.peers:
        topology.mark(peer, is_reachable=False)
    return RollCall(topology), topology


def come(roll: RollCall, topology: Topology, peer: str, *, is_complete: bool = True) -> None:
    """A peer is connected, and says how it is."""
    roll.connected(peer)
    topology.mark(peer, is_reachable=True)
    topology.mark_complete(peer, is_complete=is_complete)
    roll.told(peer)


def go(roll: RollCall, topology: Topology, peer: str) -> None:
    roll.disconnected(peer)
    topology.mark(peer, is_reachable=False)


@pytest.fixture
def joined() -> tuple[RollCall, Topology]:
    roll, topology = roll_call("a", "b", "c")
    come(roll, topology, "b")
    come(roll, topology, "c")
    assert roll.is_news()
    return roll, topology


def test_it_has_joined_with_the_last_of_the_others() -> None:
    roll, topology = roll_call("a", "b", "c")
    assert not roll.is_news()
    come(roll, topology, "b")
    assert not roll.is_news()
    come(roll, topology, "c")
    assert roll.has_joined()
    assert roll.is_news()
    assert not roll.is_news()  # Not again.


def test_a_node_without_others_has_joined_at_once() -> None:
    roll, _ = roll_call("a")
    assert roll.is_news()


def test_nobody_has_joined_before_it_is_complete() -> None:
    roll, topology = roll_call("a", "b")
    topology.mark_complete("a", is_complete=False)
    come(roll, topology, "b")
    assert not roll.is_news()
    topology.mark_complete("a", is_complete=True)
    assert roll.is_news()


def test_nor_before_the_others_are() -> None:
    roll, topology = roll_call("a", "b")
    come(roll, topology, "b", is_complete=False)
    assert not roll.is_news()
    topology.mark_complete("b", is_complete=True)
    roll.told("b")
    assert roll.is_news()


def test_a_peer_within_reach_that_has_not_said_how_it_is_does_not_count() -> None:
    """The topology takes a node for complete that it knows nothing of."""
    roll, topology = roll_call("a", "b")
    roll.connected("b")
    topology.mark("b", is_reachable=True)
    assert not roll.is_news()
    roll.told("b")
    assert roll.is_news()


def test_what_a_peer_said_before_it_was_lost_does_not_count(
    joined: tuple[RollCall, Topology],
) -> None:
    roll, topology = joined
    go(roll, topology, "b")
    assert not roll.is_news()
    roll.connected("b")
    topology.mark("b", is_reachable=True)
    assert not roll.is_news()
    roll.told("b")
    assert roll.is_news()


def test_a_peer_that_was_away_only_between_two_looks_is_news(
    joined: tuple[RollCall, Topology],
) -> None:
    roll, topology = joined
    go(roll, topology, "b")
    come(roll, topology, "b")
    assert roll.is_news()


def test_a_silent_peer_is_news_when_it_is_back(joined: tuple[RollCall, Topology]) -> None:
    """Its connection stood all the time, so that what it said still holds."""
    roll, topology = joined
    topology.mark("c", is_reachable=False)
    assert not roll.is_news()
    topology.mark("c", is_reachable=True)
    assert roll.is_news()
