"""Siblings in a cluster: they come about on both sides of a partition and between clients, and go by contexts."""

from __future__ import annotations

from typing import Any

import trio

from cluster.delta_wire import pack_place
from cluster.open_row import UNCHECKED_ROW
from cluster.slot import SYSTEM_SLOT, row_of, slot_of
from respkv.command import TABLE
from respkv.operation import Operation, is_idempotent
from tests.respkv.gather_harness import Cluster, Session, clustered

ANY_ONE = {"r": 1, "w": 1}


async def values(cluster: Cluster, name: str, key: str = "k") -> list[bytes]:
    versions, _ = await cluster.ask(name, "KV.GET", key)
    return sorted(version[0] for version in versions)


async def context(cluster: Cluster, name: str, key: str = "k") -> bytes:
    reply = await cluster.ask(name, "KV.GET", key)
    assert isinstance(reply[1], bytes)
    return reply[1]


async def divide(cluster: Cluster, group: str, others: str) -> None:
    """A partition that all have noticed."""
    cluster.world.network.isolate(group, others)
    with trio.fail_after(30):
        for one in cluster.names:
            for other in cluster.names:
                if (one in group) is not (other in group):
                    peers = cluster.node(one).peers
                    assert peers is not None
                    while peers.topology.is_reachable(other):  # noqa: ASYNC110
                        await trio.sleep(0.05)


async def heal(cluster: Cluster) -> None:
    cluster.world.network.heal()
    for name in cluster.names:
        await cluster.know(name, is_up=True)
    await trio.sleep(5)  # Clocks are compared.


def coordinator_of(cluster: Cluster, key: str) -> str:
    topology = cluster.node("a").topology
    assert topology is not None
    return topology.preferences[slot_of(key.encode())][0]


def test_both_sides_of_a_partition_write_and_nothing_is_lost() -> None:
    @clustered(nodes=3, **ANY_ONE)
    async def _(cluster: Cluster) -> None:
        await cluster.ask("a", "SET", "k", "before")
        await trio.sleep(1)
        seen = await context(cluster, "a")
        await divide(cluster, "a", "bc")
        for name in "ab":
            reply = await cluster.ask(name, "KV.PUT", "k", f"of {name}", "CONTEXT", seen)
            assert reply[0] == 1
            assert await values(cluster, name) == [b"of " + name.encode()]
        await heal(cluster)
        for name in "abc":
            assert await values(cluster, name) == [b"of a", b"of b"]
            assert await cluster.ask(name, "GET", "k") == b"of b"  # The later one.
        assert await cluster.ask("c", "KV.RESOLVE", "k") == 1
        await trio.sleep(1)
        for name in "abc":
            assert await values(cluster, name) == [b"of b"]


def test_siblings_of_two_clients_are_merged_with_a_context_of_a_third_node() -> None:
    @clustered(nodes=5)
    async def _(cluster: Cluster) -> None:
        seen = await context(cluster, "a")
        for name in "abcde":
            await cluster.ask(name, "KV.PUT", "k", name, "CONTEXT", seen)
        for name in "abcde":
            assert await values(cluster, name) == [b"a", b"b", b"c", b"d", b"e"]
        late = await context(cluster, "d")
        await cluster.ask("e", "KV.PUT", "k", "unseen")
        assert (await cluster.ask("b", "KV.PUT", "k", "abcde", "CONTEXT", late))[0] == 2
        for name in "abcde":
            assert await values(cluster, name) == [b"abcde", b"unseen"]
        # An old context is no error: what it has seen is gone already.
        assert (await cluster.ask("c", "KV.PUT", "k", "old", "CONTEXT", late))[0] == 3
        assert await cluster.ask("c", "KV.DEL", "k", "CONTEXT", await context(cluster, "a")) == 3
        for name in "abcde":
            assert await values(cluster, name) == []
            assert await cluster.ask(name, "EXISTS", "k") == 0


def test_a_context_is_used_where_its_versions_have_not_come() -> None:
    """Also across a crash of the node that took the write; then nothing that was read comes back."""
    for is_killed in (False, True):

        @clustered(nodes=3, **ANY_ONE)
        async def _(cluster: Cluster, is_killed: bool = is_killed) -> None:
            await divide(cluster, "a", "bc")
            await cluster.ask("a", "KV.PUT", "k", "unseen")
            await cluster.ask("b", "KV.PUT", "k", "read")
            seen = await context(cluster, "b")
            assert (await cluster.ask("a", "KV.PUT", "k", "merged", "CONTEXT", seen))[0] == 2
            await cluster.ask("b", "KV.PUT", "l", "v")
            assert (
                await cluster.ask("a", "KV.DEL", "l", "CONTEXT", await context(cluster, "b", "l"))
                == 0
            )
            replica = cluster.node("a").replica
            assert slot_of(b"k") in replica.unsettled
            if is_killed:
                cluster.kill("a")
                with trio.fail_after(60):
                    await trio.sleep(0.1)
                    while not cluster.world.machines["a"].is_up:  # noqa: ASYNC110
                        await trio.sleep(0.1)
                replica = cluster.node("a").replica
                assert slot_of(b"k") in replica.unsettled
            await heal(cluster)
            for name in "abc":
                assert await values(cluster, name) == [b"merged", b"unseen"]
                assert await values(cluster, name, "l") == []
            assert not replica.unsettled


