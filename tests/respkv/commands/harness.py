"""Commands over a real replica and store, without sockets: what a test of a command family needs.

Not a server: there are no sessions' queues, no transactions and no blocking here. `run` does for one command
what the runner does: look it up, check its arity, run its handler, fetch pages that are not in memory and run it
again, then commit or drop.

    server = Server()
    server.run(b"SET", b"k", b"v")      # OK
    server.run(b"SET", b"k")            # A ReplyError, returned.
    server.play("SET k v ; GET k")      # b"v": commands as words, the last one's reply.
    server.now_ms += 1000               # Time passes only so.
    server.evict()                      # From memory to a table, out of all caches: the next read faults.
"""

from __future__ import annotations

import random
import shlex
from types import SimpleNamespace
from typing import Any

from cluster.record import CODEC, Version
from cluster.replica import Replica
from engine.job import run_job
from engine.store import PageFault, StoreSettings
from respkv.command import TABLE
from respkv.commands import load
from respkv.context import Context
from respkv.parser import Limits
from respkv.reply import ReplyError
from tests.sim.disk import SimDisk

START_MS = 1_700_000_000_000
SETTINGS = StoreSettings(
    memtable_bytes=1 << 30,
    row_cache_bytes=1 << 20,
    block_cache_bytes=1 << 20,
    log_bytes_max=1 << 30,
)
FAULTS_MAX = 100  # Of one command: more would mean that it never ends.

load()


class Server:
    """One node's commands over a simulated disk. `faults` counts the pages that had to be fetched."""

    def __init__(self, seed: int = 0) -> None:
        self.disk = SimDisk(random.Random(seed))
        self.replica = Replica.open(self.disk, SETTINGS, 1)
        self.node = SimpleNamespace(
            policies=None,
            databases=list(range(16)),
            limits=Limits(),
            front=SimpleNamespace(by_session={}),
        )
        self.session = SimpleNamespace(db=0, is_cluster=False)
        self.context = Context(self.node, self.replica, random.Random(seed))  # type: ignore[arg-type]
        self.now_ms = START_MS
        self.faults = 0

    def run(self, *args: bytes) -> Any:
        """The command's reply, or the `ReplyError` that it raised."""
        context = self.context
        context.bind(self.session, self.now_ms)  # type: ignore[arg-type]
        for _ in range(FAULTS_MAX):
            try:
                command = TABLE.resolve(list(args))
                assert command.handler is not None
                reply = command.handler(context, *args[2 if "|" in command.name else 1 :])
                if command.is_sliced:
                    reply = self._exhaust(reply)
            except PageFault as fault:
                context.drop()
                self.faults += 1
                fault.resolve()
                continue
            except ReplyError as error:
                context.drop()
                return error.with_traceback(None)
            context.commit()
            self.replica.store.write()
            return reply
        raise AssertionError(f"{args[0]!r} asks for pages again and again")

    def _exhaust(self, slices: Any) -> Any:
        try:
            while True:
                step = next(slices)
                if isinstance(step, PageFault):
                    self.faults += 1
                    step.resolve()
        except StopIteration as stop:
            return stop.value

    def play(self, script: str, *, is_cold: bool = False) -> Any:
        """Run commands separated by ` ; `, with quotes as in a shell. Returns the last one's reply.

        An error is `-` and its line. `is_cold`: what the last one reads is in no memory.
        """
        commands = [
            [word.encode("latin-1") for word in shlex.split(part)] for part in script.split(" ; ")
        ]
        for command in commands[:-1]:
            self.run(*command)
        if is_cold:
            self.evict()
        reply = self.run(*commands[-1])
        return b"-" + reply.line if isinstance(reply, ReplyError) else reply

    def line(self, *args: bytes) -> bytes:
        """The error line that the command answers."""
        reply = self.run(*args)
        assert isinstance(reply, ReplyError), reply
        return reply.line

    def put(self, key: bytes, version: Version) -> None:
        """Write a value of any type, past all commands."""
        self.context.bind(self.session, self.now_ms)  # type: ignore[arg-type]
        self.context.put(key, version)
        self.context.commit()

    def version(self, key: bytes) -> Version | None:
        """What a key holds: payload, expiry, raw mark, dot."""
        self.context.bind(self.session, self.now_ms)  # type: ignore[arg-type]
        return self.context.peek(key)

    def evict(self) -> None:
        """Move everything to a table and forget all caches, the kernel's too."""
        store = self.replica.store
        store.freeze()
        while (job := store.next_job(self.now_ms)) is not None:
            result = run_job(self.disk, job, CODEC)
            prepared = store.prepare(job, result)
            store.write_manifest(prepared)
            store.install(job, result, prepared)
        self.disk.faults.is_cold = True
