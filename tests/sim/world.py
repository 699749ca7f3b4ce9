"""A whole cluster in one process, from a seed: product code on simulated machines, and everything that it runs on.

    async with World(plan).running() as world:    within `deterministic(seed)` and trio's MockClock
        ...

A world has a timeline, a network, machines with a process each, a trace of all deliveries, and a count of
the faults that came true. It has no clients (`client.py`), no workload (`workload.py`), does nothing bad by
itself (`fault.py`), and judges nothing (`check.py`); `run.py` puts these together.

Product code meets seams only: clocks, randomness, disk, transport, sockets, and what blocks. Everything
random is drawn from generators that are named after their use and the seed. No thread, process, file or
socket of the machine is used.

Shell.
"""

from __future__ import annotations

import io
import random
import socket
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from functools import cache
from typing import Any, cast

import structlog
import trio

from cluster import topology
from cluster.claim import Claim
from cluster.placement import claim
from cluster.record import decode
from cluster.replica import Replica
from cluster.ring import Member
from cluster.slot import SLOT_COUNT
from cluster.topology import NodeInfo, Topology
from engine.errors import EngineError
from engine.store import PageFault, Store
from respkv import logs
from respkv.commands import load
from respkv.config import Config
from respkv.node import Node
from respkv.store_share import store_settings
from tests.sim import check
from tests.sim.gate import Gate
from tests.sim.machine import Machine, OperatingSystem, Process
from tests.sim.network import Link, Network
from tests.sim.plan import Plan
from tests.sim.timeline import Timeline
from tests.sim.trace import Trace
from tests.sim.wire import Connection

CLIENT_DELAY_S = (0.0002, 0.002)
LOG_BYTES_MAX = 1 << 20

load()


class ClientLine:
    """The way from clients to one node."""

    def __init__(self, rng: random.Random) -> None:
        self.extra_s = 0.0
        self.has_cut = False
        self._rng = rng

    def delay_s(self) -> float:
        return self._rng.uniform(*CLIENT_DELAY_S) + self.extra_s

    def is_cut(self) -> bool:
        return self.has_cut


class World:
    """See the module's docstring. `failures` are errors that product code must not raise."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.fired: Counter[str] = Counter()
        self.trace = Trace()
        self.timeline = Timeline()
        self.failures: list[BaseException] = []
        self.refused_starts: list[str] = []
        self.starts = 0
        self.gate = Gate()
        self.network = Network(
            self.timeline,
            self.rng("network"),
            fired=self.fired,
            record=lambda source, target, data: self.trace.record(
                self.timeline.tick, source, target, data
            ),
            calm=Link(loss=plan.loss, repetition=plan.repetition, reordering=plan.reordering),
        )
        self.names = [chr(ord("a") + number) for number in range(plan.nodes)]
        self.infos = tuple(
            NodeInfo(name, "127.0.0.1", 7000 + at, 7100 + at, 17000 + at)
            for at, name in enumerate(self.names)
        )
        self.topology: Topology | None = None
        if plan.nodes > 1:
            self.topology = Topology(self.names[0], self.infos, plan.n or min(3, plan.nodes))
        self.machines = {name: Machine(self, name) for name in self.names}
        self.lines = {name: ClientLine(self.rng(f"clients-of-{name}")) for name in self.names}
        self.when_failed: Callable[[], None] = lambda: None

    def rng(self, purpose: str) -> random.Random:
        """A generator of its own for each purpose, so that one more draw here changes nothing there."""
        return random.Random(f"{purpose}-{self.plan.seed}")

    @asynccontextmanager
    async def running(self) -> AsyncIterator[World]:
        """Start all machines; end everything behind the block."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.timeline.run)
            for name in self.names:
                nursery.start_soon(self.machines[name].serve)
            try:
                yield self
            finally:
                for machine in self.machines.values():
                    machine.end()
                nursery.cancel_scope.cancel()

    def fail(self, error: BaseException) -> None:
        self.failures.append(error)
        self.when_failed()

    def note_refused_start(self, machine: Machine, error: EngineError) -> None:
        self.fired["refused start"] += 1
        self.refused_starts.append(f"{machine.name}: {error}")

    # Clients

    def node_of_port(self, port: int) -> str:
        """The node whose cluster port this is."""
        return next(info.name for info in self.infos if info.cluster_port == port)

    def connect(self, name: str, session: int, *, is_cluster: bool = False) -> Connection | None:
        """A connection of a client to a node, or None if nobody listens there. `is_cluster`: to its cluster port."""
        process = self.machines[name].process
        if process is None or not process.is_alive or self.lines[name].is_cut():
            return None
        client = f"client-{session}"

        def record(is_to_node: bool, data: bytes) -> None:
            source, target = (client, name) if is_to_node else (name, client)
            self.trace.record(self.timeline.tick, source, target, data)

        connection = Connection(
            self.timeline,
            self.lines[name],
            process.poller,
            is_server_alive=lambda: process.is_alive,
            record=record,
        )
        process.connections.append(connection)
        sock = cast(socket.socket, connection.socket)
        served = process.node.front.clients.attach(sock, f"127.0.0.1:{session}", "127.0.0.1:6379")
        served.is_cluster = is_cluster and self.topology is not None
        return connection

    # Composition

    def compose(self, process: Process) -> Node:
        """A node of product code on a machine. Raises EngineError, PowerCut."""
        machine = process.machine
        rng = random.Random(f"node-{machine.name}-{machine.lives}-{self.plan.seed}")
        config = self.config(machine)
        replica = Replica.open(
            process.disk,
            store_settings(config),
            rng.getrandbits(62) | 1,
            boot=f"{machine.name}-{machine.boots}",
            is_durable=config.log.fsync == "always",
        )
        return Node(
            config,
            replica,
            name=machine.name,
            data_dir=process.disk.path,
            rng=rng,
            clock_ns=process.clock_ns,
            wall_ns=machine.wall_ns,
            process=OperatingSystem(),
            poller=process.poller,
            make_transport=None if self.topology is None else lambda peers: process.endpoint,
            worker=process.worker,
            offload=process.blocking,
        )

    def config(self, machine: Machine) -> Config:
        """Small limits, so that memtables fill and logs are cut in a minute."""
        config = Config()
        if self.topology is not None:
            config.nodes, config.node = self.infos, machine.name
            for key, value in (("n", self.plan.n), ("r", self.plan.r), ("w", self.plan.w)):
                config.put(f"cluster.{key}", value)
        config.policies = self.plan.policies
        config.put("client.port", 0)
        config.put("log.fsync", self.plan.fsync)
        config.put("memory.bytes_max", 16 << 20)
        config.put("memory.memtable_share", 0.01)
        return config

    @property
    def skew_max_s(self) -> float:
        """How far a clock was off at most, so far."""
        drift_s = max(abs(machine.drift) for machine in self.machines.values())
        offset_s = max(machine.offset_max_s for machine in self.machines.values())
        return offset_s + drift_s * self.timeline.now_s + 0.01

    # What the replicas hold

    def owners(self, slot: int) -> Sequence[str]:
        """The nodes that keep a slot."""
        return self.names if self.topology is None else self.topology.replicas(slot)

    def clocks(self) -> dict[str, dict[tuple[int, bytes], object]]:
        """What each node that runs has seen of each slot of which anything was seen."""
        held: dict[str, dict[tuple[int, bytes], object]] = {}
        for name, machine in self.machines.items():
            if machine.process is not None and machine.is_up:
                clocks = machine.process.node.replica.clocks
                held[name] = {
                    (slot, b"(clock)"): clocks.view(slot).freeze()
                    for slot in clocks.slots()
                    if slot < SLOT_COUNT and name in self.owners(slot)
                }
        return held

    def difference(self) -> list[check.Finding]:
        """What keeps the replicas from being the same: clocks, or rows where the clocks are the same."""
        return check.check_convergence(self.clocks(), self.owners) or check.check_convergence(
            self.contents(), self.owners
        )

    @property
    def is_well(self) -> bool:
        """Whether all nodes run and have all that they promised, and the replicas are the same."""
        for machine in self.machines.values():
            process = machine.process
            if process is None or process.is_frozen or not machine.is_complete:
                return False
        return not self.difference()

    def contents(self) -> dict[str, dict[tuple[int, bytes], object]]:
        """The live versions of all rows of each node that runs, read from its store."""
        held = {}
        for name, machine in self.machines.items():
            if machine.process is not None and machine.is_up:
                held[name] = content_of(machine.process.node)
        return held


