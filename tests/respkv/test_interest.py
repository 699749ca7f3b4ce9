"""CLIENT TRACKING across nodes: whoever changes a key, wherever, a client that may have cached it is told."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable
from typing import Any

import hiredis
import pytest
import trio

from cluster.slot import slot_of
from respkv import interest
from tests.respkv.gather_harness import PATIENCE_S, Cluster, clustered
from tests.sim.client import encode

DETECTION_S = 20.0  # More than nodes take to see that one is out of reach.
SETTLED_S = 20.0  # More than nodes take to see what each has missed.


class Tracker:
    """A client with a cache: it takes what the node sends in order, as client libraries do."""

    def __init__(self, cluster: Cluster, name: str) -> None:
        self._session = cluster.session(name)
        self._reader = hiredis.Reader(replyError=lambda text: "-" + text)  # type: ignore[arg-type,return-value]
        self.cache: dict[bytes, Any] = {}
        self.heard: list[bytes | None] = []  # Keys, or None for all.
        self.is_closed = False
        self._replies: list[Any] = []
        self._wanted: list[tuple[bytes, ...]] = []
        self._arrived = trio.Event()

    async def listen(self) -> None:
        while True:
            data = await self._session.connection.receive()
            if not data:
                self.is_closed = True
                return
            self._reader.feed(data)
            while (reply := self._reader.gets()) is not False:
                if isinstance(reply, hiredis.PushNotification):
                    self._hear(reply)
                else:
                    self._cache(self._wanted.pop(0), reply)
                    self._replies.append(reply)
            arrived, self._arrived = self._arrived, trio.Event()
            arrived.set()

    def _hear(self, push: list[Any]) -> None:
        assert push[0] == b"invalidate", push
        if push[1] is None:
            self.cache.clear()
            self.heard.append(None)
            return
        for key in push[1]:
            self.cache.pop(key, None)
            self.heard.append(key)

    def _cache(self, args: tuple[bytes, ...], reply: Any) -> None:
        if args[0] == b"GET" and not isinstance(reply, str):
            self.cache[args[1]] = reply
        elif args[0] == b"MGET" and isinstance(reply, list):
            self.cache.update(zip(args[1:], reply, strict=True))

    def send(self, *args: bytes | str | int) -> None:
        words = tuple(arg if isinstance(arg, bytes) else str(arg).encode() for arg in args)
        self._wanted.append(words)
        self._session.connection.send(encode(*words))

    async def reply(self) -> Any:
        with trio.fail_after(PATIENCE_S):
            while not self._replies:
                await self._arrived.wait()
        return self._replies.pop(0)

    async def ask(self, *args: bytes | str | int) -> Any:
        self.send(*args)
        return await self.reply()

    async def hears(self, *keys: bytes | None, seconds: float = 3.0) -> None:
        """Wait until it has heard of these keys, and of no others."""
        with trio.fail_after(seconds):
            while len(self.heard) < len(keys):
                await self._arrived.wait()
        await trio.sleep(0.3)
        assert self.heard == list(keys)
        self.heard.clear()


Body = Callable[[Cluster, Callable[..., Awaitable[Tracker]]], Awaitable[None]]


def tracked(*, nodes: int, **plan: Any) -> Callable[[Body], None]:
    """Run a function with a cluster, and with another that makes a client which tracks, at a node."""

    def run(body: Body) -> None:
        @clustered(nodes=nodes, **plan)
        async def _(cluster: Cluster) -> None:
            async with trio.open_nursery() as nursery:

                async def track(name: str, *options: str) -> Tracker:
                    tracker = Tracker(cluster, name)
                    nursery.start_soon(tracker.listen)
                    assert await tracker.ask("HELLO", 3)
                    assert await tracker.ask("CLIENT", "TRACKING", "ON", *options) == b"OK"
                    return tracker

                await body(cluster, track)
                nursery.cancel_scope.cancel()

    return run


def keys_by_role(cluster: Cluster, name: str, prefix: str = "k") -> tuple[bytes, bytes]:
    """A key of which a node is a replica, and one of which it is none."""
    topology = cluster.node(name).topology
    assert topology is not None
    keys = [f"{prefix}{n}".encode() for n in range(200)]
    mine = next(key for key in keys if name in topology.preferences[slot_of(key)])
    other = next(key for key in keys if name not in topology.preferences[slot_of(key)])
    return mine, other


def place(cluster: Cluster, name: str) -> interest.Interest:
    peers = cluster.node(name).peers
    assert peers is not None
    return peers.interest


@pytest.mark.parametrize("nodes", [3, 5])
def test_who_has_read_a_key_hears_once_of_its_change_at_any_node(nodes: int) -> None:
    @tracked(nodes=nodes)
    async def _(cluster: Cluster, track: Any) -> None:
        keys = [b"k%d" % n for n in range(8)]
        for name in cluster.names:
            tracker = await track(name)
            for number, key in enumerate(keys):
                for writer in cluster.names:
                    await cluster.ask(writer, "SET", key, b"before")
                    value = await tracker.ask("GET", key)
                    assert value == b"before"
                    await cluster.ask(writer, *(("DEL", key), ("INCRBY", key, 0))[:1][0])
                    await tracker.hears(key)
                    await cluster.ask(writer, "SET", key, number)
                    assert await tracker.ask("PING") == b"PONG"
                    assert tracker.heard == []  # It has not read it again.
            await tracker.ask("CLIENT", "TRACKING", "OFF")


def test_the_news_is_heard_behind_the_answer_that_it_overtook() -> None:
    @tracked(nodes=5)
    async def _(cluster: Cluster, track: Any) -> None:
        for name in cluster.names:
            tracker = await track(name)
            for key in keys_by_role(cluster, name):
                for number in range(30):
                    tracker.send("GET", key)
                    await cluster.ask("b", "SET", key, number)
                    await tracker.reply()
                await trio.sleep(1)
                assert tracker.cache.get(key) in (None, b"29")
                assert await tracker.ask("GET", key) == b"29"


def test_own_writes_and_noloop() -> None:
    @tracked(nodes=5)
    async def _(cluster: Cluster, track: Any) -> None:
        loop, quiet = await track("a"), await track("a", "NOLOOP")
        for key in keys_by_role(cluster, "a"):
            for tracker in (loop, quiet):
                await tracker.ask("GET", key)
            assert await loop.ask("SET", key, "1") == b"OK"
            await loop.hears(key)
            await quiet.hears(key)
            await quiet.ask("GET", key)
            assert await quiet.ask("SET", key, "2") == b"OK"
            await quiet.hears()
            await quiet.ask("GET", key)
            await cluster.ask("a", "SET", key, "3")
            await quiet.hears(key)


def test_opting_in_and_out() -> None:
    @tracked(nodes=5)
    async def _(cluster: Cluster, track: Any) -> None:
        opt_in, opt_out = await track("a", "OPTIN"), await track("a", "OPTOUT")
        mine, other = keys_by_role(cluster, "a")

        async def change(*keys: bytes) -> None:
            for key in keys:
                await cluster.ask("b", "SET", key, "v")
            await trio.sleep(0.5)

        for key in (mine, other):
            await opt_in.ask("GET", key)
            await change(key)
            await opt_in.hears()
            opt_in.send("CLIENT", "CACHING", "YES")
            opt_in.send("GET", key)
            opt_in.send("STRLEN", b"after" + key)
            for _ in range(3):
                await opt_in.reply()
            await change(key, b"after" + key)
            await opt_in.hears(key)
            await opt_out.ask("CLIENT", "CACHING", "NO")
            await opt_out.ask("GET", key)
            await change(key)
            await opt_out.hears()
            await opt_out.ask("GET", key)
            await change(key)
            await opt_out.hears(key)
        # A command that is carried out in parts, at several nodes.
        await opt_in.ask("CLIENT", "CACHING", "YES")
        await opt_in.ask("MGET", mine, other)
        await change(mine, other)
        assert sorted(opt_in.heard) == sorted([mine, other])


def test_what_a_transaction_reads() -> None:
    @tracked(nodes=5)
    async def _(cluster: Cluster, track: Any) -> None:
        tracker = await track("a")
        for key in keys_by_role(cluster, "a"):
            for words in (("MULTI",), ("GET", key), ("SET", key, "1"), ("EXEC",)):
                await tracker.ask(*words)
            await tracker.hears(key)  # It read what was there before its own SET.
            for words in (("MULTI",), ("GET", key), ("EXEC",)):
                await tracker.ask(*words)
            await cluster.ask("b", "SET", key, "2")
            await tracker.hears(key)


def test_another_connection_hears_for_one_of_resp2() -> None:
    @tracked(nodes=5)
    async def _(cluster: Cluster, track: Any) -> None:
        ear = await track("a")
        number = await ear.ask("CLIENT", "ID")
        await ear.ask("CLIENT", "TRACKING", "OFF")
        reader = cluster.session("a")
        assert await reader.ask("CLIENT", "TRACKING", "ON", "REDIRECT", number) == b"OK"
        for key in keys_by_role(cluster, "a"):
            await reader.ask("GET", key)
            await cluster.ask("b", "SET", key, "v")
            await ear.hears(key)


@pytest.mark.parametrize("nodes", [3, 5])
def test_broadcasts_come_once_from_everywhere(nodes: int) -> None:
    @tracked(nodes=nodes)
    async def _(cluster: Cluster, track: Any) -> None:
        trackers = {
            name: await track(name, "BCAST", "PREFIX", "k", "PREFIX", "other")
            for name in cluster.names
        }
        await trio.sleep(0.5)
        for number in range(10):
            for writer in cluster.names:
                await cluster.ask(writer, "SET", b"k%d" % number, "v")
                await cluster.ask(writer, "SET", b"unheard%d" % number, "v")
            for tracker in trackers.values():
                await tracker.hears(*[b"k%d" % number] * nodes)
        await cluster.ask("a", "SET", "k:e", "v", "PX", 2000)
        for tracker in trackers.values():
            await tracker.hears(b"k:e")
        await trio.sleep(3)
        for tracker in trackers.values():
            assert tracker.heard
            assert set(tracker.heard) == {b"k:e"}
            await tracker.ask("CLIENT", "TRACKING", "OFF")
        await trio.sleep(1)
        assert not any(place(cluster, name).is_active for name in cluster.names)


def test_who_reads_an_expired_key_does_not_hide_it_from_others() -> None:
    """Before the node has found out by itself, within a tick of its timer."""

    @tracked(nodes=3)
    async def _(cluster: Cluster, track: Any) -> None:
        one, other = await track("a"), await track("a")
        for number in range(10):
            key = b"k%d" % number
            await cluster.ask("b", "SET", key, "v", "PX", 500)
            assert await one.ask("GET", key) == b"v"
            for _ in range(150):
                await other.ask("GET", key)
                await trio.sleep(0.004)
            await trio.sleep(0.3)
            assert key not in one.cache


def test_a_key_that_expires_elsewhere() -> None:
    @tracked(nodes=5)
    async def _(cluster: Cluster, track: Any) -> None:
        tracker = await track("a")
        for key in keys_by_role(cluster, "a"):
            await cluster.ask("b", "SET", key, "v", "PX", 1500)
            assert await tracker.ask("GET", key) == b"v"
            await tracker.hears(key)
            assert await tracker.ask("GET", key) is None


def test_flushing_reaches_all() -> None:
    @tracked(nodes=5)
    async def _(cluster: Cluster, track: Any) -> None:
        await cluster.fill("a", 30)
        trackers = [await track(name) for name in cluster.names]
        for tracker in trackers:
            for number in range(30):
                await tracker.ask("GET", b"key:%d" % number)
            assert len(tracker.cache) == 30
        await cluster.ask("c", "FLUSHALL")
        await trio.sleep(1)
        for tracker in trackers:
            assert tracker.cache == {}


def test_a_node_that_is_cut_off_has_its_clients_forget() -> None:
    """From every node, a replica of the key or not; changes meanwhile are of the others."""

    @tracked(nodes=5)
    async def _(cluster: Cluster, track: Any) -> None:
        await cluster.fill("a", 20, "k")
        for name in ("a", "c"):
            tracker = await track(name)
            others = [other for other in cluster.names if other != name]
            for key in keys_by_role(cluster, name):
                assert await tracker.ask("GET", key)
                assert key in tracker.cache
                cluster.world.network.isolate([name], others)
                await trio.sleep(DETECTION_S)
                assert key not in tracker.cache
                await cluster.ask(others[0], "SET", key, b"new " + name.encode())
                cluster.world.network.heal()
                await cluster.know(name, is_up=True)
                await trio.sleep(SETTLED_S)
                assert await tracker.ask("GET", key) == b"new " + name.encode()


def test_a_node_that_dies_takes_its_promises_along() -> None:
    @tracked(nodes=5)
    async def _(cluster: Cluster, track: Any) -> None:
        await cluster.fill("b", 20, "k")
        tracker = await track("a")
        key = keys_by_role(cluster, "a")[1]
        topology = cluster.node("a").topology
        assert topology is not None
        await tracker.ask("GET", key)
        first = topology.preferences[slot_of(key)][0]
        assert place(cluster, first).key_count == 1
        cluster.kill(first)
        await trio.sleep(5)
        assert key not in tracker.cache
        assert None in tracker.heard


def test_who_reads_what_a_cut_off_replica_serves_hears_of_it() -> None:
    """The node that a key was read at loses the others: it tells the node that had asked."""

    @tracked(nodes=5)
    async def _(cluster: Cluster, track: Any) -> None:
        await cluster.fill("b", 20, "k")
        tracker = await track("a")
        key = keys_by_role(cluster, "a")[1]
        topology = cluster.node("a").topology
        assert topology is not None
        await tracker.ask("GET", key)
        first, *others = topology.preferences[slot_of(key)]
        cluster.world.network.isolate([first], others)
        await trio.sleep(DETECTION_S)
        assert topology.is_reachable(first)  # From here.
        assert tracker.heard
        assert key not in tracker.cache


def test_tables_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    @tracked(nodes=5)
    async def _(cluster: Cluster, track: Any) -> None:
        monkeypatch.setattr(interest, "KEYS_MAX", 4)
        monkeypatch.setattr(interest, "UNHEARD_KEYS_MAX", 10)
        tracker = await track("a")
        keys = [b"k%d" % n for n in range(60)]
        for key in keys:
            await tracker.ask("GET", key)
        await trio.sleep(1)
        for name in cluster.names:
            assert place(cluster, name).key_count <= 4
        for key in keys:
            await cluster.ask("b", "SET", key, "v")
        await trio.sleep(1)
        assert None not in tracker.cache.values()
        # One that does not listen.
        broadcast = await track("a", "BCAST")
        await trio.sleep(0.5)
        others = [name for name in cluster.names if name != "a"]
        for name in others:
            cluster.world.network.cut(name, "a")
        for key in keys:
            await cluster.ask("b", "SET", key, "w")
        owed = [place(cluster, name)._unheard.get("a", {}) for name in others]
        assert any(owed)
        for messages in owed:
            assert sum(len(message) - 2 for message in messages.values()) <= 10  # Keys, one by one.
        cluster.world.network.heal()
        await trio.sleep(SETTLED_S)
        assert None in broadcast.heard


# After whatever happened, what is cached is what is stored


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("nodes", [3, 5])
def test_caches_are_right_in_the_end(nodes: int, seed: int) -> None:
    rng = random.Random(seed)
    is_lossy = seed % 2 == 1

    @tracked(nodes=nodes)
    async def _(cluster: Cluster, track: Any) -> None:
        keys = [b"k%d" % n for n in range(12)]
        trackers = [await track(name) for name in cluster.names]
        trackers.append(await track("a", "BCAST", "PREFIX", "k"))
        trackers.append(await track("b", "NOLOOP"))
        network = cluster.world.network
        count = 0

        async def read(tracker: Tracker) -> None:
            while True:
                await trio.sleep(rng.uniform(0, 0.2))
                some = [key for key in rng.sample(keys, 3) if key not in tracker.cache]
                if len(some) == 3:
                    await tracker.ask("MGET", *some)
                for key in some[:2]:
                    tracker.send("GET", key)
                for _ in some[:2]:
                    await tracker.reply()

        async def write(name: str) -> None:
            nonlocal count
            session = cluster.session(name)
            while True:
                await trio.sleep(rng.uniform(0, 0.3))
                key = rng.choice(keys)
                count += 1
                words: tuple[Any, ...] = ("SET", key, b"%s %d" % (name.encode(), count))
                await session.ask(*rng.choice([words, words, ("DEL", key), (*words, "PX", 900)]))

        def lose_some() -> None:
            for link in network.links.values():
                link.loss, link.repetition, link.reordering = 0.05, 0.1, 0.2

        async def disturb() -> None:
            while True:
                if is_lossy:
                    lose_some()
                await trio.sleep(rng.uniform(0.5, 3))
                one, other = rng.sample(cluster.names, 2)
                match rng.randrange(4):
                    case 0:
                        network.break_connection(one, other)
                    case 1:
                        network.isolate([one], [other])
                    case 2:
                        network.isolate([one], [n for n in cluster.names if n != one])
                    case 3:
                        network.cut(one, other)
                await trio.sleep(rng.uniform(0.5, 6))
                network.heal()

        with trio.move_on_after(25):
            async with trio.open_nursery() as nursery:
                for tracker in trackers:
                    nursery.start_soon(read, tracker)
                for name in cluster.names:
                    nursery.start_soon(write, name)
                nursery.start_soon(disturb)
        network.heal()
        await trio.sleep(SETTLED_S)
        assert count > 100
        cached = 0
        for key in keys:
            stored = await cluster.ask("a", "GET", key)
            for tracker in trackers:
                if key in tracker.cache:
                    assert tracker.cache[key] == stored, (key, tracker._session)
                    cached += 1
        assert cached
