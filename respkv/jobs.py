"""The store's jobs beside the loop: flushes and compactions, one of each at a time, in the worker process.

Which job is next is the store's decision (`Store.next_flush`, `Store.next_compaction`), what it does that of
`engine/job.py`, and a save only asks for a flush (`respkv/saves.py`). For each job:

    freeze, if a save wants it -> shorten -> next_flush -> the worker runs it
        -> prepare -> the manifest, in a thread -> install

Only `install` runs in the loop, and one manifest at a time is on its way to the disk. A job that fails is abandoned and
chosen again a second later; what failed is in the node's log, and admission is told.

Shell: it owns the tasks, and stops the worker at their end.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Final, Protocol

import trio

from engine.damage import Damage
from engine.errors import EngineError
from engine.job import Job, JobResult
from respkv.admission import Admission
from respkv.pages import Offload
from respkv.saves import Kind

if TYPE_CHECKING:
    from respkv.node import Node

FAILURES_PER_LINE: Final = 30


class JobRunner(Protocol):
    """Does flushes and compactions beside the loop, several at a time: `engine.worker.Worker`."""

    restarts: int

    @property
    def pid(self) -> int | None: ...

    async def run(self, job: Job) -> JobResult: ...

    async def hurry(self) -> None: ...

    async def stop(self) -> None: ...


class Lane:
    """The flushes, or the compactions: one after the other."""

    def __init__(self, next_job: Callable[[], Job | None]) -> None:
        self.next_job = next_job
        self.wanted = trio.Event()  # Another one after each time that it was waited for.
        self.kind = ""  # Of the job that is under way.
        self.failures = 0  # In a row.


class Jobs:
    """One per node. Every few seconds the store is asked for jobs; `want_flush` has it asked at once."""

    def __init__(
        self, node: Node, admission: Admission, worker: JobRunner, offload: Offload
    ) -> None:
        self._node = node
        self._admission = admission
        self._store = node.store
        self._saves = node.saves
        self._offload = offload
        self.worker = worker
        self._flushes, self._compactions = Lane(self._next_flush), Lane(self._next_compaction)
        self._lanes = (self._flushes, self._compactions)
        self._manifest = trio.Lock()
        self._clearing = trio.Lock()

    @property
    def kind(self) -> str:
        """What the worker does: "none", or the kinds of its jobs."""
        return "+".join(lane.kind for lane in self._lanes if lane.kind) or "none"

    def want_flush(self) -> None:
        """A memtable is frozen, or is to be. Hot: each write says so for as long as one is."""
        self._flushes.wanted.set()

    def ask_save(self, kind: Kind) -> None:
        """BGSAVE, BGREWRITEAOF: have the memtable flushed."""
        self._saves.ask(kind, self._node.wall_ns() // 1_000_000_000)
        self.want_flush()

    def report(self, damage: Damage) -> None:
        """Tell the node's log what was lost."""
        self._node.log.error(
            "data is lost: reads of it are refused until it is refilled, or KV.DAMAGE ACCEPT",
            file=damage.name,
            offset=damage.offset,
            reason=damage.reason,
            slots=f"{damage.slots.start}-{damage.slots.stop - 1}",
        )

    async def run(self) -> None:
        """Have jobs done until cancelled."""
        try:
            async with trio.open_nursery() as nursery:
                for lane in self._lanes:
                    nursery.start_soon(self._run, lane)
        finally:
            with trio.CancelScope(shield=True):
                await self.worker.stop()

    async def _run(self, lane: Lane) -> None:
        store = self._store
        while True:
            if store.leavings.has_files and not self._clearing.locked():  # No flush waits for that.
                async with self._clearing:
                    await self._offload(store.leavings.clear_away)
            if lane is self._flushes:
                self._freeze_for_save()
                while store.shorten():
                    await trio.lowlevel.checkpoint()
            job = lane.next_job()
            if job is None:
                with trio.move_on_after(5):
                    await lane.wanted.wait()
                lane.wanted = trio.Event()
                continue
            lane.kind = job.kind
            try:
                await self._do(job)
            except EngineError as error:
                self._note_failure(lane, error)
                await trio.sleep(1)
            else:
                lane.failures = 0
                self._note_done(job)
                if store.must_hurry:
                    await self.worker.hurry()
            finally:
                lane.kind = ""

    def _next_flush(self) -> Job | None:
        job = self._store.next_flush(self._node.now_ms())
        if job is not None:
            self._saves.flush_begins(self._node.changes)
        return job

    def _next_compaction(self) -> Job | None:
        return self._store.next_compaction(self._node.now_ms(), self._admission.room_bytes())

    async def _do(self, job: Job) -> None:
        """Have a job done and make it live. On EngineError it is abandoned."""
        node, store = self._node, self._store
        try:
            result = await self.worker.run(job)
        except EngineError:
            store.abandon(job)
            raise
        async with self._manifest:
            prepared = store.prepare(job, result)
            try:
                await self._offload(partial(store.write_manifest, prepared))
            except EngineError:
                store.abandon(job)
                raise
            started_ns = node.clock_ns()
            store.install(job, result, prepared)
            node.note_pause(started_ns)
        for damage in result.damages:
            self.report(damage)

    def _note_done(self, job: Job) -> None:
        self._tell_failures()
        if job.kind == "flush":
            self._note_flushed()
        self._admission.check_stall()
        self._admission.check_disk()
        self._compactions.wanted.set()  # It may have become necessary.
        self._node.front.tick([])

    def _tell_failures(self) -> None:
        self._admission.are_flushes_failing = self._flushes.failures > 0
        self._admission.are_compactions_failing = self._compactions.failures > 0

    def _note_failure(self, lane: Lane, error: EngineError) -> None:
        if lane.failures % FAILURES_PER_LINE == 0:
            self._node.log.error("a job will be repeated", kind=lane.kind, reason=str(error))
        lane.failures += 1
        self._tell_failures()
        if lane is self._flushes:
            self._saves.failed()
        self._admission.check_disk()

    def _freeze_for_save(self) -> None:
        """A save was asked for: freeze the memtable. Not while another one waits: two would stall the node."""
        store = self._store
        if not self._saves.wants_freeze or store.frozen:
            return
        try:
            if store.log.position > store.memtable.base_position:
                store.freeze()
        except EngineError as error:
            self._node.log.error("the memtable cannot be frozen", reason=str(error))
            self._saves.failed()
            return
        self._saves.frozen(store.log.position)
        if not store.frozen:  # All of the log is in tables already.
            self._note_flushed()

    def _note_flushed(self) -> None:
        self._saves.flushed(self._store.manifest.log_start, self._node.wall_ns() // 1_000_000_000)
