"""Three servers that keep every key: Redis with replicas, and a cluster of respkv (shell).

It measures nothing. All servers listen on 127.0.0.1, keep their data in a temporary directory, and
sync their logs once a second. Both stores hold each key three times, and answer a write when two
servers have it in memory and in the log that the kernel holds: Redis by WAIT 1, respkv by W=2.

A cluster is described by one TOML file, from which each node is started with `respkv serve --config
FILE --node NAME`, and takes four ports: clients, the cluster view (+100), the bus (+10000) and the
administrator's (+20000).
"""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import hiredis

from bench.connection import Address, Connection, ConnectionEnded, ErrorAnswered, encode_command
from bench.load import LoadFailed, key
from bench.ports import CLUSTER_PORT_OFFSET, free_ports
from bench.process import CpuTime, tree_cpu
from bench.replicated_route import Route, parse_cluster_slots
from bench.restart import RunningServer
from bench.server import HOST, Server, ServerNotReady, running
from bench.serving import rest
from respkv.version import VERSION

NODE_NAMES: Final = ("a", "b", "c")
FORM_WAIT_S: Final = 60.0
POLL_S: Final = 0.05
ANSWER_WAIT_S: Final = 10.0
PROBE_COUNT: Final = 64
# An absent replica is synced at once, and not after the five seconds that wait for others.
REDIS_SETTINGS: Final = ("--repl-diskless-sync-delay", "0")


@dataclass(frozen=True, slots=True)
class Group:
    """The servers of one store; clients of all of it use the first."""

    name: str
    servers: tuple[Server, ...]

    @property
    def address(self) -> Address:
        return self.servers[0].address

    def cpu(self) -> list[CpuTime]:
        """What each server and its children have used so far."""
        return [tree_cpu(server.pid) for server in self.servers]

    def settled_cpu(self, wait_s: float) -> tuple[list[CpuTime], bool]:
        """Wait until all are at rest; what each has used then, and whether they rest."""
        with ThreadPoolExecutor(len(self.servers)) as threads:
            readings = list(threads.map(lambda each: rest(each, wait_s=wait_s), self.servers))
        return [cpu for cpu, _ in readings], all(is_settled for _, is_settled in readings)


@dataclass(frozen=True, slots=True)
class Member:
    """One node of a cluster, as the file describes it."""

    name: str
    port: int
    data_dir: Path

    @property
    def address(self) -> Address:
        return HOST, self.port

    @property
    def cluster_address(self) -> Address:
        return HOST, self.port + CLUSTER_PORT_OFFSET


class RunningMember(RunningServer):
    """One start of a node of a cluster. Whoever makes it ends it, by `stop` or `kill`."""

    def __init__(self, config: Path, member: Member, log: Path) -> None:
        # Not the parent's: it would choose a port and a folder, which are in the file here.
        self.member = member
        self.address = member.address
        self.opened_s = self.ready_s = 0.0
        self._log = log
        line = [sys.executable, "-m", "respkv", "serve"]
        with log.open("wb") as output:
            self._began_s = time.monotonic()
            self._process = subprocess.Popen(
                [*line, "--config", str(config), "--node", member.name],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                cwd=Path(__file__).resolve().parent.parent,
            )

    def wait_until_ready(self) -> None:
        """Wait for its line `ready`. Raises ServerNotReady."""
        self._wait_until_ready()


class Cluster:
    """A running cluster of three nodes. Made by `cluster`, which ends what runs of it."""

    def __init__(self, folder: Path) -> None:
        ports = free_ports(len(NODE_NAMES))
        self.members = [
            Member(name, port, folder / name) for name, port in zip(NODE_NAMES, ports, strict=True)
        ]
        self._folder = folder
        self._config = folder / "cluster.toml"
        self._config.write_text(cluster_toml(self.members))
        self.nodes: list[RunningMember] = []
        self._start_count = 0

    @property
    def group(self) -> Group:
        servers = (Server("respkv", VERSION, node.address, node.pid) for node in self.nodes)
        return Group("respkv", tuple(servers))

    def start(self, member: Member) -> RunningMember:
        """Start a node, again if it ran before. It is not ready yet."""
        self._start_count += 1
        log = self._folder / f"{member.name}.{self._start_count}.log"
        node = RunningMember(self._config, member, log)
        self.nodes = [each for each in self.nodes if each.member != member] + [node]
        self.nodes.sort(key=lambda each: each.member.name)
        return node

    def stop(self) -> None:
        with ThreadPoolExecutor(len(NODE_NAMES)) as threads:
            list(threads.map(RunningMember.stop, self.nodes))

    def last_words(self) -> str:
        return "\n".join(f"{each.member.name} wrote:\n{each.last_words}" for each in self.nodes)


