"""Publish/subscribe with real clients and real processes: one node, and a cluster of three of which one may die.

Not what is answered byte by byte (`tests/respkv/commands/test_pubsub.py`), nor which messages of the bus do it
(`tests/respkv/test_audience.py`). What libraries make of it must be what they make of Redis, and while no
node fails every listener hears every publisher in order. `python -m bench.pubsub` does the same with 1,000 listeners.
"""

from __future__ import annotations

import asyncio
import contextlib
import selectors
import socket
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any

import hiredis
import pytest
import redis
import redis.asyncio
from redis.cluster import ClusterNode, RedisCluster

from tests.clusters import RunningCluster, respkv_cluster
from tests.differential.wire import Connection
from tests.e2e.test_clients import NODE_FOLDER, needs, node_modules
from tests.servers import HOST, respkv_server

__all__ = ["node_modules"]  # A fixture.

PATIENCE_S = 20.0
COMMAND_S = 60
PROTOCOLS = pytest.mark.parametrize("protocol", [2, 3])


@pytest.fixture(scope="module")
def cluster() -> Iterator[RunningCluster]:
    with respkv_cluster() as running:
        yield running


@pytest.fixture(scope="module", params=["one node", "three nodes"])
def ports(request: pytest.FixtureRequest) -> Iterator[list[int]]:
    """The client ports of one node, or of all nodes of a cluster."""
    if request.param == "one node":
        with respkv_server() as server:
            yield [server.port]
    else:
        running = request.getfixturevalue("cluster")
        yield [member.port for member in running]


@contextlib.contextmanager
def connect(port: int, **options: Any) -> Iterator[Any]:
    """A redis-py client. Any: its methods' types mix synchronous and asynchronous results."""
    client = redis.Redis(
        host=HOST, port=port, socket_timeout=PATIENCE_S, decode_responses=True, **options
    )
    try:
        yield client
    finally:
        client.close()


def heard(pubsub: Any, count: int) -> list[tuple[str, str, str]]:
    """The type, channel and data of the next messages, confirmations among them."""
    found: list[tuple[str, str, str]] = []
    deadline = time.monotonic() + PATIENCE_S
    while len(found) < count:
        assert time.monotonic() < deadline, found
        message = pubsub.get_message(timeout=1)
        if message is not None:
            found.append((message["type"], message["channel"], message["data"]))
    return found


@PROTOCOLS
def test_redis_py(ports: list[int], protocol: int) -> None:
    with (
        connect(ports[0], protocol=protocol) as client,
        connect(ports[-1], protocol=protocol) as other,
        client.pubsub() as pubsub,
    ):
        pubsub.subscribe("py:a", "py:b")
        pubsub.psubscribe("py:p*")
        assert [kind for kind, _, _ in heard(pubsub, 3)] == ["subscribe"] * 2 + ["psubscribe"]
        assert [other.publish("py:a", n) for n in range(10)] == [1] * 10
        assert other.publish("py:pattern", "x") == 1
        assert other.publish("py:nobody", "x") == 0
        assert heard(pubsub, 10) == [("message", "py:a", str(n)) for n in range(10)]
        assert heard(pubsub, 1) == [("pmessage", "py:pattern", "x")]
        assert dict(other.pubsub_numsub("py:a", "py:c")) == {"py:a": 1, "py:c": 0}
        assert set(other.pubsub_channels("py:*")) == {"py:a", "py:b"}
        assert other.pubsub_numpat() == 1
        pubsub.unsubscribe()
        pubsub.punsubscribe()
        pubsub.ssubscribe("py:s")
        kinds = [kind for kind, _, _ in heard(pubsub, 4)]
        assert sorted(kinds) == ["punsubscribe", "ssubscribe", "unsubscribe", "unsubscribe"]
        assert other.spublish("py:s", "y") == 1
        assert heard(pubsub, 1) == [("smessage", "py:s", "y")]


