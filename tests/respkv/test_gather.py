"""Commands on the whole keyspace of a cluster, on simulated machines."""

from __future__ import annotations

import random
from functools import partial
from typing import Any

import pytest
import trio

from cluster.slot import slot_of
from respkv import gather
from respkv.cluster_view import coordinated
from respkv.gather_wire import FLUSH, Question, whole
from tests.respkv.gather_harness import Cluster, Session, clustered

SIZES = (3, 5)


def in_slots(keys: set[bytes], ranges: list[tuple[int, int]]) -> set[bytes]:
    return {key for key in keys if any(a <= slot_of(key) <= b for a, b in ranges)}


@pytest.mark.parametrize("nodes", SIZES)
def test_each_node_knows_all_keys(nodes: int) -> None:
    @clustered(nodes=nodes)
    async def _(cluster: Cluster) -> None:
        keys = await cluster.fill("a", 300)
        for name in cluster.names:
            assert await cluster.ask(name, "DBSIZE") == 300
            listed = await cluster.ask(name, "KEYS", "*")
            assert len(listed) == 300
            assert set(listed) == keys
            scanned = await cluster.scan(name, "COUNT", 40)
            assert len(scanned) == 300
            assert set(scanned) == keys
            assert await cluster.ask(name, "RANDOMKEY") in keys


def test_patterns_types_and_databases() -> None:
    @clustered(nodes=5)
    async def _(cluster: Cluster) -> None:
        await cluster.fill("a", 100)
        await cluster.fill("b", 5, "{tag}:")
        tagged = [b"{tag}:%d" % n for n in range(5)]
        for name in cluster.names:
            assert sorted(await cluster.ask(name, "KEYS", "{tag}:*")) == tagged
            assert await cluster.ask(name, "KEYS", "{tag}:3") == [b"{tag}:3"]
            assert await cluster.ask(name, "KEYS", "{tag}:9") == []
            assert sorted(await cluster.scan(name, "MATCH", "{tag}:*")) == tagged
            assert await cluster.scan(name, "MATCH", "{tag}:3") == [b"{tag}:3"]
            assert len(await cluster.scan(name, "TYPE", "string", "COUNT", 50)) == 105
            assert await cluster.scan(name, "TYPE", "list") == []
            assert sorted(await cluster.ask(name, "KEYS", "key:?")) == [
                b"key:%d" % n for n in range(10)
            ]
        other = cluster.session("c")
        assert await other.ask("SELECT", 3) == b"OK"
        assert await other.ask("DBSIZE") == 0
        assert await other.ask("RANDOMKEY") is None
        assert await other.ask("SET", "of three", "v") == b"OK"
        assert await other.ask("KEYS", "*") == [b"of three"]
        assert await other.ask("RANDOMKEY") == b"of three"
        assert await cluster.ask("d", "DBSIZE") == 105


def test_errors_are_those_of_redis() -> None:
    @clustered(nodes=3)
    async def _(cluster: Cluster) -> None:
        ask = cluster.ask
        assert await ask("a", "SCAN", "x") == "-ERR invalid cursor"
        assert await ask("a", "SCAN", 0, "COUNT", 0) == "-ERR syntax error"
        assert await ask("a", "SCAN", 0, "COUNT") == "-ERR syntax error"
        assert (
            await ask("a", "SCAN", 0, "COUNT", "x")
            == "-ERR value is not an integer or out of range"
        )
        assert await ask("a", "SCAN", str((1 << 64) - 1)) == [b"0", []]
        assert await ask("a", "FLUSHALL", "NOW") == "-ERR syntax error"
        assert await ask("a", "KEYS") == "-ERR wrong number of arguments for 'keys' command"
        assert await ask("a", "SWAPDB", 0, 1) == "-ERR SWAPDB is not supported in a cluster"


@pytest.mark.parametrize(
    "words",
    [("FLUSHALL",), ("FLUSHDB",), ("SWAPDB", 0, 1), ("SCAN", 0), ("KEYS", "*"), ("RANDOMKEY",)],
)
def test_not_within_a_transaction(words: tuple[str | int, ...]) -> None:
    @clustered(nodes=3)
    async def _(cluster: Cluster) -> None:
        session = cluster.session("a")
        assert await session.ask("MULTI") == b"OK"
        assert await session.ask("SET", "k", "v") == b"QUEUED"
        assert (
            await session.ask(*words)
            == "-ERR this command cannot be used inside MULTI in a cluster"
        )
        assert str(await session.ask("EXEC")).startswith("-EXECABORT")
        assert await session.ask("GET", "k") is None


