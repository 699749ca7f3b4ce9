"""WATCH in a cluster: EXEC does nothing if the key was changed since, by whomever and wherever."""

from __future__ import annotations

import itertools
import random

import pytest
import trio

from cluster.slot import slot_of
from tests.respkv.gather_harness import Cluster, Session, clustered

NAMES = ("a", "b", "c", "d", "e")


async def transact(session: Session, *words: bytes | str) -> object:
    """EXEC's answer."""
    assert await session.ask("MULTI") == b"OK"
    assert await session.ask(*words) == b"QUEUED"
    return await session.ask("EXEC")


def roles(cluster: Cluster, key: bytes) -> dict[str, str]:
    """A node for each thing that a node can be to a key."""
    topology = cluster.node("a").topology
    assert topology is not None
    first, second, third = topology.preferences[slot_of(key)]
    return {
        "coordinator": first,
        "replica": second,
        "other replica": third,
        "no replica": next(name for name in NAMES if name not in (first, second, third)),
    }


CHANGES: dict[str, list[tuple[str, ...]]] = {
    "set": [("SET", "v2")],
    "the same value again": [("SET", "v1")],
    "removed": [("DEL",)],
    "removed and made again": [("DEL",), ("SET", "v1")],
    "expiry": [("PEXPIRE", "100000")],
    "expired": [("PEXPIRE", "1")],
    "appended": [("APPEND", "x")],
}
ROLES = ("coordinator", "replica", "other replica", "no replica")


@pytest.mark.parametrize("what", ["WRITES IT", "WRITES ANOTHER", "READS"])
@pytest.mark.parametrize("watcher", ROLES)
def test_a_change_between_watch_and_exec(watcher: str, what: str) -> None:
    @clustered(nodes=5)
    async def _(cluster: Cluster) -> None:
        number = itertools.count()
        for writer, (name, change) in itertools.product(ROLES, CHANGES.items()):
            tag = b"{%d}" % next(number)
            key = b"watched" + tag
            at = roles(cluster, key)
            session = cluster.session(at[watcher])
            command: tuple[bytes | str, ...] = {
                "WRITES IT": ("SET", key, "mine"),
                "WRITES ANOTHER": ("SET", b"another" + tag, "mine"),
                "READS": ("GET", b"another" + tag),
            }[what]
            for is_changed in (True, False):
                await cluster.ask(at["coordinator"], "SET", key, "v1")
                assert await session.ask("WATCH", key) == b"OK"
                if is_changed:
                    for word, *rest in change:
                        await cluster.ask(at[writer], word, key, *rest)
                    if name == "expired":
                        await trio.sleep(0.05)
                reply = await transact(session, *command)
                expected = None if is_changed else [None if what == "READS" else b"OK"]
                if what == "READS" and not is_changed:
                    assert reply == expected
                else:
                    assert reply == expected, (writer, name, is_changed)
                written = await cluster.ask("a", "GET", command[1])
                assert (written == b"mine") is (not is_changed and what != "READS")
                await cluster.ask("a", "DEL", command[1])


@pytest.mark.parametrize("watcher", ROLES)
def test_a_key_that_was_not_there(watcher: str) -> None:
    @clustered(nodes=5)
    async def _(cluster: Cluster) -> None:
        for turn, writer in enumerate(ROLES):
            key = b"new%d" % turn
            at = roles(cluster, key)
            session = cluster.session(at[watcher])
            assert await session.ask("WATCH", key) == b"OK"
            assert await transact(session, "SET", key, "mine") == [b"OK"]
            await cluster.ask(at[writer], "DEL", key)
            assert await session.ask("WATCH", key) == b"OK"
            await cluster.ask(at[writer], "SET", key, "theirs")
            assert await transact(session, "SET", key, "mine") is None
            assert await cluster.ask("a", "GET", key) == b"theirs"
            # There, when it is watched, and gone by itself before EXEC.
            await cluster.ask(at[writer], "SET", key, "theirs", "PX", 100)
            assert await session.ask("WATCH", key) == b"OK"
            await trio.sleep(0.2)
            assert await transact(session, "SET", key, "mine") is None