@PROTOCOLS
def test_redis_py_with_asyncio(ports: list[int], protocol: int) -> None:
    async def main() -> None:
        client = redis.asyncio.Redis(host=HOST, port=ports[0], protocol=protocol)
        other = redis.asyncio.Redis(host=HOST, port=ports[-1], protocol=protocol)
        async with client, other, client.pubsub() as pubsub:
            await pubsub.subscribe("aio")
            messages = pubsub.listen()
            assert (await anext(messages))["type"] == "subscribe"
            for number in range(20):
                assert await other.publish("aio", number) == 1
            for number in range(20):
                message = await anext(messages)
                assert (message["type"], message["data"]) == ("message", b"%d" % number)
            await pubsub.unsubscribe("aio")
            assert (await anext(messages))["type"] == "unsubscribe"

    asyncio.run(asyncio.wait_for(main(), COMMAND_S))


@PROTOCOLS
def test_redis_py_cluster(cluster: RunningCluster, protocol: int) -> None:
    make: Any = ClusterNode  # It has no types.
    nodes = [make(member.host, member.cluster_port) for member in cluster]
    client: Any = RedisCluster(startup_nodes=nodes, decode_responses=True, protocol=protocol)
    with contextlib.closing(client):
        pubsub = client.pubsub()
        pubsub.subscribe("rc")
        assert heard(pubsub, 1)[0][0] == "subscribe"
        # redis-py publishes at a node of its own choice.
        assert [client.publish("rc", n) for n in range(30)] == [1] * 30
        assert heard(pubsub, 30) == [("message", "rc", str(n)) for n in range(30)]
        # It adds up what the nodes say, each of its own clients.
        everywhere = RedisCluster.ALL_NODES
        assert client.pubsub_numsub("rc", target_nodes=everywhere) == [("rc", 1)]
        assert client.pubsub_channels("rc*", target_nodes=everywhere) == ["rc"]
        pubsub.close()

        shards = client.pubsub()
        names = [f"shard:{number}" for number in range(12)]
        for name in names:
            shards.ssubscribe(name)

        def collect(kind: str) -> dict[str, Any]:
            found: dict[str, Any] = {}
            deadline = time.monotonic() + PATIENCE_S
            while len(found) < len(names):
                assert time.monotonic() < deadline, found
                message = shards.get_sharded_message(timeout=0.1)
                if message is not None and message["type"] == kind:
                    found[message["channel"]] = message["data"]
            return found

        assert set(collect("ssubscribe")) == set(names)
        for name in names:
            assert client.spublish(name, name.upper()) == 1
        assert collect("smessage") == {name: name.upper() for name in names}
        shards.close()


@needs("node", "npm")
@pytest.mark.usefixtures("node_modules")
def test_ioredis(ports: list[int], request: pytest.FixtureRequest) -> None:
    arguments = [",".join(map(str, ports))]
    if len(ports) > 1:
        running = request.getfixturevalue("cluster")
        arguments.append(",".join(str(member.cluster_port) for member in running))
    result = subprocess.run(
        ["node", "ioredis_pubsub.js", *arguments],
        cwd=NODE_FOLDER, capture_output=True, text=True, timeout=COMMAND_S, check=False,
    )  # fmt: skip
    assert result.stdout == "ok\n", result.stdout + result.stderr


# The guarantee


class Listener:
    """One connection that reads messages and notes the last number of each publisher."""

    def __init__(self, port: int, channel: bytes, *, resp3: bool) -> None:
        self.socket = socket.create_connection((HOST, port), timeout=PATIENCE_S)
        self._reader = hiredis.Reader()
        self.numbers: dict[bytes, int] = {}
        self.socket.sendall((b"HELLO 3\r\n" if resp3 else b"") + b"SUBSCRIBE %b\r\n" % channel)
        for _ in range(2 if resp3 else 1):
            while (reply := self._reader.gets()) is False:
                self._reader.feed(self.socket.recv(1 << 16))
        assert reply == [b"subscribe", channel, 1]

    def read(self, data: bytes) -> int:
        """Check that each publisher's messages follow each other; returns how many came."""
        self._reader.feed(data)
        count = 0
        while (message := self._reader.gets()) is not False:
            who, _, number = message[-1].partition(b":")
            assert int(number) == self.numbers.get(who, -1) + 1, (message, self.numbers)
            self.numbers[who] = int(number)
            count += 1
        return count

    def close(self) -> None:
        self.socket.close()


