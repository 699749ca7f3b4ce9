"""CLUSTER and its kin on both ports, against redis-server and with real clients.

`Members` are whole nodes in this process behind sockets of their own: each has the cluster's face and
a store of its own, which is enough for clients to find their way. There is no bus between them.
"""

from __future__ import annotations

import contextlib
import re
import shutil
import socket
import socketserver
import subprocess
import threading
import time
from collections.abc import Iterator
from typing import Any

import hiredis
import pytest
from redis.cluster import LoadBalancingStrategy, RedisCluster
from redis.exceptions import RedisError

from bench.ports import free_port
from cluster.claim import Claim
from cluster.record import CODEC
from cluster.slot import SLOT_COUNT, slot_of
from cluster.topology import NodeInfo, Topology
from engine.job import run_job
from respkv.cluster_view import BusStats, Link, redirect, slots_of
from respkv.command import TABLE
from respkv.session import Session
from tests.differential.wire import Connection, Reply
from tests.respkv.commands.alone import Alone
from tests.respkv.commands.redis import needs_redis
from tests.servers import redis_server

needs_redis_cli = pytest.mark.skipif(
    shutil.which("redis-cli") is None, reason="redis-cli is not installed"
)
SLOT_OF_A = 15495
PRIMARIES = RedisCluster.PRIMARIES
ROUND_ROBIN = LoadBalancingStrategy.ROUND_ROBIN


def topology_of(names: str, n: int, me: str, ports: dict[str, int] | None = None) -> Topology:
    nodes = [
        NodeInfo(name, "127.0.0.1", 7000 + i, ports[name] if ports else 7100 + i, 17000 + i)
        for i, name in enumerate(names)
    ]
    return Topology(me, nodes, n)


class Member(Alone):
    """A node on its own that is told that it is a member of a cluster. Its first session is on the cluster port."""

    def __init__(self, topology: Topology) -> None:
        super().__init__()
        self.links: list[Link] = []
        self.stats = BusStats()
        node: Any = self.node
        node.topology = topology
        node.links = lambda: self.links
        node.bus_stats = lambda: self.stats
        self.session.is_cluster = True


@pytest.fixture
def member() -> Iterator[Member]:
    """Node a of three, which all hold everything."""
    made = Member(topology_of("abc", 3, "a"))
    yield made
    made.close()


@pytest.fixture
def alone() -> Iterator[Alone]:
    made = Alone()
    node: Any = made.node
    node.topology = None
    yield made
    made.close()


# The client port

SUBCOMMANDS = [
    "INFO", "MYID", "NODES", "SLOTS", "SHARDS", "LINKS", "KEYSLOT k", "COUNTKEYSINSLOT 1", "COUNTKEYSINSLOT x",
    "GETKEYSINSLOT 1 1", "GETKEYSINSLOT -1 x", "COUNT-FAILURE-REPORTS x", "REPLICAS x", "HELP",
]  # fmt: skip
WELL_FORMED = [*(f"CLUSTER {words}" for words in SUBCOMMANDS), "READONLY", "READWRITE", "ASKING"]
MALFORMED = [
    "CLUSTER", "CLUSTER NOSUCH", "CLUSTER NOSUCH x", "CLUSTER MYID x", "CLUSTER KEYSLOT", "CLUSTER HELP x",
    "READONLY x", "ASKING x",
]  # fmt: skip


@pytest.mark.parametrize("words", WELL_FORMED)
def test_on_the_client_port_there_is_no_cluster(words: str, alone: Alone, member: Member) -> None:
    disabled = b"-ERR This instance has cluster support disabled"
    assert alone.text(words) == disabled
    reply = member.ask(words, session=member.connect())
    assert reply is not None
    assert b"-" + reply.text == disabled
    alone.session.is_cluster = True  # A node in no cluster has no such port; but if it had,
    assert alone.text(words) == disabled


@needs_redis
def test_the_client_port_answers_as_redis_without_cluster_mode(member: Member) -> None:
    session = member.connect()
    with redis_server() as server:
        connection = Connection(server.host, server.port, timeout_s=10)
        for words in WELL_FORMED + MALFORMED:
            expected = connection.ask(*words.encode().split())
            assert member.ask(words, session=session) == expected, words
        connection.close()


