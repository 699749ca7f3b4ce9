"""WAIT and WAITAOF in a cluster: what they count is there, and they count what is there."""

from __future__ import annotations

import pytest
import trio

from cluster.arrival import HERE, SLOTS_PER_PART
from cluster.slot import row_of, slot_of
from tests.respkv.gather_harness import Cluster, Session, clustered


def holders(cluster: Cluster, key: bytes, value: bytes, *, durable: bool = False) -> set[str]:
    """The nodes that hold a value; `durable`: on the disk."""
    found = set()
    for name in cluster.names:
        if not cluster.world.machines[name].is_up:
            continue
        node = cluster.node(name)
        raw = node.store.get(slot_of(key), row_of(0, key))
        log = node.store.log
        is_durable = not log.pieces and log.synced == log.position
        if raw is not None and raw.endswith(value) and (is_durable or not durable):
            found.add(name)
    return found


async def hold_down(cluster: Cluster, name: str) -> None:
    """Kill a node, and keep it from starting again."""
    cluster.world.machines[name].hold_down()
    cluster.kill(name)
    await cluster.know(name, is_up=False)


def key_without(cluster: Cluster, name: str) -> bytes:
    """A key of which a node is no replica."""
    topology = cluster.node(name).topology
    assert topology is not None
    return next(
        key for key in (b"key%d" % n for n in range(1000))
        if name not in topology.preferences[slot_of(key)]
    )  # fmt: skip


@pytest.mark.parametrize("nodes", [3, 5])
def test_all_replicas_have_what_wait_counts(nodes: int) -> None:
    @clustered(nodes=nodes)
    async def _(cluster: Cluster) -> None:
        for number in range(40):
            name = cluster.names[number % nodes]
            key, value = b"k%d" % number, b"value %d" % number
            assert await cluster.ask(name, "SET", key, value) == b"OK"
            assert await cluster.ask(name, "WAIT", 2, 0) == 2
            assert len(holders(cluster, key, value)) == 3
            assert await cluster.ask(name, "WAITAOF", 1, 2, 0) == [1, 2]
            assert len(holders(cluster, key, value, durable=True)) == 3


@pytest.mark.parametrize("command", ["one", "pipeline", "exec", "mset", "del", "flush"])
def test_whatever_writes_is_waited_for(command: str) -> None:
    """The third replica cannot be reached: so WAIT 2 must not be met, however it was written."""

    @clustered(nodes=5)
    async def _(cluster: Cluster) -> None:
        key = key_without(cluster, "a")
        topology = cluster.node("a").topology
        assert topology is not None
        await cluster.fill("a", 20)
        session = cluster.session("a")
        last = topology.preferences[slot_of(key)][2]
        await hold_down(cluster, last)
        ask = session.ask
        match command:
            case "one":
                await ask("SET", key, "v")
            case "pipeline":
                for _ in range(3):
                    session.send("SET", key, "v")
                for _ in range(3):
                    await session.reply()
            case "exec":
                for words in (("MULTI",), ("SET", key, "v"), ("EXEC",)):
                    await ask(*words)
            case "mset":
                await ask("MSET", key, "v", "other", "v")
            case "del":
                await ask("SET", key, "v")
                await ask("DEL", key, "other")
            case "flush":
                assert await ask("FLUSHALL") == b"OK"
        assert await ask("WAIT", 2, 300) == 1
        assert await ask("WAITAOF", 1, 2, 300) == [1, 1]
        assert await ask("WAIT", 1, 0) == 1
        assert await ask("WAITAOF", 1, 1, 0) == [1, 1]


def test_it_goes_on_when_the_last_replica_is_back() -> None:
    @clustered(nodes=3)
    async def _(cluster: Cluster) -> None:
        await hold_down(cluster, "c")
        session = cluster.session("a")
        await session.ask("SET", "k", "v")
        session.send("WAIT", 2, 0)
        session.send("WAITAOF", 1, 2, 0)
        await trio.sleep(3)
        assert len(holders(cluster, b"k", b"v")) == 2
        cluster.world.machines["c"].release()
        assert await session.reply() == 2
        assert holders(cluster, b"k", b"v") == {"a", "b", "c"}
        assert await session.reply() == [1, 2]
        assert holders(cluster, b"k", b"v", durable=True) == {"a", "b", "c"}


def test_nothing_is_counted_that_a_cut_off_replica_lacks() -> None:
    """No connection is closed: the messages to it are lost."""

    @clustered(nodes=3)
    async def _(cluster: Cluster) -> None:
        network = cluster.world.network
        counted = 0
        for number in range(20):
            key = b"k%d" % number
            cut_off, writer = cluster.names[number % 3], cluster.names[(number + 1) % 3]
            await cluster.ask(writer, "SET", key, "old")
            for other in cluster.names:
                if other != cut_off:
                    network.cut(other, cut_off)
            with trio.move_on_after(3):
                is_written = await cluster.ask(writer, "SET", key, "new") == b"OK"
                reached = await cluster.ask(writer, "WAIT", 2, 200)
                assert not is_written or reached <= len(holders(cluster, key, b"new")) - 1
                assert not is_written or reached < 2
                counted += is_written and reached == 1
            network.heal()
            await trio.sleep(8)
            assert await cluster.ask(writer, "WAIT", 2, 0) == 2
        assert counted


