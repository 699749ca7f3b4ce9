"""Scenes: what several clients send in turn, and what each of them hears, in a text file.

Not for single commands (`harness`), nor for random ones (`tests/differential`). The same file is
played on a node inside this process, with a clock of its own, and on a real redis-server, so that
what it says is known to be Redis' behaviour.

    == a key that was read and changes          a scene; `(ours)` behind the name: not what Redis does
    # why                                       a comment
    a3 CLIENT TRACKING on                       client `a3` sends a command, quoted as in a shell
        +OK                                     what it hears
    b2 SET k 1
        +OK
        a3: >["invalidate", ["k"]]              what another client hears
    sleep 0.5                                   time passes
    a3                                          nothing is sent, but something may be heard

A client's name ends with its protocol, 2 or 3; `$a3` is its id. Addresses and times are shown as ADDR and TIME.
`python -m tests.respkv.commands.scene` rewrites what is heard in all files, to be reviewed as a diff.
"""

from __future__ import annotations

import contextlib
import random
import re
import shlex
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Protocol

from cluster.record import CODEC
from cluster.replica import Replica
from engine.job import run_job
from engine.store import StoreSettings
from respkv.commands import load
from respkv.config import Config
from respkv.node import Node
from tests.differential.wire import Reply, ReplyReader, encode
from tests.servers import RunningServer, redis_server
from tests.sim.disk import SimDisk

FOLDER: Final = Path(__file__).parent / "scenes"
START_NS: Final = 1_700_000_000_000_000_000
FIRST_ID: Final = 1000  # Ids are told from other integers by their size.
BARRIER_S: Final = 0.3  # A server that does not answer for so long is paused.
ANSWER_S: Final = 10.0
CLOSED: Final = "closed"
_SETTINGS: Final = StoreSettings(
    memtable_bytes=1 << 24,
    row_cache_bytes=1 << 20,
    block_cache_bytes=1 << 20,
    log_bytes_max=1 << 24,
)


@dataclass
class Step:
    """One line of a scene, and the lines that are heard after it."""

    text: str
    heard: list[str] = field(default_factory=list)


@dataclass
class Scene:
    """`head` is the line of its name and the comments before the first step."""

    name: str
    is_ours: bool
    head: list[str]
    steps: list[Step] = field(default_factory=list)

    def __str__(self) -> str:
        lines = list(self.head)
        for step in self.steps:
            lines += [step.text, *("    " + line for line in step.heard)]
        return "\n".join(lines)


def read(path: Path) -> list[Scene]:
    """The scenes of a file."""
    scenes: list[Scene] = []
    for line in path.read_text("latin-1").split("\n"):
        if line.startswith("== "):
            name = line[3:]
            scenes.append(Scene(name, name.endswith(" (ours)"), [line]))
        elif line.startswith("    "):
            scenes[-1].steps[-1].heard.append(line[4:])
        elif line.startswith("#") and not scenes[-1].steps:
            scenes[-1].head.append(line)
        elif line:
            scenes[-1].steps.append(Step(line))
    return scenes


class Stage(Protocol):
    """A server that a scene is played on."""

    def connect(self) -> socket.socket: ...

    def settle(self) -> None:
        """All that was sent has been served, as far as it can be."""

    def sleep(self, seconds: float) -> None: ...


class NodeStage:
    """A node in this process: the real front and runner over a simulated disk and clock, without trio."""

    def __init__(self, config: Config | None = None) -> None:
        load()
        self._now_ns = 0
        self.disk = SimDisk(random.Random(1))
        self.node = Node(
            config or Config(), Replica.open(self.disk, _SETTINGS, 7), name="test", data_dir="", rng=random.Random(1),
            clock_ns=lambda: self._now_ns, wall_ns=lambda: START_NS + self._now_ns,
        )  # fmt: skip
        self.node.front.clients._next_id = FIRST_ID
        self._port = self.node.front.listeners.listen_tcp("127.0.0.1", 0, 16)

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self._port))

    def settle(self) -> None:
        node = self.node
        for _ in range(2):  # The second time for what the node's ticker has set free.
            while True:
                events = node.poller.poll()
                node.front.tick(events)
                self._fetch()
                if not events and not node.front._backlog and not node._touched:
                    break
            now_ms = node.begin_tick()
            node.runner.expire_waits(node.now_s, now_ms)
            node.ticker.expire(now_ms)

    def _fetch(self) -> None:
        """Read the pages that sessions wait for."""
        node = self.node
        for fault, pins, resume in node.pages.take():
            fault.fetch()
            fault.arrive(pins)
            if resume is not None:
                resume(node.begin_tick(), None)

    def evict(self) -> None:
        """Move everything to a table and forget all caches: the next read faults."""
        store = self.node.store
        store.freeze()
        while (job := store.next_job(self.node.now_ms())) is not None:
            result = run_job(self.disk, job, CODEC)
            prepared = store.prepare(job, result)
            store.write_manifest(prepared)
            store.install(job, result, prepared)
        self.disk.faults.is_cold = True

    def sleep(self, seconds: float) -> None:
        self._now_ns += int(seconds * 1e9)
        self.settle()

    def close(self) -> None:
        self.node.front.stop_listening()
        self.node.front.close_all()
        self.node.store.write()
        self.node.store.close()


