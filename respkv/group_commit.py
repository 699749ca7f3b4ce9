"""Group commit: what a tick applied goes to the log in one write, and what waits for the disk goes on when it is there.

It is not the log (`engine/log.py`), nor does it hold replies: the front and the peers do, and are told `release`.

    a tick ends -> `write`      one frame; the replies wait for its position
    `run`          sync         in a thread: at once (`always`) or once a second (`everysec`), and evenly in between
                -> release      of the replies that wait for a position below `releasable`
                -> `when_*`     those who asked for all that was written by then to be durable

A write that the disk has no room for stays staged, in memory and in `CommitLog.pieces`: its replies are held back,
and what it has changed is shown to nobody (`respkv/unlogged.py`) until a later write has taken it.

Shell: it owns the task that syncs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

import trio

from engine.errors import DiskError, LogFailedError, SyncError
from respkv.admission import Admission
from respkv.histogram import Histogram
from respkv.jobs import Jobs
from respkv.pages import Offload
from respkv.reply import Reply
from respkv.session import Session
from respkv.unlogged import Unlogged

if TYPE_CHECKING:
    from respkv.node import Node

STAGED_RETRY_S: Final = 0.1
SYNC_S: Final = 1.0  # With `everysec`.
# Of this the log is sent ahead of the next sync, if so much has come.
WRITE_BACK_S: Final = 0.1
WRITE_BACK_BYTES: Final = 1 << 20

SyncWait = tuple[Session | None, Reply, Callable[[], Reply]]


class GroupCommit:
    """One per node."""

    def __init__(self, node: Node, admission: Admission, jobs: Jobs, offload: Offload) -> None:
        self._node = node
        self._admission = admission
        self._jobs = jobs
        self._offload = offload
        # Looked up here once: `write` and `releasable` run in every tick.
        self._gate = node.runner.gate
        self._long_way = node.runner.long_way
        self._store = node.store
        self._log = node.store.log
        self._clock_ns = node.clock_ns
        self._latency = node.latency
        self._throttle = admission.throttle
        self.is_sync_wanted = node.config.log.fsync == "always"
        self.syncs = Histogram()
        self._wake = trio.Event()
        self._waits: list[SyncWait] = []
        self._staged_count = 0  # Pieces that the log could not take, for want of room.
        self._staged_retry_s = 0.0

    def configure(self, fsync: str) -> None:
        """Take over the setting `log.fsync`."""
        is_sync_wanted = fsync == "always"
        if is_sync_wanted != self.is_sync_wanted:
            self.is_sync_wanted = is_sync_wanted
            self._node.replica.note(is_durable=is_sync_wanted)
            self.want_sync()  # So that `run` looks again at what it waits for.

    # The end of a tick

    @property
    def releasable(self) -> int:
        """The log position up to which replies may leave."""
        log = self._log
        if self.is_sync_wanted:
            return log.synced
        return 1 << 62 if not log.pieces else log.position

    def write(self) -> int:
        """Write what this tick applied, and return the log position that its replies wait for.

        What a full disk does not take stays staged: its replies are held back until there is room,
        and writes are refused, and so are reads of what was written (`unlogged`). So no reply tells of
        what is not logged, and memory and log never contradict each other.
        """
        store = self._store
        if self._staged_count:
            return self._write_staged()
        started_ns = self._clock_ns() if self._latency.is_on else 0
        try:
            position = store.write()
        except LogFailedError as error:
            self._node.fail(error)
            return 1 << 63
        except DiskError as error:
            return self._keep_staged(error)
        if store.frozen or store.write_delay_s:
            if store.frozen:
                self._jobs.want_flush()
            if store.write_delay_s:
                self._throttle.wrote(position, store.write_delay_s, self._node.now_s)
            if not self._gate.is_stalled:
                self._admission.check_stall()
        if position > self._admission.check_position:
            self._admission.check_disk()
        if started_ns:
            now_ns = self._clock_ns()
            self._latency.add("aof-write", now_ns - started_ns)
            self._latency.add("loop", now_ns - int(self._node.now_s * 1e9))
        return position

    def _keep_staged(self, error: DiskError) -> int:
        log, node = self._log, self._node
        has_more = len(log.pieces) > self._staged_count
        if not self._staged_count:
            node.log.error("the commit log cannot be written", reason=str(error))
        if node.unlogged is None:
            node.unlogged = Unlogged()
            node.observe_changed()
        node.unlogged.add(log.pieces[self._staged_count :])
        self._staged_count = len(log.pieces)
        self._staged_retry_s = node.now_s + STAGED_RETRY_S
        self._admission.is_log_full = bool(self._staged_count)
        self._admission.check_disk()
        # They will be in the next frame, which ends above this. A tick that wrote nothing, while they
        # were unlogged already, has shown nothing of them: it need not wait.
        return log.position + 1 if has_more else log.position

    def _write_staged(self) -> int:
        """As `write`, while something waits for room."""
        log, node = self._log, self._node
        if len(log.pieces) == self._staged_count and node.now_s < self._staged_retry_s:
            return log.position
        try:
            position = self._store.write()
        except LogFailedError as error:
            node.fail(error)
            return 1 << 63
        except DiskError as error:
            return self._keep_staged(error)
        self._staged_count = 0
        self._admission.is_log_full = False
        node.unlogged = None
        node.observe_changed()
        node.log.info("the commit log can be written again")
        self.want_sync()
        self._release()
        return position

    def _release(self) -> None:
        node = self._node
        node.front.release(self.releasable)
        if node.peers is not None:
            node.peers.release(self.releasable)

    # Those who wait for the disk

    def when_synced(self, session: Session, pending: Reply, done: Callable[[], Reply]) -> None:
        """Once all that was written by now is durable, end the wait of a session that a handler blocked with `pending`.

        `pending` is known by its identity, so it must be an object of its own. `done` gives the
        answer; None keeps the session waiting.
        """
        self._waits.append((session, pending, done))
        self.want_sync()

    def when_durable(self, done: Callable[[], None]) -> None:
        """Call, within a tick, once all that was written by now is durable."""
        self._waits.append((None, None, done))
        self.want_sync()

    def want_sync(self) -> None:
        self._wake.set()

    async def run(self) -> None:
        """Sync until cancelled, or until the log has failed."""
        node = self._node
        while True:
            if self.is_sync_wanted:
                await self._wake.wait()
                self._wake = trio.Event()
            else:
                if not await self._rest(is_even=node.config.log.fsync == "everysec"):
                    return
                self._wake = trio.Event() if self._wake.is_set() else self._wake
                # With `no` too, sealed segments are forced to the disk: they are closed then, and
                # compaction learns that what they drop is dropped for good.
                is_rolled = self._log.synced < self._log.segment.base
                if node.config.log.fsync == "no" and not self._waits and not is_rolled:
                    continue
            log = self._log
            waits = self._waits
            if log.pieces:
                waits = []  # Writes that the disk has no room for: who waits for them goes on waiting.
            else:
                self._waits = []
            if log.synced != log.position:
                has_waiters = self.is_sync_wanted
                started_ns = self._clock_ns()
                try:
                    await self._offload(log.sync)
                except (SyncError, LogFailedError) as error:
                    node.fail(error)
                    return
                elapsed_ns = self._clock_ns() - started_ns
                self.syncs.add(elapsed_ns)
                if has_waiters:
                    self._latency.add("aof-fsync-always", elapsed_ns)
            self._release()
            if waits:
                self._end_waits(waits)

    async def _rest(self, *, is_even: bool) -> bool:
        """Wait for a second, or until a sync is wanted. False: the log has failed.

        `is_even`: what comes meanwhile is sent to the disk, so that little is left for the sync, which reads wait for.
        """
        log = self._log
        position = log.position
        with trio.move_on_after(SYNC_S):
            while not self._wake.is_set():
                with trio.move_on_after(WRITE_BACK_S):
                    await self._wake.wait()
                if is_even and log.position - position >= WRITE_BACK_BYTES:
                    position = log.position
                    try:
                        await self._offload(log.write_back)
                    except (SyncError, LogFailedError) as error:
                        self._node.fail(error)
                        return False
        return True

    def _end_waits(self, waits: list[SyncWait]) -> None:
        """Their writes are durable."""
        node = self._node
        now_ms = node.begin_tick()
        for session, pending, done in waits:
            if session is None:
                done()
            elif session.wait is not None and session.wait.reply is pending:
                reply = done()
                if reply is not None:
                    self._long_way.unblock(session, reply, now_ms)
        node.front.tick([])
