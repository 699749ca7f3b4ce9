"""Reads pages that were not in memory, beside the loop, and lets those who wait for them go on.

What a fault is, and how its page is read, is the store's affair (`engine/levels.py`); what is done
with the page is that of whoever waits.

    a command faults   -> `add`; and `read_ahead` looks at what its session has sent behind it
    a reader is free   -> it takes all that has gathered: one hop to a thread for many pages
    they are here      -> all are kept, and all who wait go on, in one tick or a few

A hop costs as much processor time as executing ten commands, and a thread waits for the
interpreter's lock after each call to the kernel; so what has gathered while one batch was read makes
the next one, and load makes batches larger. Two readers take turns, so that one slow page does not
hold up all others. `Errand`s may block for long, so each has a thread of its own.

A session's commands are executed in order, so one that waits for a page holds up those behind it,
and each of them would have to wait in turn. Their pages are read along with the first: the keys are
looked up, and the faults join the batch, with nobody waiting for them. That is only advice: the
blocks go into the cache, and a command that does not find its page there faults as usual. So it is
bounded by a part of that cache.

Shell.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any, Final

import trio

from cluster.slot import row_of, slot_of
from engine.errors import EngineError
from engine.levels import fetch_all
from engine.store import PageFault, Pins
from respkv.command import TABLE, Command
from respkv.errand import Errand
from respkv.reply import ReplyError
from respkv.session import IN_MULTI, Session

if TYPE_CHECKING:
    from respkv.node import Node

READERS: Final = 2
BATCH_MAX: Final = 64  # Pages that are read in one hop.
ERRANDS_MAX: Final = 8  # That are under way at the same time.
AHEAD_COMMANDS: Final = 32  # Of a session, behind one that waits.
RESUMES_NS: Final = 2_000_000  # A tick's time for those who waited; one may take longer.
# What is read ahead for one session may fill one part in so many of the block cache.
AHEAD_SHARE: Final = 16

Resume = Callable[[int, ReplyError | None], None]  # With the time, and why there is no page.
Offload = Callable[[Callable[[], Any]], Awaitable[Any]]  # Does what blocks, beside the loop.
Waiting = tuple[PageFault, Pins | None, Resume | None]


class Pages:
    """One per node."""

    def __init__(self, node: Node, offload: Offload) -> None:
        self._node = node
        self._offload = offload
        self._waiting: list[Waiting] = []
        self._errands: list[Waiting] = []
        self._wake = trio.Event()

    def add(self, fault: PageFault, pins: Pins | None, resume: Resume) -> None:
        """Have a page read, pin it, and then go on with `resume`, within a tick."""
        fault.__traceback__ = (
            None  # Its frames hold whoever keeps the fault: only the collector ends that.
        )
        (self._errands if isinstance(fault, Errand) else self._waiting).append(
            (fault, pins, resume)
        )
        self._wake.set()

    def take(self) -> list[Waiting]:
        """Give out what waits, errands too: for those who fetch it themselves."""
        taken = self._waiting + self._errands
        self._waiting, self._errands = [], []
        return taken

    def read_ahead(self, session: Session) -> None:
        """A command of the session waits for a page: have those read that the next ones will ask for."""
        if not session.queue or session.mode & IN_MULTI:
            return
        node = self._node
        store = node.store
        room = store.blocks.bytes_max // (AHEAD_SHARE * store.settings.block_bytes)
        db = node.databases[session.db]
        for args in islice(session.queue, AHEAD_COMMANDS):
            command = TABLE.lookup(args)
            if command is None or not _reads(command, args):
                continue
            for position in command.key_positions(args):
                if room <= 0:
                    return
                key = args[position]
                try:
                    store.get(slot_of(key), row_of(db, key))
                except PageFault as fault:
                    fault.__traceback__ = None
                    self._waiting.append((fault, None, None))
                    room -= 1
                except EngineError:
                    pass  # The command meets it again.

    async def run(self) -> None:
        """Serve until cancelled."""
        async with trio.open_nursery() as nursery:
            for _ in range(READERS):
                nursery.start_soon(self._read)
            limit = trio.CapacityLimiter(ERRANDS_MAX)
            while True:
                await self._wake.wait()
                self._wake = trio.Event()
                errands, self._errands = self._errands, []
                for errand in errands:
                    nursery.start_soon(self._do, errand, limit)

    async def _read(self) -> None:
        while True:
            while not self._waiting:
                await self._wake.wait()
            batch = self._waiting[:BATCH_MAX]
            del self._waiting[:BATCH_MAX]
            await self._offload(partial(fetch_all, [fault for fault, _, _ in batch]))
            await self._end(batch)

    async def _do(self, errand: Waiting, limit: trio.CapacityLimiter) -> None:
        async with limit:
            await self._offload(errand[0].fetch)
        await self._end([errand])

    async def _end(self, batch: list[Waiting]) -> None:
        """Keep the pages, all of them first, and let those who waited go on."""
        node = self._node
        failures: list[ReplyError | None] = []
        for fault, pins, _ in batch:
            failure = None
            try:
                fault.arrive(pins)
            except EngineError as error:
                failure = node.data_error(error)
            failures.append(failure)
        now_ms = node.begin_tick()
        until_ns = node.clock_ns() + RESUMES_NS
        for (_, _, resume), failure in zip(batch, failures, strict=True):
            if resume is None:
                continue
            if node.clock_ns() >= until_ns:  # Each may go on with all that has queued up behind it.
                node.front.tick([])
                await trio.lowlevel.checkpoint()
                now_ms = node.begin_tick()
                until_ns = node.clock_ns() + RESUMES_NS
            resume(now_ms, failure)
        node.front.tick([])  # A sliced command goes on now: the front may be asleep.


def _reads(command: Command, args: list[bytes]) -> bool:
    """Whether a command looks at what its keys hold. A plain SET does not."""
    if not command.keys or command.keys[0].access[0] == "OW":
        return False
    return command.name != "SET" or len(args) > 3
