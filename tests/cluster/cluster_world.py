"""Coordinators and participants of a few nodes in one process, on a network that does what it wants.

A node here is what `respkv/dispatch.py` makes of one, with less in it: it executes reads, writes and
increments of single keys on its replica, tells its coordinator, writes its log, and sends. Messages are
lost, repeated, delayed and reordered; connections break; pages have to be fetched. Everything is drawn
from the seed. What clients were told goes into a history (`tests/sim/history.py`).
"""

from __future__ import annotations

import heapq
import random
from collections import Counter as Tally
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

from cluster.batch import Quorums
from cluster.coordinator import EVERYTHING, Coordinator
from cluster.errors import ClusterError
from cluster.participant import Participant
from cluster.record import CODEC, DELETION, STRING, decode
from cluster.replica import Effect, Replica
from cluster.ring import NodeId
from cluster.round import ConflictLost, Pending, QuorumNotMet
from cluster.sibling import Beside, Seen, beside
from cluster.slot import Row, Slot, row_of, slot_of
from cluster.topology import Topology
from engine.job import run_job
from engine.store import PageFault, StoreSettings
from tests.cluster.bus import claim_of, infos
from tests.engine.stores import forget_pages
from tests.sim.disk import SimDisk
from tests.sim.history import History, Reply
from tests.sim.history import Operation as Entry

NOW_MS = 1_700_000_000_000
TIMEOUT_S = 1.0
RETRY_S = 0.1
RETRIES_MAX = 20
SETTINGS = StoreSettings(
    memtable_bytes=1 << 30,
    row_cache_bytes=1 << 20,
    block_cache_bytes=1 << 20,
    log_bytes_max=1 << 30,
)
WRITES = (b"SET", b"INCR", b"INCRBY", b"SETNX", b"DEL", b"MOVE", b"BOTH", b"APPEND", b"PUT")
OF_TWO = (b"MOVE", b"BOTH")


@dataclass
class Weather:
    """What the network does to a message, as chances."""

    loss: float = 0.0
    repeat: float = 0.0
    delay_s: float = 0.02  # At most.
    late: float = 0.0  # Delayed by more than a client waits.
    linger: float = 0.0  # The tick goes on after an event.


class Op(Pending):
    """One command on a key; MOVE reads one and increments another, PUT leaves what is there beside itself."""

    __slots__ = ("args", "deadline_s", "entry", "node", "outcome", "reply", "then")

    def __init__(self, node: Node, args: tuple[bytes, ...], entry: Entry | None = None) -> None:
        super().__init__()
        self.node = node
        self.args = args
        self.entry = entry
        self.is_blind = args[0] == b"SET"
        self.deadline_s = node.world.now_s + TIMEOUT_S
        self.reply: Reply = None
        self.outcome: Reply | ClusterError | str = "waits"
        self.then: Callable[[], None] = lambda: None

    def settled(self) -> None:
        self.end(self.reply)

    def stale(self) -> None:
        if self.attempt > RETRIES_MAX:
            self.is_over = True
            self.end(ConflictLost(is_partial=False))
        elif self.deadline_s <= self.node.world.now_s:
            self.is_over = True
            self.end(ConflictLost(is_partial=True))
        else:
            self.node.execute(self)

    def failed(self, error: ClusterError) -> None:
        self.end(error)

    def end(self, outcome: Reply | ClusterError, *, is_refused: bool = False) -> None:
        assert self.outcome == "waits", "answered twice"
        self.outcome = outcome
        world = self.node.world
        if self.entry is not None:
            if isinstance(outcome, ClusterError):
                # A blind write is never taken back: some of it may have stayed.
                nothing = isinstance(outcome, ConflictLost) and not outcome.is_partial
                is_refused |= nothing and not self.is_blind
                world.history.failed(self.entry, str(outcome).encode(), is_refused=is_refused)
            else:
                world.history.answered(self.entry, outcome)
        world.met[type(outcome).__name__ if isinstance(outcome, ClusterError) else "answered"] += 1
        self.then()


def place_of(key: bytes) -> tuple[Slot, Row]:
    return slot_of(key), row_of(0, key)