def content_of(node: Node) -> dict[tuple[int, bytes], object]:
    """What one replica holds: slot and row, and the versions that are alive, in order."""
    content: dict[tuple[int, bytes], object] = {}
    now_ms = node.now_ms()
    for slot, row, raw in _rows_of(node.store):
        live = [version for version in decode(raw).versions if version.is_live(now_ms)]
        if live:
            content[slot, row] = tuple(sorted((v.dot, v.type, v.payload) for v in live))
    return content


def _rows_of(store: Store) -> Iterator[tuple[int, bytes, bytes]]:
    slot: int | None = 0
    while slot is not None and slot < SLOT_COUNT:
        try:
            slot = store.next_slot(slot)
        except PageFault as fault:
            fault.resolve()
            continue
        if slot is None or slot >= SLOT_COUNT:
            return
        with store.snapshot_scan(slot) as scan:
            for row, raw in scan:
                yield slot, row, raw
        slot += 1


@cache
def _first_claim(members: tuple[Member, ...], n: tuple[tuple[str, int], ...]) -> Claim:
    return claim(members, dict(n))


@contextmanager
def claimed_once() -> Iterator[None]:
    """Within this the first claim of some members is computed once, and not at each start: it takes half a second."""
    places: Any = topology
    before = places.claim_of
    places.claim_of = lambda members, n, _: _first_claim(tuple(members), tuple(n.items()))
    try:
        yield
    finally:
        places.claim_of = before


@contextmanager
def quiet() -> Iterator[io.BytesIO]:
    """Log lines of the nodes go into a buffer, for a failure's report."""
    before = structlog.get_config()
    buffer = _Tail()
    logs.setup("info", stream=buffer, now=_virtual_now)
    try:
        yield buffer
    finally:
        logs.setup()
        structlog.configure(**before)


def _virtual_now() -> float:
    try:
        return trio.current_time()
    except RuntimeError:
        return 0.0


class _Tail(io.BytesIO):
    """Keeps the end of what is written."""

    def write(self, data: bytes) -> int:  # type: ignore[override]
        if self.tell() > LOG_BYTES_MAX:
            rest = self.getvalue()[-LOG_BYTES_MAX // 2 :]
            self.seek(0)
            self.truncate()
            super().write(rest)
        return super().write(data)
