"""KV.TRACE on nodes of a simulated cluster: what it tells is what happened, and nothing stays behind."""

from __future__ import annotations

from typing import Any

import pytest
import trio

from cluster.record import STRING
from cluster.slot import row_of, slot_of
from respkv.trace import Tracing
from tests.respkv.gather_harness import Cluster, clustered


def told(reply: Any) -> dict[str, Any]:
    """A flat array as a dict, and those in it."""
    assert isinstance(reply, list), reply
    fields = {reply[at].decode(): reply[at + 1] for at in range(0, len(reply), 2)}
    for name in ("forwarded", "executed", "asked"):
        if name in fields:
            fields[name] = [told(each) for each in fields[name]]
    return fields


async def trace(cluster: Cluster, name: str, *words: bytes | str | int) -> dict[str, Any]:
    return told(await cluster.ask(name, "KV.TRACE", *words))


async def replicas(cluster: Cluster, key: str) -> list[str]:
    """The replicas of a key, its coordinator first."""
    fields = told(await cluster.ask("a", "KV.PREFLIST", key))
    names = [told(each)["name"].decode() for each in fields["replicas"]]
    assert fields["coordinator"].decode() == names[0]
    return names


def tracing(cluster: Cluster, name: str) -> Tracing:
    peers = cluster.node(name).peers
    assert peers is not None
    return peers.tracing


def assert_unwatched(cluster: Cluster) -> None:
    """No node pays for a trace any more."""
    for name in cluster.names:
        peers = cluster.node(name).peers
        assert peers is not None
        assert not peers.tracing.active
        assert peers.coordinator.transport is peers.transport
        assert peers._parts[b"ACK"] == peers.coordinator.receive
        assert peers.dispatch.in_flight == 0


def write_at(cluster: Cluster, name: str, key: str, value: bytes) -> None:
    """Have one replica hold a version that no other has."""
    node = cluster.node(name)
    effects = {row_of(0, key.encode()): (slot_of(key.encode()), STRING, 0, value)}
    node.replica.write(effects, node.now_ms(), [])


def test_a_write_at_its_coordinator() -> None:
    @clustered(nodes=5)
    async def _(cluster: Cluster) -> None:
        first, *others = await replicas(cluster, "k")
        shown = await trace(cluster, first, "SET", "k", "v")
        assert shown["reply"] == b"OK"
        assert shown["forwarded"] == []
        (executed,) = shown["executed"]
        assert executed["node"].decode() == first
        assert executed["slots"] == [slot_of(b"k")]
        assert executed["runs"] == 1
        assert 0 <= executed["log_us"] <= shown["microseconds"]
        assert 0 < executed["quorum_us"] <= shown["microseconds"]
        assert [each["node"].decode() for each in shown["asked"]] == sorted(others)
        assert {each["what"] for each in shown["asked"]} == {b"write"}
        answers = [each["answer"] for each in shown["asked"]]
        assert b"taken" in answers  # W is 2: the other one may be on its way.
        assert set(answers) <= {b"taken", None}
        times = [each["answered_us"] for each in shown["asked"] if each["answer"]]
        assert min(times) == executed["quorum_us"]
        assert_unwatched(cluster)


def test_a_write_elsewhere_tells_where_it_went_and_what_that_node_asked() -> None:
    @clustered(nodes=5)
    async def _(cluster: Cluster) -> None:
        names = await replicas(cluster, "k")
        outside = next(name for name in cluster.names if name not in names)
        for asked_at in (names[1], outside):
            shown = await trace(cluster, asked_at, "SET", "k", asked_at)
            (forwarded,) = shown["forwarded"]
            assert forwarded["node"].decode() == names[0]
            assert forwarded["answer"] == b"executed"
            assert forwarded["answered_us"] <= shown["microseconds"]
            (executed,) = shown["executed"]
            assert executed["node"].decode() == names[0]
            assert forwarded["at_us"] < executed["began_us"]
            assert executed["quorum_us"] <= forwarded["answered_us"]
            assert {each["by"].decode() for each in shown["asked"]} == {names[0]}
            assert await cluster.ask(names[2], "GET", "k") == asked_at.encode()
        assert_unwatched(cluster)


def test_a_read_asks_one_replica_and_a_difference_is_joined_and_repaired() -> None:
    @clustered(nodes=3)
    async def _(cluster: Cluster) -> None:
        await cluster.ask("a", "SET", "k", "v")
        shown = await trace(cluster, "a", "GET", "k")
        assert shown["reply"] == b"v"
        (asked,) = shown["asked"]
        assert (asked["what"], asked["answer"]) == (b"read", b"same")
        peer = asked["node"].decode()
        await trio.sleep(1)
        write_at(cluster, peer, "k", b"later")
        shown = await trace(cluster, "a", "GET", "k")
        assert shown["reply"] == b"later"
        answers = [(each["run"], each["what"], each["answer"]) for each in shown["asked"]]
        assert (1, b"read", b"state") in answers
        assert (2, b"read", b"same") in answers
        assert shown["executed"][0]["runs"] == 2
        assert_unwatched(cluster)