class ServerStage:
    """A server process, for one scene after the other."""

    def __init__(self, server: RunningServer) -> None:
        self._server = server
        # Make ids larger than `FIRST_ID`. A reply each, since the server closes what came too fast.
        for _ in range(FIRST_ID):
            self.clear()
        self._barrier = self._connect_barrier()

    def clear(self) -> None:
        """Empty the server."""
        with self.connect() as sock:
            sock.sendall(b"FLUSHALL\r\n")
            assert sock.recv(64) == b"+OK\r\n"

    def connect(self) -> socket.socket:
        return socket.create_connection((self._server.host, self._server.port), timeout=10)

    def settle(self) -> None:
        # When a command that was sent later is answered, all else was; twice, since one batch has no order.
        # It is one that MONITOR does not show.
        try:
            for _ in range(2):
                self._barrier.sendall(b"CLIENT NO-EVICT off\r\n")
                assert self._barrier.recv(64) == b"+OK\r\n"
        except TimeoutError:
            self._barrier.close()
            self._barrier = self._connect_barrier()

    def _connect_barrier(self) -> socket.socket:
        barrier = self.connect()
        barrier.settimeout(BARRIER_S)
        return barrier

    def close(self) -> None:
        self._barrier.close()

    def sleep(self, seconds: float) -> None:
        time.sleep(seconds)


class Client:
    """One connection and the replies that came of it."""

    def __init__(self, name: str, stage: Stage, *, is_greeted: bool = True) -> None:
        self.name = name
        self._stage = stage
        self._socket = stage.connect()
        # Without this the kernel keeps back what follows a command that has no reply.
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._reader = ReplyReader()
        self.is_closed = False
        self.id = 0
        if not is_greeted:
            return
        if name.endswith("3"):
            self.ask(b"HELLO", b"3")
        self.id = int(self.ask(b"CLIENT", b"ID").text)

    def ask(self, *args: bytes) -> Reply:
        self.send(*args)
        deadline = time.monotonic() + ANSWER_S
        while time.monotonic() < deadline:
            self._stage.settle()
            if replies := self.hear():
                return replies[0]
        raise TimeoutError(f"no answer to {args}")

    def send(self, *args: bytes) -> None:
        with contextlib.suppress(OSError):  # Closed by the server: then that is what is heard.
            self._socket.settimeout(10)
            self._socket.sendall(encode(args))

    def hear(self) -> list[Reply]:
        """All that has come since the last time; sets `is_closed`."""
        self._socket.setblocking(False)
        try:
            while data := self._socket.recv(1 << 16):
                self._reader.feed(data)
            self.is_closed = True
        except BlockingIOError:
            pass
        except OSError:
            self.is_closed = True
        return list(iter(self._reader.next, None))

    def close(self) -> None:
        self._socket.close()


def play(scene: Scene, stage: Stage) -> Scene:
    """The scene as it went."""
    names = dict.fromkeys(step.text.split()[0] for step in scene.steps)
    clients = {name: Client(name, stage) for name in names if name != "sleep"}
    ids = {str(client.id): f"${name}" for name, client in clients.items()}
    played = Scene(scene.name, scene.is_ours, scene.head)
    try:
        for step in scene.steps:
            played.steps.append(Step(step.text, _play_step(step.text, clients, stage, ids)))
    finally:
        for client in clients.values():
            client.close()
        stage.settle()
    return played


def _play_step(
    text: str, clients: dict[str, Client], stage: Stage, ids: dict[str, str]
) -> list[str]:
    name, _, line = text.partition(" ")
    if name == "sleep":
        stage.sleep(float(line))
    elif line:
        words = [re.sub(r"\$(\w+)", lambda m: str(clients[m[1]].id), w) for w in shlex.split(line)]
        clients[name].send(*(word.encode("latin-1") for word in words))
    stage.settle()
    heard = []
    for client in clients.values():
        was_closed = client.is_closed
        lines = [render(reply, ids) for reply in client.hear()]
        if client.is_closed and not was_closed:
            lines.append(CLOSED)
        heard += [line if client.name == name else f"{client.name}: {line}" for line in lines]
    # What the acting client hears comes first.
    return sorted(heard, key=lambda line: re.match(r"\w+[23]: ", line) is not None)


def render(reply: Reply, ids: dict[str, str]) -> str:
    """A reply on one line; a set's members are sorted."""
    if isinstance(reply.value, list):
        items = [render(item, ids) for item in reply.value]
        if reply.kind == "~":
            items.sort()
        elif reply.kind == "%":
            items = [f"{a}: {b}" for a, b in zip(items[::2], items[1::2], strict=True)]
        sign = "" if reply.kind == "*" else reply.kind
        return f"{sign}[{', '.join(items)}]"
    if reply.value is None:
        return "nil"
    text = reply.value.decode("latin-1")
    text = re.sub(r"\d{10}\.\d{6}", "TIME", re.sub(r"127\.0\.0\.1:\d+", "ADDR", text))
    if reply.kind == ":":
        return ids.get(text, ":" + text) if int(text) >= FIRST_ID else ":" + text
    return reply.kind + text if reply.kind in "+-#," else f'"{text}"'


def play_on_redis(scenes: list[Scene]) -> list[Scene]:
    """The scenes that tell of Redis, as they went there."""
    played = []
    with redis_server() as server:
        stage = ServerStage(server)
        for scene in scenes:
            stage.clear()
            played.append(play(scene, stage))
        stage.close()
    return played


@contextlib.contextmanager
def node_stage(config: Config | None = None) -> Iterator[NodeStage]:
    stage = NodeStage(config)
    try:
        yield stage
    finally:
        stage.close()


def rewrite(path: Path) -> None:
    """Write what is heard now."""
    played = []
    for scene in read(path):
        with node_stage() as stage:
            played.append(str(play(scene, stage)))
    path.write_text("\n\n".join(played) + "\n", "latin-1")


if __name__ == "__main__":
    for file in sorted(FOLDER.glob("*.txt")):
        rewrite(file)
