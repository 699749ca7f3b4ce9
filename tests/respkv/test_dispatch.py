"""Commands through a cluster of simulated machines: order, groups, nodes that hang, limits."""

from __future__ import annotations

import gc
import random
from typing import Any

import pytest
import trio

from cluster.record import decode
from cluster.slot import row_of, slot_of
from respkv.command import TABLE
from respkv.lane import VALUE_BYTES_MAX
from respkv.operation import Operation
from tests.respkv.gather_harness import Cluster, clustered

HANG_S = 1.2


def keys_of(cluster: Cluster, coordinator: str, count: int) -> list[bytes]:
    """Keys whose slots a node coordinates."""
    topology = cluster.node("a").topology
    assert topology is not None
    found: list[bytes] = []
    number = 0
    while len(found) < count:
        key = b"key:%d" % number
        if topology.coordinator(slot_of(key)) == coordinator:
            found.append(key)
        number += 1
    return found


@pytest.mark.parametrize("nodes", [3, 5])
def test_a_pipeline_answers_as_one_node_would(nodes: int) -> None:
    rng = random.Random(nodes)

    @clustered(nodes=nodes)
    async def _(cluster: Cluster) -> None:
        session = cluster.session("a")
        held: dict[bytes, bytes] = {}
        for _ in range(20):
            expected: list[Any] = []
            for _ in range(rng.randrange(1, 60)):
                key = b"k%d" % rng.randrange(12)
                kind = rng.random()
                if kind < 0.45:
                    session.send("GET", key)
                    expected.append(held.get(key))
                elif kind < 0.85:
                    value = b"%d" % rng.randrange(1000)
                    session.send("SET", key, value)
                    held[key] = value
                    expected.append(b"OK")
                elif kind < 0.9:
                    session.send("INCR", key)
                    held[key] = b"%d" % (int(held.get(key, b"0")) + 1)
                    expected.append(int(held[key]))
                elif kind < 0.95:
                    other = b"k%d" % rng.randrange(12)
                    session.send("MGET", key, other)
                    expected.append([held.get(key), held.get(other)])
                else:
                    session.send("DEL", key)
                    expected.append(int(held.pop(key, None) is not None))
            assert [await session.reply() for _ in expected] == expected
        for name in cluster.names:
            for key in (b"k%d" % number for number in range(12)):
                assert await cluster.ask(name, "GET", key) == held.get(key)


def test_a_node_that_hangs_delays_plain_commands_and_undoes_nothing_when_it_goes_on() -> None:
    """What was forwarded to it is done elsewhere; what it finds in its buffers afterwards is too late."""

    @clustered(nodes=3)
    async def _(cluster: Cluster) -> None:
        keys = keys_of(cluster, "c", 8)
        hung = cluster.freeze("c")
        started_s = trio.current_time()
        sessions = [cluster.session("a") for _ in keys]
        for session, key in zip(sessions, keys, strict=True):
            session.send("SET", key, "first")
        for session in sessions:
            assert await session.reply() == b"OK"
        assert trio.current_time() - started_s < HANG_S
        await cluster.know("c", is_up=False)  # So the next ones do not lie in its buffers.
        for session, key in zip(sessions, keys, strict=True):
            session.send("SET", key, "second")
        for session in sessions:
            assert await session.reply() == b"OK"
        hung.thaw()
        await trio.sleep(3)
        for name in cluster.names:
            for key in keys:
                assert await cluster.ask(name, "GET", key) == b"second"


def test_a_command_that_must_not_be_repeated_is_not() -> None:
    @clustered(nodes=3)
    async def _(cluster: Cluster) -> None:
        (key,) = keys_of(cluster, "c", 1)
        assert await cluster.ask("a", "SET", key, 5) == b"OK"
        hung = cluster.freeze("c")
        reply = await cluster.ask("a", "INCR", key)
        assert reply.startswith(("-TIMEOUT", "-UNKNOWN"))
        hung.thaw()
        await trio.sleep(5)
        assert await cluster.ask("b", "GET", key) in (b"5", b"6")


def test_too_few_nodes_are_told_at_once() -> None:
    @clustered(nodes=3)
    async def _(cluster: Cluster) -> None:
        assert await cluster.ask("a", "SET", "k", "v") == b"OK"
        for name in ("b", "c"):
            cluster.world.machines[name].hold_down()
            cluster.kill(name)
        for name in ("b", "c"):
            await cluster.know(name, is_up=False)
        assert (await cluster.ask("a", "SET", "k", "w")).startswith("-NOREPLICAS writes need 2")
        assert (await cluster.ask("a", "GET", "k")).startswith("-NOREPLICAS reads need 2")
        assert (await cluster.ask("a", "INCR", "k")).startswith("-NOREPLICAS")
        for name in ("b", "c"):
            cluster.world.machines[name].release()
        for name in ("b", "c"):
            await cluster.know(name, is_up=True)
        assert await cluster.ask("c", "GET", "k") == b"v"


def test_a_value_that_no_message_holds_is_refused() -> None:
    @clustered(nodes=3)
    async def _(cluster: Cluster) -> None:
        cluster.bound_messages(1000)
        for number in range(6):  # Here and elsewhere.
            key = f"k{number}"
            reply = await cluster.ask("a", "SETRANGE", key, 1000, "x")
            assert reply.startswith("-ERR the value is too large for one message")
            assert await cluster.ask("a", "EXISTS", key) == 0
            assert await cluster.ask("a", "SETRANGE", key, 900, "x") == 901