# The cluster port, beside redis-server

SAME_REPLIES = [
    "CLUSTER KEYSLOT a", "CLUSTER KEYSLOT {}a", "CLUSTER KEYSLOT x{a}y", "CLUSTER KEYSLOT", "CLUSTER NOSUCH",
    "CLUSTER MYID x", "CLUSTER COUNTKEYSINSLOT 15495", "CLUSTER COUNTKEYSINSLOT 1", "CLUSTER COUNTKEYSINSLOT x",
    "CLUSTER COUNTKEYSINSLOT 16384", "CLUSTER COUNTKEYSINSLOT -1", "CLUSTER COUNTKEYSINSLOT 1 2",
    "CLUSTER GETKEYSINSLOT 15495 10", "CLUSTER GETKEYSINSLOT 15495 0", "CLUSTER GETKEYSINSLOT 1 10",
    "CLUSTER GETKEYSINSLOT 1 -1", "CLUSTER GETKEYSINSLOT 16384 1", "CLUSTER GETKEYSINSLOT -1 1",
    "CLUSTER GETKEYSINSLOT x -1", "CLUSTER GETKEYSINSLOT 1 x", "CLUSTER GETKEYSINSLOT 1 99999999999999999999",
    "CLUSTER COUNT-FAILURE-REPORTS nosuch", "CLUSTER REPLICAS nosuch", "READONLY", "READWRITE", "ASKING", "READWRITE x",
]  # fmt: skip


@contextlib.contextmanager
def redis_cluster_of_one() -> Iterator[Connection]:
    """A connection to a redis-server that is a cluster of its own."""
    with redis_server("--cluster-enabled", "yes") as server:
        connection = Connection(server.host, server.port, timeout_s=10)
        assert connection.ask(b"CLUSTER", b"ADDSLOTSRANGE", b"0", b"16383").text == b"OK"
        deadline = time.monotonic() + 15
        while b"cluster_state:ok" not in connection.ask(b"CLUSTER", b"INFO").text:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        yield connection
        connection.close()


def shape(reply: Reply) -> Any:
    """Kinds, nested; what stands in maps by name."""
    if reply.kind == "%":
        return {name: shape(item) for name, item in reply.pairs.items()}
    if isinstance(reply.value, list):
        return [reply.kind, *map(shape, reply.items)]
    return reply.kind


def names_of(info: bytes) -> list[bytes]:
    return [line.partition(b":")[0] for line in info.split(b"\r\n") if b":" in line]


@needs_redis
def test_the_cluster_port_answers_as_redis_in_cluster_mode() -> None:
    """One member of one, so that all slots are its own, beside a Redis in the same situation."""
    one = Member(topology_of("a", 1, "a"))
    one.ask("SET a v")
    with redis_cluster_of_one() as redis:
        redis.ask(b"SET", b"a", b"v")
        for words in SAME_REPLIES:
            assert one.ask(words) == redis.ask(*words.encode().split()), words
        for hello in ("HELLO 2", "HELLO 3"):
            one.ask(hello)
            redis.ask(*hello.encode().split())
            for name in ("SLOTS", "SHARDS", "NODES", "INFO", "MYID", "HELP"):
                ours, theirs = one.ask(f"CLUSTER {name}"), redis.ask(b"CLUSTER", name.encode())
                assert ours is not None
                if name == "HELP":
                    assert ours.kind == theirs.kind
                    continue
                assert shape(ours) == shape(theirs), (hello, name)
                if name == "INFO":
                    assert names_of(ours.text) == names_of(theirs.text)
                if name == "NODES":
                    assert pattern_of(ours.text) == pattern_of(theirs.text)
    one.close()


def pattern_of(nodes: bytes) -> list[str]:
    """CLUSTER NODES with ids, addresses and numbers left out. Redis does not know its address while it is alone."""
    words = re.sub(rb"[0-9a-f]{40}", b"ID", nodes).replace(b"127.0.0.1", b"").decode().split(" ")
    return [re.sub(r"\d+", "N", word) for word in words]