def test_the_next_write_of_who_has_not_seen_the_siblings() -> None:
    """The context of a KV.PUT goes to another node, which lacks that write and what stands beside it."""

    @clustered(nodes=3, **ANY_ONE)
    async def _(cluster: Cluster) -> None:
        await divide(cluster, "a", "bc")
        await cluster.ask("b", "KV.PUT", "k", "unseen")
        _, mine = await cluster.ask("b", "KV.PUT", "k", "first")
        _, mine = await cluster.ask("a", "KV.PUT", "k", "second", "CONTEXT", mine)
        assert await values(cluster, "a") == [b"second"]
        await heal(cluster)
        for name in "abc":  # What had not come to `a` was not replaced there.
            assert await values(cluster, name) == [b"first", b"second", b"unseen"]
        await cluster.ask("c", "KV.PUT", "k", "third", "CONTEXT", mine)
        for name in "abc":
            assert await values(cluster, name) == [b"third", b"unseen"]


def test_plain_sets_at_both_sides_are_siblings_where_w_is_below_a_majority() -> None:
    @clustered(nodes=3, **ANY_ONE)
    async def _(cluster: Cluster) -> None:
        await divide(cluster, "a", "bc")
        for name in "ab":
            for number in range(20):
                assert await cluster.ask(name, "SET", "k", f"{name}{number}") == b"OK"
        await heal(cluster)
        for name in "abc":
            assert await values(cluster, name) == [b"a19", b"b19"]
        assert await cluster.ask("c", "SET", "k", "one") == b"OK"
        await trio.sleep(1)
        for name in "abc":
            assert await values(cluster, name) == [b"one"]


def test_contended_sets_stay_below_the_limit() -> None:
    for quorums in ({}, ANY_ONE):

        @clustered(nodes=3, **quorums)
        async def _(cluster: Cluster) -> None:
            counts = []

            async def write(session: Session) -> None:
                for number in range(40):
                    assert await session.ask("SET", "k", number) == b"OK"

            async def look(session: Session) -> None:
                for _ in range(40):
                    counts.append(len((await session.ask("KV.SIBLINGS", "k"))[0]))

            async with trio.open_nursery() as nursery:
                for number in range(8):
                    nursery.start_soon(write, cluster.session("abc"[number % 3]))
                nursery.start_soon(look, cluster.session("a"))
            assert max(counts) <= 3
            await trio.sleep(5)
            assert len(await values(cluster, "a")) <= 3


def test_a_put_needs_w_replicas_and_no_majority_of_agreement() -> None:
    @clustered(nodes=3)
    async def _(cluster: Cluster) -> None:
        await divide(cluster, "a", "bc")
        reply = await cluster.ask("a", "KV.PUT", "k", "v")
        assert reply == "-NOREPLICAS writes need 2 replicas of this key, and 1 can be reached"
        assert (await cluster.ask("b", "KV.PUT", "k", "v"))[0] == 1


def test_a_put_is_not_repeated() -> None:
    """Its node dies with it under way: nobody knows, and a second try would be a sibling of the first."""
    for name in ("KV.PUT", "KV.DEL"):
        operation = Operation.__new__(Operation)
        operation.command, operation.is_plain = TABLE.commands[name], False
        assert not is_idempotent(operation)

    @clustered(nodes=3)
    async def _(cluster: Cluster) -> None:
        home = coordinator_of(cluster, "k")
        entry = next(name for name in cluster.names if name != home)
        session = cluster.session(entry)
        cluster.world.network.link(home, entry).is_cut = True  # It writes, and nobody hears that.
        session.send("KV.PUT", "k", "v")
        await trio.sleep(0.1)
        cluster.kill(home)
        assert str(await session.reply()).startswith("-UNKNOWN ")
        with trio.fail_after(60):
            await trio.sleep(0.1)
            while not cluster.world.machines[home].is_up:  # noqa: ASYNC110
                await trio.sleep(0.1)
        await heal(cluster)
        assert await values(cluster, entry) == [b"v"]


