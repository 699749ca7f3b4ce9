"""Publish/subscribe over a cluster on simulated machines: who hears what, what is announced, what a break costs."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import trio

from respkv.audience import Audiences
from tests.respkv.gather_harness import Cluster, Session, clustered


def audiences(cluster: Cluster, name: str) -> Audiences:
    peers = cluster.node(name).peers
    assert peers is not None
    return peers.audiences


async def listening(
    cluster: Cluster, name: str, *channels: str, word: str = "SUBSCRIBE"
) -> Session:
    session = cluster.session(name)
    session.send(word, *channels)
    for _ in channels:
        assert (await session.reply())[0] == word.lower().encode()
    return session


async def hears_nothing(session: Session) -> bool:
    with trio.move_on_after(1):
        await session.reply()
        return False
    return True


def received(cluster: Cluster, name: str, verb: bytes) -> int:
    peers = cluster.node(name).peers
    assert peers is not None
    return peers.received.get(verb, 0)


def test_who_was_told_that_it_listens_misses_nothing_from_any_node() -> None:
    @clustered(nodes=3)
    async def _(cluster: Cluster) -> None:
        for turn in range(30):
            here, there = cluster.names[turn % 3], cluster.names[(turn + 1 + turn % 2) % 3]
            session = await listening(cluster, here, f"ch{turn}")
            assert await cluster.ask(there, "PUBLISH", f"ch{turn}", "m") == 1
            assert await session.reply() == [b"message", b"ch%d" % turn, b"m"]
            session = await listening(cluster, here, f"p{turn}-*", word="PSUBSCRIBE")
            assert await cluster.ask(there, "PUBLISH", f"p{turn}-x", "m") == 1
            assert await session.reply() == [b"pmessage", b"p%d-*" % turn, b"p%d-x" % turn, b"m"]
            session = await listening(cluster, here, f"s{turn}", word="SSUBSCRIBE")
            assert await cluster.ask(there, "SPUBLISH", f"s{turn}", "m") == 1
            assert await session.reply() == [b"smessage", b"s%d" % turn, b"m"]


def test_a_confirmation_comes_before_the_first_message() -> None:
    @clustered(nodes=3)
    async def _(cluster: Cluster) -> None:
        speaker = cluster.session("a")
        done = trio.Event()

        async def speak() -> None:
            while not done.is_set():
                await speaker.ask("PUBLISH", "x", "m")

        async with trio.open_nursery() as nursery:
            nursery.start_soon(speak)
            for turn in range(20):
                session = cluster.session(cluster.names[turn % 3])
                session.send("SUBSCRIBE", f"y{turn}", "x")
                assert [(await session.reply())[0] for _ in range(2)] == [b"subscribe"] * 2
                assert await session.reply() == [b"message", b"x", b"m"]
                session.connection.close()
            done.set()


def test_each_publisher_is_heard_in_order_by_all() -> None:
    @clustered(nodes=3)
    async def _(cluster: Cluster) -> None:
        listeners = [await listening(cluster, name, "x", "y") for name in cluster.names]
        listeners += [
            await listening(cluster, name, "[xy]", word="PSUBSCRIBE") for name in cluster.names
        ]
        count = 200

        async def speak(name: str) -> None:
            session = cluster.session(name)
            for number in range(count):
                session.send("PUBLISH", "xy"[number % 2], f"{name}:{number}")
                if number % 50 == 49:
                    for _ in range(50):
                        assert await session.reply() == 6

        async def listen(session: Session) -> None:
            heard: dict[bytes, list[int]] = {}
            for _ in range(count * 3):
                name, _, number = (await session.reply())[-1].partition(b":")
                heard.setdefault(name, []).append(int(number))
            assert heard == {name.encode(): list(range(count)) for name in cluster.names}

        async with trio.open_nursery() as nursery:
            for session in listeners:
                nursery.start_soon(listen, session)
            for name in cluster.names:
                nursery.start_soon(speak, name)


def test_a_node_without_listeners_gets_no_messages() -> None:
    @clustered(nodes=3)
    async def _(cluster: Cluster) -> None:
        session = await listening(cluster, "b", "x")
        for _ in range(10):
            assert await cluster.ask("a", "PUBLISH", "x", "m") == 1
            assert await session.reply() == [b"message", b"x", b"m"]
            assert await cluster.ask("a", "PUBLISH", "other", "m") == 0
        assert received(cluster, "b", b"PUBSUB.SAID") > 0
        assert received(cluster, "c", b"PUBSUB.SAID") == 0


def test_what_is_known_of_others_follows_them() -> None:
    @clustered(nodes=3)
    async def _(cluster: Cluster) -> None:
        first = await listening(cluster, "a", "x")
        await listening(cluster, "b", "x", "y")
        await listening(cluster, "c", "p*", word="PSUBSCRIBE")
        await listening(cluster, "c", "s", word="SSUBSCRIBE")
        for name in cluster.names:
            assert await cluster.ask(name, "PUBSUB", "CHANNELS") == [b"x", b"y"]
            assert await cluster.ask(name, "PUBSUB", "NUMSUB", "x", "y", "z") == [
                b"x", 2, b"y", 1, b"z", 0,
            ]  # fmt: skip
            assert await cluster.ask(name, "PUBSUB", "NUMPAT") == 1
            assert await cluster.ask(name, "PUBSUB", "SHARDCHANNELS") == [b"s"]
            assert await cluster.ask(name, "PUBSUB", "SHARDNUMSUB", "s") == [b"s", 1]
        on_cluster_port = cluster.session("b", is_cluster=True)
        assert await on_cluster_port.ask("PUBSUB", "NUMSUB", "x") == [b"x", 1]
        assert await on_cluster_port.ask("PUBSUB", "NUMPAT") == 0
        assert await first.ask("UNSUBSCRIBE") == [b"unsubscribe", b"x", 0]
        await trio.sleep(0.5)
        assert await cluster.ask("c", "PUBLISH", "x", "m") == 1


def test_a_node_that_comes_back_hears_and_is_heard() -> None:
    @clustered(nodes=3)
    async def _(cluster: Cluster) -> None:
        stays = await listening(cluster, "a", "x")
        await listening(cluster, "c", "x")
        assert await cluster.ask("b", "PUBLISH", "x", "1") == 2
        assert (await stays.reply())[2] == b"1"
        cluster.world.machines["c"].kill(down_s=5.0)
        await cluster.know("c", is_up=False)
        assert await cluster.ask("b", "PUBLISH", "x", "2") == 1
        assert (await stays.reply())[2] == b"2"
        # A subscription does not wait for a node that is lost.
        await listening(cluster, "b", "new")
        await cluster.know("c", is_up=True)
        assert await cluster.ask("c", "PUBLISH", "x", "3") == 1
        assert (await stays.reply())[2] == b"3"
        again = await listening(cluster, "c", "x")
        assert await cluster.ask("a", "PUBLISH", "x", "4") == 2
        assert (await again.reply())[2] == b"4"
        assert await cluster.ask("c", "PUBSUB", "CHANNELS") == [b"new", b"x"]


def test_a_subscription_waits_for_a_silent_node_no_longer_than_its_time() -> None:
    @clustered(nodes=3)
    async def _(cluster: Cluster) -> None:
        started = trio.current_time()
        silent = audiences(cluster, "a")
        silent._take_want = lambda *_: None  # type: ignore[method-assign]
        session = await listening(cluster, "b", "x")
        waited = trio.current_time() - started
        timeout_s = cluster.node("b").config.cluster.timeout_ms / 1000
        assert timeout_s <= waited < timeout_s + 1
        assert await cluster.ask("c", "PUBLISH", "x", "m") == 1
        assert await session.reply() == [b"message", b"x", b"m"]


def test_a_confirmation_waits_until_a_slow_node_knows() -> None:
    @clustered(nodes=3)
    async def _(cluster: Cluster) -> None:
        slow = audiences(cluster, "a")
        take = slow._take_want

        async def take_later(peer: str, message: list[bytes]) -> None:
            await trio.sleep(0.3)
            take(peer, message)
            cluster.node("a").front.tick([])

        async with trio.open_nursery() as nursery:
            slow._take_want = lambda *what: nursery.start_soon(take_later, *what)  # type: ignore[method-assign]
            for word, publish in (("SUBSCRIBE", "PUBLISH"), ("SSUBSCRIBE", "SPUBLISH")):
                started = trio.current_time()
                session = await listening(cluster, "b", "x", word=word)
                assert trio.current_time() - started >= 0.3
                assert await cluster.ask("a", publish, "x", "m") == 1
                assert (await session.reply())[1:] == [b"x", b"m"]
            # What is known already is confirmed at once.
            started = trio.current_time()
            await listening(cluster, "b", "x")
            assert trio.current_time() - started < 0.3


def test_a_lost_announcement_is_repeated() -> None:
    @clustered(nodes=3)
    async def _(cluster: Cluster) -> None:
        deaf = audiences(cluster, "a")
        take, deaf._take_want = deaf._take_want, lambda *_: None  # type: ignore[method-assign]
        await listening(cluster, "b", "lost")
        deaf._take_want = take  # type: ignore[method-assign]
        session = await listening(cluster, "b", "x")  # Built upon what was lost: all is sent again.
        assert await cluster.ask("a", "PUBLISH", "x", "m") == 1
        assert await cluster.ask("a", "PUBLISH", "lost", "m") == 1
        assert await session.reply() == [b"message", b"x", b"m"]


def test_a_node_that_wants_too_much_wants_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("respkv.audience.NAMES_BYTES_MAX", 2000)

    @clustered(nodes=3)
    async def _(cluster: Cluster) -> None:
        session = await listening(cluster, "b", *(f"ch{n}" for n in range(100)))
        known = audiences(cluster, "a")._heard["b"]
        assert known.wants_everything
        assert not known.counts[b"c"]
        await cluster.ask("a", "PUBLISH", "ch77", "m")
        assert await session.reply() == [b"message", b"ch77", b"m"]
        session.send("UNSUBSCRIBE", *(f"ch{n}" for n in range(1, 100)))
        for _ in range(99):
            await session.reply()
        await trio.sleep(0.5)
        assert not known.wants_everything
        assert await cluster.ask("a", "PUBLISH", "ch0", "m") == 1


def test_while_a_node_takes_nothing_publishers_are_refused_and_events_dropped(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    @clustered(nodes=3)
    async def _(cluster: Cluster) -> None:
        session = await listening(cluster, "b", "x", "__keyevent@0__:set")
        assert await cluster.ask("a", "CONFIG", "SET", "notify-keyspace-events", "KEA") == b"OK"
        with monkeypatch.context() as full:
            full.setattr("respkv.audience.QUEUE_BYTES_MAX", -1)
            refused = await cluster.ask("a", "PUBLISH", "x", "m")
            assert refused.startswith("-BUSY")
            assert await cluster.ask("a", "PUBLISH", "nobody", "m") == 0
            audiences(cluster, "a")._pubsub.publish_event(b"__keyevent@0__:set", b"k")
            assert audiences(cluster, "a").dropped_total == 1
        assert await cluster.ask("a", "PUBLISH", "x", "m2") == 1
        assert await session.reply() == [b"message", b"x", b"m2"]


def test_batches_that_come_twice_or_late_are_dropped() -> None:
    @clustered(nodes=3)
    async def _(cluster: Cluster) -> None:
        session = await listening(cluster, "b", "x")
        at = audiences(cluster, "b")
        number = at._heard["a"].said + 5 if at._heard["a"].said > 0 else 5
        messages: list[Any] = [
            [b"PUBSUB.SAID", b"%d" % (number + n), b"c", b"x", b"%d" % n] for n in (1, 1, 3, 2, 4)
        ]
        for message in messages:
            at.receive("a", message)
        cluster.node("b").front.tick([])
        heard = [int((await session.reply())[2]) for _ in range(3)]
        assert heard == [1, 3, 4]
        assert await hears_nothing(session)


def test_a_transaction_that_another_node_executes_is_said_in_its_client_s_order() -> None:
    @clustered(nodes=5)
    async def _(cluster: Cluster) -> None:
        listeners = [await listening(cluster, name, "x") for name in cluster.names]
        session = cluster.session("a")
        number = 0
        for turn in range(20):
            for _ in range(2):
                session.send("PUBLISH", "x", number)
                number += 1
            session.send("MULTI")
            session.send("SET", f"key{turn}", "v")
            session.send("PUBLISH", "x", number)
            session.send("EXEC")
            number += 1
            replies = [await session.reply() for _ in range(6)]
            assert replies[-1] == [b"OK", 5], replies
        for listener in listeners:
            heard = [int((await listener.reply())[2]) for _ in range(number)]
            assert all(after == before + 1 for before, after in pairwise(heard))
        assert cluster.node("a").peers.dispatch.forwarding.forwarded_total > 0  # type: ignore[union-attr]
        for name in cluster.names:  # All was said by the client's own node.
            said = {
                peer for peer, heard in audiences(cluster, name)._heard.items() if heard.said > 0
            }
            assert said <= {"a"}


def test_events_of_a_cluster_are_said_once_by_the_node_that_executed() -> None:
    @clustered(nodes=5)
    async def _(cluster: Cluster) -> None:
        for name in cluster.names:
            reply = await cluster.ask(name, "CONFIG", "SET", "notify-keyspace-events", "EAn")
            assert reply == b"OK"
        listeners = [
            await listening(cluster, name, "__keyevent*", word="PSUBSCRIBE")
            for name in cluster.names
        ]
        expected: list[tuple[bytes, bytes]] = []
        for number in range(30):
            key = b"key%d" % number
            entry = cluster.names[number % 5]
            assert await cluster.ask(entry, "SET", key, "1") == b"OK"
            assert await cluster.ask(entry, "INCR", key) == 2
            assert await cluster.ask(entry, "PEXPIRE", key, 500) == 1
            expected += [(b"new", key), (b"set", key), (b"incrby", key), (b"expire", key)]
        await trio.sleep(5)
        expected += [(b"expired", b"key%d" % number) for number in range(30)]
        for listener in listeners:
            heard = []
            for _ in range(len(expected)):
                _, _, channel, key = await listener.reply()
                heard.append((channel.partition(b":")[2], key))
            assert sorted(heard) == sorted(expected)
            by_key: dict[bytes, list[bytes]] = {}
            for event, key in heard:
                by_key.setdefault(key, []).append(event)
            assert set(map(tuple, by_key.values())) == {
                (b"new", b"set", b"incrby", b"expire", b"expired")
            }
            assert await hears_nothing(listener)


def test_shard_channels_are_redirected_on_the_cluster_port() -> None:
    @clustered(nodes=3)
    async def _(cluster: Cluster) -> None:
        answers = {}
        sessions = {}
        for name in cluster.names:
            sessions[name] = cluster.session(name, is_cluster=True)
            answers[name] = await sessions[name].ask("SSUBSCRIBE", "shard")
        moved = [str(a) for a in answers.values() if not isinstance(a, list)]
        assert len(moved) == 2
        assert all(answer.startswith("-MOVED ") for answer in moved)
        owner = next(name for name, answer in answers.items() if isinstance(answer, list))
        other = next(name for name in cluster.names if name != owner)
        refused = await sessions[other].ask("SPUBLISH", "shard", "m")
        assert refused.startswith("-MOVED ")
        # On the client port any node will do.
        assert await cluster.ask(other, "SPUBLISH", "shard", "m") == 1
        assert await sessions[owner].reply() == [b"smessage", b"shard", b"m"]
        crossed = await cluster.session(owner, is_cluster=True).ask("SSUBSCRIBE", "shard", "other")
        assert crossed.startswith("-CROSSSLOT")