# Replies that need a cluster


def items_of(node: Alone, words: str) -> list[Reply]:
    reply = node.ask(words)
    assert reply is not None
    assert reply.kind == "*"
    return reply.items


def test_a_member_knows_its_id(member: Member) -> None:
    node: Any = member.node
    own = node.topology.nodes["a"].id.encode()
    assert member.text("CLUSTER MYID") == own
    assert own + b" 127.0.0.1:7100@17000 myself,master" in member.text("CLUSTER NODES")


def test_info_asks_the_configuration_how_many_replicas_are_needed(member: Member) -> None:
    node: Any = member.node
    member.stats.sent["gossip"] = 7
    text = member.text("CLUSTER INFO")
    assert text.startswith(b"cluster_state:ok\r\n")
    assert b"cluster_stats_messages_gossip_sent:7\r\n" in text
    node.topology.mark("b", is_reachable=False)
    node.topology.mark("c", is_reachable=False)
    for r, w, state in ((1, 1, b"ok"), (2, 1, b"fail"), (1, 2, b"fail")):
        node.config.cluster.r, node.config.cluster.w = r, w
        assert member.text("CLUSTER INFO").startswith(b"cluster_state:%b\r\n" % state)


def test_nodes_tell_when_a_peer_was_heard(member: Member) -> None:
    member.stats.heard_ms["b"] = 1700000000001
    assert b"7101@17001 master - 0 1700000000001 1 connected" in member.text("CLUSTER NODES")


def test_links_are_maps(member: Member) -> None:
    assert items_of(member, "CLUSTER LINKS") == []
    member.links.append(
        Link("b", is_outgoing=False, created_ms=5, events="r", allocated_bytes=1, used_bytes=0)
    )
    member.ask("HELLO 3")
    (link,) = items_of(member, "CLUSTER LINKS")
    assert link.kind == "%"
    assert [name.decode() for name in link.pairs] == [
        "direction", "node", "create-time", "events", "send-buffer-allocated", "send-buffer-used",
    ]  # fmt: skip
    assert link.pairs[b"direction"].text == b"from"


def test_failure_reports_and_replicas_of_a_known_node(member: Member) -> None:
    node: Any = member.node
    other = node.topology.nodes["b"].id
    assert member.text(f"CLUSTER COUNT-FAILURE-REPORTS {other}") == b"0"
    assert items_of(member, f"CLUSTER REPLICAS {other}") == []
    node.topology.mark("b", is_reachable=False)
    assert member.text(f"CLUSTER COUNT-FAILURE-REPORTS {other}") == b"1"


def test_help_names_every_subcommand(member: Member) -> None:
    reply = member.ask("CLUSTER HELP")
    assert reply is not None
    assert {item.kind for item in reply.items} == {"+"}
    named = {item.text.split()[0] for item in reply.items[1:] if not item.text.startswith(b" ")}
    assert named == set(TABLE.commands["CLUSTER"].subcommands)


def test_readonly_readwrite_and_asking_mark_the_session(member: Member) -> None:
    session = member.session
    marks = []
    for words in ("READONLY", "ASKING", "READWRITE"):
        assert member.text(words) == b"OK"
        marks.append((session.is_readonly, session.is_asking))
    assert marks == [(True, False), (True, True), (False, True)]


# Keys in slots


@pytest.fixture
def owner() -> Iterator[Member]:
    """Node a of two: the slot of `a` and half of the others are its own, and it is a replica of the rest."""
    table = (("b", "a"),) * 8000 + (("a", "b"),) * (SLOT_COUNT - 8000)
    nodes = [NodeInfo("a", "127.0.0.1", 1, 2, 3), NodeInfo("b", "127.0.0.1", 4, 5, 6)]
    made = Member(Topology("a", nodes, 2, claim=Claim({"": table})))
    yield made
    made.close()