def test_replies_keep_their_order() -> None:
    @clustered(nodes=5)
    async def _(cluster: Cluster) -> None:
        session = cluster.session("a")
        for words in (
            ("SET", "k1", "v"), ("DBSIZE",), ("SET", "k2", "v"), ("KEYS", "*"), ("GET", "k2"),
            ("FLUSHALL",), ("GET", "k1"), ("DBSIZE",), ("PING",),
        ):  # fmt: skip
            session.send(*words)
        replies = [await session.reply() for _ in range(9)]
        assert sorted(replies[3]) == [b"k1", b"k2"]
        assert replies[:3] + replies[4:] == [b"OK", 1, b"OK", b"v", b"OK", None, 0, b"PONG"]


def test_the_cluster_port_shows_what_the_node_coordinates() -> None:
    @clustered(nodes=5)
    async def _(cluster: Cluster) -> None:
        keys = await cluster.fill("a", 300)
        total: set[bytes] = set()
        for name in cluster.names:
            peers = cluster.node(name).peers
            assert peers is not None
            mine = in_slots(keys, coordinated(peers.topology))
            session = cluster.session(name, is_cluster=True)
            assert set(await session.ask("KEYS", "*")) == mine
            assert await session.ask("DBSIZE") == len(mine)
            assert await session.ask("RANDOMKEY") in mine
            cursor, scanned = b"0", set()
            while True:
                cursor, some = await session.ask("SCAN", cursor, "COUNT", 20)
                scanned |= set(some)
                if cursor == b"0":
                    break
            assert scanned == mine
            total |= mine
        assert total == keys
        session = cluster.session("a", is_cluster=True)
        mine = in_slots(keys, coordinated(cluster.node("a").peers.topology))  # type: ignore[union-attr]
        assert await session.ask("FLUSHALL") == b"OK"
        assert set(await cluster.ask("b", "KEYS", "*")) == keys - mine


@pytest.mark.parametrize("nodes", SIZES)
def test_a_flush_empties_all_nodes(nodes: int) -> None:
    @clustered(nodes=nodes)
    async def _(cluster: Cluster) -> None:
        await cluster.fill("a", 600)
        other = cluster.session("b")
        await other.ask("SELECT", 2)
        await other.ask("SET", "stays", "v")
        await other.ask("SELECT", 5)
        await other.ask("SET", "goes", "v", "EX", 1000)
        assert await other.ask("FLUSHDB", "ASYNC") == b"OK"
        assert await other.ask("DBSIZE") == 0
        assert await cluster.ask("a", "DBSIZE") == 600
        assert await cluster.ask("c", "FLUSHDB", "SYNC") == b"OK"
        for name in cluster.names:
            assert await cluster.ask(name, "DBSIZE") == 0
            assert await cluster.ask(name, "GET", "key:7") is None
        await other.ask("SELECT", 2)
        assert await other.ask("GET", "stays") == b"v"
        assert await other.ask("FLUSHALL") == b"OK"
        assert await other.ask("GET", "stays") is None
        for name in cluster.names:
            assert await cluster.ask(name, "KEYS", "*") == []


@pytest.mark.parametrize("nodes", SIZES)
def test_an_iteration_survives_the_loss_of_a_node(nodes: int) -> None:
    @clustered(nodes=nodes)
    async def _(cluster: Cluster) -> None:
        keys = await cluster.fill("a", 400)
        cluster.world.machines["b"].hold_down()
        cursor, found, number = b"0", set(), 0
        while True:
            number += 1
            if number == 4:
                cluster.kill("b")
            reply = await cluster.ask("a", "SCAN", cursor, "COUNT", 20)
            assert isinstance(reply, list), reply
            cursor = reply[0]
            found |= set(reply[1])
            if cursor == b"0":
                break
        assert number > 6
        assert found == keys
        assert await cluster.ask("c", "DBSIZE") == 400
        assert set(await cluster.ask("a", "KEYS", "*")) == keys
        assert await cluster.ask("a", "FLUSHALL") == b"OK"
        assert await cluster.ask("c", "DBSIZE") == 0


