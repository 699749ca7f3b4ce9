"""Real clients against a real cluster of three processes: any node serves any client, and a node may die.

Not which replies are Redis' (`tests/differential`, also with `--cluster`), nor every interleaving of faults
(`tests/sim`): what libraries and tools send on their own must work on both ports, and what one
process promises must be there at the others. Each test uses keys of its own; one that kills a node
brings it back. Every process has a time limit.
"""

from __future__ import annotations

import contextlib
import itertools
import random
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from redis.backoff import NoBackoff
from redis.cache import CacheConfig
from redis.cluster import RedisCluster
from redis.connection import CacheProxyConnection
from redis.retry import Retry

from bench.failover_clients import Clients
from cluster.slot import slot_of
from tests.clusters import Member, RunningCluster, cluster_toml, new_cluster, respkv_cluster
from tests.differential.wire import Connection, Reply
from tests.e2e.test_clients import NODE_FOLDER, needs, node_modules
from tests.servers import HOST, respkv_server

__all__ = ["node_modules"]  # A fixture.

COMMAND_S = 30
BENCHMARK_S = 90
BENCHMARK = ("-t", "ping,set,get,incr,mset", "-n", "2000", "-c", "20", "-r", "100", "--csv")
CAUGHT_UP_S = 10.0
_numbers = itertools.count()
PROTOCOLS = pytest.mark.parametrize("protocol", [2, 3])


@pytest.fixture(scope="module")
def cluster() -> Iterator[RunningCluster]:
    with respkv_cluster() as running:
        yield running


@contextlib.contextmanager
def connect(member: Member, **options: Any) -> Iterator[Any]:
    """A redis-py client that retries nothing. Any: its methods' types mix synchronous and asynchronous results."""
    client = redis.Redis(
        host=member.host, port=member.port, socket_timeout=10, decode_responses=True,
        retry=Retry(NoBackoff(), 0), **options,
    )  # fmt: skip
    try:
        yield client
    finally:
        client.close()


@contextlib.contextmanager
def wire(member: Member, *, port: int = 0) -> Iterator[Connection]:
    """A connection that shows replies byte by byte."""
    with contextlib.closing(Connection(member.host, port or member.port, timeout_s=10)) as opened:
        yield opened


def ask(connection: Connection, line: str) -> Reply:
    return connection.ask(*line.encode().split())