def keys_in(owner: Alone, slot: int, limit: int = 1000) -> set[bytes]:
    return {item.text for item in items_of(owner, f"CLUSTER GETKEYSINSLOT {slot} {limit}")}


def count_in(owner: Alone, slot: int) -> int:
    return int(owner.text(f"CLUSTER COUNTKEYSINSLOT {slot}"))


def test_keys_of_a_slot_are_counted_and_listed(owner: Member) -> None:
    assert (count_in(owner, SLOT_OF_A), keys_in(owner, SLOT_OF_A)) == (0, set())
    owner.ask("MSET a 1 x{a} 2 y{a} 3 other 4")
    assert count_in(owner, SLOT_OF_A) == 3
    assert keys_in(owner, SLOT_OF_A) == {b"a", b"x{a}", b"y{a}"}
    assert len(keys_in(owner, SLOT_OF_A, 2)) == 2
    owner.ask("DEL a")
    owner.ask("PEXPIRE x{a} 100")
    assert count_in(owner, SLOT_OF_A) == 2
    owner.ns += 200_000_000
    assert count_in(owner, SLOT_OF_A) == 1
    assert keys_in(owner, SLOT_OF_A) == {b"y{a}"}


def test_other_databases_are_not_counted(owner: Member) -> None:
    owner.ask("SELECT 3", session=(other := owner.connect()))
    owner.ask("SET z{a} 1", session=other)
    owner.ask("SET a 1")
    assert count_in(owner, SLOT_OF_A) == 1
    assert keys_in(owner, SLOT_OF_A) == {b"a"}


def test_slots_that_another_node_coordinates_are_empty_here(owner: Member) -> None:
    assert slot_of(b"b") == 3300
    owner.ask("SET b 1")
    assert (count_in(owner, 3300), keys_in(owner, 3300)) == (0, set())
    node: Any = owner.node
    node.topology.mark("b", is_reachable=False)
    assert (count_in(owner, 3300), keys_in(owner, 3300)) == (1, {b"b"})


def test_a_slot_of_many_pages(owner: Member) -> None:
    names = {b"{a}%d" % number for number in range(1000)}
    for name in names:
        owner.ask("SET", name, b"v")
    assert count_in(owner, SLOT_OF_A) == 1000
    assert keys_in(owner, SLOT_OF_A, 2000) == names
    assert len(keys_in(owner, SLOT_OF_A, 700)) == 700


def test_within_a_transaction_its_own_writes_count(owner: Member) -> None:
    owner.ask("MSET a 1 x{a} 1")
    for words in ("MULTI", "DEL a", "SET y{a} 1", f"CLUSTER COUNTKEYSINSLOT {SLOT_OF_A}"):
        owner.ask(words)
    owner.ask(f"CLUSTER GETKEYSINSLOT {SLOT_OF_A} 10")
    reply = owner.ask("EXEC")
    assert reply is not None
    assert reply.items[2].text == b"2"
    assert {item.text for item in reply.items[3].items} == {b"x{a}", b"y{a}"}


@pytest.mark.parametrize("words", ["COUNTKEYSINSLOT 15495", "GETKEYSINSLOT 15495 10"])
def test_keys_that_are_not_in_memory_are_waited_for(words: str, owner: Member) -> None:
    owner.ask("MSET a 1 x{a} 2")
    evict(owner)
    reply = owner.ask(f"CLUSTER {words}")
    assert reply is None
    for _ in range(50):
        reply = reply or owner.work()
    assert reply is not None
    if reply.kind == ":":
        assert reply.text == b"2"
    else:
        assert {item.text for item in reply.items} == {b"a", b"x{a}"}


def evict(owner: Alone) -> None:
    """Move everything to a table, out of all memory."""
    store = owner.node.store
    store.write()
    store.freeze()
    while (job := store.next_job(owner.node.now_ms())) is not None:
        result = run_job(owner.disk, job, CODEC)
        prepared = store.prepare(job, result)
        store.write_manifest(prepared)
        store.install(job, result, prepared)
    owner.disk.faults.is_cold = True


# Real clients


