"""Several sessions of one node, without sockets: what a test of transactions and of sliced commands needs.

Not a server: nothing happens by itself. `send` gives a session a command, `step` lets waiting ones
go on (a page that was fetched, one slice), and `ask` does both until the session has its answer.
Time passes only where a test says so; the monotonic clock counts its own readings, so that a slice
is one or two steps of a sliced command.

    node = Sessions()
    one, two = node.open(), node.open()
    node.ask(one, "DBSIZE")             # The reply, an error as `-` and its line.
    node.send(one, "KEYS *")            # Perhaps suspended now:
    node.ask(two, "SET k v")
    node.finish(one)                    # The reply of KEYS.
"""

from __future__ import annotations

import itertools
import random
import shlex
from typing import Any

import hiredis

from cluster.record import CODEC
from cluster.replica import Replica
from engine.job import run_job
from engine.store import PageFault, Pins
from respkv.commands import load
from respkv.config import Config
from respkv.node import Node
from respkv.pages import Resume
from respkv.parser import Limits
from respkv.session import Session
from tests.respkv.commands.harness import SETTINGS, START_MS
from tests.sim.disk import SimDisk

STEPS_MAX = 100_000

load()


def _error_line(text: str) -> bytes:
    return b"-" + text.encode("latin-1")


class Sessions(Node):
    """A node over a simulated disk. `faults` counts the pages that had to be fetched."""

    def __init__(self, seed: int = 0) -> None:
        self.sim_disk = SimDisk(random.Random(seed))
        self.time_ms = START_MS
        self.faults = 0
        self._waiting: list[tuple[PageFault, Pins | None, Resume]] = []
        ticks = itertools.count()
        super().__init__(
            Config(),
            Replica.open(self.sim_disk, SETTINGS, 1),
            name="node",
            data_dir="unused",
            rng=random.Random(seed),
            clock_ns=lambda: next(ticks),
            wall_ns=lambda: self.time_ms * 1_000_000,
        )
        self.slice_ns = 3
        self._readers: dict[Session, hiredis.Reader] = {}

    def open(self) -> Session:
        number = len(self._readers) + 1
        session = Session(number, "peer", "local", Limits(), 0.0, authenticated=True)
        self.front.by_session[session] = None  # type: ignore[assignment]
        self._readers[session] = hiredis.Reader(replyError=_error_line)  # type: ignore[arg-type]
        return session

    def send(self, session: Session, command: str) -> None:
        """One command, with quotes as in a shell."""
        args = [word.encode("latin-1") for word in shlex.split(command)]
        self.runner.serve(session, [args], self.time_ms)
        self.store.write()

    def step(self) -> None:
        """Pages arrive, and each sliced command has one slice."""
        waiting, self._waiting = self._waiting, []
        for fault, pins, resume in waiting:
            fault.fetch()
            fault.arrive(pins)
            resume(self.time_ms, None)
        self.runner.long_way.advance(self.time_ms)
        self.store.write()

    def finish(self, session: Session) -> Any:
        """The reply of the session's oldest command that was not answered."""
        reader = self._readers[session]
        for _ in range(STEPS_MAX):
            for part in session.out:
                reader.feed(part)
            session.out.clear()
            reply = reader.gets()
            if reply is not False:
                return reply
            self.step()
        raise AssertionError("no reply")

    def ask(self, session: Session, script: str) -> Any:
        """The last reply to commands separated by ` ; `."""
        reply = None
        for command in script.split(" ; "):
            self.send(session, command)
            reply = self.finish(session)
        return reply

    def fetch(self, fault: PageFault, pins: Pins | None, resume: Resume) -> None:
        self.faults += 1
        self._waiting.append((fault, pins, resume))

    def evict(self) -> None:
        """Move everything to a table and forget all caches, the kernel's too."""
        self.store.freeze()
        while (job := self.store.next_job(self.time_ms)) is not None:
            result = run_job(self.sim_disk, job, CODEC)
            prepared = self.store.prepare(job, result)
            self.store.write_manifest(prepared)
            self.store.install(job, result, prepared)
        self.sim_disk.faults.is_cold = True