def test_a_replica_that_cannot_keep_up_gets_the_rest_later(monkeypatch: pytest.MonkeyPatch) -> None:
    @clustered(nodes=3)
    async def _(cluster: Cluster) -> None:
        slow = cluster.node("c").store
        with monkeypatch.context() as patch:
            patch.setattr(type(slow), "is_overfull", property(lambda store: store is slow))
            keys = await cluster.fill("a", 60)
            held = {row for rows in slow.active for row in rows}
        await trio.sleep(10)
        for key in keys:
            assert await cluster.ask("c", "GET", key) == b"v"
        now_held = {row for rows in slow.active for row in rows}
        assert len(now_held) - len(held) > 20


@pytest.mark.parametrize("node", ["a", "b", "c", "d", "e"])
def test_what_one_pipeline_writes_to_one_key_takes_one_round(node: str) -> None:
    """The last one stays, all are answered and counted, and a value too long for a group answers for itself."""

    @clustered(nodes=5)
    async def _(cluster: Cluster) -> None:
        session = cluster.session(node)
        [one] = keys_of(cluster, "b", 1)
        [other] = keys_of(cluster, "c", 1)
        set_command, get_command = TABLE.commands["SET"], TABLE.commands["GET"]
        calls = set_command.calls, get_command.calls
        peers = cluster.node(node).peers
        assert peers is not None
        forwarding = peers.dispatch.forwarding
        forwarded = forwarding.forwarded_total
        for number in range(100):
            session.send("SET", one, b"%d" % number)
            session.send("SET", other, b"%d" % -number)
        assert [await session.reply() for _ in range(200)] == [b"OK"] * 200
        assert forwarding.forwarded_total - forwarded <= 8  # The first of a pipeline goes on alone.
        for name in "abcde":
            assert await cluster.ask(name, "GET", one) == b"99"
            assert await cluster.ask(name, "GET", other) == b"-99"
        for _ in range(50):
            session.send("GET", one)
            session.send("GET", other)
        assert [await session.reply() for _ in range(100)] == [b"99", b"-99"] * 50
        long = b"x" * (VALUE_BYTES_MAX + 1)
        for value in (b"short", long, b"last"):
            session.send("SET", one, value)
        assert [await session.reply() for _ in range(3)] == [b"OK"] * 3
        assert await cluster.ask("a", "GET", one) == b"last"
        assert set_command.calls - calls[0] == 203
        assert get_command.calls - calls[1] == 100 + 11


@pytest.mark.parametrize("count", [1, 40])  # Forwarded alone, and in a group.
def test_what_another_node_makes_of_a_write_is_later_than_the_write_came(count: int) -> None:
    """However far its clock is behind: else a SET that is tried again would not be known there, and be made twice."""

    @clustered(nodes=3)
    async def _(cluster: Cluster) -> None:
        cluster.world.machines["a"].jump(0.3)
        keys = keys_of(cluster, "b", count)
        came_ms = cluster.node("a").now_ms()
        session = cluster.session("a")
        for key in keys:
            session.send("SET", key, b"v" * (2000 if count == 1 else 1))
        for _ in keys:
            assert await session.reply() == b"OK"
        store = cluster.node("b").replica.store
        for key in keys:
            raw = store.get(slot_of(key), row_of(0, key))
            assert raw is not None
            assert decode(raw).versions[0].hlc >= came_ms << 16


def test_what_is_no_state_is_told_to_the_log_and_changes_nothing() -> None:
    @clustered(nodes=3)
    async def _(cluster: Cluster) -> None:
        peers = cluster.node("a").peers
        assert peers is not None
        received = peers.received[b"STATE"]
        for message in ([b"STATE"], [b"STATE", b"1", b"word"], [b"STATE", b"1", b""]):
            peers.receive("b", message)
            assert peers.received[b"STATE"] == received
        peers.receive("b", [b"STATE", b"1"])  # Of an earlier release.
        assert peers.received[b"STATE"] == received + 1
        assert peers.replica.is_complete
        assert await cluster.ask("a", "SET", "k", "v") == b"OK"


@pytest.mark.parametrize(
    "command",
    ["MSET", "DEL", "MGET", "EXISTS", "MSETNX", "RENAME", "KV.TRACE SET", "KV.TRACE MSET", "EXEC"],
)
def test_what_is_done_waits_for_no_collection(command: str) -> None:
    """Cycles that have survived two collections stay for hours: a node does not look through everything."""
    count = 30

    @clustered(nodes=3)
    async def _(cluster: Cluster) -> None:
        session = cluster.session("a")
        await ask_for(session, command, 0)
        gc.collect()
        gc.disable()
        try:
            for number in range(count):
                await ask_for(session, command, number)
            await trio.sleep(2)  # Whatever waits for a deadline lets go.
            kept = [o for o in gc.get_objects() if isinstance(o, Operation) and o.is_done]
        finally:
            gc.enable()
        assert len(kept) < count / 2


async def ask_for(session: Any, command: str, number: int) -> None:
    """Have it done on a few keys of several slots."""
    keys = [b"k%d:%d" % (number, other) for other in range(5)]
    pairs = [word for key in keys for word in (key, b"v")]
    name = command.rpartition(" ")[2]
    words: dict[str, list[bytes]] = {
        "SET": pairs[:2], "MSET": pairs, "MSETNX": pairs, "RENAME": keys[:2], "EXEC": [],
    }  # fmt: skip
    if name in ("RENAME", "EXEC"):
        session.send("SET", keys[0], "v")
        assert await session.reply() == b"OK"
    if name == "EXEC":
        session.send("MULTI")
        session.send("SET", keys[0], "v")
        session.send("SET", keys[1], "v")
        assert [await session.reply() for _ in range(3)] == [b"OK", b"QUEUED", b"QUEUED"]
    session.send(*command.split(), *words.get(name, keys))
    reply = await session.reply()
    assert not (isinstance(reply, bytes) and reply.startswith(b"-")), reply