class Members:
    """Nodes that listen on their cluster ports. One lock for all: a node serves one request at a time."""

    def __init__(self, names: str, n: int) -> None:
        self._lock = threading.Lock()
        self._servers = {name: self._listen(name) for name in names}
        self.ports = {name: int(server.server_address[1]) for name, server in self._servers.items()}
        self.nodes = {name: Member(topology_of(names, n, name, self.ports)) for name in names}
        self.threads = [
            threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
            for server in self._servers.values()
        ]
        for thread in self.threads:
            thread.start()

    def _listen(self, name: str) -> socketserver.ThreadingTCPServer:
        outer = self

        class Handler(socketserver.BaseRequestHandler):
            def handle(self) -> None:
                outer.serve(name, self.request)

        class Server(socketserver.ThreadingTCPServer):
            daemon_threads = True
            block_on_close = False
            allow_reuse_address = True

        return Server(("127.0.0.1", free_port()), Handler)

    def serve(self, name: str, sock: socket.socket) -> None:
        """One client's requests, until it leaves or the node is away."""
        reader = hiredis.Reader()
        with self._lock:
            session = self.nodes[name].connect()
        session.is_cluster = True
        with contextlib.suppress(OSError):
            while data := sock.recv(1 << 16):
                reader.feed(data)
                while (args := reader.gets()) is not False:
                    if name not in self._servers:
                        return
                    with self._lock:
                        out = self.answer(name, session, args)
                    sock.sendall(out)

    def answer(self, name: str, session: Session, args: list[bytes]) -> bytes:
        member = self.nodes[name]
        node: Any = member.node
        command = TABLE.lookup(args)
        if command is not None:
            slots = slots_of(session, command, args)
            error = redirect(session, command, slots, node.topology)
            if error is not None:
                return b"-%b\r\n" % error.line
        now_ms = node.begin_tick()
        node.runner.serve(session, [args], now_ms)
        while node.runner.long_way.sliced:
            node.runner.long_way.advance(now_ms)
        node.front.finish(now_ms)
        out = b"".join(session.out)
        session.out.clear()
        # INFO is about the session's port.
        return out.replace(b"cluster_enabled:0", b"cluster_enabled:1")

    def lose(self, name: str) -> None:
        """A node is away, and the others know."""
        server = self._servers.pop(name)
        server.shutdown()
        server.server_close()
        for other in self._servers:
            node: Any = self.nodes[other].node
            node.topology.mark(name, is_reachable=False)

    def close(self) -> None:
        for server in self._servers.values():
            server.shutdown()
            server.server_close()
        for member in self.nodes.values():
            member.close()


@contextlib.contextmanager
def members(names: str, n: int) -> Iterator[Members]:
    cluster = Members(names, n)
    try:
        yield cluster
    finally:
        cluster.close()


@contextlib.contextmanager
def redis_py(cluster: Members, **options: Any) -> Iterator[Any]:
    port = next(iter(cluster.ports.values()))
    client: Any = RedisCluster(host="127.0.0.1", port=port, socket_timeout=10, **options)
    try:
        yield client
    finally:
        client.close()


@pytest.mark.parametrize(("names", "n"), [("abc", 3), ("abcde", 3), ("ab", 1)])
def test_redis_py_takes_every_node_for_a_primary(names: str, n: int) -> None:
    with members(names, n) as cluster, redis_py(cluster) as client:
        assert {node.port for node in client.get_primaries()} == set(cluster.ports.values())
        assert client.get_replicas() == []
        for number in range(60):
            client.set(f"key:{number}", number)
        assert [int(client.get(f"key:{number}")) for number in range(60)] == list(range(60))
        assert client.dbsize(target_nodes=PRIMARIES) == 60
        names_found = client.keys(target_nodes=PRIMARIES)
        assert sorted(names_found) == sorted(b"key:%d" % number for number in range(60))
        assert client.cluster_keyslot("a") == SLOT_OF_A
        info = client.cluster_info(target_nodes=RedisCluster.RANDOM)
        assert info["cluster_size"] == str(len(names))