@pytest.mark.parametrize("watcher", ROLES)
def test_own_writes_count_and_unwatch_forgets(watcher: str) -> None:
    @clustered(nodes=5)
    async def _(cluster: Cluster) -> None:
        key = b"k"
        session = cluster.session(roles(cluster, key)[watcher])
        assert await session.ask("WATCH", key) == b"OK"
        await session.ask("SET", key, "1")
        assert await transact(session, "SET", key, "2") is None
        for forget in ("UNWATCH", "DISCARD"):
            assert await session.ask("WATCH", key) == b"OK"
            await session.ask("SET", key, "1")
            if forget == "DISCARD":
                await session.ask("MULTI")
            await session.ask(forget)
            assert await transact(session, "SET", key, "2") == [b"OK"]
        # Twice: what was seen first counts.
        assert await session.ask("WATCH", key) == b"OK"
        await cluster.ask("b", "SET", key, "3")
        assert await session.ask("WATCH", key) == b"OK"
        assert await transact(session, "SET", key, "2") is None
        # A write of another database is of another key.
        assert await session.ask("WATCH", key) == b"OK"
        other = cluster.session("b")
        await other.ask("SELECT", 1)
        await other.ask("SET", key, "elsewhere")
        assert await transact(session, "SET", key, "2") == [b"OK"]
        assert await other.ask("GET", key) == b"elsewhere"


def test_a_watch_at_a_replica_that_has_missed_a_write() -> None:
    """What it sees first is overtaken: only what was confirmed is watched, so EXEC goes through."""

    @clustered(nodes=3)
    async def _(cluster: Cluster) -> None:
        network = cluster.world.network
        tried = 0
        for number in range(6):
            key = b"k%d" % number
            at = roles_of_three(cluster, key)
            await cluster.ask(at[0], "SET", key, "old")
            network.cut(at[0], at[2])
            await cluster.ask(at[0], "SET", key, "new")
            network.heal()
            session = cluster.session(at[2])
            assert await session.ask("WATCH", key) == b"OK"
            reply = await transact(session, "SET", key, "mine")
            tried += 1
            assert reply == [b"OK"], number
        assert tried


def roles_of_three(cluster: Cluster, key: bytes) -> tuple[str, ...]:
    topology = cluster.node("a").topology
    assert topology is not None
    return topology.preferences[slot_of(key)]


@pytest.mark.parametrize("nodes", [3, 5])
@pytest.mark.parametrize("is_disturbed", [False, True])
def test_optimistic_loops_lose_nothing(nodes: int, is_disturbed: bool) -> None:
    """GET, then SET of one more: each success is one more. In doubt, one more or not."""
    rng = random.Random(nodes)

    @clustered(nodes=nodes)
    async def _(cluster: Cluster) -> None:
        network = cluster.world.network
        sure = unsure = failed = 0

        async def add(name: str) -> None:
            nonlocal sure, unsure, failed
            session = cluster.session(name)
            for _ in range(8):
                with trio.move_on_after(30):
                    while True:
                        await trio.sleep(rng.uniform(0, 0.02))
                        if await session.ask("WATCH", "sum") != b"OK":
                            continue
                        value = await session.ask("GET", "sum")
                        if isinstance(value, str):
                            await session.ask("UNWATCH")
                            continue
                        reply = await transact(session, "SET", "sum", str(int(value or 0) + 1))
                        if reply == [b"OK"]:
                            sure += 1
                            break
                        if isinstance(reply, str) and reply.startswith(("-UNKNOWN", "-TIMEOUT")):
                            unsure += 1
                            break
                        failed += reply is None

        async def disturb() -> None:
            while True:
                await trio.sleep(rng.uniform(0.1, 0.5))
                one, other = rng.sample(cluster.names, 2)
                rng.choice([network.break_connection, network.cut])(one, other)
                await trio.sleep(rng.uniform(0.1, 2))
                network.heal()

        async with trio.open_nursery() as disturbing:
            if is_disturbed:
                disturbing.start_soon(disturb)
            async with trio.open_nursery() as adding:
                for turn in range(8):
                    adding.start_soon(add, cluster.names[turn % nodes])
            disturbing.cancel_scope.cancel()
        network.heal()
        await trio.sleep(15)
        total = int(await cluster.ask("a", "GET", "sum"))
        assert sure <= total <= sure + unsure
        assert failed
        if not is_disturbed:
            assert (total, unsure) == (64, 0)
