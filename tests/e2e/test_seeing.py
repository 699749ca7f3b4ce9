"""Operators' eyes on a real cluster: status, ring, traces, and a cut between running nodes that is healed again."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import redis

from tests.clusters import Member, RunningCluster, respkv_cluster
from tests.differential.wire import Reply
from tests.e2e.test_cluster import COMMAND_S, ask, connect, until, wire
from tests.servers import respkv_server

DRILL = "[debug]\ndrill = true\n"


@pytest.fixture(scope="module")
def cluster() -> Iterator[RunningCluster]:
    with respkv_cluster(DRILL) as running:
        yield running


def tool(*words: str, **environment: str) -> tuple[int, str, str]:
    """Exit status, output and errors of a command line."""
    result = subprocess.run(
        [sys.executable, "-m", "respkv", *words],
        capture_output=True, text=True, timeout=COMMAND_S, check=False, env=environment or None,
    )  # fmt: skip
    return result.returncode, result.stdout, result.stderr


def status(member: Member) -> tuple[int, dict[str, Any]]:
    code, output, errors = tool("status", "--port", str(member.port), "--json")
    assert output, errors
    return code, json.loads(output)


def views(cluster: RunningCluster) -> dict[str, dict[str, bool]]:
    """Whom each node sees."""
    seen = {}
    for member in cluster:
        with wire(member) as connection:
            rows = [node.pairs for node in ask(connection, "KV.NODES").items]
        seen[member.name] = {
            row[b"name"].text.decode(): row[b"reachable"].text == b"1" for row in rows
        }
    return seen


def is_whole(cluster: RunningCluster) -> bool:
    return all(all(seen.values()) for seen in views(cluster).values())


def is_apart(cluster: RunningCluster, one: str) -> bool:
    """Whether both sides know it."""
    return all(
        seen[other] is ((name == one) == (other == one))
        for name, seen in views(cluster).items()
        for other in seen
    )


def heal(cluster: RunningCluster) -> None:
    for member in cluster:
        with wire(member) as connection:
            assert ask(connection, "KV.DRILL HEAL").text == b"OK"
    until(lambda: is_whole(cluster), "the network is not healed", 20)


def test_status_and_ring_of_a_healthy_cluster(cluster: RunningCluster) -> None:
    for member in cluster:
        until(lambda member=member: status(member)[0] == 0, "it is not healthy")  # type: ignore[misc]
        code, shown = status(member)
        assert (code, shown["verdict"], shown["problems"]) == (0, "healthy", [])
        assert [node["name"] for node in shown["nodes"]] == ["a", "b", "c"]
        assert all(node["sees"] == 3 and node["version"] for node in shown["nodes"])
        assert all(node["memory_bytes"] > 0 < node["disk_bytes"] for node in shown["nodes"])
        code, drawn, _ = tool("ring", "--port", str(member.port))
        assert code == 0
        assert max(map(len, drawn.splitlines())) <= 80
        assert "\x1b" not in drawn
        code, output, _ = tool("ring", "--port", str(member.port), "--json")
        assert sum(node["primaries"] for node in json.loads(output)["nodes"]) == 16384


def test_a_cut_and_its_healing(cluster: RunningCluster) -> None:
    one, other = cluster["a"], cluster["b"]
    with wire(one) as here, wire(other) as there:
        assert ask(there, "SET cut before").text == b"OK"
        assert ask(here, "KV.DRILL CUT b c").text == b"OK"
        try:
            until(lambda: is_apart(cluster, "a"), "both sides do not see it")
            refused = ask(here, "SET cut minority")
            assert (
                refused.text
                == b"NOREPLICAS writes need 2 replicas of this key, and 1 can be reached"
            )
            assert ask(here, "GET cut").text.startswith(b"NOREPLICAS reads need 2")
            assert ask(there, "SET cut majority").text == b"OK"
            code, shown = status(one)
            assert (code, shown["verdict"]) == (2, "failing")
            code, shown = status(other)
            assert (code, shown["verdict"]) == (1, "degraded")
            assert "a: reaches 1 of 3 nodes" in shown["problems"]
            assert " down " in tool("ring", "--port", str(other.port))[1]
        finally:
            heal(cluster)
        assert ask(here, "GET cut").text == b"majority"
        assert ask(here, "SET cut after").text == b"OK"
        until(lambda: ask(there, "KV.LOCAL cut").text == b"after", "it has not come over")


def test_a_mute_network_is_noticed_and_healed(cluster: RunningCluster) -> None:
    with wire(cluster["c"]) as here, wire(cluster["a"]) as there:
        assert ask(here, "KV.DRILL MUTE a b").text == b"OK"
        try:
            until(lambda: is_apart(cluster, "c"), "both sides do not notice", 20)
            assert ask(here, "SET mute minority").text.startswith(b"NOREPLICAS")
            assert ask(there, "SET mute majority").text == b"OK"
            shown = [item.pairs for item in ask(here, "KV.DRILL SHOW").items]
            assert [row[b"how"].text for row in shown] == [b"mute", b"mute"]
        finally:
            heal(cluster)
        assert ask(here, "GET mute").text == b"majority"


def test_the_drill_checks_whom_it_is_told_to_cut(cluster: RunningCluster) -> None:
    with wire(cluster["a"]) as connection:
        assert ask(connection, "KV.DRILL CUT a").text.startswith(
            b"ERR a node cannot be cut off from itself"
        )
        assert (
            ask(connection, "KV.DRILL CUT d").text == b"ERR no node has the name 'd': there are b c"
        )
        assert ask(connection, "KV.DRILL SHOW").items == []


def test_a_trace_by_clients_of_both_protocols(cluster: RunningCluster) -> None:
    for protocol in (2, 3):
        for member in cluster:
            with connect(member, protocol=protocol) as client:
                reply = client.execute_command("KV.TRACE", "SET", "traced", member.name)
                if protocol == 2:
                    reply = dict(zip(reply[::2], reply[1::2], strict=True))
                assert reply["reply"] == "OK"
                assert len(reply["asked"]) == 2
                assert len(reply["executed"]) == 1
                assert client.get("traced") == member.name
                failed = client.execute_command("KV.TRACE", "INCR", "traced")
                error = failed[1] if protocol == 2 else failed["reply"]
                assert isinstance(error, redis.ResponseError)


def test_a_trace_waits_for_the_disk_where_the_log_is_synced() -> None:
    with respkv_cluster('[log]\nfsync = "always"\n') as running:
        for member in running:
            with wire(member) as connection:
                trace: Reply = ask(connection, "KV.TRACE SET k v")
                assert trace.pairs[b"reply"].text == b"OK"
                (executed,) = (each.pairs for each in trace.pairs[b"executed"].items)
                assert int(executed[b"log_us"].text) >= int(executed[b"began_us"].text)


def test_a_node_alone_is_healthy_and_wants_its_password() -> None:
    with respkv_server("--set", "client.requirepass=secret") as server:
        at = ("--host", server.host, "--port", str(server.port))
        code, _, errors = tool("status", *at)
        assert code == 2
        assert "NOAUTH" in errors
        code, output, _ = tool("status", *at, "--password", "secret")
        assert code == 0
        assert "healthy; 1 nodes" in output
        code, output, errors = tool("ring", *at, REDISCLI_AUTH="secret")
        assert (code, errors) == (0, "")
        assert "first in 0-16383" in output


def test_nobody_there_is_one_line() -> None:
    for name, code in (("status", 2), ("ring", 1)):
        shown = tool(name, "--port", "1")
        assert shown[:2] == (code, "")
        assert shown[2].startswith(f"respkv {name}: cannot connect to redis://127.0.0.1:1/0: ")
        assert shown[2].count("\n") == 1