def test_a_session_that_wrote_nothing_counts_who_is_there() -> None:
    @clustered(nodes=3)
    async def _(cluster: Cluster) -> None:
        assert await cluster.ask("a", "WAIT", 2, 0) == 2
        assert await cluster.ask("a", "WAITAOF", 1, 2, 0) == [1, 2]
        assert await cluster.ask("a", "WAIT", 3, 50) == 2
        assert await cluster.ask("a", "WAIT", 0, 0) == 2
        await cluster.ask("a", "SET", "k", "v")
        assert await cluster.ask("a", "WAIT", 0, 0) == 2
        assert await cluster.ask("a", "WAIT", 3, 50) == 2
        await hold_down(cluster, "c")
        assert await cluster.ask("b", "WAIT", 2, 50) == 1
        assert await cluster.ask("a", "WAIT", 0, 0) in (1, 2)


def test_a_wait_ends_with_its_client_and_by_unblock() -> None:
    @clustered(nodes=3)
    async def _(cluster: Cluster) -> None:
        await hold_down(cluster, "c")
        gone, session = cluster.session("a"), cluster.session("a")
        number = await session.ask("CLIENT", "ID")
        for each in (gone, session):
            await each.ask("SET", "k", "v")
            each.send("WAIT", 2, 0)
        await trio.sleep(0.5)
        peers = cluster.node("a").peers
        assert peers is not None
        assert not peers.arrivals.is_idle
        gone.connection.close()
        assert await cluster.ask("a", "CLIENT", "UNBLOCK", number) == 1
        assert await session.reply() == 1
        session.send("WAIT", 2, 0)
        await trio.sleep(0.1)
        assert await cluster.ask("a", "CLIENT", "UNBLOCK", number, "ERROR") == 1
        assert await session.reply() == "-UNBLOCKED client unblocked via CLIENT UNBLOCK"
        await trio.sleep(1)
        assert peers.arrivals.is_idle


def test_inside_a_transaction_nobody_is_blocked() -> None:
    @clustered(nodes=3)
    async def _(cluster: Cluster) -> None:
        ask = cluster.session("a").ask
        await ask("MULTI")
        await ask("SET", "k", "v")
        await ask("WAIT", 2, 0)
        assert await ask("EXEC") == [b"OK", 0]


def test_errors_are_those_of_redis() -> None:
    @clustered(nodes=3)
    async def _(cluster: Cluster) -> None:
        async def ask(*words: str | int) -> object:
            return await cluster.ask("a", *words)

        assert await ask("WAIT", "x", 0) == "-ERR value is not an integer or out of range"
        assert await ask("WAIT", 1, -1) == "-ERR timeout is negative"
        assert await ask("WAITAOF", 2, 1, 0) == (
            "-ERR value is out of range, value must between 0 and 1"
        )


def test_a_lossy_network_only_delays() -> None:
    @clustered(nodes=3, loss=0.2, repetition=0.2, reordering=0.2)
    async def _(cluster: Cluster) -> None:
        for number in range(15):
            key, name = b"k%d" % number, cluster.names[number % 3]
            if await cluster.ask(name, "SET", key, "v") != b"OK":
                continue
            assert await cluster.ask(name, "WAITAOF", 1, 2, 0) == [1, 2]
            assert len(holders(cluster, key, b"v", durable=True)) == 3


def test_many_slots_are_asked_for_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    @clustered(nodes=3)
    async def _(cluster: Cluster) -> None:
        session: Session = cluster.session("a")
        await session.ask("FLUSHALL")
        assert await session.ask("WAIT", 2, 0) == 2
        peers = cluster.node("a").peers
        assert peers is not None
        assert peers.arrivals.is_idle
        monkeypatch.setattr("cluster.arrival.SLOTS_MAX", SLOTS_PER_PART)
        await hold_down(cluster, "c")
        await session.ask("FLUSHALL")
        session.send("WAIT", 2, 0)
        await trio.sleep(0.1)
        other = cluster.session("a")
        await other.ask("SET", "k", "v")
        assert await other.ask("WAIT", 1, 0) == (
            "-BUSY too much is on its way to other nodes: try again"
        )
        session.connection.close()
        await trio.sleep(0.5)
        assert await other.ask("WAIT", 1, 0) == 1
        assert peers.received.get(HERE, 0) < 10