def publish(port: int, channel: bytes, who: bytes, numbers: Sequence[int], wanted: int) -> None:
    with contextlib.closing(Connection(HOST, port, timeout_s=PATIENCE_S)) as connection:
        for number in numbers:
            reply = connection.ask(b"PUBLISH", channel, b"%b:%d" % (who, number))
            assert reply.raw == b":%d\r\n" % wanted


def test_ninety_listeners_at_three_nodes_hear_three_publishers_in_order(
    cluster: RunningCluster,
) -> None:
    listeners = [
        Listener(member.port, b"all", resp3=bool(number % 2))
        for number in range(30)
        for member in cluster
    ]
    count = 300
    speakers = [
        threading.Thread(
            target=publish,
            args=(member.port, b"all", member.name.encode(), range(count), len(listeners)),
        )
        for member in cluster
    ]
    try:
        with selectors.DefaultSelector() as selector:
            for listener in listeners:
                selector.register(listener.socket, selectors.EVENT_READ, listener)
            for speaker in speakers:
                speaker.start()
            missing = len(listeners) * len(speakers) * count
            deadline = time.monotonic() + COMMAND_S
            while missing:
                assert time.monotonic() < deadline, missing
                for key, _ in selector.select(1):
                    data = key.data.socket.recv(1 << 16)
                    assert data, "a listener was closed"
                    missing -= key.data.read(data)
        expected = {member.name.encode(): count - 1 for member in cluster}
        assert all(listener.numbers == expected for listener in listeners)
    finally:
        for speaker in speakers:
            speaker.join()
        for listener in listeners:
            listener.close()


def test_events_of_one_key_are_heard_once_at_every_node(cluster: RunningCluster) -> None:
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(connect(member.port)) for member in cluster]
        listeners = []
        for client in clients:
            client.config_set("notify-keyspace-events", "KEA")
            pubsub = stack.enter_context(client.pubsub())
            pubsub.psubscribe("__key*__:ev:*", "__keyevent@0__:*")
            heard(pubsub, 2)
            listeners.append(pubsub)
        expected = []
        for turn in range(9):
            key = f"ev:{turn}"
            assert clients[turn % 3].set(key, 1)
            assert clients[(turn + 1) % 3].incr(key) == 2
            assert clients[(turn + 2) % 3].pexpire(key, 300)
            for event in ("set", "incrby", "expire", "expired"):
                expected.append((f"__keyspace@0__:{key}", event))
                expected.append((f"__keyevent@0__:{event}", key))
        for pubsub in listeners:
            found = [(channel, data) for _, channel, data in heard(pubsub, len(expected))]
            assert sorted(found) == sorted(expected)
            assert pubsub.get_message(timeout=0.2) is None
        for client in clients:
            client.config_set("notify-keyspace-events", "")


def test_a_node_that_dies_takes_only_its_own_listeners_along(cluster: RunningCluster) -> None:
    with connect(cluster["a"].port) as a, connect(cluster["b"].port) as b, a.pubsub() as pubsub:
        pubsub.subscribe("dies")
        heard(pubsub, 1)
        lost = Listener(cluster["c"].port, b"dies", resp3=False)
        assert b.publish("dies", "x:0") == 2
        cluster["c"].kill()
        try:
            deadline = time.monotonic() + PATIENCE_S
            number = 0
            while b.publish("dies", f"x:{(number := number + 1)}") != 1:
                assert time.monotonic() < deadline
            found = [data for _, _, data in heard(pubsub, number + 1)]
            assert found == [f"x:{n}" for n in range(number + 1)]
        finally:
            lost.close()
            cluster.heal()
        again = Listener(cluster["c"].port, b"dies", resp3=True)
        assert b.publish("dies", "x:0") == 2
        assert again.read(again.socket.recv(1 << 16)) == 1
        again.close()
