"""The shapes of KV.NODES, KV.PREFLIST, KV.RING and KV.CLOCK, and that their numbers add up."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from cluster.clock import SlotClock
from cluster.slot import SLOT_COUNT
from cluster.topology import NodeInfo, Topology
from respkv.reply import encode
from respkv.ring_view import (
    alone,
    clock_reply,
    nodes_reply,
    preflist_reply,
    ranges_text,
    ring_reply,
    shares_of,
)


def topology(count: int, n: int, *, down: str = "", incomplete: str = "") -> Topology:
    """Nodes a, b, c, ... in two zones, as `a` sees them."""
    nodes = [
        NodeInfo(name, f"10.0.0.{number}", 7000, 7100, 17000, zone=f"z{number % 2}")
        for number, name in enumerate("abcdefgh"[:count], 1)
    ]
    made = Topology("a", nodes, n)
    for name in down:
        made.mark(name, is_reachable=False)
    for name in incomplete:
        made.mark_complete(name, is_complete=False)
    return made


def ring(made: Topology, n: int = 3, r: int = 2, w: int = 2) -> Any:
    return ring_reply(made, "test", n, r, w)


@pytest.mark.parametrize(
    ("slots", "text"),
    [
        ([], ""),
        ([5], "5"),
        ([0, 1, 2, 4, 6, 7], "0-2 4 6-7"),
        (range(SLOT_COUNT), "0-16383"),
    ],
)
def test_ranges(slots: list[int], text: str) -> None:
    assert ranges_text(slots) == text


def test_nodes_tell_how_they_are_seen() -> None:
    reply: Any = nodes_reply(topology(3, 3, down="c", incomplete="b"))
    assert [each[b"name"] for each in reply] == [b"a", b"b", b"c"]
    assert [each[b"state"] for each in reply] == [b"up", b"incomplete", b"down"]
    assert [each[b"reachable"] for each in reply] == [1, 1, 0]
    assert [each[b"complete"] for each in reply] == [1, 0, 1]
    assert [each[b"myself"] for each in reply] == [1, 0, 0]
    assert reply[1][b"host"] == b"10.0.0.2"
    assert [each[b"zone"] for each in reply] == [b"z1", b"z0", b"z1"]


def test_a_preference_list_is_in_order_and_names_who_coordinates() -> None:
    made = topology(5, 3)
    for slot in (0, 777, SLOT_COUNT - 1):
        reply: Any = preflist_reply(made, slot, 2, 2)
        names = [each[b"name"].decode() for each in reply[b"replicas"]]
        assert tuple(names) == made.replicas(slot)
        assert reply[b"slot"] == slot
        assert reply[b"coordinator"].decode() == names[0]
    made = topology(3, 3)
    others = [name for name in made.replicas(0) if name != "a"]
    made.mark(others[0], is_reachable=False)
    made.mark_complete(others[1], is_complete=False)
    reply = preflist_reply(made, 0, 2, 2)
    states = {each[b"name"].decode(): each[b"state"] for each in reply[b"replicas"]}
    assert states[others[0]] == b"down"
    assert states[others[1]] == b"incomplete"
    assert reply[b"coordinator"] == b"a"
    made.mark_complete("a", is_complete=False)
    assert preflist_reply(made, 0, 2, 2)[b"coordinator"] is None  # type: ignore[call-overload,index]


def test_the_ring_adds_up() -> None:
    made = topology(5, 3)
    reply = ring(made)
    assert reply[b"slots"] == reply[b"slots_ok"] == SLOT_COUNT
    assert reply[b"slots_unserved"] == 0
    nodes = {each[b"name"].decode(): each for each in reply[b"nodes"]}
    for field, total in ((b"primaries", 1), (b"coordinates", 1), (b"replicas", 3)):
        assert sum(each[field] for each in nodes.values()) == total * SLOT_COUNT
    seen: Counter[int] = Counter()
    primaries: Counter[str] = Counter()
    for each in reply[b"lists"]:
        ranges = [text.partition("-") for text in each[b"ranges"].decode().split()]
        slots = [
            slot for first, _, last in ranges for slot in range(int(first), int(last or first) + 1)
        ]
        assert len(slots) == each[b"slots"]
        names = tuple(name.decode() for name in each[b"replicas"])
        assert all(made.replicas(slot) == names for slot in slots)
        seen.update(slots)
        primaries[names[0]] += len(slots)
    assert seen == Counter(range(SLOT_COUNT))
    assert primaries == {name: each[b"primaries"] for name, each in nodes.items()}
    assert nodes["a"][b"primary_share"] == b"20.0%"
    assert nodes["a"][b"replica_share"] == b"60.0%"


def test_the_ring_tells_what_is_not_served() -> None:
    made = topology(3, 3, down="b")
    reply = ring(made)
    assert reply[b"slots_ok"] == SLOT_COUNT
    assert {each[b"name"]: each[b"coordinates"] for each in reply[b"nodes"]}[b"b"] == 0
    made.mark_complete("c", is_complete=False)
    assert ring(made)[b"slots_ok"] == 0  # R and W are 2.
    assert ring(made, r=1, w=1)[b"slots_ok"] == SLOT_COUNT
    made.mark_complete("a", is_complete=False)
    assert ring(made)[b"slots_unserved"] == SLOT_COUNT


def test_shares_are_looked_up_once_for_each_epoch() -> None:
    made = topology(3, 3)
    assert shares_of(made, made.epoch) is shares_of(made, made.epoch)
    assert shares_of(made, made.epoch) is not shares_of(topology(3, 3), made.epoch)


def test_a_clock_by_actor_with_names_where_they_are_known() -> None:
    clock = SlotClock({7: 3, 9: 1}, {(7, 6), (7, 5), (8, 2)})
    reply: Any = clock_reply(12, clock, {9: "a", 8: "b"}, is_unsettled=True)
    assert reply[b"slot"] == 12
    assert reply[b"unsettled"] == 1
    assert reply[b"actors"] == [
        {b"actor": b"0000000000000009", b"node": b"a", b"counter": 1, b"beyond": []},
        {b"actor": b"0000000000000008", b"node": b"b", b"counter": 0, b"beyond": [2]},
        {b"actor": b"0000000000000007", b"node": None, b"counter": 3, b"beyond": [5, 6]},
    ]
    assert clock_reply(1, SlotClock(), {}, is_unsettled=False) == {
        b"slot": 1, b"unsettled": 0, b"actors": [],
    }  # fmt: skip


def test_a_node_alone_holds_everything() -> None:
    reply = ring(alone("me", "127.0.0.1", 6379), 1, 1, 1)
    (node,) = reply[b"nodes"]
    assert node[b"primaries"] == node[b"replicas"] == SLOT_COUNT
    assert [each[b"ranges"] for each in reply[b"lists"]] == [b"0-16383"]


@pytest.mark.parametrize("resp3", [False, True])
def test_all_of_it_can_be_encoded(resp3: bool) -> None:
    made = topology(3, 3)
    for reply in (nodes_reply(made), preflist_reply(made, 0, 2, 2), ring(made)):
        assert encode(reply, resp3=resp3)
