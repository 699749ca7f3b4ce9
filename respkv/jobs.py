"""The store's jobs beside the loop: flushes and compactions, one at a time, in the worker process.

Which job is next is the store's decision (`Store.next_job`), what it does that of `engine/job.py`, and a save only asks
for a flush (`respkv/saves.py`). For each job:

    freeze, if a save wants it -> next_job -> the worker runs it -> prepare -> the manifest, in a thread -> install

Only `install` runs in the loop. A job that fails is abandoned and chosen again a second later; what failed is in the
node's log, and admission is told.

Shell: it owns the task, and stops the worker at its end.
"""

from __future__ import annotations

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
    """Does flushes and compactions beside the loop: `engine.worker.Worker`."""

    restarts: int

    @property
    def pid(self) -> int | None: ...

    async def run(self, job: Job) -> JobResult: ...

    async def stop(self) -> None: ...


class Jobs:
    """One per node. Who sets `wanted` has the store asked for a job at once, and not only every few seconds."""

    def __init__(
        self, node: Node, admission: Admission, worker: JobRunner, offload: Offload
    ) -> None:
        self._node = node
        self._admission = admission
        self._store = node.store
        self._saves = node.saves
        self._offload = offload
        self.worker = worker
        self.wanted = trio.Event()  # Another one after each time that it was waited for.
        self.kind = "none"  # What the worker does.
        self._failures = 0  # In a row.

    def ask_save(self, kind: Kind) -> None:
        """BGSAVE, BGREWRITEAOF: have the memtable flushed."""
        self._saves.ask(kind, self._node.wall_ns() // 1_000_000_000)
        self.wanted.set()

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
        node, store, admission = self._node, self._store, self._admission
        try:
            while True:
                self._freeze_for_save()
                if store.leavings.has_files:
                    await self._offload(store.leavings.clear_away)
                job = store.next_job(node.now_ms(), admission.room_bytes())
                if job is None:
                    self.kind = "none"
                    with trio.move_on_after(5):
                        await self.wanted.wait()
                    self.wanted = trio.Event()
                    continue
                self.kind = job.kind
                if job.kind == "flush":
                    self._saves.flush_begins(node.changes)
                try:
                    result = await self.worker.run(job)
                    prepared = store.prepare(job, result)
                    await self._offload(partial(store.write_manifest, prepared))
                    started_ns = node.clock_ns()
                    store.install(job, result, prepared)
                    node.note_pause(started_ns)
                    for damage in result.damages:
                        self.report(damage)
                except EngineError as error:
                    if self._failures % FAILURES_PER_LINE == 0:
                        node.log.error("a job will be repeated", kind=job.kind, reason=str(error))
                    self._failures += 1
                    admission.are_jobs_failing = True
                    store.abandon(job)
                    self._saves.failed()
                    admission.check_disk()
                    await trio.sleep(1)
                else:
                    self._failures = 0
                    admission.are_jobs_failing = False
                    if job.kind == "flush":
                        self._note_flushed()
                    admission.check_stall()
                    admission.check_disk()
                    node.front.tick([])
        finally:
            with trio.CancelScope(shield=True):
                await self.worker.stop()

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
