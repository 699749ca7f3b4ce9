"""The verdict on a cluster from what its nodes say, and the table."""

from __future__ import annotations

import json
from typing import Any

from cluster.topology import NodeInfo, Topology
from respkv.ring_view import nodes_reply, ring_reply
from respkv.tools.ring import Ring, ring_of
from respkv.tools.status import (
    EXIT_STATUS,
    WIDTH,
    NodeStatus,
    add_answers,
    info_of,
    judge,
    members_of,
    status_json,
    status_lines,
)
from tests.respkv.tools.test_ring import parsed

INFO = b"""# Server\r\nrespkv_version:0.1.0\r\n\r\n# Memory\r\nused_memory:44375878\r\n# Stats
instantaneous_ops_per_sec:120\r\n# Cluster\r\nis_complete:%d\r\nis_clock_off:%d\r\nexchange_slots_left:3
# Keyspace\r\ndb0:keys=16,expires=0,avg_ttl=0\r\ndb3:keys=4,expires=0,avg_ttl=0
# Respkv\r\nwrites_refused:%s\r\nlog_bytes:1000\r\ntable_bytes:24\r\n"""


def view(me: str, *, down: str = "", incomplete: str = "") -> Topology:
    nodes = [NodeInfo(name, "10.0.0.1", 7000, 7100, 17000) for name in "abc"]
    made = Topology(me, nodes, 3)
    for name in down:
        made.mark(name, is_reachable=False)
    for name in incomplete:
        made.mark_complete(name, is_complete=False)
    return made


def asked(
    topology: Topology, *, failed: str = "", info: bytes = INFO % (1, 0, b"0")
) -> tuple[list[NodeStatus], Ring]:
    """What `respkv status` has found out of a cluster that looks alike from everywhere."""
    nodes: Any = parsed(nodes_reply(topology))
    members = members_of(nodes)
    for member in members:
        if member.name in failed:
            member.failure = "cannot connect"
        else:
            add_answers(member, info, nodes)
    return members, ring_of(parsed(ring_reply(topology, "test", 3, 2, 2)))


def test_all_is_well() -> None:
    members, ring = asked(view("a"))
    assert judge(members, ring) == ("healthy", [])
    (me,) = [member for member in members if member.is_asked]
    assert me.name == "a"
    assert (me.keys, me.ops_per_s, me.memory_bytes, me.disk_bytes) == (20, 120, 44375878, 1024)
    assert (me.sees, me.lag_slots, me.version) == (3, 3, "0.1.0")


def test_a_node_that_is_down_degrades() -> None:
    members, ring = asked(view("a", down="b"), failed="b")
    verdict, problems = judge(members, ring)
    assert verdict == "degraded"
    assert "b: does not answer: cannot connect" in problems
    assert "b: the node that was asked cannot reach it" in problems
    assert "a: reaches 2 of 3 nodes" in problems


def test_what_a_node_says_of_itself_degrades() -> None:
    for info, problem in (
        (INFO % (0, 0, b"0"), "incomplete"),
        (INFO % (1, 1, b"0"), "its clock is off"),
        (INFO % (1, 0, b"1"), "refuses writes"),
    ):
        verdict, problems = judge(*asked(view("a"), info=info))
        assert verdict == "degraded"
        assert all(problem in each for each in problems)


def test_a_partition_is_seen_from_the_other_side() -> None:
    members, ring = asked(view("a"))
    (other,) = [member for member in members if member.name == "c"]
    add_answers(other, INFO % (1, 0, b"0"), parsed(nodes_reply(view("c", down="ab"))))
    assert judge(members, ring) == ("degraded", ["c: reaches 1 of 3 nodes"])


def test_too_few_replicas_fail() -> None:
    verdict, problems = judge(*asked(view("a", down="bc"), failed="bc"))
    assert verdict == "failing"
    assert problems[0] == "16384 slots: 16384 of them have too few replicas within reach"


def test_the_exit_status_orders_them() -> None:
    assert EXIT_STATUS == {"healthy": 0, "degraded": 1, "failing": 2}


def test_the_table_fits_and_says_what_is_wrong() -> None:
    members, ring = asked(view("a", down="b"), failed="b")
    verdict, problems = judge(members, ring)
    lines = status_lines(members, ring, verdict, problems)
    assert max(map(len, lines)) <= WIDTH
    assert lines[0] == "cluster test: degraded; 3 nodes, n=3 r=2 w=2"
    table = {line[2:].split()[0]: line.split() for line in lines[3:6]}
    assert lines[3].startswith("* a ")
    assert table["a"][2:] == ["up", "2/3", "20", "120", "42.3MiB", "1.0KiB", "3", "0.1.0"]
    assert table["b"] == ["b", "down", *"-------"]
    assert all(problem in lines for problem in problems)


def test_json_has_the_same() -> None:
    members, ring = asked(view("a", down="b"), failed="b")
    shown = json.loads(json.dumps(status_json(members, ring, *judge(members, ring))))
    assert shown["verdict"] == "degraded"
    assert [node["state"] for node in shown["nodes"]] == ["up", "down", "up"]
    assert [node["keys"] for node in shown["nodes"]] == [20, None, 20]


def test_info_is_read_whatever_stands_in_it() -> None:
    assert info_of(b"# A:b\r\nx:1:2\r\n\r\nodd\r\ny:\r\n") == {"x": "1:2", "y": ""}
    member = NodeStatus("a", "h", 1, "up")
    add_answers(member, b"", [])
    assert (member.keys, member.memory_bytes, member.version) == (0, None, None)