class Node:
    """One member. It is the transport of its own coordinator."""

    def __init__(self, world: World, name: NodeId, quorums: Quorums, number: int) -> None:
        self.world = world
        self.name = name
        nodes = infos(world.node_count)
        self.topology = Topology(name, nodes, quorums.n, claim=claim_of(tuple(nodes), quorums.n))
        disk = SimDisk(random.Random(number))
        self.replica = Replica.open(disk, SETTINGS, 1000 + number)
        self.replica.store.horizon_position = 0
        self.replica.note(is_complete=True)
        self.disk = disk
        self.coordinator = Coordinator(
            self.topology,
            self.replica,
            self,
            quorums,
            timeout_s=TIMEOUT_S,
            retry_s=RETRY_S,
            first_id=1000 * number,
            fetch=self.fetch,
            when_durable=self.promise,
        )
        self.participant = Participant(
            self.replica,
            promise=self.promise,
            fetch=self.fetch,
            held=self.coordinator.held if self.coordinator.is_many else None,
        )
        self.parked: list[Op] = []
        self.promises: list[tuple[NodeId, Sequence[bytes]]] = []
        self.is_disk_late = False  # What is written is not durable yet.
        self.is_disk_full = False  # It is not written.

    # Transport

    def send(self, peer: NodeId, message: Sequence[bytes]) -> None:
        self.world.carry(self.name, peer, list(message))

    def send_bulk(self, peer: NodeId, message: Sequence[bytes]) -> bool:
        raise AssertionError("not for rounds")

    def is_connected(self, peer: NodeId) -> bool:
        return True

    def queued_bytes(self, peer: NodeId) -> int:
        return 0

    def flush(self) -> None:
        pass

    # Seams

    def promise(self, peer: NodeId, answer: Sequence[bytes]) -> None:
        self.promises.append((peer, answer))

    def fetch(self, fault: PageFault, then: Callable[[], None]) -> None:
        self.world.met["fetch"] += 1

        def arrive() -> None:
            fault.resolve()
            self.set_time()
            then()

        self.world.at(self.world.rng.uniform(0, 0.05), partial(self.world.in_tick, self, arrive))

    def set_time(self) -> None:
        now_s = self.world.now_s
        self.coordinator.now_s = now_s
        self.coordinator.now_ms = self.participant.now_ms = NOW_MS + int(now_s * 1000)

    # What the dispatch does

    def execute(self, op: Op) -> None:
        """Run a command on the local replica, and wait for its quorums."""
        quorums = self.coordinator.quorums
        if self.world.mixed and op.entry is not None:
            number = op.entry.session + op.entry.number
            chosen = self.world.mixed[number % len(self.world.mixed)]
            quorums = self.coordinator.quorums_of(chosen.r, chosen.w)
        is_write = op.args[0] in WRITES
        is_put = op.args[0] == b"PUT"
        is_checked = not is_put and (quorums.checks_all or not op.is_blind)
        places = [place_of(key) for key in op.args[1:3]] if op.args[0] in OF_TWO else []
        places = places or [place_of(op.args[1])]
        for slot, _ in places:
            lack = self.coordinator.lack(
                slot, quorums, is_write=is_write, is_checked=is_checked, is_blind=op.is_blind
            )
            if lack is not None:
                op.is_over = True
                op.end(lack, is_refused=op.attempt == 0)
                return
        store = self.replica.store
        written: list[tuple[Slot, Row, bytes]] = []
        try:
            stored = [(slot, row, store.get(slot, row)) for slot, row in places]
            if is_write and not op.is_blind and any(self._must_wait(op, each) for each in stored):
                self.world.met["parked"] += 1
                self.parked.append(op)
                return
            effects = self._run(op, stored)
            reads = [each for each in stored if each[1] not in effects]
            if effects:
                slot, row, raw = stored[-1]
                now_ms = self.coordinator.now_ms
                besides: dict[Row, Beside] = {}
                if is_put:
                    clock = self.replica.clocks.view(slot)
                    besides[row] = beside(raw or b"", clock, Seen(), now_ms)
                elif not op.is_blind:
                    op.before = {(s, r): before for s, r, before in stored if r in effects}
                self.replica.write(effects, now_ms, written, besides)
        except PageFault as fault:
            self.fetch(fault, partial(self._resume, op, op.attempt))
            return
        self.coordinator.begin(op, reads, written, quorums=quorums, is_checked=is_checked)
        if not op.waits and not op.is_over:
            op.is_over = True
            op.settled()

    def _must_wait(self, op: Op, stored: tuple[Slot, Row, bytes | None]) -> bool:
        if op.args[0] == b"PUT":
            return self.coordinator.may_be_taken_back(stored[:2])
        return self.coordinator.must_wait(*stored)

    def _resume(self, op: Op, attempt: int) -> None:
        if op.outcome == "waits" and op.attempt == attempt:
            self.execute(op)

    def _run(self, op: Op, stored: list[tuple[Slot, Row, bytes | None]]) -> dict[Row, Effect]:
        name = op.args[0]
        if name == b"BOTH":  # Counts each of two keys.
            counts = [int(self._value(raw) or b"0") + 1 for _, _, raw in stored]
            op.reply = [*counts]
            return {
                row: (slot, STRING, 0, b"%d" % count)
                for (slot, row, _), count in zip(stored, counts, strict=True)
            }
        slot, row, raw = stored[-1]  # Of MOVE the second key is the one that is written.
        value = self._value(raw)
        after: bytes | None
        if name == b"GET":
            op.reply = value
            return {}
        if name in (b"INCR", b"INCRBY", b"MOVE"):
            step = int(op.args[2]) if name == b"INCRBY" else 1
            after = b"%d" % (int(value or b"0") + step)
            op.reply = int(after)
        elif name == b"SETNX":
            op.reply = int(value is None)
            if value is not None:
                return {}
            after = op.args[2]
        elif name == b"APPEND":
            after = (value or b"") + op.args[2]
            op.reply = len(after)
        elif name == b"DEL":
            op.reply = int(value is not None)
            return {row: (slot, DELETION, 0, b"")} if value is not None else {}
        else:
            after, op.reply = op.args[2], b"OK"
        return {row: (slot, STRING, 0, after)}

    def _value(self, raw: bytes | None) -> bytes | None:
        version = decode(raw).winner(self.coordinator.now_ms) if raw is not None else None
        return version.payload if version is not None else None

    def end_tick(self) -> None:
        parked, self.parked = self.parked, []
        for op in parked:
            if op.deadline_s <= self.world.now_s:
                op.is_over = True
                op.end(ConflictLost(is_partial=False), is_refused=op.attempt == 0)
            else:
                self.execute(op)
        position = self.replica.store.write()
        durable = 0 if self.is_disk_late else EVERYTHING
        is_logged = not self.is_disk_full
        self.coordinator.flush(is_logged=is_logged, position=position, durable=durable)
        if self.is_disk_late or self.is_disk_full:
            return
        promises, self.promises = self.promises, []
        for peer, answer in promises:
            self.send(peer, answer)

    def receive(self, peer: NodeId, message: list[bytes]) -> None:
        assert self.coordinator.receive(peer, message) or self.participant.receive(peer, message)

    def flush_memtable(self) -> None:
        """Make a table of it; its rows have to be fetched from now on."""
        store = self.replica.store
        self.end_tick()
        store.freeze()
        job = store.next_job(NOW_MS)
        assert job is not None
        result = run_job(store.disk, job, CODEC)
        prepared = store.prepare(job, result)
        store.write_manifest(prepared)
        store.install(job, result, prepared)
        self.disk.faults.is_cold = True
        forget_pages(store)

    def value(self, key: bytes) -> bytes | None:
        raw = self.replica.store.read_now(*place_of(key))
        version = decode(raw).winner(NOW_MS) if raw is not None else None
        return version.payload if version is not None else None