def test_contexts_of_one_cluster_are_foreign_to_another() -> None:
    texts: list[bytes] = []

    def round_of(name: str) -> None:
        @clustered(nodes=3)
        async def _(cluster: Cluster) -> None:
            from respkv.siblings import make_siblings

            for each in cluster.names:
                node = cluster.node(each)
                node.config.cluster.name = name
                node.siblings = make_siblings(node.config, None, node.replica.origin)
            if texts:
                reply: Any = await cluster.ask("a", "KV.PUT", "k", "v", "CONTEXT", texts[0])
                assert reply.startswith("-ERR the context is of another cluster")
            texts.append((await cluster.ask("a", "KV.PUT", "k", "v"))[1])
            assert (await cluster.ask("b", "KV.PUT", "k", "w", "CONTEXT", texts[-1]))[0] == 1

    round_of("one")
    round_of("two")


def test_a_context_of_what_a_node_has_lost_is_refused() -> None:
    """It cannot be: a node that lost something is another actor. If it were, new versions would be dead."""

    @clustered(nodes=3, **ANY_ONE)
    async def _(cluster: Cluster) -> None:
        home = coordinator_of(cluster, "k")
        context = b""
        for number in range(3):
            context = (await cluster.ask(home, "KV.PUT", "k", str(number)))[1]
        clocks = cluster.node(home).replica.clocks
        clocks.own[slot_of(b"k")] -= 1
        reply = await cluster.ask(home, "KV.PUT", "k", "v", "CONTEXT", context)
        assert str(reply).startswith("-ERR the context is of another cluster")
        clocks.own[slot_of(b"k")] += 1


def test_siblings_that_fit_into_no_message_are_refused() -> None:
    @clustered(nodes=3)
    async def _(cluster: Cluster) -> None:
        home = coordinator_of(cluster, "k")
        peers = cluster.node(home).peers
        assert peers is not None
        peers.dispatch.message_bytes_max = 10_000
        await cluster.ask(home, "KV.PUT", "k", "x" * 6000)
        reply = await cluster.ask(home, "KV.PUT", "k", "x" * 6000)
        assert str(reply).startswith("-ERR the siblings of this key would be too large together")
        seen = await context(cluster, home)
        reply = await cluster.ask(home, "KV.PUT", "k", "x" * 6000, "CONTEXT", seen)
        assert reply[0] == 1


def test_cluster_ports_redirect() -> None:
    @clustered(nodes=5)
    async def _(cluster: Cluster) -> None:
        home = coordinator_of(cluster, "k")
        other = next(name for name in cluster.names if name != home)
        session = cluster.session(other, is_cluster=True)
        for words in (("KV.GET", "k"), ("KV.PUT", "k", "v"), ("KV.DEL", "k"), ("KV.RESOLVE", "k")):
            assert str(await session.ask(*words)).startswith(f"-MOVED {slot_of(b'k')} ")


def test_an_exec_fails_when_siblings_have_come() -> None:
    @clustered(nodes=3)
    async def _(cluster: Cluster) -> None:
        await cluster.ask("a", "SET", "k", "v")
        session = cluster.session("b")
        await session.ask("WATCH", "k")
        await cluster.ask("c", "KV.PUT", "k", "w")
        await session.ask("MULTI")
        await session.ask("SET", "k", "x")
        assert await session.ask("EXEC") is None
        assert await values(cluster, "a") == [b"v", b"w"]


def test_each_put_is_noted_as_one_that_nobody_may_refuse() -> None:
    """So that the next process of its node does not take it for a write that may have to go."""

    @clustered(nodes=3)
    async def _(cluster: Cluster) -> None:
        home = coordinator_of(cluster, "k")
        noted = []
        for words in (("KV.PUT", "k", "v"), ("KV.PUT", "k", "w"), ("KV.DEL", "k")):
            seen = ("CONTEXT", await context(cluster, home)) if words[0] == "KV.DEL" else ()
            await cluster.ask(home, *words, *seen)
            noted.append(cluster.node(home).replica.store.get(SYSTEM_SLOT, UNCHECKED_ROW) or b"")
        assert len(set(noted)) == 3
        assert all(raw.endswith(pack_place(slot_of(b"k"), row_of(0, b"k"))) for raw in noted)


def test_a_put_replaces_without_a_mark_where_nothing_stays() -> None:
    """Then the record is the short one of a plain SET: GET is as fast as ever."""

    @clustered(nodes=3)
    async def _(cluster: Cluster) -> None:
        home = coordinator_of(cluster, "k")
        seen = (await cluster.ask(home, "KV.PUT", "k", "v"))[1]
        for number in range(3):
            seen = (await cluster.ask(home, "KV.PUT", "k", str(number), "CONTEXT", seen))[1]
        for name in cluster.names:
            raw = cluster.node(name).store.get(slot_of(b"k"), row_of(0, b"k"))
            assert raw is not None
            assert raw[25:] == b"2"