def test_a_replica_that_is_behind_is_repaired_before_the_reply() -> None:
    @clustered(nodes=3)
    async def _(cluster: Cluster) -> None:
        await cluster.ask("a", "SET", "k", "v")
        await trio.sleep(1)
        write_at(cluster, "a", "k", b"later")
        shown = await trace(cluster, "a", "GET", "k")
        assert shown["reply"] == b"later"
        kinds = [(each["what"], each["answer"]) for each in shown["asked"]]
        assert kinds == [(b"read", b"state"), (b"repair", b"taken"), (b"read", b"same")]
        assert_unwatched(cluster)


def test_a_write_that_is_refused_runs_again() -> None:
    @clustered(nodes=3)
    async def _(cluster: Cluster) -> None:
        first, *others = await replicas(cluster, "n")
        await cluster.ask("a", "SET", "n", "1")
        await trio.sleep(1)
        for name in others:
            write_at(cluster, name, "n", b"10")
        shown = await trace(cluster, first, "INCR", "n")
        answers = [(each["run"], each["what"], each["answer"]) for each in shown["asked"]]
        assert (1, b"write", b"refused") in answers
        assert (shown["executed"][0]["runs"], b"write", b"taken") in answers
        assert shown["executed"][0]["runs"] > 1
        assert shown["reply"] == await cluster.ask(first, "INCRBY", "n", 0)
        assert_unwatched(cluster)


def test_a_replica_that_lost_against_the_others_is_repaired() -> None:
    @clustered(nodes=3)
    async def _(cluster: Cluster) -> None:
        first, second, third = await replicas(cluster, "n")
        await cluster.ask("a", "SET", "n", "1")
        await trio.sleep(1)
        write_at(cluster, second, "n", b"10")
        seen = set()
        for _ in range(10):  # Whoever answers first decides whether there is time for it.
            shown = await trace(cluster, first, "SET", "n", "2")
            seen |= {
                (each["node"].decode(), each["what"], each["answer"]) for each in shown["asked"]
            }
            if any(what == b"repair" for _, what, _ in seen):
                break
            await trio.sleep(1)
            write_at(cluster, second, "n", b"10")
        assert (second, b"write", b"refused") in seen
        assert (third, b"write", b"taken") in seen
        assert any((name, what) == (second, b"repair") for name, what, _ in seen)
        assert_unwatched(cluster)


def test_a_command_on_several_slots_shows_each_part() -> None:
    @clustered(nodes=5)
    async def _(cluster: Cluster) -> None:
        keys = [f"key:{number}" for number in range(8)]
        words = [word for key in keys for word in (key, "v")]
        shown = await trace(cluster, "a", "MSET", *words)
        assert shown["reply"] == b"OK"
        slots = [each["slots"] for each in shown["executed"]]
        assert sorted(slots) == sorted([slot_of(key.encode())] for key in keys)
        firsts = {(await replicas(cluster, key))[0] for key in keys}
        assert {each["node"].decode() for each in shown["executed"]} == firsts
        assert {each["node"].decode() for each in shown["forwarded"]} == firsts - {"a"}
        shown = await trace(cluster, "a", "MGET", *keys)
        assert shown["reply"] == [b"v"] * 8
        assert_unwatched(cluster)


def test_errors_are_traced_too() -> None:
    @clustered(nodes=3)
    async def _(cluster: Cluster) -> None:
        await cluster.ask("a", "SET", "k", "v")
        for name in cluster.names:
            shown = await trace(cluster, name, "INCR", "k")
            assert shown["reply"] == "-ERR value is not an integer or out of range"
            assert len(shown["executed"]) == 1
        for name in ("b", "c"):
            cluster.kill(name)
        await cluster.know("b", is_up=False)
        await cluster.know("c", is_up=False)
        shown = await trace(cluster, "a", "SET", "k", "v")
        assert shown["reply"].startswith("-NOREPLICAS writes need 2 replicas")
        assert (shown["executed"], shown["asked"]) == ([], [])
        peers = cluster.node("a").peers
        assert peers is not None
        assert not peers.tracing.active