def test_redis_py_is_sent_to_the_right_node_by_moved() -> None:
    with members("abc", 1) as cluster, redis_py(cluster) as client:
        wrong = {slot: [node] for slot, (node, *_) in client.nodes_manager.slots_cache.items()}
        first = client.get_primaries()[0]
        for slot in wrong:
            client.nodes_manager.slots_cache[slot] = [first]
        for number in range(20):
            client.set(f"key:{number}", number)
        assert client.dbsize(target_nodes=PRIMARIES) == 20
        assert wrong[SLOT_OF_A][0].port == client.get_node_from_key("a").port


def test_redis_py_goes_on_without_a_node() -> None:
    with members("abc", 3) as cluster, redis_py(cluster) as client:
        client.set("a", 1)
        lost = client.get_node_from_key("a").port
        name = next(name for name, port in cluster.ports.items() if port == lost)
        cluster.lose(name)
        client.set("a", 2)  # Asks for the slots again.
        assert client.get("a") == b"2"
        client.nodes_manager.initialize()
        assert {node.port for node in client.get_primaries()} == set(cluster.ports.values()) - {
            lost
        }


def test_redis_py_reads_from_replicas() -> None:
    with (
        members("abc", 3) as cluster,
        redis_py(cluster, load_balancing_strategy=ROUND_ROBIN) as client,
    ):
        for name, member in cluster.nodes.items():  # What replication would do, and a mark.
            member.ask("SET a", name.encode())
        assert {client.get("a") for _ in range(9)} == {b"a", b"b", b"c"}
        with pytest.raises(RedisError, match="same slot"):
            client.execute_command("MGET", "a", "b", target_nodes=client.get_primaries()[0])


def redis_cli(*args: str) -> str:
    done = subprocess.run(
        ["redis-cli", *args], capture_output=True, timeout=30, check=False, stdin=subprocess.DEVNULL
    )
    return re.sub(r"\x1b\[[0-9;]*m", "", (done.stdout + done.stderr).decode())


@needs_redis_cli
def test_redis_cli_checks_the_cluster() -> None:
    with members("abcd", 3) as cluster:
        address = f"127.0.0.1:{cluster.ports['b']}"
        for number in range(30):
            redis_cli("-c", "-p", str(cluster.ports["a"]), "SET", f"key:{number}", "v")
        text = redis_cli("--cluster", "check", address)
        assert "[OK] 30 keys in 4 masters." in text
        assert "[OK] All nodes agree about slots configuration." in text
        assert "[OK] All 16384 slots covered." in text
        assert len(re.findall(r"^M: ", text, re.MULTILINE)) == 4
        text = redis_cli("--cluster", "info", address)
        counts = re.findall(r"-> (\d+) keys \| (\d+) slots \| 0 slaves", text)
        assert sum(int(keys) for keys, _ in counts) == 30
        assert sum(int(slots) for _, slots in counts) == SLOT_COUNT
        assert len(counts) == 4


@needs_redis_cli
def test_redis_cli_checks_a_cluster_without_one_node() -> None:
    with members("abc", 3) as cluster:
        cluster.lose("b")
        text = redis_cli("--cluster", "check", f"127.0.0.1:{cluster.ports['c']}")
        assert "[OK] All nodes agree about slots configuration." in text
        assert "[OK] All 16384 slots covered." in text
        assert len(re.findall(r"^M: ", text, re.MULTILINE)) == 2


@needs_redis_cli
def test_redis_cli_follows_redirections() -> None:
    with members("abc", 1) as cluster:
        node: Any = cluster.nodes["a"].node
        owner = node.topology.coordinator(SLOT_OF_A)
        other = next(name for name in "abc" if name != owner)
        assert redis_cli("-p", str(cluster.ports[other]), "SET", "a", "1").strip() == (
            f"MOVED {SLOT_OF_A} 127.0.0.1:{cluster.ports[owner]}"
        )
        assert redis_cli("-c", "-p", str(cluster.ports[other]), "SET", "a", "1").strip() == "OK"
        assert redis_cli("-p", str(cluster.ports[owner]), "GET", "a").strip() == "1"
