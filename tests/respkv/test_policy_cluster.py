"""R and W by policy, connection and request: what nodes of a cluster ask one another then."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import trio

from cluster.record import decode
from cluster.slot import row_of, slot_of
from respkv.policy import Policy
from tests.respkv.gather_harness import Cluster, clustered

THREE = {"nodes": 3, "n": 3, "r": 2, "w": 2}
CARTS = Policy(prefix="cart:", write="ALL")
LOOSE = Policy(prefix="loose:", read=1, write=1)


class Wire:
    """The messages that a node sends."""

    def __init__(self, cluster: Cluster, name: str) -> None:
        peers = cluster.node(name).peers
        assert peers is not None
        self.sent: list[tuple[str, Sequence[bytes]]] = []
        transport: Any = peers.transport
        send = transport.send

        def note(peer: str, message: Sequence[bytes]) -> None:
            self.sent.append((peer, message))
            send(peer, message)

        transport.send = note

    def take(self, verb: bytes) -> list[tuple[str, Sequence[bytes]]]:
        found = [each for each in self.sent if each[1][0] == verb]
        self.sent.clear()
        return found


def key_at(cluster: Cluster, coordinator: str, prefix: str = "key") -> str:
    """A key of a slot that this node coordinates."""
    peers = cluster.node(coordinator).peers
    assert peers is not None
    for number in range(10_000):
        key = f"{prefix}{number}"
        if peers.topology.coordinators[slot_of(key.encode())] == coordinator:
            return key
    raise AssertionError(coordinator)


async def lose(cluster: Cluster, name: str) -> None:
    cluster.kill(name)
    await cluster.know(name, is_up=False)


def test_a_write_on_all_fails_while_a_node_is_down_and_one_on_one_does_not() -> None:
    @clustered(**THREE, policies=(CARTS, LOOSE))
    async def _(cluster: Cluster) -> None:
        assert await cluster.ask("a", "SET", "cart:1", "v") == b"OK"
        await lose(cluster, "c")
        reply = await cluster.ask("a", "SET", "cart:1", "w")
        assert reply.startswith("-NOREPLICAS writes need 3 replicas"), reply
        assert await cluster.ask("a", "GET", "cart:1") == b"v"
        assert await cluster.ask("a", "SET", "other", "v") == b"OK"
        await lose(cluster, "b")
        reply = await cluster.ask("a", "SET", "other", "w")
        assert reply.startswith("-NOREPLICAS writes need 2 replicas"), reply
        assert await cluster.ask("a", "SET", "loose:1", "v") == b"OK"
        assert await cluster.ask("a", "GET", "loose:1") == b"v"
        # What depends on the old value needs a majority, whatever the policy says.
        reply = await cluster.ask("a", "INCR", "loose:2")
        assert reply.startswith("-NOREPLICAS writes need 2 replicas"), reply


def test_a_connection_and_a_request_decide_before_the_policy() -> None:
    @clustered(**THREE, policies=(CARTS,))
    async def _(cluster: Cluster) -> None:
        session = cluster.session("a")
        await lose(cluster, "c")
        assert (await session.ask("SET", "cart:1", "v")).startswith("-NOREPLICAS")
        assert await session.ask("KV.WITH", "W", "QUORUM", "SET", "cart:1", "v") == b"OK"
        assert (await session.ask("SET", "cart:1", "v")).startswith("-NOREPLICAS")
        assert await session.ask("KV.CONSISTENCY", "WRITE", "2") == b"OK"
        assert await session.ask("SET", "cart:1", "w") == b"OK"
        reply = await session.ask("KV.WITH", "W", "ALL", "SET", "cart:1", "x")
        assert reply.startswith("-NOREPLICAS writes need 3")
        # Other connections have nothing of it.
        assert (await cluster.ask("a", "SET", "cart:1", "v")).startswith("-NOREPLICAS")
        assert await session.ask("KV.CONSISTENCY") == [
            b"read", 2, b"read_source", b"configuration",
            b"write", 2, b"write_source", b"connection",
        ]  # fmt: skip
        assert await session.ask("RESET") == b"RESET"
        assert (await session.ask("SET", "cart:1", "v")).startswith("-NOREPLICAS")


def test_as_many_replicas_are_asked_as_r_says() -> None:
    @clustered(**THREE, policies=(LOOSE, Policy(prefix="all:", read="ALL")))
    async def _(cluster: Cluster) -> None:
        wire = Wire(cluster, "a")
        counts = {}
        for key in ("plain", "all:1"):
            await cluster.ask("a", "GET", key)
            counts[key] = len(wire.take(b"READ"))
        await cluster.ask("a", "KV.WITH", "R", "1", "W", "3", "GET", "plain")
        counts["one"] = len(wire.take(b"READ"))
        await cluster.ask("a", "KV.WITH", "R", "ALL", "GET", "plain")
        counts["three"] = len(wire.take(b"READ"))
        await cluster.ask("a", "MGET", "plain:{x}", "all:{x}")
        counts["the strictest"] = len(wire.take(b"READ"))
        assert counts == {"plain": 1, "all:1": 2, "one": 0, "three": 2, "the strictest": 2}


def test_several_keys_in_one_command_take_the_strictest_of_their_policies() -> None:
    @clustered(**THREE, policies=(CARTS, LOOSE))
    async def _(cluster: Cluster) -> None:
        await lose(cluster, "c")
        for commands in (
            [("RENAME", "loose:{x}", "cart:{x}")],
            [("MULTI",), ("SET", "loose:{x}", "1"), ("SET", "cart:{x}", "1"), ("EXEC",)],
        ):
            await cluster.ask("a", "KV.WITH", "W", "2", "SET", "loose:{x}", "v")
            for command in commands:
                reply = await cluster.ask("a", *command)
            assert reply.startswith("-NOREPLICAS writes need 3 replicas"), reply


def test_with_r_and_w_too_small_the_coordinator_answers_unless_the_client_wants_any() -> None:
    @clustered(**THREE, policies=(LOOSE,))
    async def _(cluster: Cluster) -> None:
        wire = Wire(cluster, "a")
        key = key_at(cluster, "b", "loose:")
        await cluster.ask("b", "SET", key, "v")
        await trio.sleep(1)
        assert await cluster.ask("a", "GET", key) == b"v"
        ((peer, _),) = wire.take(b"FORWARD")
        assert peer == "b"
        # With W = 3 it would have seen the write in any case.
        assert await cluster.ask("a", "KV.WITH", "W", "3", "GET", key) == b"v"
        assert not wire.take(b"FORWARD")
        session = cluster.node("a").front
        next(iter(session.connections.values())).session.is_readonly = True
        assert await cluster.ask("a", "GET", key) == b"v"
        assert not wire.take(b"FORWARD")


def test_a_forwarded_command_keeps_what_was_decided() -> None:
    @clustered(**THREE, policies=(CARTS,))
    async def _(cluster: Cluster) -> None:
        at_a, at_b = Wire(cluster, "a"), Wire(cluster, "b")
        key = key_at(cluster, "b")
        cart = key_at(cluster, "b", "cart:")
        await lose(cluster, "c")
        reply = await cluster.ask("a", "KV.WITH", "W", "ALL", "SET", key, "v")
        assert reply.startswith("-NOREPLICAS writes need 3"), reply
        ((peer, message),) = at_a.take(b"FORWARD")
        assert (peer, message[7]) == ("b", b"2 3")
        assert (await cluster.ask("a", "SET", cart, "v")).startswith("-NOREPLICAS writes need 3")
        assert not at_b.take(b"WRITE")
        assert await cluster.ask("a", "KV.WITH", "W", "1", "R", "1", "SET", cart, "v") == b"OK"
        assert [message[7] for _, message in at_a.take(b"FORWARD")] == [b"2 3", b"1 1"]
        # Without a majority to check it: the flag of a write that becomes a sibling.
        assert [message[2] for _, message in at_b.take(b"WRITE")] == [b"u"]
        session = cluster.session("a")
        await session.ask("KV.CONSISTENCY", "WRITE", "ALL")
        await session.ask("MULTI")
        await session.ask("SET", key, "w")
        assert (await session.ask("EXEC")).startswith("-NOREPLICAS writes need 3")


def test_time_of_a_request() -> None:
    @clustered(**THREE)
    async def _(cluster: Cluster) -> None:
        key = key_at(cluster, "a")
        assert await cluster.ask("a", "KV.WITH", "TIMEOUT", "500", "SET", key, "v") == b"OK"
        network = cluster.world.network
        network.cut("a", "b")
        network.cut("a", "c")
        begun_s = trio.current_time()
        reply = await cluster.ask("a", "KV.WITH", "TIMEOUT", "200", "GET", key)
        took_s = trio.current_time() - begun_s
        assert reply.startswith("-TIMEOUT no answer in time"), reply
        assert 0.2 <= took_s < 0.3


# Beside the quorums


SESSIONS = Policy(prefix="session:", read=1, write=1, last_writer_wins=True, ttl_s=60)
SHOWN = Policy(prefix="shown:", read=1, write=1, siblings="error")
LIMITED = Policy(prefix="limited:", value_bytes_max=3, ttl_s=60)


def test_expiry_and_length_hold_at_every_node() -> None:
    @clustered(nodes=5, n=3, policies=(LIMITED,))
    async def _(cluster: Cluster) -> None:
        for number in range(10):
            key = f"limited:{number}"
            reply = await cluster.ask("a", "SET", key, "long")
            assert reply.startswith("-ERR the value has 4 bytes"), reply
            assert await cluster.ask("a", "GET", key) is None
            assert await cluster.ask("a", "SET", key, "abc") == b"OK"
            assert 0 < await cluster.ask("b", "PTTL", key) <= 60_000
        pairs = [word for number in range(5) for word in (f"limited:{number}", "xyz")]
        assert await cluster.ask("c", "MSET", *pairs) == b"OK"
        assert 0 < await cluster.ask("b", "PTTL", "limited:3") <= 60_000


async def split(cluster: Cluster, key: str) -> None:
    """Two sides write a key, one after the other; then they hear of each other."""
    network = cluster.world.network
    network.isolate(["a"], ["b", "c"])
    for name, others in (("a", "bc"), ("b", "a")):
        peers = cluster.node(name).peers
        assert peers is not None
        with trio.fail_after(60):
            while any(peers.topology.is_reachable(other) for other in others):  # noqa: ASYNC110
                await trio.sleep(0.05)
    assert await cluster.ask("a", "SET", key, "early") == b"OK"
    await trio.sleep(1)
    assert await cluster.ask("b", "SET", key, "late") == b"OK"
    network.heal()
    for name in cluster.names:
        await cluster.know(name, is_up=True)
    await trio.sleep(15)


def stored(cluster: Cluster, name: str, key: str) -> list[bytes]:
    row = (slot_of(key.encode()), row_of(0, key.encode()))
    raw = cluster.node(name).store.get(*row)
    return [version.payload for version in decode(raw).versions] if raw else []


def test_what_get_shows_of_siblings_and_what_is_kept() -> None:
    @clustered(**THREE, policies=(SESSIONS, SHOWN, LOOSE))
    async def _(cluster: Cluster) -> None:
        for key in ("session:1", "shown:1", "loose:1"):
            await split(cluster, key)
        for name in cluster.names:
            assert stored(cluster, name, "session:1") == [b"late"]
            assert sorted(stored(cluster, name, "shown:1")) == [b"early", b"late"]
            assert await cluster.ask(name, "GET", "session:1") == b"late"
            assert await cluster.ask(name, "GET", "loose:1") == b"late"
            for command in (
                ("GET", "shown:1"),
                ("MGET", "loose:1", "shown:1"),
                ("STRLEN", "shown:1"),
            ):
                reply = await cluster.ask(name, *command)
                assert reply.startswith("-SIBLINGS 2 versions of this key"), (command, reply)
        assert await cluster.ask("c", "SET", "shown:1", "one") == b"OK"
        assert await cluster.ask("c", "GET", "shown:1") == b"one"


def test_a_whole_keyspace_command_misses_nothing_that_a_policy_promises() -> None:
    loose = Policy(prefix="w1:", read="ALL", write="ONE")

    @clustered(**THREE, policies=(loose,))
    async def _(cluster: Cluster) -> None:
        network = cluster.world.network
        coordinator = key_at(cluster, "a", "w1:")
        for peer in "bc":
            network.cut("a", peer)
        assert await cluster.ask("a", "SET", coordinator, "v") == b"OK"
        network.heal()
        for name in cluster.names:
            await cluster.know(name, is_up=True)
        assert await cluster.scan("b", "MATCH", "w1:*") == [coordinator.encode()]
        peers = cluster.node("b").peers
        assert peers is not None
        assert (peers.coordinator.survey_quorums.r, peers.coordinator.survey_quorums.w) == (3, 2)
        assert peers._least_w == 1