@contextlib.contextmanager
def cluster() -> Iterator[Cluster]:
    """Run a cluster of respkv for a `with` block; it takes writes at every node."""
    with tempfile.TemporaryDirectory(prefix="bench-cluster-") as directory:
        one = Cluster(Path(directory))
        try:
            for member in one.members:
                one.start(member)
            for node in one.nodes:
                node.wait_until_ready()
            for node in one.nodes:
                wait_until_serving(node.address)
            yield one
        except Exception as error:
            error.add_note(one.last_words())
            raise
        finally:
            one.stop()


@contextlib.contextmanager
def redis_with_replicas() -> Iterator[Group]:
    """Run a primary and two replicas of Redis for a `with` block; both replicas are in sync."""
    with contextlib.ExitStack() as stack:
        primary = stack.enter_context(running("redis", settings=REDIS_SETTINGS))
        host, port = primary.address
        following = ["--replicaof", host, str(port)]
        replicas = [stack.enter_context(running("redis", settings=following)) for _ in range(2)]
        wait_for_replicas(primary.address, len(replicas))
        yield Group("redis", (primary, *replicas))


def cluster_toml(members: Sequence[Member]) -> str:
    """The file of a cluster with N=3, W=2, R=2 that syncs its logs once a second."""
    lines = ["[cluster]", 'name = "bench"', "n = 3", "r = 2", "w = 2"]
    lines += ["", "[log]", 'fsync = "everysec"']
    for member in members:
        lines += ["", "[[node]]", f'name = "{member.name}"', f'host = "{HOST}"']
        lines += [f"port = {member.port}", f'data_dir = "{member.data_dir}"']
    return "\n".join(lines) + "\n"


def wait_for_replicas(address: Address, count: int) -> None:
    """Wait until a primary of Redis streams to so many replicas, and they acknowledge."""
    deadline_s = time.monotonic() + FORM_WAIT_S
    with Connection(address) as connection:
        while time.monotonic() < deadline_s:
            replication = connection.info(b"replication")
            online = sum("state=online" in value for value in replication.values())
            if online == count and connection.command(b"WAIT", b"%d" % count, b"1000") == count:
                return
            time.sleep(POLL_S)
    raise LoadFailed(f"{count} replicas did not come up in {FORM_WAIT_S:g} s")


def wait_until_serving(address: Address) -> None:
    """Wait until a node takes writes of keys in many slots, so of every coordinator."""
    deadline_s = time.monotonic() + FORM_WAIT_S
    answer: object = "nothing"
    while time.monotonic() < deadline_s:
        try:
            with Connection(address, timeout_s=ANSWER_WAIT_S) as connection:
                for number in range(PROBE_COUNT):
                    connection.command(b"SET", key(number), b"probe")
                return
        except (OSError, ConnectionEnded, ErrorAnswered) as error:
            answer = f"{type(error).__name__}: {error}"
            time.sleep(POLL_S)
    failure = ServerNotReady("the cluster")
    failure.add_note(f"port {address[1]} answered a SET with {answer}")
    raise failure


def read_route(address: Address) -> Route:
    """Ask a cluster port for CLUSTER SLOTS. Raises OSError and RouteUnusable."""
    return parse_cluster_slots(ask(address, b"CLUSTER", b"SLOTS"), address)


def ask(address: Address, *words: bytes) -> Any:
    """One command and its reply, which may be nested; an error comes as hiredis' ReplyError."""
    reader = hiredis.Reader()
    with socket.create_connection(address, timeout=ANSWER_WAIT_S) as connection:
        connection.sendall(encode_command(*words))
        while (reply := reader.gets()) is False:
            data = connection.recv(1 << 16)
            if not data:
                raise ConnectionEnded("the server closed the connection within a reply")
            reader.feed(data)
    return reply