def test_what_was_flushed_stays_away_when_a_node_comes_back() -> None:
    @clustered(nodes=3)
    async def _(cluster: Cluster) -> None:
        await cluster.fill("a", 200)
        cluster.world.machines["b"].hold_down()
        cluster.kill("b")
        await cluster.know("b", is_up=False)
        assert await cluster.ask("c", "FLUSHALL") == b"OK"
        cluster.world.machines["b"].release()
        await cluster.know("b", is_up=True)
        for name in cluster.names:
            assert await cluster.ask(name, "DBSIZE") == 0
            assert await cluster.ask(name, "KEYS", "*") == []


def test_too_few_replicas_are_an_error_and_never_a_part() -> None:
    @clustered(nodes=3)
    async def _(cluster: Cluster) -> None:
        await cluster.fill("a", 50)
        for name in ("b", "c"):
            cluster.world.machines[name].hold_down()
            cluster.kill(name)
        await cluster.know("b", is_up=False)
        await cluster.know("c", is_up=False)
        for words in (("DBSIZE",), ("KEYS", "*"), ("SCAN", 0), ("RANDOMKEY",), ("FLUSHALL",)):
            assert str(await cluster.ask("a", *words)).startswith("-NOREPLICAS"), words
        assert "slots may still hold keys" in await cluster.ask("a", "FLUSHDB")


def test_a_stale_replica_does_not_answer_alone() -> None:
    """A node that missed writes, and does not know it, waits for them before it answers."""

    @clustered(nodes=3)
    async def _(cluster: Cluster) -> None:
        network = cluster.world.network
        for source in ("a", "b"):
            network.cut(source, "c")  # It hears nothing, for less than it takes to notice.
        session = cluster.session("a")
        for number in range(60):
            session.send("SET", f"missed:{number}", "v")
        replies = [await session.reply() for _ in range(60)]
        written = [f"missed:{n}".encode() for n, reply in enumerate(replies) if reply == b"OK"]
        assert len(written) > 20  # Those of slots that `c` coordinates did not get there.
        store = cluster.node("c").store
        assert not any(store.holds_slot(slot_of(key)) for key in written)
        network.heal()
        assert set(written) <= set(await cluster.ask("c", "KEYS", "missed:*"))
        assert await cluster.ask("c", "DBSIZE") >= len(written)


def test_writes_go_on_meanwhile() -> None:
    """Keys that are there all the time are listed, whatever else comes and goes."""

    @clustered(nodes=5)
    async def _(cluster: Cluster) -> None:
        keys = await cluster.fill("a", 200)
        rng = random.Random(1)
        is_over = False

        async def disturb(name: str) -> None:
            session: Session = cluster.session(name)
            while not is_over:
                key = b"other:%d" % rng.randrange(100)
                reply = await session.ask(rng.choice(("SET", "APPEND")), key, b"v")
                assert not isinstance(reply, str), reply
                assert not isinstance(await session.ask("DEL", key), str)

        async with trio.open_nursery() as nursery:
            for name in cluster.names:
                nursery.start_soon(disturb, name)
            for _ in range(3):
                for name in cluster.names:
                    assert keys <= set(await cluster.ask(name, "KEYS", "*"))
                    assert keys <= set(await cluster.scan(name, "COUNT", 70))
                    assert await cluster.ask(name, "DBSIZE") >= 200
            is_over = True


def test_a_late_question_removes_nothing() -> None:
    """Its time is over by the wall clock: whoever asked may have been answered by another node since."""

    @clustered(nodes=3)
    async def _(cluster: Cluster) -> None:
        await cluster.fill("a", 20)
        peers = cluster.node("b").peers
        assert peers is not None
        question = Question(FLUSH, 0, (whole(0, 16384),))
        late_ms = cluster.node("b").now_ms() - 1
        peers.receive("a", question.encode(7, 1000, late_ms))
        # The same once more with time left, and again under its number.
        await trio.sleep(1)
        assert await cluster.ask("a", "DBSIZE") == 20
        peers.receive("a", question.encode(8, 1000, late_ms + 5000))
        await trio.sleep(1)
        assert await cluster.ask("a", "DBSIZE") == 0
        await cluster.fill("a", 20)
        peers.receive("a", question.encode(8, 1000, late_ms + 50_000))
        await trio.sleep(1)
        assert await cluster.ask("a", "DBSIZE") == 20