def until(claim: Callable[[], bool], what: str, seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not claim():
        assert time.monotonic() < deadline, what
        time.sleep(0.05)


def run(*command: str, stdin: str = "", seconds: float = COMMAND_S, cwd: Path | None = None) -> str:
    """What a program says; it must end well."""
    result = subprocess.run(
        command, input=stdin, capture_output=True, text=True, timeout=seconds, check=False, cwd=cwd
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout + result.stderr


def key_at(cluster: RunningCluster, name: str) -> str:
    """A new key whose slot a node coordinates: that node takes it on its cluster port."""
    with wire(cluster[name], port=cluster[name].cluster_port) as there:
        keys = (f"at:{name}:{number}" for number in _numbers)
        return next(key for key in keys if not ask(there, f"GET {key}").is_error)


# Any node serves any client


def test_what_one_node_takes_all_others_have(cluster: RunningCluster) -> None:
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(connect(member)) for member in cluster]
        for turn in range(60):
            writer = clients[turn % 3]
            assert writer.set(f"any:{turn}", turn)
            assert [client.get(f"any:{turn}") for client in clients] == [str(turn)] * 3
        counts = [clients[turn % 3].incr("any:count") for turn in range(60)]
        assert counts == list(range(1, 61))
        assert clients[0].mset({f"any:m{n}": n for n in range(50)})
        assert clients[1].mget([f"any:m{n}" for n in range(50)]) == [str(n) for n in range(50)]
        assert clients[2].delete(*(f"any:m{n}" for n in range(50))) == 50
        assert clients[0].exists(*(f"any:m{n}" for n in range(50))) == 0


def test_writers_of_one_counter_at_all_nodes_lose_nothing(cluster: RunningCluster) -> None:
    failures: list[Exception] = []

    def count(member: Member) -> None:
        try:
            with connect(member) as client:
                for _ in range(100):
                    client.incr("race:count")
        except redis.RedisError as error:
            failures.append(error)

    threads = [threading.Thread(target=count, args=(member,)) for member in cluster]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(COMMAND_S)
    assert not failures
    for member in cluster:
        with connect(member) as client:
            assert client.get("race:count") == "300"


def test_the_nodes_are_listed_with_what_is_known_of_them(cluster: RunningCluster) -> None:
    with wire(cluster["b"]) as connection:
        nodes = [node.pairs for node in ask(connection, "KV.NODES").items]
        assert [(n[b"name"].text, int(n[b"port"].text)) for n in nodes] == [
            (member.name.encode(), member.port) for member in cluster
        ]
        assert [n[b"myself"].text for n in nodes] == [b"0", b"1", b"0"]
        assert all(n[b"reachable"].text == n[b"complete"].text == b"1" for n in nodes)
        assert ask(connection, "SET local v").raw == b"+OK\r\n"
        assert ask(connection, "KV.LOCAL local").text == b"v"
        assert ask(connection, "KV.LOCAL local:absent").is_nil


@PROTOCOLS
def test_a_long_pipeline_is_answered_as_by_a_single_node(
    cluster: RunningCluster, protocol: int
) -> None:
    rng = random.Random(protocol)
    commands = []
    for _ in range(1000):
        names = [f"pipe:{protocol}:{rng.randrange(40)}" for _ in range(3)]
        commands.append(
            rng.choice(
                (
                    f"SET {names[0]} {rng.randrange(1000)}",
                    f"SET {names[0]} {rng.randrange(1000)} NX GET",
                    f"GET {names[0]}",
                    f"INCR {names[0]}",
                    f"APPEND {names[0]} 1",
                    f"MSET {names[0]} 1 {names[1]} 2 {names[2]} 3",
                    f"MGET {' '.join(names)}",
                    f"DEL {names[0]} {names[1]}",
                    f"INCR {names[0]} too many words",
                )
            )
        )
    data = b"".join(b"%b\r\n" % command.encode() for command in commands)
    with respkv_server() as single:
        wanted = replies_to(Member("single", single.port, Path(), Path()), data, protocol)
    for member in cluster:
        with connect(member) as client:
            client.delete(*(f"pipe:{protocol}:{n}" for n in range(40)))
        assert replies_to(member, data, protocol) == wanted


def replies_to(member: Member, data: bytes, protocol: int) -> list[bytes]:
    with wire(member) as connection:
        if protocol == 3:
            assert not ask(connection, "HELLO 3").is_error
        connection.send(data)
        return [connection.receive().reply.raw for _ in range(data.count(b"\n"))]


def test_requests_in_pieces_and_replies_in_pieces(cluster: RunningCluster) -> None:
    value = random.Random(1).randbytes(3_000_000)
    key = key_at(cluster, "a").encode()
    request = b"*3\r\n$3\r\nSET\r\n$%d\r\n%b\r\n$%d\r\n%b\r\n" % (len(key), key, len(value), value)
    with socket.create_connection((HOST, cluster["b"].port), COMMAND_S) as half:
        half.sendall(request[:-1000])  # Never completed: it must change nothing.
    with socket.create_connection((HOST, cluster["b"].port), COMMAND_S) as slow:
        for at in range(0, len(request), 1_000_000):
            slow.sendall(request[at : at + 1_000_000])
            time.sleep(0.01)
        assert slow.recv(5) == b"+OK\r\n"
        slow.sendall(b"GET %b\r\nPING\r\n" % key)
        wanted = b"$%d\r\n%b\r\n+PONG\r\n" % (len(value), value)
        got = bytearray()
        while len(got) < len(wanted):
            chunk = slow.recv(100_000)
            assert chunk, "the node closed the connection"
            got += chunk
        assert got == wanted
    with socket.create_connection((HOST, cluster["c"].port), COMMAND_S) as leaver:
        leaver.sendall(b"GET %b\r\n" % key * 5)
        leaver.recv(10)  # And leaves in the middle of the reply.
    with connect(cluster["c"]) as client:
        assert client.strlen(key) == len(value)
        assert client.delete(key) == 1


@PROTOCOLS
def test_errors_and_sessions_are_those_of_a_single_node(
    cluster: RunningCluster, protocol: int
) -> None:
    # What another node executes is answered in the protocol and the database of the client.
    for member in cluster:
        key = key_at(cluster, "c")
        with wire(member) as connection:
            assert int(ask(connection, f"HELLO {protocol}").pairs[b"proto"].text) == protocol
            nil = b"_\r\n" if protocol == 3 else b"$-1\r\n"
            assert ask(connection, f"SET {key} word").raw == b"+OK\r\n"
            assert ask(connection, f"INCR {key}").raw.startswith(b"-ERR value is not an integer")
            assert ask(connection, f"SET {key} v WRONG").raw == b"-ERR syntax error\r\n"
            assert ask(connection, f"SET {key}").raw.startswith(b"-ERR wrong number of arguments")
            assert ask(connection, "NOSUCH x").raw.startswith(b"-ERR unknown command 'NOSUCH'")
            assert ask(connection, "SELECT 3").raw == b"+OK\r\n"
            assert ask(connection, f"GET {key}").raw == nil
            assert ask(connection, f"SET {key} third").raw == b"+OK\r\n"
            assert ask(connection, "SELECT 99").raw == b"-ERR DB index is out of range\r\n"
            assert ask(connection, "RESET").raw == b"+RESET\r\n"
            assert ask(connection, f"GET {key}").raw == b"$4\r\nword\r\n"


def test_a_session_that_wants_no_replies_writes_as_any_other(cluster: RunningCluster) -> None:
    with wire(cluster["a"]) as connection, wire(cluster["b"]) as other:
        keys = [f"silent:{number}" for number in range(20)]
        connection.send(b"CLIENT REPLY OFF\r\n")
        connection.send(b"".join(b"SET %b off\r\n" % key.encode() for key in keys))
        connection.send(b"CLIENT REPLY ON\r\n")
        assert connection.receive().reply.raw == b"+OK\r\n"
        assert all(ask(other, f"KV.LOCAL {key}").text == b"off" for key in keys)
        connection.send(b"CLIENT REPLY SKIP\r\nSET silent:0 skipped\r\nGET silent:0\r\n")
        assert connection.receive().reply.text == b"skipped"


# Transactions


def test_a_transaction_is_executed_where_its_keys_are(cluster: RunningCluster) -> None:
    key = key_at(cluster, "b")
    for member in cluster:
        with wire(member) as connection:
            ask(connection, f"SET {key} 1")
            assert ask(connection, "MULTI").raw == b"+OK\r\n"
            for command in (f"INCR {key}", "PING", f"GET {key}", f"INCR {key} wrong"):
                reply = ask(connection, command)
                assert reply.raw == b"+QUEUED\r\n" or "wrong" in command
            assert ask(connection, "EXEC").raw.startswith(b"-EXECABORT")
            assert ask(connection, f"GET {key}").text == b"1"
            for command in ("MULTI", f"INCR {key}", "SELECT 5", f"SET {key} five", f"GET {key}"):
                ask(connection, command)
            assert [item.text for item in ask(connection, "EXEC").items] == [
                *(b"2", b"OK", b"OK", b"five"),
            ]
            assert ask(connection, f"GET {key}").text == b"five"  # SELECT lasts.
            ask(connection, "SELECT 0")
            assert ask(connection, f"GET {key}").text == b"2"
            ask(connection, "MULTI")
            ask(connection, f"SET {key} 9")
            assert ask(connection, "DISCARD").raw == b"+OK\r\n"
            assert ask(connection, f"GET {key}").text == b"2"
            ask(connection, "MULTI")
            ask(connection, f"GET {key}")
            ask(connection, "CLIENT ID")
            of_exec = ask(connection, "EXEC").items[1].text
            assert of_exec == ask(connection, "CLIENT ID").text != b"0"


def test_a_watched_key_that_changes_elsewhere_stops_the_transaction(
    cluster: RunningCluster,
) -> None:
    for member in cluster:
        key = key_at(cluster, "c")
        others = [other for other in cluster if other is not member]
        with wire(member) as connection, connect(others[0]) as first, connect(others[1]) as second:
            for other in (first, second):
                assert ask(connection, f"WATCH {key}").raw == b"+OK\r\n"
                assert other.set(key, "theirs")
                ask(connection, "MULTI")
                ask(connection, f"SET {key} mine")
                assert ask(connection, "EXEC").raw == b"*-1\r\n"
                assert ask(connection, f"GET {key}").text == b"theirs"
            ask(connection, f"WATCH {key}")
            ask(connection, "MULTI")
            ask(connection, f"SET {key} mine")
            assert ask(connection, "EXEC").raw == b"*1\r\n+OK\r\n"
            assert first.get(key) == second.get(key) == "mine"


@PROTOCOLS
def test_redis_py_transactions(cluster: RunningCluster, protocol: int) -> None:
    key = f"py:{protocol}"

    def increment(pipe: Any) -> None:
        value = int(pipe.get(key) or 0)
        pipe.multi()
        pipe.set(key, value + 1)

    def work(member: Member) -> None:
        try:
            with connect(member, protocol=protocol) as client:
                for _ in range(20):
                    client.transaction(increment, key)
        except redis.RedisError as error:
            failures.append(error)

    failures: list[Exception] = []
    threads = [threading.Thread(target=work, args=(member,)) for member in cluster]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(COMMAND_S)
    assert not failures
    with connect(cluster["a"], protocol=protocol) as client:
        assert client.get(key) == "60"
        pipeline = client.pipeline(transaction=True)
        for number in range(100):
            pipeline.incr(key)
            pipeline.set(f"{key}:{number}", number)
        assert pipeline.execute()[::2] == list(range(61, 161))


# What a node tells of others' doings


def test_the_cache_of_redis_py_follows_what_others_write(
    cluster: RunningCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Otherwise it refuses a server that does not call itself Redis 7.4.
    monkeypatch.setattr(CacheProxyConnection, "MIN_ALLOWED_VERSION", "7.0.0")

    def cached(member: Member) -> Any:
        return connect(member, protocol=3, cache_config=CacheConfig())

    with cached(cluster["a"]) as a, cached(cluster["b"]) as b, connect(cluster["c"]) as c:
        keys = [f"cache:{n}" for n in range(20)]
        for number, (key, writer) in enumerate(itertools.product(keys, (a, b, c))):
            writer.set(key, number)
            for client in (a, b):
                until(lambda k=key, of=client, n=number: of.get(k) == str(n), key)  # type: ignore[misc]
        assert a.get_cache().size == b.get_cache().size == len(keys)  # It did cache.
        c.delete(*keys)
        for client in (a, b):
            until(lambda of=client: of.mget(keys) == [None] * len(keys), "deleted")  # type: ignore[misc]
            until(lambda of=client: not any(of.get(key) for key in keys), "deleted")  # type: ignore[misc]


def test_optimistic_transactions_of_redis_py_lose_nothing(cluster: RunningCluster) -> None:
    """`transaction` does WATCH, GET, MULTI, SET, EXEC, again and again until EXEC goes through."""
    failures: list[Exception] = []

    def add(member: Member) -> None:
        def one_more(pipe: Any) -> None:
            value = int(pipe.get("optimistic") or 0)
            pipe.multi()
            pipe.set("optimistic", value + 1)

        try:
            with connect(member) as client:
                for _ in range(10):
                    client.transaction(one_more, "optimistic")
        except Exception as error:
            failures.append(error)

    members = list(cluster)
    threads = [threading.Thread(target=add, args=(members[n % 3],)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    with connect(cluster["a"]) as client:
        assert client.get("optimistic") == "80"


def test_wait_counts_the_replicas_that_have_it(cluster: RunningCluster) -> None:
    with connect(cluster["b"]) as client:
        client.set("waited", "for")
        assert client.wait(2, 5000) == 2
        assert client.waitaof(1, 2, 5000) == [1, 2]
        assert client.wait(3, 50) == 2


def test_a_client_that_tracks_hears_of_what_others_write_at_any_node(
    cluster: RunningCluster,
) -> None:
    keys = [key_at(cluster, member.name) for member in cluster]
    with wire(cluster["a"]) as tracker, wire(cluster["b"]) as b, wire(cluster["c"]) as c:
        ask(tracker, "HELLO 3")
        ask(tracker, "CLIENT TRACKING ON")
        for writer in (b, c):
            for key in keys:
                ask(tracker, f"GET {key}")
                ask(writer, f"SET {key} theirs")
                until(lambda k=key: told_of(tracker, k), f"{key} is invalidated")  # type: ignore[misc]
                assert ask(tracker, f"GET {key}").text == b"theirs"
        # What it writes itself it hears of behind the reply, or not at all.
        for key in keys:
            answer = told(tracker, f"SET {key} mine")
            assert answer == []
            assert told(tracker, "PING") == [key.encode()]
        ask(tracker, "CLIENT TRACKING OFF")
        ask(tracker, "CLIENT TRACKING ON NOLOOP")
        for key in keys:
            ask(tracker, f"GET {key}")
            assert told(tracker, f"SET {key} mine") == told(tracker, "PING") == []


def told(connection: Connection, line: str) -> list[bytes]:
    """The keys that a client hears of before the reply to a command."""
    connection.send(line.encode() + b"\r\n")
    pushes = connection.receive().pushes
    return [key.text for push in pushes for key in push.items[1].items]


def told_of(connection: Connection, key: str) -> bool:
    return key.encode() in told(connection, "PING")


def test_monitors_and_the_slow_log_show_what_a_client_asked_of_this_node(
    cluster: RunningCluster,
) -> None:
    key = key_at(cluster, "b")
    with wire(cluster["a"]) as connection, wire(cluster["a"]) as monitor:
        assert ask(connection, "CONFIG SET slowlog-log-slower-than 0").raw == b"+OK\r\n"
        assert ask(monitor, "MONITOR").raw == b"+OK\r\n"
        try:
            ask(connection, f"SET {key} 1")
            ask(connection, f"INCR {key}")
            slow = [entry.items[3].items for entry in ask(connection, "SLOWLOG GET 2").items]
            assert [[word.text.decode() for word in words] for words in slow] == [
                ["INCR", key],
                ["SET", key, "1"],
            ]
            seen = [monitor.receive().reply.text for _ in range(2)]
            assert seen[0].endswith(f'"SET" "{key}" "1"'.encode())
            assert seen[1].endswith(f'"INCR" "{key}"'.encode())
        finally:
            ask(connection, "CONFIG SET slowlog-log-slower-than 10000")


# The cluster port


def cluster_client(cluster: RunningCluster, name: str = "a", **options: Any) -> Any:
    return RedisCluster(
        host=HOST, port=cluster[name].cluster_port, decode_responses=True, socket_timeout=10, **options
    )  # fmt: skip


@PROTOCOLS
def test_redis_py_cluster(cluster: RunningCluster, protocol: int) -> None:
    client = cluster_client(cluster, protocol=protocol)
    try:
        assert {node.port for node in client.get_primaries()} == {
            member.cluster_port for member in cluster
        }
        for number in range(100):
            assert client.set(f"rc:{number}", number)
        assert [client.get(f"rc:{n}") for n in range(100)] == [str(n) for n in range(100)]
        pipeline = client.pipeline()
        for number in range(100):
            pipeline.incr(f"rc:{number}").get(f"rc:{number}")
        assert pipeline.execute()[::2] == list(range(1, 101))
        assert client.mset_nonatomic({f"rc:{n}": "x" for n in range(50)})
        assert client.mget_nonatomic([f"rc:{n}" for n in range(50)]) == ["x"] * 50
    finally:
        client.close()


def test_the_cluster_port_is_a_member_of_a_redis_cluster(cluster: RunningCluster) -> None:
    mine, theirs = key_at(cluster, "a"), key_at(cluster, "b")
    moved = f"-MOVED {slot_of(theirs.encode())} {HOST}:{cluster['b'].cluster_port}\r\n".encode()
    with wire(cluster["a"], port=cluster["a"].cluster_port) as connection:
        info = ask(connection, "INFO").text
        assert b"cluster_enabled:1\r\n" in info
        assert b"redis_mode:cluster\r\n" in info
        assert ask(connection, "HELLO").pairs[b"mode"].text == b"cluster"
        assert ask(connection, f"SET {mine} 1").raw == b"+OK\r\n"
        assert ask(connection, f"SET {theirs} 1").raw == moved
        assert ask(connection, f"GET {theirs}").raw == moved
        assert ask(connection, f"MGET {mine} {theirs}").raw.startswith(b"-CROSSSLOT ")
        assert ask(connection, "SELECT 3").raw == b"-ERR SELECT is not allowed in cluster mode\r\n"
        assert ask(connection, "SELECT 0").raw == b"+OK\r\n"
        assert ask(connection, f"MOVE {mine} 3").raw.startswith(b"-ERR MOVE is not allowed")
        assert ask(connection, "SWAPDB 0 1").raw.startswith(b"-ERR SWAPDB is not allowed")
        ask(connection, "READONLY")
        assert ask(connection, f"GET {theirs}").raw != moved
        assert ask(connection, f"SET {theirs} 1").raw == moved
        assert b" flags=r " in ask(connection, "CLIENT INFO").text
        ask(connection, "RESET")
        assert ask(connection, f"GET {theirs}").raw == moved
        ask(connection, "READONLY")
        ask(connection, "READWRITE")
        assert ask(connection, f"GET {theirs}").raw == moved
        ask(connection, "ASKING")
        assert ask(connection, f"SET {theirs} 2").raw == b"+OK\r\n"
        assert ask(connection, f"SET {theirs} 3").raw == moved
        # A transaction is refused where its keys are not, and so is one of several slots.
        ask(connection, "MULTI")
        assert ask(connection, f"GET {theirs}").raw == moved
        assert ask(connection, "EXEC").raw.startswith(b"-EXECABORT ")
        for command in ("MULTI", f"GET {mine}", f"GET {key_at(cluster, 'a')}"):
            ask(connection, command)
        assert ask(connection, "EXEC").raw.startswith(b"-CROSSSLOT ")
        for command in ("MULTI", "SELECT 4", f"GET {mine}"):
            ask(connection, command)
        assert [item.is_error for item in ask(connection, "EXEC").items] == [True, False]
    with wire(cluster["a"]) as connection:
        assert b"cluster_enabled:0\r\n" in ask(connection, "INFO cluster").text
        assert ask(connection, f"GET {theirs}").text == b"2"
        assert b"support disabled" in ask(connection, "CLUSTER INFO").raw


@needs("redis-cli")
def test_redis_cli(cluster: RunningCluster) -> None:
    port = str(cluster["a"].cluster_port)
    commands = "".join(f"SET cli:{n} {n}\nGET cli:{n}\n" for n in range(20))
    said = run("redis-cli", "-c", "-p", port, stdin=commands)
    assert [line for line in said.splitlines() if line.isdigit()] == [str(n) for n in range(20)]
    assert "MOVED" not in said
    info = run("redis-cli", "--cluster", "info", f"{HOST}:{port}")
    check = run("redis-cli", "--cluster", "check", f"{HOST}:{port}")
    for member in cluster:
        assert f"{HOST}:{member.cluster_port}" in info
    assert "in 3 masters" in info
    assert "[OK] All nodes agree about slots configuration." in check
    assert "[OK] All 16384 slots covered." in check


@needs("node", "npm")
@pytest.mark.usefixtures("node_modules")
@pytest.mark.parametrize(
    "script", ["ioredis_cluster.js", "ioredis_replicas.js", "node_redis_cluster.js"]
)
def test_node_js(cluster: RunningCluster, script: str) -> None:
    ports = [str(member.cluster_port) for member in cluster]
    assert run("node", script, *ports, cwd=NODE_FOLDER) == "ok\n"


# redis-benchmark


@needs("redis-benchmark")
@pytest.mark.parametrize("pipeline", [1, 16])
@pytest.mark.parametrize("is_cluster", [False, True])
def test_redis_benchmark(cluster: RunningCluster, pipeline: int, is_cluster: bool) -> None:
    member = cluster["b"]
    port = member.cluster_port if is_cluster else member.port
    flags = ("--cluster",) if is_cluster else ()
    # Its MSET would be of several slots there.
    tests = ("-t", "ping,set,get,incr") if is_cluster else ()
    said = run(
        *("redis-benchmark", "-p", str(port), *BENCHMARK, *tests, "-P", str(pipeline), *flags),
        seconds=BENCHMARK_S,
    )
    rows = [line.split('","') for line in said.splitlines() if line.startswith('"')][1:]
    assert len(rows) >= 4
    assert all(float(row[1].strip('"')) > 0 for row in rows)
    assert "rror" not in said


# A node dies


def test_clients_of_the_others_notice_nothing_and_the_node_catches_up(
    cluster: RunningCluster,
) -> None:
    clients = Clients([(HOST, cluster["a"].port), (HOST, cluster["b"].port)], 16)
    try:
        clients.run(2000, cluster["c"].kill)
        assert not clients.seen.errors
        assert not clients.seen.wrong
        further = clients.write_further(500)
        assert all(operation.error is None for operation in further)
        started_s = time.monotonic()
        cluster["c"].start()
        missing = clients.values() | {b"further:%d" % n: b"value:%d" % n for n in range(500)}
        while missing:
            assert time.monotonic() - started_s < CAUGHT_UP_S, f"{len(missing)} are missing"
            with contextlib.suppress(OSError), wire(cluster["c"]) as connection:
                for key in list(missing):
                    if connection.ask(b"KV.LOCAL", key).text == missing[key]:
                        del missing[key]
            time.sleep(0.1)
    finally:
        clients.close()
        cluster.heal()


def test_redis_py_cluster_follows_a_node_that_dies(cluster: RunningCluster) -> None:
    client = cluster_client(cluster)
    try:
        for number in range(100):
            assert client.set(f"follow:{number}", number)
        cluster["b"].kill()
        for number in range(100):
            assert client.get(f"follow:{number}") == str(number)
            assert client.set(f"follow:{number}", number + 1)
        with wire(cluster["a"], port=cluster["a"].cluster_port) as connection:
            nodes = ask(connection, "CLUSTER NODES").text.decode().splitlines()
            assert [",fail" in line for line in nodes].count(True) == 1
            assert b"cluster_state:ok\r\n" in ask(connection, "CLUSTER INFO").text
        cluster.heal()
        for number in range(100):
            assert client.get(f"follow:{number}") == str(number + 1)
        client.nodes_manager.initialize()
        assert {node.port for node in client.get_primaries()} == {
            member.cluster_port for member in cluster
        }
    finally:
        client.close()
        cluster.heal()


def test_without_a_quorum_nothing_is_answered_as_if_there_were_one(
    cluster: RunningCluster,
) -> None:
    with connect(cluster["a"]) as client:
        try:
            assert client.set("quorum", "v")
            cluster["b"].kill()
            cluster["c"].kill()
            until(lambda: refusal_of(client, "SET", "quorum", "w") is not None, "SET is refused")
            assert "NOREPLICAS" in str(refusal_of(client, "SET", "quorum", "w"))
            assert "NOREPLICAS" in str(refusal_of(client, "GET", "quorum"))
            assert client.ping()
        finally:
            cluster.heal()
        assert client.get("quorum") in ("v", "w")


def refusal_of(client: Any, *command: str) -> redis.RedisError | None:
    try:
        client.execute_command(*command)
    except redis.RedisError as error:
        return error
    return None


# Who is let in


def test_respkv_cluster_runs_all_nodes(tmp_path: Path) -> None:
    cluster = new_cluster(tmp_path, settings=f'secret_file = "{tmp_path / "secret"}"')
    log = tmp_path / "said"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "respkv", "cluster", str(cluster.config)],
            stdin=subprocess.DEVNULL, stdout=output, stderr=output,
        )  # fmt: skip
    try:
        until(lambda: "cluster ready: " in log.read_text(), "cluster ready", COMMAND_S)
        for member in cluster:
            until(member.is_serving, f"{member.name} serves", COMMAND_S)
        with connect(cluster["a"]) as first, connect(cluster["b"]) as second:
            assert first.set("k", "v")
            assert second.get("k") == "v"
    finally:
        process.terminate()
        assert process.wait(COMMAND_S) == 0, log.read_text()


@pytest.mark.parametrize(
    ("settings", "name", "said"),
    [
        ("other_secret", "test", "secret"),
        ("secret", "another", "another"),
    ],
)
def test_a_stranger_is_refused_and_the_log_says_why(
    tmp_path: Path, settings: str, name: str, said: str
) -> None:
    (tmp_path / "secret").write_text("one" * 20)
    (tmp_path / "other_secret").write_text("two" * 20)
    for secret in ("secret", "other_secret"):
        (tmp_path / secret).chmod(0o600)
    cluster = new_cluster(tmp_path, settings=f'secret_file = "{tmp_path / "secret"}"')
    strange = tmp_path / "strange.toml"
    strange.write_text(cluster_toml(cluster, f'secret_file = "{tmp_path / settings}"', name))
    cluster["b"].config = strange
    try:
        for member in (cluster["a"], cluster["b"]):
            member.start()
        for member in (cluster["a"], cluster["b"]):
            until(lambda m=member: "ready " in m.said(), "it serves", COMMAND_S)  # type: ignore[misc]
            until(lambda m=member: said in refusals(m), "a line says why", COMMAND_S)  # type: ignore[misc]
        with wire(cluster["a"]) as connection:
            nodes = [node.pairs for node in ask(connection, "KV.NODES").items]
            assert [node[b"reachable"].text for node in nodes] == [b"1", b"0", b"0"]
            assert ask(connection, "SET k v").raw.startswith(b"-NOREPLICAS ")
    finally:
        for member in cluster:
            member.stop()


def refusals(member: Member) -> str:
    """What a node's log says of the other being refused, or of having been refused."""
    lines = member.said().splitlines()
    return "\n".join(line for line in lines if "refused" in line or "cannot be reached" in line)