@dataclass
class World:
    seed: int
    node_count: int = 3
    quorums: Quorums = field(default_factory=lambda: Quorums(3, 2, 2))
    weather: Weather = field(default_factory=Weather)
    mixed: tuple[Quorums, ...] = ()  # Each operation has one of these, if there are any.
    now_s: float = 0.0
    history: History = field(default_factory=History)
    met: Tally[str] = field(default_factory=Tally)
    sessions: int = 0

    def __post_init__(self) -> None:
        self.rng = random.Random(f"cluster-world-{self.seed}")
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._count = 0
        self.lines: dict[tuple[NodeId, NodeId], int] = {}  # Breaks so far, by pair.
        self.cut: set[frozenset[NodeId]] = set()
        self.log: list[tuple[float, NodeId, NodeId, list[bytes]]] = []
        names = [info.name for info in infos(self.node_count)]
        self.nodes = {
            name: Node(self, name, self.quorums, number)
            for number, name in enumerate(names, start=1)
        }
        self.names = names
        self.writers = names  # Where clients send their writes.
        self.dirty: dict[NodeId, None] = {}

    def at(self, after_s: float, action: Callable[[], None]) -> None:
        self._count += 1
        heapq.heappush(self._events, (self.now_s + after_s, self._count, action))

    def run(self, seconds: float) -> None:
        """Let time pass. Each node ticks some times a second."""
        end_s = self.now_s + seconds
        next_tick_s = self.now_s
        while next_tick_s < end_s:
            next_tick_s += 0.05
            while self._events and self._events[0][0] <= next_tick_s:
                self.now_s, _, action = heapq.heappop(self._events)
                action()
            self.now_s = next_tick_s
            for node in self.nodes.values():
                node.set_time()
                node.coordinator.tick(self.now_s)
                node.end_tick()

    def in_tick(self, node: Node, action: Callable[[], None]) -> None:
        node.set_time()
        action()
        if self.rng.random() >= self.weather.linger:
            node.end_tick()

    # The network

    def carry(self, source: NodeId, target: NodeId, message: list[bytes]) -> None:
        rng, weather = self.rng, self.weather
        self.log.append((self.now_s, source, target, message))
        line = frozenset((source, target))
        if line in self.cut or rng.random() < weather.loss:
            self.met["lost"] += 1
            return
        for _ in range(1 + (rng.random() < weather.repeat)):
            delay_s = rng.uniform(0.0, weather.delay_s)
            if rng.random() < weather.late:
                delay_s += rng.uniform(0.0, 2 * TIMEOUT_S)
            deliver = partial(self._deliver, source, target, message, self.breaks(line))
            self.at(delay_s, deliver)

    def breaks(self, line: frozenset[NodeId]) -> int:
        a, b = sorted(line)
        return self.lines.get((a, b), 0)

    def _deliver(self, source: NodeId, target: NodeId, message: list[bytes], breaks: int) -> None:
        if breaks != self.breaks(frozenset((source, target))):
            return  # The connection has broken.
        node = self.nodes[target]
        self.in_tick(node, lambda: node.receive(source, message))

    def disconnect(self, a: NodeId, b: NodeId) -> None:
        line = frozenset((a, b))
        self.cut.add(line)
        one, other = sorted(line)
        self.lines[one, other] = self.breaks(line) + 1
        for me, peer in ((a, b), (b, a)):
            node = self.nodes[me]
            node.set_time()
            node.topology.mark(peer, is_reachable=False)
            node.coordinator.disconnected(peer)

    def connect(self, a: NodeId, b: NodeId) -> None:
        self.cut.discard(frozenset((a, b)))
        self.nodes[a].topology.mark(b, is_reachable=True)
        self.nodes[b].topology.mark(a, is_reachable=True)

    # Clients

    def do(self, name: NodeId, *args: bytes, session: int | None = None) -> Op:
        """A command at a node, without waiting for it."""
        node = self.nodes[name]
        if session is None:
            self.sessions += 1
            session = self.sessions
        entry = self.history.begin(session, args, node=name, now_s=self.now_s)
        op = Op(node, args, entry)
        self.in_tick(node, lambda: node.execute(op))
        return op

    def client(self, commands: Callable[[], tuple[bytes, ...]], count: int) -> None:
        """A session that does one command after the other, at any node."""
        self.sessions += 1
        session = self.sessions
        left = [count]

        def one() -> None:
            if not left[0]:
                return
            left[0] -= 1
            args = commands()
            name = self.rng.choice(self.writers if args[0] in WRITES else self.names)
            node = self.nodes[name]
            entry = self.history.begin(session, args, node=name, now_s=self.now_s)
            op = Op(node, args, entry)
            op.then = lambda: self.at(self.rng.uniform(0.0, 0.1), one)
            self.in_tick(node, lambda: node.execute(op))

        self.at(self.rng.uniform(0.0, 0.1), one)

    def settle(self) -> None:
        """The network is well, and whatever waits has ended."""
        self.weather = Weather()
        for line in list(self.cut):
            a, b = sorted(line)
            self.connect(a, b)
        self.run(3 * TIMEOUT_S)


__all__ = ["ConflictLost", "Op", "QuorumNotMet", "Weather", "World"]