def test_lists_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    @clustered(nodes=3)
    async def _(cluster: Cluster) -> None:
        await cluster.fill("a", 400)
        monkeypatch.setattr(gather, "LIST_ROWS", 30)
        assert len(await cluster.ask("a", "KEYS", "*")) == 400
        dispatch = cluster.node("a").peers.dispatch  # type: ignore[union-attr]
        dispatch.in_flight_bytes_max = 1000
        assert str(await cluster.ask("a", "KEYS", "*")).startswith("-ERR the reply is larger")
        dispatch.in_flight_bytes_max = 1 << 20
        monkeypatch.setattr(gather, "TASKS_MAX", 0)
        assert str(await cluster.ask("a", "DBSIZE")).startswith("-BUSY")


def test_another_database_of_the_same_key() -> None:
    """MOVE and COPY look at rows of two databases, and confirm both."""

    @clustered(nodes=3)
    async def _(cluster: Cluster) -> None:
        first, second = cluster.session("a"), cluster.session("b")
        await second.ask("SELECT", 1)
        await first.ask("SET", "k", "v")
        assert await first.ask("MOVE", "k", 1) == 1
        assert await first.ask("GET", "k") is None
        assert await second.ask("GET", "k") == b"v"
        await first.ask("SET", "k", "w")
        assert await first.ask("MOVE", "k", 1) == 0
        assert await first.ask("COPY", "k", "k", "DB", 1) == 0
        assert await first.ask("COPY", "k", "k", "DB", 1, "REPLACE") == 1
        assert await second.ask("GET", "k") == b"w"


@pytest.mark.parametrize("is_refused", [True, False])
@pytest.mark.parametrize("words", [("KEYS", "*"), ("DBSIZE",), ("FLUSHALL",)])
def test_a_node_is_lost_while_it_is_asked(words: tuple[str, ...], is_refused: bool) -> None:
    @clustered(nodes=5)
    async def _(cluster: Cluster) -> None:
        keys = await cluster.fill("a", 200)
        peers = cluster.node("a").peers
        assert peers is not None
        asked = {
            peers.topology.coordinators[slot]
            for slot in range(16384)
            if not peers.topology.owns(slot)
        }
        lost = sorted(name for name in asked if name)[0]
        machine = cluster.world.machines[lost]
        session = cluster.session("a")
        machine.hold_down()
        session.send(*words)
        began_s = trio.current_time()
        await trio.sleep(0.004)
        if is_refused:
            machine.kill()
        else:
            machine.cut_power()
        reply = await session.reply()
        assert peers.gather.questions.lost_total > 0
        if is_refused and words[0] != "FLUSHALL":  # It is known at once; removals wait.
            assert trio.current_time() - began_s < 0.5
        if words[0] == "KEYS":
            assert len(reply) == 200
            assert set(reply) == keys
        else:
            assert reply == {"DBSIZE": 200, "FLUSHALL": b"OK"}[words[0]]
        if words[0] == "FLUSHALL":
            await cluster.know(lost, is_up=False)
            assert await cluster.ask("b" if lost != "b" else "c", "DBSIZE") == 0


def test_a_flush_is_answered_when_enough_replicas_have_it() -> None:
    @clustered(nodes=3)
    async def _(cluster: Cluster) -> None:
        await cluster.fill("a", 50)
        held: list[bytes] = []

        def without_writes(send: Any, peer: str, message: list[bytes]) -> None:
            if message[0].startswith((b"WRITE", b"REPAIR", b"EXCHANGE.")):
                held.append(message[0])
            else:
                send(peer, message)

        for name in cluster.names:
            transport = cluster.node(name).peers.coordinator.transport  # type: ignore[union-attr]
            transport.send = partial(without_writes, transport.send)  # type: ignore[method-assign]
        reply = await cluster.ask("a", "FLUSHALL")
        assert held
        assert str(reply).startswith(("-TIMEOUT", "-NOREPLICAS")), reply
        assert "slots may still hold keys" in reply


def test_what_expires_is_counted_no_more() -> None:
    @clustered(nodes=3)
    async def _(cluster: Cluster) -> None:
        tags = sorted((f"{{{n}}}" for n in range(200)), key=lambda tag: slot_of(tag.encode()))
        for tag in tags[:3]:
            await cluster.ask("a", "SET", tag + "stays", "v")
            await cluster.ask("a", "SET", tag + "goes", "v", "PX", 500)
        assert await cluster.ask("a", "DBSIZE") == 6
        await trio.sleep(1)
        await cluster.ask("a", "SET", tags[50], "v")  # This slot is to be counted too.
        await cluster.ask("a", "SET", tags[90], "v")
        for name in cluster.names:
            assert await cluster.ask(name, "DBSIZE") == 5
