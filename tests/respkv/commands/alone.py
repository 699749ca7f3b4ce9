"""A whole node without sockets, tasks and threads, under a clock of its own: for commands about the server.

Commands go through the real runner, so that sliced ones, waits and transactions are what they are. Nothing happens by
itself: `pass_time` is the ticker, `work` the threads and the sync task.

    alone = Alone()
    alone.ask("INFO server")        # A Reply of the differential tester's reader.
    alone.ask("WAIT 1 100")         # None: it waits.
    alone.pass_time(0.1)            # The replies that came.
"""

from __future__ import annotations

import random
import shlex

from cluster.replica import Replica
from engine.store import PageFault, Pins
from respkv.commands import load
from respkv.config import Config
from respkv.node import Node
from respkv.pages import Resume
from respkv.parser import Limits
from respkv.process import CpuTimes
from respkv.session import Session
from respkv.store_share import store_settings
from tests.differential.wire import Reply, ReplyReader
from tests.sim.disk import SimDisk

START_NS = 1_700_000_000_000_000_000
STEPS_MAX = 100_000

load()


class FakeProcess:
    """A process of 50 MiB that used some CPU. `trims` counts calls."""

    pid = 4711
    executable = "/usr/bin/python3"
    system = "Linux 6.1 x86_64"
    memory_total_bytes = 8 << 30

    def __init__(self) -> None:
        self.rss = 50 << 20
        self.trims = 0

    def rss_bytes(self) -> int:
        return self.rss

    def cpu_times(self) -> CpuTimes:
        return CpuTimes(1.0, 2.0, 3.0, 4.0, 5.0, 6.0)

    def trim(self) -> bool:
        self.trims += 1
        return True


class Alone:
    """See the module's docstring. `session` is the first of its clients."""

    def __init__(self, config: Config | None = None, *, actor: int = 1) -> None:
        self.ns = 0
        self.process = FakeProcess()
        self.config = config or Config()
        self.disk = SimDisk(random.Random(1))
        self.open(Replica.open(self.disk, store_settings(self.config), actor))

    def open(self, replica: Replica) -> None:
        """Compose a node; another one of the same data, if there was one."""
        self.node = Node(
            self.config,
            replica,
            name="alone",
            data_dir="/data",
            rng=random.Random(1),
            clock_ns=lambda: self.ns,
            wall_ns=lambda: START_NS + self.ns,
            process=self.process,
        )
        self.faults: list[tuple[PageFault, Pins | None, Resume]] = []
        self.node.fetch = lambda *fault: self.faults.append(fault)  # type: ignore[method-assign]
        self._readers: dict[Session, ReplyReader] = {}
        self.session = self.connect()
        reset_counters(self.node)

    def connect(self) -> Session:
        """Another client."""
        number = len(self._readers) + 1
        session = Session(number, f"peer:{number}", "here:1", Limits(), 0.0, authenticated=True)
        self.node.front.by_session[session] = None  # type: ignore[assignment]  # No socket.
        self._readers[session] = ReplyReader()
        return session

    def ask(self, words: str, *more: bytes, session: Session | None = None) -> Reply | None:
        """The reply to a command, or None if it waits."""
        session = session or self.session
        args = [word.encode("latin-1") for word in shlex.split(words)] + list(more)
        self.node.runner.serve(session, [args], self.node.begin_tick())
        for _ in range(STEPS_MAX):
            if not self.node.runner.long_way.sliced:
                break
            self.node.runner.long_way.advance(self.node.now_ms())
        self.node.front.finish(self.node.now_ms())
        return self.reply(session)

    def text(self, words: str, *more: bytes) -> bytes:
        """The reply's text; `-` and the line of an error."""
        reply = self.ask(words, *more)
        assert reply is not None, "it waits"
        return b"-" + reply.text if reply.is_error else reply.text

    def info(self, sections: str = "") -> dict[str, str]:
        """INFO's fields."""
        lines = self.text(f"INFO {sections}").decode().split("\r\n")
        return dict(line.split(":", 1) for line in lines if ":" in line)

    def reply(self, session: Session | None = None) -> Reply | None:
        """The next reply that has come, if there is one."""
        session = session or self.session
        reader = self._readers[session]
        reader.feed(b"".join(session.out))
        session.out.clear()
        return reader.next()

    def pass_time(self, seconds: float) -> Reply | None:
        """Let time go by, then time-outs take place. The first reply of `session` that came of it."""
        self.ns += int(seconds * 1e9)
        now_ms = self.node.begin_tick()
        self.node.runner.expire_waits(self.node.now_s, now_ms)
        self.node.front.finish(now_ms)
        return self.reply()

    def work(self) -> Reply | None:
        """Do what threads would do: errands, and a sync of the log. The first reply of `session` that came of it."""
        faults, self.faults = self.faults, []
        for fault, pins, resume in faults:
            fault.fetch()
            fault.arrive(pins)
            resume(self.node.now_ms(), None)
        self.node.runner.long_way.advance(self.node.now_ms())
        self.node.store.log.sync()
        waits, self.node.commit._waits = self.node.commit._waits, []
        self.node.commit._end_waits(waits)
        return self.reply()

    def close(self) -> None:
        self.node.front.by_session.clear()
        self.node.front.close_all()


def reset_counters(node: Node) -> None:
    """The table of commands is one for the process: its counters begin anew with each node."""
    node.reset_stats()