def test_a_node_that_dies_meanwhile_is_told_of() -> None:
    @clustered(nodes=3)
    async def _(cluster: Cluster) -> None:
        first, second, third = await replicas(cluster, "k")
        session = cluster.session(second)
        session.send("KV.TRACE", "SET", "k", "v")
        await trio.sleep(0.0001)
        cluster.kill(first)
        shown = told(await session.reply())
        assert shown["reply"] == b"OK"  # It may be repeated, so it was.
        (forwarded,) = shown["forwarded"]
        assert forwarded["node"].decode() == first
        assert forwarded["answer"] == b"lost"
        (executed,) = shown["executed"]
        assert executed["node"].decode() == second
        assert executed["began_us"] >= forwarded["answered_us"]
        answered = {each["node"].decode(): each["answer"] for each in shown["asked"]}
        assert answered[third] == b"taken"


def test_replies_stay_in_order_and_traces_do_not_mix() -> None:
    @clustered(nodes=5)
    async def _(cluster: Cluster) -> None:
        session = cluster.session("a")
        for number in range(20):
            session.send("SET", f"k{number}", number)
            session.send("KV.TRACE", "INCR", f"k{number}")
            session.send("GET", f"k{number}")
        for number in range(20):
            assert await session.reply() == b"OK"
            shown = told(await session.reply())
            assert shown["reply"] == number + 1
            slot = slot_of(f"k{number}".encode())
            assert {tuple(each["slots"]) for each in shown["asked"]} == {(slot,)}
            assert await session.reply() == b"%d" % (number + 1)
        assert_unwatched(cluster)


def test_many_at_a_time_are_bounded() -> None:
    @clustered(nodes=3)
    async def _(cluster: Cluster) -> None:
        sessions = [cluster.session("a") for _ in range(100)]
        for number, session in enumerate(sessions):
            session.send("KV.TRACE", "SET", f"k{number}", "v")
        replies = [await session.reply() for session in sessions]
        refused = [each for each in replies if isinstance(each, str)]
        assert refused
        assert set(refused) == {"-BUSY too many commands are being traced: try again"}
        assert len(refused) <= 36
        assert_unwatched(cluster)


@pytest.mark.parametrize(
    ("words", "error"),
    [
        ("PING", "takes one command on keys that answers at once, and 'ping' is none: it names no key"),
        ("DBSIZE", "takes one command on keys that answers at once, and 'dbsize' is none: it names no key"),
        ("WATCH k", "takes one command on keys that answers at once, and 'watch' is none: it belongs to a transaction"),
        ("EXEC", "takes one command on keys that answers at once, and 'exec' is none: it belongs to a transaction"),
        ("KV.TRACE GET k", "cannot trace itself"),
    ],
)  # fmt: skip
def test_what_cannot_be_traced_is_refused(words: str, error: str) -> None:
    @clustered(nodes=3)
    async def _(cluster: Cluster) -> None:
        assert await cluster.ask("a", "KV.TRACE", *words.split()) == f"-ERR KV.TRACE {error}"
        assert_unwatched(cluster)


def test_the_usual_errors_of_a_command_line() -> None:
    @clustered(nodes=3)
    async def _(cluster: Cluster) -> None:
        assert (await cluster.ask("a", "KV.TRACE", "NOPE")).startswith(
            "-ERR unknown command 'NOPE'"
        )
        wrong = "-ERR wrong number of arguments for '%s' command"
        assert await cluster.ask("a", "KV.TRACE", "GET") == wrong % "get"
        assert await cluster.ask("a", "KV.TRACE") == wrong % "kv.trace"
        await cluster.ask("a", "MULTI")
        refused = await cluster.ask("a", "KV.TRACE", "GET", "k")
        assert refused == "-ERR Command not allowed inside a transaction"
        await cluster.ask("a", "DISCARD")


def test_the_cluster_port_redirects_as_without_it() -> None:
    @clustered(nodes=3)
    async def _(cluster: Cluster) -> None:
        first, second, _ = await replicas(cluster, "k")
        there = cluster.session(second, is_cluster=True)
        set_it = ("SET", "k", "v")
        assert await there.ask("KV.TRACE", *set_it) == await there.ask(*set_it)
        assert (await there.ask("KV.TRACE", "GET", "k")).startswith("-MOVED ")
        here = cluster.session(first, is_cluster=True)
        assert told(await here.ask("KV.TRACE", "GET", "k"))["reply"] is None


def test_resp3_answers_maps() -> None:
    @clustered(nodes=3)
    async def _(cluster: Cluster) -> None:
        session = cluster.session("a")
        await session.ask("HELLO", 3)
        for name in cluster.names:
            await cluster.ask(name, "SET", f"k:{name}", "v")
            shown = await session.ask("KV.TRACE", "GET", f"k:{name}")
            assert shown[b"reply"] == b"v"
            assert shown[b"executed"][0][b"runs"] == 1
